//! Why the broker refuses a request. `dispatch.rs` maps each to a response code; the text here becomes the remark, so it
//! names the thing, the limit, and what to change.

use crate::base::names::NameError;
use crate::broker::subscription::ExpressionError;
use crate::shard::message::Refusal;
use crate::wire::remoting::code;
use crate::wire::remoting::command::FieldError;

/// See the module's page.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Shard(#[from] Refusal),
    #[error(transparent)]
    Expression(#[from] ExpressionError),
    #[error("the body is not what request {code} ({name}) carries: {reason}")]
    Body {
        code: i32,
        name: &'static str,
        reason: String,
    },
    #[error(
        "the topic '{topic}' does not exist on this broker; create it, or let producers create it (autoCreateTopicEnable)"
    )]
    NoTopic { topic: String },
    #[error(
        "the consumer group '{group}' does not exist on this broker; create it, or let consumers create it (autoCreateSubscriptionGroup)"
    )]
    NoGroup { group: String },
    #[error(
        "no member of the consumer group '{group}' is connected, so its subscription of '{topic}' is not known"
    )]
    NoSubscription { group: String, topic: String },
    #[error(
        "the subscription of '{topic}' by the group '{group}' is older here ({known}) than the one of this pull ({asked}); it comes with the next heartbeat"
    )]
    SubscriptionNotLatest {
        group: String,
        topic: String,
        known: i64,
        asked: i64,
    },
    /// Code 16.
    #[error(
        "other members of the consumer group subscribe differently, which this broker refuses (rejectInconsistentSubscription); give all members one subscription, or use two groups. The broker's log names both"
    )]
    SubscriptionDiffers,
    /// Code 27.
    #[error(
        "the group '{group}' subscribes '{topic}' by an expression that is none, so there is no filter: {reason}"
    )]
    NoFilter {
        group: String,
        topic: String,
        reason: ExpressionError,
    },
    /// Code 16.
    #[error(
        "members of the group '{group}' are connected by the other protocol, and each side would consume everything; use another group, or stop them first"
    )]
    OtherProtocol { group: String },
    #[error(
        "the group '{group}' has no member '{member}' (any more): join again with what is still owned"
    )]
    UnknownMember { group: String, member: String },
    #[error(
        "the member '{member}' of the group '{group}' does not own this queue, or did not in the generation {generation}: nothing was committed"
    )]
    StaleMember {
        group: String,
        member: String,
        generation: i64,
    },
    /// Code 16.
    #[error("{0}")]
    NoPermission(String),
    /// Code 29.
    #[error("{0}")]
    InvalidParameter(String),
    /// Code 13.
    #[error("{0}")]
    MessageIllegal(String),
    /// Code 22.
    #[error("{0}")]
    NotFound(String),
    #[error("no member of the consumer group '{group}' is connected to this broker")]
    NotOnline { group: String },
    #[error("{0}")]
    ClientTimeout(String),
    /// Code 14.
    #[error("{0}")]
    Unavailable(String),
    /// Code 604.
    #[error("{0}")]
    IllegalOperation(String),
    /// Code 1.
    #[error("{0}")]
    System(String),
    /// A request that RocketMQ has and this broker does not serve, or that nobody knows.
    #[error("{}", not_supported(*code))]
    NotSupported { code: i32 },
}

/// The text of RocketMQ, leading space included, and the request's name if it has one.
fn not_supported(code: i32) -> String {
    match code::request_name(code) {
        Some(name) => {
            format!(" request type {code} not supported: {name} is not offered by this broker")
        }
        None => format!(" request type {code} not supported"),
    }
}

impl BrokerError {
    /// The reason in one word, for the metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Field(_) | Self::Body { .. } | Self::Name(_) | Self::InvalidParameter(_) => {
                "bad_request"
            }
            Self::Expression(_) | Self::NoFilter { .. } => "filter",
            Self::NoTopic { .. } => "no_topic",
            Self::NoGroup { .. } => "no_group",
            Self::NoSubscription { .. } | Self::SubscriptionNotLatest { .. } => "no_subscription",
            Self::NoPermission(_) | Self::OtherProtocol { .. } => "permission",
            Self::UnknownMember { .. } => "unknown_member",
            Self::StaleMember { .. } => "stale_member",
            Self::SubscriptionDiffers => "subscription_differs",
            Self::MessageIllegal(_) => "message_illegal",
            Self::NotFound(_) => "not_found",
            Self::NotOnline { .. } | Self::ClientTimeout(_) => "client_away",
            Self::Unavailable(_) => "unavailable",
            Self::IllegalOperation(_) => "illegal_operation",
            Self::System(_) => "system",
            Self::NotSupported { .. } => "not_supported",
            Self::Shard(refusal) => match refusal {
                Refusal::Busy { .. } => "log_busy",
                Refusal::SpaceOnItsWay { .. } => "log_space",
                Refusal::DiskFull { .. } => "disk_full",
                Refusal::Poisoned { .. } => "log_failed",
                Refusal::TooLarge { .. } => "message_illegal",
                Refusal::TooManyTransactions { .. } => "too_many_transactions",
                Refusal::Replica => "slave",
                Refusal::NoLease => "no_lease",
                Refusal::Unsettled => "unsettled",
                Refusal::TooFewReplicas { .. } => "too_few_replicas",
                Refusal::NoQueue => "no_topic",
                Refusal::MeshFull { .. } => "core_busy",
                Refusal::Stopping => "stopping",
                Refusal::Read { .. } => "read_failed",
            },
        }
    }

    /// A shard answered something that does not belong to the question: our own bug, told instead of a panic.
    pub fn unexpected(reply: &impl std::fmt::Debug) -> Self {
        let mut text = format!("{reply:?}");
        text.truncate(text.floor_char_boundary(200));
        Self::System(format!("a core gave an answer to another question: {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_request_is_named_by_its_number_and_by_its_name_if_it_has_one() {
        let remark = |code| BrokerError::NotSupported { code }.to_string();
        assert_eq!(remark(9_999), " request type 9999 not supported");
        assert!(remark(5001).starts_with(" request type 5001 not supported"));
    }
}
