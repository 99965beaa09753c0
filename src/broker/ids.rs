//! The unique key of a message, which the broker makes for clients that do not, and times as RocketMQ prints them.
//!
//! Pure. Source: `MessageClientIDSetter`, `UtilAll.timeMillisToHumanString2`.

use std::net::IpAddr;

use crate::base::civil::civil_date;

const HEX: &[u8; 16] = b"0123456789ABCDEF";

fn push_hex(out: &mut String, bytes: &[u8]) {
    for &byte in bytes {
        out.push(HEX[usize::from(byte >> 4)] as char);
        out.push(HEX[usize::from(byte & 15)] as char);
    }
}

fn push_ip(out: &mut String, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => push_hex(out, &ip.octets()),
        IpAddr::V6(ip) => push_hex(out, &ip.octets()),
    }
}

/// Makes unique keys for messages that come without one; one maker per core.
#[derive(Debug)]
pub struct UniqueKeys {
    /// Address, process id and a number that is unique per core and start, in hexadecimal.
    prefix: String,
    counter: u16,
}

impl UniqueKeys {
    /// `distinction` takes the place of the class loader's hash: two cores, or two starts, must not share it.
    pub fn new(ip: IpAddr, process_id: u32, distinction: u32) -> Self {
        let mut prefix = String::with_capacity(44);
        push_ip(&mut prefix, ip);
        push_hex(&mut prefix, &(process_id as u16).to_be_bytes());
        push_hex(&mut prefix, &distinction.to_be_bytes());
        Self { prefix, counter: 0 }
    }

    /// The next key.
    pub fn next(&mut self, now_ms: u64) -> String {
        let mut key = String::with_capacity(self.prefix.len() + 12);
        key.push_str(&self.prefix);
        push_hex(&mut key, &(ms_of_month(now_ms) as u32).to_be_bytes());
        push_hex(&mut key, &self.counter.to_be_bytes());
        self.counter = self.counter.wrapping_add(1);
        key
    }
}

/// Milliseconds since the first day of the current month in UTC: less than 2^32.
fn ms_of_month(now_ms: u64) -> u64 {
    const DAY_MS: u64 = 86_400_000;
    let (_, _, day) = civil_date(now_ms / DAY_MS);
    (day - 1) * DAY_MS + now_ms % DAY_MS
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn unique_keys_never_repeat_within_a_millisecond() {
        let mut keys = UniqueKeys::new("10.0.0.1".parse().unwrap(), 77, 5);
        let made: std::collections::HashSet<_> = (0..1000).map(|_| keys.next(1_000)).collect();
        assert_eq!(made.len(), 1000);
        assert!(made.iter().all(|key| key.len() == 32));
    }

    #[test]
    fn the_time_in_a_unique_key_counts_from_the_first_of_the_month() {
        // 2024-02-29T00:00:01Z: 28 days and a second into February.
        assert_eq!(ms_of_month(1_709_164_801_000), 28 * 86_400_000 + 1_000);
        assert_eq!(ms_of_month(0), 0);
    }
}
