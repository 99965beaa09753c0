//! Why something could not be done, whatever the runtime.

use std::time::Duration;

use crate::core::link::LinkError;
use crate::core::message::MessageError;
use crate::core::routes::TopicError;

/// Why something could not be done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The broker cannot be reached.
    #[error("{address} cannot be reached: {reason}")]
    Connect {
        /// What was tried.
        address: String,
        /// What came of it.
        reason: String,
    },
    /// The connection ended while an answer was awaited. What was asked for may have been done.
    #[error("the connection to {address} ended: {reason}")]
    Closed {
        /// The broker.
        address: String,
        /// Why.
        reason: String,
    },
    /// No answer came in time. What was asked for may have been done, or may still be.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The broker says no.
    #[error("the broker answers with code {code}: {remark}")]
    Refused {
        /// A response code of RocketMQ.
        code: i32,
        /// What the broker says, with what to change.
        remark: String,
    },
    /// The broker's bytes are not of this protocol.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A topic cannot be used.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// A message cannot be sent as it is.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A queue cannot be read.
    #[error("queue {queue_id} of '{topic}' cannot be read, code {code}: {remark}")]
    Queue {
        /// Name of the topic.
        topic: String,
        /// Number of the queue in it.
        queue_id: u32,
        /// A response code of RocketMQ.
        code: i32,
        /// What the broker says.
        remark: String,
    },
    /// An answer to another question.
    #[error("the broker answers something else: {0}")]
    Unexpected(String),
    /// The producer was closed, or its runtime ended.
    #[error("the producer is closed")]
    ProducerClosed,
    /// A consumer without queues has nothing to wait for.
    #[error("the consumer has no queues: assign some, or subscribe to topics")]
    NothingAssigned,
}
