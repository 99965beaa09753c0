//! One membership of a consumer group: when to say what, and which queues are ours. Pure: times are nanoseconds of the
//! caller's clock.
//!
//! The broker shares the queues out. A queue is ours from the answer that names it until we have [released](Membership::released)
//! it, or until the lease is over: nine tenths of the session timeout after the last answered heartbeat was *sent*. The broker
//! counts the whole timeout from when that heartbeat came, so it never gives a queue away that is still ours.

use std::collections::{BTreeMap, BTreeSet};

use ringmq_wire_native::code::UNKNOWN_MEMBER;
use ringmq_wire_native::message::{
    Assignment, GroupHeartbeat, GroupJoin, GroupLeave, Message, TopicQueues,
};

use crate::core::routes::Queue;

/// Wait after a request that failed.
const RETRY_NS: u64 = 200_000_000;
const MS: u64 = 1_000_000;

/// How far we are with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Ours since this generation, and the application does not know yet.
    New(i64),
    Held,
    /// To be given up, and the application does not know yet.
    Unwanted,
    /// The application is giving it up.
    Leaving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Joining,
    Member,
    Leaving,
    Gone,
}

/// What is to be said to the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Comes back with what came of it.
    pub token: u64,
    kind: Phase,
    group: String,
    member_id: String,
    topics: Vec<String>,
    generation: i64,
    owned: Vec<(String, Vec<u32>)>,
}

impl Request {
    /// As a message.
    pub fn message(&self) -> Message<'_> {
        let owned = || {
            self.owned
                .iter()
                .map(|(topic, queue_ids)| TopicQueues {
                    topic,
                    queue_ids: queue_ids.clone(),
                })
                .collect()
        };
        match self.kind {
            Phase::Joining => Message::GroupJoin(GroupJoin {
                group: &self.group,
                member_id: &self.member_id,
                topics: self.topics.iter().map(String::as_str).collect(),
                generation: self.generation,
                owned: owned(),
            }),
            Phase::Member => Message::GroupHeartbeat(GroupHeartbeat {
                group: &self.group,
                member_id: &self.member_id,
                generation: self.generation,
                owned: owned(),
            }),
            Phase::Leaving | Phase::Gone => Message::GroupLeave(GroupLeave {
                group: &self.group,
                member_id: &self.member_id,
            }),
        }
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Membership {
    group: String,
    member_id: String,
    topics: Vec<String>,
    phase: Phase,
    generation: i64,
    queues: BTreeMap<Queue, Step>,
    /// Queues that were ours when the lease ended; the application does not know yet.
    lost: Vec<Queue>,
    lease_ends_ns: u64,
    due_ns: u64,
    in_flight: Option<(u64, u64)>,
    next_token: u64,
}

impl Membership {
    /// A membership that begins. The id is unique in the group.
    pub fn new(
        group: impl Into<String>,
        member_id: impl Into<String>,
        topics: Vec<String>,
    ) -> Self {
        Self {
            group: group.into(),
            member_id: member_id.into(),
            topics,
            phase: Phase::Joining,
            generation: 0,
            queues: BTreeMap::new(),
            lost: Vec::new(),
            lease_ends_ns: 0,
            due_ns: 0,
            in_flight: None,
            next_token: 1,
        }
    }

    /// Name of this member in its group.
    pub fn member_id(&self) -> &str {
        &self.member_id
    }

    /// Of the last assignment; commits carry it.
    pub fn generation(&self) -> i64 {
        self.generation
    }

    /// Whether the broker has taken the member.
    pub fn is_member(&self) -> bool {
        self.phase == Phase::Member
    }

    /// Subscribes to something else.
    pub fn subscribe(&mut self, topics: Vec<String>, now_ns: u64) {
        self.topics = topics;
        if matches!(self.phase, Phase::Member) {
            self.phase = Phase::Joining;
        }
        self.due_ns = now_ns;
    }

    /// Ends the membership with the next request. What was ours is not any more.
    pub fn leave(&mut self, now_ns: u64) {
        if self.phase != Phase::Gone {
            self.phase = Phase::Leaving;
            self.in_flight = None;
            self.due_ns = now_ns;
        }
        self.queues.clear();
    }

    /// Whether nothing is left to say.
    pub fn is_gone(&self) -> bool {
        self.phase == Phase::Gone
    }

