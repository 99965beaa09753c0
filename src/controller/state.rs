//! What the controller remembers of broker groups, and how a change changes it. Pure and the same on every node.
//!
//! Per group: its replicas, the master and its epoch, the in-sync set and its epoch. A change is a command of the Raft log; it
//! is judged here, when it is applied, so that two of them that cross each other cannot both succeed. Nothing here knows of
//! time: who is alive is decided by the leader ([`crate::controller::live`]) before it proposes a change. Source in RocketMQ:
//! `ReplicasInfoManager`.
//!
//! Invariants: an epoch has one master for ever; the master is in the set; a set changes only by its master's word or by an
//! election; an election takes a member of the set, unless whoever proposed it said that it may lose messages.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::base::limits::{CONTROLLER_GROUPS_MAX, CONTROLLER_REPLICAS_MAX};
use crate::base::planted::{PlantedBug, planted};
use crate::wire::remoting::code::response;

/// Ids that the controller gives out begin here: 0 is what a master is called by clients.
pub const FIRST_ID: u64 = 1;

/// A broker of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// `brokerIP1:listenPort`; empty until it has registered.
    pub address: String,
    /// `brokerIP2:haListenPort`.
    pub ha_address: String,
    /// What the broker chose when it applied for its id: a second broker with that id has another one.
    pub check_code: String,
    /// Its heartbeat timeout; its leases are shorter. Every node has to know it, since each may be the next leader.
    pub timeout_ms: u64,
}

/// A broker group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub cluster: String,
    pub replicas: BTreeMap<u64, Replica>,
    pub next_id: u64,
    pub master: Option<u64>,
    /// Of the master; 0 while there was none.
    pub epoch: u32,
    /// What its logs were known to lack, as a number of [`crate::base::doubt::Doubt`], when it was elected.
    #[serde(default)]
    pub elected_doubt: u8,
    /// Everything that was acknowledged is on each of them.
    pub in_sync: BTreeSet<u64>,
    pub in_sync_epoch: u32,
    /// Its brokers knew it before the controller did, which has lost what it knew: only a person can say who has everything.
    #[serde(default)]
    pub needs_operator: bool,
}

/// All groups by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups(pub BTreeMap<String, Group>);

/// Why a replica may become the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ground {
    /// It is in the in-sync set, or the group never had a master.
    InSync,
    /// Whoever asked accepts that acknowledged messages are lost.
    Unclean,
}

/// A command of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A broker takes an id. The first one to do so makes the group.
    ApplyId {
        cluster: String,
        group: String,
        id: u64,
        check_code: String,
        /// It had the id before, and the controller does not know it.
        returns: bool,
    },
    /// A broker with an id says where it is.
    Register {
        group: String,
        id: u64,
        check_code: String,
        address: String,
        ha_address: String,
        timeout_ms: u64,
    },
    /// The master's word on who is in sync.
    AlterSet {
        group: String,
        master: u64,
        epoch: u32,
        set: BTreeSet<u64>,
        set_epoch: u32,
    },
    Elect {
        group: String,
        candidate: u64,
        /// The epoch that the decision was made in.
        epoch: u32,
        /// The new epoch is greater than this too: the candidate's log has seen it.
        seen_epoch: u32,
        ground: Ground,
        /// What the candidate's logs are known to lack.
        #[serde(default)]
        doubt: u8,
        /// The leader's term that the decision was made in: another leader may have granted leases since. 0: of any.
        #[serde(default)]
        term: u64,
    },
    /// Replicas that will not come back; all of them without ids.
    Clean { group: String, ids: Vec<u64> },
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Nothing was to be done: entries of Raft itself.
    Nothing,
    /// The group as it is now; `None` if it is gone.
    Done(Option<Box<Group>>),
    Refused {
        code: i32,
        remark: String,
    },
}

fn refused(code: i32, remark: impl Into<String>) -> Outcome {
    Outcome::Refused {
        code,
        remark: remark.into(),
    }
}

