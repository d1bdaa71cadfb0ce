//! Which way a message takes: routes with ordered upstreams, of which the first that matches counts.

use crate::mail::{ForwardPath, Message};
use crate::policy::networks::Networks;

/// A way for mail.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name in the configuration.
    pub name: String,
    /// Which mail takes it.
    pub when: Match,
    /// Names of its upstreams, the preferred one first. Never empty. The first is authoritative:
    /// what it refuses for good is refused for good.
    pub upstreams: Vec<String>,
    /// What becomes of an attempt whose answer was lost.
    pub unconfirmed: Unconfirmed,
    /// Who goes first when an upstream is scarce; the first that matches counts.
    pub classes: Vec<Class>,
}

/// Which mail takes a route. Everything that is given must hold; what is empty holds always.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Match {
    /// The reverse-path is one of these.
    pub sender: Vec<Pattern>,
    /// The recipient is one of these.
    pub recipient: Vec<Pattern>,
    /// The headers have these values: name in lower case, value as it is.
    pub header: Vec<(String, String)>,
}

/// A set of addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// One address; the local part as written, the domain in lower case.
    Address(String),
    /// All addresses of a domain, in lower case: written `@example.com`.
    Domain(String),
}

/// What becomes of an attempt whose answer was lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Unconfirmed {
    /// The same upstream is asked again, later: the mail may come twice.
    #[default]
    Retry,
    /// It waits for the operator to say.
    Hold,
}

/// Messages that go before, or after, others.
#[derive(Clone, Debug)]
pub struct Class {
    /// Where they go.
    pub priority: Priority,
    /// Their clients' networks; empty: any.
    pub clients: Networks,
    /// A header they have, name in lower case; `None`: any.
    pub header: Option<(String, String)>,
}

/// Who goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Priority {
    /// Before the others.
    High,
    /// As most do.
    #[default]
    Normal,
    /// After the others.
    Low,
}

impl Match {
    /// Whether it holds for one recipient of a message.
    pub fn holds(&self, _message: &Message, _recipient: &ForwardPath) -> bool {
        true
    }
}

impl Route {
    /// When a message of this route goes.
    pub fn priority(&self, _message: &Message) -> Priority {
        Priority::Normal
    }
}

/// The place of the route that a recipient of a message takes.
pub fn find(routes: &[Route], message: &Message, recipient: &ForwardPath) -> Option<usize> {
    routes.iter().position(|route| route.when.holds(message, recipient))
}
