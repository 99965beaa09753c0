//! What a remoting connection reads, JSON and binary headers: no bytes may panic, the fields of a header can all be asked for, and a
//! header that is like one before it is read as if it were the first.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use ringmq::wire::remoting::frame::{frame_bytes_wanted, next_frame, next_frame_like};
use ringmq::wire::remoting::shape::Shapes;

fuzz_target!(|data: &[u8]| {
    let mut buffer = BytesMut::from(data);
    let (mut again, mut shapes) = (buffer.clone(), Shapes::default());
    let _ = frame_bytes_wanted(&buffer);
    while let Ok(Some(command)) = next_frame(&mut buffer) {
        assert!(command.frame_bytes() <= data.len());
        let alike = next_frame_like(&mut again, &mut shapes);
        assert_eq!(format!("{:?}", Ok::<_, ()>(Some(&command))), format!("{:?}", alike.map_err(|_| ())));
        for (name, value) in command.fields() {
            // A name that is no UTF-8 is shown with a replacement, and cannot be asked for.
            if !name.contains(char::REPLACEMENT_CHARACTER) {
                assert!(command.text(&name).is_some(), "{name}={value}");
            }
        }
        let _ = command.int("queueId");
        let _ = command.flag("batch");
        let _ = command.shared("topic");
        let _ = command.language_name();
    }
});
