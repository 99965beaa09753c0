//! Which part of the log which part of the key index stands for. Pure.
//!
//! From the log's first position to its durable end the index is a list of parts without a hole: runs (sorted files),
//! sealed parts (in memory, on their way to a file), gaps (to be read from the log again), and the tail. Whatever goes
//! wrong with a part, it becomes a gap: the log is the truth. Entries of messages that are not durable yet wait beside.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::base::limits::{KEY_ENTRIES_STAGED_MAX, KEY_PARTS_SEALED_MAX};
use crate::store::keys::entry::Entry;

/// A part is sealed when it stands for so many bytes of the log, however few keys they have: a crash reads them again.
const TAIL_LOG_BYTES: u64 = 128 << 20;
/// At a stop a tail without keys is worth a file if it stands for so much.
const STOP_LOG_BYTES: u64 = 1 << 20;
/// So many neighbours of one size become one run.
pub const MERGE_RUNS: usize = 16;
/// Runs of this level are not merged any more: 8 million entries. Each entry is written at most three times.
const LEVEL_MAX: u32 = 2;

/// A file of sorted entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub id: u64,
    /// The part of the log that it stands for, `to` exclusive: entries outside are to be ignored.
    pub from: u64,
    pub to: u64,
    pub entries: u64,
    pub blocks: u32,
    pub filter_bytes: u32,
    /// Store times of its messages.
    pub first_seconds: u32,
    pub last_seconds: u32,
    pub fences_crc: u32,
    pub filter_crc: u32,
}

/// Entries on their way to a file, in the order of the log.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub from: u64,
    pub to: u64,
    pub entries: Rc<Vec<Entry>>,
}

/// See the module's page.
#[derive(Clone, Debug)]
pub enum Part {
    Run(Rc<Run>),
    Sealed(Sealed),
    Gap { from: u64, to: u64 },
}

impl Part {
    fn to(&self) -> u64 {
        match self {
            Self::Run(run) => run.to,
            Self::Sealed(sealed) => sealed.to,
            Self::Gap { to, .. } => *to,
        }
    }
}

/// All parts of one log's index.
pub struct Parts {
    parts: VecDeque<Part>,
    tail: Vec<Entry>,
    /// The tail stands for `tail_from..covered`.
    tail_from: u64,
    covered: u64,
    staged: VecDeque<Entry>,
    /// First and last position of messages that found no room in `staged`.
    lost: Option<(u64, u64)>,
    /// Files that nobody needs any more.
    garbage: Vec<u64>,
    tail_entries_max: usize,
}

impl Parts {
    /// The index of a log that has `start..end`, with the runs that its files hold. What no run stands for is a gap.
    pub fn new(start: u64, end: u64, mut runs: Vec<Run>, tail_entries_max: usize) -> Self {
        // The widest first: what it contains was merged into it.
        runs.sort_by_key(|run| (run.from, std::cmp::Reverse(run.to)));
        let mut index = Self {
            parts: VecDeque::new(),
            tail: Vec::new(),
            tail_from: end,
            covered: end,
            staged: VecDeque::new(),
            lost: None,
            garbage: Vec::new(),
            tail_entries_max: tail_entries_max.max(1),
        };
        let mut at = start;
        for run in runs {
            let useful = run.to > at && run.to <= end && (run.from >= at || at == start);
            if !useful {
                index.garbage.push(run.id);
                continue;
            }
            index.push_gap(at, run.from);
            at = run.to;
            index.parts.push_back(Part::Run(Rc::new(run)));
        }
        index.push_gap(at, end);
        index
    }

    /// Adds a gap behind all parts.
    fn push_gap(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        match self.parts.back_mut() {
            Some(Part::Gap { to: end, .. }) if *end == from => *end = to,
            _ => self.parts.push_back(Part::Gap { from, to }),
        }
    }

    /// A key of a message that is appended and not durable yet; positions never go back.
    pub fn stage(&mut self, entry: Entry) {
        if self.staged.len() >= KEY_ENTRIES_STAGED_MAX {
            let first = self.lost.map_or(entry.position, |(first, _)| first);
            self.lost = Some((first, entry.position));
            return;
        }
        self.staged.push_back(entry);
    }

    /// Nothing that is staged will become durable.
    pub fn forget_staged(&mut self) {
        self.staged.clear();
        self.lost = None;
    }

