//! Half messages in the log: a transaction begins, ends, or is carried out of an old segment.
//!
//! An end and what it commits are one batch: after a crash both are there or none. Whether a transaction is open is asked
//! in the same turn in which its end is appended, so it ends once, whoever asks.

use smallvec::SmallVec;

use crate::base::limits::TRANSACTIONS_OPEN_MAX;
use crate::base::offset::{PhysicalOffset, Position};
use crate::io::env::Env;
use crate::store::commit_log::{CommitLog, FIRING_BYTES, State, opening, record_fields};
use crate::store::control::Control;
use crate::store::delayed;
use crate::store::half::{self, Head};
use crate::store::tables::Effect;
use crate::store::tables::halves::{Half, HalfState, Outcome};
use crate::store::types::{Appended, Copies, NewMessage, Refusal};

/// What a message may grow by when it is committed for later: the times of its delay.
const COMMIT_BYTES: usize = 512;

/// What became of an attempt to end a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It ends like that when the log is durable beyond the position.
    Appended(Outcome, Position),
    /// Its end was appended before, at that position, and is not durable yet.
    Ending(Outcome, Position),
    Ended(Outcome),
    /// Never heard of, or ended long ago.
    Unknown,
}

impl<E: Env> CommitLog<E> {
    /// Begins a transaction: appends its half message, which no consumer sees. The physical offset is that of the message
    /// within the half record, the queue offset the half's origin. As [`CommitLog::append`].
    pub fn append_half(
        &self,
        message: &NewMessage,
        check_at_ms: u64,
    ) -> Result<(Appended, Position), Refusal> {
        let mut state = self.state.borrow_mut();
        if let Some(refusal) = self.refuse_new(&state) {
            return Err(refusal);
        }
        let open = self.tables.borrow().halves.len();
        if open >= TRANSACTIONS_OPEN_MAX {
            return Err(Refusal::TooManyTransactions {
                log: self.options.log,
                open,
                limit: TRANSACTIONS_OPEN_MAX,
            });
        }
        let store_timestamp = self.env.now_ms();
        let opened = opening(&state, &self.tables.borrow(), message.queue, &message.topic);
        let total = half::RECORD_AT
            + self.record_bytes(message)
            + opened.as_ref().map_or(0, |(record, _)| record.len());
        // What is taken now has to fit when it is committed, and again when it is due.
        self.check_size(total + COMMIT_BYTES + FIRING_BYTES)?;
        self.reserve(&mut state, total, store_timestamp)?;
        if let Some((record, control)) = opened {
            let at = state.put(&record);
            state.effects.push_back((at, Effect::Control(control)));
        }
        let (at, origin) =
            self.put_half(&mut state, message, None, check_at_ms, 0, store_timestamp);
        drop(state);
        self.work.notify();
        self.wake_space();
        let appended = Appended {
            queue_offset: origin as i64,
            physical_offsets: SmallVec::from_iter([PhysicalOffset::new(
                self.options.log,
                Position(origin),
            )]),
            store_timestamp: store_timestamp as i64,
            copies: Copies::Enough,
        };
        Ok((appended, Position(at)))
    }

    /// Ends a transaction, in one batch with the message that it commits: for its queue now, or for a time in
    /// milliseconds. The topic is open in this log.
    pub fn end_half(
        &self,
        origin: u64,
        outcome: Outcome,
        committed: Option<(&NewMessage, Option<u64>)>,
    ) -> Result<Ending, Refusal> {
        if let Some(ending) = self.ending_of(origin) {
            return Ok(ending);
        }
        let end = Control::HalvesEnded {
            halves: [(origin, outcome)].into(),
        };
        let (message, delayed) = match committed {
            Some((message, None)) => (Some(message.clone()), None),
            Some((message, Some(due_ms))) => (None, Some((message.clone(), due_ms))),
            None => (None, None),
        };
        let position = self.append_batch(message.as_slice(), delayed.as_slice(), end)?;
        self.tables
            .borrow_mut()
            .halves
            .set_ending(origin, outcome, position.0);
        Ok(Ending::Appended(outcome, position))
    }

    /// How a transaction ends or ended; nothing while it is open.
    pub fn ending_of(&self, origin: u64) -> Option<Ending> {
        match self.tables.borrow().halves.state(origin) {
            HalfState::Open(_) => None,
            HalfState::Ending(outcome, at) => Some(Ending::Ending(outcome, Position(at))),
            HalfState::Ended(outcome) => Some(Ending::Ended(outcome)),
            HalfState::Unknown => Some(Ending::Unknown),
        }
    }

    /// Stores open halves again, in one batch; those that have ended meanwhile stay where they are. Gives the position that
    /// has to be durable, if there was anything to store.
    pub fn carry_halves(&self, halves: &[(u64, NewMessage)]) -> Result<Option<Position>, Refusal> {
        let mut state = self.state.borrow_mut();
        if let Some(refusal) = self.refuse(&state) {
            return Err(refusal);
        }
        let tables = self.tables.borrow();
        let open: Vec<(u64, &NewMessage, Half)> = halves
            .iter()
            .filter_map(|(origin, message)| Some((*origin, message, tables.halves.get(*origin)?)))
            .collect();
        drop(tables);
        if open.is_empty() {
            return Ok(None);
        }
        let store_timestamp = self.env.now_ms();
        let bytes = |(_, message, _): &(u64, &NewMessage, Half)| {
            half::RECORD_AT + self.record_bytes(message)
        };
        let total = open.iter().map(bytes).sum();
        self.reserve(&mut state, total, store_timestamp)?;
        let mut last = 0;
        for (origin, message, half) in open {
            let origin = Some(origin);
            (last, _) = self.put_half(
                &mut state,
                message,
                origin,
                half.check_at_ms,
                half.checks,
                store_timestamp,
            );
        }
        drop(state);
        self.work.notify();
        self.wake_space();
        Ok(Some(Position(last)))
    }

    /// Puts a half into the open batch, which has room for it: the position of its record, and its origin, which is its own
    /// place if it has none yet.
    fn put_half(
        &self,
        state: &mut State,
        message: &NewMessage,
        origin: Option<u64>,
        check_at_ms: u64,
        checks: u32,
        store_timestamp: u64,
    ) -> (u64, u64) {
        let bytes = half::RECORD_AT + self.record_bytes(message);
        let topic_id = message.queue.topic_id;
        let (at, memory) = state.take(bytes);
        let inner = Position(at).advance(half::RECORD_AT as u64);
        let origin = origin.unwrap_or(inner.0);
        let head = Head {
            origin,
            check_at_ms,
            checks,
            topic_id,
        };
        let memory = half::write_head(memory, head);
        record_fields(
            message,
            origin as i64,
            PhysicalOffset::new(self.options.log, inner).0,
            store_timestamp as i64,
            self.options.store_host,
            |fields| fields.encode_into(memory),
        );
        let half = Half {
            position: at,
            bytes: bytes as u32,
            topic_id,
            check_at_ms,
            checks,
        };
        state.effects.push_back((at, Effect::Half { origin, half }));
        (at, origin)
    }
}

const _: () = assert!(delayed::RECORD_AT < COMMIT_BYTES);
