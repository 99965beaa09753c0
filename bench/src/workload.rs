//! Workload files of the OpenMessaging Benchmark (`workloads/*.yaml`) as plans.
//!
//! What a file asks for and this program does not do is an error that says so, never left out silently. Keys choose queues
//! in the original; here `KEY_ROUND_ROBIN` and `NO_KEY` take the queues in turns and `RANDOM_NANO` takes them at random.

use serde::Deserialize;

use crate::plan::{Consume, Mode, Plan, Produce};

/// A workload file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workload {
    pub name: String,
    #[serde(default = "one")]
    pub topics: usize,
    #[serde(default = "one")]
    pub partitions_per_topic: usize,
    #[serde(default)]
    pub key_distributor: KeyDistributor,
    pub message_size: usize,
    /// Bodies are always filler that does not compress; the file itself is not read.
    #[serde(default)]
    pub payload_file: Option<String>,
    #[serde(default)]
    pub use_randomized_payloads: bool,
    #[serde(default)]
    pub random_bytes_ratio: f64,
    #[serde(default)]
    pub randomized_payload_pool_size: usize,
    #[serde(default)]
    pub subscriptions_per_topic: usize,
    #[serde(default)]
    pub consumer_per_subscription: usize,
    #[serde(default = "one")]
    pub producers_per_topic: usize,
    /// Messages per second; 0 searches for the most.
    #[serde(default)]
    pub producer_rate: f64,
    #[serde(default, rename = "consumerBacklogSizeGB")]
    pub consumer_backlog_size_gb: f64,
    #[serde(default)]
    pub backlog_drain_ratio: f64,
    #[serde(default = "five")]
    pub test_duration_minutes: f64,
    #[serde(default = "one_minute")]
    pub warmup_duration_minutes: f64,
}

/// How messages are spread over queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum KeyDistributor {
    #[default]
    NoKey,
    KeyRoundRobin,
    RandomNano,
}

fn one() -> usize {
    1
}

fn five() -> f64 {
    5.0
}

fn one_minute() -> f64 {
    1.0
}

/// A file that is no workload, or one that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error("the workload file cannot be read: {0}")]
    Syntax(String),
    #[error("{key} of the workload is {value}: {advice}")]
    Unsupported {
        key: &'static str,
        value: String,
        advice: &'static str,
    },
}

impl Workload {
    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Self, WorkloadError> {
        serde_saphyr::from_str(text).map_err(|error| WorkloadError::Syntax(error.to_string()))
    }

