//! Which topic and group names are legal, which of them belong to the broker itself, and what is made at its start.
//!
//! Pure. Source: `TopicValidator`, `MixAll`, `TopicConfigManager.init`. Called at every entrance that takes a name.

use crate::base::limits::{GROUP_CHARS_MAX, RETRY_TOPIC_CHARS_MAX, TOPIC_CHARS_MAX};
use crate::wire::remoting::body::TopicConfig;

/// Permission bit: consumers may read.
pub const PERM_READ: i32 = 4;
/// Permission bit: producers may write.
pub const PERM_WRITE: i32 = 2;
/// Permission bit: topics may be created on the model of this one.
pub const PERM_INHERIT: i32 = 1;

/// Prefix of the topic that holds a group's messages to be consumed again.
pub const RETRY_PREFIX: &str = "%RETRY%";
/// Prefix of the topic that holds messages that a group failed to consume too often.
pub const DLQ_PREFIX: &str = "%DLQ%";
/// Prefix of the broker's own topics.
pub const SYSTEM_PREFIX: &str = "rmq_sys_";
/// The model of topics that are created by a send (`TopicValidator.AUTO_CREATE_TOPIC_KEY_TOPIC`).
pub const AUTO_CREATE_TOPIC: &str = "TBW102";
/// Where delayed messages wait in RocketMQ.
pub const SCHEDULE_TOPIC: &str = "SCHEDULE_TOPIC_XXXX";
/// Name that clients ask for consumption progress of broadcast groups and tools.
const TOOLS_GROUPS: [&str; 9] = [
    "DEFAULT_CONSUMER",
    "TOOLS_CONSUMER",
    "SCHEDULE_CONSUMER",
    "FILTERSRV_CONSUMER",
    "__MONITOR_CONSUMER",
    "SELF_TEST_C_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_OWNER",
];

/// `TopicValidator.NOT_ALLOWED_SEND_TOPIC_SET`.
const NOT_ALLOWED_SEND: [&str; 8] = [
    SCHEDULE_TOPIC,
    "RMQ_SYS_TRANS_HALF_TOPIC",
    "RMQ_SYS_TRANS_OP_HALF_TOPIC",
    "TRANS_CHECK_MAX_TIME_TOPIC",
    "SELF_TEST_TOPIC",
    "OFFSET_MOVED_EVENT",
    "RMQ_SYS_ROCKSDB_TRANS_HALF_TOPIC",
    "RMQ_SYS_ROCKSDB_TRANS_OP_HALF_TOPIC",
];

/// `TopicValidator.SYSTEM_TOPIC_SET` before the broker adds its own.
const SYSTEM: [&str; 12] = [
    AUTO_CREATE_TOPIC,
    SCHEDULE_TOPIC,
    "BenchmarkTest",
    "RMQ_SYS_TRANS_HALF_TOPIC",
    "RMQ_SYS_TRACE_TOPIC",
    "RMQ_SYS_TRANS_OP_HALF_TOPIC",
    "TRANS_CHECK_MAX_TIME_TOPIC",
    "SELF_TEST_TOPIC",
    "OFFSET_MOVED_EVENT",
    "CHECKPOINT_TOPIC",
    "RMQ_SYS_ROCKSDB_TRANS_HALF_TOPIC",
    "RMQ_SYS_ROCKSDB_TRANS_OP_HALF_TOPIC",
];

/// Why a name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the {kind} name is empty")]
    Empty { kind: &'static str },
    #[error("the {kind} name '{name}' contains '{found}'; letters, digits and % | _ - are allowed")]
    Character {
        kind: &'static str,
        name: String,
        found: char,
    },
    #[error("the {kind} name has {chars} characters, the limit is {limit}")]
    TooLong {
        kind: &'static str,
        chars: usize,
        limit: usize,
    },
}

/// Whether a name belongs to the retry topic of a group.
pub fn is_retry_topic(topic: &str) -> bool {
    topic.starts_with(RETRY_PREFIX)
}

/// Whether a name belongs to the dead letter topic of a group.
pub fn is_dlq_topic(topic: &str) -> bool {
    topic.starts_with(DLQ_PREFIX)
}

/// The retry topic of a group.
pub fn retry_topic(group: &str) -> String {
    format!("{RETRY_PREFIX}{group}")
}

/// The dead letter topic of a group.
pub fn dlq_topic(group: &str) -> String {
    format!("{DLQ_PREFIX}{group}")
}

/// Whether producers may send to a topic of this name.
pub fn may_be_sent_to(topic: &str) -> bool {
    !NOT_ALLOWED_SEND.contains(&topic)
}

/// Whether a topic belongs to the broker: it may neither be changed nor deleted by tools.
pub fn is_system_topic(topic: &str, cluster: &str, broker: &str) -> bool {
    SYSTEM.contains(&topic)
        || topic.starts_with(SYSTEM_PREFIX)
        || topic == cluster
        || topic == broker
        || topic.strip_suffix("_REPLY_TOPIC") == Some(cluster)
}

