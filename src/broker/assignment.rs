//! QUERY_ASSIGNMENT (400), SET_MESSAGE_REQUEST_MODE (401), GET_ALL_MESSAGE_REQUEST_MODE (402): which queues a member of a
//! group gets, and whether it pulls or pops.
//!
//! Source: `QueryAssignmentProcessor`, `MessageRequestModeManager`, `AllocateMessageQueueAveragely`,
//! `AllocateMessageQueueAveragelyByCircle`.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::names;
use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::broker::topics::PERM_READ;
use crate::shard::meta::MetaCommand;
use crate::wire::remoting::body::{
    MessageQueue, MessageQueueAssignment, MessageRequestModeSerializeWrapper,
    QueryAssignmentRequestBody, QueryAssignmentResponseBody, QueueData,
    SetMessageRequestModeRequestBody, TopicRouteData,
};
use crate::wire::remoting::command::Command;

const PULL: &str = "PULL";
const POP: &str = "POP";
const BROADCASTING: &str = "BROADCASTING";
const AVERAGELY: &str = "AVG";
const BY_CIRCLE: &str = "AVG_BY_CIRCLE";

/// How queues are dealt to the members of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strategy {
    Averagely,
    ByCircle,
}

impl Strategy {
    fn named(name: &str) -> Option<Self> {
        match name {
            AVERAGELY => Some(Self::Averagely),
            BY_CIRCLE => Some(Self::ByCircle),
            _ => None,
        }
    }

    /// The queues of one member; both lists are sorted. A client that is no member gets none.
    fn queues_of(
        self,
        queues: &[MessageQueue],
        members: &[&str],
        member: &str,
    ) -> Vec<MessageQueue> {
        let Some(index) = members.iter().position(|name| *name == member) else {
            return Vec::new();
        };
        match self {
            Self::Averagely => {
                let (share, left) = (queues.len() / members.len(), queues.len() % members.len());
                let start = index * share + index.min(left);
                let count = share + usize::from(index < left);
                queues[start..start + count].to_vec()
            }
            Self::ByCircle => {
                let own = queues.iter().skip(index).step_by(members.len());
                own.cloned().collect()
            }
        }
    }
}

/// The queues of a member that pops. Members share queues: each also gets those of the `share` members behind it, or, if
/// all share all, each broker as a whole (queue -1).
fn pop_queues(
    strategy: Strategy,
    queues: &[MessageQueue],
    members: &[&str],
    member: &str,
    share: i32,
) -> BTreeSet<MessageQueue> {
    let share = usize::try_from(share).unwrap_or(0);
    if share == 0 || share + 1 >= members.len() {
        let whole = queues.iter().map(|queue| MessageQueue {
            queue_id: -1,
            ..queue.clone()
        });
        return whole.collect();
    }
    let Some(index) = members.iter().position(|name| *name == member) else {
        return BTreeSet::new();
    };
    if members.len() > queues.len() {
        // Nobody goes without.
        let own = queues.get(index % queues.len().max(1));
        return own.cloned().into_iter().collect();
    }
    (0..=share)
        .map(|step| members[(index + step) % members.len()])
        .flat_map(|name| strategy.queues_of(queues, members, name))
        .collect()
}

/// The queues of a topic that may be read, in the order of `MessageQueue.compareTo`.
fn readable_queues(topic: &str, route: &TopicRouteData) -> Vec<MessageQueue> {
    let mut queues: Vec<MessageQueue> = route
        .queue_datas
        .iter()
        .filter(|data| data.perm & PERM_READ != 0)
        .flat_map(|data| {
            (0..data.read_queue_nums).map(|queue_id| MessageQueue {
                broker_name: data.broker_name.clone(),
                queue_id: queue_id as i32,
                topic: topic.to_owned(),
            })
        })
        .collect();
    queues.sort();
    queues
}

impl Broker {
    fn request_mode(&self, topic: &str, group: &str) -> SetMessageRequestModeRequestBody {
        let meta = self.shard.meta();
        let set = meta
            .request_modes
            .get(topic)
            .and_then(|groups| groups.get(group));
        if let Some(set) = set {
            return (**set).clone();
        }
        let is_pop = self.options.default_mode_is_pop && !names::is_retry_topic(topic);
        SetMessageRequestModeRequestBody {
            consumer_group: group.to_owned(),
            mode: if is_pop { POP } else { PULL }.to_owned(),
            pop_share_queue_num: if is_pop {
                self.options.default_pop_share_queues
            } else {
                0
            },
            topic: topic.to_owned(),
        }
    }

    /// 400.
    pub(super) async fn query_assignment(self, command: Command) -> Outcome {
        let asked: QueryAssignmentRequestBody = self.body(&command)?;
        let mode = self.request_mode(&asked.topic, &asked.consumer_group);
        let queues = self.assigned(&asked, &mode).await;
        let assignments = queues.map(|queues| {
            let assignments = queues.into_iter().map(|queue| MessageQueueAssignment {
                attachments: None,
                message_queue: queue,
                mode: mode.mode.clone(),
            });
            assignments.collect()
        });
        Answer::json(&QueryAssignmentResponseBody {
            message_queue_assignments: assignments,
        })
    }

