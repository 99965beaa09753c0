//! One consumer group of the native protocol: its members, what each is to read, and what each may still be reading. Pure;
//! time is milliseconds of a monotonic clock and passed in. `groups.rs` is its shell, `assignor.rs` decides who shall read what.
//!
//! A queue that moves is taken back first: it gets its new owner when the old one has said that it does not read it any
//! more, has left, or has been silent for the session timeout. What a member says of its queues counts only if it has heard
//! of the last change of them (its generation), so an answer that is lost or a heartbeat that comes late does no harm.
//!
//! All this is in memory. After a restart members come back with what they own, and until every session of the former life
//! must have ended no other queue is given to anybody, and none moves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use crate::broker::native::assignor::{GroupQueue, MemberId};
use crate::broker::native::assignor::{Shares, assign};

/// How long sessions are.
#[derive(Clone, Copy, Debug)]
pub struct SessionRules {
    /// A member that was not heard of for so long owns nothing.
    pub timeout_ms: u64,
}

impl SessionRules {
    /// Several heartbeats may get lost.
    pub fn heartbeat_ms(self) -> u64 {
        (self.timeout_ms / 5).clamp(1, 3_000)
    }

    /// The same for a member that waits for a queue which its owner has to give up first.
    pub fn waiting_heartbeat_ms(self) -> u64 {
        (self.timeout_ms / 50).clamp(1, 200)
    }
}

#[derive(Debug)]
struct Member {
    topics: BTreeSet<Arc<str>>,
    heard_ms: u64,
    /// What it was told last, and the generation in which that changed.
    told: BTreeSet<GroupQueue>,
    changed: i64,
}

/// Who may be reading a queue.
#[derive(Debug)]
struct Owner {
    member: MemberId,
    /// The generation in which it got the queue.
    since: i64,
}

/// What a member is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub generation: i64,
    pub queues: Vec<GroupQueue>,
    pub heartbeat_ms: u64,
}

/// What a member says.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    pub generation: i64,
    pub owned: BTreeSet<GroupQueue>,
}

/// See the module's page.
#[derive(Debug)]
pub struct Group {
    rules: SessionRules,
    generation: i64,
    members: BTreeMap<MemberId, Member>,
    /// Queues of the topics that are subscribed to.
    topics: BTreeMap<Arc<str>, u32>,
    /// Who shall read what.
    target: Shares,
    owners: BTreeMap<GroupQueue, Owner>,
    /// Commits that are on their way: such a queue is given to nobody, so that the next owner reads what was committed.
    committing: BTreeMap<GroupQueue, usize>,
    /// Members of the former life may be there until then.
    settles_ms: Option<u64>,
    is_dirty: bool,
}

impl Group {
    /// A group without members. `generation` is greater than any of a former life, `settles_ms` when the sessions of that
    /// life are over.
    pub fn new(rules: SessionRules, generation: i64, settles_ms: Option<u64>) -> Self {
        Self {
            rules,
            generation,
            members: BTreeMap::new(),
            topics: BTreeMap::new(),
            target: Shares::new(),
            owners: BTreeMap::new(),
            committing: BTreeMap::new(),
            settles_ms,
            is_dirty: false,
        }
    }

