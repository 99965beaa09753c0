//! The header of the answer to a send that was stored.
//!
//! No answer is given more often, so its JSON is written as it goes, where composing an [`Outgoing`] and then encoding it
//! took a fifth of all instructions of a send. Source: `SendMessageResponseHeader`, `SendMessageProcessor.handlePutMessageResult`.

use std::net::SocketAddr;

use bytes::{BufMut, BytesMut};

use crate::base::offset::PhysicalOffset;
use crate::wire::message_id::MessageId;
use crate::wire::remoting::command::{Encoding, FLAG_RESPONSE, Outgoing, put_prefix};
use crate::wire::remoting::frame::PREFIX_BYTES;
use crate::wire::remoting::json_header::{with_text, write_end, write_int};
use crate::wire::remoting::json_scan::write_string;

/// With more messages than this the header is composed first, which checks its length.
const DIRECT_MESSAGES_MAX: usize = 1 << 10;

/// Where the messages of one send were stored.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// SUCCESS, or what became of the copies on slaves.
    pub code: i32,
    /// The broker's address in the offset ids.
    pub host: SocketAddr,
    pub physical_offsets: &'a [PhysicalOffset],
    pub queue_id: u32,
    /// Of the first message.
    pub queue_offset: i64,
    /// UNIQ_KEY.
    pub transaction_id: Option<&'a str>,
    /// Of a message for later: what takes it back.
    pub recall_handle: Option<&'a str>,
    pub region: &'a str,
    pub trace_on: bool,
}

impl Stored<'_> {
    /// Appends length, header mark and header of the frame, which has no body.
    pub fn encode(&self, encoding: Encoding, opaque: i32, out: &mut BytesMut) {
        if encoding != Encoding::Json || self.physical_offsets.len() > DIRECT_MESSAGES_MAX {
            let mut head = self.compose();
            head.opaque = opaque;
            return head.encode(encoding, 0, out);
        }
        with_text(|text| {
            text.put_bytes(0, PREFIX_BYTES);
            self.write(opaque, text);
            let header_bytes = text.len() - PREFIX_BYTES;
            put_prefix(text, encoding, header_bytes, 0);
            out.extend_from_slice(text);
        });
    }

    fn write(&self, opaque: i32, out: &mut Vec<u8>) {
        out.reserve(512);
        out.extend_from_slice(b"{\"code\":");
        write_int(self.code.into(), out);
        out.extend_from_slice(b",\"extFields\":{\"msgId\":\"");
        for (at, &offset) in self.physical_offsets.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            let host = self.host;
            MessageId { host, offset }.encode_bytes(out);
        }
        out.extend_from_slice(b"\",\"queueId\":\"");
        write_int(self.queue_id.into(), out);
        out.extend_from_slice(b"\",\"queueOffset\":\"");
        write_int(self.queue_offset, out);
        if let Some(id) = self.transaction_id {
            out.extend_from_slice(b"\",\"transactionId\":");
            write_string(id, out);
            out.extend_from_slice(b",\"MSG_REGION\":");
        } else {
            out.extend_from_slice(b"\",\"MSG_REGION\":");
        }
        write_string(self.region, out);
        out.extend_from_slice(match self.trace_on {
            true => b",\"TRACE_ON\":\"true\"".as_slice(),
            false => b",\"TRACE_ON\":\"false\"",
        });
        if let Some(handle) = self.recall_handle {
            out.extend_from_slice(b",\"recallHandle\":");
            write_string(handle, out);
        }
        out.push(b'}');
        write_end(FLAG_RESPONSE, opaque, None, out);
    }

    /// The same as a header like any other; who sends it sets the opaque.
    pub fn compose(&self) -> Outgoing {
        let mut ids = String::with_capacity(33 * self.physical_offsets.len());
        for &offset in self.physical_offsets {
            if !ids.is_empty() {
                ids.push(',');
            }
            let host = self.host;
            MessageId { host, offset }.encode_into(&mut ids);
        }
        Outgoing::success()
            .with_code(self.code)
            .field("msgId", ids)
            .field("queueId", self.queue_id)
            .field("queueOffset", self.queue_offset)
            .field_if("transactionId", self.transaction_id.map(str::to_owned))
            .field("MSG_REGION", self.region.to_owned())
            .field("TRACE_ON", self.trace_on)
            .field_if("recallHandle", self.recall_handle.map(str::to_owned))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddr};

    use proptest::prelude::*;

    use super::*;
    use crate::wire::remoting::command::Command;
    use crate::wire::remoting::frame::next_frame;

    fn stored(physical_offsets: &[PhysicalOffset]) -> Stored<'_> {
        Stored {
            code: 0,
            host: SocketAddr::from(([127, 0, 0, 1], 30_911)),
            physical_offsets,
            queue_id: 1,
            queue_offset: 2,
            transaction_id: None,
            recall_handle: None,
            region: "DefaultRegion",
            trace_on: true,
        }
    }

    fn answer(stored: &Stored<'_>) -> Command {
        let mut written = BytesMut::new();
        stored.encode(Encoding::Json, 5, &mut written);
        next_frame(&mut written).unwrap().unwrap()
    }

    proptest! {
        #[test]
        fn is_what_is_composed(
            code in prop::sample::select(vec![0, 10, 11, 12, 14]),
            offsets in prop::collection::vec(0..i64::MAX, 0..40),
            (queue_id, queue_offset, opaque) in any::<(u32, i64, i32)>(),
            (id, handle) in any::<(Option<String>, Option<String>)>(),
            (region, trace_on, v6, binary) in any::<(String, bool, bool, bool)>(),
        ) {
            let offsets: Vec<PhysicalOffset> = offsets.into_iter().map(PhysicalOffset).collect();
            let host = match v6 {
                true => SocketAddr::from((Ipv6Addr::LOCALHOST, 10_911)),
                false => SocketAddr::from(([192, 168, 0, 1], 10_911)),
            };
            let stored = Stored {
                code,
                host,
                physical_offsets: &offsets,
                queue_id,
                queue_offset,
                transaction_id: id.as_deref(),
                recall_handle: handle.as_deref(),
                region: &region,
                trace_on,
            };
            let encoding = if binary { Encoding::Binary } else { Encoding::Json };
            let mut composed = stored.compose();
            composed.opaque = opaque;
            let mut written = BytesMut::from(&b"before"[..]);
            stored.encode(encoding, opaque, &mut written);
            prop_assert_eq!(&written[6..], &composed.frame(encoding, b"")[..]);
        }
    }

    #[test]
    fn ids_of_a_batch_are_joined_by_commas() {
        let answer = answer(&stored(&[PhysicalOffset(0), PhysicalOffset(255)]));
        assert_eq!(
            answer.text("msgId").unwrap(),
            "7F000001000078BF0000000000000000,7F000001000078BF00000000000000FF"
        );
    }

    #[test]
    fn tells_of_a_batch_of_any_length() {
        let answer = answer(&stored(&vec![PhysicalOffset(7); 600_000]));
        // Its ids are too many for a header, whose length has 24 bits.
        assert_eq!((answer.opaque, answer.code), (5, 1));
    }
}
