//! What the last JSON headers of a connection looked like: a client writes the same header again and again, with other
//! digits in it.
//!
//! A [`Shape`] knows where the values of a header are. A header of the same length that differs within values only, and has
//! no quote and no backslash there that the other one has not, has its tokens at the same places, so that nothing has to be
//! scanned: comparing takes a tenth of it. What is in a value is looked at later, and is no business of a shape.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::wire::native::recent::Recent;
use crate::wire::remoting::command::{Command, Encoding, Field, Letters, digits};
use crate::wire::remoting::frame::FrameError;
use crate::wire::remoting::json_header;

/// A longer header is scanned each time.
const SHAPED_BYTES_MAX: usize = 2 << 10;
/// Bytes that are compared before it is asked whether one was different.
const STEP_BYTES: usize = 64;

/// See the module's page.
#[derive(Debug, Default)]
pub struct Shapes {
    recent: Recent<Shape>,
}

#[derive(Debug)]
struct Shape {
    text: Box<[u8]>,
    /// `0xFF` where a header of this shape may have any byte but a quote and a backslash.
    free: Box<[u8]>,
    fields: Box<[Field]>,
    letters: Option<Letters>,
    code: i32,
    language: u8,
    version: i32,
    flag: i32,
    /// Where its digits are.
    opaque: (u32, u32),
}

impl Shapes {
    /// As [`json_header::decode`].
    pub fn decode(&mut self, header: Bytes) -> Result<Command, FrameError> {
        let known = self.recent.find(|shape| {
            let opaque = shape.opaque_of(&header)?;
            Some((shape, opaque))
        });
        if let Some((shape, opaque)) = known {
            return Ok(shape.command(header, opaque));
        }
        let (command, opaque) = json_header::decode_with_opaque(header)?;
        self.recent.learn(|| Shape::of(&command, opaque?));
        Ok(command)
    }

    /// Gives the memory back.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Shape {
    /// `None` for a header that is not worth it.
    fn of(command: &Command, opaque: (u32, u32)) -> Option<Self> {
        let text: Box<[u8]> = command.header[..].into();
        if text.len() > SHAPED_BYTES_MAX || command.remark.is_some() {
            return None;
        }
        let mut free = vec![0; text.len()];
        free[opaque.0 as usize..opaque.1 as usize].fill(0xFF);
        for field in &command.fields {
            let (start, end) = (field.value.0 as usize, field.value.1 as usize);
            // Only a string has a quote before it.
            if start.checked_sub(1).map(|before| text[before]) == Some(b'"') {
                free[start..end].fill(0xFF);
                keep_escapes(&text[start..end], &mut free[start..end]);
            }
        }
        Some(Self {
            text,
            free: free.into(),
            fields: command.fields[..].into(),
            letters: command.letters,
            code: command.code,
            language: command.language,
            version: command.version,
            flag: command.flag,
            opaque,
        })
    }

    /// The opaque of a header of this shape.
    #[inline]
    fn opaque_of(&self, header: &[u8]) -> Option<i32> {
        if header.len() != self.text.len() || !fits(header, &self.text, &self.free) {
            return None;
        }
        let number = match header.get(self.opaque.0 as usize..self.opaque.1 as usize)? {
            [b'-', plain @ ..] => -digits(plain)?,
            plain => digits(plain)?,
        };
        i32::try_from(number).ok()
    }

    fn command(&self, header: Bytes, opaque: i32) -> Command {
        Command {
            encoding: Encoding::Json,
            code: self.code,
            language: self.language,
            version: self.version,
            opaque,
            flag: self.flag,
            remark: None,
            header,
            fields: SmallVec::from_slice(&self.fields),
            letters: self.letters,
            body: Bytes::new(),
        }
    }
}

/// The bytes of escapes are not free: with others the string would end elsewhere, or be none.
fn keep_escapes(content: &[u8], free: &mut [u8]) {
    let mut at = 0;
    while let Some(byte) = content.get(at) {
        let bytes = match (byte, content.get(at + 1)) {
            (b'\\', Some(b'u')) => 6,
            (b'\\', Some(b'x')) => 4,
            (b'\\', _) => 2,
            _ => {
                at += 1;
                continue;
            }
        };
        let end = content.len().min(at + bytes);
        free[at..end].fill(0);
        at = end;
    }
}

/// Whether a header is like `text`, but for what is free. All three have one length.
#[inline]
fn fits(header: &[u8], text: &[u8], free: &[u8]) -> bool {
    let step = |at: usize| {
        let cut = |bytes: &[u8]| bytes.get(at..).and_then(<[u8]>::first_chunk).copied();
        match (cut(header), cut(text), cut(free)) {
            (Some(header), Some(text), Some(free)) => is_like::<STEP_BYTES>(&header, &text, &free),
            _ => false,
        }
    };
    match header.len().checked_sub(STEP_BYTES) {
        // The last step may look at bytes again.
        Some(last) => (0..last).step_by(STEP_BYTES).all(step) && step(last),
        None => {
            let mut bytes = header.iter().zip(text).zip(free);
            bytes.all(|((&byte, &known), &free)| is_like(&[byte], &[known], &[free]))
        }
    }
}

