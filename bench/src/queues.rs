//! The queues of a run, numbered: broker by broker, topic by topic. Producers, consumers and the ledger use the numbers.

use std::ops::Range;

use crate::control::Broker;

/// All queues of a run.
#[derive(Clone, Debug)]
pub struct Queues {
    pub brokers: Vec<Broker>,
    pub topics: Vec<String>,
    /// Of each topic on each broker.
    pub per_topic: u32,
}

impl Queues {
    /// Queues on one broker.
    pub fn per_broker(&self) -> usize {
        self.topics.len() * self.per_topic as usize
    }

    /// All queues.
    pub fn len(&self) -> usize {
        self.brokers.len() * self.per_broker()
    }

    /// Never: a run has a queue.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers of the queues on a broker.
    pub fn of_broker(&self, broker: usize) -> Range<usize> {
        broker * self.per_broker()..(broker + 1) * self.per_broker()
    }

    /// Topic of a queue.
    pub fn topic(&self, number: usize) -> &str {
        &self.topics[number % self.per_broker() / self.per_topic as usize]
    }

    /// Its id within the topic.
    pub fn id(&self, number: usize) -> u32 {
        number as u32 % self.per_topic
    }
}
