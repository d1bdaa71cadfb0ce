//! What is known of a message's content from reading it once, on its way in: enough to tell which
//! way it goes, and which upstream would refuse it. Advisory: a content that can't be understood
//! has fewer facts, and is delivered all the same.

mod fields;
mod scan;

use serde::{Deserialize, Serialize};

pub use scan::Scan;

/// The most entries of each list.
pub const ENTRIES_MAX: usize = 16;

/// The most octets of an entry.
pub const ENTRY_MAX: usize = 256;

/// What was seen in a message's content.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// The addresses of the From header, as written, without display names; at most 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    /// Headers that may occur once and occur more often, in lower case; at most 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repeated: Vec<String>,
    /// Octets of the longest line, its end included.
    pub longest_line: u64,
    /// Whether there is an octet above 127.
    pub eight_bit: bool,
    /// Extensions of the attachments' names, in lower case and without their dot, each once; at
    /// most 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<String>,
    /// The headers that routes and priorities ask for: names in lower case, values unfolded and cut
    /// after 256 octets; of one that repeats the first; at most 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}
