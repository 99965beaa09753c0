//! The stored record, as producers and disks bring it: no bytes may panic; one that is taken means the same after it was written
//! again, and is still one after the broker has filled in what it knows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringmq_wire_native::record::{Patch, RecordView, records};

fuzz_target!(|data: &[u8]| {
    for record in records(data) {
        let Ok(record) = record else { break };
        let _ = record.check_body();
    }
    let Ok(view) = RecordView::parse_checked(data) else {
        return;
    };
    let fields = view.fields();
    let mut written = vec![0; fields.encoded_len()];
    fields.encode_into(&mut written);
    let again = RecordView::parse_checked(&written).expect("our own record");
    assert_eq!(again.body(), view.body());
    assert_eq!(again.topic(), view.topic());
    assert_eq!(again.properties(), view.properties());
    assert_eq!(again.queue_offset(), view.queue_offset());

    let (born_host, store_host) = (view.born_host(), view.store_host());
    if view.has_room_for(born_host, store_host) {
        let patch = Patch::new(0, born_host, 5, store_host);
        let mut bytes = vec![0; view.bytes().len()];
        patch.copy(7, 1 << 40, view.bytes(), &mut bytes);
        let patched = RecordView::parse_checked(&bytes).expect("a patched record");
        assert_eq!(patched.queue_offset(), 7);
        assert_eq!(patched.physical_offset(), 1 << 40);
        assert_eq!(patched.body(), view.body());
    }
});
