//! Reading one section of the configuration, key by key.
//!
//! Every key is asked for exactly once, with its default. What was not asked for is unknown. That
//! makes the code which reads the keys the only list of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::document::{Entry, Node, Place, Table};
use super::report::{Problem, Severity};
use super::units;
use crate::mail::Mailbox;

/// How similar a misspelt name must be to be asked about (Jaro-Winkler, 0 to 1).
const SIMILAR: f64 = 0.84;

/// What is known while a configuration is read.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    /// The file's text, to tell lines and columns.
    pub(super) source: &'a str,
    /// The environment.
    pub(super) environment: &'a BTreeMap<String, String>,
    problems: RefCell<Vec<(Place, Problem)>>,
    effective: RefCell<Vec<(String, String)>>,
    /// The keys that someone wrote.
    given: RefCell<BTreeSet<String>>,
}

/// What is known when a configuration has been read.
pub(super) struct Findings {
    /// The problems in the order of the file.
    pub(super) problems: Vec<Problem>,
    /// Every key with its value in effect.
    pub(super) effective: Vec<(String, String)>,
    /// The keys that someone wrote.
    pub(super) given: BTreeSet<String>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(source: &'a str, environment: &'a BTreeMap<String, String>) -> Self {
        let (problems, effective) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        Self { source, environment, problems, effective, given: RefCell::default() }
    }

    pub(super) fn error(&self, place: &Place, message: String, cure: impl Into<Option<String>>) {
        self.push(Severity::Error, place, message, cure.into());
    }

    pub(super) fn warning(&self, place: &Place, message: String, cure: impl Into<Option<String>>) {
        self.push(Severity::Warning, place, message, cure.into());
    }

    fn push(&self, severity: Severity, place: &Place, message: String, cure: Option<String>) {
        let location = place.location(self.source);
        let problem = Problem { severity, message, cure, location };
        self.problems.borrow_mut().push((place.clone(), problem));
    }

    pub(super) fn finish(self) -> Findings {
        let mut problems = self.problems.into_inner();
        problems.sort_by(|(a, _), (b, _)| a.cmp(b));
        Findings {
            problems: problems.into_iter().map(|(_, p)| p).collect(),
            effective: self.effective.into_inner(),
            given: self.given.into_inner(),
        }
    }
}

/// One table of the configuration.
#[derive(Debug)]
pub(super) struct Section<'a> {
    pub(super) reading: &'a Reading<'a>,
    /// Its name in messages: `limits`, `upstreams.core`; empty at the top.
    pub(super) path: String,
    /// Where it begins.
    pub(super) place: Place,
    entries: &'a [Entry],
    known: Vec<&'static str>,
    /// Whether its keys have names of their own for `check-config --print`.
    shown: bool,
}

/// What is wrong with a value: how the sentence about its key goes on, and the cure.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) message: String,
    pub(super) cure: Option<String>,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { message: message.into(), cure: Some(cure.into()) }
    }

    /// A value of another type. Says what it is, never how it reads.
    pub(super) fn kind(expected: &str, node: &Node) -> Self {
        Self { message: format!("must be {expected}, not {}", node.kind()), cure: None }
    }
}

/// A type that values of keys have.
pub(super) trait Setting: Sized {
    fn read(node: &Node) -> Result<Self, Fault>;
    /// The value as TOML.
    fn show(&self) -> String;
}

impl<'a> Section<'a> {
    pub(super) fn new(
        reading: &'a Reading<'a>,
        path: String,
        place: Place,
        table: &'a Table,
    ) -> Self {
        Self { reading, path, place, entries: &table.0, known: Vec::new(), shown: true }
    }