/// The answer about a group that nobody has registered.
pub fn unknown_group(name: &str) -> Outcome {
    refused(
        response::CONTROLLER_BROKER_METADATA_NOT_EXIST,
        format!("no broker of a group '{name}' has ever registered here"),
    )
}

impl Groups {
    /// Does what a change says that a leader of this term has proposed, or refuses it.
    pub fn apply_in(&mut self, term: u64, change: &Change) -> Outcome {
        match change {
            Change::Elect { term: decided, .. } if *decided != 0 && *decided != term => refused(
                response::CONTROLLER_FENCED_MASTER_EPOCH,
                "the leader of the controllers has changed since this election was decided",
            ),
            change => self.apply(change),
        }
    }

    /// Does what a change says, or refuses it.
    pub fn apply(&mut self, change: &Change) -> Outcome {
        let name = change.group();
        if let Change::ApplyId {
            cluster,
            group,
            id,
            check_code,
            returns,
        } = change
        {
            return self.apply_id(cluster, group, *id, check_code, *returns);
        }
        let Some(group) = self.0.get_mut(name) else {
            return unknown_group(name);
        };
        let outcome = match change {
            Change::ApplyId { .. } => Outcome::Nothing,
            Change::Register {
                id,
                check_code,
                address,
                ha_address,
                timeout_ms,
                ..
            } => group.register(*id, check_code, address, ha_address, *timeout_ms),
            Change::AlterSet {
                master,
                epoch,
                set,
                set_epoch,
                ..
            } => group.alter_set(*master, *epoch, set, *set_epoch),
            Change::Elect {
                candidate,
                epoch,
                seen_epoch,
                ground,
                doubt,
                ..
            } => {
                let outcome = group.elect(*candidate, *epoch, *seen_epoch, *ground);
                match outcome {
                    Outcome::Done(_) => {
                        group.elected_doubt = *doubt;
                        group.done()
                    }
                    refused => refused,
                }
            }
            Change::Clean { ids, .. } => group.clean(ids),
        };
        if group.replicas.is_empty() {
            self.0.remove(name);
        }
        outcome
    }

    fn apply_id(
        &mut self,
        cluster: &str,
        name: &str,
        id: u64,
        check_code: &str,
        returns: bool,
    ) -> Outcome {
        if !self.0.contains_key(name) && self.0.len() >= CONTROLLER_GROUPS_MAX {
            return refused(
                response::CONTROLLER_INVALID_REQUEST,
                format!(
                    "there are {CONTROLLER_GROUPS_MAX} groups already: clean those that are gone"
                ),
            );
        }
        let group = self.0.entry(name.to_owned()).or_insert_with(|| Group {
            cluster: cluster.to_owned(),
            next_id: FIRST_ID,
            ..Group::default()
        });
        let before = group.needs_operator;
        group.needs_operator |= returns && group.master.is_none();
        let outcome = group.take_id(id, check_code);
        if matches!(outcome, Outcome::Refused { .. }) {
            group.needs_operator = before;
        }
        if group.replicas.is_empty() {
            self.0.remove(name);
        }
        outcome
    }
}

impl Change {
    /// The group that it is about.
    pub fn group(&self) -> &str {
        match self {
            Self::ApplyId { group, .. }
            | Self::Register { group, .. }
            | Self::AlterSet { group, .. }
            | Self::Elect { group, .. }
            | Self::Clean { group, .. } => group,
        }
    }
}

impl Group {
    fn done(&self) -> Outcome {
        Outcome::Done(Some(Box::new(self.clone())))
    }

    /// The master with its addresses.
    pub fn master(&self) -> Option<(u64, &Replica)> {
        let id = self.master?;
        Some((id, self.replicas.get(&id)?))
    }