    /// Whether nobody is a member and nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.committing.is_empty()
    }

    pub fn member_count(&self) -> usize {
        self.members.len()
    }

    pub fn is_member(&self, id: &str) -> bool {
        self.members.contains_key(id)
    }

    /// A member joins, comes back, or subscribes to something else. `queues_of` has the number of queues of a topic.
    pub fn join(
        &mut self,
        now_ms: u64,
        id: &MemberId,
        topics: BTreeSet<Arc<str>>,
        claim: &Claim,
        queues_of: impl Fn(&str) -> u32,
    ) -> Told {
        self.expire(now_ms);
        if let Some(known) = self.members.get_mut(id) {
            self.is_dirty |= known.topics != topics;
            known.topics = topics;
            self.hear(now_ms, id, claim);
        } else {
            self.is_dirty = true;
            self.generation = self.generation.max(claim.generation);
            let member = Member {
                topics,
                heard_ms: now_ms,
                told: BTreeSet::new(),
                changed: 0,
            };
            self.take_claims(id, &member.topics, claim, &queues_of);
            self.members.insert(id.clone(), member);
        }
        self.settle(now_ms, queues_of);
        self.told(id)
    }

    /// What a member of the former life owns is still its own, if nobody else has come with it.
    fn take_claims(
        &mut self,
        id: &MemberId,
        topics: &BTreeSet<Arc<str>>,
        claim: &Claim,
        queues_of: impl Fn(&str) -> u32,
    ) {
        for queue in &claim.owned {
            let exists = topics.contains(&queue.topic) && queue.queue_id < queues_of(&queue.topic);
            if exists && !self.owners.contains_key(queue) && !self.committing.contains_key(queue) {
                let owner = Owner {
                    member: id.clone(),
                    since: self.generation + 1,
                };
                self.owners.insert(queue.clone(), owner);
                self.target.insert(queue.clone(), id.clone());
            }
        }
    }

    /// A member is alive; none if it is not known.
    pub fn heartbeat(
        &mut self,
        now_ms: u64,
        id: &MemberId,
        claim: &Claim,
        queues_of: impl Fn(&str) -> u32,
    ) -> Option<Told> {
        self.expire(now_ms);
        if !self.members.contains_key(id) {
            return None;
        }
        self.hear(now_ms, id, claim);
        self.settle(now_ms, queues_of);
        Some(self.told(id))
    }

    fn hear(&mut self, now_ms: u64, id: &MemberId, claim: &Claim) {
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        member.heard_ms = now_ms;
        if claim.generation < member.changed {
            return; // It said this before it heard of its queues.
        }
        let target = &self.target;
        self.owners.retain(|queue, owner| {
            owner.member != *id || target.get(queue) == Some(id) || claim.owned.contains(queue)
        });
    }

    /// A member goes; false if it was not there.
    pub fn leave(&mut self, now_ms: u64, id: &str, queues_of: impl Fn(&str) -> u32) -> bool {
        self.expire(now_ms);
        let was_member = self.members.contains_key(id);
        self.remove(|known, _| known == id);
        self.settle(now_ms, queues_of);
        was_member
    }

    /// Members that were silent for too long are gone; whether there were any.
    pub fn expire(&mut self, now_ms: u64) -> bool {
        let timeout_ms = self.rules.timeout_ms;
        self.remove(|_, member| now_ms.saturating_sub(member.heard_ms) >= timeout_ms)
    }

    fn remove(&mut self, goes: impl Fn(&str, &Member) -> bool) -> bool {
        let count = self.members.len();
        self.members.retain(|id, member| !goes(id, member));
        let members = &self.members;
        self.owners
            .retain(|_, owner| members.contains_key(&owner.member));
        let some_went = self.members.len() < count;
        self.is_dirty |= some_went;
        some_went
    }

    /// Shares the queues out anew if something changed, and gives away what is free.
    fn settle(&mut self, now_ms: u64, queues_of: impl Fn(&str) -> u32) {
        let subscribed: BTreeSet<&Arc<str>> =
            self.members.values().flat_map(|m| &m.topics).collect();
        let topics: BTreeMap<Arc<str>, u32> = subscribed
            .into_iter()
            .map(|topic| (topic.clone(), queues_of(topic)))
            .collect();
        self.is_dirty |= topics != self.topics;
        self.topics = topics;
        if self
            .settles_ms
            .is_some_and(|settles_ms| now_ms >= settles_ms)
        {
            self.settles_ms = None;
            self.is_dirty = true;
        }
        if self.is_dirty {
            self.target = self.new_target();
            self.is_dirty = false;
        }
        let next = self.generation + 1;
        let mut given = BTreeSet::new();
        for (queue, id) in &self.target {
            let is_free = !self.owners.contains_key(queue) && !self.committing.contains_key(queue);
            if is_free {
                let owner = Owner {
                    member: id.clone(),
                    since: next,
                };
                self.owners.insert(queue.clone(), owner);
            }
        }
        let mut told: BTreeMap<&MemberId, BTreeSet<GroupQueue>> = BTreeMap::new();
        for (queue, owner) in &self.owners {
            if owner.since == next {
                given.insert(owner.member.clone());
            }
            if self.target.get(queue) == Some(&owner.member) {
                told.entry(&owner.member).or_default().insert(queue.clone());
            }
        }
        let mut changed = false;
        for (id, member) in &mut self.members {
            let told = told.remove(id).unwrap_or_default();
            if told != member.told || given.contains(id) {
                member.told = told;
                member.changed = next;
                changed = true;
            }
        }
        if changed {
            self.generation = next;
        }
    }

    fn new_target(&self) -> Shares {
        let wants = |id: &MemberId, queue: &GroupQueue| {
            let member = self.members.get(id);
            member.is_some_and(|member| member.topics.contains(&queue.topic))
                && self
                    .topics
                    .get(&queue.topic)
                    .is_some_and(|&queues| queue.queue_id < queues)
        };
        let owned = self
            .owners
            .iter()
            .map(|(queue, owner)| (queue.clone(), owner.member.clone()))
            .filter(|(queue, id)| wants(id, queue));
        let mut current: Shares = owned.collect();
        if self.settles_ms.is_some() {
            return current;
        }
        for (queue, id) in &self.target {
            if wants(id, queue) {
                current.insert(queue.clone(), id.clone());
            }
        }
        let members = self
            .members
            .iter()
            .map(|(id, member)| (id.clone(), member.topics.clone()))
            .collect();
        assign(&members, &self.topics, &current)
    }

    fn told(&self, id: &MemberId) -> Told {
        let owns = |queue: &GroupQueue| self.owners.get(queue).is_some_and(|o| o.member == *id);
        let waits = self.settles_ms.is_some()
            || self
                .target
                .iter()
                .any(|(queue, member)| member == id && !owns(queue));
        let queues = self.members.get(id).map(|member| &member.told);
        Told {
            generation: self.generation,
            queues: queues.into_iter().flatten().cloned().collect(),
            heartbeat_ms: match waits {
                true => self.rules.waiting_heartbeat_ms(),
                false => self.rules.heartbeat_ms(),
            },
        }
    }

    /// For each queue whether the member may commit it. Those are not given to anybody else until [`Self::end_commit`].
    pub fn begin_commit(
        &mut self,
        now_ms: u64,
        id: &str,
        generation: i64,
        queues: &[GroupQueue],
    ) -> Vec<bool> {
        self.expire(now_ms);
        let mut allowed = Vec::with_capacity(queues.len());
        for queue in queues {
            let owner = self.owners.get(queue);
            let may = owner.is_some_and(|owner| *owner.member == *id && generation >= owner.since);
            if may {
                *self.committing.entry(queue.clone()).or_default() += 1;
            }
            allowed.push(may);
        }
        allowed
    }

    /// The commits of these queues are durable, or failed.
    pub fn end_commit(&mut self, queues: &[GroupQueue]) {
        for queue in queues {
            if let Some(count) = self.committing.get_mut(queue) {
                *count -= 1;
                if *count == 0 {
                    self.committing.remove(queue);
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use ringmq_client::Queue;
    use ringmq_client::core::group::{Membership, Request};
    use ringmq_wire_native::code::UNKNOWN_MEMBER;
    use ringmq_wire_native::message::{Assignment, Message, TopicQueues};

    use super::*;

    const SESSION_MS: u64 = 10_000;
    const MS: u64 = 1_000_000;
    const RULES: SessionRules = SessionRules {
        timeout_ms: SESSION_MS,
    };

    fn queue(topic: &str, queue_id: u32) -> GroupQueue {
        GroupQueue {
            topic: Arc::from(topic),
            queue_id,
        }
    }

    fn claim_of(generation: i64, owned: &[TopicQueues<'_>]) -> Claim {
        let queues = |topic: &TopicQueues<'_>| -> Vec<GroupQueue> {
            let ids = topic.queue_ids.iter();
            ids.map(|&queue_id| queue(topic.topic, queue_id)).collect()
        };
        Claim {
            generation,
            owned: owned.iter().flat_map(queues).collect(),
        }
    }

    /// An answer on its way; no `told`: the member is not known.
    struct Answer {
        client: usize,
        token: u64,
        told: Option<Told>,
    }

    /// A client with the core that the client really has, and a clock of its own.
    struct Client {
        membership: Membership,
        clock_ns: u64,
        awaits: Option<u64>,
        is_gone: bool,
        /// What the application reads.
        reads: BTreeSet<Queue>,
        changes: usize,
    }

    /// The broker's side, clients, and a network between them that loses, delays and reorders.
    struct World {
        now_ms: u64,
        group: Group,
        topics: BTreeMap<String, u32>,
        clients: Vec<Client>,
        requests: VecDeque<(usize, Request)>,
        answers: VecDeque<Answer>,
    }

    impl World {
        fn new(topics: &[(&str, u32)]) -> Self {
            Self {
                now_ms: 1_000_000,
                group: Group::new(RULES, 1_000_000, None),
                topics: topics.iter().map(|&(t, q)| (t.to_owned(), q)).collect(),
                clients: Vec::new(),
                requests: VecDeque::new(),
                answers: VecDeque::new(),
            }
        }

        fn add(&mut self) {
            let number = self.clients.len();
            let topics = self.topics.keys().cloned().collect();
            self.clients.push(Client {
                membership: Membership::new("g", format!("member-{number}"), topics),
                clock_ns: 7_777 * MS * number as u64,
                awaits: None,
                is_gone: false,
                reads: BTreeSet::new(),
                changes: 0,
            });
        }

        fn now_ns(&self, client: usize) -> u64 {
            self.now_ms * MS + self.clients[client].clock_ns
        }

        fn ask(&mut self, client: usize) {
            let now_ns = self.now_ns(client);
            if let Some(request) = self.clients[client].membership.request(now_ns) {
                self.clients[client].awaits = Some(request.token);
                self.requests.push_back((client, request));
            }
        }

        /// The client has waited long enough; the request may still come to the broker.
        fn give_up_waiting(&mut self, client: usize) {
            let now_ns = self.now_ns(client);
            if let Some(token) = self.clients[client].awaits.take() {
                self.clients[client].membership.failed(token, now_ns);
            }
        }

        fn serve(&mut self, at: usize) {
            let Some((client, request)) = self.requests.remove(at) else {
                return;
            };
            let topics = &self.topics;
            let queues_of = |topic: &str| topics.get(topic).copied().unwrap_or(0);
            let (now_ms, group) = (self.now_ms, &mut self.group);
            let told = match request.message() {
                Message::GroupJoin(join) => {
                    let wanted = join.topics.iter().map(|&topic| Arc::from(topic)).collect();
                    let claim = claim_of(join.generation, &join.owned);
                    Some(group.join(
                        now_ms,
                        &Arc::from(join.member_id),
                        wanted,
                        &claim,
                        queues_of,
                    ))
                }
                Message::GroupHeartbeat(beat) => {
                    let claim = claim_of(beat.generation, &beat.owned);
                    group.heartbeat(now_ms, &Arc::from(beat.member_id), &claim, queues_of)
                }
                Message::GroupLeave(leave) => {
                    group.leave(now_ms, leave.member_id, queues_of);
                    return;
                }
                other => panic!("{other:?}"),
            };
            self.answers.push_back(Answer {
                client,
                token: request.token,
                told,
            });
        }

        fn hear(&mut self, at: usize) {
            let Some(answer) = self.answers.remove(at) else {
                return;
            };
            let now_ns = self.now_ns(answer.client);
            let client = &mut self.clients[answer.client];
            if client.awaits == Some(answer.token) {
                client.awaits = None;
            }
            let Some(told) = answer.told else {
                client
                    .membership
                    .refused(answer.token, UNKNOWN_MEMBER, now_ns);
                return;
            };
            let queues = told
                .queues
                .iter()
                .map(|queue| TopicQueues {
                    topic: &queue.topic,
                    queue_ids: vec![queue.queue_id],
                })
                .collect();
            let assignment = Assignment {
                member_id: "",
                generation: told.generation,
                queues,
                heartbeat_interval_ms: told.heartbeat_ms as u32,
                session_timeout_ms: SESSION_MS as u32,
            };
            client
                .membership
                .answered(answer.token, &assignment, now_ns);
        }

        /// The application looks at what changed.
        fn act(&mut self, client: usize) {
            let now_ns = self.now_ns(client);
            let client = &mut self.clients[client];
            client.membership.tick(now_ns);
            for queue in client.membership.take_lost() {
                client.reads.remove(&queue);
                client.changes += 1;
            }
            let unwanted = client.membership.unwanted();
            for queue in &unwanted {
                client.reads.remove(queue);
                client.changes += 1;
            }
            if !unwanted.is_empty() {
                client.membership.released(&unwanted, now_ns);
            }
            let (generation, new) = client.membership.new_queues();
            let not_ours = client.membership.taken(generation, &new);
            assert!(not_ours.is_empty());
            client.changes += new.len();
            client.reads.extend(new);
        }

        /// What was in memory is gone; what was on its way to the broker, too. Answers still come.
        fn restart(&mut self) {
            let settles_ms = Some(self.now_ms + SESSION_MS);
            self.group = Group::new(RULES, self.now_ms as i64, settles_ms);
            self.requests.clear();
        }

        fn check(&self) {
            let mut owners: BTreeMap<Queue, usize> = BTreeMap::new();
            for (topic, &queues) in &self.topics {
                for queue_id in 0..queues + 4 {
                    let queue = Queue::new(topic.clone(), queue_id);
                    for (number, client) in self.clients.iter().enumerate() {
                        let now_ns = self.now_ns(number);
                        if !client.is_gone && client.membership.owns(&queue, now_ns) {
                            let other = owners.insert(queue.clone(), number);
                            assert_eq!(
                                other, None,
                                "{queue:?} has two owners: {other:?}, {number}"
                            );
                        }
                    }
                }
            }
        }

        /// Everybody talks and nothing is lost, for so long.
        fn calm(&mut self, ms: u64) {
            let end_ms = self.now_ms + ms;
            while self.now_ms < end_ms {
                for client in 0..self.clients.len() {
                    if !self.clients[client].is_gone {
                        self.ask(client);
                    }
                }
                while !self.requests.is_empty() {
                    self.serve(0);
                }
                while !self.answers.is_empty() {
                    self.hear(0);
                }
                for client in 0..self.clients.len() {
                    if !self.clients[client].is_gone {
                        self.act(client);
                    }
                }
                self.check();
                self.now_ms += 20;
            }
        }

        /// What each client reads; every queue is read by one, and the load is even.
        fn settled(&self) -> Vec<BTreeSet<Queue>> {
            let mut read = BTreeSet::new();
            let mut loads = Vec::new();
            for client in self.clients.iter().filter(|client| !client.is_gone) {
                for queue in &client.reads {
                    assert!(read.insert(queue.clone()), "{queue:?} is read twice");
                }
                loads.push(client.reads.len());
            }
            if !loads.is_empty() {
                let queues: u32 = self.topics.values().sum();
                assert_eq!(read.len(), queues as usize, "{read:?}");
                assert!(
                    loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1,
                    "{loads:?}"
                );
            }
            self.clients
                .iter()
                .map(|client| client.reads.clone())
                .collect()
        }

        fn changes(&self) -> usize {
            self.clients.iter().map(|client| client.changes).sum()
        }
    }

    #[derive(Clone, Debug)]
    enum Event {
        Time(u64),
        Ask(usize),
        Serve(usize),
        Hear(usize),
        LoseRequest(usize),
        LoseAnswer(usize),
        GiveUp(usize),
        Act(usize),
        Join,
        Leave(usize),
        Die(usize),
        Grow(usize),
        Restart,
    }

    fn event() -> impl Strategy<Value = Event> {
        let who = 0usize..8;
        prop_oneof![
            6 => (1u64..4_000).prop_map(Event::Time),
            12 => who.clone().prop_map(Event::Ask),
            12 => who.clone().prop_map(Event::Serve),
            12 => who.clone().prop_map(Event::Hear),
            1 => who.clone().prop_map(Event::LoseRequest),
            1 => who.clone().prop_map(Event::LoseAnswer),
            6 => who.clone().prop_map(Event::GiveUp),
            10 => who.clone().prop_map(Event::Act),
            4 => Just(Event::Join),
            2 => who.clone().prop_map(Event::Leave),
            1 => who.clone().prop_map(Event::Die),
            1 => who.prop_map(Event::Grow),
            1 => Just(Event::Restart),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// Joins, leaves, deaths, late and lost heartbeats and answers, topics that grow, restarts, in any order.
        #[test]
        fn no_queue_ever_has_two_owners_and_in_the_end_each_has_one(events in prop::collection::vec(event(), 1..400)) {
            let mut world = World::new(&[("T", 7), ("U", 2)]);
            world.add();
            world.add();
            for event in events {
                let alive = |number: usize, world: &World| {
                    let alive: Vec<usize> = (0..world.clients.len())
                        .filter(|&client| !world.clients[client].is_gone)
                        .collect();
                    (!alive.is_empty()).then(|| alive[number % alive.len()])
                };
                match event {
                    Event::Time(ms) => world.now_ms += ms,
                    Event::Ask(number) => if let Some(at) = alive(number, &world) { world.ask(at) },
                    Event::Serve(at) => if !world.requests.is_empty() { world.serve(at % world.requests.len()) },
                    Event::Hear(at) => if !world.answers.is_empty() { world.hear(at % world.answers.len()) },
                    Event::LoseRequest(at) => drop(world.requests.remove(at)),
                    Event::LoseAnswer(at) => drop(world.answers.remove(at)),
                    Event::GiveUp(number) => if let Some(at) = alive(number, &world) { world.give_up_waiting(at) },
                    Event::Act(number) => if let Some(at) = alive(number, &world) { world.act(at) },
                    Event::Join => if world.clients.iter().filter(|client| !client.is_gone).count() < 4 { world.add() },
                    Event::Leave(number) => if let Some(at) = alive(number, &world) {
                        let now_ns = world.now_ns(at);
                        world.clients[at].membership.leave(now_ns);
                        world.ask(at);
                        world.clients[at].is_gone = true;
                    },
                    Event::Die(number) => if let Some(at) = alive(number, &world) { world.clients[at].is_gone = true },
                    Event::Grow(number) => {
                        let topic = if number % 2 == 0 { "T" } else { "U" };
                        let queues = world.topics.get_mut(topic).unwrap();
                        *queues = (*queues + 1).min(12);
                    }
                    Event::Restart => world.restart(),
                }
                world.check();
            }
            // Nobody waits for ever for what is lost.
            world.requests.clear();
            world.answers.clear();
            for client in 0..world.clients.len() {
                world.give_up_waiting(client);
            }
            world.calm(3 * SESSION_MS);
            world.settled();
            let changes = world.changes();
            world.calm(SESSION_MS);
            prop_assert_eq!(world.changes(), changes, "what is settled stays");
        }
    }

    #[test]
    fn what_a_member_said_before_it_heard_of_its_queues_frees_none_of_them() {
        let mut world = World::new(&[("T", 2)]);
        world.add();
        world.ask(0);
        world.serve(0); // This answer takes long.
        world.give_up_waiting(0);
        world.now_ms += 300;
        world.ask(0); // It says that it owns nothing, and takes longer.
        world.give_up_waiting(0);
        world.now_ms += 300;
        world.ask(0);
        world.serve(1);
        world.hear(1);
        world.act(0);
        assert_eq!(world.clients[0].reads.len(), 2);
        // One queue is to go to a second member, before the first one hears of it.
        world.add();
        world.ask(1);
        world.serve(1);
        world.serve(0);
        world.now_ms += 300;
        world.hear(1);
        world.ask(1);
        world.serve(0);
        world.hear(2);
        world.check();
        assert!(world.clients[1].membership.new_queues().1.is_empty());
        world.calm(SESSION_MS);
        world.settled();
    }

    #[test]
    fn a_restart_of_the_broker_moves_nothing() {
        let mut world = World::new(&[("T", 16)]);
        for _ in 0..3 {
            world.add();
        }
        world.calm(5_000);
        let (before, changes) = (world.settled(), world.changes());
        world.restart();
        world.now_ms += 3_000;
        world.calm(2 * SESSION_MS);
        assert_eq!(world.settled(), before);
        assert_eq!(
            world.changes(),
            changes,
            "no queue left its member, not even for a moment"
        );
    }

    #[test]
    fn after_a_restart_a_newcomer_waits_for_those_that_were_there() {
        let mut world = World::new(&[("T", 4)]);
        world.add();
        world.calm(1_000);
        world.restart();
        world.add();
        // The first one cannot be heard for a while.
        for _ in 0..8 {
            world.ask(1);
            world.serve(0);
            world.hear(0);
            world.act(1);
            assert!(world.clients[1].reads.is_empty());
            world.now_ms += 500;
            world.check();
        }
        world.calm(2 * SESSION_MS);
        assert_eq!(world.settled()[1].len(), 2);
    }

    #[test]
    fn a_member_that_joins_takes_its_share_from_each_and_one_that_leaves_gives_it_back_at_once() {
        let mut world = World::new(&[("T", 12)]);
        world.add();
        world.add();
        world.calm(3_000);
        let before = world.settled();
        world.add();
        world.calm(6_000);
        let after = world.settled();
        assert_eq!(after[2].len(), 4);
        for client in 0..2 {
            assert!(
                after[client].is_subset(&before[client]),
                "only the newcomer gets queues"
            );
        }
        let now_ns = world.now_ns(2);
        world.clients[2].membership.leave(now_ns);
        world.ask(2);
        world.serve(0);
        world.clients[2].is_gone = true;
        world.clients[2].reads.clear();
        world.calm(3_000);
        world.settled();
    }

    fn beat(group: &mut Group, now_ms: u64, id: &str, told: &Told) -> Option<Told> {
        let claim = Claim {
            generation: told.generation,
            owned: told.queues.iter().cloned().collect(),
        };
        group.heartbeat(now_ms, &Arc::from(id), &claim, |_| 2)
    }

    #[test]
    fn only_the_owner_of_a_queue_commits_it_and_not_with_an_older_generation() {
        let mut group = Group::new(RULES, 5, None);
        let join = |group: &mut Group, now_ms, id: &str| {
            let topics = BTreeSet::from([Arc::from("T")]);
            group.join(now_ms, &Arc::from(id), topics, &Claim::default(), |_| 2)
        };
        let both = [queue("T", 0), queue("T", 1)];
        let a = join(&mut group, 0, "a");
        assert_eq!(a.queues, both);
        assert_eq!(
            group.begin_commit(1, "a", a.generation, &both),
            [true, true]
        );
        group.end_commit(&both);
        assert_eq!(
            group.begin_commit(1, "a", a.generation - 1, &both),
            [false, false]
        );
        assert_eq!(
            group.begin_commit(1, "stranger", a.generation, &both),
            [false, false]
        );
        // Asked to give one up, it may still commit it; when it has given it up, not any more.
        let b = join(&mut group, 2, "b");
        assert_eq!(b.queues, []);
        let less = beat(&mut group, 3, "a", &a).unwrap();
        assert_eq!(less.queues, both[..1]);
        assert_eq!(
            group.begin_commit(4, "a", less.generation, &both),
            [true, true]
        );
        // While that is on its way, nobody else gets the queue.
        beat(&mut group, 5, "a", &less).unwrap();
        assert_eq!(beat(&mut group, 6, "b", &b).unwrap().queues, []);
        group.end_commit(&both);
        let b = beat(&mut group, 7, "b", &b).unwrap();
        assert_eq!(b.queues, both[1..]);
        assert_eq!(
            group.begin_commit(8, "a", less.generation, &both),
            [true, false]
        );
        group.end_commit(&both[..1]);
        // Silent for too long, it owns nothing.
        beat(&mut group, SESSION_MS, "b", &b).unwrap();
        assert_eq!(
            group.begin_commit(5 + SESSION_MS, "a", less.generation, &both),
            [false, false]
        );
        assert_eq!(beat(&mut group, 5 + SESSION_MS, "a", &less), None);
        assert_eq!(
            beat(&mut group, 6 + SESSION_MS, "b", &b).unwrap().queues,
            both
        );
    }
}
