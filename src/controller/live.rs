//! Who is alive, as the leader of the controllers has heard, and whom it would elect. Pure: time is passed in.
//!
//! Heartbeats are in the leader's memory only. A new leader knows nobody's, so it takes every broker for alive at the moment in
//! which it became the leader: it deposes nobody before one whole timeout has passed, and by then every lease that the leader
//! before it has granted is over, because a lease is shorter than the timeout and begins when the broker asked for it.

use std::collections::BTreeMap;

use crate::base::doubt::Doubt;
use crate::base::planted::{PlantedBug, planted};
use crate::controller::state::{Ground, Group};

/// So many of its timeouts a broker that may lack something waits for other members of its in-sync set that were not heard yet.
const DOUBT_TIMEOUTS: u64 = 30;

/// What a broker said last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    pub heard_ms: u64,
    pub timeout_ms: u64,
    /// Epoch of the last batch of its logs.
    pub epoch: u32,
    /// The greatest epoch that it has ever heard of.
    pub seen_epoch: u32,
    /// What its logs may lack of what was acknowledged. A master that is at work says that it lacks nothing.
    pub doubt: Doubt,
    /// Since when it has said so, to this leader.
    pub doubtful_since_ms: u64,
    /// The connection that it came by has ended.
    pub is_gone: bool,
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

