//! Queue locks of ordered consumers: LOCK_BATCH_MQ (41), UNLOCK_BATCH_MQ (42).
//!
//! Each queue's owner keeps its lock; a request of several queues is asked core by core and answered in one body. Locks
//! are never durable: they expire after 60 s, and clients take them again every 20 s. Source: `RebalanceLockManager`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::shard::message::{QueueKey, ShardReply, ShardRequest};
use crate::wire::remoting::body::{LockBatchRequestBody, LockBatchResponseBody, MessageQueue};
use crate::wire::remoting::command::Command;

/// The queues of a request by owner, each with the name that the client gave it. Unknown ones are left out.
type ByCore = BTreeMap<usize, Vec<(QueueKey, MessageQueue)>>;

impl Broker {
    fn by_core(&self, queues: Vec<MessageQueue>) -> ByCore {
        let mut by_core = ByCore::new();
        for queue in queues {
            let owner = self
                .known_topic(&queue.topic)
                .and_then(|topic| self.owner(&topic, queue.queue_id.into()));
            if let Some((core, key)) = owner {
                by_core.entry(core).or_default().push((key, queue));
            }
        }
        by_core
    }

    pub(super) async fn lock_queues(self, command: Command) -> Outcome {
        let batch: LockBatchRequestBody = self.body(&command)?;
        let (group, client_id) = names(&batch);
        let mut lock_ok_mq_set = Vec::new();
        for (core, queues) in self.by_core(batch.mq_set) {
            let request = ShardRequest::LockQueues {
                group: group.clone(),
                client_id: client_id.clone(),
                queues: queues.iter().map(|(key, _)| *key).collect(),
            };
            match self.ask(core, request).await? {
                ShardReply::Queues(held) => lock_ok_mq_set.extend(
                    queues
                        .into_iter()
                        .filter(|(key, _)| held.contains(key))
                        .map(|(_, queue)| queue),
                ),
                other => return Err(BrokerError::unexpected(&other)),
            }
        }
        Answer::json(&LockBatchResponseBody { lock_ok_mq_set })
    }

    pub(super) async fn unlock_queues(self, command: Command) -> Outcome {
        let batch: LockBatchRequestBody = self.body(&command)?;
        let (group, client_id) = names(&batch);
        for (core, queues) in self.by_core(batch.mq_set) {
            let request = ShardRequest::UnlockQueues {
                group: group.clone(),
                client_id: client_id.clone(),
                queues: queues.into_iter().map(|(key, _)| key).collect(),
            };
            self.ask(core, request).await?;
        }
        Answer::done()
    }
}

fn names(batch: &LockBatchRequestBody) -> (Arc<str>, Arc<str>) {
    (
        Arc::from(batch.consumer_group.as_str()),
        Arc::from(batch.client_id.as_str()),
    )
}
