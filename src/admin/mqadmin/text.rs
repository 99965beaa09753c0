//! How Java's tools write values: dates, permissions, versions, `toString` of their classes.

use serde_json::Value;

use crate::base::civil::readable_time;
use crate::wire::remoting::body::{SubscriptionGroupConfig, TopicConfig};

/// `UtilAll.timeMillisToHumanString2`, in UTC: `2026-01-31 08:00:00,000`.
pub fn comma_time(ms: i64) -> String {
    let text = readable_time(u64::try_from(ms).unwrap_or(0));
    match text.rsplit_once('.') {
        Some((seconds, ms)) => format!("{seconds},{ms}"),
        None => text,
    }
}

/// The same without milliseconds.
pub fn second_time(ms: i64) -> String {
    let text = readable_time(u64::try_from(ms).unwrap_or(0));
    text.split('.').next().unwrap_or_default().to_owned()
}

/// The front of a name that is too wide for its column.
pub fn front(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

/// The first ordinal of `MQVersion` from which on the names follow a rule: V4_0_0_SNAPSHOT.
const REGULAR_VERSION: i32 = 212;

/// `MQVersion.getVersionDesc`: from 4.0.0 on each version has a snapshot and a release, ten patches and ten minors.
pub fn version(ordinal: i32) -> String {
    let Some(count) = ordinal.checked_sub(REGULAR_VERSION).filter(|&n| n >= 0) else {
        return ordinal.to_string();
    };
    let number = count / 2;
    let snapshot = if count % 2 == 0 { "_SNAPSHOT" } else { "" };
    format!(
        "V{}_{}_{}{snapshot}",
        4 + number / 100,
        number / 10 % 10,
        number % 10
    )
}

/// `PermName.perm2String`.
pub fn perm(perm: i32) -> String {
    crate::admin::topic::perm_text(perm)
}

/// `TopicConfig.toString`.
pub fn topic_config(config: &TopicConfig) -> String {
    let attributes: Vec<String> = config
        .attributes
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    format!(
        "TopicConfig [topicName={}, readQueueNums={}, writeQueueNums={}, perm={}, topicFilterType={}, topicSysFlag={}, order={}, attributes={{{}}}]",
        config.topic_name,
        config.read_queue_nums,
        config.write_queue_nums,
        perm(config.perm),
        config.topic_filter_type,
        config.topic_sys_flag,
        config.order,
        attributes.join(", ")
    )
}

/// `SubscriptionGroupConfig.toString`.
pub fn group_config(config: &SubscriptionGroupConfig) -> String {
    format!(
        "SubscriptionGroupConfig{{groupName={}, consumeEnable={}, consumeFromMinEnable={}, consumeBroadcastEnable={}, consumeMessageOrderly={}, retryQueueNums={}, retryMaxTimes={}, groupRetryPolicy={}, brokerId={}, whichBrokerWhenConsumeSlowly={}, notifyConsumerIdsChangedEnable={}, groupSysFlag={}, consumeTimeoutMinute={}}}",
        config.group_name,
        config.consume_enable,
        config.consume_from_min_enable,
        config.consume_broadcast_enable,
        config.consume_message_orderly,
        config.retry_queue_nums,
        config.retry_max_times,
        config.group_retry_policy,
        config.broker_id,
        config.which_broker_when_consume_slowly,
        config.notify_consumer_ids_changed_enable,
        config.group_sys_flag,
        config.consume_timeout_minute
    )
}

/// Indented JSON as fastjson writes it: tabs, and no space behind a colon, which is what scripts grep for.
pub fn pretty(value: &Value) -> String {
    let mut text = String::new();
    put(value, 0, &mut text);
    text
}

fn put(value: &Value, depth: usize, out: &mut String) {
    let new_line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n('\t', depth));
    };
    match value {
        Value::Object(members) if !members.is_empty() => {
            out.push('{');
            for (at, (key, value)) in members.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                new_line(out, depth + 1);
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                put(value, depth + 1, out);
            }
            new_line(out, depth);
            out.push('}');
        }
        Value::Array(values) if !values.is_empty() => {
            out.push('[');
            for (at, value) in values.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                new_line(out, depth + 1);
                put(value, depth + 1, out);
            }
            new_line(out, depth);
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_have_the_names_of_the_original() {
        // Ordinals of `MQVersion.Version`.
        for (ordinal, name) in [
            (212, "V4_0_0_SNAPSHOT"),
            (401, "V4_9_4"),
            (413, "V5_0_0"),
            (513, "V5_5_0"),
            (62, "62"),
        ] {
            assert_eq!(version(ordinal), name);
        }
    }

    #[test]
    fn json_is_indented_as_scripts_expect_it() {
        let value = json!({"a": [1, {"b": "c: d"}], "e": {}});
        let wanted =
            "{\n\t\"a\":[\n\t\t1,\n\t\t{\n\t\t\t\"b\":\"c: d\"\n\t\t}\n\t],\n\t\"e\":{}\n}";
        assert_eq!(pretty(&value), wanted);
    }
}
