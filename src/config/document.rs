//! The configuration as a tree of values that remember where they were written.
//!
//! The tree comes from the file; variables `POSTGATE__SECTION__KEY` are laid over it. Errors of the
//! TOML parser are told in its words but never with the line they occurred in: it could hold a
//! secret.

use std::borrow::Cow;
use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Location, Problem, Severity};

/// What the name of a variable that sets a key begins with.
const PREFIX: &str = "POSTGATE__";

/// Where a value was written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Place {
    /// Nowhere: something is missing.
    Nowhere,
    /// At this octet of the file.
    File(usize),
    /// In this variable.
    Environment(String),
}

impl Place {
    pub(super) fn location(&self, source: &str) -> Location {
        match self {
            Self::Nowhere => Location::Nowhere,
            Self::Environment(name) => Location::Environment(name.clone()),
            Self::File(offset) => {
                let before = source.get(..*offset).unwrap_or(source);
                let line_start = before.rfind('\n').map_or(0, |i| i + 1);
                Location::File {
                    line: before.matches('\n').count() + 1,
                    column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
                }
            }
        }
    }
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Date,
    Array(Vec<Node>),
    Table(Table),
    /// The text of a variable, of no type yet.
    Untyped(String),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Table(pub(super) Vec<Entry>);

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Where the key was written.
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Table {
    pub(super) fn find(&self, key: &str) -> Option<&Entry> {
        self.0.iter().find(|e| e.key == key)
    }
}

impl Node {
    /// What it is, for a message that says that something else was expected.
    pub(super) const fn kind(&self) -> &'static str {
        match self.value {
            Value::Text(_) | Value::Untyped(_) => "a text",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Boolean(_) => "true or false",
            Value::Date => "a date",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) | Value::Untyped(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match &self.value {
            Value::Boolean(b) => Some(*b),
            Value::Untyped(text) => text.parse().ok(),
            _ => None,
        }
    }

    pub(super) fn integer(&self) -> Option<i128> {
        match &self.value {
            Value::Integer(n) => Some(*n),
            Value::Untyped(text) => text.parse().ok(),
            _ => None,
        }
    }

    pub(super) fn float(&self) -> Option<f64> {
        match &self.value {
            Value::Float(n) => Some(*n),
            // A factor is small; an integer beyond 2^31 is out of any range it is checked against.
            Value::Integer(n) => i32::try_from(*n).ok().map(f64::from),
            Value::Untyped(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// The elements; a variable's text is split at its commas.
    pub(super) fn list(&self) -> Option<Cow<'_, [Self]>> {
        match &self.value {
            Value::Array(nodes) => Some(Cow::Borrowed(nodes)),
            Value::Untyped(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                let node = |item: &str| Self {
                    value: Value::Untyped(item.into()),
                    place: self.place.clone(),
                };
                Some(Cow::Owned(items.map(node).collect()))
            }
            _ => None,
        }
    }

    pub(super) const fn table(&self) -> Option<&Table> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }
}

/// Reads the file's text and lays the environment over it. `Ok` carries what is wrong with the
/// names of variables, for the rest can be checked all the same.
pub(super) fn parse(
    source: &str,
    environment: &BTreeMap<String, String>,
) -> Result<(Table, Vec<Problem>), Vec<Problem>> {
    let (document, errors) = DeTable::parse_recoverable(source);
    if !errors.is_empty() {
        return Err(syntax_problems(source, &errors));
    }
    let mut table = Table::from_toml(document.get_ref());
    let variables = environment.iter().filter_map(|(k, v)| Some((k, k.strip_prefix(PREFIX)?, v)));
    let problems = variables
        .filter_map(|(name, path, value)| overlay(&mut table, name, path, value).err())
        .collect();
    Ok((table, problems))
}

/// One problem for each line that has one: what follows the first is usually its consequence.
fn syntax_problems(source: &str, errors: &[toml::de::Error]) -> Vec<Problem> {
    let mut problems: Vec<Problem> = Vec::new();
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        let location = Place::File(at).location(source);
        let line = match location {
            Location::File { line, .. } => line,
            _ => 0,
        };
        let told =
            |p: &Problem| matches!(p.location, Location::File { line: told, .. } if told == line);
        if problems.iter().any(told) {
            continue;
        }
        let text = source.lines().nth(line.saturating_sub(1)).unwrap_or_default();
        problems.push(Problem {
            severity: Severity::Error,
            message: format!("not valid TOML: {}", error.message().replace('\n', ", ")),
            cure: needs_quotes(text).then(|| {
                "put the value in quotes: texts, addresses, durations and sizes need them".into()
            }),
            location,
        });
    }
    problems
}

/// Whether a line's value is a text without its quotes.
fn needs_quotes(line: &str) -> bool {
    let value = line.split_once('=').map_or("", |(_, value)| value.trim());
    let value = value.split('#').next().unwrap_or_default().trim();
    value.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '$'))
        && value.parse::<f64>().is_err()
        && !matches!(value, "true" | "false")
}

