//! The search for damage in the older part of a log, which nobody may read for months.
//!
//! A **pass** reads every batch up to the newest snapshot, from the log's start, slowly, and then sleeps until its period is over;
//! what lies behind the snapshot is read at every start. Where a pass stands is kept in memory only: a restart begins anew. A
//! reader that finds no record where the index has one names the place, and that segment is read at once, with or without passes.
//!
//! Only what is durable here, and not in the sector that the next commit writes again, can be found damaged. If something damaged
//! reaches into that one, the log appends a sector of nothing: else it would wait for a message that may never come. A place is looked at twice before
//! it counts: a device may have had a bad moment, and a repair may have been under way. What retention removes meanwhile is no
//! damage. A damaged place is remembered until it is whole again (`mend.rs`) or gone.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use crate::base::limits::{SCRUB_DAMAGED_MAX, SCRUB_SUSPECTS_MAX, SECTOR_BYTES};
use crate::base::notify::Notify;
use crate::io::env::Env;
use crate::store::commit_log::CommitLog;
use crate::store::control::Control;
use crate::store::scrub::{Damaged, Walk, next_of};

/// A pass waits so long after a start, which has enough to do.
const FIRST_PASS: Duration = Duration::from_secs(10);
/// Between two looks at a damaged place.
const SECOND_LOOK: Duration = Duration::from_millis(50);
/// A segment is read again for a reader after so long, if the last time nothing was found there.
const SUSPECT_PAUSE: Duration = Duration::from_secs(10);

/// What was found and mended since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubFigures {
    /// Bytes of the batches that were found whole.
    pub scrubbed_bytes: u64,
    /// Bytes that are known to be damaged now.
    pub damaged_bytes: u64,
    pub repaired_bytes: u64,
}

/// The state of it.
#[derive(Default)]
pub(super) struct Scrub {
    pub(super) damaged: RefCell<BTreeMap<u64, Damaged>>,
    suspects: RefCell<VecDeque<u64>>,
    /// The segment that was read last for a reader, and until when that is enough, in nanoseconds of the monotonic clock.
    looked_at: Cell<Option<(u64, u64)>>,
    /// Something damaged before this reaches into the sector that the next commit writes again.
    tail_damaged: Cell<Option<u64>>,
    /// Where settled sectors ended when a filler was appended last.
    filled_at: Cell<Option<u64>>,
    bell: Notify,
    scrubbed_bytes: Cell<u64>,
    pub(super) repaired_bytes: Cell<u64>,
    /// A repair is being written.
    pub(super) is_mending: Cell<bool>,
    pub(super) mended: Notify,
    /// A place that somebody is asked for.
    pub(super) fetched: Cell<Option<u64>>,
}

impl Scrub {
    /// Ends the sleep of the search.
    pub(super) fn ring(&self) {
        self.bell.notify();
    }
}

/// Where a search stands: behind a whole batch, or where a segment begins.
struct Place {
    position: u64,
    previous_crc: Option<u32>,
    epoch: u32,
}

impl Place {
    fn at(position: u64) -> Self {
        Self {
            position,
            previous_crc: (position == 0).then_some(0),
            epoch: 0,
        }
    }
}

impl<E: Env> CommitLog<E> {
    /// What the search has found.
    pub fn scrub_figures(&self) -> ScrubFigures {
        let damaged = self.scrub.damaged.borrow();
        ScrubFigures {
            scrubbed_bytes: self.scrub.scrubbed_bytes.get(),
            damaged_bytes: damaged.values().map(Damaged::bytes).sum(),
            repaired_bytes: self.scrub.repaired_bytes.get(),
        }
    }

