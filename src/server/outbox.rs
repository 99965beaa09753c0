//! What waits to be written to one connection, in order.
//!
//! Headers are encoded back to back into one buffer, small bodies are copied behind their header, and larger bodies stay
//! where they are, so that everything that is ready leaves in one gather-write. No socket and no task: the connection
//! asks for slices and says how many bytes the socket took.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Deref;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use crate::io::aligned_buf::PageSlice;
use crate::io::body::Body;
use crate::io::tcp::GATHER_SLICES_MAX;
use crate::wire::native::frame::padded;
use crate::wire::remoting::command::{Encoding, Outgoing};
use crate::wire::remoting::stored::Stored;

/// A body below this is copied behind its header: cheaper than one more slice for the kernel to walk.
const COPIED_BODY_BYTES: usize = 1 << 10;
/// Room that is made for a header before it is encoded; most are smaller.
const HEADER_BYTES_USUAL: usize = 512;
/// More header memory than this is given back when all is written.
const HEADS_KEPT_BYTES: usize = 64 << 10;

/// The slices of one gather-write.
pub type Slices<'a> = SmallVec<[IoSlice<'a>; 64]>;

enum Part {
    /// The next so many bytes of `heads`.
    Heads(usize),
    Bytes(Bytes),
    Pages(PageSlice),
}

/// See the module's page.
#[derive(Default)]
pub struct Outbox {
    heads: BytesMut,
    parts: VecDeque<Part>,
    /// Bytes of the first part that are written already; 0 for heads, which are cut off instead.
    first_written: usize,
    bytes: usize,
}

impl Outbox {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Queues a command.
    pub fn push_command(&mut self, command: &Outgoing, encoding: Encoding, body: Body) {
        let body_bytes = body.len();
        let before = self.heads.len();
        if self.heads.capacity() - before < HEADER_BYTES_USUAL {
            self.heads.reserve(2 * HEADER_BYTES_USUAL);
        }
        command.encode(encoding, body_bytes, &mut self.heads);
        let copied = body_bytes < COPIED_BODY_BYTES;
        if copied {
            self.copy_body(&body);
        }
        self.grew_heads(before);
        if !copied {
            self.push_body(body);
        }
    }

    /// Queues the answer to a send.
    pub fn push_stored(&mut self, stored: &Stored<'_>, encoding: Encoding, opaque: i32) {
        let before = self.heads.len();
        stored.encode(encoding, opaque, &mut self.heads);
        self.grew_heads(before);
    }

    /// Queues a frame that is encoded already.
    pub fn push_frame(&mut self, frame: Bytes) {
        if frame.len() < COPIED_BODY_BYTES {
            let before = self.heads.len();
            self.heads.extend_from_slice(&frame);
            self.grew_heads(before);
        } else {
            self.bytes += frame.len();
            self.parts.push_back(Part::Bytes(frame));
        }
    }

    /// Queues a frame of the native protocol: prefix and header, then sections that end at multiples of 8 bytes.
    pub fn push_native(&mut self, head: &[u8], sections: impl IntoIterator<Item = Body>) {
        let before = self.heads.len();
        self.heads.extend_from_slice(head);
        self.grew_heads(before);
        for section in sections {
            let bytes = section.len();
            if bytes < COPIED_BODY_BYTES {
                let before = self.heads.len();
                self.copy_body(&section);
                self.grew_heads(before);
            } else {
                self.push_body(section);
            }
            let before = self.heads.len();
            self.heads.put_bytes(0, padded(bytes) - bytes);
            self.grew_heads(before);
        }
    }

    fn copy_body(&mut self, body: &Body) {
        match body {
            Body::Empty => {}
            Body::Bytes(bytes) => self.heads.extend_from_slice(bytes),
            Body::Pages(pages) => pages
                .iter()
                .for_each(|page| self.heads.extend_from_slice(page)),
        }
    }

    /// Queues a body without copying it.
    fn push_body(&mut self, body: Body) {
        self.bytes += body.len();
        match body {
            Body::Empty => {}
            Body::Bytes(bytes) => self.parts.push_back(Part::Bytes(bytes)),
            Body::Pages(pages) => self.parts.extend(
                pages
                    .into_iter()
                    .filter(|page| !page.is_empty())
                    .map(Part::Pages),
            ),
        }
    }

    fn grew_heads(&mut self, before: usize) {
        let grown = self.heads.len() - before;
        self.bytes += grown;
        match self.parts.back_mut() {
            _ if grown == 0 => {}
            Some(Part::Heads(bytes)) => *bytes += grown,
            _ => self.parts.push_back(Part::Heads(grown)),
        }
    }