    /// Everything before `end` is durable, and `end` is where a batch begins. Returns whether a part was sealed.
    pub fn commit(&mut self, end: u64) -> bool {
        let whole = self.lost.is_none_or(|(first, _)| first >= end);
        if !whole {
            self.seal_tail();
        }
        while self
            .staged
            .front()
            .is_some_and(|entry| entry.position < end)
        {
            let entry = self.staged.pop_front();
            if whole {
                self.tail.extend(entry);
            }
        }
        if !whole {
            self.push_gap(self.covered, end);
            self.tail_from = end;
            self.lost = self
                .lost
                .filter(|(_, last)| *last >= end)
                .map(|(_, last)| (end, last));
        }
        self.covered = end;
        let full =
            self.tail.len() >= self.tail_entries_max || end - self.tail_from >= TAIL_LOG_BYTES;
        if full {
            self.seal_tail();
        }
        full || !whole
    }

    fn seal_tail(&mut self) {
        if self.tail_from == self.covered {
            return;
        }
        let sealed = Sealed {
            from: self.tail_from,
            to: self.covered,
            entries: Rc::new(std::mem::take(&mut self.tail)),
        };
        self.tail_from = self.covered;
        self.parts.push_back(Part::Sealed(sealed));
        let waiting = |part: &Part| matches!(part, Part::Sealed(_));
        if self.parts.iter().filter(|part| waiting(part)).count() > KEY_PARTS_SEALED_MAX
            && let Some(at) = self.parts.iter().position(waiting)
        {
            self.make_gap(at);
        }
    }

    /// Before a stop: seals the tail if it is worth a file.
    pub fn seal_for_stop(&mut self) {
        if !self.tail.is_empty() || self.covered - self.tail_from >= STOP_LOG_BYTES {
            self.seal_tail();
        }
    }

    /// Forgets the part at `at`: the log has what it said.
    fn make_gap(&mut self, at: usize) {
        let gap = match &self.parts[at] {
            Part::Run(run) => {
                self.garbage.push(run.id);
                (run.from, run.to)
            }
            Part::Sealed(sealed) => (sealed.from, sealed.to),
            Part::Gap { .. } => return,
        };
        self.parts[at] = Part::Gap {
            from: gap.0,
            to: gap.1,
        };
        self.join_gaps();
    }

    fn join_gaps(&mut self) {
        let parts = std::mem::take(&mut self.parts);
        for part in parts {
            match part {
                Part::Gap { from, to } => self.push_gap(from, to),
                other => self.parts.push_back(other),
            }
        }
    }

    /// The log begins at `start` now.
    pub fn trim(&mut self, start: u64) {
        while let Some(part) = self.parts.front() {
            if part.to() > start {
                break;
            }
            if let Part::Run(run) = part {
                self.garbage.push(run.id);
            }
            self.parts.pop_front();
        }
        if let Some(Part::Gap { from, .. }) = self.parts.front_mut() {
            *from = start.max(*from);
        }
    }

    /// The oldest part that waits for its file.
    pub fn first_sealed(&self) -> Option<Sealed> {
        self.parts.iter().find_map(|part| match part {
            Part::Sealed(sealed) => Some(sealed.clone()),
            _ => None,
        })
    }

    /// The sealed part is in a file now, unless it was dropped meanwhile.
    pub fn on_written(&mut self, sealed: &Sealed, run: Rc<Run>) {
        let place = self.parts.iter_mut().find(
            |part| matches!(part, Part::Sealed(one) if Rc::ptr_eq(&one.entries, &sealed.entries)),
        );
        match place {
            Some(part) => *part = Part::Run(run),
            None => self.garbage.push(run.id),
        }
    }

    /// The newest gap: what is asked for is young more often than not.
    pub fn last_gap(&self) -> Option<(u64, u64)> {
        self.parts.iter().rev().find_map(|part| match part {
            Part::Gap { from, to } => Some((*from, *to)),
            _ => None,
        })
    }

    /// Bytes of the log that are not in the index.
    pub fn gap_bytes(&self) -> u64 {
        self.parts
            .iter()
            .map(|part| match part {
                Part::Gap { from, to } => to - from,
                _ => 0,
            })
            .sum()
    }

    /// The front of the gap that began at `from` has been read, up to `to`; `None`: it cannot be read.
    pub fn on_folded(&mut self, from: u64, to: u64, entries: Option<Vec<Entry>>) {
        let Some(at) = self.parts.iter().position(
            |part| matches!(part, Part::Gap { from: begin, to: end } if *begin >= from && *begin < to && to <= *end),
        ) else {
            return;
        };
        let Part::Gap { from, to: end } = self.parts[at] else {
            return;
        };
        if to < end {
            self.parts[at] = Part::Gap { from: to, to: end };
        } else {
            self.parts.remove(at);
        }
        // What cannot be read is left out: no part stands for it, and none is looked for.
        if let Some(entries) = entries {
            let sealed = Sealed {
                from,
                to,
                entries: Rc::new(entries),
            };
            self.parts.insert(at, Part::Sealed(sealed));
        }
    }

