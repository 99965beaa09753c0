//! The test client itself: its two header forms come back as they were.

use crate::client::{Command, Encoding, Message, Pull};

#[test]
fn both_header_forms_come_back() {
    let send = Message::new("T", 3, "hällo").property("TAGS", "a\"b\\");
    for mut command in [
        send.send_v1(),
        send.send_v2(),
        Pull::new("T", 0, 7).command(),
    ] {
        command.opaque = 77;
        for encoding in [Encoding::Json, Encoding::Binary] {
            command.encoding = encoding;
            let frame = command.encode();
            let length = u32::from_be_bytes(*frame.first_chunk().unwrap()) as usize;
            assert_eq!(length, frame.len() - 4);
            assert_eq!(Command::decode(&frame[4..]).unwrap(), command);
        }
    }
}