    /// The key's full name.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    /// The value as it was written; `None` when the key is not there.
    pub(super) fn node(&mut self, key: &'static str) -> Option<&'a Node> {
        self.known.push(key);
        self.entries.iter().find(|e| e.key == key).map(|e| &e.node)
    }

    /// Where the key's value was written; where the section begins when it was not.
    pub(super) fn place(&self, key: &str) -> Place {
        let entry = self.entries.iter().find(|e| e.key == key);
        entry.map_or_else(|| self.place.clone(), |e| e.node.place.clone())
    }

    pub(super) fn error(&self, key: &str, message: impl Display, cure: impl Into<String>) {
        let message = format!("{} {message}", self.name(key));
        self.reading.error(&self.place(key), message, cure.into());
    }

    pub(super) fn warning(&self, key: &str, message: impl Display, cure: impl Into<String>) {
        let message = format!("{} {message}", self.name(key));
        self.reading.warning(&self.place(key), message, cure.into());
    }

    /// The value of a key that may be left out.
    pub(super) fn optional<T: Setting>(&mut self, key: &'static str) -> Option<T> {
        let node = self.node(key)?;
        match T::read(node) {
            Ok(value) => {
                self.reading.given.borrow_mut().insert(self.name(key));
                self.in_effect(key, value.show());
                Some(value)
            }
            Err(fault) => {
                let message = format!("{} {}", self.name(key), fault.message);
                self.reading.error(&node.place, message, fault.cure);
                None
            }
        }
    }

    /// The value of a key, or its default.
    pub(super) fn or<T: Setting>(&mut self, key: &'static str, default: T) -> T {
        self.optional(key).unwrap_or_else(|| {
            self.in_effect(key, default.show());
            default
        })
    }

    /// The value of a key that must be there.
    pub(super) fn required<T: Setting>(&mut self, key: &'static str, example: &str) -> Option<T> {
        let value = self.optional(key);
        if !self.has(key) {
            self.error(key, "is missing", format!("write {key} = {example}"));
        }
        value
    }

    /// The value of a key, or its default; an error outside `range`.
    pub(super) fn within<T>(&mut self, key: &'static str, default: T, range: RangeInclusive<T>) -> T
    where
        T: Setting + PartialOrd,
    {
        let value = self.or(key, default);
        if !range.contains(&value) {
            let cure =
                format!("write a value from {} to {}", range.start().show(), range.end().show());
            self.error(key, format_args!("is out of range ({})", value.show()), cure);
        }
        value
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|e| e.key == key)
    }

    /// A table within this one; an empty one when it is not there.
    pub(super) fn section(&mut self, key: &'static str) -> Self {
        const EMPTY: &Table = &Table(Vec::new());
        let place = self.place(key);
        let table = self.node(key).map(|node| {
            node.table().unwrap_or_else(|| {
                let name = self.name(key);
                let message = format!("{name} must be a section, not {}", node.kind());
                self.reading.error(&node.place, message, format!("write [{name}]"));
                EMPTY
            })
        });
        let section = Self::new(self.reading, self.name(key), place, table.unwrap_or(EMPTY));
        Self { shown: self.shown, ..section }
    }

    /// The tables of a list `[[key]]`, each named by its `name` or else its place in the list.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let Some(node) = self.node(key) else { return Vec::new() };
        let full = self.name(key);
        let cure = if self.path.is_empty() {
            format!("write [[{key}]]")
        } else {
            format!("write {key} = [{{ … }}]")
        };
        let super::document::Value::Array(elements) = &node.value else {
            let message = format!("{full} must be a list of sections, not {}", node.kind());
            self.reading.error(&node.place, message, cure);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (i, element) in elements.iter().enumerate() {
            let Some(table) = element.table() else {
                let message = format!("{full}[{i}] must be a section, not {}", element.kind());
                self.reading.error(&element.place, message, cure.clone());
                continue;
            };
            let name = table.find("name").and_then(|e| e.node.text());
            let path = name.map_or_else(|| format!("{full}[{i}]"), |name| format!("{full}.{name}"));
            let section = Self::new(self.reading, path, element.place.clone(), table);
            sections.push(Self { shown: self.path.is_empty(), ..section });
        }
        sections
    }

    /// The tables of a table, each under its name: `[upstreams.core]`.
    pub(super) fn named_sections(&mut self, key: &'static str) -> Vec<(String, Self)> {
        let outer = self.section(key);
        let mut sections = Vec::new();
        for entry in outer.entries {
            let path = outer.name(&entry.key);
            let Some(table) = entry.node.table() else {
                let message = format!("{path} must be a section, not {}", entry.node.kind());
                self.reading.error(&entry.place, message, format!("write [{key}.NAME]"));
                continue;
            };
            let section = Self::new(self.reading, path, entry.place.clone(), table);
            sections.push((entry.key.clone(), section));
        }
        sections
    }

    /// Ends the section: what was not asked for is unknown.
    pub(super) fn finish(self) {
        for entry in self.entries.iter().filter(|e| !self.known.contains(&e.key.as_str())) {
            let cure = match similar(&entry.key, self.known.iter().copied()) {
                Some(known) => format!("did you mean \"{known}\"?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            let message = format!("{} is not a known key", self.name(&entry.key));
            self.reading.error(&entry.place, message, cure);
        }
    }

    /// Marks a key that is refused on purpose as told about.
    pub(super) fn refuse(&mut self, key: &'static str, message: &str, cure: &str) {
        if let Some(entry) = self.entries.iter().find(|e| e.key == key) {
            self.known.push(key);
            let message = format!("{} {message}", self.name(key));
            self.reading.error(&entry.place, message, cure.to_owned());
        }
    }

    /// Notes the value a key has in the end, for `check-config --print`.
    pub(super) fn in_effect(&self, key: &str, value: String) {
        if self.shown {
            self.reading.effective.borrow_mut().push((self.name(key), value));
        }
    }
}

/// The known name that a misspelt one is most like.
pub(super) fn similar<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let scored = known.map(|k| (strsim::jaro_winkler(name, k), k));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.filter(|(score, _)| *score >= SIMILAR).map(|(_, k)| k)
}

impl Setting for String {
    fn read(node: &Node) -> Result<Self, Fault> {
        node.text().map(Into::into).ok_or_else(|| Fault::kind("a text in quotes", node))
    }

    fn show(&self) -> String {
        // TOML's basic strings and JSON's share their escapes.
        serde_json::Value::from(self.as_str()).to_string()
    }
}

impl Setting for bool {
    fn read(node: &Node) -> Result<Self, Fault> {
        node.boolean().ok_or_else(|| Fault::kind("true or false", node))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// A whole number from 0.
macro_rules! whole_number {
    ($($type:ty),*) => {$(
        impl Setting for $type {
            fn read(node: &Node) -> Result<Self, Fault> {
                let n = node.integer().ok_or_else(|| Fault::kind("a whole number", node))?;
                let message = format!("is out of range ({n})");
                let fault = Fault::new(message, "write a smaller number");
                match Self::try_from(n) {
                    Ok(n) => Ok(n),
                    Err(_) if n < 0 => Err(Fault { cure: None, ..fault }),
                    Err(_) => Err(fault),
                }
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
whole_number!(u16, u32, u64, usize);

impl Setting for f64 {
    fn read(node: &Node) -> Result<Self, Fault> {
        node.float().ok_or_else(|| Fault::kind("a number", node))
    }

    fn show(&self) -> String {
        format!("{self:?}")
    }
}

impl Setting for Duration {
    fn read(node: &Node) -> Result<Self, Fault> {
        const EXAMPLES: &str =
            "write a whole number with ms, s, m, h or d: \"30s\", \"5m\", \"2d\"";
        let text = node.text().ok_or_else(|| {
            Fault::new(format!("must be a duration in quotes, not {}", node.kind()), EXAMPLES)
        })?;
        units::parse_duration(text).map_err(|e| Fault::new(format!("{text:?} {e}"), EXAMPLES))
    }

    fn show(&self) -> String {
        format!("\"{}\"", units::duration(*self))
    }
}

/// Octets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub(super) struct Size(pub(super) u64);

impl Setting for Size {
    fn read(node: &Node) -> Result<Self, Fault> {
        const EXAMPLES: &str = "write a whole number with KiB, MiB or GiB: \"25MiB\"";
        let text = node.text().ok_or_else(|| {
            Fault::new(format!("must be a size in quotes, not {}", node.kind()), EXAMPLES)
        })?;
        let size = units::parse_size(text);
        size.map(Self).map_err(|e| Fault::new(format!("{text:?} {e}"), EXAMPLES))
    }

    fn show(&self) -> String {
        format!("\"{}\"", units::size(self.0))
    }
}

impl Setting for PathBuf {
    fn read(node: &Node) -> Result<Self, Fault> {
        match node.text() {
            Some("") => Err(Fault::new("is empty", "name a file or leave the key out")),
            Some(text) => Ok(text.into()),
            None => Err(Fault::kind("a path in quotes", node)),
        }
    }

    fn show(&self) -> String {
        self.display().to_string().show()
    }
}

impl Setting for SocketAddr {
    fn read(node: &Node) -> Result<Self, Fault> {
        const EXAMPLES: &str =
            "write address:port: \"10.0.0.10:25\", \"[::1]:2525\", \"[::]:25\" for all";
        let text = node.text().ok_or_else(|| Fault::kind("address:port in quotes", node))?;
        text.parse()
            .map_err(|_| Fault::new(format!("{text:?} is no address with a port"), EXAMPLES))
    }

    fn show(&self) -> String {
        self.to_string().show()
    }
}

impl Setting for Mailbox {
    fn read(node: &Node) -> Result<Self, Fault> {
        let text = node.text().ok_or_else(|| Fault::kind("a mail address in quotes", node))?;
        Self::parse(text.as_bytes())
            .map_err(|e| Fault::new(format!("{text:?}: {e}"), "write local-part@domain"))
    }

    fn show(&self) -> String {
        self.as_str().to_owned().show()
    }
}

/// Values that are one of a few words.
pub(super) fn read_word<T: Copy>(node: &Node, words: &[(&'static str, T)]) -> Result<T, Fault> {
    let names: Vec<String> = words.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let expected = format!("one of {}", names.join(", "));
    let text = node.text().ok_or_else(|| Fault::kind(&expected, node))?;
    let found = words.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let meant = similar(text, words.iter().map(|(name, _)| *name));
        let cure =
            meant.map_or_else(|| format!("write {expected}"), |m| format!("did you mean \"{m}\"?"));
        Fault::new(format!("{text:?} is not understood"), cure)
    })
}

/// Makes an enum a [`Setting`] that is one of a few words.
macro_rules! words {
    ($type:ty { $($word:literal => $value:expr),* $(,)? }) => {
        impl $crate::config::section::Setting for $type {
            fn read(
                node: &$crate::config::document::Node,
            ) -> Result<Self, $crate::config::section::Fault> {
                $crate::config::section::read_word(node, &[$(($word, $value)),*])
            }

            fn show(&self) -> String {
                let words = [$(($word, $value)),*];
                let word = words.iter().find(|(_, value)| value == self).map_or("", |(word, _)| word);
                format!("\"{word}\"")
            }
        }
    };
}
pub(super) use words;

/// A list as TOML.
pub(super) fn show_list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}
