//! The topics of this core's metadata as a [`RegistrationSource`]. The registrar runs on core 0, whose metadata is newest.

use std::collections::BTreeSet;

use crate::broker::registration::RegistrationSource;
use crate::broker::topics::wire_version;
use crate::shard::handle::ShardHandle;
use crate::shard::message::{LocalReply, ShardRequest};
use crate::shard::meta::MetaCommand;
use crate::wire::remoting::body::{DataVersion, TopicConfig};

/// The core that writes topics.
const META_SHARD: usize = 0;

/// See the module's page.
pub struct MetaSource {
    shard: ShardHandle,
}

impl MetaSource {
    pub fn new(shard: ShardHandle) -> Self {
        Self { shard }
    }
}

impl RegistrationSource for MetaSource {
    fn version(&self) -> DataVersion {
        wire_version(self.shard.meta().topics_version)
    }

    fn topic_count(&self) -> usize {
        self.shard.meta().topics.len()
    }

    fn topics(&self) -> Vec<TopicConfig> {
        let meta = self.shard.meta();
        meta.topics
            .values()
            .map(|topic| topic.config.clone())
            .collect()
    }

    fn topic(&self, name: &str) -> Option<TopicConfig> {
        let meta = self.shard.meta();
        meta.topics.get(name).map(|topic| topic.config.clone())
    }

    fn order_topics(&self, topics: &BTreeSet<String>) {
        let wrong: Vec<TopicConfig> = {
            let meta = self.shard.meta();
            topics
                .iter()
                .filter_map(|name| meta.topics.get(name.as_str()))
                .filter(|topic| !topic.config.order)
                .map(|topic| TopicConfig {
                    order: true,
                    ..topic.config.clone()
                })
                .collect()
        };
        for config in wrong {
            let name = config.topic_name.clone();
            let request = ShardRequest::Meta(Box::new(MetaCommand::PutTopic(config)));
            self.shard.call(META_SHARD, request, move |reply| {
                if let LocalReply::Refused(refusal) = reply {
                    tracing::warn!("topic {name} is not marked as ordered: {refusal}");
                }
            });
        }
    }
}
