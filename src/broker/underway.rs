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
        Ticket {
            underway: self.clone(),
            bytes,
        }
    }

    /// Below both limits.
    pub fn has_room(&self) -> bool {
        self.sends.get() < CORE_SENDS_MAX && self.bytes.get() < CORE_SEND_BYTES_MAX
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let underway = &self.underway;
        underway.sends.set(underway.sends.get() - 1);
        underway.bytes.set(underway.bytes.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_has_room_below_both_limits() {
        for (bytes, full) in [(0, CORE_SENDS_MAX), (1 << 20, CORE_SEND_BYTES_MAX >> 20)] {
            let underway = Rc::new(Underway::default());
            let mut tickets = Vec::new();
            while underway.has_room() {
                tickets.push(underway.begin(bytes));
            }
            assert_eq!(tickets.len(), full);
            tickets.pop();
            assert!(underway.has_room());
            drop(tickets);
            assert_eq!((underway.sends.get(), underway.bytes.get()), (0, 0));
        }
    }
}
