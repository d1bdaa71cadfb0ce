//! One command line, parsed.
//!
//! Liberal where it harms nobody (letter case, blanks, a path without brackets), strict where two
//! programs could read the same line in two ways.

use super::parameters::{MailParameters, RcptParameters, number};
use super::replies;
use crate::mail::{BodyKind, ForwardPath, Mailbox, Notify, Ret, ReversePath};

/// The longest name we take from HELO or EHLO (RFC 5321 section 4.5.3.1.2).
const NAME_MAX: usize = 255;

/// A command (RFC 5321 section 4.1.1, RFC 3030, RFC 3207).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// HELO with the client's name.
    Helo(String),
    /// EHLO with the client's name.
    Ehlo(String),
    /// MAIL FROM.
    Mail(Mail),
    /// RCPT TO.
    Rcpt(Rcpt),
    /// DATA.
    Data,
    /// BDAT: that many octets follow at once.
    Bdat {
        /// Octets of the chunk.
        size: u64,
        /// Whether it is the message's last.
        last: bool,
    },
    /// RSET.
    Rset,
    /// NOOP, with or without text.
    Noop,
    /// VRFY with anything.
    Vrfy,
    /// HELP, with or without text.
    Help,
    /// QUIT.
    Quit,
    /// STARTTLS.
    StartTls,
}

/// What MAIL said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// Who sends.
    pub reverse_path: ReversePath,
    /// SIZE, in octets.
    pub size: Option<u64>,
    /// BODY.
    pub body: BodyKind,
    /// SMTPUTF8.
    pub smtputf8: bool,
    /// RET.
    pub ret: Option<Ret>,
    /// ENVID, still encoded.
    pub envid: Option<String>,
}

/// What RCPT said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rcpt {
    /// To whom; `None` is `<Postmaster>` without a domain (RFC 5321 section 4.5.1).
    pub path: Option<ForwardPath>,
    /// NOTIFY.
    pub notify: Option<Notify>,
    /// ORCPT, still encoded.
    pub orcpt: Option<String>,
}

/// Why a line is no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No verb we know.
    #[error("unknown command")]
    Unknown,
    /// A verb we know and do not serve.
    #[error("command not implemented")]
    NotImplemented,
    /// AUTH, which is not offered.
    #[error("AUTH is not offered")]
    Auth,
    /// A verb of HTTP: the client is lost, or lured here by a web page.
    #[error("not SMTP")]
    NotSmtp,
    /// An argument where none may be.
    #[error("unexpected argument")]
    UnexpectedArgument,
    /// No argument where one must be.
    #[error("argument missing")]
    Argument,
    /// The name in HELO or EHLO.
    #[error("malformed host name")]
    Name,
    /// No `FROM:` or `TO:`, or no path behind it.
    #[error("malformed MAIL or RCPT")]
    Path,
    /// The address in MAIL.
    #[error("malformed sender address")]
    Sender,
    /// The address in RCPT.
    #[error("malformed recipient address")]
    Recipient,
    /// An address outside ASCII without SMTPUTF8, or not UTF-8.
    #[error("address needs SMTPUTF8")]
    Utf8,
    /// A parameter with a wrong value, or twice.
    #[error("malformed parameter")]
    Parameter,
    /// A parameter of no extension we offer.
    #[error("unknown parameter")]
    UnknownParameter,
    /// BDAT without a usable size: where the next command starts is not known any more.
    #[error("malformed chunk size")]
    Chunk,
}

impl CommandError {
    /// The reply, without CRLF.
    pub const fn reply(self) -> &'static str {
        match self {
            Self::Unknown => replies::UNRECOGNISED,
            Self::NotImplemented => replies::NOT_IMPLEMENTED,
            Self::Auth => replies::AUTH_NOT_OFFERED,
            Self::NotSmtp => replies::NOT_SMTP,
            Self::UnexpectedArgument => replies::NO_ARGUMENT_ALLOWED,
            Self::Argument => replies::ARGUMENT,
            Self::Name => replies::HELO_NAME,
            Self::Path => replies::PATH_SYNTAX,
            Self::Sender => replies::BAD_SENDER,
            Self::Recipient => replies::BAD_RECIPIENT,
            Self::Utf8 => replies::NEEDS_SMTPUTF8,
            Self::Parameter => replies::PARAMETER,
            Self::UnknownParameter => replies::UNKNOWN_PARAMETER,
            Self::Chunk => replies::BAD_CHUNK,
        }
    }

    /// Whether the connection cannot go on after it.
    pub const fn is_fatal(self) -> bool {
        matches!(self, Self::NotSmtp | Self::Chunk)
    }
}

