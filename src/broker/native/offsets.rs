//! Offsets of groups and queues: commit, query, and the search by time. The owner of each queue answers.

use std::sync::Arc;

use crate::base::limits::NATIVE_QUEUES_MAX;
use crate::broker::dispatch::Broker;
use crate::broker::error::BrokerError;
use crate::broker::native::Fault;
use crate::broker::topics;
use crate::server::connection::NativeResponder;
use crate::shard::message::{Boundary, QueueKey, ShardReply, ShardRequest};
use crate::wire::native::message::{
    Message, OffsetCommit, OffsetQuery, QueueOffsets, QueueResult, QueueTime,
};
use crate::wire::remoting::code::response;

/// One queue of a request for offsets: where it is asked, or what is wrong with it.
type Placed = Result<(usize, QueueKey), Fault>;

/// A member of a group that commits, and the queues that it names.
struct CommittingMember {
    id: Arc<str>,
    generation: i64,
    queues: Vec<(Arc<str>, u32)>,
}

/// What is known of one queue.
struct Known {
    committed: i64,
    min_offset: i64,
    max_offset: i64,
    at_timestamp: i64,
}

impl Broker {
    fn place(&self, topic: &str, queue_id: u32) -> Placed {
        let found = self.topic(topic).and_then(|topic| {
            self.owner(&topic, queue_id.into())
                .ok_or_else(|| topics::no_queue(&topic.name, queue_id))
        });
        found.map_err(|error| self.fault(&error))
    }

    pub(super) fn native_commit(
        &self,
        id: u64,
        commit: &OffsetCommit<'_>,
        responder: NativeResponder,
    ) {
        let group: Arc<str> = Arc::from(commit.group);
        if let Err(error) = self.check_offsets(&group, commit.queues.len()) {
            return self.native_error(responder, id, &error);
        }
        let placed: Vec<Placed> = commit
            .queues
            .iter()
            .map(|queue| match queue.offset {
                0.. => self.place(queue.topic, queue.queue_id),
                offset => Err(self.fault(&BrokerError::InvalidParameter(format!(
                    "the offset is {offset}; an offset is not negative"
                )))),
            })
            .collect();
        let offsets: Vec<i64> = commit.queues.iter().map(|queue| queue.offset).collect();
        let member = (!commit.member_id.is_empty()).then(|| CommittingMember {
            id: Arc::from(commit.member_id),
            generation: commit.generation,
            queues: commit
                .queues
                .iter()
                .map(|queue| (Arc::from(queue.topic), queue.queue_id))
                .collect(),
        });
        let broker = self.clone();
        self.shard.spawn(async move {
            let mut placed = placed;
            let mut begun = Vec::new();
            if let Some(member) = &member {
                match broker.refuse_strangers(&group, member, &mut placed).await {
                    Ok(allowed) => begun = allowed,
                    Err(error) => return broker.native_error(responder, id, &error),
                }
            }
            let requests = placed
                .iter()
                .zip(offsets)
                .filter_map(|(placed, offset)| {
                    let (core, queue) = *placed.as_ref().ok()?;
                    let group = group.clone();
                    let request = ShardRequest::CommitOffset {
                        group,
                        queue,
                        offset,
                    };
                    Some((core, request))
                })
                .collect();
            let mut answers = broker.ask_all(requests).await.into_iter();
            if let Some(member) = &member {
                broker.end_commit(&group, &member.id, begun).await;
            }
            let faults: Vec<Option<Fault>> = placed
                .into_iter()
                .map(|placed| match placed {
                    Err(fault) => Some(fault),
                    Ok(_) => match answers.next() {
                        Some(Ok(ShardReply::Done)) => None,
                        Some(Err(error)) => Some(broker.fault(&error)),
                        other => Some(broker.fault(&BrokerError::unexpected(&other))),
                    },
                })
                .collect();
            let results = faults
                .iter()
                .map(|fault| match fault {
                    None => QueueResult::default(),
                    Some(fault) => QueueResult {
                        code: fault.code,
                        remark: &fault.remark,
                    },
                })
                .collect();
            broker.native_answer(responder, id, &Message::OffsetCommitReply(results));
        });
    }

