//! The JSON dialect of RocketMQ's bodies: what fastjson writes and accepts.
//!
//! It differs from JSON in the keys of maps: integers are written without quotes (`{0:"a"}`), objects in place
//! (`{{"brokerName":"b","queueId":0,"topic":"T"}:1}`). Null members are left out. [`from_slice`] reads this and plain JSON;
//! [`to_vec`] writes it; [`to_standard_vec`] writes plain JSON for those who ask for it.

mod ser;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use crate::base::limits::FRAME_BYTES_MAX;
use crate::wire::remoting::json_scan::{DEPTH_MAX, ScanError, Scanner, unescape};

/// Values in one text. A value takes more memory than its text, so the text's length is no bound.
pub const VALUES_MAX: usize = 2 << 20;

/// A body that is not what its request needs.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    #[error("the JSON body has {bytes} bytes; the limit is {FRAME_BYTES_MAX}")]
    TooLong { bytes: usize },
    #[error("the JSON body has more than {VALUES_MAX} values")]
    TooManyValues,
    #[error("the JSON body is broken: {0}")]
    Syntax(#[from] ScanError),
    #[error("the JSON body is not UTF-8 at byte {at}")]
    Encoding { at: usize },
    #[error("the JSON body does not fit the request: {0}")]
    Shape(#[from] serde_json::Error),
}

/// Reads a value of a known type. Members that are null count as absent, so they get their defaults.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonError> {
    Ok(serde_json::from_value(parse(text)?)?)
}

/// Reads any value. An integer key becomes its digits, an object as key its compact JSON text. The last of two members
/// with one name counts; null members of objects are left out.
pub fn parse(text: &[u8]) -> Result<Value, JsonError> {
    if text.len() > FRAME_BYTES_MAX {
        return Err(JsonError::TooLong { bytes: text.len() });
    }
    let mut parser = Parser {
        scanner: Scanner::new(text),
        values_left: VALUES_MAX,
    };
    let value = parser.value(DEPTH_MAX)?;
    parser.scanner.end()?;
    Ok(value)
}

/// Writes a value in fastjson's dialect.
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    ser::write(value)
}

/// Writes a value in fastjson's dialect, as text.
pub fn to_string<T: Serialize + ?Sized>(value: &T) -> String {
    // The writer copies whole strings and writes ASCII else, so nothing is replaced here.
    String::from_utf8_lossy(&ser::write(value)).into_owned()
}

/// Writes a value in standard JSON: integer keys have quotes.
pub fn to_standard_vec<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    ser::write_standard(value)
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    values_left: usize,
}

impl Parser<'_> {
    fn value(&mut self, depth_left: usize) -> Result<Value, JsonError> {
        self.values_left = self
            .values_left
            .checked_sub(1)
            .ok_or(JsonError::TooManyValues)?;
        match self.scanner.peek() {
            Some(b'{' | b'[') if depth_left == 0 => {
                Ok(self.scanner.error("a value that is nested less deeply")?)
            }
            Some(b'{') => self.object(depth_left - 1),
            Some(b'[') => self.array(depth_left - 1),
            Some(b'"') => self.string().map(Value::String),
            _ => self.literal(),
        }
    }

    fn object(&mut self, depth_left: usize) -> Result<Value, JsonError> {
        let mut members = Map::new();
        self.scanner.expect(b'{', "'{'")?;
        if self.scanner.take(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            let key = self.key(depth_left)?;
            self.scanner.expect(b':', "':'")?;
            let value = self.value(depth_left)?;
            if value.is_null() {
                members.remove(&key);
            } else {
                members.insert(key, value);
            }
            if !self.scanner.another(b'}')? {
                return Ok(Value::Object(members));
            }
        }
    }

    fn key(&mut self, depth_left: usize) -> Result<String, JsonError> {
        match self.scanner.peek() {
            Some(b'"') => self.string(),
            Some(b'{') => Ok(self.value(depth_left)?.to_string()),
            Some(b'-' | b'0'..=b'9') => match self.literal()? {
                Value::Number(number) if !number.is_f64() => Ok(number.to_string()),
                _ => Ok(self.scanner.error("an integer as key")?),
            },
            _ => Ok(self.scanner.error("a key")?),
        }
    }

    fn array(&mut self, depth_left: usize) -> Result<Value, JsonError> {
        let mut elements = Vec::new();
        self.scanner.expect(b'[', "'['")?;
        if self.scanner.take(b']') {
            return Ok(Value::Array(elements));
        }
        loop {
            elements.push(self.value(depth_left)?);
            if !self.scanner.another(b']')? {
                return Ok(Value::Array(elements));
            }
        }
    }

    fn string(&mut self) -> Result<String, JsonError> {
        let range = self.scanner.string()?.range;
        let start = range.start;
        let bytes = unescape(&self.scanner.text()[range]).into_owned();
        String::from_utf8(bytes).map_err(|error| JsonError::Encoding {
            at: start + error.utf8_error().valid_up_to(),
        })
    }

    fn literal(&mut self) -> Result<Value, JsonError> {
        let range = self.scanner.literal()?;
        let at = range.start;
        let literal = &self.scanner.text()[range];
        Ok(match literal {
            b"null" => Value::Null,
            b"true" => Value::Bool(true),
            b"false" => Value::Bool(false),
            digits => match number(digits) {
                Some(number) => Value::Number(number),
                None => {
                    return Err(ScanError {
                        at,
                        wanted: "a number, true, false or null",
                    }
                    .into());
                }
            },
        })
    }
}

