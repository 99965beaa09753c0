//! Values of keys: text to value, value to text, and the bounds between.
//!
//! A number out of its bounds is an error that names both, except where RocketMQ itself takes the nearest allowed one
//! ([`Bounds::Clamp`]): there a file that works with it has to work here, with a warning.

use std::fmt;
use std::path::PathBuf;

/// What a number may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bounds {
    /// Not a number, or any number of its type.
    Any,
    /// From the first to the second, both included.
    Range(u64, u64),
    /// The same, but the nearest bound is taken, as RocketMQ does.
    Clamp(u64, u64),
    /// A number of bytes, which may be written `512MiB`, `2g` and so on.
    Bytes(u64, u64),
    /// The same and a multiple of the third.
    BytesMultiple(u64, u64, u64),
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Any => Ok(()),
            Self::Range(min, u64::MAX) => write!(f, "at least {min}"),
            Self::Range(min, max) => write!(f, "{min} to {max}"),
            Self::Clamp(min, max) => write!(f, "{min} to {max} (the nearest is taken)"),
            Self::Bytes(min, u64::MAX) => write!(f, "at least {}", size(min)),
            Self::Bytes(min, max) => write!(f, "{} to {}", size(min), size(max)),
            Self::BytesMultiple(min, max, step) => {
                write!(f, "{} to {}, a multiple of {step}", size(min), size(max))
            }
        }
    }
}

/// A value that was taken, with a warning if it is not quite what was written.
#[derive(Debug, PartialEq)]
pub struct Taken<T> {
    pub value: T,
    pub warning: Option<String>,
}

impl<T> From<T> for Taken<T> {
    fn from(value: T) -> Self {
        Self {
            value,
            warning: None,
        }
    }
}

/// The type of a key.
pub trait Value: Sized {
    /// The value, or what would have been understood.
    fn parse(text: &str, bounds: Bounds) -> Result<Taken<Self>, String>;
    /// Text that [`Value::parse`] reads back.
    fn render(&self) -> String;
}

impl Value for String {
    fn parse(text: &str, _: Bounds) -> Result<Taken<Self>, String> {
        Ok(text.to_owned().into())
    }

    fn render(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    fn parse(text: &str, _: Bounds) -> Result<Taken<Self>, String> {
        Ok(Self::from(text).into())
    }

    fn render(&self) -> String {
        self.display().to_string()
    }
}

impl Value for bool {
    fn parse(text: &str, _: Bounds) -> Result<Taken<Self>, String> {
        match text {
            _ if text.eq_ignore_ascii_case("true") => Ok(true.into()),
            _ if text.eq_ignore_ascii_case("false") => Ok(false.into()),
            _ => Err("true or false".to_owned()),
        }
    }

    fn render(&self) -> String {
        self.to_string()
    }
}

fn number(text: &str, bounds: Bounds, type_max: u64) -> Result<Taken<u64>, String> {
    let (min, max, parsed) = match bounds {
        Bounds::Any => (0, type_max, text.parse().ok()),
        Bounds::Range(min, max) | Bounds::Clamp(min, max) => {
            (min, max.min(type_max), text.parse().ok())
        }
        Bounds::Bytes(min, max) | Bounds::BytesMultiple(min, max, _) => {
            (min, max.min(type_max), parse_size(text))
        }
    };
    let expected = || match bounds {
        Bounds::Any => format!("a whole number from 0 to {type_max}"),
        Bounds::Bytes(..) | Bounds::BytesMultiple(..) => {
            format!("a number of bytes such as 4194304, 64MiB or 1g, {bounds}")
        }
        _ => format!("a whole number, {bounds}"),
    };
    let value: u64 = parsed.ok_or_else(expected)?;
    if let Bounds::Clamp(..) = bounds {
        let taken = value.clamp(min, max);
        let warning = (taken != value)
            .then(|| format!("{value} is outside of {min} to {max}: {taken} is taken"));
        return Ok(Taken {
            value: taken,
            warning,
        });
    }
    if value < min || value > max {
        return Err(expected());
    }
    if let Bounds::BytesMultiple(_, _, step) = bounds
        && !value.is_multiple_of(step)
    {
        return Err(expected());
    }
    Ok(value.into())
}

macro_rules! whole_number {
    ($($type:ty),+) => {$(
        impl Value for $type {
            fn parse(text: &str, bounds: Bounds) -> Result<Taken<Self>, String> {
                let taken = number(text, bounds, <$type>::MAX as u64)?;
                // The type's greatest number is one of the bounds, so nothing is cut off here.
                Ok(Taken { value: taken.value as $type, warning: taken.warning })
            }

            fn render(&self) -> String {
                self.to_string()
            }
        }
    )+};
}
whole_number!(u8, u16, u32, u64, usize);

impl Value for i32 {
    fn parse(text: &str, _: Bounds) -> Result<Taken<Self>, String> {
        text.parse::<i32>()
            .map(Taken::from)
            .map_err(|_| "a whole number".to_owned())
    }

