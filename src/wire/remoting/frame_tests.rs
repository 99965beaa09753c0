//! Claims about frames and headers of both encodings, as one: encode, decode, split, mutate.
#![allow(clippy::unwrap_used)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use crate::base::limits::{FRAME_BYTES_MAX, HEADER_FIELDS_MAX};
use crate::wire::remoting::command::{Command, Encoding, FieldError, FieldValue, Outgoing};
use crate::wire::remoting::frame::{FrameError, frame_bytes_wanted, next_frame};

fn frame(encoding: u8, header: &[u8], body: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u32((4 + header.len() + body.len()) as u32);
    out.put_u32((u32::from(encoding) << 24) | header.len() as u32);
    out.put_slice(header);
    out.put_slice(body);
    out
}

fn decode(encoding: u8, header: &[u8]) -> Result<Command, FrameError> {
    next_frame(&mut frame(encoding, header, b"")).map(Option::unwrap)
}

fn json(header: &str) -> Command {
    decode(0, header.as_bytes()).unwrap()
}

#[test]
fn a_live_java_request_is_understood() {
    let header = r#"{"code":310,"extFields":{"a":"PG","b":"T1","c":"TBW102","d":"4","e":"2","f":"0","g":"1795197313507","h":"0","i":"KEYS\u0001k1\u0002TAGS\u0001a\u0002","j":"0","k":"false","m":"false","n":"b1"},"flag":0,"language":"JAVA","opaque":16,"serializeTypeCurrentRPC":"JSON","version":513}"#;
    let mut buffer = frame(0, header.as_bytes(), b"hello");
    buffer.put_slice(&[0, 0]);
    let command = next_frame(&mut buffer).unwrap().unwrap();
    assert_eq!(&buffer[..], [0, 0]);
    assert_eq!(
        (command.code, command.opaque, command.version, command.flag),
        (310, 16, 513, 0)
    );
    assert_eq!(command.language_name(), "JAVA");
    assert_eq!(command.remark, None);
    assert_eq!(&command.body[..], b"hello");
    assert_eq!(command.text("b").unwrap(), "T1");
    assert_eq!(
        command.required_text("i").unwrap(),
        "KEYS\u{1}k1\u{2}TAGS\u{1}a\u{2}"
    );
    assert_eq!(command.required_i32("e"), Ok(2));
    assert_eq!(command.required_int("g"), Ok(1_795_197_313_507));
    assert!(!command.flag("m"));
    assert_eq!(command.int("l"), Ok(None));
    assert_eq!(
        command.required_int("l"),
        Err(FieldError::Missing { name: "l" })
    );
    assert!(matches!(
        command.int32("g"),
        Err(FieldError::Invalid { name: "g", .. })
    ));
    assert!(matches!(command.text("b"), Some(Cow::Borrowed(_))));
    assert_eq!(command.shared("b").unwrap(), "T1");
    assert_eq!(command.frame_bytes(), 8 + header.len() + 5);
}

#[test]
fn a_response_is_written_as_live_java_writes_it() {
    let mut response = Outgoing::success().field("offset", 1i64);
    response.opaque = 16;
    let live = r#"{"code":0,"extFields":{"offset":"1"},"flag":1,"language":"JAVA","opaque":16,"serializeTypeCurrentRPC":"JSON","version":513}"#;
    let bytes = response.frame(Encoding::Json, b"xy");
    assert_eq!(&bytes[8..bytes.len() - 2], live.as_bytes());
    assert_eq!(&bytes[..], &frame(0, live.as_bytes(), b"xy")[..]);

    let error = Outgoing::error(17, "no \"T\"\n");
    assert_eq!(
        &error.frame(Encoding::Json, b"")[8..],
        br#"{"code":17,"flag":1,"language":"JAVA","opaque":0,"remark":"no \"T\"\n","serializeTypeCurrentRPC":"JSON","version":513}"#
    );
}

