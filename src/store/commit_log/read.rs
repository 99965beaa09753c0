//! Messages by queue and offset: the index entry, and the record that it points at.
//!
//! What comes from the disk is compared with what the index and the record itself say of it before a consumer gets it. A batch's CRC
//! covers more, the properties above all, but a reader of one record does not read its batch: `scrub.rs` does.

use std::fmt::Display;
use std::io;

use smallvec::SmallVec;

use crate::base::offset::{PhysicalOffset, Position};
use crate::io::aligned_buf::PageSlice;
use crate::io::env::Env;
use crate::store::commit_log::CommitLog;
use crate::store::tables::consume_queue::{EntryRun, Lookup};
use crate::store::types::{QueueBounds, QueueEntry, QueueKey};
use crate::wire::record::{MAGIC_V1, MAGIC_V2, RecordView};

impl<E: Env> CommitLog<E> {
    /// First and next visible offset of a queue.
    pub fn bounds(&self, queue: QueueKey) -> QueueBounds {
        self.tables.borrow().queues.bounds(queue)
    }

    /// The index entry of a visible message.
    pub async fn entry(&self, queue: QueueKey, offset: i64) -> io::Result<Option<QueueEntry>> {
        let found = self.tables.borrow().queues.lookup(queue, offset);
        match found {
            Lookup::Entry(entry) => Ok(Some(entry)),
            Lookup::Nothing => Ok(None),
            Lookup::InBlock(place) => self.index.entry(place).await.map(Some),
        }
    }

    /// Appends the index entries of visible messages from an offset on: none if there is none, else as many as lie together
    /// in the index, but no more than `count`.
    pub async fn entries(
        &self,
        queue: QueueKey,
        offset: i64,
        count: usize,
        run: &mut EntryRun,
    ) -> io::Result<()> {
        let on_disk = {
            let tables = self.tables.borrow();
            tables.queues.lookup_run(queue, offset, count, run)
        };
        match on_disk {
            Some(place) => self.index.entries(place, count, run).await,
            None => Ok(()),
        }
    }

    /// Whether the message at an offset left memory so long ago that a pull of it has to read the disk, or what another
    /// pull had read from there.
    pub fn is_cold(&self, queue: QueueKey, offset: i64) -> bool {
        let position = self.tables.borrow().queues.position_before(queue, offset);
        position.is_some_and(|position| position < self.reader.tail_start())
    }

    /// The stored record of a queue's offset by its index entry. Bytes that are none (a device that lost what it said was flushed)
    /// are an error and never a consumer's message; neither is one from the disk with another body, or of another place,
    /// topic or queue, than was stored. What else stands in it is checked with its batch (`scrub.rs`).
    pub async fn record(
        &self,
        queue: QueueKey,
        offset: i64,
        entry: QueueEntry,
    ) -> io::Result<SmallVec<[PageSlice; 2]>> {
        let read = self.reader.read(entry.position, entry.size as usize).await;
        // The first buffer of the tail cache begins with what the last process left on the disk.
        let is_cold = entry.position < self.reader.tail_start().max(self.opened_end);
        let checked = read.and_then(|slices| {
            // What this process has put together itself is touched by nobody before the socket.
            debug_assert!(is_cold || check_head(&slices, entry).is_ok());
            if is_cold {
                check_head(&slices, entry)?;
                self.check_stored(&slices, queue, offset, entry)?;
            }
            Ok(slices)
        });
        if checked.is_err() {
            self.suspect(entry.position);
        }
        checked
    }

    fn check_stored(
        &self,
        slices: &[PageSlice],
        queue: QueueKey,
        offset: i64,
        entry: QueueEntry,
    ) -> io::Result<()> {
        let damaged = |why: &dyn Display| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the message at position {} is damaged: {why}",
                    entry.position
                ),
            )
        };
        let whole: Vec<u8>;
        let bytes = match slices {
            [one] => &one[..],
            // Over the border of two reads: one record of many.
            _ => {
                let parts: SmallVec<[&[u8]; 2]> = slices.iter().map(|slice| &slice[..]).collect();
                whole = parts.concat();
                &whole
            }
        };
        let record = RecordView::parse_checked(bytes).map_err(|error| damaged(&error))?;
        let position = PhysicalOffset::new(self.id(), Position(entry.position)).0;
        if record.physical_offset() != position
            || record.queue_offset() != offset
            || record.queue_id() != queue.queue_id as i32
        {
            return Err(damaged(&format_args!(
                "it says that it is of queue {} offset {} at {:#x}",
                record.queue_id(),
                record.queue_offset(),
                record.physical_offset()
            )));
        }
        let tables = self.tables.borrow();
        let is_of_topic = tables.topic_id(record.topic()) == Some(queue.topic_id);
        // A topic that was deleted meanwhile has no name any more.
        if !is_of_topic && tables.open_topics.is_open(queue.topic_id) {
            return Err(damaged(&format_args!(
                "it says that it is of topic {}",
                record.topic()
            )));
        }
        Ok(())
    }
}

/// The length and the magic of a record have to be those of a message of the index entry's size.
fn check_head(slices: &[PageSlice], entry: QueueEntry) -> io::Result<()> {
    const LENGTH: usize = size_of::<u32>();
    let mut head = [0; 2 * LENGTH];
    match slices.first().and_then(|first| first.first_chunk()) {
        Some(whole) => head = *whole,
        // Over the border of two reads.
        None => {
            let bytes = slices.iter().flat_map(|slice| &slice[..]);
            head.iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
        }
    }
    let (length, magic) = head.split_at(LENGTH);
    if length == entry.size.to_be_bytes()
        && [MAGIC_V1, MAGIC_V2]
            .iter()
            .any(|known| magic == known.to_be_bytes())
    {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "there is no message of {} bytes at position {}, where the index has one: `ringmq store check` shows what is damaged",
            entry.size, entry.position
        ),
    ))
}
