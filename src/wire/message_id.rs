//! The offset message id: upper-case hexadecimal digits of store host and physical offset (`MessageDecoder.createMessageId`).
//!
//! Tools find the broker and the record of a message by it, so it names the address that clients reach us by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::base::offset::PhysicalOffset;

/// Digits of an id with an IPv4 host.
const DIGITS_V4: usize = 2 * (4 + 4 + 8);
/// Digits of an id with an IPv6 host.
const DIGITS_V6: usize = 2 * (16 + 4 + 8);

/// Where a message is: the broker's address and the physical offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId {
    pub host: SocketAddr,
    pub offset: PhysicalOffset,
}

/// Text that is no offset message id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no offset message id: that has {DIGITS_V4} or {DIGITS_V6} hexadecimal digits")]
pub struct MessageIdError {
    text: String,
}

impl MessageId {
    /// The id as text.
    pub fn encode(self) -> String {
        let mut text = String::with_capacity(DIGITS_V6);
        self.encode_into(&mut text);
        text
    }

    /// Appends the id, for the comma-separated list of a batch.
    pub fn encode_into(self, text: &mut String) {
        // Digits are ASCII: this is a check of a few words.
        self.each_part(|digits| text.push_str(std::str::from_utf8(digits).unwrap_or_default()));
    }

    /// Appends the id to text in bytes.
    pub fn encode_bytes(self, text: &mut Vec<u8>) {
        self.each_part(|digits| text.extend_from_slice(digits));
    }

    fn each_part(self, mut put: impl FnMut(&[u8])) {
        match self.host.ip().to_canonical() {
            IpAddr::V4(address) => put(hex_of(address.octets()).as_flattened()),
            IpAddr::V6(address) => put(hex_of(address.octets()).as_flattened()),
        }
        put(hex_of(u32::from(self.host.port()).to_be_bytes()).as_flattened());
        put(hex_of(self.offset.0.to_be_bytes()).as_flattened());
    }

    /// Reads an id; lower-case digits are accepted too.
    pub fn parse(text: &str) -> Result<Self, MessageIdError> {
        Self::try_parse(text.as_bytes()).ok_or_else(|| MessageIdError {
            text: text.chars().take(DIGITS_V6 + 8).collect(),
        })
    }

    fn try_parse(digits: &[u8]) -> Option<Self> {
        let address_digits = match digits.len() {
            DIGITS_V4 => 8,
            DIGITS_V6 => 32,
            _ => return None,
        };
        let address = hex(&digits[..address_digits])?;
        let address = if address_digits == 8 {
            IpAddr::V4(Ipv4Addr::from_bits(address as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(address))
        };
        let port = hex(&digits[address_digits..address_digits + 8])?;
        Some(Self {
            host: SocketAddr::new(address, u16::try_from(port).ok()?),
            offset: PhysicalOffset(hex(&digits[address_digits + 8..])? as u64 as i64),
        })
    }
}

/// The two digits of each byte.
const HEX: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut all = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        all[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
        byte += 1;
    }
    all
};

fn hex_of<const N: usize>(bytes: [u8; N]) -> [[u8; 2]; N] {
    bytes.map(|byte| HEX[usize::from(byte)])
}

/// At most 32 digits.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, &digit| {
        Some((number << 4) | u128::from((digit as char).to_digit(16)?))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_is_the_one_that_live_java_made() {
        let id = MessageId {
            host: "127.0.0.1:30911".parse().unwrap(),
            offset: PhysicalOffset(0),
        };
        assert_eq!(id.encode(), "7F000001000078BF0000000000000000");
        assert_eq!(MessageId::parse("7f000001000078bf0000000000000000"), Ok(id));
    }

    #[test]
    fn what_is_no_id_is_an_error() {
        for text in [
            "",
            "7F",
            "7F000001000078BF000000000000000G",
            "7F000001001078BF0000000000000000",
        ] {
            assert!(MessageId::parse(text).is_err(), "{text}");
        }
        let long = MessageId::parse(&"ä".repeat(1000)).unwrap_err().to_string();
        assert!(long.len() < 300, "{long}");
    }

    proptest! {
        #[test]
        fn an_id_reads_back(address in any::<IpAddr>(), port in any::<u16>(), offset in any::<i64>()) {
            let id = MessageId {
                host: SocketAddr::new(address.to_canonical(), port),
                offset: PhysicalOffset(offset),
            };
            prop_assert_eq!(MessageId::parse(&id.encode()), Ok(id));
        }

        #[test]
        fn arbitrary_text_never_panics(text in any::<String>()) {
            let _ = MessageId::parse(&text);
        }
    }
}
