//! What the acknowledgements of a log's slaves are worth. Pure: time is passed in.
//!
//! **In sync** is a slave that is connected, has once come within [`JOIN_GAP_BYTES`] of the master's end since then, is not
//! more than `haMaxGapNotInSync` behind it, and has got on within `haMaxTimeSlaveNotCatchup` while it had something to get. It
//! leaves the set at once when its connection ends.
//!
//! SYNC_MASTER asks for `inSyncReplicas` copies, the master's own included; with `allAckInSyncStateSet` for one on every
//! slave that is in sync, and at least as many. What has them is **confirmed**: it is acknowledged as SEND_OK. If fewer slaves are in sync than
//! that, but with the master at least `minInSyncReplicas`, the log goes on with those that there are, and its sends are
//! answered SLAVE_NOT_AVAILABLE: stored, not confirmed. With fewer than `minInSyncReplicas` nothing is taken or shown.
//! What is confirmed never becomes less so.
//!
//! **With a controller** other rules hold: confirmed is what is on every member of the set that [`ReplicaWindow::require`] names,
//! connected or not, and the rules above only say who is near enough to join that set and who has to leave it.

use std::collections::{BTreeMap, BTreeSet};

/// A slave that has come so close to the end of its master's log is in sync.
pub const JOIN_GAP_BYTES: u64 = 1 << 20;

/// What a master's configuration asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRules {
    /// SYNC_MASTER: answers wait for slaves.
    pub waits: bool,
    /// `inSyncReplicas`, the master included.
    pub in_sync_replicas: u32,
    /// `minInSyncReplicas`, likewise.
    pub min_in_sync_replicas: u32,
    /// `allAckInSyncStateSet`.
    pub all_ack: bool,
    /// `haMaxGapNotInSync` in bytes.
    pub gap_bytes_max: u64,
    /// `haMaxTimeSlaveNotCatchup` in milliseconds.
    pub stuck_ms_max: u64,
}

/// A slave that follows a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub connection: u64,
    pub address: String,
    /// Everything before this is on its disk.
    pub acked: u64,
    pub is_in_sync: bool,
    /// When it last got on, or had nothing to get; monotonic milliseconds.
    moved_ms: u64,
}

/// What may be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Everything before this has as many copies as were asked for.
    pub confirmed: u64,
    /// Everything before this may be shown and answered.
    pub limit: u64,
    /// Copies that are in sync, the master's included.
    pub in_sync: u32,
    /// Whether new messages are taken.
    pub is_enough: bool,
}

/// See the module's page.
#[derive(Debug)]
pub struct ReplicaWindow {
    rules: ReplicaRules,
    /// By broker id: two connections of one slave are one copy.
    members: BTreeMap<u64, Member>,
    /// End of what is durable on the master.
    durable: u64,
    confirmed: u64,
    /// Shown already, so kept while too few are in sync.
    limit: u64,
    /// With a controller: whom to wait for.
    required: Option<Required>,
}

/// See [`ReplicaWindow::require`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Required {
    ids: BTreeSet<u64>,
    in_sync: u32,
}

impl ReplicaWindow {
    /// Of a log that is durable up to `durable`, which nobody follows yet.
    pub fn new(rules: ReplicaRules, durable: u64) -> Self {
        Self {
            rules,
            members: BTreeMap::new(),
            durable,
            confirmed: 0,
            limit: durable,
            required: None,
        }
    }

    /// From now on each of these has to confirm, whoever else follows; `in_sync` is the size of the controller's set. The log
    /// is durable up to `durable` at this moment.
    pub fn require(&mut self, ids: BTreeSet<u64>, in_sync: u32, durable: u64) {
        let before = self.required.as_ref();
        let was_alone = before.is_none_or(|required| {
            required.ids.is_empty() && required.in_sync >= self.rules.min_in_sync_replicas
        });
        self.on_durable(durable);
        if was_alone {
            // What was durable here was enough until now.
            self.confirmed = self.confirmed.max(self.durable);
        }
        self.required = Some(Required { ids, in_sync });
    }

    /// Whether a slave has everything that was confirmed, and is waited for, so that this stays so.
    pub fn has_all(&self, broker_id: u64) -> bool {
        let is_required = |required: &Required| required.ids.contains(&broker_id);
        self.required.as_ref().is_some_and(is_required)
            && self
                .members
                .get(&broker_id)
                .is_some_and(|member| member.is_in_sync && member.acked >= self.confirmed)
    }