/// A JSON number, with leading zeros tolerated.
fn number(digits: &[u8]) -> Option<Number> {
    let text = std::str::from_utf8(digits).ok()?;
    if !matches!(digits, [b'-', b'0'..=b'9', ..] | [b'0'..=b'9', ..]) {
        return None;
    }
    if let Ok(number) = text.parse::<i64>() {
        return Some(number.into());
    }
    if let Ok(number) = text.parse::<u64>() {
        return Some(number.into());
    }
    Number::from_f64(text.parse().ok()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    fn parse_text(text: &str) -> Result<Value, JsonError> {
        parse(text.as_bytes())
    }

    #[test]
    fn fastjson_keys_are_understood() {
        assert_eq!(
            parse_text(r#"{0:"127.0.0.1:10911",-1:null, 2 :{}}"#).unwrap(),
            json!({"0": "127.0.0.1:10911", "2": {}})
        );
        assert_eq!(
            parse_text(r#"{{"topic":"T","queueId":0,"brokerName":"b"}:{"maxOffset":5}}"#).unwrap(),
            json!({r#"{"brokerName":"b","queueId":0,"topic":"T"}"#: {"maxOffset": 5}})
        );
        assert_eq!(
            parse_text(r#" [1, -2.5e3 ,"a\u0001",true,null,{"a":1,"a":2}] "#).unwrap(),
            json!([1, -2500.0, "a\u{1}", true, null, {"a": 2}])
        );
        assert_eq!(parse_text("18446744073709551615").unwrap(), json!(u64::MAX));
    }

    #[test]
    fn broken_text_is_an_error() {
        for text in [
            "", "{", "{a:1}", "{0.5:1}", "{\"a\":}", "[1,]", "[1 2]", "nul", "NaN", "+1", "1e999",
            "{} {}", "\"\\q\"", "{[1]:2}", "{1}", "'a'",
        ] {
            assert!(parse_text(text).is_err(), "{text}");
        }
        assert!(matches!(
            parse(b"\"a\xFF\""),
            Err(JsonError::Encoding { at: 2 })
        ));
    }

    #[test]
    fn depth_and_count_of_values_are_bounded() {
        let nested =
            |open: &str, close: &str, depth: usize| open.repeat(depth) + &close.repeat(depth);
        assert!(parse_text(&nested("[", "]", DEPTH_MAX)).is_ok());
        assert!(parse_text(&nested("[", "]", DEPTH_MAX + 1)).is_err());
        assert!(parse_text(&"{".repeat(1 << 20)).is_err());
        let many = format!("[{}0]", "0,".repeat(VALUES_MAX));
        assert!(matches!(parse_text(&many), Err(JsonError::TooManyValues)));
    }

    #[test]
    fn the_writer_follows_fastjson() {
        #[derive(Serialize)]
        struct Body {
            addresses: BTreeMap<i64, &'static str>,
            double: f64,
            none: Option<i32>,
            some: Option<&'static str>,
            unit: (),
        }
        let body = Body {
            addresses: BTreeMap::from([(0, "a"), (1, "b\u{1}")]),
            double: 0.0,
            none: None,
            some: Some("x"),
            unit: (),
        };
        assert_eq!(
            to_string(&body),
            r#"{"addresses":{0:"a",1:"b\u0001"},"double":0.0,"some":"x"}"#
        );
        assert_eq!(
            String::from_utf8(to_standard_vec(&body)).unwrap(),
            r#"{"addresses":{"0":"a","1":"b\u0001"},"double":0.0,"some":"x"}"#
        );
        assert_eq!(to_string(&[Some(1), None]), "[1,null]");
        assert_eq!(
            to_string(&BTreeMap::from([("a", Some(1)), ("b", None)])),
            r#"{"a":1}"#
        );
        assert_eq!(to_string(&f64::NAN), "null");
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(|number| if number.is_finite() {
                number.into()
            } else {
                0.into()
            }),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..8)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn plain_json_reads_back(value in value()) {
            prop_assert_eq!(&parse(&serde_json::to_vec(&value).unwrap()).unwrap(), &value);
            prop_assert_eq!(&parse(&serde_json::to_vec_pretty(&value).unwrap()).unwrap(), &value);
            prop_assert_eq!(&parse(&to_vec(&value)).unwrap(), &value);
            prop_assert_eq!(&parse(&to_standard_vec(&value)).unwrap(), &value);
        }

        #[test]
        fn arbitrary_text_never_panics(text in "[\\[\\]{}:,\"0-9a-z\\\\u .-]{0,60}", bytes in any::<Vec<u8>>()) {
            let _ = parse(text.as_bytes());
            let _ = parse(&bytes);
        }
    }
}
