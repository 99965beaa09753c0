//! Sends of one core that have no answer yet: how many, and how large.
//!
//! Pure. Over the limit the core's connections are not read ([`crate::server::Handler::has_room`]), so that more load than
//! the disk can take waits in the sockets of its senders and costs the broker nothing. Before a refusal became the answer:
//! at twice the peak a core refused 280,000 sends a second and took 1,100.

use std::cell::Cell;
use std::rc::Rc;

use crate::base::limits::{CORE_SEND_BYTES_MAX, CORE_SENDS_MAX};

/// See the module's page.
#[derive(Default)]
pub struct Underway {
    sends: Cell<usize>,
    bytes: Cell<usize>,
    is_full: Cell<bool>,
}

/// A send that has no answer yet, until it is dropped.
pub struct Ticket {
    underway: Rc<Underway>,
    bytes: usize,
}

impl Underway {
    pub fn begin(self: &Rc<Self>, bytes: usize) -> Ticket {
        self.sends.set(self.sends.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        if self.sends.get() >= CORE_SENDS_MAX || self.bytes.get() >= CORE_SEND_BYTES_MAX {
            self.is_full.set(true);
        }
        Ticket {
            underway: self.clone(),
            bytes,
        }
    }

    /// Not over a limit, or below half of both since it was.
    pub fn has_room(&self) -> bool {
        !self.is_full.get()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let underway = &self.underway;
        underway.sends.set(underway.sends.get() - 1);
        underway.bytes.set(underway.bytes.get() - self.bytes);
        if underway.sends.get() <= CORE_SENDS_MAX / 2
            && underway.bytes.get() <= CORE_SEND_BYTES_MAX / 2
        {
            underway.is_full.set(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_without_room_has_some_when_half_of_it_is_done() {
        for bytes in [0, 1 << 20] {
            let underway = Rc::new(Underway::default());
            let mut tickets = Vec::new();
            while underway.has_room() {
                tickets.push(underway.begin(bytes));
            }
            let full = if bytes == 0 {
                CORE_SENDS_MAX
            } else {
                CORE_SEND_BYTES_MAX >> 20
            };
            assert_eq!(tickets.len(), full);
            while !underway.has_room() {
                tickets.pop();
            }
            assert_eq!(tickets.len(), full / 2);
        }
    }
}