    /// Puts the workload over a plan that says where to and how. A rate of 0 becomes none.
    pub fn plan(
        &self,
        base: Plan,
        produce: Produce,
        consume: Consume,
    ) -> Result<Plan, WorkloadError> {
        let unsupported =
            |key, value: String, advice| Err(WorkloadError::Unsupported { key, value, advice });
        if self.consumer_backlog_size_gb > 0.0 {
            let advice = "run `producer` and then `consumer --mode catch-up` instead";
            return unsupported(
                "consumerBacklogSizeGB",
                self.consumer_backlog_size_gb.to_string(),
                advice,
            );
        }
        if self.subscriptions_per_topic > 1 {
            let advice =
                "one subscription is the most; start further `consumer` processes beside this one";
            return unsupported(
                "subscriptionsPerTopic",
                self.subscriptions_per_topic.to_string(),
                advice,
            );
        }
        let consumers = self.topics * self.consumer_per_subscription.max(1);
        Ok(Plan {
            name: self.name.clone(),
            topics: self.topics,
            queues: self.partitions_per_topic as u32,
            size: self.message_size,
            warm_seconds: self.warmup_duration_minutes * 60.0,
            seconds: self.test_duration_minutes * 60.0,
            produce: Some(Produce {
                connections: self.topics * self.producers_per_topic,
                rate: (self.producer_rate > 0.0).then_some(self.producer_rate),
                skew: match self.key_distributor {
                    // An exponent this small gives every queue the same share, at random.
                    KeyDistributor::RandomNano => 1e-9,
                    _ => 0.0,
                },
                ..produce
            }),
            consume: (self.subscriptions_per_topic > 0).then_some(Consume {
                mode: Mode::Hot,
                connections: consumers,
                ..consume
            }),
            ..base
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::{Header, Protocol, fetch_bytes};

    const FILE: &str = "
name: 1 topic / 16 partitions / 1kb

topics: 1
partitionsPerTopic: 16
keyDistributor: \"NO_KEY\"
messageSize: 1024
payloadFile: \"payload/payload-1Kb.data\"
subscriptionsPerTopic: 1
consumerPerSubscription: 4
producersPerTopic: 2
producerRate: 50000
consumerBacklogSizeGB: 0
testDurationMinutes: 15
";

    fn plan_of(text: &str) -> Result<Plan, WorkloadError> {
        let produce = Produce {
            batch: 1,
            in_flight: 64,
            connections: 1,
            threads: 1,
            cpus: Vec::new(),
            rate: None,
            poisson: false,
            burst: None,
            skew: 0.0,
            tag: None,
            transaction: None,
        };
        let consume = Consume {
            mode: Mode::Hot,
            group: "g".into(),
            connections: 1,
            threads: 1,
            cpus: Vec::new(),
            pull_messages: 32,
            fetch_bytes: fetch_bytes(),
            check_crc: false,
        };
        let base = Plan {
            name: String::new(),
            namesrv: "127.0.0.1:9876".into(),
            broker: None,
            broker_pids: Vec::new(),
            topic: "T".into(),
            topics: 1,
            queues: 4,
            size: 1,
            header: Header::Json,
            protocol: Protocol::Remoting,
            produce: None,
            consume: None,
            warm_seconds: 0.0,
            seconds: 1.0,
            verify: false,
        };
        Workload::parse(text)?.plan(base, produce, consume)
    }

    #[test]
    fn a_file_of_the_original_becomes_a_plan() {
        let plan = plan_of(FILE).unwrap();
        let (produce, consume) = (plan.produce.clone().unwrap(), plan.consume.clone().unwrap());
        assert_eq!((plan.topics, plan.queues, plan.size), (1, 16, 1024));
        assert_eq!((plan.warm_seconds, plan.seconds), (60.0, 900.0));
        assert_eq!((produce.rate, produce.connections), (Some(50_000.0), 2));
        assert_eq!(consume.connections, 4);
        plan.check().unwrap();
    }

    #[test]
    fn what_is_not_done_is_refused_by_its_name() {
        let backlog = FILE.replace("consumerBacklogSizeGB: 0", "consumerBacklogSizeGB: 100");
        assert!(
            plan_of(&backlog)
                .unwrap_err()
                .to_string()
                .contains("consumerBacklogSizeGB")
        );
        let many = FILE.replace("subscriptionsPerTopic: 1", "subscriptionsPerTopic: 3");
        assert!(
            plan_of(&many)
                .unwrap_err()
                .to_string()
                .contains("subscriptionsPerTopic")
        );
        let unknown = FILE.replace("producerRate", "producerRte");
        assert!(
            plan_of(&unknown)
                .unwrap_err()
                .to_string()
                .contains("producerRte")
        );
    }

    #[test]
    fn no_rate_and_no_subscription_is_a_closed_loop_of_sends() {
        let text = FILE
            .replace("producerRate: 50000", "producerRate: 0")
            .replace("subscriptionsPerTopic: 1", "subscriptionsPerTopic: 0");
        let plan = plan_of(&text).unwrap();
        assert_eq!(plan.produce.unwrap().rate, None);
        assert_eq!(plan.consume, None);
    }

    proptest! {
        #[test]
        fn any_text_is_a_workload_or_an_error(text in "\\PC{0,80}") {
            let _ = Workload::parse(&text);
        }
    }
}