/// Reads a line, without its CRLF.
pub fn parse(line: &[u8]) -> Result<Command, CommandError> {
    let (verb, argument) = first_word(line);
    let argument = trimmed(argument);
    match verb.to_ascii_uppercase().as_slice() {
        b"HELO" => name(argument).map(Command::Helo),
        b"EHLO" => name(argument).map(Command::Ehlo),
        b"MAIL" => mail(argument).map(Command::Mail),
        b"RCPT" => rcpt(argument).map(Command::Rcpt),
        b"DATA" => alone(Command::Data, argument),
        b"BDAT" => bdat(argument).ok_or(CommandError::Chunk),
        b"RSET" => alone(Command::Rset, argument),
        b"QUIT" => alone(Command::Quit, argument),
        b"STARTTLS" => alone(Command::StartTls, argument),
        b"NOOP" => Ok(Command::Noop),
        b"HELP" => Ok(Command::Help),
        b"VRFY" if argument.is_empty() => Err(CommandError::Argument),
        b"VRFY" => Ok(Command::Vrfy),
        b"AUTH" => Err(CommandError::Auth),
        b"EXPN" | b"ETRN" | b"TURN" | b"ATRN" | b"SEND" | b"SOML" | b"SAML" => {
            Err(CommandError::NotImplemented)
        }
        b"GET" | b"HEAD" | b"POST" | b"PUT" | b"PATCH" | b"DELETE" | b"OPTIONS" | b"TRACE"
        | b"CONNECT" | b"PRI" => Err(CommandError::NotSmtp),
        _ => Err(CommandError::Unknown),
    }
}

/// What stands before the first blank, and the rest.
fn first_word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|b| is_blank(*b)).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, &[]))
}

/// Without the blanks around it. A CR is no blank: nothing hides behind one.
fn trimmed(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|b| !is_blank(*b)).unwrap_or(text.len());
    let end = text.iter().rposition(|b| !is_blank(*b)).map_or(start, |last| last + 1);
    text.get(start..end).unwrap_or_default()
}

const fn is_blank(octet: u8) -> bool {
    matches!(octet, b' ' | b'\t')
}

fn alone(command: Command, argument: &[u8]) -> Result<Command, CommandError> {
    if argument.is_empty() { Ok(command) } else { Err(CommandError::UnexpectedArgument) }
}

/// Any one word that can stand in a Received line. Whether it is the client's name is no reason to
/// refuse it (RFC 5321 section 4.1.4); Docker's names have `_`.
fn name(argument: &[u8]) -> Result<String, CommandError> {
    let fits = !argument.is_empty()
        && argument.len() <= NAME_MAX
        && argument.iter().all(|b| b.is_ascii_graphic() && !b"()<>\"\\,;@".contains(b));
    if fits {
        String::from_utf8(argument.to_vec()).map_err(|_| CommandError::Name)
    } else {
        Err(CommandError::Name)
    }
}

fn bdat(argument: &[u8]) -> Option<Command> {
    let mut words = argument.split(|b| *b == b' ').filter(|word| !word.is_empty());
    let size = number(words.next()?)?;
    let last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case(b"LAST") => true,
        Some(_) => return None,
    };
    if words.next().is_some() { None } else { Some(Command::Bdat { size, last }) }
}

fn mail(argument: &[u8]) -> Result<Mail, CommandError> {
    let (path, parameters) = path_and_parameters(argument, b"FROM:", CommandError::Sender)?;
    let reverse_path = if path.is_empty() {
        ReversePath::Null
    } else {
        ReversePath::Mailbox(mailbox(path, CommandError::Sender)?)
    };
    let MailParameters { size, body, smtputf8, ret, envid } = MailParameters::parse(parameters)?;
    if !smtputf8 && !reverse_path.is_ascii() {
        return Err(CommandError::Utf8);
    }
    Ok(Mail { reverse_path, size, body: body.unwrap_or_default(), smtputf8, ret, envid })
}

fn rcpt(argument: &[u8]) -> Result<Rcpt, CommandError> {
    let (path, parameters) = path_and_parameters(argument, b"TO:", CommandError::Recipient)?;
    let path = if path.eq_ignore_ascii_case(b"postmaster") {
        None
    } else {
        Some(ForwardPath(mailbox(path, CommandError::Recipient)?))
    };
    let RcptParameters { notify, orcpt } = RcptParameters::parse(parameters)?;
    Ok(Rcpt { path, notify, orcpt })
}

