//! Which answers may leave: an append is answered at min(durable here, replicated as configured). Pure.
//!
//! The log releases no further than replication allows, so one position says both. What is released without having as many
//! copies as were asked for, because slaves are missing, leaves as [`Free::is_confirmed`] `false`; so does what has waited for
//! them too long. Time is coarse: the gate's clock is set by whoever looks after overdue answers.

use std::collections::VecDeque;

use crate::base::offset::Position;

/// Answers of one log that wait, in the order of their positions.
#[derive(Debug)]
pub struct AckGate<T> {
    durable: Position,
    /// Everything before this has as many copies as were asked for.
    replicated: Position,
    now_ms: u64,
    waiting: VecDeque<Waiting<T>>,
}

#[derive(Debug)]
struct Waiting<T> {
    position: Position,
    since_ms: u64,
    answer: T,
}

/// An answer that may leave.
#[derive(Debug, PartialEq, Eq)]
pub struct Free<T> {
    pub answer: T,
    /// It has as many copies as were asked for.
    pub is_confirmed: bool,
}

impl<T> AckGate<T> {
    /// A gate of a log that is durable up to `durable`. Without replicas nothing waits for them.
    pub fn new(durable: Position) -> Self {
        Self {
            durable,
            replicated: Position(u64::MAX),
            now_ms: 0,
            waiting: VecDeque::new(),
        }
    }

    /// An answer for the record at `position`: it waits until the log is safe beyond that.
    pub fn wait(&mut self, position: Position, answer: T) {
        assert!(
            self.waiting
                .back()
                .is_none_or(|last| last.position <= position),
            "records are appended in the order of their positions"
        );
        self.waiting.push_back(Waiting {
            position,
            since_ms: self.now_ms,
            answer,
        });
    }

    /// An answer for a record at or before `position` whose own position is not known: it waits with the last one, at least
    /// until the log is safe beyond `position`.
    pub fn wait_for_last(&mut self, position: Position, answer: T) {
        let last = self.waiting.back().map(|last| last.position);
        self.wait(last.map_or(position, |last| last.max(position)), answer);
    }

    /// Everything before `end` has as many copies as were asked for.
    pub fn on_replicated(&mut self, end: Position) {
        self.replicated = end;
    }

    /// The log is durable up to `end`, and may be shown up to there.
    pub fn on_durable(&mut self, end: Position) {
        assert!(end >= self.durable, "what is durable stays so");
        self.durable = end;
    }

    /// The next answer that may leave.
    pub fn next_free(&mut self) -> Option<Free<T>> {
        let front = self.waiting.front()?;
        if front.position >= self.durable {
            return None;
        }
        let is_confirmed = front.position < self.replicated;
        let answer = self.waiting.pop_front()?.answer;
        Some(Free {
            answer,
            is_confirmed,
        })
    }

    /// Sets the gate's clock: answers that come from now on wait since then.
    pub fn set_now_ms(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// The next answer that has waited for `limit_ms` although its bytes are durable here, which they are before `written`.
    pub fn next_overdue(&mut self, written: Position, limit_ms: u64) -> Option<T> {
        let front = self.waiting.front()?;
        let is_overdue =
            front.position < written && self.now_ms.saturating_sub(front.since_ms) >= limit_ms;
        if !is_overdue {
            return None;
        }
        self.waiting.pop_front().map(|waiting| waiting.answer)
    }

    /// All answers that wait: the log will never be safe.
    pub fn take_all(&mut self) -> Vec<T> {
        self.waiting
            .drain(..)
            .map(|waiting| waiting.answer)
            .collect()
    }

    /// How many answers wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confirmed(answer: char) -> Option<Free<char>> {
        Some(Free {
            answer,
            is_confirmed: true,
        })
    }

    #[test]
    fn answers_leave_in_order_and_never_before_their_bytes_are_safe() {
        let mut gate = AckGate::new(Position(100));
        gate.wait(Position(100), 'a');
        gate.wait(Position(150), 'b');
        gate.wait(Position(200), 'c');
        assert_eq!(
            gate.next_free(),
            None,
            "durable up to 100 does not contain the byte at 100"
        );
        gate.on_durable(Position(200));
        assert_eq!(gate.next_free(), confirmed('a'));
        assert_eq!(gate.next_free(), confirmed('b'));
        assert_eq!(gate.next_free(), None);
        assert_eq!(gate.waiting(), 1);
    }

    #[test]
    fn what_is_released_without_enough_copies_leaves_as_such() {
        let mut gate = AckGate::new(Position(100));
        gate.on_replicated(Position(150));
        gate.wait(Position(100), 'a');
        gate.wait(Position(150), 'b');
        gate.on_durable(Position(300));
        assert_eq!(gate.next_free(), confirmed('a'));
        let alone = Free {
            answer: 'b',
            is_confirmed: false,
        };
        assert_eq!(gate.next_free(), Some(alone));
    }

    #[test]
    fn an_answer_is_overdue_when_only_the_slaves_are_missing() {
        let mut gate = AckGate::new(Position(100));
        gate.set_now_ms(1_000);
        gate.wait(Position(100), 'a');
        gate.wait(Position(200), 'b');
        gate.set_now_ms(3_999);
        assert_eq!(gate.next_overdue(Position(200), 3_000), None);
        gate.set_now_ms(4_000);
        assert_eq!(gate.next_overdue(Position(200), 3_000), Some('a'));
        assert_eq!(
            gate.next_overdue(Position(200), 3_000),
            None,
            "the disk is late here, not the slave"
        );
    }
}
