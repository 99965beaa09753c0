//! Delayed messages: what a producer asked for, and the delay levels of retries.
//!
//! Pure, and for now a seam: a delayed message is refused (it must never be delivered at the wrong time), and a message
//! that goes back to its group's retry topic is stored there at once. The delay engine takes over both calls of
//! [`Delay`] in `send.rs` and `send_back.rs`.
//! Source: `HookUtils.handleScheduleMessage`, `ScheduleMessageService.parseDelayLevel`.

/// `messageDelayLevel`: level 1 is the first. In milliseconds.
pub const LEVELS_MS: [u64; 18] = [
    1_000, 5_000, 10_000, 30_000, 60_000, 120_000, 180_000, 240_000, 300_000, 360_000, 420_000,
    480_000, 540_000, 600_000, 1_200_000, 1_800_000, 3_600_000, 7_200_000,
];

/// When a message is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// After the delay of a level, 1..=18.
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
    /// The delay that the properties ask for; none if the message is wanted now or was wanted in the past.
    /// Precedence as in RocketMQ: level, seconds, milliseconds, absolute time.
    pub fn delay(&self, now_ms: u64) -> Result<Option<Delay>, DelayError> {
        if let Some(level) = number("DELAY", self.level)?
            && level > 0
        {
            return Ok(Some(Delay::Level(level_index(level))));
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
fn level_index(level: i64) -> usize {
    level.min(LEVELS_MS.len() as i64) as usize
}

/// The level of the retry of a message that was consumed in vain `reconsume_times` times before. `asked` is the
/// `delayLevel` of the consumer: 0 leaves it to the broker.
pub fn retry_level(asked: i32, reconsume_times: i32) -> usize {
    let level = if asked > 0 {
        i64::from(asked)
    } else {
        3 + i64::from(reconsume_times.max(0))
    };
    level_index(level)
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
        assert_eq!(wanted.delay(0), Ok(Some(Delay::Level(3))));
        wanted.level = Some(b"99");
        assert_eq!(wanted.delay(0), Ok(Some(Delay::Level(18))));
        wanted.level = Some(b"0");
        assert_eq!(wanted.delay(5), Ok(Some(Delay::At(9_005))));
    }

    #[test]
    fn a_time_in_the_past_is_no_delay() {
        let past = DelayProperties {
            deliver_ms: Some(b"1000"),
            ..DelayProperties::default()
        };
        assert_eq!(past.delay(1_000), Ok(None));
        assert_eq!(past.delay(999), Ok(Some(Delay::At(1_000))));
        assert_eq!(DelayProperties::default().delay(1), Ok(None));
    }

    #[test]
    fn what_is_not_a_number_is_named() {
        let bad = DelayProperties {
            delay_ms: Some(b"soon"),
            ..DelayProperties::default()
        };
        let error = bad.delay(0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the property TIMER_DELAY_MS is 'soon', which is not a number"
        );
    }

    #[test]
    fn retries_start_at_ten_seconds_and_end_at_two_hours() {
        assert_eq!(LEVELS_MS[retry_level(0, 0) - 1], 10_000);
        assert_eq!(retry_level(0, 15), 18);
        assert_eq!(retry_level(0, 40), 18);
        assert_eq!(retry_level(1, 7), 1);
    }
}
