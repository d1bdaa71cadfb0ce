//! Reading `[[route]]`: which mail goes where, and what is likely wrong with that.

use super::document::{Node, Place};
use super::read::{known_name, name};
use super::section::{Section, Setting, show_list, similar, words};
use super::values::{Headers, Patterns};
use super::{Upstream, UpstreamKind};
use crate::mail::facts::ENTRIES_MAX;
use crate::policy::networks::Networks;
use crate::policy::routing::{self, Class, Match, Priority, Route, Unconfirmed};

/// Reads every `[[route]]`. `places` are the names of all upstreams and where they begin,
/// `upstreams` those without mistakes.
pub(super) fn routes(
    top: &mut Section<'_>,
    places: &[(String, Place)],
    upstreams: &[Upstream],
) -> Vec<Route> {
    let sections = top.sections("route");
    if !top.has("route") {
        let cure = "write [[route]] with name = \"default\" and upstreams = [\"core\"]";
        top.error("route", "is missing: mail can go nowhere", cure);
    }
    let names: Vec<String> = places.iter().map(|(name, _)| name.clone()).collect();
    let count = sections.len();
    let mut routes: Vec<Route> = Vec::new();
    for (i, mut section) in sections.into_iter().enumerate() {
        if let Some(route) = route(&mut section, &names) {
            check_order(&section, &route, &routes, i + 1 == count);
            check_upstreams(&section, &route, upstreams);
            routes.push(route);
        }
        section.finish();
    }
    let headers = routing::headers(&routes).len();
    if headers > ENTRIES_MAX {
        let message = format!("asks for {headers} headers in all");
        let cure = format!("of a message {ENTRIES_MAX} are kept; tell mail apart by fewer");
        top.error("route", message, cure);
    }
    // A route that is wrong may name any of them.
    if count > 0 && routes.len() == count {
        check_unused(top, places, &routes);
    }
    routes
}

fn route(section: &mut Section<'_>, names: &[String]) -> Option<Route> {
    let name = name(section, "\"default\"");
    let when = when(section.section("match"));
    let upstreams = upstreams(section, names);
    let unconfirmed = section.or("unconfirmed", Unconfirmed::Retry);
    let classes = classes(section);
    Some(Route { name: name?, when: when?, upstreams: upstreams?, unconfirmed, classes })
}

words!(Unconfirmed { "retry" => Self::Retry, "hold" => Self::Hold });
words!(Priority { "high" => Self::High, "normal" => Self::Normal, "low" => Self::Low });

/// `None` when a part of it is wrong: without that it would match more than was meant.
fn when(mut section: Section<'_>) -> Option<Match> {
    let sender: Option<Patterns> = section.optional("sender");
    let recipient: Option<Patterns> = section.optional("recipient");
    let header: Option<Headers> = section.optional("header");
    let whole = section.has("sender") == sender.is_some()
        && section.has("recipient") == recipient.is_some()
        && section.has("header") == header.is_some();
    section.finish();
    whole.then(|| Match {
        sender: sender.unwrap_or_default().0,
        recipient: recipient.unwrap_or_default().0,
        header: header.unwrap_or_default().0,
    })
}

fn upstreams(section: &mut Section<'_>, names: &[String]) -> Option<Vec<String>> {
    let example = "write upstreams = [\"core\"], the preferred one first";
    let Some(node) = section.node("upstreams") else {
        section.error("upstreams", "is missing", example);
        return None;
    };
    let Some(nodes) = node.list().filter(|nodes| !nodes.is_empty()) else {
        section.error("upstreams", "must be a list of at least one name", example);
        return None;
    };
    let mut upstreams: Vec<String> = Vec::new();
    for node in nodes.iter() {
        let name = node.text().unwrap_or_default();
        let fault = if !names.iter().any(|n| n == name) {
            let meant = similar(name, names.iter().map(String::as_str));
            let cure = match meant {
                Some(_) => known_name(name, names),
                None => format!("write [upstreams.{name}], or {}", known_name(name, names)),
            };
            Some(("names the unknown upstream", cure))
        } else if upstreams.iter().any(|n| n == name) {
            Some(("names twice the upstream", "name it once".into()))
        } else {
            None
        };
        if let Some((what, cure)) = fault {
            let message = format!("{} {what} \"{name}\"", section.path);
            section.reading.error(&node.place, message, cure);
        }
        upstreams.push(name.into());
    }
    section.in_effect("upstreams", show_list(upstreams.iter().map(Setting::show)));
    Some(upstreams)
}