    /// When [`Membership::request`] or [`Membership::tick`] have something to do.
    pub fn next_due_ns(&self) -> u64 {
        let lease_ends_ns = match self.queues.is_empty() {
            true => u64::MAX,
            false => self.lease_ends_ns,
        };
        match self.in_flight {
            Some(_) => lease_ends_ns,
            None => lease_ends_ns.min(self.due_ns),
        }
    }

    /// Until when what is ours is ours, whatever comes.
    pub fn lease_ends_ns(&self) -> u64 {
        self.lease_ends_ns
    }

    /// What is due to be said, one request at a time.
    pub fn request(&mut self, now_ns: u64) -> Option<Request> {
        self.tick(now_ns);
        if self.phase == Phase::Gone || self.in_flight.is_some() || now_ns < self.due_ns {
            return None;
        }
        let token = self.next_token;
        self.next_token += 1;
        self.in_flight = Some((token, now_ns));
        let mut owned: Vec<(String, Vec<u32>)> = Vec::new();
        for queue in self.queues.keys() {
            match owned.last_mut() {
                Some((topic, queue_ids)) if *topic == queue.topic => queue_ids.push(queue.queue_id),
                _ => owned.push((queue.topic.clone(), vec![queue.queue_id])),
            }
        }
        let kind = self.phase;
        if kind == Phase::Leaving {
            // It is said once: if it is lost, the session ends by itself.
            self.phase = Phase::Gone;
        }
        Some(Request {
            token,
            kind,
            group: self.group.clone(),
            member_id: self.member_id.clone(),
            topics: match kind {
                Phase::Joining => self.topics.clone(),
                _ => Vec::new(),
            },
            generation: self.generation,
            owned,
        })
    }

    fn landed(&mut self, token: u64) -> Option<u64> {
        let (in_flight, sent_ns) = self.in_flight?;
        (in_flight == token).then(|| {
            self.in_flight = None;
            sent_ns
        })
    }

    /// The broker says what is ours.
    pub fn answered(&mut self, token: u64, assignment: &Assignment<'_>, now_ns: u64) {
        let Some(sent_ns) = self.landed(token) else {
            return;
        };
        if matches!(self.phase, Phase::Leaving | Phase::Gone) {
            return;
        }
        let session_ns = u64::from(assignment.session_timeout_ms) * MS;
        let lease_ends_ns = sent_ns + session_ns / 10 * 9;
        if lease_ends_ns <= now_ns {
            self.due_ns = now_ns; // Too late to build upon.
            return;
        }
        self.tick(now_ns);
        self.phase = Phase::Member;
        self.lease_ends_ns = lease_ends_ns;
        self.generation = assignment.generation;
        self.due_ns = sent_ns + u64::from(assignment.heartbeat_interval_ms) * MS;
        let mut told = BTreeSet::new();
        for topic in &assignment.queues {
            for &queue_id in &topic.queue_ids {
                told.insert(Queue::new(topic.topic, queue_id));
            }
        }
        let mut has_dropped = false;
        self.queues.retain(|queue, step| {
            let is_told = told.contains(queue);
            match *step {
                // The application never heard of it.
                Step::New(_) if !is_told => {
                    has_dropped = true;
                    return false;
                }
                Step::Held if !is_told => *step = Step::Unwanted,
                Step::Unwanted if is_told => *step = Step::Held,
                _ => {}
            }
            true
        });
        for queue in told {
            self.queues
                .entry(queue)
                .or_insert(Step::New(assignment.generation));
        }
        if has_dropped {
            self.due_ns = now_ns;
        }
    }

    /// The broker says no, with a code of its own or of RocketMQ. False: it is not worth an error, the member joins again.
    pub fn refused(&mut self, token: u64, code: i32, now_ns: u64) -> bool {
        if self.landed(token).is_none() {
            return false;
        }
        if matches!(self.phase, Phase::Leaving | Phase::Gone) {
            return false;
        }
        self.phase = Phase::Joining;
        if code == UNKNOWN_MEMBER {
            self.due_ns = now_ns;
            return false;
        }
        self.due_ns = now_ns + 5 * RETRY_NS;
        true
    }

    /// Nobody knows what came of a request.
    pub fn failed(&mut self, token: u64, now_ns: u64) {
        if self.landed(token).is_some() {
            self.due_ns = now_ns + RETRY_NS;
        }
    }

