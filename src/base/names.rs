//! Names of topics and groups by RocketMQ's rules (`TopicValidator`, `MixAll`), checked at every entrance.
//!
//! A name that passed here is ASCII without separators of properties, paths or offset tables.

use crate::base::limits::{GROUP_CHARS_MAX, RETRY_TOPIC_CHARS_MAX, TOPIC_CHARS_MAX};

/// Prefix of the retry topic of a group.
pub const RETRY_PREFIX: &str = "%RETRY%";
/// Prefix of the dead letter topic of a group.
pub const DLQ_PREFIX: &str = "%DLQ%";
/// Prefix of topics that belong to the broker.
pub const SYSTEM_TOPIC_PREFIX: &str = "rmq_sys_";
/// Prefix of consumer groups that belong to the broker.
pub const SYSTEM_GROUP_PREFIX: &str = "CID_RMQ_SYS_";

/// Template of topics that are created by the first send.
pub const AUTO_CREATE_TOPIC: &str = "TBW102";
/// Messages with a delay level wait here.
pub const SCHEDULE_TOPIC: &str = "SCHEDULE_TOPIC_XXXX";
/// Messages with a delivery time wait here.
pub const TIMER_TOPIC: &str = "rmq_sys_wheel_timer";
pub const BENCHMARK_TOPIC: &str = "BenchmarkTest";
pub const TRANS_HALF_TOPIC: &str = "RMQ_SYS_TRANS_HALF_TOPIC";
pub const TRANS_OP_HALF_TOPIC: &str = "RMQ_SYS_TRANS_OP_HALF_TOPIC";
pub const ROCKSDB_TRANS_HALF_TOPIC: &str = "RMQ_SYS_ROCKSDB_TRANS_HALF_TOPIC";
pub const ROCKSDB_TRANS_OP_HALF_TOPIC: &str = "RMQ_SYS_ROCKSDB_TRANS_OP_HALF_TOPIC";
pub const TRANS_CHECK_MAX_TIME_TOPIC: &str = "TRANS_CHECK_MAX_TIME_TOPIC";
pub const TRACE_TOPIC: &str = "RMQ_SYS_TRACE_TOPIC";
pub const SELF_TEST_TOPIC: &str = "SELF_TEST_TOPIC";
pub const OFFSET_MOVED_TOPIC: &str = "OFFSET_MOVED_EVENT";
pub const CHECKPOINT_TOPIC: &str = "CHECKPOINT_TOPIC";

const SYSTEM_TOPICS: [&str; 12] = [
    AUTO_CREATE_TOPIC,
    SCHEDULE_TOPIC,
    BENCHMARK_TOPIC,
    TRANS_HALF_TOPIC,
    TRACE_TOPIC,
    TRANS_OP_HALF_TOPIC,
    TRANS_CHECK_MAX_TIME_TOPIC,
    SELF_TEST_TOPIC,
    OFFSET_MOVED_TOPIC,
    CHECKPOINT_TOPIC,
    ROCKSDB_TRANS_HALF_TOPIC,
    ROCKSDB_TRANS_OP_HALF_TOPIC,
];

const SEND_FORBIDDEN_TOPICS: [&str; 8] = [
    SCHEDULE_TOPIC,
    TRANS_HALF_TOPIC,
    TRANS_OP_HALF_TOPIC,
    TRANS_CHECK_MAX_TIME_TOPIC,
    SELF_TEST_TOPIC,
    OFFSET_MOVED_TOPIC,
    ROCKSDB_TRANS_HALF_TOPIC,
    ROCKSDB_TRANS_OP_HALF_TOPIC,
];

/// `MixAll.PREDEFINE_GROUP_SET`.
const SYSTEM_GROUPS: [&str; 13] = [
    "DEFAULT_CONSUMER",
    "DEFAULT_PRODUCER",
    "TOOLS_CONSUMER",
    "SCHEDULE_CONSUMER",
    "FILTERSRV_CONSUMER",
    "__MONITOR_CONSUMER",
    "CLIENT_INNER_PRODUCER",
    "SELF_TEST_P_GROUP",
    "SELF_TEST_C_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_OWNER",
    "CID_ONSAPI_PULL",
];

/// Characters of a wrong name that an error quotes.
const QUOTED_CHARS_MAX: usize = 64;

/// A name that RocketMQ's rules do not allow. `what` is topic or group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the {what} name is blank: give 1 to {limit} characters of a-z A-Z 0-9 _ - % |")]
    Blank { what: &'static str, limit: usize },
    #[error("the {what} name '{name}...' has {chars} characters; the limit is {limit}")]
    TooLong {
        what: &'static str,
        name: String,
        chars: usize,
        limit: usize,
    },
    #[error(
        "the {what} name '{name}' has the character {found:?}; allowed are a-z A-Z 0-9 _ - % |"
    )]
    Character {
        what: &'static str,
        name: String,
        found: char,
    },
}

/// Checks a topic's name: 127 characters, 255 for retry and dead letter topics.
pub fn check_topic(name: &str) -> Result<(), NameError> {
    let limit = if is_retry_topic(name) || is_dlq_topic(name) {
        RETRY_TOPIC_CHARS_MAX
    } else {
        TOPIC_CHARS_MAX
    };
    check("topic", name, limit)
}

/// Checks a group's name, of producers or consumers.
pub fn check_group(name: &str) -> Result<(), NameError> {
    check("group", name, GROUP_CHARS_MAX)
}

