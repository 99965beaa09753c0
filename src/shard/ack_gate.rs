//! Which answers may leave: an append is answered at min(durable here, replicated as configured). Pure.

use std::collections::VecDeque;

use crate::base::offset::Position;

/// Answers of one log that wait, in the order of their positions.
#[derive(Debug)]
pub struct AckGate<T> {
    durable: Position,
    replicated: Position,
    waiting: VecDeque<(Position, T)>,
}

impl<T> AckGate<T> {
    /// A gate of a log that is durable up to `durable`. Without replicas nothing waits for them.
    pub fn new(durable: Position) -> Self {
        Self {
            durable,
            replicated: Position(u64::MAX),
            waiting: VecDeque::new(),
        }
    }

    /// An answer for the record at `position`: it waits until the log is safe beyond that.
    pub fn wait(&mut self, position: Position, answer: T) {
        assert!(
            self.waiting
                .back()
                .is_none_or(|(last, _)| *last <= position),
            "records are appended in the order of their positions"
        );
        self.waiting.push_back((position, answer));
    }

    /// An answer that tells of the record at `position`, which others may wait for already: behind all of them.
    pub fn wait_behind(&mut self, position: Position, answer: T) {
        let last = self.waiting.back().map_or(position, |(last, _)| *last);
        self.waiting.push_back((last.max(position), answer));
    }

    /// The log is durable up to `end`.
    pub fn on_durable(&mut self, end: Position) {
        assert!(end >= self.durable, "what is durable stays so");
        self.durable = end;
    }

    /// The next answer that may leave.
    pub fn next_free(&mut self) -> Option<T> {
        let safe = self.durable.min(self.replicated);
        match self.waiting.front() {
            Some((position, _)) if *position < safe => {
                self.waiting.pop_front().map(|(_, answer)| answer)
            }
            _ => None,
        }
    }

    /// All answers that wait: the log will never be safe.
    pub fn take_all(&mut self) -> Vec<T> {
        self.waiting.drain(..).map(|(_, answer)| answer).collect()
    }

    /// How many answers wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(gate.next_free(), Some('a'));
        assert_eq!(gate.next_free(), Some('b'));
        assert_eq!(gate.next_free(), None);
        gate.replicated = Position(180);
        gate.on_durable(Position(300));
        assert_eq!(gate.next_free(), None, "not replicated yet");
        gate.replicated = Position(250);
        assert_eq!(gate.next_free(), Some('c'));
        assert_eq!(gate.waiting(), 0);
    }
}
