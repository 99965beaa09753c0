//! Values as clients in other languages write them: fastjson takes a number for its text and an enum for its ordinal, so
//! the C++ client sends `"subVersion":"17"` and `"messageModel":1`.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A number, or text that is one.
pub fn int<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    match Scalar::deserialize(deserializer)? {
        Scalar::Int(number) => Ok(number),
        Scalar::Text(text) => text.trim().parse().map_err(D::Error::custom),
    }
}

/// A list of them.
pub fn int_set<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<i64>, D::Error> {
    #[derive(serde::Deserialize)]
    struct Int(#[serde(deserialize_with = "int")] i64);
    let numbers = Vec::<Int>::deserialize(deserializer)?;
    Ok(numbers.into_iter().map(|number| number.0).collect())
}

/// `ConsumeFromWhere` by name or ordinal.
pub fn consume_from_where<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    name(
        deserializer,
        &[
            "CONSUME_FROM_LAST_OFFSET",
            "CONSUME_FROM_LAST_OFFSET_AND_FROM_MIN_WHEN_BOOT_FIRST",
            "CONSUME_FROM_MIN_OFFSET",
            "CONSUME_FROM_MAX_OFFSET",
            "CONSUME_FROM_FIRST_OFFSET",
            "CONSUME_FROM_TIMESTAMP",
        ],
    )
}

/// `ConsumeType` by name or ordinal.
pub fn consume_type<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    name(
        deserializer,
        &["CONSUME_ACTIVELY", "CONSUME_PASSIVELY", "CONSUME_POP"],
    )
}

/// `MessageModel` by name or ordinal.
pub fn message_model<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    name(
        deserializer,
        &["BROADCASTING", "CLUSTERING", "LITE_SELECTIVE"],
    )
}

fn name<'de, D: Deserializer<'de>>(deserializer: D, names: &[&str]) -> Result<String, D::Error> {
    match Scalar::deserialize(deserializer)? {
        Scalar::Text(text) => Ok(text),
        Scalar::Int(ordinal) => {
            let known = usize::try_from(ordinal)
                .ok()
                .and_then(|ordinal| names.get(ordinal));
            match known {
                Some(name) => Ok((*name).to_owned()),
                None => Err(D::Error::custom(format_args!(
                    "{ordinal} is no ordinal of {names:?}"
                ))),
            }
        }
    }
}

enum Scalar {
    Int(i64),
    Text(String),
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl Visitor<'_> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a text")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Scalar, E> {
        Ok(Scalar::Int(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Scalar, E> {
        match i64::try_from(number) {
            Ok(number) => Ok(Scalar::Int(number)),
            Err(error) => Err(E::custom(error)),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Scalar, E> {
        Ok(Scalar::Text(text))
    }
}