    /// How often about as many entries as it has have been merged.
    pub fn level(&self, run: &Run) -> u32 {
        let mut units = run.entries / self.tail_entries_max as u64;
        let mut level = 0;
        while units >= MERGE_RUNS as u64 {
            units /= MERGE_RUNS as u64;
            level += 1;
        }
        level
    }

    /// Neighbours of one level, the newest such group; empty if there is none.
    pub fn mergeable(&self) -> Vec<Rc<Run>> {
        let mut group: Vec<Rc<Run>> = Vec::new();
        for part in self.parts.iter().rev() {
            let Part::Run(run) = part else {
                group.clear();
                continue;
            };
            let level = self.level(run);
            let fits = group
                .last()
                .is_none_or(|newer: &Rc<Run>| self.level(newer) == level && newer.from == run.to);
            if !fits {
                group.clear();
            }
            if level >= LEVEL_MAX {
                continue;
            }
            group.push(run.clone());
            if group.len() == MERGE_RUNS {
                group.reverse();
                return group;
            }
        }
        Vec::new()
    }

    /// The runs are one now, unless one of them is gone.
    pub fn on_merged(&mut self, runs: &[Rc<Run>], merged: Rc<Run>) {
        let at = self
            .parts
            .iter()
            .position(|part| matches!(part, Part::Run(run) if run.id == runs[0].id));
        let all_there = at.is_some_and(|at| {
            runs.iter().enumerate().all(
                |(n, run)| matches!(self.parts.get(at + n), Some(Part::Run(one)) if one.id == run.id),
            )
        });
        let Some(at) = at.filter(|_| all_there) else {
            self.garbage.push(merged.id);
            return;
        };
        self.parts.drain(at..at + runs.len());
        self.parts.insert(at, Part::Run(merged));
        self.garbage.extend(runs.iter().map(|run| run.id));
    }

    /// A run's file is damaged: what it stood for is read from the log again. False if it was replaced meanwhile.
    pub fn on_damaged(&mut self, id: u64) -> bool {
        let at = self
            .parts
            .iter()
            .position(|part| matches!(part, Part::Run(run) if run.id == id));
        if let Some(at) = at {
            self.make_gap(at);
        }
        at.is_some()
    }

    /// Whether a run is part of the index.
    pub fn has(&self, id: u64) -> bool {
        self.parts
            .iter()
            .any(|part| matches!(part, Part::Run(run) if run.id == id))
    }

