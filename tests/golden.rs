//! Frames of the ordinary Java client, recorded on the wire (`tests/golden/README.md`), against the product's codec.
//!
//! A second decoder, that of the black-box tests, says what has to come out.
#![allow(clippy::unwrap_used)] // a test may panic

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::BytesMut;
use ringmq::wire::remoting::command::{Command, Encoding};
use ringmq::wire::remoting::frame::next_frame;

#[allow(dead_code)] // only its decoder is used here
#[path = "blackbox/client.rs"]
mod client;
#[allow(dead_code)] // needed by the client
#[path = "blackbox/record.rs"]
mod record;

/// File names with their frames, length prefix included.
fn frames() -> BTreeMap<String, Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut frames = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "bin") {
            let name = path.file_stem().unwrap().to_str().unwrap().to_string();
            frames.insert(name, fs::read(&path).unwrap());
        }
    }
    frames
}

fn decode(bytes: &[u8]) -> Command {
    let mut buffer = BytesMut::from(bytes);
    let command = next_frame(&mut buffer).unwrap().expect("a whole frame");
    assert!(buffer.is_empty());
    command
}

#[test]
fn frames_of_the_java_client_decode_as_the_other_decoder_says() {
    let frames = frames();
    for name in [
        "310-send-v2",
        "320-send-batch",
        "11-pull",
        "34-heartbeat",
        "105-route",
    ] {
        for form in ["json", "binary"] {
            assert!(
                frames.contains_key(&format!("{form}-{name}")),
                "{form}-{name}"
            );
        }
    }
    for (name, frame) in frames {
        let expected = client::Command::decode(&frame[4..]).unwrap();
        let command = decode(&frame);
        let mut parts = name.split('-');
        let encoding = match parts.next().unwrap() {
            "json" => Encoding::Json,
            _ => Encoding::Binary,
        };
        assert_eq!(command.encoding, encoding, "{name}");
        assert_eq!(
            command.code,
            parts.next().unwrap().parse::<i32>().unwrap(),
            "{name}"
        );
        assert_eq!(command.is_oneway(), name.ends_with("oneway"), "{name}");
        assert!(!command.is_response(), "{name}");
        assert_eq!(command.language_name(), "JAVA", "{name}");
        assert_eq!(command.version, expected.version, "{name}");
        assert_eq!(command.opaque, expected.opaque, "{name}");
        assert_eq!(command.flag, expected.flag, "{name}");
        assert_eq!(
            command.remark.unwrap_or_default(),
            expected.remark,
            "{name}"
        );
        assert_eq!(command.body, expected.body, "{name}");
        let again = decode(&frame);
        let fields: BTreeMap<String, String> = again
            .fields()
            .map(|(field, value)| (field.into_owned(), value.into_owned()))
            .collect();
        assert_eq!(fields, expected.fields, "{name}");
        for (field, value) in &expected.fields {
            assert_eq!(
                again.text(field).as_deref(),
                Some(value.as_str()),
                "{name} {field}"
            );
        }
    }
}

#[test]
fn a_frame_in_pieces_is_the_same_frame() {
    for (name, frame) in frames() {
        let mut buffer = BytesMut::new();
        for (number, byte) in frame.iter().enumerate() {
            assert!(
                next_frame(&mut buffer).unwrap().is_none(),
                "{name} at byte {number}"
            );
            buffer.extend_from_slice(&[*byte]);
        }
        // The next frame's first bytes stay where they are.
        buffer.extend_from_slice(&[0, 0]);
        let command = next_frame(&mut buffer).unwrap().expect("a whole frame");
        assert_eq!(command.body, decode(&frame).body, "{name}");
        assert_eq!(&buffer[..], [0, 0]);
    }
}

#[test]
fn every_cut_and_every_flipped_bit_is_answered_without_a_panic() {
    for frame in frames().into_values() {
        for at in 0..frame.len().min(700) {
            for bit in 0..8 {
                let mut broken = frame.clone();
                broken[at] ^= 1 << bit;
                // Whatever comes out, its fields can be read.
                if let Ok(Some(command)) = next_frame(&mut BytesMut::from(&broken[..])) {
                    let _ = command.fields().count();
                }
            }
            let mut cut = frame[..at].to_vec();
            if let Some(prefix) = cut.first_chunk_mut::<4>() {
                *prefix = ((at - 4) as u32).to_be_bytes();
            }
            if let Ok(Some(command)) = next_frame(&mut BytesMut::from(&cut[..])) {
                let _ = command.fields().count();
            }
        }
    }
}