    /// Somebody found no record at a position where there has to be one.
    pub fn suspect(&self, position: u64) {
        let is_known = {
            let damaged = self.scrub.damaged.borrow();
            let before = damaged.range(..=position).next_back();
            before.is_some_and(|(_, damaged)| position < damaged.end)
        };
        let mut suspects = self.scrub.suspects.borrow_mut();
        let segment = |position: u64| position / self.options.segment_bytes;
        let is_asked = suspects
            .iter()
            .any(|asked| segment(*asked) == segment(position));
        let is_recent = self.scrub.looked_at.get().is_some_and(|(last, until_ns)| {
            last == segment(position) && self.env.now_ns() < until_ns
        });
        if is_known || is_asked || is_recent || suspects.len() == SCRUB_SUSPECTS_MAX {
            return;
        }
        if position >= self.scrub_limit() {
            // Once it is not in the last sector any more, who asks again has it looked at.
            if position < self.snapshot_position() {
                self.scrub.tail_damaged.set(Some(position + 1));
                self.scrub.ring();
            }
            return;
        }
        suspects.push_back(position);
        drop(suspects);
        self.scrub.ring();
    }

    /// The search goes no further: what lies behind is read at each start, or the next commit writes it again.
    fn scrub_limit(&self) -> u64 {
        self.snapshot_position().min(self.settled_end())
    }

    /// No commit writes the sectors before this any more.
    pub(super) fn settled_end(&self) -> u64 {
        self.durable_here().0 & !(SECTOR_BYTES as u64 - 1)
    }

    /// The search, for as long as the log takes writes.
    pub(super) async fn keep_scrubbed(self: Rc<Self>) {
        let env = self.env().clone();
        let options = self.options.scrub;
        let has_passes = options.bytes_per_second > 0;
        let mut next_pass_ns = env.now_ns() + FIRST_PASS.min(options.period).as_nanos() as u64;
        while !self.has_ended() {
            if let Some(end) = self.scrub.tail_damaged.take() {
                self.fill_sector(end);
            }
            if self.look_at_suspect().await {
                continue;
            }
            let now_ns = env.now_ns();
            if has_passes && now_ns >= next_pass_ns {
                self.pass().await;
                next_pass_ns = now_ns.saturating_add(options.period.as_nanos() as u64);
                continue;
            }
            match has_passes {
                true => {
                    let left = Duration::from_nanos(next_pass_ns - now_ns);
                    futures_lite::future::or(self.scrub.bell.notified(), env.sleep(left)).await;
                }
                false => self.scrub.bell.notified().await,
            }
        }
    }

