//! Faults that the simulation has to find. Here, because every layer may have one. Without the feature `planted-bugs` this is a constant `false`.

/// A planted fault, for tests/sim only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedBug {
    /// Segments are written without a flush although the mode is SYNC_FLUSH.
    FlushSkipped,
    /// Waiting sends are acknowledged when their write starts.
    AckBeforeFlush,
    /// Recovery does not compare a batch's CRC.
    BatchCrcIgnored,
    /// Recovery takes the records at the tail of a batch that is cut short.
    TruncatedTailAccepted,
    /// A replica acknowledges what it has received before that is written.
    ReplicaAcksBeforeFlush,
    /// A master acknowledges sends as soon as they are durable here, whatever its replicas have.
    AckBeforeReplica,
    /// A master acknowledges although its lease is over.
    ForgetToFence,
    /// A log that returns with more than its master has forgets that, and its disk does not.
    TruncateInMemory,
    /// The controller elects brokers that are not in the in-sync set.
    ElectOutside,
    /// A broker whose log is damaged, or may be, stands for election as if it were not.
    StandThoughDamaged,
    /// A repair writes whole sectors and does not keep what its neighbours have in the first and the last one.
    RepairOverNeighbours,
}

#[cfg(feature = "planted-bugs")]
mod switch {
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<super::PlantedBug>> = const { Cell::new(None) };
    }

    /// Plants a fault for this thread, or takes it out.
    pub fn plant(bug: Option<super::PlantedBug>) {
        PLANTED.set(bug);
    }

    /// Whether this fault is planted.
    pub fn planted(bug: super::PlantedBug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "planted-bugs")]
pub use switch::{plant, planted};

/// Whether this fault is planted: never, in a build for users.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn planted(_bug: PlantedBug) -> bool {
    false
}
