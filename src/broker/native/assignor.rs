//! Which member of a group reads which queue: every queue of every subscribed topic exactly one, as evenly as can be, and
//! with as few moves as can be. Pure, and the same for the same input.
//!
//! Queues stay where they are unless their member is gone or does not want the topic any more. Those without a member go
//! to the least loaded one that wants them. Then queues move from a member to one that has at least two less, the greatest
//! difference first, until there is no such pair: so members that subscribe to the same topics differ by one queue at most,
//! and a move is made only if the load was uneven before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A queue by the name of its topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupQueue {
    pub topic: Arc<str>,
    pub queue_id: u32,
}

pub type MemberId = Arc<str>;

/// Who reads what.
pub type Shares = BTreeMap<GroupQueue, MemberId>;

/// The subscribers of one topic, and how many of its queues each has.
struct TopicLoad<'a> {
    subscribers: Vec<&'a MemberId>,
    /// With their load over all topics, ascending.
    by_load: BTreeSet<(usize, &'a MemberId)>,
    /// The queues that each has, ascending.
    queues: BTreeMap<&'a MemberId, BTreeSet<u32>>,
}

impl<'a> TopicLoad<'a> {
    /// The member with the greatest load that has a queue of the topic.
    fn most_loaded_owner(&self) -> Option<(usize, &'a MemberId)> {
        let owns = |member: &&'a MemberId| self.queues.get(*member).is_some_and(|q| !q.is_empty());
        let mut loaded = self.by_load.iter().rev();
        loaded.find(|(_, member)| owns(member)).copied()
    }

    /// The least loaded subscriber; of several the one with the fewest queues of this topic.
    fn least_loaded(&self) -> Option<(usize, &'a MemberId)> {
        let (least, _) = *self.by_load.first()?;
        let of_topic = |member: &MemberId| self.queues.get(member).map_or(0, BTreeSet::len);
        self.by_load
            .iter()
            .take_while(|(load, _)| *load == least)
            .min_by_key(|(_, member)| of_topic(member))
            .copied()
    }
}

struct Loads<'a> {
    of: BTreeMap<&'a MemberId, usize>,
    topics: BTreeMap<&'a Arc<str>, TopicLoad<'a>>,
    wanted: BTreeMap<&'a MemberId, Vec<&'a Arc<str>>>,
}

impl<'a> Loads<'a> {
    fn change(&mut self, member: &'a MemberId, by: isize) {
        let load = self.of.entry(member).or_default();
        let before = *load;
        *load = before.saturating_add_signed(by);
        let after = *load;
        for topic in self.wanted.get(member).into_iter().flatten() {
            if let Some(topic) = self.topics.get_mut(topic) {
                topic.by_load.remove(&(before, member));
                topic.by_load.insert((after, member));
            }
        }
    }

    fn give(&mut self, topic: &'a Arc<str>, queue_id: u32, member: &'a MemberId) {
        if let Some(of_topic) = self.topics.get_mut(topic) {
            of_topic.queues.entry(member).or_default().insert(queue_id);
            self.change(member, 1);
        }
    }

