//! Reading `[upstreams.NAME]` of the type `ses`.

use super::read_secret::{self, Secrets};
use super::section::{Section, Size};
use super::units::{mins, secs};
use super::values::{List, Patterns, Texts, Url};
use super::{Ses, files};
use crate::mail::Mailbox;
use crate::policy::eligibility::{Rules, SIZE_MAX};
use crate::upstream::ses::{SenderPolicy, Settings};

/// SES takes 40 MB in base64, of which four octets carry three, and does not say which megabytes.
/// This fits in the smaller, with room for the fields that are added.
const MAX_SIZE: u64 = 28 << 20;

/// Reads what SES has; and the name of the secret it logs in with.
pub(super) fn ses(
    name: &str,
    section: &mut Section<'_>,
    secrets: &mut Secrets<'_>,
) -> (Ses, Option<String>) {
    let secret = auth(name, section, secrets);
    let region = region(section);
    let endpoint = endpoint(section);
    let ca_file = files::existing(section, "ca_file");
    if let Some(path) = &ca_file {
        files::check_certificates(section, "ca_file", path);
    }
    let configuration_set = configuration_set(section);
    let tags = tags(section);
    let feedback_address = section.optional("feedback_address").map(|m: Mailbox| m.to_string());
    let sender = sender(section.section("sender"));
    let max_size = section.within("max_size", Size(MAX_SIZE), Size(64 << 10)..=Size(SIZE_MAX)).0;
    let blocked = blocked(section);
    let (connect_timeout, request_timeout) = {
        let mut timeouts = section.section("timeouts");
        let connect = timeouts.within("connect", secs(5), secs(1)..=mins(5));
        let request = timeouts.within("request", secs(60), secs(1)..=mins(30));
        timeouts.finish();
        (connect, request)
    };
    let keep_dkim = section.or("keep_dkim", false);
    let rules = Rules {
        max_size,
        senders: sender.allowed.clone(),
        rewrites_sender: sender.default.is_some(),
        keeps_dkim: keep_dkim,
        blocked,
    };
    let settings = Settings {
        name: name.into(),
        region,
        endpoint,
        secret: section.has("auth"),
        ca_file,
        configuration_set,
        tags,
        feedback_address,
        sender,
        keep_dkim,
        max_size,
        day_reserve: section.or("day_reserve", 0),
        max_connections: section.within("max_connections", 10, 1..=1000),
        connect_timeout,
        request_timeout,
        account_every: mins(1),
    };
    (Ses { settings, rules }, secret)
}

fn auth(name: &str, section: &mut Section<'_>, secrets: &mut Secrets<'_>) -> Option<String> {
    let given = section.has("auth");
    let mut auth = section.section("auth");
    if !given {
        return None;
    }
    let login = secrets.login(name, &mut auth, &read_secret::AWS);
    auth.finish();
    login.map(|login| login.secret)
}

fn region(section: &mut Section<'_>) -> Option<String> {
    let region: String = section.optional("region")?;
    let is_region = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    // A letter at the end is that of an availability zone.
    let ends_well = region.ends_with(|c: char| c.is_ascii_digit());
    if !region.contains('-') || !ends_well || !region.chars().all(is_region) {
        let cure = "write region = \"eu-west-1\"";
        section.error("region", format_args!("\"{region}\" is no region of AWS"), cure);
    }
    Some(region)
}

fn endpoint(section: &mut Section<'_>) -> Option<String> {
    let url: Url = section.optional("endpoint_url")?;
    if url.is_open() {
        let message = "would send mail over the network in clear";
        section.warning("endpoint_url", message, "write https://, unless it is for a test");
    }
    Some(url.0)
}

fn configuration_set(section: &mut Section<'_>) -> Option<String> {
    let set: String = section.optional("configuration_set")?;
    if set.is_empty() || set.len() > 64 || !set.chars().all(is_tag_name) {
        let message = "is no name of a configuration set";
        section.error("configuration_set", message, "write at most 64 letters, digits, - and _");
    }
    Some(set)
}

fn tags(section: &mut Section<'_>) -> Vec<(String, String)> {
    let Texts(tags) = section.optional("tags").unwrap_or_default();
    let is_text = |text: &str, allowed: fn(char) -> bool| {
        (1..=256).contains(&text.len()) && text.chars().all(allowed)
    };
    let is_tag =
        |(name, value): &&(String, String)| is_text(name, is_tag_name) && is_text(value, is_tag);
    if let Some((name, value)) = tags.iter().find(|tag| !is_tag(tag)) {
        let message = format!("has a tag that SES refuses: \"{name}\" = \"{value}\"");
        let cure = "write letters, digits, - and _; in values also . and @";
        section.error("tags", message, cure);
    }
    tags
}

const fn is_tag_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_')
}

const fn is_tag(c: char) -> bool {
    is_tag_name(c) || matches!(c, '.' | '@')
}

fn sender(mut section: Section<'_>) -> SenderPolicy {
    let default: Option<Mailbox> = section.optional("default");
    let allowed = section.optional("allowed").map(|Patterns(patterns)| patterns);
    if let Some(default) = &default {
        match &allowed {
            None if !section.has("allowed") => section.warning(
                "default",
                "has no effect: every sender is allowed",
                "write allowed = [\"@example.com\"], the identities that are verified in SES",
            ),
            Some(allowed) if !allowed.iter().any(|one| one.contains(default)) => section.error(
                "default",
                format_args!("\"{default}\" is not allowed itself"),
                "add it, or its domain, to allowed",
            ),
            _ => {}
        }
    }
    section.finish();
    SenderPolicy {
        allowed: allowed.unwrap_or_default(),
        default: default.map(|mailbox| mailbox.to_string()),
    }
}

/// Extensions in lower case, without the dot.
fn blocked(section: &mut Section<'_>) -> Vec<String> {
    let default = List(Rules::default().blocked);
    let List(blocked) = section.or("blocked_attachments", default);
    let plain = |text: String| text.trim_start_matches('.').to_ascii_lowercase();
    blocked.into_iter().map(plain).collect()
}
