//! A client of [RingMQ](https://github.com/ringmq/ringmq)'s native protocol.
//!
//! ```no_run
//! use ringmq_client::{Client, Message, StartAt};
//!
//! # async fn example() -> Result<(), ringmq_client::Error> {
//! let client = Client::connect("127.0.0.1:10911").await?;
//! let producer = client.producer();
//! let receipt = producer.send(Message::new("greetings", "hello").tag("en")).await?;
//! println!("stored durably at offset {} of queue {}", receipt.queue_offset, receipt.queue_id);
//!
//! let mut consumer = client.consumer("readers");
//! consumer.assign_topic("greetings", StartAt::Committed).await?;
//! let message = consumer.next().await?;
//! println!("{:?}", message.body());
//! consumer.commit().await?;
//!
//! // A member shares the queues with the other members of its group; what it has done is committed by itself.
//! let mut member = client.subscribe("workers", &["greetings"]);
//! println!("{:?}", member.next().await?.body());
//! member.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Sends are acknowledged when they are as durable as the broker's `flushDiskType` says. A send whose answer is lost with
//! its connection is repeated, so a message may be stored **twice**, with one unique id
//! ([`Received::unique_id`]): delivery is at least once. Within a queue the order of sends is kept, over repetitions too.
//!
//! The feature `glommio` has the same client for that runtime, in the module `glommio`. [`core`] has everything but sockets and
//! time, for other runtimes.

pub mod core;
#[cfg(any(feature = "tokio", feature = "glommio"))]
mod error;

/// The shell is one text that is compiled for each runtime: `rt` is all that differs.
#[cfg(feature = "tokio")]
#[path = "shell"]
#[allow(clippy::duplicate_mod)] // That is the purpose.
mod tokio_shell {
    pub mod client;
    mod connection;
    pub mod consumer;
    mod group;
    pub mod producer;
    #[path = "rt_tokio.rs"]
    mod rt;
}

#[cfg(feature = "glommio")]
#[path = "shell"]
#[allow(clippy::duplicate_mod)] // Likewise.
mod glommio_shell {
    pub mod client;
    mod connection;
    pub mod consumer;
    mod group;
    pub mod producer;
    #[path = "rt_glommio.rs"]
    mod rt;
}

/// The same client for [glommio](https://crates.io/crates/glommio-ng): all of it belongs to the executor on which it was made, and
/// its heartbeats and batches run there. Names and meanings are those of the crate's root.
///
/// ```no_run
/// use glommio_ng::LocalExecutorBuilder;
/// use ringmq_client::Message;
/// use ringmq_client::glommio::Client;
///
/// let executor = LocalExecutorBuilder::default().make().expect("io_uring");
/// executor.run(async {
///     let client = Client::connect("127.0.0.1:10911").await?;
///     let receipt = client.producer().send(Message::new("greetings", "hello")).await?;
///     println!("stored durably at offset {}", receipt.queue_offset);
///     let mut consumer = client.subscribe("readers", &["greetings"]);
///     println!("{:?}", consumer.next().await?.body());
///     consumer.close().await
/// })?;
/// # Ok::<(), ringmq_client::Error>(())
/// ```
#[cfg(feature = "glommio")]
pub mod glommio {
    pub use crate::glommio_shell::client::{Client, ClientBuilder, QueueOffsets};
    pub use crate::glommio_shell::consumer::{
        Consumer, ConsumerOptions, Rebalance, RecordStream, StartAt,
    };
    pub use crate::glommio_shell::producer::{Delivery, Producer, ProducerOptions, Receipt};
}

pub use crate::core::batch::BatchOptions;
pub use crate::core::link::{LinkError, Welcome};
pub use crate::core::message::{Message, MessageError, Received};
pub use crate::core::routes::{Queue, TopicError};
#[cfg(any(feature = "tokio", feature = "glommio"))]
pub use crate::error::Error;
#[cfg(feature = "tokio")]
pub use tokio_shell::client::{Client, ClientBuilder, QueueOffsets};
#[cfg(feature = "tokio")]
pub use tokio_shell::consumer::{Consumer, ConsumerOptions, Rebalance, RecordStream, StartAt};
#[cfg(feature = "tokio")]
pub use tokio_shell::producer::{Delivery, Producer, ProducerOptions, Receipt};