    /// What to write next: all of it, or as many slices as one call takes.
    pub fn slices(&self) -> Slices<'_> {
        let mut slices = Slices::new();
        let mut heads = &self.heads[..];
        let mut written = self.first_written;
        for part in self.parts.iter().take(GATHER_SLICES_MAX) {
            let bytes = match part {
                Part::Heads(bytes) => {
                    let (these, rest) = heads.split_at(*bytes);
                    heads = rest;
                    these
                }
                Part::Bytes(bytes) => bytes.deref(),
                Part::Pages(pages) => pages.deref(),
            };
            slices.push(IoSlice::new(&bytes[written..]));
            written = 0;
        }
        slices
    }

    /// The socket took `bytes` of what [`Outbox::slices`] offered.
    pub fn written(&mut self, mut bytes: usize) {
        assert!(
            bytes <= self.bytes,
            "the socket took more than it was given"
        );
        self.bytes -= bytes;
        while bytes > 0 {
            let Some(first) = self.parts.front_mut() else {
                unreachable!("parts and bytes count the same");
            };
            let left = match first {
                Part::Heads(left) => {
                    let cut = bytes.min(*left);
                    self.heads.advance(cut);
                    *left -= cut;
                    bytes -= cut;
                    if *left == 0 {
                        self.parts.pop_front();
                    }
                    continue;
                }
                Part::Bytes(part) => part.len() - self.first_written,
                Part::Pages(part) => part.len() - self.first_written,
            };
            if bytes < left {
                self.first_written += bytes;
                return;
            }
            bytes -= left;
            self.first_written = 0;
            self.parts.pop_front();
        }
        if self.bytes == 0 {
            if self.heads.capacity() > HEADS_KEPT_BYTES {
                self.heads = BytesMut::new();
            } else {
                self.heads.clear();
            }
        }
    }

    /// Drops what waits.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Gives memory back while the connection is quiet.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            self.clear();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::rc::Rc;

    use proptest::prelude::*;
    use smallvec::smallvec;

    use super::*;
    use crate::io::aligned_buf::PageBuf;
    use crate::wire::remoting::frame::next_frame;

    fn command(opaque: i32) -> Outgoing {
        Outgoing {
            opaque,
            flag: 1,
            ..Outgoing::default()
        }
    }

    fn body(kind: u8, bytes: usize, fill: u8) -> Body {
        let content = vec![fill; bytes];
        match kind {
            0 => Body::Bytes(content.into()),
            _ => {
                let pages = Rc::new(PageBuf::from_heap(content));
                let half = bytes / 2;
                Body::Pages(smallvec![
                    PageSlice::new(pages.clone(), 0, half),
                    PageSlice::new(pages, half, bytes - half)
                ])
            }
        }
    }

    /// Takes `at_once` bytes at a time, as a slow socket would.
    fn drain(outbox: &mut Outbox, at_once: usize) -> BytesMut {
        let mut out = BytesMut::new();
        while !outbox.is_empty() {
            let mut room = at_once;
            let mut taken = 0;
            for slice in outbox.slices() {
                assert!(!slice.is_empty());
                let part = &slice[..slice.len().min(room)];
                out.extend_from_slice(part);
                room -= part.len();
                taken += part.len();
            }
            outbox.written(taken);
        }
        assert!(outbox.parts.is_empty() && outbox.heads.is_empty());
        out
    }

    #[test]
    fn answers_without_large_bodies_are_one_slice() {
        let mut outbox = Outbox::default();
        for opaque in 0..100 {
            outbox.push_command(&command(opaque), Encoding::Json, body(0, 1000, 1));
        }
        assert_eq!(outbox.slices().len(), 1);
    }

    #[test]
    fn a_large_body_is_not_copied() {
        let mut outbox = Outbox::default();
        let content = Bytes::from(vec![7; 100_000]);
        outbox.push_command(&command(1), Encoding::Json, Body::Bytes(content.clone()));
        let slices = outbox.slices();
        assert_eq!(slices.len(), 2);
        assert_eq!(slices[1].as_ptr(), content.as_ptr());
    }

    #[test]
    fn one_call_gets_no_more_slices_than_the_kernel_takes() {
        let mut outbox = Outbox::default();
        for opaque in 0..2000 {
            outbox.push_command(&command(opaque), Encoding::Binary, body(0, 2000, 1));
        }
        assert_eq!(outbox.slices().len(), GATHER_SLICES_MAX);
        let mut out = drain(&mut outbox, usize::MAX);
        for opaque in 0..2000 {
            assert_eq!(next_frame(&mut out).unwrap().unwrap().opaque, opaque);
        }
    }

    proptest! {
        #[test]
        fn what_is_queued_leaves_in_order_whatever_the_socket_takes(
            pushed in prop::collection::vec((0u8..3, 0usize..5000), 1..40),
            at_once in 1usize..9000,
        ) {
            let mut outbox = Outbox::default();
            for (opaque, &(kind, bytes)) in pushed.iter().enumerate() {
                let command = command(opaque as i32);
                if kind == 2 {
                    outbox.push_frame(command.frame(Encoding::Json, &vec![opaque as u8; bytes]));
                } else {
                    outbox.push_command(&command, Encoding::Binary, body(kind, bytes, opaque as u8));
                }
            }
            let expected = outbox.len();
            let mut out = drain(&mut outbox, at_once);
            prop_assert_eq!(out.len(), expected);
            for (opaque, &(_, bytes)) in pushed.iter().enumerate() {
                let frame = next_frame(&mut out).unwrap().unwrap();
                prop_assert_eq!(frame.opaque, opaque as i32);
                prop_assert_eq!(&frame.body[..], &vec![opaque as u8; bytes][..]);
            }
            prop_assert!(out.is_empty());
        }
    }
}
