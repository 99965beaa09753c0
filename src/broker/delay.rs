//! Delayed messages: when a producer wants its message, and when a retry comes.
//!
//! Pure. `send.rs` and `send_back.rs` ask here and then store the message for later
//! ([`crate::shard::message::ShardRequest::AppendDelayed`]); the shard that owns the queue delivers it.
//! Unlike RocketMQ's timer wheel, which moves a time back by up to `timerPrecisionMs`, nothing is delivered early.
//! Source: `HookUtils.handleScheduleMessage`, `ScheduleMessageService.parseDelayLevel`, `ExponentialRetryPolicy`.

use crate::broker::error::BrokerError;
use crate::wire::remoting::body::SubscriptionGroupConfig;

/// When a message is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// After the delay of a level; 1 is the first.
    Level(usize),
    /// At a time, milliseconds since 1970.
    At(u64),
}

/// The delay properties of a message, as text.
#[derive(Clone, Copy, Debug, Default)]
pub struct DelayProperties<'a> {
    pub level: Option<&'a [u8]>,
    pub delay_sec: Option<&'a [u8]>,
    pub delay_ms: Option<&'a [u8]>,
    pub deliver_ms: Option<&'a [u8]>,
}

/// A delay property that is not a number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the property {name} is '{value}', which is not a number")]
pub struct DelayError {
    pub name: &'static str,
    pub value: String,
}

impl DelayProperties<'_> {
    /// Whether a time is asked for, by whatever property.
    pub fn has_time(&self) -> bool {
        self.delay_sec.is_some() || self.delay_ms.is_some() || self.deliver_ms.is_some()
    }

    /// The delay that the properties ask for, among `levels` levels; none if the message is wanted now or was wanted in
    /// the past. Precedence as in RocketMQ: level, seconds, milliseconds, absolute time.
    pub fn delay(&self, levels: usize, now_ms: u64) -> Result<Option<Delay>, DelayError> {
        if let Some(level) = number("DELAY", self.level)?
            && level > 0
        {
            return Ok(Some(Delay::Level(level_index(level, levels))));
        }
        let at = if let Some(seconds) = number("TIMER_DELAY_SEC", self.delay_sec)? {
            (now_ms as i64).saturating_add(seconds.saturating_mul(1_000))
        } else if let Some(ms) = number("TIMER_DELAY_MS", self.delay_ms)? {
            (now_ms as i64).saturating_add(ms)
        } else if let Some(at) = number("TIMER_DELIVER_MS", self.deliver_ms)? {
            at
        } else {
            return Ok(None);
        };
        Ok((at > now_ms as i64).then_some(Delay::At(at as u64)))
    }
}

/// A level capped at the greatest one.
fn level_index(level: i64, levels: usize) -> usize {
    level.min(levels as i64) as usize
}

/// What the broker's configuration says of delays.
#[derive(Clone, Debug)]
pub struct DelayRules {
    /// `messageDelayLevel`, in milliseconds; level 1 is the first. Not empty.
    pub levels_ms: Vec<u64>,
    /// `timerWheelEnable`.
    pub timer: bool,
    /// `timerMaxDelaySec`, in seconds.
    pub timer_delay_max_s: u64,
    /// `timerPrecisionMs`: chosen times are moved to the next multiple. At least 1.
    pub timer_precision_ms: u64,
}

/// When a message is due, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// A time was asked for, not a level.
    pub is_timer: bool,
}

impl DelayRules {
    /// RocketMQ's defaults.
    pub fn rocketmq() -> Self {
        const SECONDS: [u64; 18] = [
            1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200,
        ];
        Self {
            levels_ms: SECONDS.iter().map(|seconds| seconds * 1_000).collect(),
            timer: true,
            timer_delay_max_s: 259_200,
            timer_precision_ms: 1,
        }
    }

    /// When a message with these properties is due; `None` for now. A time too far ahead is refused.
    pub fn due(
        &self,
        properties: &DelayProperties<'_>,
        now_ms: u64,
    ) -> Result<Option<Due>, BrokerError> {
        if properties.level.is_none() && !properties.has_time() {
            return Ok(None);
        }
        let delay = properties
            .delay(self.levels_ms.len(), now_ms)
            .map_err(|error| BrokerError::MessageIllegal(error.to_string()))?;
        if let Some(Delay::Level(level)) = delay {
            return Ok(Some(Due {
                at_ms: now_ms + self.level_ms(level),
                is_timer: false,
            }));
        }
        if properties.has_time() && !self.timer {
            return Err(BrokerError::System(
                "this broker delivers at no chosen time (timerWheelEnable is false); use a delay level".into(),
            ));
        }
        let Some(Delay::At(at_ms)) = delay else {
            return Ok(None);
        };
        let delay_ms = at_ms.saturating_sub(now_ms);
        if delay_ms > self.timer_delay_max_s.saturating_mul(1_000) {
            return Err(BrokerError::MessageIllegal(format!(
                "the message is wanted in {} s, the limit is {} s (timerMaxDelaySec)",
                delay_ms / 1_000,
                self.timer_delay_max_s
            )));
        }
        let precision_ms = self.timer_precision_ms.max(1);
        Ok(Some(Due {
            at_ms: at_ms.div_ceil(precision_ms).saturating_mul(precision_ms),
            is_timer: true,
        }))
    }

