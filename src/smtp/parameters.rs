//! The parameters of MAIL and RCPT (RFC 5321 section 4.1.2, RFC 1870, 3461, 6152, 6531).

use super::command::CommandError;
use crate::mail::{BodyKind, Notify, Ret};

/// The longest ENVID (RFC 3461 section 4.4).
const ENVID_MAX: usize = 100;

/// The longest ORCPT (RFC 3461 section 4.2).
const ORCPT_MAX: usize = 500;

/// The most digits of a SIZE (RFC 1870 section 3).
const SIZE_DIGITS_MAX: usize = 20;

/// The parameters of MAIL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MailParameters {
    pub(super) size: Option<u64>,
    pub(super) body: Option<BodyKind>,
    pub(super) smtputf8: bool,
    pub(super) ret: Option<Ret>,
    pub(super) envid: Option<String>,
}

impl MailParameters {
    pub(super) fn parse(text: &[u8]) -> Result<Self, CommandError> {
        let mut all = Self::default();
        for (keyword, value) in parameters(text) {
            let twice = match keyword.to_ascii_uppercase().as_slice() {
                b"SIZE" => all.size.replace(size(value)?).is_some(),
                b"BODY" => all.body.replace(body(value)?).is_some(),
                b"RET" => all.ret.replace(ret(value)?).is_some(),
                b"ENVID" => all.envid.replace(envid(value)?).is_some(),
                b"SMTPUTF8" if value.is_some() => return Err(CommandError::Parameter),
                b"SMTPUTF8" => std::mem::replace(&mut all.smtputf8, true),
                _ => return Err(unknown(keyword)),
            };
            if twice {
                return Err(CommandError::Parameter);
            }
        }
        Ok(all)
    }
}

/// The parameters of RCPT.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RcptParameters {
    pub(super) notify: Option<Notify>,
    pub(super) orcpt: Option<String>,
}

impl RcptParameters {
    pub(super) fn parse(text: &[u8]) -> Result<Self, CommandError> {
        let mut all = Self::default();
        for (keyword, value) in parameters(text) {
            let twice = match keyword.to_ascii_uppercase().as_slice() {
                b"NOTIFY" => all.notify.replace(notify(value)?).is_some(),
                b"ORCPT" => all.orcpt.replace(orcpt(value)?).is_some(),
                _ => return Err(unknown(keyword)),
            };
            if twice {
                return Err(CommandError::Parameter);
            }
        }
        Ok(all)
    }
}

/// The words of `text`, each cut at its first `=`.
fn parameters(text: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    text.split(|b| matches!(b, b' ' | b'\t')).filter(|word| !word.is_empty()).map(|word| {
        let mut parts = word.splitn(2, |b| *b == b'=');
        (parts.next().unwrap_or_default(), parts.next())
    })
}

fn unknown(keyword: &[u8]) -> CommandError {
    let well_formed = keyword.first().is_some_and(u8::is_ascii_alphanumeric)
        && keyword.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-');
    if well_formed { CommandError::UnknownParameter } else { CommandError::Parameter }
}

fn size(value: Option<&[u8]>) -> Result<u64, CommandError> {
    let digits = value.unwrap_or_default();
    if digits.len() > SIZE_DIGITS_MAX {
        return Err(CommandError::Parameter);
    }
    number(digits).ok_or(CommandError::Parameter)
}

/// Decimal digits and nothing else: no sign, no blank, no overflow.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn body(value: Option<&[u8]>) -> Result<BodyKind, CommandError> {
    match value.unwrap_or_default().to_ascii_uppercase().as_slice() {
        b"7BIT" => Ok(BodyKind::SevenBit),
        b"8BITMIME" => Ok(BodyKind::EightBitMime),
        _ => Err(CommandError::Parameter),
    }
}

fn ret(value: Option<&[u8]>) -> Result<Ret, CommandError> {
    match value.unwrap_or_default().to_ascii_uppercase().as_slice() {
        b"FULL" => Ok(Ret::Full),
        b"HDRS" => Ok(Ret::Hdrs),
        _ => Err(CommandError::Parameter),
    }
}

fn notify(value: Option<&[u8]>) -> Result<Notify, CommandError> {
    let value = value.unwrap_or_default().to_ascii_uppercase();
    let mut notify = Notify::default();
    if value == b"NEVER" {
        return Ok(notify);
    }
    for event in value.split(|b| *b == b',') {
        match event {
            b"SUCCESS" => notify.success = true,
            b"FAILURE" => notify.failure = true,
            b"DELAY" => notify.delay = true,
            _ => return Err(CommandError::Parameter),
        }
    }
    Ok(notify)
}

fn envid(value: Option<&[u8]>) -> Result<String, CommandError> {
    let value = value.unwrap_or_default();
    if value.is_empty() || value.len() > ENVID_MAX || !is_xtext(value) {
        return Err(CommandError::Parameter);
    }
    text(value)
}