    /// A slave follows the log; an earlier connection of the same one counts no more.
    pub fn join(
        &mut self,
        broker_id: u64,
        connection: u64,
        address: String,
        position: u64,
        now_ms: u64,
    ) {
        let member = Member {
            connection,
            address,
            acked: position,
            is_in_sync: false,
            moved_ms: now_ms,
        };
        self.members.insert(broker_id, member);
        // What it brings along is on its disk only when it has said so: its first acknowledgement does.
        if let Some(member) = self.members.get_mut(&broker_id) {
            member.acked = 0;
        }
    }

    /// A connection ended.
    pub fn leave(&mut self, connection: u64) {
        self.members
            .retain(|_, member| member.connection != connection);
    }

    /// The master's log is durable up to `end`.
    pub fn on_durable(&mut self, end: u64) {
        self.durable = self.durable.max(end);
    }

    /// A slave has everything before `durable`. False: this is not its connection any more.
    pub fn on_ack(&mut self, connection: u64, durable: u64, now_ms: u64) -> bool {
        let Some(member) = self
            .members
            .values_mut()
            .find(|member| member.connection == connection)
        else {
            return false;
        };
        if durable > member.acked {
            member.acked = durable;
            member.moved_ms = now_ms;
        }
        let gap = self.durable.saturating_sub(member.acked);
        if gap == 0 {
            member.moved_ms = now_ms;
        }
        if gap <= JOIN_GAP_BYTES.min(self.rules.gap_bytes_max) {
            member.is_in_sync = true;
        }
        true
    }

    /// Time has passed: slaves that fell behind leave the set.
    pub fn tick(&mut self, now_ms: u64) {
        for member in self.members.values_mut() {
            let gap = self.durable.saturating_sub(member.acked);
            if gap == 0 {
                member.moved_ms = now_ms;
            }
            let is_stuck = now_ms.saturating_sub(member.moved_ms) > self.rules.stuck_ms_max;
            if gap > self.rules.gap_bytes_max || is_stuck {
                member.is_in_sync = false;
            }
        }
    }

    /// All that follow, by broker id.
    pub fn members(&self) -> &BTreeMap<u64, Member> {
        &self.members
    }

