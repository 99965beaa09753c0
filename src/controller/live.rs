//! Who is alive, as the leader of the controllers has heard, and whom it would elect. Pure: time is passed in.
//!
//! Heartbeats are in the leader's memory only. A new leader knows nobody's, so it takes every broker for alive at the moment in
//! which it became the leader: it deposes nobody before one whole timeout has passed, and by then every lease that the leader
//! before it has granted is over, because a lease is shorter than the timeout and begins when the broker asked for it.

use std::collections::BTreeMap;

use crate::base::planted::{PlantedBug, planted};
use crate::controller::state::{Ground, Group};

/// What a broker said last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    pub heard_ms: u64,
    pub timeout_ms: u64,
    /// Epoch of the last batch of its logs.
    pub epoch: u32,
    /// Ends of its logs, added up.
    pub max_offset: i64,
    /// The least of several equal ones is elected.
    pub priority: i64,
    /// It said that it acknowledges nothing any more: nobody needs to wait for its lease.
    pub has_resigned: bool,
}

/// Who is elected, what it said last, and why that one.
pub type Chosen = (u64, Beat, Ground);

/// Why nobody takes a master's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoElection {
    /// It may have a lease.
    LeaseRuns,
    /// Nobody who is alive may be elected.
    Nobody,
}

/// Heartbeats of all brokers. See the module's page.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Since when this node has been the leader.
    leader_since_ms: u64,
    beats: BTreeMap<(String, u64), Beat>,
    /// Groups whose master gets no more leases until then, because another one is about to be elected.
    withheld: BTreeMap<String, u64>,
}

impl Live {
    /// Of a node that became the leader at that moment.
    pub fn new(now_ms: u64) -> Self {
        Self {
            leader_since_ms: now_ms,
            ..Self::default()
        }
    }

    pub fn on_beat(&mut self, group: &str, id: u64, beat: Beat) {
        self.beats.insert((group.to_owned(), id), beat);
    }

    /// Whether a broker was heard within its timeout. One that was never heard is not alive.
    pub fn is_alive(&self, group: &str, id: u64, now_ms: u64) -> bool {
        self.beat(group, id).is_some_and(|beat| {
            !beat.has_resigned && now_ms.saturating_sub(beat.heard_ms) <= beat.timeout_ms
        })
    }

    pub fn beat(&self, group: &str, id: u64) -> Option<&Beat> {
        // The key is two words: a lookup by reference would need a type of its own.
        self.beats.get(&(group.to_owned(), id))
    }

    /// Whether every lease of a master is over: it has been silent, to this leader, for longer than the timeout that it
    /// registered with.
    pub fn lease_is_over(&self, group: &str, id: u64, timeout_ms: u64, now_ms: u64) -> bool {
        let beat = self.beat(group, id);
        if beat.is_some_and(|beat| beat.has_resigned) {
            return true;
        }
        let heard_ms = beat.map_or(0, |beat| beat.heard_ms);
        now_ms.saturating_sub(heard_ms.max(self.leader_since_ms)) > timeout_ms
    }

    /// Whom to elect in the place of a silent master. From this look on that one gets no lease until `until_ms`: its heartbeat may
    /// come while the election is agreed on.
    pub fn replace(
        &mut self,
        name: &str,
        group: &Group,
        unclean: bool,
        now_ms: u64,
        until_ms: u64,
    ) -> Result<Chosen, NoElection> {
        let is_over = group
            .master()
            .is_none_or(|(id, replica)| self.lease_is_over(name, id, replica.timeout_ms, now_ms));
        if !is_over {
            return Err(NoElection::LeaseRuns);
        }
        let chosen = self
            .choose(name, group, group.master, unclean, now_ms)
            .ok_or(NoElection::Nobody)?;
        self.withhold(name, until_ms);
        Ok(chosen)
    }

    /// The master of a group gets no leases for so long.
    pub fn withhold(&mut self, group: &str, until_ms: u64) {
        self.withheld.insert(group.to_owned(), until_ms);
    }

    pub fn grant_again(&mut self, group: &str) {
        self.withheld.remove(group);
    }

    /// Whether a heartbeat of the master is worth a lease now.
    pub fn may_grant(&self, group: &str, now_ms: u64) -> bool {
        self.withheld
            .get(group)
            .is_none_or(|until_ms| now_ms >= *until_ms)
    }