    /// The broker has refused a commit as that of a stranger: it is asked at once.
    pub fn doubted(&mut self, now_ns: u64) {
        self.due_ns = self.due_ns.min(now_ns);
    }

    /// Ends the lease when its time has come.
    pub fn tick(&mut self, now_ns: u64) {
        if now_ns < self.lease_ends_ns || self.queues.is_empty() {
            return;
        }
        for (queue, step) in std::mem::take(&mut self.queues) {
            if !matches!(step, Step::New(_)) {
                self.lost.push(queue);
            }
        }
        if self.phase == Phase::Member {
            self.phase = Phase::Joining;
        }
    }

    /// Whether a queue is ours now.
    pub fn owns(&self, queue: &Queue, now_ns: u64) -> bool {
        now_ns < self.lease_ends_ns && self.queues.contains_key(queue)
    }

    /// Whether the application has something to do.
    pub fn has_news(&self) -> bool {
        !self.lost.is_empty() || self.queues.values().any(|&step| step != Step::Held)
    }

    /// Queues that are not ours any more: others may have them already.
    pub fn take_lost(&mut self) -> Vec<Queue> {
        std::mem::take(&mut self.lost)
    }

    /// Queues that are ours and not yet read, with the generation that [`Membership::taken`] asks for.
    pub fn new_queues(&self) -> (i64, Vec<Queue>) {
        let new = self
            .queues
            .iter()
            .filter(|(_, step)| matches!(step, Step::New(_)));
        (
            self.generation,
            new.map(|(queue, _)| queue.clone()).collect(),
        )
    }

    /// What was new in that generation is read now. Those come back that are not ours any more, or went away and came
    /// again in the meantime: they are not to be read from where they were.
    pub fn taken(&mut self, generation: i64, queues: &[Queue]) -> Vec<Queue> {
        let mut not_ours = Vec::new();
        for queue in queues {
            match self.queues.get_mut(queue) {
                Some(step) if matches!(*step, Step::New(since) if since <= generation) => {
                    *step = Step::Held;
                }
                _ => not_ours.push(queue.clone()),
            }
        }
        not_ours
    }

    /// Queues that somebody else is to have: they are ours until they are [released](Self::released).
    pub fn unwanted(&mut self) -> Vec<Queue> {
        for step in self.queues.values_mut() {
            if *step == Step::Unwanted {
                *step = Step::Leaving;
            }
        }
        let leaving = self
            .queues
            .iter()
            .filter(|(_, step)| **step == Step::Leaving);
        leaving.map(|(queue, _)| queue.clone()).collect()
    }

