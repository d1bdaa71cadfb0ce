//! Every reply the protocol core gives by itself, without its CRLF.
//!
//! They are constants, so nothing a client sent can come back in one of them. The replies that
//! carry a value (greeting, EHLO, chunk sizes, queue ids) are made where the value is known.

pub(super) const OK: &str = "250 2.0.0 Ok";
pub(super) const SENDER_OK: &str = "250 2.1.0 Ok";
pub(super) const RECIPIENT_OK: &str = "250 2.1.5 Ok";
pub(super) const BYE: &str = "221 2.0.0 Bye";
pub(super) const VRFY: &str =
    "252 2.0.0 Send the message and see: addresses are not looked up here";
pub(super) const HELP: &str =
    "214 2.0.0 See RFC 5321: EHLO HELO MAIL RCPT DATA BDAT RSET NOOP QUIT";
pub(super) const START_TLS: &str = "220 2.0.0 Ready to start TLS";
pub(super) const START_MAIL: &str = "354 End data with <CR><LF>.<CR><LF>";

// The service goes away.
pub(super) const TIMED_OUT: &str = "421 4.4.2 Nothing came for too long, closing";
pub(super) const DRAINING: &str = "421 4.3.2 Going down, come back later";
pub(super) const TOO_MANY_ERRORS: &str = "421 4.7.0 Too many errors, closing";
pub(super) const TOO_MANY_MESSAGES: &str = "421 4.7.0 Too many messages in one session, closing";
pub(super) const TALKED_EARLY: &str = "421 4.7.0 Commands sent before the greeting, closing";
pub(super) const NOT_SMTP: &str = "421 4.7.0 This is not SMTP, closing";

// Syntax.
pub(super) const UNRECOGNISED: &str = "500 5.5.2 Command not recognised";
pub(super) const LINE_TOO_LONG: &str = "500 5.5.2 Command line too long";
pub(super) const BARE_LF_COMMAND: &str = "500 5.5.2 A command must end in <CR><LF>";
pub(super) const NO_ARGUMENT_ALLOWED: &str = "501 5.5.4 This command takes no argument";
pub(super) const ARGUMENT: &str = "501 5.5.4 The argument is missing or malformed";
pub(super) const HELO_NAME: &str = "501 5.5.4 A host name or [address] is needed";
pub(super) const PATH_SYNTAX: &str = "501 5.5.4 MAIL FROM:<address> or RCPT TO:<address> is needed";
pub(super) const BAD_SENDER: &str = "501 5.1.7 The sender address is malformed";
pub(super) const BAD_RECIPIENT: &str = "501 5.1.3 The recipient address is malformed";
pub(super) const PARAMETER: &str = "501 5.5.4 A parameter's value is malformed or given twice";
pub(super) const BAD_CHUNK: &str = "501 5.5.4 BDAT needs a size in octets, closing";
pub(super) const NOT_IMPLEMENTED: &str = "502 5.5.1 Command not implemented";
pub(super) const UNKNOWN_PARAMETER: &str = "555 5.5.4 Parameter not recognised";
pub(super) const NEEDS_SMTPUTF8: &str =
    "553 5.6.7 An address with non-ASCII characters must be UTF-8 and needs SMTPUTF8";

// Order.
pub(super) const HELO_FIRST: &str = "503 5.5.1 Send EHLO or HELO first";
pub(super) const MAIL_FIRST: &str = "503 5.5.1 Send MAIL first";
pub(super) const NESTED_MAIL: &str = "503 5.5.1 A transaction is open already";
pub(super) const CHUNKS_OPEN: &str = "503 5.5.1 After BDAT only BDAT, RSET or QUIT can follow";
pub(super) const NO_RECIPIENTS: &str = "554 5.5.1 No valid recipients";
pub(super) const AUTH_NOT_OFFERED: &str = "503 5.5.1 AUTH is not offered: access is by network";
pub(super) const TLS_NOT_OFFERED: &str = "502 5.5.1 STARTTLS is not offered";
pub(super) const TLS_ACTIVE: &str = "503 5.5.1 TLS is active already";
pub(super) const REFUSED: &str = "503 5.5.1 You are not served here, only QUIT is";

// Limits and content.
pub(super) const TOO_MANY_RECIPIENTS: &str = "452 4.5.3 Too many recipients, send the rest later";
pub(super) const TOO_BIG: &str = "552 5.3.4 Message larger than the SIZE announced by EHLO";
pub(super) const NUL: &str = "550 5.6.0 The message contains a NUL octet";
pub(super) const LINE_IN_MESSAGE: &str = "550 5.6.0 A line of the message is too long";
pub(super) const BARE_NEWLINE: &str = "550 5.6.11 The message contains a bare CR or LF";

/// The driver answered a question nobody asked; the client may try again.
pub(super) const LOCAL_ERROR: &str = "451 4.3.0 Local error, try again";

#[cfg(test)]
mod tests {
    use crate::mail::EnhancedStatus;
    use crate::mail::reply::LINE_MAX;

    #[test]
    fn every_reply_has_a_code_and_an_enhanced_status_of_its_class_and_fits_the_line() {
        let source = include_str!("replies.rs").split("#[cfg(test)]").next().unwrap();
        let replies: Vec<&str> = source
            .split("&str =")
            .skip(1)
            .map(|rest| rest.split('"').nth(1).expect("a quoted reply"))
            .collect();
        assert!(replies.len() > 40, "{}", replies.len());
        for reply in replies {
            let mut words = reply.splitn(3, ' ');
            let code: u16 = words.next().unwrap().parse().unwrap();
            assert!(reply.len() <= LINE_MAX - 2 && reply.bytes().all(|b| (32..127).contains(&b)));
            if code != 354 {
                let status: EnhancedStatus = words.next().unwrap().parse().unwrap();
                assert_eq!(u16::from(status.class), code / 100, "{reply}");
            }
        }
    }
}