    /// Whom to elect: an alive member of the in-sync set, or with `unclean` anybody alive if there is none. Of several the one
    /// with the greatest epoch, then the longest log, then the least priority and id. `except` is the master that is gone.
    pub fn choose(
        &self,
        name: &str,
        group: &Group,
        except: Option<u64>,
        unclean: bool,
        now_ms: u64,
    ) -> Option<(u64, Beat, Ground)> {
        let best = |in_set_only: bool| {
            group
                .replicas
                .keys()
                .filter(|id| Some(**id) != except && self.is_alive(name, **id, now_ms))
                .filter(|id| {
                    !in_set_only || group.in_sync.contains(id) || planted(PlantedBug::ElectOutside)
                })
                .filter_map(|id| Some((*id, *self.beat(name, *id)?)))
                .max_by_key(|(id, beat)| {
                    let least = (std::cmp::Reverse(beat.priority), std::cmp::Reverse(*id));
                    (beat.epoch, beat.max_offset, least)
                })
        };
        if let Some((id, beat)) = best(true) {
            return Some((id, beat, Ground::InSync));
        }
        let (id, beat) = best(false).filter(|_| unclean)?;
        Some((id, beat, Ground::Unclean))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn beat(heard_ms: u64, epoch: u32, max_offset: i64) -> Beat {
        Beat {
            heard_ms,
            timeout_ms: 1_000,
            epoch,
            max_offset,
            priority: 0,
            has_resigned: false,
        }
    }

    fn group(in_sync: &[u64]) -> Group {
        Group {
            replicas: (1..=4).map(|id| (id, Default::default())).collect(),
            in_sync: BTreeSet::from_iter(in_sync.iter().copied()),
            master: Some(1),
            epoch: 3,
            ..Group::default()
        }
    }

    #[test]
    fn a_new_leader_waits_a_whole_timeout_before_it_takes_a_lease_for_over() {
        let mut live = Live::new(10_000);
        assert!(!live.lease_is_over("g", 1, 1_000, 11_000));
        assert!(live.lease_is_over("g", 1, 1_000, 11_001));
        live.on_beat("g", 1, beat(10_500, 3, 0));
        assert!(!live.lease_is_over("g", 1, 1_000, 11_500));
        assert!(live.lease_is_over("g", 1, 1_000, 11_501));
        let mut resigned = beat(10_600, 3, 0);
        resigned.has_resigned = true;
        live.on_beat("g", 1, resigned);
        assert!(live.lease_is_over("g", 1, 1_000, 10_600));
        assert!(!live.is_alive("g", 1, 10_600));
    }

    #[test]
    fn the_best_of_those_that_are_alive_and_in_sync_is_chosen() {
        let mut live = Live::new(0);
        for (id, at) in [(1, 0), (2, 5_000), (3, 5_000), (4, 5_000)] {
            live.on_beat("g", id, beat(at, 3, 100 + id as i64));
        }
        let chosen = |group: &Group, unclean| {
            live.choose("g", group, Some(1), unclean, 5_500)
                .map(|(id, _, ground)| (id, ground))
        };
        assert_eq!(chosen(&group(&[1, 2, 3]), false), Some((3, Ground::InSync)));
        assert_eq!(
            chosen(&group(&[1, 2]), true),
            Some((2, Ground::InSync)),
            "who is in sync comes first"
        );
        assert_eq!(chosen(&group(&[1]), false), None);
        assert_eq!(chosen(&group(&[1]), true), Some((4, Ground::Unclean)));
    }

    #[test]
    fn a_silent_master_that_comes_back_while_it_is_replaced_gets_no_lease() {
        let mut live = Live::new(0);
        let mut group = group(&[1, 2]);
        for replica in group.replicas.values_mut() {
            replica.timeout_ms = 1_000;
        }
        live.on_beat("g", 1, beat(5_000, 3, 0));
        live.on_beat("g", 2, beat(5_500, 3, 0));
        let replace = |live: &mut Live, now_ms| {
            let replaced = live.replace("g", &group, false, now_ms, now_ms + 3_000);
            replaced.map(|(id, ..)| id)
        };
        assert_eq!(replace(&mut live, 6_000), Err(NoElection::LeaseRuns));
        assert!(live.may_grant("g", 6_000));
        assert_eq!(replace(&mut live, 6_001), Ok(2));
        live.on_beat("g", 1, beat(6_002, 3, 0));
        assert!(!live.may_grant("g", 6_002));
        live.grant_again("g");
        assert_eq!(replace(&mut live, 7_003), Err(NoElection::Nobody));
        assert!(live.may_grant("g", 7_003), "nobody else is elected");
    }

    #[test]
    fn leases_are_withheld_until_then() {
        let mut live = Live::new(0);
        live.withhold("g", 500);
        assert!(!live.may_grant("g", 499));
        assert!(live.may_grant("g", 500));
        assert!(live.may_grant("h", 0));
        live.withhold("g", 900);
        live.grant_again("g");
        assert!(live.may_grant("g", 600));
    }
}