    fn take_id(&mut self, id: u64, check_code: &str) -> Outcome {
        match self.replicas.get(&id) {
            // The answer to the first try was lost.
            Some(known) if known.check_code == check_code => return self.done(),
            Some(_) => {
                return refused(
                    response::CONTROLLER_BROKER_ID_INVALID,
                    format!(
                        "brokerId {id} belongs to another broker of this group: the next free one is {}",
                        self.next_id
                    ),
                );
            }
            None => {}
        }
        if id < FIRST_ID || check_code.is_empty() || self.replicas.len() >= CONTROLLER_REPLICAS_MAX
        {
            return refused(
                response::CONTROLLER_BROKER_ID_INVALID,
                format!(
                    "brokerId {id} cannot be given: ids begin at {FIRST_ID}, a check code is due, and a group has at most {CONTROLLER_REPLICAS_MAX} brokers"
                ),
            );
        }
        self.next_id = self.next_id.max(id.saturating_add(1));
        let replica = Replica {
            check_code: check_code.to_owned(),
            ..Replica::default()
        };
        self.replicas.insert(id, replica);
        self.done()
    }

    fn register(
        &mut self,
        id: u64,
        check_code: &str,
        address: &str,
        ha_address: &str,
        timeout_ms: u64,
    ) -> Outcome {
        let Some(replica) = self.replicas.get_mut(&id) else {
            return refused(
                response::CONTROLLER_BROKER_NEED_TO_BE_REGISTERED,
                format!("brokerId {id} was never given out in this group: apply for one"),
            );
        };
        if !check_code.is_empty() && replica.check_code != check_code {
            return refused(
                response::CONTROLLER_BROKER_ID_INVALID,
                format!(
                    "brokerId {id} belongs to another broker, at {}: a store was copied with its identity, or the controller's was lost",
                    replica.address
                ),
            );
        }
        replica.address = address.to_owned();
        replica.ha_address = ha_address.to_owned();
        replica.timeout_ms = timeout_ms;
        self.done()
    }

    fn alter_set(
        &mut self,
        master: u64,
        epoch: u32,
        set: &BTreeSet<u64>,
        set_epoch: u32,
    ) -> Outcome {
        if self.master != Some(master) {
            return refused(
                response::CONTROLLER_INVALID_MASTER,
                format!(
                    "brokerId {master} is not the master: {} is",
                    self.master.map_or("nobody".to_owned(), |id| id.to_string())
                ),
            );
        }
        if self.epoch != epoch {
            return refused(
                response::CONTROLLER_FENCED_MASTER_EPOCH,
                format!("the master's epoch is {}, not {epoch}", self.epoch),
            );
        }
        if self.in_sync_epoch != set_epoch {
            return refused(
                response::CONTROLLER_FENCED_SYNC_STATE_SET_EPOCH,
                format!(
                    "the in-sync set has epoch {}, not {set_epoch}",
                    self.in_sync_epoch
                ),
            );
        }
        if !set.contains(&master) || !set.iter().all(|id| self.replicas.contains_key(id)) {
            return refused(
                response::CONTROLLER_INVALID_REPLICAS,
                "an in-sync set has the master and brokers of its group only",
            );
        }
        self.in_sync = set.clone();
        self.in_sync_epoch += 1;
        self.done()
    }

    fn elect(&mut self, candidate: u64, epoch: u32, seen_epoch: u32, ground: Ground) -> Outcome {
        if self.epoch != epoch {
            return refused(
                response::CONTROLLER_FENCED_MASTER_EPOCH,
                format!(
                    "another election came first: the epoch is {} by now",
                    self.epoch
                ),
            );
        }
        if !self.replicas.contains_key(&candidate) {
            return refused(
                response::CONTROLLER_INVALID_REPLICAS,
                format!("brokerId {candidate} is not of this group"),
            );
        }
        let is_safe = self.in_sync.is_empty()
            || self.in_sync.contains(&candidate)
            || planted(PlantedBug::ElectOutside);
        if !is_safe && ground != Ground::Unclean {
            return refused(
                response::CONTROLLER_ELECT_MASTER_FAILED,
                format!("brokerId {candidate} is not in sync: it may lack acknowledged messages"),
            );
        }
        let Some(next) = self.epoch.max(seen_epoch).checked_add(1) else {
            return refused(
                response::CONTROLLER_ELECT_MASTER_FAILED,
                "the epochs are used up",
            );
        };
        self.epoch = next;
        self.needs_operator = false;
        self.master = Some(candidate);
        // The others have everything as well until the new master has asked to go on without them, which is the first that it does:
        // if it comes back damaged, or not at all, any of them takes its place.
        if !self.in_sync.contains(&candidate) {
            self.in_sync = BTreeSet::from([candidate]);
        }
        self.in_sync_epoch += 1;
        self.done()
    }

