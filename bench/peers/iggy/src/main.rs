//! Load for Apache Iggy through its own client, in the terms of ringmq-bench: 1 KiB messages, one topic of four partitions,
//! latency from the moment a request was due. What it prints is described in bench/README.md.
//!
//! ```text
//! publish HOST:PORT STREAM IN_FLIGHT[xBATCH] WARM SECONDS   a connection for each request in flight: its client has one at a time
//! fill    (the same)                                        publish, and the stream stays
//! pull    HOST:PORT STREAM                                  the whole topic once, a connection for each partition
//! ```
//!
//! A stream is made at the beginning of a run and deleted at its end, but for `fill` and the `pull` that follows it.

use std::error::Error;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};
use iggy::prelude::*;
use tokio::task::JoinSet;

const PARTITIONS: u32 = 4;
const BYTES: usize = 1024;
/// Of one request for messages.
const PULL_MESSAGES: u32 = 1000;
const TOPIC: &str = "bench";
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

type Failure = Box<dyn Error + Send + Sync>;

/// What one connection measured.
struct Part {
    messages: u64,
    latencies: Histogram<u64>,
}

impl Part {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            messages: 0,
            latencies: Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)?,
        })
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [
            mode @ ("publish" | "fill"),
            server,
            stream,
            load,
            warm,
            seconds,
        ] => {
            let (in_flight, batch) = load.split_once('x').unwrap_or((load, "1"));
            let (warm, seconds) = (warm.parse()?, seconds.parse()?);
            publish(
                server,
                stream,
                in_flight.parse()?,
                batch.parse()?,
                warm,
                seconds,
            )
            .await?;
            if mode == "publish" {
                connect(server).await?.delete_stream(&name(stream)?).await?;
            }
        }
        ["pull", server, stream] => {
            pull(server, stream).await?;
            connect(server).await?.delete_stream(&name(stream)?).await?;
        }
        _ => return Err("publish|fill|pull HOST:PORT STREAM ...".into()),
    }
    Ok(())
}

fn name(text: &str) -> Result<Identifier, Failure> {
    Ok(Identifier::named(text)?)
}

async fn connect(server: &str) -> Result<IggyClient, Failure> {
    let client = IggyClientBuilder::new()
        .with_tcp()
        .with_server_address(server.to_owned())
        .with_no_delay()
        .build()?;
    client.connect().await?;
    client
        .login_user(DEFAULT_ROOT_USERNAME, DEFAULT_ROOT_PASSWORD)
        .await?;
    Ok(client)
}

fn result(kind: &str, parts: &[Part], seconds: f64) -> Result<(), Failure> {
    let mut all = Part::new()?;
    for part in parts {
        all.messages += part.messages;
        all.latencies.add(&part.latencies)?;
    }
    let mut encoded = Vec::new();
    V2DeflateSerializer::new().serialize(&all.latencies, &mut encoded)?;
    println!(
        "ringmq-bench {kind} {} {} {seconds} 0 {}",
        all.messages,
        all.messages * BYTES as u64,
        STANDARD.encode(encoded)
    );
    Ok(())
}

async fn publish(
    server: &str,
    stream: &str,
    in_flight: u32,
    batch: u32,
    warm_seconds: f64,
    seconds: f64,
) -> Result<(), Failure> {
    let admin = connect(server).await?;
    admin.create_stream(stream).await?;
    let options = TopicCreateOptions {
        partitions_count: Some(PARTITIONS),
        message_expiry: Some(IggyExpiry::NeverExpire),
        ..TopicCreateOptions::default()
    };
    admin.create_topic(&name(stream)?, TOPIC, &options).await?;
    let mut clients = Vec::new();
    for _ in 0..in_flight {
        clients.push(connect(server).await?);
    }
    let from = Instant::now() + Duration::from_secs_f64(warm_seconds);
    let until = from + Duration::from_secs_f64(seconds);
    let mut tasks = JoinSet::new();
    for (number, client) in (0..).zip(clients) {
        let (stream, topic) = (name(stream)?, name(TOPIC)?);
        let partitioning = Partitioning::partition_id(number % PARTITIONS);
        let mut part = Part::new()?;
        tasks.spawn(async move {
            let body = Bytes::from(vec![0; BYTES]);
            loop {
                let due = Instant::now();
                if due >= until {
                    return Ok::<_, Failure>(part);
                }
                let mut messages = Vec::with_capacity(batch as usize);
                for _ in 0..batch {
                    messages.push(IggyMessage::builder().payload(body.clone()).build()?);
                }
                client
                    .send_messages(&stream, &topic, &partitioning, &mut messages)
                    .await?;
                let now = Instant::now();
                if (from..until).contains(&now) {
                    part.messages += u64::from(batch);
                }
                if due >= from {
                    let nanos = (now - due).as_nanos() as u64;
                    part.latencies.saturating_record(nanos.max(1));
                }
            }
        });
    }
    tokio::time::sleep_until(from.into()).await;
    println!("ringmq-bench begin");
    tokio::time::sleep_until(until.into()).await;
    println!("ringmq-bench end");
    let mut parts = Vec::new();
    while let Some(part) = tasks.join_next().await {
        parts.push(part??);
    }
    result("publish", &parts, seconds)
}

async fn pull(server: &str, stream: &str) -> Result<(), Failure> {
    let mut clients = Vec::new();
    for _ in 0..PARTITIONS {
        clients.push(connect(server).await?);
    }
    println!("ringmq-bench begin");
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for (partition, client) in (0..).zip(clients) {
        let (stream, topic) = (name(stream)?, name(TOPIC)?);
        let mut part = Part::new()?;
        tasks.spawn(async move {
            let consumer = Consumer::new(Identifier::numeric(1)?);
            loop {
                let asked = Instant::now();
                let strategy = PollingStrategy::offset(part.messages);
                let polled = client
                    .poll_messages(
                        &stream,
                        &topic,
                        Some(partition),
                        &consumer,
                        &strategy,
                        PULL_MESSAGES,
                        false,
                    )
                    .await?;
                if polled.messages.is_empty() {
                    return Ok::<_, Failure>(part);
                }
                if polled.messages.iter().any(|one| one.payload.len() != BYTES) {
                    return Err("a message of another size".into());
                }
                part.messages += polled.messages.len() as u64;
                let nanos = asked.elapsed().as_nanos() as u64;
                part.latencies.saturating_record(nanos.max(1));
            }
        });
    }
    let mut parts = Vec::new();
    while let Some(part) = tasks.join_next().await {
        parts.push(part??);
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("ringmq-bench end");
    result("pull", &parts, seconds)
}