/// Why a broker that an operator has named is not elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    IsMaster,
    IsSilent,
    IsOutOfSync,
    /// Its logs may lack something, and others of the in-sync set may have that.
    MayLack,
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

    pub fn on_beat(&mut self, group: &str, id: u64, mut beat: Beat) {
        let key = (group.to_owned(), id);
        beat.doubtful_since_ms = match self.beats.get(&key) {
            Some(before) if before.doubt > Doubt::None => before.doubtful_since_ms,
            _ => beat.heard_ms,
        };
        self.beats.insert(key, beat);
    }

    /// The connection that a broker's heartbeats came by has ended. Its lease runs on; it is not elected before it is heard again,
    /// since it may be another process by then.
    pub fn on_gone(&mut self, group: &str, id: u64) {
        if let Some(beat) = self.beats.get_mut(&(group.to_owned(), id)) {
            beat.is_gone = true;
        }
    }

    /// A broker was elected: what it may lack counts no more, unless it says so again.
    pub fn on_elected(&mut self, group: &str, id: u64) {
        if let Some(beat) = self.beats.get_mut(&(group.to_owned(), id)) {
            beat.doubt = Doubt::None;
        }
    }

    /// Whether a broker was heard within its timeout. One that was never heard is not alive.
    pub fn is_alive(&self, group: &str, id: u64, now_ms: u64) -> bool {
        self.beat(group, id).is_some_and(|beat| {
            !beat.has_resigned
                && !beat.is_gone
                && now_ms.saturating_sub(beat.heard_ms) <= beat.timeout_ms
        })
    }

    /// What a broker's logs may lack.
    pub fn doubt(&self, group: &str, id: u64) -> Doubt {
        self.beat(group, id).map_or(Doubt::None, |beat| beat.doubt)
    }

    /// The greatest epoch that any broker of a group has heard of.
    pub fn seen_epoch(&self, group: &str) -> u32 {
        let of_group = self.beats.iter().filter(|((name, _), _)| name == group);
        of_group
            .map(|(_, beat)| beat.seen_epoch.max(beat.epoch))
            .max()
            .unwrap_or(0)
    }

    pub fn beat(&self, group: &str, id: u64) -> Option<&Beat> {
        // The key is two words: a lookup by reference would need a type of its own.
        self.beats.get(&(group.to_owned(), id))
    }

    /// Whether every lease of a master is over: it has been silent, to this leader, for longer than the timeout that it
    /// registered with.
    pub fn lease_is_over(&self, group: &str, id: u64, timeout_ms: u64, now_ms: u64) -> bool {
        let beat = self.beat(group, id);
        if beat.is_some_and(|beat| beat.has_resigned || beat.doubt > Doubt::None) {
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
        // A master of an earlier life that may lack something is one of those that may be chosen.
        let except = group
            .master
            .filter(|master| self.doubt(name, *master) == Doubt::None);
        let chosen = self
            .choose(name, group, except, unclean, now_ms)
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

    /// Whether a broker that may lack something has waited for the others long enough: all members of the set can be elected, or
    /// it has waited as long as anybody should. One that has resigned has everything and may be back. One that surely lacks
    /// something waits for ever.
    fn has_waited(&self, name: &str, group: &Group, beat: &Beat, now_ms: u64) -> bool {
        let waited_ms = now_ms.saturating_sub(beat.doubtful_since_ms);
        beat.doubt == Doubt::Torn
            && (waited_ms > DOUBT_TIMEOUTS * beat.timeout_ms
                || group
                    .in_sync
                    .iter()
                    .all(|id| self.is_alive(name, *id, now_ms)))
    }

    /// Whether an operator's wish can be carried out, and on what ground: who may lack something is elected by hand only if it would
    /// be by itself, or `unclean`.
    pub fn designate(
        &self,
        name: &str,
        group: &Group,
        asked: u64,
        unclean: bool,
        now_ms: u64,
    ) -> Result<Chosen, Unfit> {
        let doubt = self.doubt(name, asked);
        if group.master == Some(asked) && doubt == Doubt::None {
            return Err(Unfit::IsMaster);
        }
        let beat = match self.beat(name, asked) {
            Some(beat) if self.is_alive(name, asked, now_ms) => *beat,
            _ => return Err(Unfit::IsSilent),
        };
        // The controllers have lost what they knew: the operator has to know.
        let is_unknown = group.in_sync.is_empty();
        let is_next = || {
            let next = self.choose(name, group, None, false, now_ms);
            next.is_some_and(|(id, ..)| id == asked)
        };
        let unfit = if !is_unknown && !group.in_sync.contains(&asked) {
            Unfit::IsOutOfSync
        } else if doubt == Doubt::Damaged || doubt == Doubt::Torn && !is_unknown && !is_next() {
            Unfit::MayLack
        } else {
            return Ok((asked, beat, Ground::InSync));
        };
        match unclean {
            true => Ok((asked, beat, Ground::Unclean)),
            false => Err(unfit),
        }
    }

    /// Whom to elect: an alive member of the in-sync set, or with `unclean` anybody alive if there is none. Of several one whose
    /// logs lack nothing, then the one with the greatest epoch, then the longest log, then the least priority and id. `except` is
    /// the master that is gone.
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
                .filter(|(_, beat)| {
                    let is_whole = beat.doubt == Doubt::None;
                    is_whole || !in_set_only || self.has_waited(name, group, beat, now_ms)
                })
                .max_by_key(|(id, beat)| {
                    let most = std::cmp::Reverse(beat.doubt);
                    let least = (std::cmp::Reverse(beat.priority), std::cmp::Reverse(*id));
                    (most, beat.epoch, beat.max_offset, least)
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
            ..Beat::default()
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
    fn who_may_lack_something_is_elected_after_those_that_do_not() {
        let mut live = Live::new(0);
        let mut group = group(&[1, 2, 3]);
        for replica in group.replicas.values_mut() {
            replica.timeout_ms = 1_000;
        }
        let doubtful = |heard_ms, max_offset, doubt| Beat {
            doubt,
            ..beat(heard_ms, 3, max_offset)
        };
        let replace = |live: &mut Live, now_ms| {
            let replaced = live.replace("g", &group, false, now_ms, now_ms);
            replaced.map(|(id, ..)| id)
        };
        // The master has just been started again, so it has no lease; it has most, and may lack something.
        live.on_beat("g", 1, doubtful(10_000, 100, Doubt::Torn));
        assert_eq!(replace(&mut live, 10_100), Err(NoElection::Nobody));
        live.on_beat("g", 2, doubtful(10_100, 200, Doubt::Damaged));
        assert_eq!(replace(&mut live, 10_200), Err(NoElection::Nobody));
        // All of the set were heard, and nobody is whole.
        live.on_beat("g", 3, doubtful(10_200, 90, Doubt::Torn));
        assert_eq!(replace(&mut live, 10_300), Ok(1));
        live.on_beat("g", 3, doubtful(10_300, 90, Doubt::None));
        assert_eq!(replace(&mut live, 10_400), Ok(3));
        // One whose disk refuses writes has resigned; it has everything, and may be started again.
        live.on_beat(
            "g",
            2,
            Beat {
                has_resigned: true,
                ..beat(10_400, 3, 200)
            },
        );
        live.on_beat("g", 3, doubtful(10_400, 90, Doubt::Torn));
        assert_eq!(replace(&mut live, 10_400), Err(NoElection::Nobody));
        live.on_beat("g", 2, doubtful(10_400, 200, Doubt::Damaged));
        live.on_beat("g", 3, doubtful(10_400, 90, Doubt::None));
        // A broker whose connection has ended is another process when it is heard again.
        live.on_gone("g", 3);
        assert_eq!(replace(&mut live, 10_400), Err(NoElection::Nobody));
        // It does not wait for ever; one that surely lacks something does.
        live.on_beat("g", 1, doubtful(40_100, 100, Doubt::Torn));
        live.on_beat("g", 2, doubtful(40_100, 200, Doubt::Damaged));
        assert_eq!(replace(&mut live, 40_100), Ok(1));
        live.on_elected("g", 1);
        assert_eq!(replace(&mut live, 40_100), Err(NoElection::LeaseRuns));
    }

    #[test]
    fn an_operator_names_nobody_who_may_lack_something_unless_it_is_the_next_one() {
        let mut live = Live::new(0);
        let group = group(&[1, 2]);
        let lost = Group {
            in_sync: BTreeSet::new(),
            master: None,
            ..group.clone()
        };
        let beats = |live: &mut Live, one: Doubt, two: Option<Doubt>| {
            for (id, doubt) in [(1, Some(one)), (2, two), (3, Some(Doubt::None))] {
                live.on_gone("g", id);
                if let Some(doubt) = doubt {
                    live.on_beat(
                        "g",
                        id,
                        Beat {
                            doubt,
                            ..beat(10_000, 3, 100 - id as i64)
                        },
                    );
                }
            }
        };
        let named = |live: &Live, group: &Group, id, unclean| {
            let chosen = live.designate("g", group, id, unclean, 10_100);
            chosen.map(|(id, _, ground)| (id, ground))
        };
        for (one, two, of_one) in [
            (Doubt::None, Some(Doubt::None), Err(Unfit::IsMaster)),
            (Doubt::Torn, Some(Doubt::None), Err(Unfit::MayLack)),
            (Doubt::Torn, Some(Doubt::Torn), Ok((1, Ground::InSync))),
            (Doubt::Torn, None, Err(Unfit::MayLack)),
            (Doubt::Damaged, Some(Doubt::None), Err(Unfit::MayLack)),
            (Doubt::Damaged, None, Err(Unfit::MayLack)),
        ] {
            beats(&mut live, one, two);
            assert_eq!(named(&live, &group, 1, false), of_one, "{one:?} {two:?}");
            if of_one == Err(Unfit::MayLack) {
                assert_eq!(named(&live, &group, 1, true), Ok((1, Ground::Unclean)));
            }
            let by_hand = match one {
                Doubt::Damaged => Err(Unfit::MayLack),
                _ => Ok((1, Ground::InSync)),
            };
            assert_eq!(named(&live, &lost, 1, false), by_hand);
        }
        assert_eq!(named(&live, &group, 2, false), Err(Unfit::IsSilent));
        assert_eq!(named(&live, &group, 3, false), Err(Unfit::IsOutOfSync));
        assert_eq!(named(&live, &group, 3, true), Ok((3, Ground::Unclean)));
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