fn classes(section: &mut Section<'_>) -> Vec<Class> {
    let mut classes = Vec::new();
    let mut shown = Vec::new();
    for mut one in section.sections("priority") {
        let level: Option<Priority> = one.required("level", "\"high\", \"normal\" or \"low\"");
        let clients = clients(&mut one);
        let header: Option<Headers> = one.optional("header");
        if let Some(Headers(headers)) = &header
            && headers.len() != 1
        {
            let cure = "write header = { X-Priority = \"1\" }; or a second entry of priority";
            one.error("header", "must name one header", cure);
        }
        if !one.has("client") && !one.has("header") && level == Some(Priority::Normal) {
            let cure = "normal is what all others are: leave it out";
            one.reading.warning(&one.place, format!("{} has no effect", one.path), cure.to_owned());
        }
        shown.push(show_class(level, &clients, header.as_ref()));
        let header = header.and_then(|Headers(headers)| headers.into_iter().next());
        classes.extend(level.map(|priority| Class { priority, clients, header }));
        one.finish();
    }
    if section.has("priority") {
        section.in_effect("priority", show_list(shown.into_iter()));
    }
    classes
}

fn show_class(level: Option<Priority>, clients: &Networks, header: Option<&Headers>) -> String {
    let clients = show_list(clients.iter().map(|n| n.to_string().show()));
    let parts = [
        level.map(|level| format!("level = {}", level.show())),
        (clients != "[]").then(|| format!("client = {clients}")),
        header.map(|header| format!("header = {}", header.show())),
    ];
    format!("{{ {} }}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

fn clients(section: &mut Section<'_>) -> Networks {
    let Some(node) = section.node("client") else { return Networks::default() };
    let Some(nodes) = node.list().filter(|nodes| !nodes.is_empty()) else {
        let cure = "write client = [\"10.0.3.0/24\"]; or leave it out for all clients";
        section.error("client", "must be a list of networks", cure);
        return Networks::default();
    };
    let path = section.name("client");
    let network = |(i, node): (usize, &Node)| {
        let told = match node.text().map(|text| Networks::parse(&[text]).map(|_| text.to_owned())) {
            Some(Ok(text)) => return Some(text),
            Some(Err(errors)) => {
                errors.into_iter().map(|e| (e.to_string(), Some(e.problem.cure()))).collect()
            }
            None => vec![(format!("must be a text in quotes, not {}", node.kind()), None)],
        };
        for (message, cure) in told {
            section.reading.error(&node.place, format!("{path}[{i}] {message}"), cure);
        }
        None
    };
    let texts: Vec<String> = nodes.iter().enumerate().filter_map(network).collect();
    Networks::parse(&texts).unwrap_or_default()
}

/// The first route that matches counts: each must be reachable, and one must match everything.
fn check_order(section: &Section<'_>, route: &Route, before: &[Route], last: bool) {
    if before.iter().any(|other| other.name == route.name) {
        section.error("name", "is used twice", "give each route its own name");
    }
    let everything = Match::default();
    let hides = |other: &&Route| other.when == everything || other.when == route.when;
    if let Some(other) = before.iter().find(hides) {
        let message = format!(
            "{} is never taken: \"{}\" before it matches all of it",
            section.path, other.name
        );
        let cure = format!("put it before \"{}\", or take it out", other.name);
        section.reading.warning(&section.place, message, cure);
    }
    let caught = before.iter().any(|other| other.when == everything);
    if last && !caught && route.when != everything {
        let message = "leaves mail without a way: the last route must match everything";
        section.error("match", message, "add a last [[route]] without match");
    }
}

fn check_upstreams(section: &Section<'_>, route: &Route, upstreams: &[Upstream]) {
    let find = |name: &String| upstreams.iter().find(|u| u.name == *name);
    let known: Vec<&Upstream> = route.upstreams.iter().filter_map(find).collect();
    if let [first, _, ..] = known.as_slice()
        && matches!(first.kind, UpstreamKind::Ses(_))
        && route.upstreams.first() == Some(&first.name)
    {
        let message = format!("begin with \"{}\": what SES refuses is bounced", first.name);
        let cure = "only the first upstream's refusals are final: name the smarthost first";
        section.warning("upstreams", message, cure);
    }
    for (i, upstream) in known.iter().enumerate() {
        let same = |other: &&&Upstream| {
            let place = place(other);
            other.name != upstream.name && place.is_some() && place == self::place(upstream)
        };
        if let Some(other) = known.iter().take(i).find(same) {
            let message =
                format!("name the same server twice: \"{}\" and \"{}\"", other.name, upstream.name);
            let cure = "when one is down so is the other; name another server, or one of them";
            section.warning("upstreams", message, cure);
        }
    }
}

/// Where a smarthost is, as far as that is known without asking.
fn place(upstream: &Upstream) -> Option<(String, u16)> {
    let UpstreamKind::Smtp(smtp) = &upstream.kind else { return None };
    smtp.target(None).map(|target| (target.host.to_ascii_lowercase(), target.port))
}

fn check_unused(top: &Section<'_>, upstreams: &[(String, Place)], routes: &[Route]) {
    let used = |name: &String| routes.iter().any(|route| route.upstreams.contains(name));
    for (name, place) in upstreams.iter().filter(|(name, _)| !used(name)) {
        let cure = format!("name \"{name}\" in the upstreams of a [[route]], or take it out");
        top.reading.warning(place, format!("upstreams.{name} is in no route"), cure);
    }
}