    /// What reads batches for their checksums.
    pub(in crate::store) fn walker(&self) -> Walk<'_, E> {
        Walk::new(
            &self.env,
            &self.segments,
            self.reader.gate(),
            self.options.store_id,
        )
    }

    /// Reads everything once.
    async fn pass(&self) {
        let begun_ns = self.env.now_ns();
        let before = self.scrub_figures();
        let mut walk = self.walker().paced(self.options.scrub.bytes_per_second);
        let mut place = Place::at(self.segments.start());
        loop {
            let is_disturbed = || !self.scrub.suspects.borrow().is_empty();
            self.walk(&mut walk, &mut place, u64::MAX, is_disturbed)
                .await;
            // At once, whatever of the pass is left.
            if !self.look_at_suspect().await {
                break;
            }
        }
        let after = self.scrub_figures();
        tracing::debug!(
            log = self.id(),
            end = place.position,
            bytes = after.scrubbed_bytes - before.scrubbed_bytes,
            damaged_bytes = after.damaged_bytes,
            seconds = (self.env.now_ns() - begun_ns) / 1_000_000_000,
            "this log was searched for damage"
        );
    }

    /// Reads the segment that a reader has named, up to there. False: nobody has.
    async fn look_at_suspect(&self) -> bool {
        let Some(position) = self.scrub.suspects.borrow_mut().pop_front() else {
            return false;
        };
        let segment = position / self.options.segment_bytes;
        let start = segment * self.options.segment_bytes;
        let until_ns = self.env.now_ns() + SUSPECT_PAUSE.as_nanos() as u64;
        self.scrub.looked_at.set(Some((segment, until_ns)));
        let mut place = Place::at(start);
        let mut walk = self.walker();
        self.walk(&mut walk, &mut place, position + 1, || false)
            .await;
        true
    }

    /// Goes on until `until`, or as far as there is something to search, or until `stops`.
    async fn walk(
        &self,
        walk: &mut Walk<'_, E>,
        place: &mut Place,
        until: u64,
        stops: impl Fn() -> bool,
    ) {
        while place.position < until.min(self.scrub_limit()) && !self.has_ended() && !stops() {
            let start = self.segments.start();
            if place.position < start {
                *place = Place::at(start);
            }
            let position = place.position;
            if let Some(header) = walk.batch_at(position, place.previous_crc).await {
                let next = next_of(&header, self.segments.segment_end(position));
                self.note_whole(position, next, u64::from(header.length));
                *place = Place {
                    position: next,
                    previous_crc: Some(header.crc),
                    epoch: header.epoch,
                };
                continue;
            }
            self.env.sleep(SECOND_LOOK).await;
            walk.forget();
            if walk.batch_at(position, place.previous_crc).await.is_some() {
                continue;
            }
            let durable = self.durable_here().0;
            let found = walk.search(position + 1, durable, place.epoch).await;
            // Behind the last batch that is shown stands what the log itself knows of it.
            let (released, released_crc, _) = self.released();
            let (end, end_crc) = found.map_or((released, released_crc), |header| {
                (header.position, header.previous_crc)
            });
            // What retention has removed meanwhile was not there to be read.
            if position >= self.segments.start() && end > position {
                self.note_damaged(Damaged {
                    position,
                    previous_crc: place.previous_crc,
                    end,
                    end_crc,
                });
                place.position = end;
                place.previous_crc = Some(end_crc);
            }
        }
    }

    /// Moves the log's end out of a sector in which something is damaged, so that it can be repaired. Once for each: if the disk or
    /// a slave does not take it, the next message will do.
    fn fill_sector(&self, damaged_end: u64) {
        let settled_end = self.settled_end();
        if self.options.replica || damaged_end <= settled_end {
            return;
        }
        if self.scrub.filled_at.replace(Some(settled_end)) == Some(settled_end) {
            return;
        }
        let filler = Control::Filler {
            bytes: SECTOR_BYTES,
        };
        if let Err(refusal) = self.append_control(&[filler]) {
            tracing::debug!(log = self.id(), %refusal, "nothing can be appended to a log whose last sector is damaged");
        }
    }

    fn note_whole(&self, position: u64, next: u64, bytes: u64) {
        let scrubbed = &self.scrub.scrubbed_bytes;
        scrubbed.set(scrubbed.get() + bytes);
        let mut damaged = self.scrub.damaged.borrow_mut();
        let known: Vec<u64> = damaged.range(position..next).map(|(at, _)| *at).collect();
        for at in known {
            damaged.remove(&at);
            tracing::info!(
                log = self.id(),
                position = at,
                "what was damaged here can be read again"
            );
        }
    }

    fn note_damaged(&self, found: Damaged) {
        {
            let mut damaged = self.scrub.damaged.borrow_mut();
            if found.end > self.settled_end() {
                self.scrub.tail_damaged.set(Some(found.end));
            }
            let range = found.position..found.end;
            let known: u64 = damaged.range(range.clone()).map(|(_, d)| d.bytes()).sum();
            if known == found.bytes() {
                return;
            }
            if known == 0 && damaged.len() == SCRUB_DAMAGED_MAX {
                return;
            }
            damaged.retain(|at, _| !range.contains(at));
            damaged.insert(found.position, found);
        }
        tracing::error!(
            log = self.id(),
            position = found.position,
            bytes = found.bytes(),
            "acknowledged bytes of this log are damaged on the disk. They are fetched from another copy as soon as one that has them is connected; if there is none, restore the segment's file from a copy"
        );
        self.look_again();
    }
}