impl Table {
    fn from_toml(table: &DeTable<'_>) -> Self {
        let mut entries: Vec<Entry> = table
            .iter()
            .map(|(key, value)| Entry {
                key: key.get_ref().to_string(),
                place: Place::File(key.span().start),
                node: Node::from_toml(value),
            })
            .collect();
        entries.sort_by(|a, b| a.place.cmp(&b.place));
        Self(entries)
    }
}

impl Node {
    fn from_toml(value: &Spanned<DeValue<'_>>) -> Self {
        let place = Place::File(value.span().start);
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(n) => {
                Value::Integer(i128::from_str_radix(n.as_str(), n.radix()).unwrap_or(i128::MAX))
            }
            DeValue::Float(n) => Value::Float(n.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(b) => Value::Boolean(*b),
            DeValue::Datetime(_) => Value::Date,
            DeValue::Array(nodes) => Value::Array(nodes.iter().map(Self::from_toml).collect()),
            DeValue::Table(table) => Value::Table(Table::from_toml(table)),
        };
        Self { value, place }
    }

    /// The value of a variable: a list or an inline table where it looks like one.
    fn from_variable(name: &str, text: &str) -> Self {
        let structured = text.starts_with(['[', '{']).then(|| DeValue::parse(text).ok()).flatten();
        let place = Place::Environment(name.into());
        let mut node = structured.map_or_else(
            || Self { value: Value::Untyped(text.into()), place: place.clone() },
            |value| Self::from_toml(&value),
        );
        node.set_place(&place);
        node
    }

    fn set_place(&mut self, place: &Place) {
        self.place = place.clone();
        match &mut self.value {
            Value::Array(nodes) => nodes.iter_mut().for_each(|n| n.set_place(place)),
            Value::Table(table) => {
                for entry in &mut table.0 {
                    entry.place = place.clone();
                    entry.node.set_place(place);
                }
            }
            _ => {}
        }
    }
}

/// Sets the key that `path` (`LIMITS__MAX_HOPS`) names. The names of upstreams, listeners and
/// routes match in either letter case, and with `_` for `-`.
fn overlay(table: &mut Table, name: &str, path: &str, value: &str) -> Result<(), Problem> {
    let keys: Vec<&str> = path.split("__").collect();
    set(table, &keys, name, value).map_err(|message| Problem {
        severity: Severity::Error,
        message,
        cure: Some("write POSTGATE__SECTION__KEY, as in POSTGATE__LIMITS__MAX_HOPS".into()),
        location: Location::Environment(name.into()),
    })
}

fn set(table: &mut Table, keys: &[&str], name: &str, value: &str) -> Result<(), String> {
    let Some((key, rest)) = keys.split_first().filter(|(key, _)| !key.is_empty()) else {
        return Err("the variable's name names no key".into());
    };
    let node = entry(table, name, key);
    if rest.is_empty() {
        *node = Node::from_variable(name, value);
        return Ok(());
    }
    match &mut node.value {
        Value::Table(table) => set(table, rest, name, value),
        Value::Array(elements) => {
            let (wanted, rest) = rest.split_first().unwrap_or((&"", &[]));
            let mut tables = elements.iter_mut().filter_map(|node| match &mut node.value {
                Value::Table(table) => Some(table),
                _ => None,
            });
            let named = tables.find(|t| {
                t.find("name").and_then(|e| e.node.text()).is_some_and(|text| same(text, wanted))
            });
            let none = || format!("no {} is named {}", key.to_lowercase(), wanted.to_lowercase());
            set(named.ok_or_else(none)?, rest, name, value)
        }
        _ => Err(format!("{} is not a section", key.to_lowercase())),
    }
}

/// Whether a key or name of the file is the one a variable means.
fn same(text: &str, variable: &str) -> bool {
    text.replace('-', "_").eq_ignore_ascii_case(variable)
}

/// The value under `key`, which is made a table when it is new.
fn entry<'t>(table: &'t mut Table, name: &str, key: &str) -> &'t mut Node {
    let at = table.0.iter().position(|e| same(&e.key, key)).unwrap_or_else(|| {
        let place = Place::Environment(name.into());
        let node = Node { value: Value::Table(Table::default()), place: place.clone() };
        table.0.push(Entry { key: key.to_lowercase(), place, node });
        table.0.len() - 1
    });
    #[expect(clippy::indexing_slicing, reason = "the position was found or made above")]
    &mut table.0[at].node
}