/// Cuts `FROM:<path> parameters`; the path comes without its brackets.
fn path_and_parameters<'a>(
    argument: &'a [u8],
    keyword: &[u8],
    bad: CommandError,
) -> Result<(&'a [u8], &'a [u8]), CommandError> {
    let (word, rest) = argument.split_at_checked(keyword.len()).ok_or(CommandError::Path)?;
    if !word.eq_ignore_ascii_case(keyword) {
        return Err(CommandError::Path);
    }
    let rest = trimmed(rest);
    let Some(inner) = rest.strip_prefix(b"<") else { return bare_path(rest) };
    let end = closing_bracket(inner).ok_or(bad)?;
    let (path, rest) = inner.split_at_checked(end).ok_or(bad)?;
    let parameters = rest.strip_prefix(b">").ok_or(bad)?;
    match parameters.first() {
        Some(octet) if !is_blank(*octet) => Err(CommandError::Parameter),
        _ => Ok((path, parameters)),
    }
}

/// `MAIL FROM:a@b`, as scripts and devices send it. It ends at the first blank, so it can hold no
/// quoted blank; brackets and quotes make it too doubtful to guess.
fn bare_path(rest: &[u8]) -> Result<(&[u8], &[u8]), CommandError> {
    let (path, parameters) = first_word(rest);
    if path.is_empty() || path.iter().any(|b| b"<>\"".contains(b)) {
        return Err(CommandError::Path);
    }
    Ok((path, parameters))
}

/// Where the `>` is that is not within a quoted string.
fn closing_bracket(text: &[u8]) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.iter().position(|b| {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return true,
            _ => {}
        }
        false
    })
}

fn mailbox(path: &[u8], bad: CommandError) -> Result<Mailbox, CommandError> {
    if std::str::from_utf8(path).is_err() {
        return Err(CommandError::Utf8);
    }
    Mailbox::parse(without_source_route(path)).map_err(|_| bad)
}

