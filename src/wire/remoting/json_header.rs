//! The JSON header: scanned in place, fields become ranges, nothing is allocated but an unusual remark.

use std::cell::Cell;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use crate::base::limits::HEADER_FIELDS_MAX;
use crate::wire::remoting::command::{
    Command, Encoding, Field, FieldValue, LANGUAGE_OTHER, LANGUAGES, Letters, Outgoing, VERSION,
};
use crate::wire::remoting::frame::FrameError;
use crate::wire::remoting::json_scan::{DEPTH_MAX, ScanError, Scanner, unescape, write_string};

/// A header that needed more room than this gives it back.
const TEXT_BYTES_KEPT: usize = 16 << 10;

/// Decodes a header. Keys that are not there keep RocketMQ's defaults; keys that it does not know are skipped.
pub fn decode(header: Bytes) -> Result<Command, FrameError> {
    decode_with_opaque(header).map(|(command, _)| command)
}

/// The same, and where the number of the opaque is, unless it is a string.
pub(super) fn decode_with_opaque(
    header: Bytes,
) -> Result<(Command, Option<(u32, u32)>), FrameError> {
    let mut opaque = None;
    let mut command = Command {
        encoding: Encoding::Json,
        code: 0,
        language: 0,
        version: 0,
        opaque: 0,
        flag: 0,
        remark: None,
        header: Bytes::new(),
        fields: SmallVec::new(),
        letters: None,
        body: Bytes::new(),
    };
    let mut scanner = Scanner::new(&header);
    scanner.expect(b'{', "an object")?;
    if !scanner.take(b'}') {
        loop {
            let name = scanner.string()?;
            scanner.expect(b':', "':'")?;
            match &scanner.text()[name.range] {
                b"code" => command.code = number(&mut scanner)?.unwrap_or(0),
                b"version" => command.version = number(&mut scanner)?.unwrap_or(0),
                b"opaque" => {
                    let is_literal = scanner.peek() != Some(b'"');
                    let start = scanner.at();
                    command.opaque = number(&mut scanner)?.unwrap_or(0);
                    opaque = is_literal.then(|| short(start..scanner.at()));
                }
                b"flag" => command.flag = number(&mut scanner)?.unwrap_or(0),
                b"language" => command.language = language(&mut scanner)?,
                b"remark" => command.remark = text(&mut scanner)?,
                b"extFields" => fields(&mut scanner, &mut command.fields)?,
                _ => {
                    scanner.skip_value(DEPTH_MAX)?;
                }
            }
            if !scanner.another(b'}')? {
                break;
            }
        }
    }
    scanner.end()?;
    command.letters = Letters::of(&header, &command.fields);
    command.header = header;
    Ok((command, opaque))
}

/// A number, or a string that is one; `None` for null.
fn number(scanner: &mut Scanner<'_>) -> Result<Option<i32>, ScanError> {
    let (at, range) = match scanner.peek() {
        Some(b'"') => (scanner.at(), scanner.string()?.range),
        _ => (scanner.at(), scanner.literal()?),
    };
    match &scanner.text()[range] {
        b"null" => Ok(None),
        digits => match std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| digits.parse().ok())
        {
            Some(number) => Ok(Some(number)),
            None => Err(ScanError {
                at,
                wanted: "a 32-bit number",
            }),
        },
    }
}

/// A language by name or ordinal; an unknown one is no error.
fn language(scanner: &mut Scanner<'_>) -> Result<u8, ScanError> {
    let range = match scanner.peek() {
        Some(b'"') => scanner.string()?.range,
        _ => scanner.skip_value(DEPTH_MAX)?,
    };
    let name = &scanner.text()[range];
    let by_name = LANGUAGES
        .iter()
        .position(|known| known.as_bytes() == name)
        .map(|ordinal| ordinal as u8);
    let by_ordinal = || {
        std::str::from_utf8(name)
            .ok()?
            .parse()
            .ok()
            .filter(|&ordinal| usize::from(ordinal) < LANGUAGES.len())
    };
    Ok(by_name.or_else(by_ordinal).unwrap_or(LANGUAGE_OTHER))
}

/// A text, or any other value as it is written; `None` for null.
fn text(scanner: &mut Scanner<'_>) -> Result<Option<String>, ScanError> {
    let range = match scanner.peek() {
        Some(b'"') => scanner.string()?.range,
        _ => scanner.skip_value(DEPTH_MAX)?,
    };
    Ok(match &scanner.text()[range] {
        b"null" => None,
        content => Some(String::from_utf8_lossy(&unescape(content)).into_owned()),
    })
}