    /// `None`: the topic, the group or the strategy is not known.
    async fn assigned(
        &self,
        asked: &QueryAssignmentRequestBody,
        mode: &SetMessageRequestModeRequestBody,
    ) -> Option<BTreeSet<MessageQueue>> {
        let route = self.route_of(&asked.topic).await?;
        let queues = readable_queues(&asked.topic, &route);
        if asked.message_model == BROADCASTING || !self.options.server_load_balancer {
            return Some(queues.into_iter().collect());
        }
        let online = self
            .shard
            .meta()
            .consumers
            .get(asked.consumer_group.as_str())
            .cloned()?;
        let mut members: Vec<&str> = online
            .members
            .iter()
            .map(|member| &*member.client.client_id)
            .collect();
        members.sort_unstable();
        members.dedup();
        let strategy = Strategy::named(&asked.strategy_name)?;
        let member = asked.client_id.as_str();
        Some(if mode.mode == POP {
            let share = mode.pop_share_queue_num;
            pop_queues(strategy, &queues, &members, member, share)
        } else {
            let own = strategy.queues_of(&queues, &members, member);
            own.into_iter().collect()
        })
    }

    /// Which brokers have which queues of a topic; for this broker's own it asks nobody.
    async fn route_of(&self, topic: &str) -> Option<TopicRouteData> {
        let source = self.routes.borrow().clone();
        let asked = match source {
            Some(source) => source.route(topic).await,
            None => None,
        };
        let own = self.known_topic(topic).map(|known| QueueData {
            broker_name: self.options.broker.to_string(),
            perm: known.config.perm & self.options.permission,
            read_queue_nums: known.config.read_queue_nums,
            topic_sys_flag: known.config.topic_sys_flag,
            write_queue_nums: known.config.write_queue_nums,
        });
        if asked.is_none() && own.is_none() {
            return None;
        }
        let mut route = asked.unwrap_or_default();
        route
            .queue_datas
            .retain(|data| *data.broker_name != *self.options.broker);
        route.queue_datas.extend(own);
        Some(route)
    }

    /// 401.
    pub(super) async fn set_request_mode(self, command: Command) -> Outcome {
        let mode: SetMessageRequestModeRequestBody = self.body(&command)?;
        if names::is_retry_topic(&mode.topic) {
            return Err(BrokerError::NoPermission(
                "retry topic is not allowed to set mode".into(),
            ));
        }
        names::check_topic(&mode.topic)?;
        names::check_group(&mode.consumer_group)?;
        if mode.mode != PULL && mode.mode != POP {
            return Err(BrokerError::InvalidParameter(format!(
                "the mode is '{}'; use PULL or POP",
                mode.mode
            )));
        }
        self.change(MetaCommand::PutRequestMode(mode)).await?;
        Answer::done()
    }

    /// 402.
    pub(super) fn all_request_modes(&self) -> Outcome {
        let meta = self.shard.meta();
        let modes: BTreeMap<_, BTreeMap<_, _>> = meta
            .request_modes
            .iter()
            .map(|(topic, groups)| {
                let groups = groups
                    .iter()
                    .map(|(group, mode)| (group.clone(), (**mode).clone()));
                (topic.clone(), groups.collect())
            })
            .collect();
        Answer::json(&MessageRequestModeSerializeWrapper {
            message_request_mode_map: modes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(count: i32) -> Vec<MessageQueue> {
        (0..count)
            .map(|queue_id| MessageQueue {
                broker_name: "b".into(),
                queue_id,
                topic: "T".into(),
            })
            .collect()
    }

    fn ids(queues: impl IntoIterator<Item = MessageQueue>) -> Vec<i32> {
        queues.into_iter().map(|queue| queue.queue_id).collect()
    }

    #[test]
    fn queues_are_dealt_averagely_in_one_piece_or_by_circle() {
        let members = ["a", "b", "c"];
        let of = |strategy: Strategy, member| ids(strategy.queues_of(&queues(8), &members, member));
        assert_eq!(of(Strategy::Averagely, "a"), [0, 1, 2]);
        assert_eq!(of(Strategy::Averagely, "b"), [3, 4, 5]);
        assert_eq!(of(Strategy::Averagely, "c"), [6, 7]);
        assert_eq!(of(Strategy::ByCircle, "b"), [1, 4, 7]);
        assert_eq!(of(Strategy::ByCircle, "nobody"), [0; 0]);
        let few = |member| ids(Strategy::Averagely.queues_of(&queues(2), &members, member));
        assert_eq!((few("a"), few("b"), few("c")), (vec![0], vec![1], vec![]));
    }

    #[test]
    fn members_that_pop_share_all_or_some_queues() {
        let members = ["a", "b", "c", "d"];
        let of = |count, member, share| {
            ids(pop_queues(
                Strategy::Averagely,
                &queues(count),
                &members,
                member,
                share,
            ))
        };
        assert_eq!(of(8, "a", -1), [-1]);
        assert_eq!(of(8, "a", 3), [-1]);
        assert_eq!(of(8, "a", 1), [0, 1, 2, 3]);
        assert_eq!(of(8, "d", 1), [0, 1, 6, 7]);
        assert_eq!(of(3, "d", 1), [0], "more members than queues");
        assert_eq!(of(8, "nobody", 1), [0; 0]);
    }
}