    fn render(&self) -> String {
        self.to_string()
    }
}

/// Makes an enum whose variants are written as in RocketMQ's files.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl Value for $name {
            fn parse(text: &str, _: Bounds) -> Result<Taken<Self>, String> {
                match text {
                    $(_ if text.eq_ignore_ascii_case($text) => Ok(Self::$variant.into()),)+
                    _ => Err(["one of", $($text),+].join(" ")),
                }
            }

            fn render(&self) -> String {
                match self { $(Self::$variant => $text.to_owned()),+ }
            }
        }
    };
}

words! {
    /// When a send is acknowledged.
    FlushDiskType {
        /// Written and flushed to the device: survives a power loss.
        SyncFlush = "SYNC_FLUSH",
        /// Written to the device without a flush: survives a kill of the process.
        AsyncFlush = "ASYNC_FLUSH",
    }
}
words! {
    /// How metrics leave the broker.
    MetricsExporterType {
        Disable = "DISABLE",
        /// As text of Prometheus, at a port.
        Prom = "PROM",
    }
}
words! {
    /// Role of a broker in its replication group.
    BrokerRole {
        AsyncMaster = "ASYNC_MASTER",
        SyncMaster = "SYNC_MASTER",
        Slave = "SLAVE",
    }
}
words! {
    /// How the members of a group take messages unless a group says otherwise.
    MessageRequestMode {
        Pull = "PULL",
        Pop = "POP",
    }
}
words! {
    /// Shape of a log line.
    LogFormat {
        Text = "text",
        Json = "json",
    }
}

/// Levels of delayed messages: `messageDelayLevel`, in milliseconds; level 1 is the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelayLevels(pub Vec<u64>);

impl DelayLevels {
    /// RocketMQ's 18 levels.
    pub fn rocketmq() -> Self {
        const SECONDS: [u64; 18] = [
            1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200,
        ];
        Self(SECONDS.iter().map(|seconds| seconds * 1000).collect())
    }
}

const TIME_UNITS: [(&str, u64); 4] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
];

impl Value for DelayLevels {
    fn parse(text: &str, _: Bounds) -> Result<Taken<Self>, String> {
        let expected =
            "delays with the unit s, m, h or d between blanks, such as 1s 5s 10s 30s 1m 2h";
        let levels: Option<Vec<u64>> = text
            .split_whitespace()
            .map(|word| {
                let unit = word.chars().last()?;
                let (_, unit_ms) = TIME_UNITS.iter().find(|(name, _)| name.starts_with(unit))?;
                let count: u64 = word.strip_suffix(unit)?.parse().ok()?;
                count.checked_mul(*unit_ms)
            })
            .collect();
        match levels {
            Some(levels) if !levels.is_empty() => Ok(Self(levels).into()),
            _ => Err(expected.to_owned()),
        }
    }

    fn render(&self) -> String {
        let words: Vec<_> = self
            .0
            .iter()
            .map(|level_ms| {
                let (name, unit_ms) = TIME_UNITS
                    .iter()
                    .find(|(_, unit_ms)| level_ms.is_multiple_of(*unit_ms) && *level_ms > 0)
                    .unwrap_or(&TIME_UNITS[3]);
                format!("{}{name}", level_ms / unit_ms)
            })
            .collect();
        words.join(" ")
    }
}

/// Hours of the day, 0 to 23: `deleteWhen`, written `04;16`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hours(pub Vec<u8>);

impl Value for Hours {
    fn parse(text: &str, _: Bounds) -> Result<Taken<Self>, String> {
        let hours: Option<Vec<u8>> = text
            .split(';')
            .map(|hour| hour.trim().parse().ok().filter(|hour| *hour < 24))
            .collect();
        hours
            .map(|hours| Self(hours).into())
            .ok_or_else(|| "hours of the day between semicolons, such as 04 or 04;16".to_owned())
    }

    fn render(&self) -> String {
        let hours: Vec<_> = self.0.iter().map(|hour| format!("{hour:02}")).collect();
        hours.join(";")
    }
}

/// Addresses `host:port` between semicolons; a host may be a DNS name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(pub Vec<String>);

impl Value for Addresses {
    fn parse(text: &str, _: Bounds) -> Result<Taken<Self>, String> {
        let mut addresses = Vec::new();
        for address in text
            .split(';')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            // RocketMQ's clients allow the scheme in front.
            let address = address.strip_prefix("http://").unwrap_or(address);
            let valid = address.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && !host.contains(|char: char| char.is_whitespace() || char == '/')
                    && port.parse::<u16>().is_ok_and(|port| port > 0)
            });
            if !valid {
                return Err(
                    "addresses host:port between semicolons, such as 10.0.0.1:9876;10.0.0.2:9876"
                        .to_owned(),
                );
            }
            addresses.push(address.to_owned());
        }
        Ok(Self(addresses).into())
    }

    fn render(&self) -> String {
        self.0.join(";")
    }
}