/// The object of header fields.
fn fields(scanner: &mut Scanner<'_>, fields: &mut SmallVec<[Field; 20]>) -> Result<(), FrameError> {
    fields.clear();
    if scanner.peek() == Some(b'n') {
        scanner.literal()?;
        return Ok(());
    }
    scanner.expect(b'{', "an object of header fields")?;
    if scanner.take(b'}') {
        return Ok(());
    }
    loop {
        let (name, name_escaped) = match scanner.letter() {
            Some(letter) => (letter, false),
            None => {
                let name = scanner.string()?;
                scanner.expect(b':', "':'")?;
                (name.range, name.escaped)
            }
        };
        let (value, value_escaped) = match scanner.peek() {
            Some(b'"') => {
                let value = scanner.string()?;
                (Some(value.range), value.escaped)
            }
            _ => {
                let range = scanner.skip_value(DEPTH_MAX)?;
                let is_null = &scanner.text()[range.clone()] == b"null";
                ((!is_null).then_some(range), false)
            }
        };
        if let Some(value) = value {
            if fields.len() == HEADER_FIELDS_MAX {
                return Err(FrameError::TooManyFields);
            }
            fields.push(Field {
                name: short(name),
                value: short(value),
                name_escaped,
                value_escaped,
            });
        }
        if !scanner.another(b'}')? {
            return Ok(());
        }
    }
}

/// A header has less than 2^24 bytes, so its offsets fit.
fn short(range: Range<usize>) -> (u32, u32) {
    (range.start as u32, range.end as u32)
}

thread_local! {
    /// Room for a header: appending 40 pieces to a `Vec` costs half of what it costs to append them to `BytesMut`.
    static TEXT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Appends the header, with its keys in the order in which Java writes them.
pub fn encode(command: &Outgoing, out: &mut BytesMut) {
    with_text(|text| {
        write(command, text);
        out.extend_from_slice(text);
    });
}

/// An empty text with room, for what is copied when it is complete.
pub(super) fn with_text(write: impl FnOnce(&mut Vec<u8>)) {
    let mut text = TEXT.take();
    text.clear();
    write(&mut text);
    if text.capacity() <= TEXT_BYTES_KEPT {
        TEXT.set(text);
    }
}

fn write(command: &Outgoing, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"code\":");
    write_int(command.code.into(), out);
    if !command.fields.is_empty() {
        out.extend_from_slice(b",\"extFields\":{");
        for (at, (name, value)) in command.fields.iter().enumerate() {
            if at > 0 {
                out.extend_from_slice(b",");
            }
            write_string(name, out);
            out.extend_from_slice(b":");
            match value {
                FieldValue::Text(text) => write_string(text, out),
                FieldValue::Shared(text) => write_string(text, out),
                FieldValue::Int(number) => {
                    out.extend_from_slice(b"\"");
                    write_int(*number, out);
                    out.extend_from_slice(b"\"");
                }
                FieldValue::Bool(true) => out.extend_from_slice(b"\"true\""),
                FieldValue::Bool(false) => out.extend_from_slice(b"\"false\""),
            }
        }
        out.extend_from_slice(b"}");
    }
    write_end(command.flag, command.opaque, command.remark.as_deref(), out);
}

/// What follows the fields.
pub(super) fn write_end(flag: i32, opaque: i32, remark: Option<&str>, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"flag\":");
    write_int(flag.into(), out);
    out.extend_from_slice(b",\"language\":\"JAVA\",\"opaque\":");
    write_int(opaque.into(), out);
    if let Some(remark) = remark {
        out.extend_from_slice(b",\"remark\":");
        write_string(remark, out);
    }
    out.extend_from_slice(b",\"serializeTypeCurrentRPC\":\"JSON\",\"version\":");
    write_int(VERSION.into(), out);
    out.extend_from_slice(b"}");
}

pub(super) fn write_int(number: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(decimal(number, &mut [0; 20]));
}

/// A number in decimal digits, written at the end of `digits`.
pub(super) fn decimal(number: i64, digits: &mut [u8; 20]) -> &[u8] {
    let mut start = digits.len();
    let mut left = number.unsigned_abs();
    loop {
        start -= 1;
        digits[start] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if number < 0 {
        start -= 1;
        digits[start] = b'-';
    }
    &digits[start..]
}
