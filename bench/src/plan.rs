//! What a run does, as data: flags and workload files become one, agents receive one, a result keeps it.

use serde::{Deserialize, Serialize};

/// How headers are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Header {
    /// As Java clients do by default
    #[default]
    Json,
    /// RocketMQ's binary header
    Binary,
}

/// What is spoken with the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// RocketMQ's, which RingMQ and the original understand
    #[default]
    Remoting,
    /// RingMQ's own: whole records in frames, many queues of a connection in one fetch
    Native,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What the result is called.
    pub name: String,
    /// `host:port`; all masters that it knows are used.
    pub namesrv: String,
    /// `host:port` of one broker, instead of asking a name server.
    pub broker: Option<String>,
    /// Processes whose CPU time and memory count as the broker's.
    pub broker_pids: Vec<u32>,
    pub topic: String,
    pub topics: usize,
    /// Of each topic on each broker.
    pub queues: u32,
    /// Bytes of a message's body.
    pub size: usize,
    pub header: Header,
    #[serde(default)]
    pub protocol: Protocol,
    pub produce: Option<Produce>,
    pub consume: Option<Consume>,
    /// Seconds of load before the measurement.
    pub warm_seconds: f64,
    pub seconds: f64,
    /// Count lost, doubled and reordered messages.
    pub verify: bool,
}

/// The sending side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Produce {
    /// Messages of a request; more than one is SEND_BATCH_MESSAGE.
    pub batch: usize,
    /// Requests in flight, over all threads; in an open loop the most that may be.
    pub in_flight: usize,
    /// To each broker, over all threads.
    pub connections: usize,
    pub threads: usize,
    /// Processors to pin the threads to, in turns.
    pub cpus: Vec<usize>,
    /// Messages per second; none is a closed loop.
    pub rate: Option<f64>,
    /// Gaps of an open loop are exponentially distributed instead of equal.
    pub poisson: bool,
    pub burst: Option<Burst>,
    /// Exponent of a Zipf distribution over the queues; 0 takes them in turns.
    pub skew: f64,
    pub tag: Option<String>,
    pub transaction: Option<Transaction>,
}

/// A higher rate, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Burst {
    /// Messages per second while it lasts.
    pub rate: f64,
    /// Seconds from one to the next.
    pub every_seconds: f64,
    pub for_seconds: f64,
}

/// Half messages that are committed or rolled back when they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transaction {
    /// Of 100 transactions, so many are rolled back.
    pub rollback_percent: f64,
}

/// Where a consumer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// From the end, waiting for what comes
    Hot,
    /// From the beginning to where the end was at the start
    CatchUp,
    /// As catch-up, after dropping the page cache; the backlog should be larger than the broker's cache
    Cold,
}

/// The receiving side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Consume {
    pub mode: Mode,
    pub group: String,
    /// To each broker, over all threads.
    pub connections: usize,
    pub threads: usize,
    pub cpus: Vec<usize>,
    /// Messages that one pull asks for.
    pub pull_messages: u32,
    /// Bytes that one native fetch asks for.
    #[serde(default = "fetch_bytes")]
    pub fetch_bytes: u32,
    /// Check the CRC of every body.
    pub check_crc: bool,
}

/// What a native fetch asks for if nothing is said.
pub fn fetch_bytes() -> u32 {
    1 << 20
}

impl Plan {
    /// Names of the topics.
    pub fn topic_names(&self) -> Vec<String> {
        match self.topics {
            1 => vec![self.topic.clone()],
            _ => (0..self.topics)
                .map(|index| format!("{}-{index}", self.topic))
                .collect(),
        }
    }

    /// What stands against running it; names the flag to change.
    pub fn check(&self) -> Result<(), String> {
        use crate::payload::STAMP_BYTES;
        let positive = [
            ("--topics", self.topics as f64),
            ("--queues", self.queues.into()),
            ("--secs", self.seconds),
        ];
        for (flag, value) in positive {
            if value <= 0.0 || !value.is_finite() {
                return Err(format!("{flag} is {value}; it has to be above 0"));
            }
        }
        if !(0.0..=1e9).contains(&self.warm_seconds) {
            return Err(format!(
                "--warm is {}; it has to be 0 or more",
                self.warm_seconds
            ));
        }
        let stamped = self.verify || (self.produce.is_some() && self.consume.is_some());
        if stamped && self.size < STAMP_BYTES {
            return Err(format!(
                "--size is {}; messages that are followed to their consumer need {STAMP_BYTES} bytes",
                self.size
            ));
        }
        if let Some(produce) = &self.produce {
            if self.protocol == Protocol::Native && produce.transaction.is_some() {
                return Err("transactions are remoting's: leave --protocol at remoting".to_owned());
            }
            produce.check(self.size)?;
        }
        if let Some(consume) = &self.consume {
            let counts = [
                consume.connections,
                consume.threads,
                consume.pull_messages as usize,
            ];
            if counts.contains(&0) {
                return Err(
                    "--connections, --threads and --pull-messages have to be above 0".to_owned(),
                );
            }
        }
        Ok(())
    }
}

impl Produce {
    fn check(&self, size: usize) -> Result<(), String> {
        use crate::answer::FRAME_BYTES_MAX;
        use crate::connection::IN_FLIGHT_MAX;
        let counts = [self.batch, self.in_flight, self.connections, self.threads];
        if counts.contains(&0) {
            return Err(
                "--batch, --in-flight, --connections and --threads have to be above 0".to_owned(),
            );
        }
        if self.in_flight > IN_FLIGHT_MAX {
            return Err(format!(
                "--in-flight is {}; the limit is {IN_FLIGHT_MAX}",
                self.in_flight
            ));
        }
        if (size + 200).saturating_mul(self.batch) > FRAME_BYTES_MAX {
            return Err(format!(
                "a request of {} messages of {size} bytes is larger than a frame may be ({FRAME_BYTES_MAX} bytes); make --batch or --size smaller",
                self.batch
            ));
        }
        if self.transaction.is_some() && self.batch > 1 {
            return Err("a transaction has one message; leave --batch at 1".to_owned());
        }
        let rates = [self.rate, self.burst.map(|burst| burst.rate)];
        if rates
            .into_iter()
            .flatten()
            .any(|rate| rate.is_nan() || rate <= 0.0 || rate > 1e9)
        {
            return Err("a rate has to be above 0 and at most 1,000,000,000 messages/s".to_owned());
        }
        if let Some(burst) = &self.burst {
            if self.rate.is_none() {
                return Err("--burst needs --rate, the rate between bursts".to_owned());
            }
            if burst.for_seconds.is_nan()
                || burst.for_seconds <= 0.0
                || burst.for_seconds > burst.every_seconds
            {
                return Err(
                    "a burst has to be shorter than the time from one to the next".to_owned(),
                );
            }
        }
        if self.skew.is_nan() || self.skew < 0.0 {
            return Err(format!("--skew is {}; it has to be 0 or more", self.skew));
        }
        Ok(())
    }
}