/// A number of bytes: plain, or with `k`, `m`, `g`, `t`, each also as `kb` or `KiB`; all are powers of 1024.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.len()
        - text
            .trim_start_matches(|char: char| char.is_ascii_digit())
            .len();
    let (digits, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = match unit.as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1u64 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// A number of bytes as a human writes it; exact, so it falls back to plain bytes.
pub fn size(bytes: u64) -> String {
    for (unit, factor) in [
        ("TiB", 1u64 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{} {unit}", bytes / factor);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken<T: Value>(text: &str, bounds: Bounds) -> Result<T, String> {
        T::parse(text, bounds).map(|taken| taken.value)
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("4096", Some(4096)),
            ("512MiB", Some(512 << 20)),
            ("2g", Some(2 << 30)),
            ("1 GiB", Some(1 << 30)),
            ("64kb", Some(64 << 10)),
            ("1T", Some(1 << 40)),
            ("7B", Some(7)),
            ("", None),
            ("g", None),
            ("-1", None),
            ("1.5g", None),
            ("12 parsecs", None),
            ("99999999999999999999", None),
            ("99999999999g", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    #[test]
    fn a_number_out_of_its_bounds_is_refused_with_the_bounds() {
        let bounds = Bounds::BytesMultiple(1 << 20, 1 << 30, 4096);
        assert_eq!(taken::<u64>("64m", bounds), Ok(64 << 20));
        for text in ["4096", "2g", "1048577", "-5", "many"] {
            let error = taken::<u64>(text, bounds).unwrap_err();
            assert!(error.contains("1 MiB to 1 GiB"), "{error}");
        }
        assert!(taken::<u16>("70000", Bounds::Any).is_err());
        assert!(taken::<u16>("70000", Bounds::Range(1, u64::MAX)).is_err());
    }

    #[test]
    fn where_rocketmq_takes_the_nearest_bound_so_do_we_and_say_so() {
        let taken = u32::parse("5000", Bounds::Clamp(10_000, 60_000)).unwrap();
        assert_eq!(taken.value, 10_000);
        assert!(taken.warning.unwrap().contains("10000 is taken"));
        assert_eq!(
            u32::parse("30000", Bounds::Clamp(10_000, 60_000)).unwrap(),
            30_000.into()
        );
    }

    #[test]
    fn delay_levels_are_those_of_rocketmq() {
        let text = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h";
        let levels: DelayLevels = taken(text, Bounds::Any).unwrap();
        assert_eq!(levels, DelayLevels::rocketmq());
        assert_eq!(levels.render(), text);
        for text in ["", "1", "s", "1y", "1s,5s", "99999999999999999999d"] {
            assert!(taken::<DelayLevels>(text, Bounds::Any).is_err(), "{text}");
        }
    }

    #[test]
    fn hours_and_addresses_are_checked() {
        assert_eq!(taken("04", Bounds::Any), Ok(Hours(vec![4])));
        assert_eq!(taken("4; 16", Bounds::Any), Ok(Hours(vec![4, 16])));
        assert!(taken::<Hours>("24", Bounds::Any).is_err());
        assert_eq!(
            taken("mq-0.mq:9876; 10.0.0.2:9876", Bounds::Any),
            Ok(Addresses(vec![
                "mq-0.mq:9876".into(),
                "10.0.0.2:9876".into()
            ]))
        );
        for text in [
            "localhost",
            "host:",
            ":9876",
            "host:0",
            "host:99999",
            "a b:1",
        ] {
            assert!(taken::<Addresses>(text, Bounds::Any).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_read_back(text in any::<String>()) {
            let bounds = Bounds::Bytes(0, u64::MAX);
            if let Ok(value) = taken::<u64>(&text, bounds) {
                prop_assert_eq!(taken(&value.render(), bounds), Ok(value));
            }
            if let Ok(value) = taken::<DelayLevels>(&text, Bounds::Any) {
                prop_assert_eq!(taken(&value.render(), Bounds::Any), Ok(value));
            }
            if let Ok(value) = taken::<Hours>(&text, Bounds::Any) {
                prop_assert_eq!(taken(&value.render(), Bounds::Any), Ok(value));
            }
            if let Ok(value) = taken::<Addresses>(&text, Bounds::Any) {
                prop_assert_eq!(taken(&value.render(), Bounds::Any), Ok(value));
            }
        }

        #[test]
        fn delay_levels_come_back(levels in prop::collection::vec(0u64..100_000, 1..20)) {
            let levels = DelayLevels(levels.iter().map(|seconds| seconds * 1000).collect());
            prop_assert_eq!(taken(&levels.render(), Bounds::Any), Ok(levels));
        }

        #[test]
        fn a_size_that_is_shown_is_read_back(bytes in any::<u64>(), shift in 0u32..50) {
            let bytes = bytes >> shift << shift;
            prop_assert_eq!(parse_size(size(bytes).trim_end_matches("ytes")), Some(bytes));
        }
    }
}
