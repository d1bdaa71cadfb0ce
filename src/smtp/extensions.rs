//! What EHLO offers.

use super::session::Settings;
use crate::mail::Reply;

/// The response to EHLO: our name, then one keyword a line (RFC 5321 section 4.1.1.1).
///
/// There is no AUTH, on purpose: who may send is a matter of the network, and clients with leftover
/// credentials ignore them when it is not offered.
pub(super) fn ehlo(settings: &Settings, tls: bool) -> Reply {
    let reply = Reply::bare(250, settings.hostname.clone())
        .line("PIPELINING")
        .line(format!("SIZE {}", settings.max_message_size));
    let reply = if settings.starttls && !tls { reply.line("STARTTLS") } else { reply };
    reply.line("ENHANCEDSTATUSCODES").line("8BITMIME").line("DSN").line("SMTPUTF8").line("CHUNKING")
}