#[test]
fn other_dialects_of_the_json_header_are_tolerated() {
    let command = json(
        " {\n\"code\" : \"34\", \"language\":9, \"unknown\":{\"a\":[1,{\"b\":null}]}, \"opaque\":-7,\
         \"extFields\":{\"n\":5,\"t\":True,\"x\":null,\"o\":{\"k\":[1]},\"\\u0061b\":\"v\"},\
         \"remark\":null,\"version\":0}\n",
    );
    assert_eq!(
        (command.code, command.opaque, command.language),
        (34, -7, 9)
    );
    assert_eq!(command.int("n"), Ok(Some(5)));
    assert!(command.flag("t"));
    assert_eq!(command.text("x"), None);
    assert_eq!(command.text("o").unwrap(), r#"{"k":[1]}"#);
    assert_eq!(command.text("ab").unwrap(), "v");
    assert_eq!(command.fields().count(), 4);
    assert_eq!(json(r#"{"language":"COBOL"}"#).language, 7);
    assert_eq!(json(r#"{"language":"GO"}"#).language, 9);
    assert_eq!(json(r#"{"language":99}"#).language, 7);
    assert_eq!(json(r#"{"extFields":null}"#).fields.len(), 0);
    assert_eq!(json("{}").code, 0);
    let twice = json(r#"{"extFields":{"a":"1","a":"2"}}"#);
    assert_eq!(twice.text("a").unwrap(), "2");
}

#[test]
fn broken_json_headers_are_errors() {
    for header in [
        "",
        "null",
        "[]",
        "{",
        "{\"code\"}",
        "{\"code\":x}",
        "{\"code\":99999999999}",
        "{} x",
        "{\"code\":1,}",
        "{\"extFields\":[]}",
        "{\"extFields\":{\"a\":\"\\u00\"}}",
        "{'code':1}",
    ] {
        assert!(
            matches!(decode(0, header.as_bytes()), Err(FrameError::JsonHeader(_))),
            "{header}"
        );
    }
}

#[test]
fn a_length_is_judged_before_its_bytes_arrive() {
    for (length, legal) in [
        (0u32, false),
        (3, false),
        (4, true),
        (FRAME_BYTES_MAX as u32 - 4, true),
        (FRAME_BYTES_MAX as u32 - 3, false),
        (u32::MAX, false),
        (0x4745_5420, false),
    ] {
        let mut buffer = BytesMut::from(&length.to_be_bytes()[..]);
        let capacity = buffer.capacity();
        let result = next_frame(&mut buffer);
        assert_eq!(result.is_ok(), legal, "{length}");
        assert_eq!(buffer.capacity(), capacity);
        assert_eq!(
            frame_bytes_wanted(&buffer),
            if legal { length as usize } else { 0 }
        );
    }
}

#[test]
fn headers_that_lie_are_errors() {
    let mut buffer = BytesMut::new();
    buffer.put_u32(4 + 5);
    buffer.put_u32(6);
    buffer.put_slice(b"{}xyz");
    assert_eq!(
        next_frame(&mut buffer),
        Err(FrameError::HeaderOverrun {
            header_bytes: 6,
            left_bytes: 5
        })
    );
    assert_eq!(
        decode(2, b"{}"),
        Err(FrameError::UnknownEncoding { encoding: 2 })
    );
    let mut binary = Outgoing::success()
        .field("ab", "cd")
        .frame(Encoding::Binary, b"")[8..]
        .to_vec();
    assert!(decode(1, &binary).is_ok());
    for (at, value) in [
        (16, 1),
        (13, 0xFF),
        (17, 0x7F),
        (20, 0xFF),
        (22, 9),
        (25, 0x80),
    ] {
        let good = std::mem::replace(&mut binary[at], value);
        assert!(
            matches!(decode(1, &binary), Err(FrameError::BinaryHeader { .. })),
            "{at}"
        );
        binary[at] = good;
    }
}

#[test]
fn the_length_of_a_binary_name_is_signed() {
    for (bytes, fits) in [(0x7FFF, true), (0x8000, false)] {
        let mut header = BytesMut::zeroed(17);
        header.put_u32(2 + bytes + 4 + 1);
        header.put_u16(bytes as u16);
        header.put_bytes(b'n', bytes as usize);
        header.put_u32(1);
        header.put_u8(b'v');
        assert_eq!(decode(1, &header).is_ok(), fits, "{bytes}");
    }
}

#[test]
fn a_letter_behind_more_fields_than_a_byte_counts_is_found() {
    let many: Vec<String> = (0..HEADER_FIELDS_MAX - 1)
        .map(|at| format!("\"n{at}\":\"\""))
        .collect();
    let command = json(&format!(
        "{{\"code\":1,\"extFields\":{{{},\"q\":\"7\"}}}}",
        many.join(",")
    ));
    assert_eq!(command.fields.len(), HEADER_FIELDS_MAX);
    assert_eq!(command.int("q"), Ok(Some(7)));
    assert_eq!(command.int("r"), Ok(None));
}

#[test]
fn fields_are_counted() {
    for (count, fits) in [(HEADER_FIELDS_MAX, true), (HEADER_FIELDS_MAX + 1, false)] {
        let many = (0..count).fold(Outgoing::success(), |outgoing, number| {
            outgoing.field(format!("f{number}"), number as i64)
        });
        for encoding in [Encoding::Json, Encoding::Binary] {
            let mut bytes = BytesMut::from(&many.frame(encoding, b"")[..]);
            let decoded = next_frame(&mut bytes);
            assert_eq!(decoded.is_ok(), fits);
            assert!(fits || decoded == Err(FrameError::TooManyFields));
        }
    }
}

#[test]
fn a_header_that_grew_too_large_becomes_an_error_and_a_long_remark_is_cut() {
    let huge = Outgoing::success().field("properties", "\u{1}".repeat(3 << 20));
    let mut bytes = BytesMut::from(&huge.frame(Encoding::Json, b"")[..]);
    assert_eq!(next_frame(&mut bytes).unwrap().unwrap().code, 1);
    let long = Outgoing::error(1, "ä".repeat(1 << 20));
    for encoding in [Encoding::Json, Encoding::Binary] {
        let mut bytes = BytesMut::from(&long.frame(encoding, b"")[..]);
        let remark = next_frame(&mut bytes).unwrap().unwrap().remark.unwrap();
        assert_eq!(remark, "ä".repeat(8 << 10));
    }
}

impl PartialEq for Command {
    fn eq(&self, other: &Self) -> bool {
        let key = |command: &Self| {
            (
                (
                    command.encoding,
                    command.code,
                    command.language,
                    command.version,
                ),
                (command.opaque, command.flag, command.remark.clone()),
                command
                    .fields()
                    .map(|(name, value)| (name.into_owned(), value.into_owned()))
                    .collect::<Vec<_>>(),
                command.body.clone(),
            )
        };
        key(self) == key(other)
    }
}

fn values() -> impl Strategy<Value = FieldValue> {
    prop_oneof![
        ".+".prop_map(FieldValue::from),
        any::<i64>().prop_map(FieldValue::from),
        any::<bool>().prop_map(FieldValue::from),
        "[a-z\u{1}\u{2}\"\\\\]{1,40}".prop_map(|text| FieldValue::Shared(text.into())),
    ]
}

prop_compose! {
    fn outgoing()(
        code in any::<i16>(),
        flag in 0..4i32,
        opaque in any::<i32>(),
        remark in proptest::option::of(".+"),
        fields in proptest::collection::btree_map(".{1,20}", values(), 0..12),
    ) -> Outgoing {
        let mut outgoing = Outgoing::request(code.into());
        outgoing.flag = flag;
        outgoing.opaque = opaque;
        outgoing.remark = remark.map(Cow::Owned);
        for (name, value) in fields {
            outgoing = outgoing.field(name, value);
        }
        outgoing
    }
}

fn text_of(value: &FieldValue) -> String {
    match value {
        FieldValue::Text(text) => text.to_string(),
        FieldValue::Shared(text) => text.to_string(),
        FieldValue::Int(number) => number.to_string(),
        FieldValue::Bool(value) => value.to_string(),
    }
}

fn encoding() -> impl Strategy<Value = Encoding> {
    prop_oneof![Just(Encoding::Json), Just(Encoding::Binary)]
}

fn all_commands(stream: &[u8], pieces: &[usize]) -> (Vec<Command>, Option<FrameError>) {
    let mut buffer = BytesMut::new();
    let mut commands = Vec::new();
    let mut from = 0;
    for to in pieces.iter().copied().chain([stream.len()]) {
        let to = to.clamp(from, stream.len());
        buffer.extend_from_slice(&stream[from..to]);
        from = to;
        loop {
            match next_frame(&mut buffer) {
                Ok(Some(command)) => commands.push(command),
                Ok(None) => break,
                Err(error) => return (commands, Some(error)),
            }
        }
    }
    (commands, None)
}

/// Names that are one letter, and some that are nearly.
const NAMES: [(&str, &str); 8] = [
    ("a", "a"),
    ("b", "b"),
    ("z", "z"),
    ("A", "A"),
    ("1", "1"),
    ("ab", "ab"),
    ("a", "\\u0061"),
    ("\u{1}", "\\u0001"),
];

proptest! {
    #[test]
    fn a_field_is_found_however_short_its_name_and_however_often_it_comes(
        fields in proptest::collection::vec((0..NAMES.len(), "-?[0-9]{0,20}|[+ ]?[0-9]|x"), 0..30),
        gap in " ?",
    ) {
        let members: Vec<String> = fields
            .iter()
            .map(|(name, value)| format!("\"{}\"{gap}:\"{value}\"", NAMES[*name].1))
            .collect();
        let command = json(&format!("{{\"code\":1,\"extFields\":{{{}}}}}", members.join(",")));
        for (name, _) in NAMES {
            let last = fields.iter().rev().find(|(at, _)| NAMES[*at].0 == name);
            let value = last.map(|(_, value)| value.as_str());
            let found = command.text(name);
            prop_assert_eq!(found.as_deref(), value);
            let number = value.map(str::parse::<i64>).transpose().map_err(drop);
            prop_assert_eq!(command.int(name).map_err(drop), number);
            let number = value.map(str::parse::<i32>).transpose().map_err(drop);
            prop_assert_eq!(command.int32(name).map_err(drop), number);
        }
    }

    #[test]
    fn what_is_encoded_is_decoded(outgoing in outgoing(), encoding in encoding(), body in any::<Vec<u8>>()) {
        let mut buffer = BytesMut::from(&outgoing.frame(encoding, &body)[..]);
        let command = next_frame(&mut buffer).unwrap().unwrap();
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(command.encoding, encoding);
        prop_assert_eq!(
            (command.code, command.flag, command.opaque, command.version, command.language),
            (outgoing.code, outgoing.flag, outgoing.opaque, 513, 0)
        );
        prop_assert_eq!(command.remark.as_deref(), outgoing.remark.as_deref());
        prop_assert_eq!(command.fields.len(), outgoing.fields.len());
        for (name, value) in &outgoing.fields {
            prop_assert_eq!(command.text(name).unwrap(), text_of(value));
            prop_assert_eq!(command.shared(name).unwrap(), text_of(value).into_bytes());
        }
        prop_assert_eq!(command.body, Bytes::from(body));
    }

    #[test]
    fn a_json_header_is_json(outgoing in outgoing()) {
        let frame = outgoing.frame(Encoding::Json, b"");
        let header: serde_json::Value = serde_json::from_slice(&frame[8..]).unwrap();
        prop_assert_eq!(&header["code"], outgoing.code);
        let fields: BTreeMap<String, String> = outgoing
            .fields
            .iter()
            .map(|(name, value)| (name.to_string(), text_of(value)))
            .collect();
        if fields.is_empty() {
            prop_assert!(header.get("extFields").is_none());
        } else {
            prop_assert_eq!(&header["extFields"], &serde_json::json!(fields));
        }
    }

    #[test]
    fn a_stream_may_be_split_anywhere(
        outgoings in proptest::collection::vec((outgoing(), encoding(), any::<Vec<u8>>()), 1..6),
        pieces in proptest::collection::vec(any::<u16>(), 0..8),
    ) {
        let mut stream = Vec::new();
        for (outgoing, encoding, body) in &outgoings {
            stream.extend_from_slice(&outgoing.frame(*encoding, body));
        }
        let mut pieces: Vec<usize> =
            pieces.iter().map(|&piece| usize::from(piece) % stream.len()).collect();
        pieces.sort_unstable();
        let whole = all_commands(&stream, &[]);
        prop_assert_eq!(whole.0.len(), outgoings.len());
        prop_assert_eq!(&all_commands(&stream, &pieces), &whole);
    }

    #[test]
    fn mutated_frames_never_panic_and_split_alike(
        outgoing in outgoing(),
        encoding in encoding(),
        mutations in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6),
        cut in any::<u16>(),
    ) {
        let mut stream = outgoing.frame(encoding, b"body").to_vec();
        for (at, byte) in mutations {
            let at = usize::from(at) % stream.len();
            stream[at] = byte;
        }
        let cut = usize::from(cut) % stream.len();
        prop_assert_eq!(all_commands(&stream, &[cut]), all_commands(&stream, &[]));
    }

    #[test]
    fn arbitrary_headers_never_panic(encoding in 0..3u8, header in any::<Vec<u8>>()) {
        if let Ok(command) = decode(encoding, &header) {
            let _ = command.fields().count();
            let _ = command.int("a");
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in any::<Vec<u8>>()) {
        all_commands(&bytes, &[bytes.len() / 2]);
    }
}
