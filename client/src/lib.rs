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
//! # Ok(())
//! # }
//! ```
//!
//! Sends are acknowledged when they are as durable as the broker's `flushDiskType` says. A send whose answer is lost with
//! its connection is repeated, so a message may be stored **twice**, with one unique id
//! ([`Received::unique_id`]): delivery is at least once. Within a queue the order of sends is kept, over repetitions too.
//!
//! [`core`] has everything but sockets and time, for other runtimes than tokio.

pub mod core;
#[cfg(feature = "tokio")]
mod shell;

pub use crate::core::batch::BatchOptions;
pub use crate::core::link::{LinkError, Welcome};
pub use crate::core::message::{Message, MessageError, Received};
pub use crate::core::routes::{Queue, TopicError};
#[cfg(feature = "tokio")]
pub use shell::{
    Client, ClientBuilder, Consumer, ConsumerOptions, Delivery, Error, Producer, ProducerOptions,
    QueueOffsets, Rebalance, Receipt, RecordStream, StartAt,
};