/// Without a branch, so that the compiler takes sixteen bytes at a time.
#[inline]
fn is_like<const N: usize>(header: &[u8; N], text: &[u8; N], free: &[u8; N]) -> bool {
    let mut wrong = 0;
    for at in 0..N {
        let byte = header[at];
        let is_special = u8::from(byte == b'"') | u8::from(byte == b'\\');
        let special = 0u8.wrapping_sub(is_special);
        wrong |= (byte ^ text[at]) & !free[at] | special & free[at];
    }
    wrong == 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEND: &str = r#"{"code":310,"extFields":{"a":"PG","b":"T1","c":"TBW102","d":"4","e":"2","f":"0","g":"1795197313507","h":"0","i":"KEYS\u0001k1\u0002TAGS\u0001a\u0002","j":"0","k":"false","m":"false","n":"b1"},"flag":0,"language":"JAVA","opaque":16,"serializeTypeCurrentRPC":"JSON","version":513}"#;

    fn plain(header: &str) -> Result<Command, FrameError> {
        json_header::decode(Bytes::copy_from_slice(header.as_bytes()))
    }

    /// Both ways, and whether the shapes knew it.
    fn both(shapes: &mut Shapes, header: &[u8]) -> bool {
        let header = Bytes::copy_from_slice(header);
        let is_known = shapes
            .recent
            .known()
            .iter()
            .any(|shape| shape.opaque_of(&header).is_some());
        let scanned = json_header::decode(header.clone());
        let compared = shapes.decode(header);
        assert_eq!(format!("{scanned:?}"), format!("{compared:?}"));
        is_known
    }

    #[test]
    fn a_header_with_other_digits_is_not_scanned_again() {
        let mut shapes = Shapes::default();
        assert!(!both(&mut shapes, SEND.as_bytes()));
        let other = SEND
            .replace("\"opaque\":16", "\"opaque\":99")
            .replace("1795197313507", "1795197313666")
            .replace("u0001k1", "u0001k7");
        assert!(both(&mut shapes, other.as_bytes()));
        let command = shapes.decode(Bytes::from(other)).unwrap();
        assert_eq!((command.opaque, command.code), (99, 310));
        assert_eq!(command.required_int("g"), Ok(1_795_197_313_666));
        assert_eq!(
            &*command.bytes("i").unwrap(),
            b"KEYS\x01k7\x02TAGS\x01a\x02"
        );
    }

    #[test]
    fn another_length_or_another_structure_is_scanned() {
        let changes = [
            ("\"opaque\":16", "\"opaque\":160"),
            ("\"opaque\":16", "\"opaque\":1x"),
            ("\"opaque\":16", "\"opaque\": 6"),
            ("\"opaque\":16", "\"opaque\":--"),
            ("\"flag\":0", "\"flag\":2"),
            ("\"code\":310", "\"code\":320"),
            ("\"b\":\"T1\"", "\"b\":\"T\"\""),
            ("\"b\":\"T1\"", "\"b\":\"\\n\""),
            ("\"b\":\"T1\"", "\"y\":\"T1\""),
            ("k1\\u0002", "k1\\u00zz"),
            ("k1\\u0002", "k1\\n0002"),
            ("\"JAVA\"", "\"RUBY\""),
            ("\"version\":513", "\"version\":514"),
        ];
        for (old, new) in changes {
            let mut shapes = Shapes::default();
            both(&mut shapes, SEND.as_bytes());
            let changed = SEND.replacen(old, new, 1);
            assert_ne!(changed, SEND);
            assert!(!both(&mut shapes, changed.as_bytes()), "{old} -> {new}");
        }
    }

    #[test]
    fn values_that_are_no_strings_stay() {
        let header = r#"{"code":11,"extFields":{"a":12,"b":null,"c":{"x":"y"},"d":["z"],"e":"f"},"opaque":1}"#;
        let mut shapes = Shapes::default();
        both(&mut shapes, header.as_bytes());
        for (old, new, is_known) in [
            ("12", "1}", false),
            ("12", "13", false),
            ("\"y\"", "\"q\"", false),
            ("\"f\"", "\"g\"", true),
        ] {
            let changed = header.replacen(old, new, 1);
            assert_eq!(both(&mut shapes, changed.as_bytes()), is_known, "{new}");
        }
    }

    #[test]
    fn kinds_that_take_turns_are_known() {
        let mut shapes = Shapes::default();
        let known = (100..500)
            .filter(|&at| {
                let name = "x".repeat(at % 4 + 1);
                let header =
                    format!(r#"{{"code":11,"extFields":{{"topic":"{name}"}},"opaque":{at}}}"#);
                both(&mut shapes, header.as_bytes())
            })
            .count();
        assert!(known >= 390, "{known}");
    }

    proptest! {
        #[test]
        fn a_changed_header_is_decoded_as_if_it_were_scanned(
            values in prop::collection::vec("[a-z\"\\\\\u{1}\u{2}/{}:, é]{0,12}", 1..8),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            opaque in any::<i32>(),
        ) {
            let fields: Vec<String> = values
                .iter()
                .enumerate()
                .map(|(at, value)| {
                    let mut text = Vec::new();
                    crate::wire::remoting::json_scan::write_string(value, &mut text);
                    format!("\"{}\":{}", (b'a' + at as u8) as char, String::from_utf8(text).unwrap())
                })
                .collect();
            let header = format!(
                r#"{{"code":310,"extFields":{{{}}},"flag":0,"language":"JAVA","opaque":{opaque},"version":513}}"#,
                fields.join(",")
            );
            prop_assert!(plain(&header).is_ok());
            let mut shapes = Shapes::default();
            both(&mut shapes, header.as_bytes());
            let mut changed = header.into_bytes();
            for (at, byte) in changes {
                // Half of them are of those that mean something.
                let byte = match byte {
                    0..128 => b"\"\\{}:,u0x9- n"[usize::from(byte) % 13],
                    _ => byte,
                };
                *at.get_mut(&mut changed) = byte;
            }
            both(&mut shapes, &changed);
        }
    }
}