    /// Moves a queue of the pair with the greatest difference in load, if one differs by two.
    fn even_out(&mut self) -> bool {
        let mut best: Option<(usize, &'a Arc<str>, &'a MemberId, &'a MemberId)> = None;
        for (&name, topic) in &self.topics {
            let (Some((more, from)), Some((less, to))) =
                (topic.most_loaded_owner(), topic.least_loaded())
            else {
                continue;
            };
            let difference = more.saturating_sub(less);
            if difference >= 2 && best.is_none_or(|(known, ..)| difference > known) {
                best = Some((difference, name, from, to));
            }
        }
        let Some((_, name, from, to)) = best else {
            return false;
        };
        let queues = self
            .topics
            .get_mut(name)
            .and_then(|t| t.queues.get_mut(from));
        let Some(queue_id) = queues.and_then(BTreeSet::pop_last) else {
            return false;
        };
        self.change(from, -1);
        self.give(name, queue_id, to);
        true
    }
}

/// Shares the queues out. `topics` has the number of queues of each topic, `current` who reads what now.
pub fn assign(
    members: &BTreeMap<MemberId, BTreeSet<Arc<str>>>,
    topics: &BTreeMap<Arc<str>, u32>,
    current: &Shares,
) -> Shares {
    let mut loads = Loads {
        of: members.keys().map(|member| (member, 0)).collect(),
        topics: BTreeMap::new(),
        wanted: BTreeMap::new(),
    };
    for name in topics.keys() {
        let subscribers: Vec<&MemberId> = members
            .iter()
            .filter(|(_, wanted)| wanted.contains(name))
            .map(|(member, _)| member)
            .collect();
        if subscribers.is_empty() {
            continue;
        }
        for member in &subscribers {
            loads.wanted.entry(member).or_default().push(name);
        }
        let load = TopicLoad {
            by_load: subscribers.iter().map(|&member| (0, member)).collect(),
            subscribers,
            queues: BTreeMap::new(),
        };
        loads.topics.insert(name, load);
    }
    let mut orphans = Vec::new();
    for (name, &queues) in topics {
        let Some(subscribers) = loads
            .topics
            .get(name)
            .map(|topic| topic.subscribers.clone())
        else {
            continue;
        };
        for queue_id in 0..queues {
            let queue = GroupQueue {
                topic: name.clone(),
                queue_id,
            };
            let stays = current
                .get(&queue)
                .and_then(|member| subscribers.binary_search(&member).ok());
            match stays.and_then(|at| subscribers.get(at)) {
                Some(&member) => loads.give(name, queue_id, member),
                None => orphans.push((name, queue_id)),
            }
        }
    }
    for (name, queue_id) in orphans {
        let least = loads.topics.get(name).and_then(TopicLoad::least_loaded);
        if let Some((_, member)) = least {
            loads.give(name, queue_id, member);
        }
    }
    while loads.even_out() {}
    let mut shares = Shares::new();
    for (&name, topic) in &loads.topics {
        for (&member, queues) in &topic.queues {
            for &queue_id in queues {
                let queue = GroupQueue {
                    topic: name.clone(),
                    queue_id,
                };
                shares.insert(queue, member.clone());
            }
        }
    }
    shares
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    type Members = BTreeMap<MemberId, BTreeSet<Arc<str>>>;
    type Topics = BTreeMap<Arc<str>, u32>;

    fn member(number: usize) -> MemberId {
        Arc::from(format!("m{number:02}"))
    }

    fn topic(number: usize) -> Arc<str> {
        Arc::from(format!("T{number}"))
    }

    fn load_of(shares: &Shares, member: &MemberId) -> usize {
        shares.values().filter(|owner| *owner == member).count()
    }

    /// Queues that have another member than before, without those that had none or whose member is gone.
    fn moved(before: &Shares, after: &Shares, members: &Members) -> usize {
        before
            .iter()
            .filter(|(queue, owner)| {
                members.contains_key(*owner) && after.get(*queue).is_some_and(|now| now != *owner)
            })
            .count()
    }

    /// Exactly the subscribed queues, each at a member that wants it; and no queue could move to make the load more even.
    pub fn check(members: &Members, topics: &Topics, shares: &Shares) {
        let mut expected = BTreeSet::new();
        for (name, &queues) in topics {
            if members.values().any(|wanted| wanted.contains(name)) {
                expected.extend((0..queues).map(|queue_id| GroupQueue {
                    topic: name.clone(),
                    queue_id,
                }));
            }
        }
        let given: BTreeSet<GroupQueue> = shares.keys().cloned().collect();
        assert_eq!(given, expected, "every queue, each once");
        for (queue, owner) in shares {
            let wanted = members.get(owner).expect("a live member");
            assert!(
                wanted.contains(&queue.topic),
                "{owner} does not want {queue:?}"
            );
            for (other, wanted) in members {
                if wanted.contains(&queue.topic) {
                    let (mine, theirs) = (load_of(shares, owner), load_of(shares, other));
                    assert!(
                        mine <= theirs + 1,
                        "{owner} has {mine}, {other} has {theirs}"
                    );
                }
            }
        }
    }

    fn topics() -> impl Strategy<Value = Topics> {
        prop::collection::vec(0u32..12, 1..5).prop_map(|queues| {
            let named = queues.into_iter().enumerate();
            named
                .map(|(number, queues)| (topic(number), queues))
                .collect()
        })
    }

    /// Members that want each topic or not, as bits.
    fn mixed() -> impl Strategy<Value = Members> {
        prop::collection::btree_map(0usize..12, 0u8..16, 0..8).prop_map(|members| {
            let wanted = |bits: u8| {
                (0..4)
                    .filter(|bit| bits & 1 << bit != 0)
                    .map(topic)
                    .collect()
            };
            members
                .into_iter()
                .map(|(number, bits)| (member(number), wanted(bits)))
                .collect()
        })
    }

    proptest! {
        /// Whatever was before, and whatever the members want.
        #[test]
        fn every_queue_has_one_member_that_wants_it_and_the_load_is_even(
            before in mixed(),
            after in mixed(),
            had in topics(),
            has in topics(),
        ) {
            let shares = assign(&before, &had, &Shares::new());
            check(&before, &had, &shares);
            let next = assign(&after, &has, &shares);
            check(&after, &has, &next);
            prop_assert_eq!(&assign(&after, &has, &next), &next, "what is even is left alone");
            prop_assert_eq!(&assign(&after, &has, &shares), &next, "the same for the same input");
        }

        /// Among members that want the same: a leave moves what the leaver had and nothing else; a join moves what the newcomer
        /// gets and nothing else, and that is its even share.
        #[test]
        fn a_join_or_a_leave_moves_no_more_than_it_must(topics in topics(), steps in prop::collection::vec(0usize..10, 1..40)) {
            let wanted: BTreeSet<Arc<str>> = topics.keys().cloned().collect();
            let queues: usize = topics.values().map(|&queues| queues as usize).sum();
            let (mut members, mut shares) = (Members::new(), Shares::new());
            for step in steps {
                let who = member(step);
                let leaves = members.remove(&who).is_some();
                if !leaves {
                    members.insert(who.clone(), wanted.clone());
                }
                let next = assign(&members, &topics, &shares);
                check(&members, &topics, &next);
                let moves = moved(&shares, &next, &members);
                match leaves {
                    true => prop_assert_eq!(moves, 0, "only the leaver's queues move"),
                    false if members.len() > 1 => {
                        prop_assert_eq!(moves, load_of(&next, &who), "only to the newcomer");
                        prop_assert_eq!(moves, queues / members.len(), "its even share");
                    }
                    false => prop_assert_eq!(moves, 0),
                }
                shares = next;
            }
        }

        /// Any number of members come and go at once: the moves are those that an even load costs.
        #[test]
        fn many_changes_at_once_move_what_even_shares_cost(
            topics in topics(),
            before in prop::collection::btree_set(0usize..12, 1..8),
            after in prop::collection::btree_set(0usize..12, 1..8),
        ) {
            let wanted: BTreeSet<Arc<str>> = topics.keys().cloned().collect();
            let members = |numbers: &BTreeSet<usize>| -> Members {
                numbers.iter().map(|&number| (member(number), wanted.clone())).collect()
            };
            let (old, new) = (members(&before), members(&after));
            let shares = assign(&old, &topics, &Shares::new());
            let next = assign(&new, &topics, &shares);
            let queues: usize = topics.values().map(|&queues| queues as usize).sum();
            let (floor, more) = (queues / new.len(), queues % new.len());
            // Who stays keeps at most an even share: `more` of all members one above the floor.
            let mut kept: Vec<usize> = new.keys().map(|member| load_of(&shares, member)).collect();
            kept.sort_unstable_by(|a, b| b.cmp(a));
            let must_give: usize = kept
                .iter()
                .enumerate()
                .map(|(rank, &load)| load.saturating_sub(floor + usize::from(rank < more)))
                .sum();
            prop_assert_eq!(moved(&shares, &next, &new), must_give);
        }
    }

    #[test]
    fn a_new_group_spreads_each_topic() {
        let wanted: BTreeSet<Arc<str>> = [topic(0), topic(1)].into();
        let members: Members = (0..2)
            .map(|number| (member(number), wanted.clone()))
            .collect();
        let topics: Topics = [(topic(0), 4), (topic(1), 4)].into();
        let shares = assign(&members, &topics, &Shares::new());
        for name in [topic(0), topic(1)] {
            let of_topic = shares.iter().filter(|(queue, _)| queue.topic == name);
            let mine = of_topic.filter(|(_, owner)| **owner == member(0)).count();
            assert_eq!(mine, 2);
        }
    }

    #[test]
    fn the_largest_group_is_shared_out_in_a_blink() {
        let wanted: BTreeSet<Arc<str>> = (0..64).map(topic).collect();
        let topics: Topics = wanted.iter().map(|name| (name.clone(), 64)).collect();
        let members: Members = (0..1)
            .map(|number| (member(number), wanted.clone()))
            .collect();
        let one = assign(&members, &topics, &Shares::new());
        let members: Members = (0..1000)
            .map(|number| (Arc::from(format!("m{number}")), wanted.clone()))
            .collect();
        let begun = std::time::Instant::now();
        let all = assign(&members, &topics, &one);
        let loads: BTreeSet<usize> = members.keys().map(|m| load_of(&all, m)).collect();
        assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1);
        say(begun.elapsed());
    }

    fn say(time: std::time::Duration) {
        println!("4,096 queues from one member to 1,000: {time:?}");
    }
}