    /// They are committed, and not read any more.
    pub fn released(&mut self, queues: &[Queue], now_ns: u64) {
        for queue in queues {
            if self.queues.get(queue) == Some(&Step::Leaving) {
                self.queues.remove(queue);
            }
        }
        self.due_ns = now_ns;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SESSION_MS: u32 = 10_000;

    fn assignment<'a>(generation: i64, queue_ids: &[u32]) -> Assignment<'a> {
        Assignment {
            member_id: "m",
            generation,
            queues: vec![TopicQueues {
                topic: "T",
                queue_ids: queue_ids.to_vec(),
            }],
            heartbeat_interval_ms: 2_000,
            session_timeout_ms: SESSION_MS,
        }
    }

    fn queue(queue_id: u32) -> Queue {
        Queue::new("T", queue_id)
    }

    /// Asks at one time and is answered at another.
    fn hear(membership: &mut Membership, sent_ns: u64, now_ns: u64, told: &Assignment<'_>) {
        let request = membership.request(sent_ns).unwrap();
        membership.answered(request.token, told, now_ns);
    }

    fn member(queue_ids: &[u32]) -> Membership {
        let mut membership = Membership::new("g", "m", vec!["T".to_owned()]);
        hear(&mut membership, 0, MS, &assignment(1, queue_ids));
        let (generation, new) = membership.new_queues();
        assert_eq!(membership.taken(generation, &new), []);
        membership
    }

    #[test]
    fn a_lease_ends_nine_tenths_of_a_session_after_the_answered_heartbeat_was_sent() {
        let mut membership = member(&[0, 1]);
        assert!(membership.owns(&queue(0), 9_000 * MS - 1));
        assert!(!membership.owns(&queue(0), 9_000 * MS));
        hear(
            &mut membership,
            2_000 * MS,
            8_000 * MS,
            &assignment(1, &[0, 1]),
        );
        assert!(membership.owns(&queue(1), 11_000 * MS - 1));
        membership.tick(11_000 * MS);
        assert_eq!(membership.take_lost(), [queue(0), queue(1)]);
        // It comes back and says that it owns nothing.
        let request = membership.request(11_000 * MS).unwrap();
        match request.message() {
            Message::GroupJoin(join) => assert_eq!((join.generation, join.owned.len()), (1, 0)),
            other => panic!("{other:?}"),
        }
        // An answer that took longer than the lease is none.
        membership.answered(request.token, &assignment(2, &[0]), 20_000 * MS);
        assert!(membership.new_queues().1.is_empty());
    }

    #[test]
    fn a_queue_is_ours_until_it_is_released_and_then_the_broker_hears_of_it_at_once() {
        let mut membership = member(&[0, 1]);
        hear(
            &mut membership,
            2_000 * MS,
            2_000 * MS,
            &assignment(2, &[0]),
        );
        assert!(membership.owns(&queue(1), 2_000 * MS));
        assert!(
            membership.request(2_001 * MS).is_none(),
            "nothing to say yet"
        );
        assert_eq!(membership.unwanted(), [queue(1)]);
        membership.released(&[queue(1)], 2_002 * MS);
        assert!(!membership.owns(&queue(1), 2_002 * MS));
        let request = membership.request(2_002 * MS).unwrap();
        match request.message() {
            Message::GroupHeartbeat(beat) => {
                assert_eq!(
                    (beat.generation, &beat.owned[0].queue_ids[..]),
                    (2, &[0][..])
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_queue_that_is_not_to_go_any_more_stays_if_nobody_has_begun_to_give_it_up() {
        let mut membership = member(&[0]);
        hear(&mut membership, 2_000 * MS, 2_000 * MS, &assignment(2, &[]));
        hear(
            &mut membership,
            4_000 * MS,
            4_000 * MS,
            &assignment(3, &[0]),
        );
        assert!(!membership.has_news());
        hear(&mut membership, 6_000 * MS, 6_000 * MS, &assignment(4, &[]));
        assert_eq!(membership.unwanted(), [queue(0)]);
        membership.tick(6_100 * MS);
        let request = membership.request(8_000 * MS).unwrap();
        membership.answered(request.token, &assignment(5, &[0]), 8_000 * MS);
        assert_eq!(membership.unwanted(), [queue(0)], "what has begun is ended");
        membership.released(&[queue(0)], 8_001 * MS);
        hear(
            &mut membership,
            8_001 * MS,
            8_002 * MS,
            &assignment(5, &[0]),
        );
        assert_eq!(membership.new_queues().1, [queue(0)]);
    }

    #[test]
    fn a_queue_that_went_and_came_while_it_was_looked_up_is_looked_up_again() {
        let mut membership = Membership::new("g", "m", vec!["T".to_owned()]);
        hear(&mut membership, 0, 0, &assignment(1, &[0]));
        let (generation, new) = membership.new_queues();
        hear(&mut membership, 2_000 * MS, 2_000 * MS, &assignment(2, &[]));
        hear(
            &mut membership,
            2_000 * MS,
            2_001 * MS,
            &assignment(3, &[0]),
        );
        assert_eq!(membership.taken(generation, &new), [queue(0)]);
        assert_eq!(membership.new_queues(), (3, vec![queue(0)]));
    }

    #[test]
    fn a_broker_that_has_forgotten_a_member_is_told_what_it_owns() {
        let mut membership = member(&[0, 2]);
        let request = membership.request(2_000 * MS).unwrap();
        assert!(!membership.refused(request.token, UNKNOWN_MEMBER, 2_001 * MS));
        let request = membership.request(2_001 * MS).unwrap();
        match request.message() {
            Message::GroupJoin(join) => {
                assert_eq!((join.member_id, join.generation), ("m", 1));
                assert_eq!(join.owned[0].queue_ids, [0, 2]);
            }
            other => panic!("{other:?}"),
        }
        assert!(membership.owns(&queue(2), 2_001 * MS));
        assert!(
            !membership.has_news(),
            "the application hears nothing of it"
        );
    }
}
