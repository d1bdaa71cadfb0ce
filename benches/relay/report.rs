//! Figures to tables: medians, the range, and ratios to Postfix and to the ceiling.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::keep::Measured;
use super::peers::System;

/// A row of the tables. Rows come by their place, whenever they were measured.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Subject, size, sessions and so on, as numbers.
    pub place: Vec<u64>,
    pub name: String,
}

impl Row {
    /// At this place among those of its subject.
    pub fn new(place: impl Into<Vec<u64>>, name: impl Into<String>) -> Self {
        Self { place: place.into(), name: name.into() }
    }
}

/// What is compared: the columns of the tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Column {
    Relay(System),
    /// The generator straight to smtp-sink, which stores nothing.
    Ceiling,
}

impl Column {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Relay(system) => system.name(),
            Self::Ceiling => "ceiling",
        }
    }

    /// What the relay says of its version.
    pub fn version(self) -> Option<String> {
        let Self::Relay(system) = self else { return None };
        system.version()
    }
}

/// What is measured. A table each, in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    Rate,
    P50,
    P99,
    Cpu,
    Written,
    Disk,
    IdleMemory,
    PeakMemory,
    Listed,
    ListedWhole,
    Reopened,
    Drained,
}

impl Metric {
    pub const ALL: [Self; 12] = [
        Self::Rate,
        Self::P50,
        Self::P99,
        Self::Cpu,
        Self::Written,
        Self::Disk,
        Self::IdleMemory,
        Self::PeakMemory,
        Self::Listed,
        Self::ListedWhole,
        Self::Reopened,
        Self::Drained,
    ];

    const fn title(self) -> &'static str {
        match self {
            Self::Rate => "messages/s",
            Self::P50 => "wait for the 250 after the final dot, p50, ms",
            Self::P99 => "wait for the 250 after the final dot, p99, ms",
            Self::Cpu => "CPU seconds per 1,000 messages, all processes",
            Self::Written => "MiB written per 1,000 messages, as counted for the processes",
            Self::Disk => "MiB the disk wrote per 1,000 messages, journal and others included",
            Self::IdleMemory => "memory before the load, MiB (PSS, all processes)",
            Self::PeakMemory => "memory at most, MiB (PSS, all processes)",
            Self::Listed => "first line of the queue's list, ms",
            Self::ListedWhole => "whole list, ms",
            Self::Reopened => "from the start to the greeting with the backlog, ms",
            Self::Drained => "backlog drained, messages/s from the start",
        }
    }
}

/// What one measurement gave.
pub type Figures = Vec<(Metric, f64)>;

/// Everything that was measured, each repetition of it.
pub struct Report {
    figures: BTreeMap<(Row, Column, Metric), Vec<f64>>,
}

impl Report {
    pub fn of(all: &[Measured]) -> Self {
        let mut figures: BTreeMap<_, Vec<f64>> = BTreeMap::new();
        for one in all {
            for (metric, value) in &one.figures {
                figures.entry((one.row.clone(), one.column, *metric)).or_default().push(*value);
            }
        }
        Self { figures }
    }

    /// The fewest and the most repetitions of a figure.
    pub fn repetitions(&self) -> (usize, usize) {
        let counts = || self.figures.values().map(Vec::len);
        (counts().min().unwrap_or(0), counts().max().unwrap_or(0))
    }

    /// A table for each metric, without those nobody measured.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for metric in Metric::ALL {
            let of_it = || self.figures.keys().filter(|key| key.2 == metric);
            let columns: BTreeSet<Column> = of_it().map(|key| key.1).collect();
            let rows: BTreeSet<&Row> = of_it().map(|key| &key.0).collect();
            if columns.is_empty() {
                continue;
            }
            let names: Vec<&str> = columns.iter().map(|column| column.name()).collect();
            let _ = writeln!(text, "| {} | {} |", metric.title(), names.join(" | "));
            let _ = writeln!(text, "|---|{}", "---|".repeat(columns.len()));
            for row in rows {
                let cells: Vec<_> = columns.iter().map(|c| self.cell(row, *c, metric)).collect();
                let _ = writeln!(text, "| {} | {} |", row.name, cells.join(" | "));
            }
            text.push('\n');
        }
        text
    }

    fn cell(&self, row: &Row, column: Column, metric: Metric) -> String {
        let of = |column: Column| self.figures.get(&(row.clone(), column, metric));
        let Some(values) = of(column) else { return String::new() };
        let middle = median(values);
        let mut cell = number(middle);
        if values.len() > 1 {
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(0.0, f64::max);
            let _ = write!(cell, " ({}..{})", number(low), number(high));
        }
        let other = |other: Column| {
            let values = of(other).filter(|_| other != column);
            values.map(|values| median(values)).filter(|m| *m > 0.0)
        };
        if let Some(postfix) = other(Column::Relay(System::Postfix)) {
            let _ = write!(cell, " **{:.2} x**", middle / postfix);
        }
        if let Some(ceiling) = other(Column::Ceiling).filter(|_| metric == Metric::Rate) {
            let _ = write!(cell, " {:.0} %", middle / ceiling * 100.0);
        }
        cell
    }
}

/// The median of each metric over the rounds of one measurement.
pub fn medians(rounds: &[Figures]) -> Figures {
    let of = |metric: Metric| {
        let same = rounds.iter().flatten().filter(|(m, _)| *m == metric);
        median(&same.map(|(_, value)| *value).collect::<Vec<_>>())
    };
    rounds.first().into_iter().flatten().map(|(metric, _)| (*metric, of(*metric))).collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    // Of an even number the two in the middle: runs may add up to one.
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        sorted[middle - 1..=middle].iter().sum::<f64>() / 2.0
    }
}

/// Three digits that count, with commas between thousands.
fn number(value: f64) -> String {
    if value < 100.0 {
        let decimals = if value < 1.0 {
            3
        } else if value < 10.0 {
            2
        } else {
            1
        };
        return format!("{value:.decimals$}");
    }
    let digits = format!("{value:.0}");
    let groups: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
    String::from_utf8(groups.join(&b',')).unwrap()
}