    /// Puts a fault in the place of each queue that the member may not commit; gives those that it may.
    async fn refuse_strangers(
        &self,
        group: &Arc<str>,
        member: &CommittingMember,
        placed: &mut [Placed],
    ) -> Result<Vec<(Arc<str>, u32)>, BrokerError> {
        let (id, generation) = (&member.id, member.generation);
        let allowed = self
            .begin_commit(group, id, generation, member.queues.clone())
            .await?;
        let mut begun = Vec::new();
        for ((queue, placed), may) in member.queues.iter().zip(placed).zip(allowed) {
            match may {
                true => begun.push(queue.clone()),
                false => {
                    *placed = Err(self.fault(&BrokerError::StaleMember {
                        group: group.to_string(),
                        member: id.to_string(),
                        generation,
                    }));
                }
            }
        }
        Ok(begun)
    }

    fn check_offsets(&self, group: &str, queues: usize) -> Result<(), BrokerError> {
        if queues > NATIVE_QUEUES_MAX {
            return Err(BrokerError::InvalidParameter(format!(
                "offsets of {queues} queues at once, the limit is {NATIVE_QUEUES_MAX}"
            )));
        }
        if self.known_group(group).is_none() {
            return Err(BrokerError::NoGroup {
                group: group.to_owned(),
            });
        }
        Ok(())
    }

    pub(super) fn native_offsets(
        &self,
        id: u64,
        query: &OffsetQuery<'_>,
        responder: NativeResponder,
    ) {
        // A group that nobody made has committed nothing: that is an answer and no error.
        if query.queues.len() > NATIVE_QUEUES_MAX {
            let error = BrokerError::InvalidParameter(format!(
                "offsets of {} queues at once, the limit is {NATIVE_QUEUES_MAX}",
                query.queues.len()
            ));
            return self.native_error(responder, id, &error);
        }
        let group: Option<Arc<str>> = (!query.group.is_empty()).then(|| Arc::from(query.group));
        let placed: Vec<(Placed, i64)> = query
            .queues
            .iter()
            .map(|queue: &QueueTime<'_>| {
                let placed = self.place(queue.topic, queue.queue_id);
                (placed, queue.timestamp_ms)
            })
            .collect();
        let broker = self.clone();
        self.shard.spawn(async move {
            let mut requests = Vec::new();
            for (placed, timestamp_ms) in &placed {
                let Ok((core, queue)) = *placed else { continue };
                requests.push((core, ShardRequest::Bounds(queue)));
                if let Some(group) = group.clone() {
                    requests.push((core, ShardRequest::QueryOffset { group, queue }));
                }
                if *timestamp_ms >= 0 {
                    let search = ShardRequest::SearchByTime {
                        queue,
                        timestamp_ms: *timestamp_ms,
                        boundary: Boundary::Lower,
                    };
                    requests.push((core, search));
                }
            }
            let mut answers = broker.ask_all(requests).await.into_iter();
            let mut found: Vec<Result<Known, Fault>> = Vec::with_capacity(placed.len());
            for (placed, timestamp_ms) in placed {
                if let Err(fault) = placed {
                    found.push(Err(fault));
                    continue;
                }
                let questions = 1 + usize::from(group.is_some()) + usize::from(timestamp_ms >= 0);
                let known = known_of(answers.by_ref().take(questions));
                found.push(known.map_err(|error| broker.fault(&error)));
            }
            let offsets = found
                .iter()
                .map(|found| match found {
                    Ok(known) => QueueOffsets {
                        code: response::SUCCESS,
                        remark: "",
                        committed: known.committed,
                        min_offset: known.min_offset,
                        max_offset: known.max_offset,
                        at_timestamp: known.at_timestamp,
                    },
                    Err(fault) => QueueOffsets {
                        code: fault.code,
                        remark: &fault.remark,
                        committed: -1,
                        min_offset: -1,
                        max_offset: -1,
                        at_timestamp: -1,
                    },
                })
                .collect();
            broker.native_answer(responder, id, &Message::OffsetQueryReply(offsets));
        });
    }
}

/// The answers about one queue together. All are taken, also behind an error.
fn known_of(
    answers: impl Iterator<Item = Result<crate::shard::message::LocalReply, BrokerError>>,
) -> Result<Known, BrokerError> {
    let mut known = Known {
        committed: -1,
        min_offset: -1,
        max_offset: -1,
        at_timestamp: -1,
    };
    let mut failed = None;
    for answer in answers {
        match answer {
            Ok(ShardReply::Bounds(bounds)) => {
                known.min_offset = bounds.min_offset;
                known.max_offset = bounds.max_offset;
            }
            Ok(ShardReply::Offset(offset)) => known.committed = offset.unwrap_or(-1),
            Ok(ShardReply::Number(offset)) => known.at_timestamp = offset,
            Ok(other) => failed = Some(BrokerError::unexpected(&other)),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(known), Err)
}
