//! Topics, their queues, and the core that owns each queue.

use std::collections::HashMap;

use ringmq_wire_native::message::MetadataReply;

/// A queue of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Queue {
    /// Name of the topic.
    pub topic: String,
    /// Number of the queue in it.
    pub queue_id: u32,
}

impl Queue {
    /// A queue by its topic and number.
    pub fn new(topic: impl Into<String>, queue_id: u32) -> Self {
        Self {
            topic: topic.into(),
            queue_id,
        }
    }
}

/// What is known of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topic {
    /// Number of queues to write to: those with a lower id.
    pub write_queues: u32,
    /// Number of queues to read from.
    pub read_queues: u32,
    /// The core that owns each queue.
    pub shards: HashMap<u32, u16>,
}

/// Why a topic cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the broker answers with code {code} for the topic '{topic}': {remark}")]
pub struct TopicError {
    /// Name of the topic.
    pub topic: String,
    /// A response code of RocketMQ.
    pub code: i32,
    /// What the broker says.
    pub remark: String,
}

/// See the module's page.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    topics: HashMap<String, Topic>,
    /// `host:port` of each core, if each has its own.
    addresses: HashMap<u16, String>,
}

impl Routes {
    /// Takes what a broker said; the first topic that it refuses is the error.
    pub fn learn(&mut self, reply: &MetadataReply<'_>) -> Result<(), TopicError> {
        if reply.direct {
            for shard in &reply.shards {
                let host = match shard.host.contains(':') {
                    true => format!("[{}]:{}", shard.host, shard.port),
                    false => format!("{}:{}", shard.host, shard.port),
                };
                self.addresses.insert(shard.shard, host);
            }
        }
        let mut refused = None;
        for topic in &reply.topics {
            if topic.code != 0 {
                self.topics.remove(topic.topic);
                refused.get_or_insert_with(|| TopicError {
                    topic: topic.topic.to_owned(),
                    code: topic.code,
                    remark: topic.remark.to_owned(),
                });
                continue;
            }
            let known = Topic {
                write_queues: topic.write_queues,
                read_queues: topic.read_queues,
                shards: topic
                    .queues
                    .iter()
                    .map(|queue| (queue.queue_id, queue.shard))
                    .collect(),
            };
            self.topics.insert(topic.topic.to_owned(), known);
        }
        refused.map_or(Ok(()), Err)
    }

    /// A topic, if it is known.
    pub fn topic(&self, name: &str) -> Option<&Topic> {
        self.topics.get(name)
    }

    /// Forgets a topic, so that it is asked for again.
    pub fn forget(&mut self, name: &str) {
        self.topics.remove(name);
    }

    /// Where the owner of a queue listens; none if any address of the broker will do.
    pub fn address_of(&self, topic: &str, queue_id: u32) -> Option<&str> {
        let shard = self.topics.get(topic)?.shards.get(&queue_id)?;
        self.addresses.get(shard).map(String::as_str)
    }
}
