//! The binary header (`RocketMQSerializable`).
//!
//! ```text
//! 0  code     i16        9  flag        i32
//! 2  language u8         13 remark      i32 length, UTF-8
//! 3  version  i16        .. extFields   i32 length of all, then each: i16 length, name, i32 length, value
//! 5  opaque   i32
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use crate::base::limits::HEADER_FIELDS_MAX;
use crate::wire::remoting::command::{
    Command, Encoding, Field, FieldValue, LANGUAGE_OTHER, LANGUAGES, Letters, Outgoing, VERSION,
};
use crate::wire::remoting::frame::FrameError;
use crate::wire::remoting::json_header::decimal;

const FIXED_BYTES: usize = 2 + 1 + 2 + 4 + 4;

/// Decodes a header. Every length is checked before it is used. As in Java, an empty name or value is none.
pub fn decode(header: Bytes) -> Result<Command, FrameError> {
    let mut reader = Reader {
        all: &header,
        at: 0,
    };
    let mut fixed = &header[reader.take("the fixed part", FIXED_BYTES as i64)?];
    let mut command = Command {
        encoding: Encoding::Binary,
        code: fixed.get_i16().into(),
        language: match fixed.get_u8() {
            ordinal if usize::from(ordinal) < LANGUAGES.len() => ordinal,
            _ => LANGUAGE_OTHER,
        },
        version: fixed.get_i16().into(),
        opaque: fixed.get_i32(),
        flag: fixed.get_i32(),
        remark: None,
        header: Bytes::new(),
        fields: SmallVec::new(),
        letters: None,
        body: Bytes::new(),
    };
    let remark = reader.counted("the remark", 4)?;
    if !remark.is_empty() {
        command.remark = Some(String::from_utf8_lossy(&header[remark]).into_owned());
    }
    let map = reader.counted("the map of fields", 4)?;
    let mut reader = Reader {
        all: &header[..map.end],
        at: map.start,
    };
    while reader.at < map.end {
        let name = reader.counted("the name of a field", 2)?;
        let value = reader.counted("the value of a field", 4)?;
        if name.is_empty() || value.is_empty() {
            continue;
        }
        if command.fields.len() == HEADER_FIELDS_MAX {
            return Err(FrameError::TooManyFields);
        }
        command.fields.push(Field {
            name: (name.start as u32, name.end as u32),
            value: (value.start as u32, value.end as u32),
            name_escaped: false,
            value_escaped: false,
        });
    }
    command.letters = Letters::of(&header, &command.fields);
    command.header = header;
    Ok(command)
}

struct Reader<'a> {
    all: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// The next `wanted_bytes`, which may be negative because peers send signed lengths.
    fn take(
        &mut self,
        what: &'static str,
        wanted_bytes: i64,
    ) -> Result<std::ops::Range<usize>, FrameError> {
        let (at, left_bytes) = (self.at, self.all.len() - self.at);
        match usize::try_from(wanted_bytes) {
            Ok(bytes) if bytes <= left_bytes => {
                self.at += bytes;
                Ok(at..self.at)
            }
            _ => Err(FrameError::BinaryHeader {
                what,
                at,
                wanted_bytes,
                left_bytes,
            }),
        }
    }

    /// The next bytes behind a length of 2 or 4 bytes.
    fn counted(
        &mut self,
        what: &'static str,
        length_bytes: usize,
    ) -> Result<std::ops::Range<usize>, FrameError> {
        let mut length = &self.all[self.take(what, length_bytes as i64)?];
        let wanted_bytes = match length_bytes {
            2 => length.get_i16().into(),
            _ => length.get_i32().into(),
        };
        self.take(what, wanted_bytes)
    }
}

/// Appends the header. A code above 32,767 is cut to 16 bits, as Java cuts it.
pub fn encode(command: &Outgoing, out: &mut BytesMut) {
    out.put_i16(command.code as i16);
    out.put_u8(0);
    out.put_i16(VERSION as i16);
    out.put_i32(command.opaque);
    out.put_i32(command.flag);
    let remark = command.remark.as_deref().unwrap_or_default();
    out.put_u32(remark.len() as u32);
    out.put_slice(remark.as_bytes());
    let map_at = out.len();
    out.put_u32(0);
    for (name, value) in &command.fields {
        assert!(
            name.len() <= i16::MAX as usize,
            "names of header fields are ours and short"
        );
        out.put_i16(name.len() as i16);
        out.put_slice(name.as_bytes());
        let value_at = out.len();
        out.put_u32(0);
        match value {
            FieldValue::Text(text) => out.put_slice(text.as_bytes()),
            FieldValue::Shared(text) => out.put_slice(text.as_bytes()),
            FieldValue::Int(number) => out.put_slice(decimal(*number, &mut [0; 20])),
            FieldValue::Bool(value) => out.put_slice(if *value { b"true" } else { b"false" }),
        }
        patch_length(out, value_at);
    }
    patch_length(out, map_at);
}

/// Writes the count of the bytes behind the four at `at` into them.
fn patch_length(out: &mut BytesMut, at: usize) {
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}
