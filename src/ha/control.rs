//! What the controller has said to this broker, for all of its cores and all its roles: epoch, lease, in-sync set.
//!
//! One [`Control`] lives as long as the process. The agent (`app/controlled.rs`) hears the controller and writes here; the cores
//! look: may they acknowledge, for whom do they wait; and they report which slaves have everything. Pure but for a mutex and the
//! clock, which is passed in.
//!
//! **Whom a master waits for** is the in-sync set that the controller has committed, and whoever it wants to add: a slave is
//! waited for before the controller is asked to add it, and until the controller has agreed to remove it. So the set that the
//! controller would elect from never has a member that lacks something acknowledged (RocketMQ #5663). A proposal without an
//! answer may still be agreed on later, so its members are waited for until another change of the set has been agreed on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::bell::Bell;
use crate::base::doubt::Doubt;
use crate::base::offset::LogId;
use crate::base::planted::{PlantedBug, planted};

/// A write or a flush failed.
const FAILED_RUNNING: u32 = 1;
/// Something acknowledged could not be read when the log was opened.
const FAILED_AT_OPENING: u32 = 2;

/// Nanoseconds of a clock that never goes back and goes on while the machine sleeps.
pub type Clock = Box<dyn Fn() -> u64 + Send + Sync>;

/// A slave of one log, as the core of that log sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Follower {
    /// It is connected, near, and gets on: see `replica_window.rs`.
    pub is_in_sync: bool,
    /// It is waited for, and it has everything that was ever confirmed.
    pub has_all: bool,
}

/// What one core says of one of its logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogReport {
    /// The waited-for set that it knows.
    pub version: u64,
    pub followers: BTreeMap<u64, Follower>,
}

#[derive(Debug, Default)]
struct Sets {
    /// As the controller has committed it, this master included.
    committed: BTreeSet<u64>,
    committed_epoch: u32,
    /// Proposed and perhaps agreed on: members that are not in `committed`.
    pending: BTreeSet<u64>,
    reports: BTreeMap<LogId, LogReport>,
    logs: usize,
}

/// See the module's page.
pub struct Control {
    clock: Clock,
    /// This broker's own id, as the controller gave it.
    id: AtomicU64,
    /// The greatest epoch of a master that was heard of.
    epoch: AtomicU32,
    /// Epoch that this broker is the master of, or 0.
    master_epoch: AtomicU32,
    /// The last epoch that the logs were opened in as a master, whatever became of it.
    begun_epoch: AtomicU32,
    lease_until_ns: AtomicU64,
    /// Epoch of the last batch and end of each log: whoever has most is elected.
    logs: Mutex<BTreeMap<LogId, (u32, u64)>>,
    /// What each log may lack of what was acknowledged.
    doubts: Mutex<BTreeMap<LogId, Doubt>>,
    /// Epochs up to this are durably known to have been heard of.
    saved_epoch: AtomicU32,
    /// Counts changes of the set that is waited for.
    version: AtomicU64,
    /// A log has to be cut before it can follow, which takes a new opening.
    wants_restart: AtomicBool,
    /// A log takes no writes any more: [`FAILED_RUNNING`], [`FAILED_AT_OPENING`] or both.
    failure: AtomicU32,
    /// This broker has resigned for it.
    has_given_up: AtomicBool,
    sets: Mutex<Sets>,
    bell: Bell,
}

/// What the cores of a master need of the sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    pub version: u64,
    /// Ids of the others that have to confirm.
    pub ids: BTreeSet<u64>,
    /// Members of the committed set, this master included.
    pub in_sync: u32,
}

/// What the master wants the controller to agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub set: BTreeSet<u64>,
    pub set_epoch: u32,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("id", &self.id())
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}

