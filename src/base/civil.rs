//! Times as text, and back: what RocketMQ's tools print, and what people type. All of it is UTC.
//!
//! Without a package for calendars: the Gregorian calendar is ten lines, and no rule of a time zone is needed.

/// Year, month and day of month of a number of days since 1970-01-01 (Gregorian calendar, by eras of 400 years).
pub fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// Local-free text of a time as RocketMQ's tools print it: `yyyy-MM-dd#HH:mm:ss:SSS`, in UTC.
pub fn time_text(time_ms: u64) -> String {
    let (year, month, day) = civil_date(time_ms / 86_400_000);
    let ms = time_ms % 86_400_000;
    format!(
        "{year:04}-{month:02}-{day:02}#{:02}:{:02}:{:02}:{:03}",
        ms / 3_600_000,
        ms / 60_000 % 60,
        ms / 1_000 % 60,
        ms % 1_000
    )
}

/// The same as people read it: `yyyy-MM-dd HH:mm:ss.SSS`.
pub fn readable_time(time_ms: u64) -> String {
    let text = time_text(time_ms);
    match text.rsplit_once(':') {
        Some((front, ms)) => format!("{}.{ms}", front.replace('#', " ")),
        None => text,
    }
}

/// Days since 1970-01-01 of a date; `None` if there is no such date or it is earlier.
fn days_of_date(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1_970..=9_999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (shifted_year, month_from_march) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let (era, year_of_era) = (shifted_year / 400, shifted_year % 400);
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    // The 31st of a month with fewer days would come out as a day of the next one.
    (civil_date(days) == (year, month, day)).then_some(days)
}

/// Milliseconds since 1970 of what a person or a script wrote: a number of them, `now`, a time before now such as `-90s`,
/// `-30m`, `-2h` or `-7d`, or a date with or without a time (`2026-01-31`, `2026-01-31T08:00:00`, `2026-01-31#08:00:00:000`).
pub fn parse_time(text: &str, now_ms: u64) -> Option<u64> {
    let text = text.trim();
    if text == "now" {
        return Some(now_ms);
    }
    if let Some(before) = text.strip_prefix('-') {
        let unit = before.chars().last()?;
        let unit_ms = match unit {
            's' => 1_000,
            'm' => 60_000,
            'h' => 3_600_000,
            'd' => 86_400_000,
            _ => return None,
        };
        let count: u64 = before[..before.len() - unit.len_utf8()].parse().ok()?;
        return now_ms.checked_sub(count.checked_mul(unit_ms)?);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok();
    }
    let (date, time) = match text.find(['T', ' ', '#']) {
        Some(at) => (&text[..at], text[at + 1..].trim_end_matches('Z')),
        None => (text, "00:00"),
    };
    let numbers = |text: &str, ends: &[char]| -> Option<Vec<u64>> {
        text.split(ends)
            .map(|part| match part.len() {
                1..=4 => part.parse().ok(),
                _ => None,
            })
            .collect()
    };
    let [year, month, day] = numbers(date, &['-'])?[..] else {
        return None;
    };
    let (hour, minute, second, ms) = match numbers(time, &[':', '.'])?[..] {
        [hour, minute] => (hour, minute, 0, 0),
        [hour, minute, second] => (hour, minute, second, 0),
        [hour, minute, second, ms] => (hour, minute, second, ms),
        _ => return None,
    };
    if hour > 23 || minute > 59 || second > 59 || ms > 999 {
        return None;
    }
    let seconds = days_of_date(year, month, day)? * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(seconds * 1_000 + ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_write_is_a_time() {
        let now = 1_709_164_801_007;
        for (text, wanted) in [
            ("now", now),
            ("0", 0),
            ("1709164801007", now),
            ("-1s", now - 1_000),
            ("-2h", now - 7_200_000),
            ("2024-02-29", 1_709_164_800_000),
            ("2024-02-29T00:00:01.007Z", now),
            ("2024-02-29 00:00:01", 1_709_164_801_000),
            ("2024-02-29#00:00:01:007", now),
        ] {
            assert_eq!(parse_time(text, now), Some(wanted), "{text}");
        }
        for text in [
            "",
            "-",
            "-3",
            "-1é",
            "2023-02-29",
            "2024-02-30",
            "2024-13-01",
            "1969-12-31",
            "2024-1",
            "2024-02-29T24:00",
            "2024-02-29T1",
            "x",
            "99999999999999999999",
        ] {
            assert_eq!(parse_time(text, now), None, "{text}");
        }
        assert_eq!(readable_time(now), "2024-02-29 00:00:01.007");
    }

    proptest! {
        #[test]
        fn a_time_that_was_printed_reads_as_itself(time_ms in 0u64..253_402_300_800_000) {
            prop_assert_eq!(parse_time(&time_text(time_ms), 0), Some(time_ms));
            prop_assert_eq!(parse_time(&readable_time(time_ms), 0), Some(time_ms));
        }

        #[test]
        fn no_text_is_too_strange(text in ".{0,40}", now in any::<u64>()) {
            let _ = parse_time(&text, now);
        }
    }
}