/// `type;xtext`, or `utf-8;` and UTF-8 (RFC 6533 section 3). Kept as received.
fn orcpt(value: Option<&[u8]>) -> Result<String, CommandError> {
    let value = value.unwrap_or_default();
    let mut parts = value.splitn(2, |b| *b == b';');
    let (kind, address) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let kind_ok = !kind.is_empty()
        && kind.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
    let utf8 = kind.eq_ignore_ascii_case(b"utf-8");
    let ascii: Vec<u8> = address.iter().copied().filter(|b| !utf8 || b.is_ascii()).collect();
    if !kind_ok || address.is_empty() || value.len() > ORCPT_MAX || !is_xtext(&ascii) {
        return Err(CommandError::Parameter);
    }
    let text = text(value)?;
    if text.chars().any(char::is_control) { Err(CommandError::Parameter) } else { Ok(text) }
}

fn text(value: &[u8]) -> Result<String, CommandError> {
    String::from_utf8(value.to_vec()).map_err(|_| CommandError::Parameter)
}

/// xtext (RFC 3461 section 4): printable ASCII but `+` and `=`, and `+` with two hex digits, which
/// must not stand for a control character.
fn is_xtext(value: &[u8]) -> bool {
    let mut octets = value.iter();
    while let Some(&octet) = octets.next() {
        if octet != b'+' {
            if !octet.is_ascii_graphic() || octet == b'=' {
                return false;
            }
            continue;
        }
        let mut hex = || octets.next().and_then(|b| char::from(*b).to_digit(16));
        let (Some(high), Some(low)) = (hex(), hex()) else { return false };
        if matches!(high * 16 + low, 0..32 | 127) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_parameters_are_read_in_any_order_and_case() {
        let all = MailParameters::parse(b" size=10  BODY=8bitmime\tSMTPUTF8 ret=Hdrs ENVID=a+20b");
        let expected = MailParameters {
            size: Some(10),
            body: Some(BodyKind::EightBitMime),
            smtputf8: true,
            ret: Some(Ret::Hdrs),
            envid: Some("a+20b".into()),
        };
        assert_eq!(all, Ok(expected));
        assert_eq!(MailParameters::parse(b""), Ok(MailParameters::default()));
    }

    #[test]
    fn malformed_mail_parameters_are_told_from_unknown_ones() {
        for text in [
            "SIZE",
            "SIZE=",
            "SIZE=-1",
            "SIZE=+1",
            "SIZE=1x",
            "SIZE=18446744073709551616",
            "SIZE=000000000000000000001",
            "SIZE=1 SIZE=1",
            "BODY=FOO",
            "BODY",
            "BODY=BINARYMIME",
            "SMTPUTF8=1",
            "SMTPUTF8 SMTPUTF8",
            "RET=SOME",
            "ENVID=",
            "ENVID=a+ZZ",
            "ENVID=+00",
            "ENVID=a+",
            "ENVID=a=b",
            "ENVID=a+7F",
            "=x",
            "B@D=1",
            "ENVID=\u{e9}",
        ] {
            assert_eq!(
                MailParameters::parse(text.as_bytes()),
                Err(CommandError::Parameter),
                "{text}"
            );
        }
        for text in ["FOO", "FOO=BAR", "AUTH=<>", "MT-PRIORITY=3", "junk", "NOTIFY=NEVER"] {
            let parsed = MailParameters::parse(text.as_bytes());
            assert_eq!(parsed, Err(CommandError::UnknownParameter), "{text}");
        }
        assert_eq!(
            MailParameters::parse(b"SIZE=18446744073709551615").map(|p| p.size),
            Ok(Some(u64::MAX))
        );
        for (n, ok) in [(99, true), (100, true), (101, false)] {
            assert_eq!(envid(Some("x".repeat(n).as_bytes())).is_ok(), ok, "{n}");
        }
    }

    #[test]
    fn rcpt_parameters_follow_rfc_3461() {
        let parse = |s: &str| RcptParameters::parse(s.as_bytes());
        let never = Notify::default();
        let all = Notify { success: true, failure: true, delay: true };
        assert_eq!(parse("NOTIFY=never").unwrap().notify, Some(never));
        assert_eq!(parse("notify=SUCCESS,Failure,DELAY").unwrap().notify, Some(all));
        for ok in ["rfc822;a@b", "rfc822;a+2Bb@c", "x-local;joe", "utf-8;gr\u{e5}@d"] {
            assert_eq!(parse(&format!("ORCPT={ok}")).unwrap().orcpt.as_deref(), Some(ok));
        }
        for bad in [
            "NOTIFY=NEVER,SUCCESS",
            "NOTIFY=",
            "NOTIFY",
            "NOTIFY=SUCCESS,",
            "NOTIFY=SOMETIMES",
            "NOTIFY=NEVER NOTIFY=NEVER",
            "ORCPT=",
            "ORCPT=rfc822",
            "ORCPT=rfc822;",
            "ORCPT=;a@b",
            "ORCPT=rfc822;a+0Ab",
            "ORCPT=rfc822;gr\u{e5}@d",
            "ORCPT=rfc822;a ORCPT=rfc822;a",
        ] {
            assert_eq!(parse(bad), Err(CommandError::Parameter), "{bad}");
        }
        assert_eq!(parse("SIZE=1"), Err(CommandError::UnknownParameter));
        for (n, ok) in [(499, true), (500, true), (501, false)] {
            assert_eq!(parse(&format!("ORCPT=x;{}", "y".repeat(n - 2))).is_ok(), ok, "{n}");
        }
    }
}