/// `@a,@b:user@d` is `user@d`: the route is recognised and not followed (RFC 5321 appendix C).
fn without_source_route(path: &[u8]) -> &[u8] {
    if !path.starts_with(b"@") {
        return path;
    }
    let Some(colon) = path.iter().position(|b| *b == b':') else { return path };
    let (route, rest) = path.split_at_checked(colon).unwrap_or((path, &[]));
    let is_hop = |hop: &[u8]| {
        hop.strip_prefix(b"@")
            .and_then(|domain| std::str::from_utf8(domain).ok())
            .is_some_and(crate::mail::address::is_domain)
    };
    if route.split(|b| *b == b',').all(is_hop) { rest.get(1..).unwrap_or_default() } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(line: &str) -> Result<String, CommandError> {
        match parse(line.as_bytes())? {
            Command::Mail(mail) => Ok(mail.reverse_path.to_string()),
            other => panic!("{other:?}"),
        }
    }

    fn recipient(line: &str) -> Result<String, CommandError> {
        match parse(line.as_bytes())? {
            Command::Rcpt(rcpt) => {
                Ok(rcpt.path.map_or_else(|| "Postmaster".into(), |p| p.to_string()))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn verbs_are_known_in_any_case_and_with_blanks_behind() {
        for (line, command) in [
            ("rSeT", Command::Rset),
            ("DATA  \t", Command::Data),
            ("NOOP anything", Command::Noop),
            ("help me", Command::Help),
            ("VRFY <a@b>", Command::Vrfy),
            ("Quit ", Command::Quit),
            ("StartTLS", Command::StartTls),
            ("EHLO  a_b.c ", Command::Ehlo("a_b.c".into())),
            ("helo [IPv6:::1]", Command::Helo("[IPv6:::1]".into())),
            ("BDAT 0 last", Command::Bdat { size: 0, last: true }),
            ("BDAT 12", Command::Bdat { size: 12, last: false }),
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(command), "{line}");
        }
    }

    #[test]
    fn what_is_no_command_is_named() {
        for (line, error) in [
            ("", CommandError::Unknown),
            (" QUIT", CommandError::Unknown),
            ("QUI", CommandError::Unknown),
            ("QUIT\r", CommandError::Unknown),
            ("R\rSET", CommandError::Unknown),
            ("\u{16}\u{3}\u{1}", CommandError::Unknown),
            ("XCLIENT ADDR=10.0.0.1", CommandError::Unknown),
            ("EXPN list", CommandError::NotImplemented),
            ("AUTH PLAIN AHgAeQ==", CommandError::Auth),
            ("GET / HTTP/1.1", CommandError::NotSmtp),
            ("DATA x", CommandError::UnexpectedArgument),
            ("RSET x", CommandError::UnexpectedArgument),
            ("VRFY", CommandError::Argument),
            ("EHLO", CommandError::Name),
            ("EHLO a b", CommandError::Name),
            ("EHLO a\rb", CommandError::Name),
            ("EHLO (a)", CommandError::Name),
            ("MAIL", CommandError::Path),
            ("MAIL FROM", CommandError::Path),
            ("MAIL FROM:", CommandError::Path),
            ("MAIL TO:<a@b>", CommandError::Path),
        ] {
            assert_eq!(parse(line.as_bytes()), Err(error), "{line:?}");
        }
        for (n, ok) in [(254, true), (255, true), (256, false)] {
            assert_eq!(parse(format!("EHLO {}", "x".repeat(n)).as_bytes()).is_ok(), ok, "{n}");
        }
    }

    #[test]
    fn a_chunk_size_is_digits_or_the_end() {
        for line in [
            "BDAT",
            "BDAT abc",
            "BDAT -5",
            "BDAT +5",
            "BDAT 5x",
            "BDAT 0x5",
            "BDAT 5 LAST x",
            "BDAT 5 FIRST",
            "BDAT 99999999999999999999999",
            "BDAT 18446744073709551621",
        ] {
            assert_eq!(parse(line.as_bytes()), Err(CommandError::Chunk), "{line}");
            assert!(CommandError::Chunk.is_fatal());
        }
        let most = Command::Bdat { size: u64::MAX, last: true };
        assert_eq!(parse(b"BDAT 18446744073709551615 LAST"), Ok(most));
    }

    #[test]
    fn paths_are_kept_as_sent_but_for_their_source_route() {
        for (line, path) in [
            ("MAIL FROM:<>", ""),
            ("mail from: <a@b> ", "a@b"),
            ("MAIL FROM:a@b SIZE=1", "a@b"),
            ("MAIL FROM:<@a,@b.c:user@d>", "user@d"),
            (r#"MAIL FROM:<"a@b> NOTIFY=NEVER <"@c> SIZE=1"#, r#""a@b> NOTIFY=NEVER <"@c"#),
            (r#"MAIL FROM:<"q\"\\>"@c>"#, r#""q\"\\>"@c"#),
            ("MAIL FROM:<gr\u{e5}@d> SMTPUTF8", "gr\u{e5}@d"),
            ("MAIL FROM:<-oQ/tmp@x>", "-oQ/tmp@x"),
        ] {
            assert_eq!(sender(line).as_deref(), Ok(path), "{line}");
        }
        for (line, path) in [
            ("RCPT TO:<PostMaster>", "Postmaster"),
            ("RCPT TO:<postmaster@d>", "postmaster@d"),
            ("rcpt to:<host!user@[192.0.2.1]>", "host!user@[192.0.2.1]"),
        ] {
            assert_eq!(recipient(line).as_deref(), Ok(path), "{line}");
        }
    }

    #[test]
    fn a_doubtful_path_is_refused() {
        for (line, error) in [
            ("MAIL FROM:<root>", CommandError::Sender),
            ("MAIL FROM:<a@b", CommandError::Sender),
            ("MAIL FROM:<a\0@b>", CommandError::Sender),
            ("MAIL FROM:<@a:>", CommandError::Sender),
            ("MAIL FROM:<@a>", CommandError::Sender),
            ("MAIL FROM:<a@b>SIZE=1", CommandError::Parameter),
            ("MAIL FROM:<a@b> junk", CommandError::UnknownParameter),
            ("MAIL FROM:a@b>", CommandError::Path),
            ("MAIL FROM:\"a b\"@c", CommandError::Path),
            ("MAIL FROM:<gr\u{e5}@d>", CommandError::Utf8),
            ("MAIL FROM:<a@b\u{fc}cher.example>", CommandError::Utf8),
            ("RCPT TO:<>", CommandError::Recipient),
            ("RCPT TO:<a b@d>", CommandError::Recipient),
            ("RCPT TO:<a@b@d>", CommandError::Recipient),
            ("RCPT TO:<a@b> SIZE=1", CommandError::UnknownParameter),
        ] {
            assert_eq!(parse(line.as_bytes()), Err(error), "{line:?}");
        }
        let invalid = parse(b"MAIL FROM:<\xff@d> SMTPUTF8");
        assert_eq!(invalid, Err(CommandError::Utf8));
    }
}