    fn clean(&mut self, ids: &[u64]) -> Outcome {
        let ids: BTreeSet<u64> = match ids {
            [] => self.replicas.keys().copied().collect(),
            ids => ids.iter().copied().collect(),
        };
        let all = ids.len() == self.replicas.len();
        for id in &ids {
            if !self.replicas.contains_key(id) {
                return refused(
                    response::CONTROLLER_INVALID_CLEAN_BROKER_METADATA,
                    format!("brokerId {id} is not of this group"),
                );
            }
            let is_last = self.in_sync.contains(id) && self.in_sync.is_subset(&ids);
            if !all && (self.master == Some(*id) || is_last) {
                return refused(
                    response::CONTROLLER_INVALID_CLEAN_BROKER_METADATA,
                    format!(
                        "brokerId {id} is the master, or the last one that has everything: elect another one first"
                    ),
                );
            }
        }
        self.replicas.retain(|id, _| !ids.contains(id));
        let before = self.in_sync.len();
        self.in_sync.retain(|id| !ids.contains(id));
        if self.in_sync.len() != before {
            self.in_sync_epoch += 1;
        }
        Outcome::Done((!all).then(|| Box::new(self.clone())))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn apply_id(id: u64, check_code: &str) -> Change {
        Change::ApplyId {
            cluster: "c".into(),
            group: "g".into(),
            id,
            check_code: check_code.into(),
            returns: false,
        }
    }

    fn elect(candidate: u64, epoch: u32, ground: Ground) -> Change {
        Change::Elect {
            group: "g".into(),
            candidate,
            epoch,
            seen_epoch: 0,
            ground,
            doubt: 0,
            term: 0,
        }
    }

    fn alter(master: u64, epoch: u32, set: &[u64], set_epoch: u32) -> Change {
        Change::AlterSet {
            group: "g".into(),
            master,
            epoch,
            set: set.iter().copied().collect(),
            set_epoch,
        }
    }

    fn three() -> Groups {
        let mut groups = Groups::default();
        for id in 1..=3 {
            assert!(matches!(
                groups.apply(&apply_id(id, &format!("code {id}"))),
                Outcome::Done(_)
            ));
        }
        groups
    }

    fn code(outcome: Outcome) -> i32 {
        match outcome {
            Outcome::Refused { code, .. } => code,
            Outcome::Done(_) | Outcome::Nothing => 0,
        }
    }

    #[test]
    fn an_id_has_one_owner() {
        let mut groups = three();
        assert_eq!(code(groups.apply(&apply_id(2, "code 2"))), 0, "asked again");
        assert_eq!(
            code(groups.apply(&apply_id(2, "another"))),
            response::CONTROLLER_BROKER_ID_INVALID
        );
        assert_eq!(groups.0["g"].next_id, 4);
        assert_eq!(
            code(groups.apply(&apply_id(0, "zero"))),
            response::CONTROLLER_BROKER_ID_INVALID
        );
    }

    #[test]
    fn the_master_alone_changes_the_set_and_only_in_its_epoch() {
        let mut groups = three();
        assert_eq!(code(groups.apply(&elect(1, 0, Ground::InSync))), 0);
        assert_eq!(groups.0["g"].in_sync, BTreeSet::from([1]));
        assert_eq!(code(groups.apply(&alter(1, 1, &[1, 2], 1))), 0);
        assert_eq!(
            code(groups.apply(&alter(1, 1, &[1, 2, 3], 1))),
            response::CONTROLLER_FENCED_SYNC_STATE_SET_EPOCH
        );
        assert_eq!(
            code(groups.apply(&alter(2, 1, &[1, 2], 2))),
            response::CONTROLLER_INVALID_MASTER
        );
        assert_eq!(
            code(groups.apply(&alter(1, 1, &[2], 2))),
            response::CONTROLLER_INVALID_REPLICAS
        );
        assert_eq!(
            code(groups.apply(&alter(1, 1, &[1, 9], 2))),
            response::CONTROLLER_INVALID_REPLICAS
        );
        assert_eq!(code(groups.apply(&elect(2, 1, Ground::InSync))), 0);
        assert_eq!(
            code(groups.apply(&alter(1, 1, &[1], 3))),
            response::CONTROLLER_INVALID_MASTER,
            "a deposed master"
        );
        assert_eq!(
            code(groups.apply(&alter(2, 1, &[2], 3))),
            response::CONTROLLER_FENCED_MASTER_EPOCH
        );
    }

    #[test]
    fn an_election_counts_in_the_term_that_it_was_decided_in_only() {
        let mut groups = Groups::default();
        groups.apply(&apply_id(1, "code 1"));
        let mut decided = elect(1, 0, Ground::InSync);
        if let Change::Elect { term, .. } = &mut decided {
            *term = 4;
        }
        assert_ne!(code(groups.apply_in(5, &decided)), 0);
        assert_eq!(code(groups.apply_in(4, &decided)), 0);
        assert_eq!(code(groups.apply_in(5, &elect(1, 1, Ground::InSync))), 0);
    }

    #[test]
    fn who_is_not_in_sync_is_elected_only_by_leave_to_lose() {
        let mut groups = three();
        groups.apply(&elect(1, 0, Ground::InSync));
        assert_eq!(
            code(groups.apply(&elect(2, 1, Ground::InSync))),
            response::CONTROLLER_ELECT_MASTER_FAILED
        );
        assert_eq!(code(groups.apply(&elect(2, 1, Ground::Unclean))), 0);
        assert_eq!(
            code(groups.apply(&elect(3, 1, Ground::Unclean))),
            response::CONTROLLER_FENCED_MASTER_EPOCH,
            "two elections of one moment"
        );
    }

    #[test]
    fn an_election_from_the_set_leaves_the_set_to_the_new_master() {
        let mut groups = three();
        groups.apply(&elect(1, 0, Ground::InSync));
        groups.apply(&alter(1, 1, &[1, 2], 1));
        groups.apply(&elect(2, 1, Ground::InSync));
        assert_eq!(groups.0["g"].in_sync, BTreeSet::from([1, 2]));
        // It is dead, or comes back damaged: the other one still has everything.
        assert_eq!(code(groups.apply(&elect(1, 2, Ground::InSync))), 0);
        assert_eq!(code(groups.apply(&elect(3, 3, Ground::Unclean))), 0);
        assert_eq!(groups.0["g"].in_sync, BTreeSet::from([3]));
    }

    #[test]
    fn a_new_epoch_is_greater_than_what_the_candidates_log_has_seen() {
        let mut groups = three();
        let change = Change::Elect {
            group: "g".into(),
            candidate: 1,
            epoch: 0,
            seen_epoch: 41,
            ground: Ground::InSync,
            doubt: 0,
            term: 0,
        };
        groups.apply(&change);
        assert_eq!(groups.0["g"].epoch, 42);
    }

    #[test]
    fn a_group_that_its_brokers_knew_before_the_controller_waits_for_a_person() {
        let mut groups = Groups::default();
        let mut returning = apply_id(2, "code 2");
        if let Change::ApplyId { returns, .. } = &mut returning {
            *returns = true;
        }
        groups.apply(&returning);
        assert!(groups.0["g"].needs_operator);
        groups.apply(&elect(2, 0, Ground::InSync));
        assert!(!groups.0["g"].needs_operator);
        groups.apply(&apply_id(3, "code 3"));
        assert!(!groups.0["g"].needs_operator, "it has a master");
    }

    #[test]
    fn the_master_and_the_last_one_in_sync_are_not_cleaned_away() {
        let mut groups = three();
        groups.apply(&elect(1, 0, Ground::InSync));
        let clean = |ids: &[u64]| Change::Clean {
            group: "g".into(),
            ids: ids.to_vec(),
        };
        assert_ne!(code(groups.apply(&clean(&[1]))), 0);
        assert_eq!(code(groups.apply(&clean(&[3]))), 0);
        assert_ne!(code(groups.apply(&clean(&[3]))), 0);
        assert_eq!(groups.apply(&clean(&[])), Outcome::Done(None));
        assert!(groups.0.is_empty());
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let set = proptest::collection::btree_set(0u64..5, 0..4);
        prop_oneof![
            (0u64..5, 0u8..3).prop_map(|(id, code)| apply_id(id, &"x".repeat(code.into()))),
            (0u64..5, 0u32..6, set, 0u32..8).prop_map(|(master, epoch, set, set_epoch)| {
                Change::AlterSet {
                    group: "g".into(),
                    master,
                    epoch,
                    set,
                    set_epoch,
                }
            }),
            (0u64..5, 0u32..6, 0u32..3, any::<bool>()).prop_map(
                |(candidate, epoch, seen_epoch, safe)| {
                    Change::Elect {
                        group: "g".into(),
                        candidate,
                        epoch,
                        seen_epoch,
                        ground: if safe {
                            Ground::InSync
                        } else {
                            Ground::Unclean
                        },
                        doubt: 0,
                        term: 0,
                    }
                }
            ),
            proptest::collection::vec(0u64..5, 0..2).prop_map(|ids| Change::Clean {
                group: "g".into(),
                ids
            }),
        ]
    }

    proptest! {
        /// Whatever is proposed in whatever order: an epoch has one master, the master is in its set, epochs only grow, and
        /// without leave to lose nobody is elected from outside the set.
        #[test]
        fn the_invariants_hold_for_any_changes(changes in proptest::collection::vec(any_change(), 0..120)) {
            let mut groups = Groups::default();
            let mut masters: BTreeMap<u32, u64> = BTreeMap::new();
            let mut before: Option<Group> = None;
            for change in changes {
                let outcome = groups.apply(&change);
                let Some(group) = groups.0.get("g").cloned() else {
                    // Cleaned away: whoever comes next is a new group.
                    masters.clear();
                    before = None;
                    continue;
                };
                if let (Outcome::Refused { .. }, Some(before)) = (outcome, &before) {
                    prop_assert_eq!(before, &group, "a refused change changes nothing");
                }
                if let Some(master) = group.master {
                    prop_assert_eq!(*masters.entry(group.epoch).or_insert(master), master);
                    prop_assert!(group.in_sync.contains(&master));
                }
                prop_assert!(group.in_sync.iter().all(|id| group.replicas.contains_key(id)));
                if let Some(before) = &before {
                    prop_assert!(group.epoch >= before.epoch);
                    prop_assert!(group.in_sync_epoch >= before.in_sync_epoch);
                    if group.in_sync != before.in_sync {
                        prop_assert!(group.in_sync_epoch > before.in_sync_epoch);
                    }
                    if group.master != before.master {
                        let unclean = matches!(&change, Change::Elect { ground: Ground::Unclean, .. });
                        prop_assert!(group.epoch > before.epoch);
                        prop_assert!(
                            unclean || before.in_sync.is_empty() || before.in_sync.contains(&group.master.unwrap())
                        );
                    }
                }
                before = Some(group);
            }
        }
    }
}
