//! What the fields of a secret mean, under the names people give them.

use std::collections::BTreeMap;

use super::error::{ContentError, FetchError, PartError};
use super::settings::Fields;
use crate::secret::{Credentials, Place, Secret};

/// The most names of fields that an error tells, and characters of each.
const NAMES_MAX: usize = 20;
const NAME_MAX: usize = 64;

/// What a source gave, before anyone says what it means.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Fetched {
    /// The texts by their names. Numbers and truth values are written out.
    pub fields: BTreeMap<String, Secret>,
    /// The source's own number for this content, where it counts.
    pub version: Option<u64>,
    /// Fields that hold something else: lists, tables.
    pub unusable: Vec<String>,
}

/// The parts of a secret and the spellings each is found under. The first is the part's own name,
/// which the configuration uses.
pub const SPELLINGS: [(&str, &[&str]); 8] = [
    (
        "username",
        &[
            "username",
            "user",
            "smtp_user",
            "smtp_username",
            "access_key",
            "access_key_id",
            "aws_access_key_id",
            "aws_ses_access_key",
            "aws_ses_access_key_id",
        ],
    ),
    (
        "password",
        &[
            "password",
            "pass",
            "smtp_password",
            "smtp_pass",
            "secret_key",
            "secret_access_key",
            "aws_secret_access_key",
            "aws_ses_secret_key",
            "aws_ses_secret_access_key",
        ],
    ),
    ("session_token", &["session_token", "aws_session_token", "aws_ses_session_token"]),
    ("host", &["host", "smtp_host"]),
    ("port", &["port", "smtp_port"]),
    ("use_tls", &["use_tls", "smtp_use_tls"]),
    ("from", &["from", "default_from", "smtp_from"]),
    ("region", &["region", "aws_region", "aws_ses_region"]),
];

/// The credentials in what was fetched, with version 0.
///
/// A user name or password that is there and empty counts as given: both empty mean no login, one
/// of them is an error. Both missing is an error, too.
pub(super) fn understand(fetched: &Fetched, names: &Fields) -> Result<Credentials, ContentError> {
    let reading = Reading { fetched, names };
    let username = reading.needed("username")?;
    let password = reading.needed("password")?;
    match (username.expose().is_empty(), password.expose().is_empty()) {
        (false, true) => return Err(reading.bad("password", "is empty, and there is a user name")),
        (true, false) => return Err(reading.bad("username", "is empty, and there is a password")),
        _ => {}
    }
    let text = |part| Ok(reading.given(part)?.map(|s| s.expose().trim().to_owned()));
    let place = Place {
        host: text("host")?,
        port: reading.parsed("port", "is not a port", port)?,
        use_tls: reading.parsed("use_tls", "is neither true nor false", truth)?,
        from: text("from")?,
        region: reading.parsed("region", "is no region of AWS", region)?,
    };
    let session_token = reading.given("session_token")?.cloned();
    let mut found = Credentials::new(username.expose().to_owned(), password.clone(), 0);
    (found.session_token, found.place) = (session_token, place);
    Ok(found)
}

/// The credentials in these environment variables, with version 0.
pub(super) fn from_environment(
    variables: &BTreeMap<String, String>,
) -> Result<Credentials, FetchError> {
    let mut fetched = Fetched::default();
    for (part, variable) in variables {
        let value = std::env::var(variable).map_err(|_| FetchError::Part {
            part: part.clone(),
            source: PartError::Variable(variable.clone()),
        })?;
        fetched.fields.insert(part.clone(), Secret::new(value));
    }
    Ok(understand(&fetched, &Fields::new())?)
}

struct Reading<'a> {
    fetched: &'a Fetched,
    names: &'a Fields,
}