/// Whether a group belongs to RocketMQ itself: it exists without being created (`MixAll.isSysConsumerGroup`).
pub fn is_system_group(group: &str) -> bool {
    group.starts_with("CID_RMQ_SYS_") || TOOLS_GROUPS.contains(&group)
}

fn check(kind: &'static str, name: &str, limit: usize) -> Result<(), NameError> {
    if name.trim().is_empty() {
        return Err(NameError::Empty { kind });
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '%' | '|' | '_' | '-');
    if let Some(found) = name.chars().find(|&c| !legal(c)) {
        return Err(NameError::Character {
            kind,
            name: name.chars().take(GROUP_CHARS_MAX).collect(),
            found,
        });
    }
    // Legal names are ASCII: bytes are characters.
    if name.len() > limit {
        return Err(NameError::TooLong {
            kind,
            chars: name.len(),
            limit,
        });
    }
    Ok(())
}

/// `TopicValidator.validateTopic`.
pub fn check_topic(topic: &str) -> Result<(), NameError> {
    let limit = if is_retry_topic(topic) || is_dlq_topic(topic) {
        RETRY_TOPIC_CHARS_MAX
    } else {
        TOPIC_CHARS_MAX
    };
    check("topic", topic, limit)
}

/// Legal group names; as long as their retry topic may be.
pub fn check_group(group: &str) -> Result<(), NameError> {
    check("group", group, GROUP_CHARS_MAX - RETRY_PREFIX.len())
}

/// A topic with as many queues to read as to write.
pub fn topic_config(name: &str, queues: u32, perm: i32) -> TopicConfig {
    TopicConfig {
        topic_name: name.into(),
        read_queue_nums: queues,
        write_queue_nums: queues,
        perm,
        ..TopicConfig::default()
    }
}

/// The topics that a broker has from its start.
pub fn boot_topics(
    cluster: &str,
    broker: &str,
    auto_create: bool,
    default_queues: u32,
    trace: bool,
) -> Vec<TopicConfig> {
    let read_write = PERM_READ | PERM_WRITE;
    let model = if auto_create {
        read_write | PERM_INHERIT
    } else {
        read_write
    };
    let mut topics = vec![
        topic_config("SELF_TEST_TOPIC", 1, read_write),
        topic_config(AUTO_CREATE_TOPIC, default_queues, model),
        // Few queues, unlike RocketMQ's 1024: they are real queues here, and the topic grows on demand.
        topic_config("BenchmarkTest", 16, read_write),
        topic_config(cluster, 16, read_write | PERM_INHERIT),
        topic_config(broker, 1, read_write | PERM_INHERIT),
        topic_config("OFFSET_MOVED_EVENT", 1, read_write),
        topic_config(SCHEDULE_TOPIC, 18, read_write),
        topic_config(&format!("{cluster}_REPLY_TOPIC"), 1, read_write),
        topic_config("RMQ_SYS_TRANS_HALF_TOPIC", 1, read_write),
        topic_config("RMQ_SYS_TRANS_OP_HALF_TOPIC", 1, read_write),
    ];
    if trace {
        topics.push(topic_config("RMQ_SYS_TRACE_TOPIC", 1, read_write));
    }
    topics
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn topic_names_are_checked_like_topic_validator() {
        assert_eq!(check_topic("kit_-%|AZaz09"), Ok(()));
        assert_eq!(check_topic(&"x".repeat(127)), Ok(()));
        assert_eq!(
            check_topic(&"x".repeat(128)),
            Err(NameError::TooLong {
                kind: "topic",
                chars: 128,
                limit: 127
            })
        );
        assert_eq!(check_topic(&format!("%RETRY%{}", "x".repeat(248))), Ok(()));
        assert!(check_topic(&format!("%DLQ%{}", "x".repeat(251))).is_err());
        for bad in ["", "  ", "has space", "has.dot", "日本", "a\u{0}b"] {
            assert!(check_topic(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_group_name_leaves_room_for_its_retry_topic() {
        let longest = "g".repeat(248);
        assert_eq!(check_group(&longest), Ok(()));
        assert_eq!(check_topic(&retry_topic(&longest)), Ok(()));
        assert!(check_group(&"g".repeat(249)).is_err());
    }

    #[test]
    fn system_topics_are_those_of_rocketmq_and_of_this_broker() {
        for name in ["TBW102", "rmq_sys_wheel_timer", "C", "b", "C_REPLY_TOPIC"] {
            assert!(is_system_topic(name, "C", "b"), "{name}");
        }
        assert!(!is_system_topic("orders", "C", "b"));
        assert!(!is_system_topic("%RETRY%g", "C", "b"));
        assert!(!may_be_sent_to(SCHEDULE_TOPIC));
        assert!(may_be_sent_to("TBW102"));
    }

    #[test]
    fn topics_may_be_created_by_a_send_only_if_the_model_is_inheritable() {
        let inheritable = |auto: bool| {
            let topics = boot_topics("C", "b", auto, 8, false);
            topics
                .iter()
                .find(|t| t.topic_name == AUTO_CREATE_TOPIC)
                .unwrap()
                .perm
                & PERM_INHERIT
                != 0
        };
        assert!(inheritable(true));
        assert!(!inheritable(false));
    }
}