    /// Files that may be removed.
    pub fn take_garbage(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.garbage)
    }

    pub fn has_garbage(&self) -> bool {
        !self.garbage.is_empty()
    }

    /// Positions in the tail that are wanted, the newest first.
    pub fn in_tail(&self, wanted: impl Fn(&Entry) -> bool) -> impl Iterator<Item = u64> {
        self.tail
            .iter()
            .rev()
            .filter(move |entry| wanted(entry))
            .map(|entry| entry.position)
    }

    /// All parts before the tail, the newest first.
    pub fn newest_first(&self) -> Vec<Part> {
        self.parts.iter().rev().cloned().collect()
    }

    /// Runs, the newest first.
    pub fn runs(&self) -> impl DoubleEndedIterator<Item = &Rc<Run>> {
        self.parts.iter().rev().filter_map(|part| match part {
            Part::Run(run) => Some(run),
            _ => None,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry(position: u64) -> Entry {
        Entry {
            hash: position,
            position,
            seconds: 0,
        }
    }

    fn run(id: u64, from: u64, to: u64, entries: u64) -> Run {
        Run {
            id,
            from,
            to,
            entries,
            blocks: 1,
            filter_bytes: 64,
            first_seconds: 0,
            last_seconds: 0,
            fences_crc: 0,
            filter_crc: 0,
        }
    }

    /// Parts as text, the oldest first; they have to follow each other without a hole.
    fn shown(parts: &Parts) -> String {
        let mut text = String::new();
        for part in &parts.parts {
            text += &match part {
                Part::Run(run) => format!("run{} ", run.to),
                Part::Sealed(sealed) => format!("sealed{} ", sealed.to),
                Part::Gap { from, to } => format!("gap{from}-{to} "),
            };
        }
        text + &format!("tail{}", parts.tail_from)
    }

    #[test]
    fn what_no_file_stands_for_is_a_gap_and_what_was_merged_is_garbage() {
        let runs = vec![
            run(1, 0, 20, 5),
            run(2, 20, 30, 5),
            run(3, 20, 40, 5),
            run(4, 60, 80, 5),
            run(5, 90, 120, 5),
        ];
        let mut parts = Parts::new(10, 100, runs, 4);
        assert_eq!(
            shown(&parts),
            "run20 run40 gap40-60 run80 gap80-100 tail100"
        );
        assert_eq!(parts.take_garbage(), [2, 5]);
        assert!(parts.on_damaged(4) && !parts.on_damaged(4));
        assert_eq!(shown(&parts), "run20 run40 gap40-100 tail100");
        parts.trim(50);
        assert_eq!(shown(&parts), "gap50-100 tail100");
        assert_eq!(parts.take_garbage(), [4, 1, 3]);
    }

    #[test]
    fn only_durable_entries_are_shown_and_a_full_tail_is_sealed() {
        let mut parts = Parts::new(0, 0, Vec::new(), 2);
        parts.stage(entry(5));
        parts.stage(entry(15));
        parts.stage(entry(25));
        assert!(!parts.commit(10));
        assert_eq!(parts.in_tail(|_| true).collect::<Vec<_>>(), [5]);
        assert!(parts.commit(20));
        assert_eq!(shown(&parts), "sealed20 tail20");
        parts.forget_staged();
        parts.commit(30);
        assert_eq!(parts.in_tail(|_| true).count(), 0);
    }

    #[test]
    fn what_finds_no_room_in_memory_is_read_from_the_log_later() {
        let mut parts = Parts::new(0, 0, Vec::new(), usize::MAX);
        parts.stage(entry(5));
        parts.commit(10);
        let room = KEY_ENTRIES_STAGED_MAX as u64;
        (0..room).for_each(|n| parts.stage(entry(20 + n / room)));
        parts.stage(entry(30));
        parts.stage(entry(50));
        assert!(parts.commit(40));
        assert_eq!(shown(&parts), "sealed10 gap10-40 tail40");
        assert!(parts.commit(60), "the last one that was lost lay there");
        assert_eq!(shown(&parts), "sealed10 gap10-60 tail60");
        parts.stage(entry(65));
        assert!(!parts.commit(70));
        assert_eq!(parts.in_tail(|_| true).collect::<Vec<_>>(), [65]);
    }

    #[test]
    fn the_oldest_part_in_memory_gives_way_when_the_disk_does_not_keep_up() {
        let mut parts = Parts::new(0, 0, Vec::new(), 1);
        for n in 0..KEY_PARTS_SEALED_MAX as u64 + 2 {
            parts.stage(entry(n));
            parts.commit(n + 1);
        }
        assert_eq!(parts.last_gap(), Some((0, 2)));
        assert_eq!(parts.first_sealed().unwrap().from, 2);
        let sealed = parts.first_sealed().unwrap();
        parts.on_written(&sealed, Rc::new(run(9, 2, 3, 1)));
        assert!(shown(&parts).starts_with("gap0-2 run3 sealed4"));
        parts.on_folded(0, 1, Some(vec![entry(0)]));
        assert!(shown(&parts).starts_with("sealed1 gap1-2 run3"));
        parts.on_folded(1, 2, None);
        assert!(shown(&parts).starts_with("sealed1 run3"));
    }

    #[test]
    fn neighbours_of_one_size_are_merged_unless_one_of_them_went_away() {
        let runs = |count: u64| -> Vec<Run> {
            (0..count)
                .map(|n| run(n + 1, n * 10, n * 10 + 10, 3))
                .collect()
        };
        let all = MERGE_RUNS as u64;
        let end = 10 * all;
        assert!(
            Parts::new(0, end - 10, runs(all - 1), 3)
                .mergeable()
                .is_empty()
        );
        let mut parts = Parts::new(0, end, runs(all), 3);
        let group = parts.mergeable();
        assert_eq!(group.len(), MERGE_RUNS);
        assert_eq!((group[0].id, group[MERGE_RUNS - 1].id), (1, all));
        let merged = Rc::new(run(all + 1, 0, end, 3 * all));
        parts.on_merged(&group, merged.clone());
        assert_eq!(shown(&parts), format!("run{end} tail{end}"));
        assert_eq!(parts.take_garbage().len(), MERGE_RUNS);
        let mut parts = Parts::new(0, end, runs(all), 3);
        parts.on_damaged(4);
        assert!(parts.mergeable().is_empty(), "a gap lies between");
        parts.on_merged(&group, merged);
        assert_eq!(parts.take_garbage(), [4, all + 1]);
        let mut large = runs(all);
        large[2].entries = 3 * all;
        assert!(Parts::new(0, end, large, 3).mergeable().is_empty());
    }
}