impl<'a> Reading<'a> {
    fn needed(&self, part: &'static str) -> Result<&'a Secret, ContentError> {
        let found = self.find(part)?.map(|(_, value)| value);
        found.ok_or_else(|| ContentError::Missing {
            part,
            wanted: self.spellings(part).join(", "),
            present: self.present(),
        })
    }

    /// A part one can do without; empty is as good as absent.
    fn given(&self, part: &'static str) -> Result<Option<&'a Secret>, ContentError> {
        let found = self.find(part)?.map(|(_, value)| value);
        Ok(found.filter(|value| !value.expose().is_empty()))
    }

    fn parsed<T>(
        &self,
        part: &'static str,
        why: &'static str,
        parse: fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ContentError> {
        let Some(value) = self.given(part)? else { return Ok(None) };
        parse(value.expose().trim()).map(Some).ok_or_else(|| self.bad(part, why))
    }

    /// The field that holds a part. Several that agree are one.
    fn find(&self, part: &'static str) -> Result<Option<(&'a str, &'a Secret)>, ContentError> {
        let spellings = self.spellings(part);
        let exactly = self.names.contains_key(part);
        let means = |name: &str| {
            spellings.iter().any(|s| *s == name || (!exactly && s.eq_ignore_ascii_case(name)))
        };
        let all = self.fetched.fields.iter();
        let found: Vec<_> = all.filter(|(name, _)| means(name)).collect();
        let Some((name, value)) = found.first().copied() else { return Ok(None) };
        if found.iter().any(|(_, other)| *other != value) {
            let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
            return Err(ContentError::Ambiguous { part, names: names.join(", ") });
        }
        if value.expose().contains(char::is_control) {
            let why = "has a line break or another control character; write it without";
            return Err(ContentError::Value { field: name.clone(), why });
        }
        Ok(Some((name, value)))
    }

    fn spellings(&self, part: &'static str) -> Vec<&str> {
        if let Some(name) = self.names.get(part) {
            return vec![name];
        }
        let usual = SPELLINGS.iter().find(|(own, _)| *own == part);
        usual.map(|(_, spellings)| spellings.to_vec()).unwrap_or_default()
    }

    fn bad(&self, part: &'static str, why: &'static str) -> ContentError {
        let field = self.find(part).ok().flatten().map_or(part, |(name, _)| name);
        ContentError::Value { field: field.to_owned(), why }
    }

    /// The names that are there: as many of them, and as much, as fit in a line.
    fn present(&self) -> String {
        let unusable =
            self.fetched.unusable.iter().map(|name| format!("{} (no text)", short(name)));
        let named = self.fetched.fields.keys().map(|name| short(name));
        let names: Vec<_> = named.chain(unusable).take(NAMES_MAX).collect();
        let more = self.fetched.fields.len() + self.fetched.unusable.len() - names.len();
        match (names.is_empty(), more) {
            (true, _) => "nothing".to_owned(),
            (false, 0) => names.join(", "),
            (false, more) => format!("{} and {more} more", names.join(", ")),
        }
    }
}

/// A name that someone else has chosen, as it may stand in a line.
fn short(name: &str) -> String {
    let harmless = |c: char| if c.is_control() { '?' } else { c };
    name.chars().take(NAME_MAX).map(harmless).collect()
}

/// What can be a part of a host's name: AWS's client makes no request otherwise.
fn region(text: &str) -> Option<String> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (text.contains('-') && text.len() <= 63 && text.bytes().all(fits)).then(|| text.to_owned())
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(fields: &[(&str, &str)]) -> Fetched {
        let fields =
            fields.iter().map(|(k, v)| ((*k).to_owned(), Secret::new((*v).to_owned()))).collect();
        Fetched { fields, ..Fetched::default() }
    }

    fn read(fields: &[(&str, &str)]) -> Result<Credentials, String> {
        understand(&fetched(fields), &Fields::new()).map_err(|e| e.to_string())
    }

    #[test]
    fn every_spelling_seen_in_the_field_is_understood_in_any_case() {
        for (part, spellings) in SPELLINGS {
            for spelling in spellings {
                for name in [(*spelling).to_owned(), spelling.to_uppercase()] {
                    let value = match part {
                        "port" => "587",
                        "region" => "eu-west-1",
                        _ => "true",
                    };
                    let mut fields = vec![(name.as_str(), value)];
                    if part != "username" {
                        fields.push(("username", "relay"));
                    }
                    if part != "password" {
                        fields.push(("password", "pw"));
                    }
                    let c = read(&fields).unwrap_or_else(|e| panic!("{name}: {e}"));
                    let found = match part {
                        "username" => Some(c.username),
                        "password" => Some(c.password.expose().to_owned()),
                        "session_token" => c.session_token.map(|t| t.expose().to_owned()),
                        "host" => c.place.host,
                        "port" => c.place.port.map(|p| p.to_string()),
                        "use_tls" => c.place.use_tls.map(|b| b.to_string()),
                        "from" => c.place.from,
                        _ => c.place.region,
                    };
                    assert_eq!(found.as_deref(), Some(value), "{name}");
                }
            }
        }
    }

    #[test]
    fn a_missing_field_names_what_was_looked_for_and_what_is_there() {
        let error = read(&[("user", "relay"), ("passwrd", "hunter2")]).unwrap_err();
        assert!(error.starts_with("has no password: looked for password, pass, "), "{error}");
        assert!(error.ends_with("it has passwrd, user"), "{error}");
        assert!(read(&[]).unwrap_err().ends_with("it has nothing"));
        let mut odd = fetched(&[("user", "relay")]);
        odd.unusable.push("password".into());
        let error = understand(&odd, &Fields::new()).unwrap_err().to_string();
        assert!(error.ends_with("it has user, password (no text)"), "{error}");
    }

    #[test]
    fn the_names_of_fields_that_someone_else_chose_fit_in_a_line() {
        let error = read(&[("user", "relay"), ("a\r\nb\u{9b}", "x")]).unwrap_err();
        assert!(error.ends_with("it has a??b?, user"), "{error}");
        for (n, more) in [(NAMES_MAX - 1, ""), (NAMES_MAX, ""), (NAMES_MAX + 1, " and 1 more")] {
            let names: Vec<_> = (0..n).map(|n| format!("{n}{}", "x".repeat(NAME_MAX))).collect();
            let fields: Vec<_> = names.iter().map(|name| (name.as_str(), "x")).collect();
            let error = read(&fields).unwrap_err();
            assert_eq!(error.matches("xx,").count() + 1, n.min(NAMES_MAX), "{error}");
            assert!(error.ends_with(&format!("xx{more}")) && error.len() < 2000, "{error}");
        }
    }

    #[test]
    fn blanks_around_a_region_or_host_do_no_harm() {
        let login = [("user", "a"), ("password", "p"), ("region", " eu-west-1 "), ("host", "h ")];
        let place = read(&login).unwrap().place;
        assert_eq!(
            (place.region.as_deref(), place.host.as_deref()),
            (Some("eu-west-1"), Some("h"))
        );
    }

    #[test]
    fn both_empty_mean_no_login_and_one_empty_is_an_error() {
        let none = read(&[("user", ""), ("password", "")]).unwrap();
        assert!(none.is_anonymous());
        assert!(read(&[("user", "relay"), ("pass", "")]).unwrap_err().contains("field pass"));
        assert!(read(&[("user", ""), ("pass", "x")]).unwrap_err().contains("field user"));
    }

    #[test]
    fn fields_that_differ_are_not_chosen_between() {
        let both = [("user", "a"), ("access_key", "AKIA1"), ("pass", "p")];
        let error = read(&both).unwrap_err();
        assert!(error.contains("(access_key, user)"), "{error}");
        let names = Fields::from([("username".into(), "access_key".into())]);
        assert_eq!(understand(&fetched(&both), &names).unwrap().username, "AKIA1");
        assert_eq!(
            read(&[("user", "a"), ("SMTP_USER", "a"), ("pass", "p")]).unwrap().username,
            "a"
        );
    }

    #[test]
    fn a_named_field_is_the_only_one_looked_at() {
        let names = Fields::from([("password".into(), "relay_pw".into())]);
        let error = understand(&fetched(&[("user", "a"), ("password", "old")]), &names);
        let error = error.unwrap_err().to_string();
        assert_eq!(error, "has no password: looked for relay_pw; it has password, user");
    }

    #[test]
    fn values_that_cannot_be_are_refused_by_their_name_alone() {
        let login = [("user", "a"), ("password", "p")];
        for (field, value) in [
            ("port", "0"),
            ("port", "65536"),
            ("port", "hunter2"),
            ("use_tls", "hunter2"),
            ("host", "hunter2\n"),
            ("region", "hunter2"),
            ("region", "eu-west-1/hunter2"),
            ("region", "eu-west-1 hunter2"),
        ] {
            let mut fields = login.to_vec();
            fields.push((field, value));
            let error = read(&fields).unwrap_err();
            assert!(error.starts_with(&format!("field {field} ")), "{error}");
            assert!(!error.contains("hunter2"));
        }
        let error = read(&[("user", "a"), ("password", "hunter2\n")]).unwrap_err();
        assert!(error.contains("field password has a line break"), "{error}");
        assert_eq!(read(&[login[0], login[1], ("port", "65535")]).unwrap().place.port, Some(65535));
    }
}
