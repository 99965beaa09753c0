//! What the broker and the owner of a queue say to each other about POP consumers.

use std::sync::Arc;

use crate::shard::message::{MessageFilter, QueueKey};

/// To the core that owns the queues.
#[derive(Debug)]
pub enum PopRequest {
    /// Gives messages out, or shows them; answered when what is in flight is durable.
    Take(PopTake),
    /// Waits until there may be something to take.
    Wait(PopWait),
    /// Ends a wait. If it had been woken already, another one of the group is woken in its place.
    Unwait {
        id: u64,
        group: Arc<str>,
        queues: Vec<QueueKey>,
    },
    /// Messages are done with; answered when that is durable.
    Ack(PopAck),
    /// A message is to become visible at another time; answered when that is durable.
    Change(PopChange),
    /// How many wait for a queue.
    Waiting { group: Arc<str>, queue: QueueKey },
}

/// See [`PopRequest::Take`].
#[derive(Clone, Debug)]
pub struct PopTake {
    pub group: Arc<str>,
    /// In the order in which they are looked at. A queue may be in it once for each part of it.
    pub queues: Vec<PopSource>,
    pub messages_max: u32,
    /// The first message is given whatever its size.
    pub bytes_max: u32,
    /// Time of the receipts, milliseconds since 1970.
    pub pop_ms: u64,
    /// How long the messages stay hidden.
    pub invisible_ms: u64,
    pub filter: MessageFilter,
    /// One batch of a queue at a time, in the order of the queue.
    pub order: Option<PopOrder>,
    /// A message that was tried again so often is dead (`retryMaxTimes` of the group).
    pub retries_max: i32,
    /// Only looks.
    pub peek: bool,
}

/// Which messages of a queue are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PopPart {
    /// What is due again, then what is new.
    All,
    /// Nothing that was given out before.
    New,
    /// Only what was given out before.
    Again,
}

/// A queue to take from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PopSource {
    pub queue: QueueKey,
    pub part: PopPart,
    /// A group without an offset starts at the end, unless the queue still has its first message (`initMode` MAX).
    pub from_end: bool,
}

/// See [`PopTake::order`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PopOrder {
    /// The same attempt gets the same messages again.
    pub attempt: Option<Arc<str>>,
}

/// See [`PopRequest::Wait`].
#[derive(Clone, Debug)]
pub struct PopWait {
    /// Unique among all that wait in this process.
    pub id: u64,
    pub group: Arc<str>,
    pub queues: Vec<QueueKey>,
    pub wait_ms: u64,
    pub order: bool,
    /// `popPollingSize`: how many may wait for one queue of the group.
    pub queue_max: usize,
    /// `maxPopPollingSize`: how many may wait on a core.
    pub total_max: usize,
}

/// What a receipt says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub offset: i64,
    pub pop_ms: u64,
}

/// See [`PopRequest::Ack`].
#[derive(Clone, Debug)]
pub struct PopAck {
    pub group: Arc<str>,
    pub queue: QueueKey,
    pub receipts: Vec<Receipt>,
    pub order: bool,
}

/// See [`PopRequest::Change`].
#[derive(Clone, Debug)]
pub struct PopChange {
    pub group: Arc<str>,
    pub queue: QueueKey,
    pub receipt: Receipt,
    /// From now on.
    pub invisible_ms: u64,
    pub order: bool,
    /// The delivery does not count as a try.
    pub suspend: bool,
}

/// Answer to a [`PopRequest`]; acknowledged is `ShardReply::Done`. `B` as in [`crate::shard::message::Pulled`].
#[derive(Debug)]
pub enum PopReply<B> {
    Taken(Box<Taken<B>>),
    /// There may be something to take (true), or the time is up.
    Woken(bool),
    /// Too many wait already.
    Full,
    /// The queue has no such offset.
    NoOffset {
        offset: i64,
        min: i64,
        max: i64,
    },
    /// The offset was not given out.
    NotGiven {
        offset: i64,
    },
    /// The message was acknowledged, or given out again, since the receipt was made.
    Stale {
        offset: i64,
    },
    /// Times of the new receipt.
    Changed {
        pop_ms: u64,
        visible_ms: u64,
    },
    Waiting(usize),
}

/// See [`PopReply::Taken`].
#[derive(Debug)]
pub struct Taken<B> {
    /// In the order of the request's sources.
    pub queues: Vec<TakenQueue>,
    /// Whole records in the order of `queues`; those that were given out before say so in `reconsumeTimes`.
    pub records: B,
    /// Messages behind what was taken.
    pub rest: i64,
    /// There is more to look at although nothing was found.
    pub more: bool,
    /// Messages that failed too often; hidden for a while so that somebody can put them elsewhere.
    pub dead: Vec<Dead<B>>,
}

/// Messages of one queue, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenQueue {
    pub queue: QueueKey,
    /// Offset, and how often it was given out before.
    pub messages: Vec<(i64, u32)>,
}

/// A message that failed too often.
#[derive(Debug)]
pub struct Dead<B> {
    pub queue: QueueKey,
    pub receipt: Receipt,
    pub record: B,
}

impl<B> Taken<B> {
    fn map<C>(self, convert: impl Fn(B) -> C) -> Taken<C> {
        let dead = self.dead.into_iter().map(|dead| Dead {
            queue: dead.queue,
            receipt: dead.receipt,
            record: convert(dead.record),
        });
        Taken {
            dead: dead.collect(),
            queues: self.queues,
            records: convert(self.records),
            rest: self.rest,
            more: self.more,
        }
    }
}

impl<B> PopReply<B> {
    pub(in crate::shard) fn map<C>(self, convert: impl Fn(B) -> C) -> PopReply<C> {
        match self {
            Self::Taken(taken) => PopReply::Taken(Box::new(taken.map(convert))),
            Self::Woken(found) => PopReply::Woken(found),
            Self::Full => PopReply::Full,
            Self::NoOffset { offset, min, max } => PopReply::NoOffset { offset, min, max },
            Self::NotGiven { offset } => PopReply::NotGiven { offset },
            Self::Stale { offset } => PopReply::Stale { offset },
            Self::Changed { pop_ms, visible_ms } => PopReply::Changed { pop_ms, visible_ms },
            Self::Waiting(count) => PopReply::Waiting(count),
        }
    }
}