    /// The delay of a level in milliseconds.
    pub fn level_ms(&self, level: usize) -> u64 {
        let index = level.clamp(1, self.levels_ms.len().max(1)) - 1;
        self.levels_ms.get(index).copied().unwrap_or(0)
    }

    /// The level of the retry of a message that was consumed in vain `reconsume_times` times before. `asked` is the
    /// `delayLevel` of the consumer: 0 leaves it to the broker.
    pub fn retry_level(&self, asked: i32, reconsume_times: i32) -> usize {
        let level = if asked > 0 {
            i64::from(asked)
        } else {
            3 + i64::from(reconsume_times.max(0))
        };
        level_index(level, self.levels_ms.len())
    }
}

/// Times that a retry of a customized policy skips: its first delay is the third (`CustomizedRetryPolicy`).
const CUSTOMIZED_SKIPS: usize = 2;
/// Reconsume times from which on an exponential policy grows no more (`ExponentialRetryPolicy`).
const EXPONENTIAL_TIMES_MAX: i32 = 32;

/// The delay in milliseconds that a group's own policy gives to the retry after `reconsume_times` earlier ones. `None`
/// if it has none but the delay levels (CUSTOMIZED without own delays). A number that is none, or below 0, is left out, as
/// if it had not been set.
pub fn policy_delay_ms(group: &SubscriptionGroupConfig, reconsume_times: i32) -> Option<u64> {
    let policy = &group.group_retry_policy;
    if policy.get("type")?.as_str()? != "EXPONENTIAL" {
        let own = policy
            .get("customizedRetryPolicy")?
            .get("next")?
            .as_array()?;
        let delays: Vec<u64> = own.iter().filter_map(|delay| delay.as_u64()).collect();
        let at = reconsume_times.max(0) as usize + CUSTOMIZED_SKIPS;
        return delays.get(at).or(delays.last()).copied();
    }
    let own = policy.get("exponentialRetryPolicy");
    let value = |name: &str, default: u64| {
        let value = own.and_then(|own| own.get(name)?.as_u64());
        value.unwrap_or(default)
    };
    let (initial, max) = (value("initial", 5_000), value("max", 7_200_000));
    let multiplier = value("multiplier", 2);
    let times = reconsume_times.clamp(0, EXPONENTIAL_TIMES_MAX) as u32;
    Some(
        initial
            .saturating_mul(multiplier.saturating_pow(times))
            .min(max),
    )
}