impl Control {
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            clock,
            id: AtomicU64::new(0),
            epoch: AtomicU32::new(0),
            master_epoch: AtomicU32::new(0),
            begun_epoch: AtomicU32::new(0),
            lease_until_ns: AtomicU64::new(0),
            logs: Mutex::default(),
            doubts: Mutex::default(),
            saved_epoch: AtomicU32::new(0),
            version: AtomicU64::new(1),
            wants_restart: AtomicBool::new(false),
            failure: AtomicU32::new(0),
            has_given_up: AtomicBool::new(false),
            sets: Mutex::default(),
            bell: Bell::default(),
        })
    }

    fn sets(&self) -> MutexGuard<'_, Sets> {
        // What it guards is whole between any two statements.
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings when something has changed that the agent, or whoever opens the logs, acts upon.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    pub fn now_ns(&self) -> u64 {
        (self.clock)()
    }

    pub fn id(&self) -> u64 {
        self.id.load(Ordering::Acquire)
    }

    pub fn set_id(&self, id: u64) {
        self.id.store(id, Ordering::Release);
    }

    /// The greatest epoch that was heard of: no master of a lower one is followed.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    pub fn hear_epoch(&self, epoch: u32) {
        if self.epoch.fetch_max(epoch, Ordering::AcqRel) < epoch {
            self.bell.ring();
        }
    }

    /// The store remembers that this epoch was heard of.
    pub fn note_saved_epoch(&self, epoch: u32) {
        if self.saved_epoch.fetch_max(epoch, Ordering::AcqRel) < epoch {
            self.bell.ring();
        }
    }

    pub fn saved_epoch(&self) -> u32 {
        self.saved_epoch.load(Ordering::Acquire)
    }

    /// What a log may lack of what was acknowledged.
    pub fn note_doubt(&self, log: LogId, doubt: Doubt) {
        if planted(PlantedBug::StandThoughDamaged) {
            return;
        }
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        if doubts.insert(log, doubt).unwrap_or_default() != doubt {
            drop(doubts);
            self.bell.ring();
        }
    }

    /// Whoever is elected has what counts. If a log cannot be read all the same, its core says so.
    pub fn forget_doubts(&self) {
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        doubts.clear();
    }

    /// The same of all logs: the worst.
    pub fn doubt(&self) -> Doubt {
        let doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        doubts.values().copied().max().unwrap_or_default()
    }

    /// Epoch that this broker is the master of; 0 if it is not, or was deposed.
    pub fn master_epoch(&self) -> u32 {
        match self.master_epoch.load(Ordering::Acquire) {
            own if own >= self.epoch() => own,
            _ => 0,
        }
    }

    pub fn begun_epoch(&self) -> u32 {
        self.begun_epoch.load(Ordering::Acquire)
    }

    /// The logs are about to be opened, as the master of this epoch or (0) as a slave.
    pub fn begin_life(
        &self,
        master_epoch: u32,
        logs: usize,
        committed: BTreeSet<u64>,
        committed_epoch: u32,
    ) {
        self.hear_epoch(master_epoch);
        let mut sets = self.sets();
        let before = std::mem::take(&mut *sets);
        *sets = Sets {
            committed,
            committed_epoch,
            logs,
            ..Sets::default()
        };
        // The same epoch may be opened twice, if the first opening failed. What was agreed on, or may be, since the word that
        // this one was made of, still holds.
        let is_same = master_epoch > 0 && self.master_epoch.load(Ordering::Acquire) == master_epoch;
        if is_same && before.committed_epoch >= committed_epoch {
            sets.committed = before.committed;
            sets.committed_epoch = before.committed_epoch;
            sets.pending = before.pending;
        }
        drop(sets);
        if master_epoch > 0 {
            self.begun_epoch.store(master_epoch, Ordering::Release);
            self.forget_doubts();
        } else if self.failure.load(Ordering::Acquire) == FAILED_AT_OPENING {
            // As a slave it fetches again what is damaged.
            self.failure.fetch_and(!FAILED_AT_OPENING, Ordering::AcqRel);
            self.has_given_up.store(false, Ordering::Release);
        }
        self.master_epoch.store(master_epoch, Ordering::Release);
        self.version.fetch_add(1, Ordering::AcqRel);
        self.bell.ring();
    }

    /// The controller has answered a heartbeat that was sent at `sent_ns`.
    pub fn renew(&self, epoch: u32, sent_ns: u64, lease_ms: u64) {
        if epoch == self.master_epoch.load(Ordering::Acquire) {
            let until_ns = sent_ns.saturating_add(lease_ms.saturating_mul(1_000_000));
            self.lease_until_ns.fetch_max(until_ns, Ordering::AcqRel);
        }
    }

    /// This broker acknowledges nothing any more until it is told that it is a master.
    pub fn resign(&self) {
        self.master_epoch.store(0, Ordering::Release);
        self.lease_until_ns.store(0, Ordering::Release);
        self.bell.ring();
    }

    /// A log of this broker takes no writes any more. `at_opening`: acknowledged bytes on its disk cannot be read.
    pub fn note_failure(&self, at_opening: bool) {
        let failure = if at_opening {
            FAILED_AT_OPENING
        } else {
            FAILED_RUNNING
        };
        self.failure.fetch_or(failure, Ordering::AcqRel);
        self.bell.ring();
    }

    /// Whether a write of a log failed since the process began.
    pub fn has_failed(&self) -> bool {
        self.failure.load(Ordering::Acquire) & FAILED_RUNNING > 0
    }

    /// A master whose log has failed resigns, so that another one is elected. If nobody else is in sync it goes on with the
    /// logs that are left, unless it began with less than it had acknowledged. True from then on.
    pub fn gives_up(&self) -> bool {
        if self.has_given_up.load(Ordering::Acquire) {
            return true;
        }
        let has_others = self.sets().committed.len() > 1;
        let gives_up = self.master_epoch() > 0
            && match self.failure.load(Ordering::Acquire) {
                0 => false,
                FAILED_RUNNING => has_others,
                _ => true,
            };
        if gives_up {
            tracing::error!("this broker resigns as the master: a log of it takes no writes");
            self.has_given_up.store(true, Ordering::Release);
            self.resign();
        }
        gives_up
    }

    /// Whether this broker may acknowledge now: it is the master, and no other one can have been elected yet.
    pub fn may_acknowledge(&self) -> bool {
        if planted(PlantedBug::ForgetToFence) {
            return true;
        }
        self.master_epoch() > 0 && self.now_ns() < self.lease_until_ns.load(Ordering::Acquire)
    }

    /// What the logs hold, for the election: the greatest epoch, and their ends added up.
    pub fn log_state(&self) -> (u32, u64) {
        let logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = logs.values().map(|(epoch, _)| *epoch).max();
        (epoch.unwrap_or(0), logs.values().map(|(_, end)| *end).sum())
    }

    /// Epoch of the last batch of a log, and its durable end.
    pub fn note_log(&self, log: LogId, epoch: u32, end: u64) {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        logs.insert(log, (epoch, end));
    }

    /// A log cannot go on as it is: it has to be opened again.
    pub fn ask_for_restart(&self) {
        self.wants_restart.store(true, Ordering::Release);
        self.bell.ring();
    }

    pub fn wants_restart(&self) -> bool {
        self.wants_restart.load(Ordering::Acquire)
    }

    /// The logs are about to be opened again.
    pub fn restarts(&self) {
        self.wants_restart.store(false, Ordering::Release);
    }

    /// Counts changes of [`Control::waits`].
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// For whom a master waits.
    pub fn waits(&self) -> Waits {
        let own = self.id();
        let sets = self.sets();
        let ids = sets.committed.union(&sets.pending).copied();
        Waits {
            version: self.version(),
            ids: ids.filter(|id| *id != own).collect(),
            in_sync: sets.committed.len() as u32,
        }
    }

    /// The set as the controller has committed it, with its epoch.
    pub fn committed(&self) -> (BTreeSet<u64>, u32) {
        let sets = self.sets();
        (sets.committed.clone(), sets.committed_epoch)
    }

    pub fn report(&self, log: LogId, report: LogReport) {
        let before = self.sets().reports.insert(log, report.clone());
        if before != Some(report) {
            self.bell.ring();
        }
    }

    /// What to propose to the controller now, if anything. A slave that could join is waited for from now on and proposed when
    /// every log has said that it has everything; one that is lost is proposed for removal and waited for until that is agreed.
    pub fn propose(&self) -> Option<Proposal> {
        let own = self.id();
        let version = self.version();
        let mut sets = self.sets();
        if sets.reports.len() < sets.logs || sets.committed.is_empty() {
            return None;
        }
        let every = |id: u64, what: fn(&Follower) -> bool| {
            let mut reports = sets.reports.values();
            reports.all(|report| report.followers.get(&id).is_some_and(what))
        };
        let known: BTreeSet<u64> = sets
            .reports
            .values()
            .flat_map(|report| report.followers.keys().copied())
            .collect();
        let near: BTreeSet<u64> = known
            .into_iter()
            .filter(|id| *id != own && every(*id, |follower| follower.is_in_sync))
            .collect();
        let is_known_everywhere = sets
            .reports
            .values()
            .all(|report| report.version == version);
        let joins: BTreeSet<u64> = near
            .iter()
            .copied()
            .filter(|id| !sets.committed.contains(id))
            .filter(|id| {
                is_known_everywhere
                    && sets.pending.contains(id)
                    && every(*id, |follower| follower.has_all)
            })
            .collect();
        let mut wanted: BTreeSet<u64> = sets
            .committed
            .iter()
            .copied()
            .filter(|id| *id == own || near.contains(id))
            .collect();
        wanted.extend(&joins);
        // From here on it is waited for; what it lacks now is what it has to get before it counts.
        let new: Vec<u64> = near
            .iter()
            .copied()
            .filter(|id| !sets.committed.contains(id) && !sets.pending.contains(id))
            .collect();
        if !new.is_empty() {
            sets.pending.extend(new);
            self.version.fetch_add(1, Ordering::AcqRel);
        }
        // Whoever was proposed and is lost holds up everybody until the set has moved on without it.
        let is_stuck = sets.pending.iter().any(|id| !near.contains(id));
        if wanted == sets.committed && !is_stuck {
            return None;
        }
        Some(Proposal {
            set: wanted,
            set_epoch: sets.committed_epoch,
        })
    }

    /// The controller says what the set is. An older word than the last one counts no more.
    pub fn on_committed(&self, set: BTreeSet<u64>, set_epoch: u32) {
        let mut sets = self.sets();
        if set_epoch <= sets.committed_epoch {
            return;
        }
        sets.committed = set;
        sets.committed_epoch = set_epoch;
        // A proposal of an earlier epoch of the set cannot be agreed on any more.
        sets.pending.clear();
        self.version.fetch_add(1, Ordering::AcqRel);
        drop(sets);
        self.bell.ring();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;

    fn control() -> (Arc<Control>, Arc<AtomicU64>) {
        let now = Arc::new(AtomicU64::new(0));
        let clock = now.clone();
        let control = Control::new(Box::new(move || clock.load(Ordering::Relaxed)));
        control.set_id(1);
        (control, now)
    }

    fn tell(control: &Control, log: LogId, followers: &[(u64, bool, bool)]) {
        let followers = followers
            .iter()
            .map(|&(id, is_in_sync, has_all)| {
                (
                    id,
                    Follower {
                        is_in_sync,
                        has_all,
                    },
                )
            })
            .collect();
        let version = control.version();
        control.report(log, LogReport { version, followers });
    }

    #[test]
    fn a_lease_counts_from_when_it_was_asked_for_and_for_its_epoch_only() {
        let (control, now) = control();
        control.begin_life(3, 1, [1].into(), 1);
        assert!(!control.may_acknowledge());
        control.renew(2, 0, 1_000);
        assert!(!control.may_acknowledge(), "a lease of another epoch");
        control.renew(3, 500_000_000, 1_000);
        assert!(control.may_acknowledge());
        now.store(1_499_999_999, Ordering::Relaxed);
        assert!(control.may_acknowledge());
        now.store(1_500_000_000, Ordering::Relaxed);
        assert!(!control.may_acknowledge());
        control.renew(3, 1_500_000_000, 1_000);
        assert!(control.may_acknowledge());
        control.hear_epoch(4);
        assert!(!control.may_acknowledge(), "another one is the master");
        assert_eq!(control.master_epoch(), 0);
    }

    #[test]
    fn a_master_whose_log_failed_resigns_if_another_one_can_take_its_place() {
        let (control, _) = control();
        control.begin_life(3, 1, [1].into(), 1);
        control.renew(3, 0, 1_000);
        control.note_failure(false);
        assert!(!control.gives_up(), "its other logs go on");
        assert!(control.may_acknowledge());
        control.on_committed([1, 2].into(), 2);
        assert!(control.gives_up());
        assert!(!control.may_acknowledge());
        assert_eq!(control.master_epoch(), 0);
    }

    #[test]
    fn a_master_that_begins_with_less_than_it_acknowledged_resigns_in_any_case() {
        let (control, _) = control();
        control.begin_life(3, 1, [1].into(), 1);
        control.note_failure(true);
        assert!(control.gives_up());
        assert_eq!(control.master_epoch(), 0);
    }

    #[test]
    fn a_slave_is_waited_for_before_it_is_proposed_and_until_its_end_is_agreed() {
        let (control, _) = control();
        control.begin_life(1, 2, [1].into(), 7);
        tell(&control, 0, &[(2, true, false)]);
        assert_eq!(control.propose(), None, "not every log has reported");
        tell(&control, 1, &[(2, true, false)]);
        assert_eq!(control.propose(), None);
        assert_eq!(control.waits().ids, [2].into(), "waited for already");
        // What the logs said before they knew of it does not count.
        let old = control.version() - 1;
        for log in 0..2 {
            let followers = [(
                2,
                Follower {
                    is_in_sync: true,
                    has_all: true,
                },
            )]
            .into();
            control.report(
                log,
                LogReport {
                    version: old,
                    followers,
                },
            );
        }
        assert_eq!(control.propose(), None);
        tell(&control, 0, &[(2, true, true)]);
        tell(&control, 1, &[(2, true, true)]);
        let proposal = control.propose().unwrap();
        assert_eq!(
            proposal,
            Proposal {
                set: [1, 2].into(),
                set_epoch: 7
            }
        );
        // No answer came: it may be agreed on or not, so it is still waited for, even when the slave is lost.
        tell(&control, 1, &[]);
        assert_eq!(control.waits().ids, [2].into());
        assert_eq!(
            control.propose(),
            Some(Proposal {
                set: [1].into(),
                set_epoch: 7
            })
        );
        assert_eq!(control.waits().ids, [2].into());
        control.on_committed([1].into(), 7);
        assert_eq!(
            control.waits().ids,
            [2].into(),
            "the same epoch says nothing new"
        );
        control.on_committed([1].into(), 8);
        assert_eq!(control.waits().ids, [].into());
        control.on_committed([1, 2].into(), 6);
        assert_eq!(control.waits().ids, [].into(), "an older word");
    }

    #[test]
    fn a_member_that_is_lost_is_waited_for_until_the_controller_agrees() {
        let (control, _) = control();
        control.begin_life(1, 1, [1].into(), 1);
        control.on_committed([1, 2, 3].into(), 2);
        tell(&control, 0, &[(2, true, true), (3, false, false)]);
        assert_eq!(
            control.propose(),
            Some(Proposal {
                set: [1, 2].into(),
                set_epoch: 2
            })
        );
        assert_eq!(
            (control.waits().ids, control.waits().in_sync),
            ([2, 3].into(), 3)
        );
        control.on_committed([1, 2].into(), 3);
        tell(&control, 0, &[(2, true, true), (3, false, false)]);
        assert_eq!((control.waits().ids, control.propose()), ([2].into(), None));
    }
}