    /// What may be done now.
    pub fn verdict(&mut self) -> Verdict {
        if let Some(required) = &self.required {
            let is_enough = required.in_sync >= self.rules.min_in_sync_replicas;
            let in_sync = required.in_sync;
            if required.ids.is_empty() && is_enough {
                return Verdict {
                    confirmed: u64::MAX,
                    limit: u64::MAX,
                    in_sync,
                    is_enough,
                };
            }
            let acked = |id: &u64| self.members.get(id).map_or(0, |member| member.acked);
            if let Some(everywhere) = required.ids.iter().map(acked).min() {
                self.confirmed = self.confirmed.max(everywhere);
            }
            self.limit = self.limit.max(self.confirmed);
            return Verdict {
                confirmed: self.confirmed,
                limit: self.confirmed,
                in_sync,
                is_enough,
            };
        }
        let mut acked: Vec<u64> = self
            .members
            .values()
            .filter(|member| member.is_in_sync)
            .map(|member| member.acked)
            .collect();
        let in_sync = 1 + acked.len() as u32;
        if !self.rules.waits {
            return Verdict {
                confirmed: u64::MAX,
                limit: u64::MAX,
                in_sync,
                is_enough: true,
            };
        }
        acked.sort_unstable_by(|a, b| b.cmp(a));
        let mut wanted = self.rules.in_sync_replicas.saturating_sub(1) as usize;
        if self.rules.all_ack {
            wanted = wanted.max(acked.len());
        }
        let is_enough = in_sync >= self.rules.min_in_sync_replicas;
        if wanted == 0 {
            self.confirmed = u64::MAX;
            self.limit = u64::MAX;
        } else if let Some(&safe) = acked.get(wanted - 1) {
            self.confirmed = self.confirmed.max(safe);
            self.limit = self.confirmed;
        } else if is_enough {
            // Those that there are; without any, the master alone.
            self.limit = acked.last().copied().unwrap_or(u64::MAX);
        } else {
            // Nothing more is shown than the set that was enough has let through.
            self.limit = self.limit.min(self.durable);
        }
        Verdict {
            confirmed: self.confirmed,
            limit: self.limit,
            in_sync,
            is_enough,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(in_sync_replicas: u32, min_in_sync_replicas: u32) -> ReplicaRules {
        ReplicaRules {
            waits: true,
            in_sync_replicas,
            min_in_sync_replicas,
            all_ack: false,
            gap_bytes_max: 256 << 20,
            stuck_ms_max: 15_000,
        }
    }

    fn with_slaves(rules: ReplicaRules, slaves: u64) -> ReplicaWindow {
        let mut window = ReplicaWindow::new(rules, 100);
        for slave in 1..=slaves {
            window.join(slave, slave, String::new(), 100, 0);
            assert!(window.on_ack(slave, 100, 0));
        }
        window
    }

    #[test]
    fn what_a_slave_has_is_confirmed_and_nothing_else_is() {
        let mut window = with_slaves(rules(2, 1), 1);
        window.on_durable(300);
        assert_eq!(window.verdict().confirmed, 100);
        window.on_ack(1, 200, 1);
        let verdict = window.verdict();
        assert_eq!(
            (verdict.confirmed, verdict.limit, verdict.in_sync),
            (200, 200, 2)
        );
    }

    #[test]
    fn a_position_that_a_slave_brings_along_counts_when_it_acknowledges_it() {
        let mut window = ReplicaWindow::new(rules(2, 1), 100);
        window.join(1, 1, String::new(), 100, 0);
        assert_eq!(
            (window.verdict().confirmed, window.verdict().in_sync),
            (0, 1)
        );
        window.on_ack(1, 100, 0);
        assert_eq!(
            (window.verdict().confirmed, window.verdict().in_sync),
            (100, 2)
        );
    }

    #[test]
    fn without_a_slave_the_master_goes_on_alone_and_confirms_nothing() {
        let mut window = with_slaves(rules(2, 1), 1);
        assert_eq!(window.verdict().confirmed, 100);
        window.leave(1);
        window.on_durable(500);
        let verdict = window.verdict();
        assert_eq!((verdict.confirmed, verdict.limit), (100, u64::MAX));
        assert!(verdict.is_enough);
        window.join(1, 2, String::new(), 100, 0);
        window.on_ack(2, 500, 1);
        assert_eq!(window.verdict().limit, 500, "from here on it waits again");
    }

    #[test]
    fn below_the_least_number_nothing_is_taken_or_shown() {
        let mut window = with_slaves(rules(2, 2), 1);
        window.on_durable(300);
        window.on_ack(1, 200, 0);
        assert_eq!(window.verdict().limit, 200);
        window.leave(1);
        let verdict = window.verdict();
        assert!(!verdict.is_enough);
        assert_eq!(verdict.limit, 200);
    }

    #[test]
    fn two_of_three_or_all_of_those_in_sync() {
        let mut window = with_slaves(rules(2, 1), 2);
        window.on_durable(300);
        window.on_ack(1, 300, 0);
        assert_eq!(window.verdict().confirmed, 300);
        let mut all = rules(2, 1);
        all.all_ack = true;
        let mut window = with_slaves(all, 2);
        window.on_durable(300);
        window.on_ack(1, 300, 0);
        assert_eq!(window.verdict().confirmed, 100);
        window.leave(2);
        assert_eq!(window.verdict().confirmed, 300);
    }

    #[test]
    fn two_connections_of_one_slave_are_one_copy() {
        let mut window = with_slaves(rules(3, 1), 1);
        window.join(1, 7, String::new(), 100, 0);
        assert!(window.on_ack(7, 100, 0));
        assert!(!window.on_ack(1, 100, 0), "the older connection is dead");
        assert_eq!(window.verdict().in_sync, 2);
        window.leave(1);
        assert_eq!(
            window.verdict().in_sync,
            2,
            "it does not take the newer one along"
        );
    }

    #[test]
    fn a_slave_that_falls_behind_or_gets_stuck_leaves_and_comes_back_when_it_is_near() {
        let mut window = with_slaves(rules(2, 1), 1);
        window.on_durable(100 + (256 << 20) + 1);
        window.tick(1);
        assert_eq!(window.verdict().in_sync, 1);
        window.on_ack(1, 100 + (200 << 20), 2);
        assert_eq!(window.verdict().in_sync, 1, "nearer, and not near");
        window.on_ack(1, 100 + (256 << 20), 3);
        assert_eq!(window.verdict().in_sync, 2);
        window.tick(15_003);
        assert_eq!(window.verdict().in_sync, 2);
        window.tick(15_004);
        assert_eq!(
            window.verdict().in_sync,
            1,
            "one byte is missing for too long"
        );
    }

    #[test]
    fn with_a_controller_every_member_of_its_set_has_to_confirm_connected_or_not() {
        let mut window = ReplicaWindow::new(rules(2, 1), 100);
        window.require(BTreeSet::new(), 1, 100);
        assert_eq!(window.verdict().limit, u64::MAX, "alone in the set");
        window.join(2, 1, String::new(), 100, 0);
        window.on_ack(1, 100, 0);
        assert!(!window.has_all(2), "nobody waits for it yet");
        // The log has gone on to 300 when slave 2 is waited for.
        window.require([2].into(), 1, 300);
        assert_eq!(window.verdict().confirmed, 300, "what was enough stays so");
        assert!(!window.has_all(2));
        window.on_durable(400);
        window.on_ack(1, 350, 1);
        assert_eq!(window.verdict().confirmed, 350);
        assert!(window.has_all(2));
        // Lost, and not yet removed by the controller.
        window.leave(1);
        window.on_durable(500);
        assert_eq!(window.verdict().confirmed, 350);
        window.require(BTreeSet::new(), 1, 500);
        assert_eq!(window.verdict().limit, u64::MAX);
        window.require([2, 3].into(), 3, 500);
        assert_eq!(window.verdict().confirmed, 500);
    }

    #[test]
    fn with_a_controller_too_small_a_set_confirms_nothing() {
        let mut window = ReplicaWindow::new(rules(2, 2), 100);
        window.require(BTreeSet::new(), 1, 100);
        window.on_durable(200);
        let verdict = window.verdict();
        assert_eq!((verdict.limit, verdict.is_enough), (100, false));
        window.require([2].into(), 2, 200);
        assert_eq!(window.verdict().limit, 100);
        window.join(2, 1, String::new(), 100, 0);
        window.on_ack(1, 200, 0);
        assert_eq!(
            (window.verdict().limit, window.verdict().is_enough),
            (200, true)
        );
    }

    /// Whatever happens: confirmed never moves back, and what is confirmed is on so many slaves.
    #[test]
    fn a_thousand_seeds_confirm_only_what_is_on_enough_disks() {
        for seed in 0..1_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let needed = random.u32(2..4);
            let mut own = rules(needed, random.u32(1..=needed));
            own.all_ack = random.bool();
            let mut window = ReplicaWindow::new(own, 0);
            // By broker id: what is on its disk, and its connection.
            let mut disks = [0u64; 4];
            let mut connections = [None; 4];
            let (mut durable, mut confirmed, mut now_ms, mut next) = (0u64, 0, 0, 0);
            for _ in 0..300 {
                let slave = random.usize(1..4);
                match random.u8(..6) {
                    0 => {
                        durable += random.u64(1..3 << 20);
                        window.on_durable(durable);
                    }
                    1 => {
                        next += 1;
                        connections[slave] = Some(next);
                        window.join(slave as u64, next, String::new(), disks[slave], now_ms);
                    }
                    2 => {
                        if let Some(connection) = connections[slave].take() {
                            window.leave(connection);
                        }
                    }
                    3 => {
                        now_ms += random.u64(..9_000);
                        window.tick(now_ms);
                    }
                    _ => {
                        if let Some(connection) = connections[slave] {
                            disks[slave] = random.u64(disks[slave]..=durable);
                            assert!(window.on_ack(connection, disks[slave], now_ms));
                        }
                    }
                }
                let verdict = window.verdict();
                assert!(verdict.confirmed >= confirmed, "seed {seed}");
                confirmed = verdict.confirmed;
                let holding = disks.iter().filter(|disk| **disk >= confirmed).count() as u32;
                // Place 0 is nobody, and its 0 holds nothing.
                let holding = holding - u32::from(confirmed == 0);
                assert!(confirmed == 0 || holding + 1 >= needed, "seed {seed}");
            }
        }
    }
}