fn number(name: &'static str, value: Option<&[u8]>) -> Result<Option<i64>, DelayError> {
    let Some(value) = value else { return Ok(None) };
    let parsed = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
    parsed.map(Some).ok_or_else(|| DelayError {
        name,
        value: String::from_utf8_lossy(&value[..value.len().min(64)]).into_owned(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_level_goes_before_times_and_is_capped() {
        let mut wanted = DelayProperties {
            level: Some(b"3"),
            delay_sec: Some(b"9"),
            ..DelayProperties::default()
        };
        assert_eq!(wanted.delay(18, 0), Ok(Some(Delay::Level(3))));
        wanted.level = Some(b"99");
        assert_eq!(wanted.delay(18, 0), Ok(Some(Delay::Level(18))));
        wanted.level = Some(b"0");
        assert_eq!(wanted.delay(18, 5), Ok(Some(Delay::At(9_005))));
    }

    #[test]
    fn a_time_in_the_past_is_no_delay() {
        let past = DelayProperties {
            deliver_ms: Some(b"1000"),
            ..DelayProperties::default()
        };
        assert_eq!(past.delay(18, 1_000), Ok(None));
        assert_eq!(past.delay(18, 999), Ok(Some(Delay::At(1_000))));
        assert_eq!(DelayProperties::default().delay(18, 1), Ok(None));
    }

    #[test]
    fn what_is_not_a_number_is_named() {
        let bad = DelayProperties {
            delay_ms: Some(b"soon"),
            ..DelayProperties::default()
        };
        let error = bad.delay(18, 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the property TIMER_DELAY_MS is 'soon', which is not a number"
        );
    }

    #[test]
    fn seconds_go_before_milliseconds_and_those_before_an_absolute_time() {
        let mut wanted = DelayProperties {
            level: None,
            delay_sec: Some(b"1"),
            delay_ms: Some(b"2"),
            deliver_ms: Some(b"3"),
        };
        assert_eq!(wanted.delay(18, 0), Ok(Some(Delay::At(1_000))));
        wanted.delay_sec = None;
        assert_eq!(wanted.delay(18, 0), Ok(Some(Delay::At(2))));
        wanted.delay_ms = None;
        assert_eq!(wanted.delay(18, 0), Ok(Some(Delay::At(3))));
    }

    fn in_seconds(seconds: &str) -> DelayProperties<'_> {
        DelayProperties {
            delay_sec: Some(seconds.as_bytes()),
            ..DelayProperties::default()
        }
    }

    #[test]
    fn a_time_may_be_as_far_ahead_as_the_limit_and_no_farther() {
        let rules = DelayRules::rocketmq();
        let due = rules.due(&in_seconds("259200"), 5).unwrap().unwrap();
        assert_eq!((due.at_ms, due.is_timer), (259_200_005, true));
        let error = rules.due(&in_seconds("259201"), 5).unwrap_err();
        assert!(
            matches!(error, BrokerError::MessageIllegal(text) if text.contains("timerMaxDelaySec"))
        );
        let huge = i64::MAX.to_string();
        assert!(rules.due(&in_seconds(&huge), 5).is_err());
    }

    #[test]
    fn a_coarser_precision_moves_a_time_on_and_never_back() {
        let rules = DelayRules {
            timer_precision_ms: 1_000,
            ..DelayRules::rocketmq()
        };
        let due = |at: &str| {
            let wanted = DelayProperties {
                deliver_ms: Some(at.as_bytes()),
                ..DelayProperties::default()
            };
            rules.due(&wanted, 0).unwrap().unwrap().at_ms
        };
        assert_eq!([due("1"), due("1000"), due("1001")], [1_000, 1_000, 2_000]);
    }

    #[test]
    fn without_timers_a_time_is_refused_and_a_level_is_not() {
        let rules = DelayRules {
            timer: false,
            ..DelayRules::rocketmq()
        };
        assert!(matches!(
            rules.due(&in_seconds("-5"), 5),
            Err(BrokerError::System(_))
        ));
        let level = DelayProperties {
            level: Some(b"2"),
            delay_sec: Some(b"9"),
            ..DelayProperties::default()
        };
        let due = rules.due(&level, 1).unwrap().unwrap();
        assert_eq!((due.at_ms, due.is_timer), (5_001, false));
    }

    #[test]
    fn own_levels_replace_those_of_rocketmq() {
        let rules = DelayRules {
            levels_ms: vec![7, 9],
            ..DelayRules::rocketmq()
        };
        assert_eq!(rules.level_ms(rules.retry_level(0, 0)), 9);
        assert_eq!(rules.level_ms(rules.retry_level(1, 0)), 7);
    }

    #[test]
    fn retries_start_at_ten_seconds_and_end_at_two_hours() {
        let rules = DelayRules::rocketmq();
        assert_eq!(rules.level_ms(rules.retry_level(0, 0)), 10_000);
        assert_eq!(rules.retry_level(0, 15), 18);
        assert_eq!(rules.retry_level(0, 40), 18);
        assert_eq!(rules.retry_level(1, 7), 1);
        assert_eq!(rules.level_ms(18), 7_200_000);
    }

    #[test]
    fn an_exponential_policy_doubles_up_to_its_limit() {
        let group = |policy| SubscriptionGroupConfig {
            group_retry_policy: policy,
            ..SubscriptionGroupConfig::default()
        };
        let plain = group(serde_json::json!({"type": "EXPONENTIAL"}));
        assert_eq!(policy_delay_ms(&plain, 0), Some(5_000));
        assert_eq!(policy_delay_ms(&plain, 3), Some(40_000));
        assert_eq!(policy_delay_ms(&plain, 99), Some(7_200_000));
        let own = group(
            serde_json::json!({"type": "EXPONENTIAL", "exponentialRetryPolicy": {"initial": 10, "multiplier": 3, "max": 50}}),
        );
        assert_eq!(policy_delay_ms(&own, 1), Some(30));
        assert_eq!(policy_delay_ms(&own, 2), Some(50));
        assert_eq!(
            policy_delay_ms(&SubscriptionGroupConfig::default(), 0),
            None
        );
    }

    #[test]
    fn a_customized_policy_begins_with_its_third_delay_and_stays_at_its_last() {
        let group = |next| SubscriptionGroupConfig {
            group_retry_policy: serde_json::json!({
                "type": "CUSTOMIZED", "customizedRetryPolicy": {"next": next},
            }),
            ..SubscriptionGroupConfig::default()
        };
        let own = group(serde_json::json!([1, 2, 30, 40]));
        let delays: Vec<_> = [-1, 0, 1, 2, 99]
            .map(|times| policy_delay_ms(&own, times))
            .into();
        assert_eq!(delays, [Some(30), Some(30), Some(40), Some(40), Some(40)]);
        assert_eq!(policy_delay_ms(&group(serde_json::json!([7])), 0), Some(7));
        assert_eq!(policy_delay_ms(&group(serde_json::json!([])), 0), None);
        assert_eq!(policy_delay_ms(&group(serde_json::json!("x")), 0), None);
        let wrong = group(serde_json::json!(["a", -5, 9]));
        assert_eq!(policy_delay_ms(&wrong, 0), Some(9));
    }
}
