//! What Vault KV version 2 answers, straight into secrets: no copy of a value is left behind.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::secret::Secret;
use crate::secrets::fields::Fetched;

/// `data` of `GET /v1/MOUNT/data/PATH`.
#[derive(Deserialize)]
pub(super) struct Read {
    /// The fields; nothing for a version that was deleted.
    data: Option<BTreeMap<String, Field>>,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    version: u64,
}

impl Read {
    /// The version, and the fields unless they were deleted.
    pub(super) fn into_parts(self) -> (u64, Option<Fetched>) {
        let version = self.metadata.version;
        let fetched = self.data.map(|data| {
            let mut fetched = Fetched { version: Some(version), ..Fetched::default() };
            for (name, field) in data {
                match field {
                    Field::Text(text) => drop(fetched.fields.insert(name, text)),
                    Field::Nothing => {}
                    Field::Other => fetched.unusable.push(name),
                }
            }
            fetched
        });
        (version, fetched)
    }
}

/// `data` of an unwrapped secret id.
#[derive(Deserialize)]
pub(super) struct Unwrapped {
    secret_id: String,
}

impl Unwrapped {
    pub(super) fn into_secret(self) -> Secret {
        Secret::new(self.secret_id)
    }
}

/// `data` of a token's look-up of itself: what of it is needed.
#[derive(Deserialize)]
pub(super) struct Looked {
    /// Seconds it lives on, cut to whole ones.
    pub(super) ttl: u64,
    /// When it ends; nothing for a token that does not.
    #[serde(default)]
    pub(super) expire_time: Option<IgnoredAny>,
    /// Whether it can be renewed.
    #[serde(default)]
    pub(super) renewable: bool,
}

/// A value in a secret.
enum Field {
    /// A text; a number or truth value written out.
    Text(Secret),
    /// `null`: as if it were not there.
    Nothing,
    /// A list or a table.
    Other,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Field, E> {
        Ok(Field::Text(Secret::new(text.to_owned())))
    }

    fn visit_string<E>(self, text: String) -> Result<Field, E> {
        Ok(Field::Text(Secret::new(text)))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Field, E> {
        Ok(Field::Text(Secret::new(value.to_string())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Field, E> {
        Ok(Field::Text(Secret::new(value.to_string())))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Field, E> {
        Ok(Field::Text(Secret::new(value.to_string())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Field, E> {
        Ok(Field::Text(Secret::new(value.to_string())))
    }

    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Field, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Field, A::Error> {
        while table.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_truth_values_become_texts_and_the_rest_is_named() {
        let answer = r#"{"data":{"user":"u","port":587,"use_tls":true,"x":null,"l":[1,{"a":2}],
            "t":{"a":[]}},"metadata":{"version":7,"destroyed":false}}"#;
        let (version, fetched) = serde_json::from_str::<Read>(answer).unwrap().into_parts();
        let fetched = fetched.unwrap();
        let fields: Vec<_> = fetched.fields.iter().map(|(k, v)| (k.as_str(), v.expose())).collect();
        assert_eq!(version, 7);
        assert_eq!(fields, [("port", "587"), ("use_tls", "true"), ("user", "u")]);
        assert_eq!(fetched.unusable, ["l", "t"]);
    }

    #[test]
    fn a_deleted_version_has_a_number_and_no_fields() {
        let answer = r#"{"data":null,"metadata":{"version":3,"deletion_time":"2026-11-21"}}"#;
        let (version, fetched) = serde_json::from_str::<Read>(answer).unwrap().into_parts();
        assert_eq!((version, fetched), (3, None));
    }
}