fn check(what: &'static str, name: &str, limit: usize) -> Result<(), NameError> {
    if name.trim().is_empty() {
        return Err(NameError::Blank { what, limit });
    }
    let quoted = || name.chars().take(QUOTED_CHARS_MAX).collect();
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'%' | b'|');
    if !name.bytes().all(allowed) {
        return Err(NameError::Character {
            what,
            name: quoted(),
            found: name
                .chars()
                .find(|&found| !u8::try_from(found).is_ok_and(allowed))
                .unwrap_or_default(),
        });
    }
    if name.len() > limit {
        return Err(NameError::TooLong {
            what,
            name: quoted(),
            chars: name.len(),
            limit,
        });
    }
    Ok(())
}

/// Whether a topic belongs to the broker (`TopicValidator.isSystemTopic`). The topics that carry the cluster's and the
/// broker's name are system topics too, but only who knows the configuration can tell.
pub fn is_system_topic(name: &str) -> bool {
    name.starts_with(SYSTEM_TOPIC_PREFIX) || SYSTEM_TOPICS.contains(&name)
}

/// Whether clients may not send to a topic (`TopicValidator.isNotAllowedSendTopic`).
pub fn is_send_forbidden(name: &str) -> bool {
    SEND_FORBIDDEN_TOPICS.contains(&name)
}

/// Whether a consumer group belongs to RocketMQ (`MixAll.isSysConsumerGroup` and the predefined ones).
pub fn is_system_group(name: &str) -> bool {
    name.starts_with(SYSTEM_GROUP_PREFIX) || SYSTEM_GROUPS.contains(&name)
}

/// The topic in which a group's failed messages wait for another try.
pub fn retry_topic(group: &str) -> String {
    format!("{RETRY_PREFIX}{group}")
}

/// The topic in which a group's messages end that failed too often.
pub fn dlq_topic(group: &str) -> String {
    format!("{DLQ_PREFIX}{group}")
}

/// The retry topic of one topic of a group that pops (`KeyBuilder.buildPopRetryTopicV1`).
pub fn pop_retry_topic(group: &str, topic: &str) -> String {
    format!("{RETRY_PREFIX}{group}_{topic}")
}

/// The same as newer brokers may name it (`KeyBuilder.buildPopRetryTopicV2`).
pub fn pop_retry_topic_v2(group: &str, topic: &str) -> String {
    format!("{RETRY_PREFIX}{group}+{topic}")
}

/// The topic that answers of request-reply are sent to.
pub fn reply_topic(cluster: &str) -> String {
    format!("{cluster}_REPLY_TOPIC")
}

pub fn is_retry_topic(topic: &str) -> bool {
    topic.starts_with(RETRY_PREFIX)
}

pub fn is_dlq_topic(topic: &str) -> bool {
    topic.starts_with(DLQ_PREFIX)
}

/// The group of a retry topic. For a pop retry topic this is the group, `_` and the topic.
pub fn group_of_retry_topic(topic: &str) -> Option<&str> {
    topic.strip_prefix(RETRY_PREFIX)
}

/// The group of a dead letter topic.
pub fn group_of_dlq_topic(topic: &str) -> Option<&str> {
    topic.strip_prefix(DLQ_PREFIX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_as_topic_validator_judges_them() {
        for good in ["T", "%RETRY%CG", "a|b", "A-Z_09%", "TBW102"] {
            assert_eq!(check_topic(good), Ok(()), "{good}");
            assert_eq!(check_group(good), Ok(()), "{good}");
        }
        for bad in [
            "", "  ", "a b", "a.b", "a/b", "ä", "a\u{1}b", "a\u{2}", "T@G", "a+b",
        ] {
            assert!(check_topic(bad).is_err(), "{bad:?}");
            assert!(check_group(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_retry_and_dead_letter_topics_may_be_long() {
        assert!(check_topic(&"t".repeat(127)).is_ok());
        assert!(check_topic(&"t".repeat(128)).is_err());
        for prefix in [RETRY_PREFIX, DLQ_PREFIX] {
            let fits = format!("{prefix}{}", "g".repeat(255 - prefix.len()));
            assert!(check_topic(&fits).is_ok());
            assert!(check_topic(&(fits + "g")).is_err());
        }
        assert!(check_group(&"g".repeat(255)).is_ok());
        assert!(check_group(&"g".repeat(256)).is_err());
    }

    #[test]
    fn an_error_tells_name_rule_and_limit() {
        assert_eq!(
            check_topic("a b").unwrap_err().to_string(),
            "the topic name 'a b' has the character ' '; allowed are a-z A-Z 0-9 _ - % |"
        );
        let long = check_topic(&"t".repeat(1000)).unwrap_err().to_string();
        assert!(
            long.contains("1000 characters; the limit is 127") && long.len() < 150,
            "{long}"
        );
    }

    #[test]
    fn system_names_are_known() {
        assert!(is_system_topic("rmq_sys_REVIVE_LOG_C1") && is_system_topic("TBW102"));
        assert!(!is_system_topic("T") && !is_system_topic("%RETRY%CG"));
        assert!(is_send_forbidden("SCHEDULE_TOPIC_XXXX") && !is_send_forbidden("TBW102"));
        assert!(is_system_group("CID_RMQ_SYS_TRANS") && is_system_group("TOOLS_CONSUMER"));
        assert!(!is_system_group("CG"));
        assert_eq!(group_of_retry_topic(&retry_topic("CG")), Some("CG"));
        assert_eq!(group_of_dlq_topic(&dlq_topic("CG")), Some("CG"));
        assert_eq!(group_of_retry_topic("T"), None);
    }
}
