//! The stored message: byte for byte RocketMQ's commit log record, which is also what a consumer receives.
//!
//! The store encodes a record once, straight into its pages, and never decodes it on the way to a consumer. Source:
//! `store/.../MessageExtEncoder`, `common/.../message/MessageDecoder`. All numbers are big-endian.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

/// Greatest properties string: its length is a signed 16-bit number in the record.
pub const PROPERTIES_BYTES_MAX: usize = i16::MAX as usize;

/// First form of the record: one byte for the length of the topic.
pub const MAGIC_V1: u32 = 0xDAA3_20A7;
/// Second form: two bytes for the length of the topic. Used only for topics that need it.
pub const MAGIC_V2: u32 = 0xDAA3_20AB;

/// sysFlag: the body is compressed.
pub const SYS_FLAG_COMPRESSED: i32 = 0x1;
/// sysFlag: the topic's filter type is MULTI_TAG.
pub const SYS_FLAG_MULTI_TAGS: i32 = 0x2;
/// sysFlag: both bits of the transaction's state.
pub const SYS_FLAG_TRANSACTION: i32 = 0xC;
pub const SYS_FLAG_TRANSACTION_PREPARED: i32 = 0x4;
pub const SYS_FLAG_TRANSACTION_COMMIT: i32 = 0x8;
pub const SYS_FLAG_TRANSACTION_ROLLBACK: i32 = 0xC;
/// sysFlag: the born host has 16 bytes of address.
pub const SYS_FLAG_BORN_HOST_V6: i32 = 0x10;
/// sysFlag: the store host has 16 bytes of address.
pub const SYS_FLAG_STORE_HOST_V6: i32 = 0x20;

/// Longest topic of [`MAGIC_V1`].
const TOPIC_BYTES_MAX_V1: usize = 127;

// Offsets of the fields in front of the first host, whose length varies.
const TOTAL_SIZE: usize = 0;
const MAGIC: usize = TOTAL_SIZE + 4;
const BODY_CRC: usize = MAGIC + 4;
const QUEUE_ID: usize = BODY_CRC + 4;
const FLAG: usize = QUEUE_ID + 4;
const QUEUE_OFFSET: usize = FLAG + 4;
const PHYSICAL_OFFSET: usize = QUEUE_OFFSET + 8;
const SYS_FLAG: usize = PHYSICAL_OFFSET + 8;
const BORN_TIMESTAMP: usize = SYS_FLAG + 4;
const BORN_HOST: usize = BORN_TIMESTAMP + 8;

/// Address and port of a host.
const HOST_BYTES_V4: usize = 4 + 4;
const HOST_BYTES_V6: usize = 16 + 4;
/// Everything but the hosts, the length of the topic and what varies.
const FIXED_BYTES: usize = BORN_HOST + 8 + 4 + 8 + 4 + 2;
/// Smallest record: IPv4 hosts, V1, nothing in it.
pub const RECORD_BYTES_MIN: usize = FIXED_BYTES + 2 * HOST_BYTES_V4 + 1;

const _: () = assert!(RECORD_BYTES_MIN == 91);

/// What goes into a record.
#[derive(Clone, Copy, Debug)]
pub struct RecordFields<'a> {
    pub topic: &'a str,
    pub body: &'a [u8],
    /// At most [`PROPERTIES_BYTES_MAX`].
    pub properties: &'a [u8],
    pub queue_id: i32,
    pub flag: i32,
    pub queue_offset: i64,
    pub physical_offset: i64,
    /// The bits of IPv6 hosts are set here, whatever they were.
    pub sys_flag: i32,
    /// Milliseconds since 1970.
    pub born_timestamp: i64,
    pub born_host: SocketAddr,
    /// Milliseconds since 1970.
    pub store_timestamp: i64,
    pub store_host: SocketAddr,
    pub reconsume_times: i32,
    pub prepared_transaction_offset: i64,
}

impl RecordFields<'_> {
    /// Length of the record in bytes.
    pub fn encoded_len(&self) -> usize {
        FIXED_BYTES
            + host_bytes(is_v6(self.born_host))
            + host_bytes(is_v6(self.store_host))
            + topic_length_bytes(self.is_v2())
            + self.topic.len()
            + self.body.len()
            + self.properties.len()
    }

    /// Writes the record into `out`, which must have exactly [`RecordFields::encoded_len`] bytes.
    pub fn encode_into(&self, out: &mut [u8]) {
        assert_eq!(out.len(), self.encoded_len(), "room for exactly one record");
        assert!(self.properties.len() <= PROPERTIES_BYTES_MAX);
        assert!(self.topic.len() <= i16::MAX as usize);
        let mut sys_flag = self.sys_flag & !(SYS_FLAG_BORN_HOST_V6 | SYS_FLAG_STORE_HOST_V6);
        if is_v6(self.born_host) {
            sys_flag |= SYS_FLAG_BORN_HOST_V6;
        }
        if is_v6(self.store_host) {
            sys_flag |= SYS_FLAG_STORE_HOST_V6;
        }
        let total_bytes = out.len() as u32;
        let mut out = Writer(out);
        out.put(&total_bytes.to_be_bytes());
        let magic = if self.is_v2() { MAGIC_V2 } else { MAGIC_V1 };
        out.put(&magic.to_be_bytes());
        out.put(&body_crc(self.body).to_be_bytes());
        out.put(&self.queue_id.to_be_bytes());
        out.put(&self.flag.to_be_bytes());
        out.put(&self.queue_offset.to_be_bytes());
        out.put(&self.physical_offset.to_be_bytes());
        out.put(&sys_flag.to_be_bytes());
        out.put(&self.born_timestamp.to_be_bytes());
        out.put_host(self.born_host);
        out.put(&self.store_timestamp.to_be_bytes());
        out.put_host(self.store_host);
        out.put(&self.reconsume_times.to_be_bytes());
        out.put(&self.prepared_transaction_offset.to_be_bytes());
        out.put(&(self.body.len() as u32).to_be_bytes());
        out.put(self.body);
        if self.is_v2() {
            out.put(&(self.topic.len() as u16).to_be_bytes());
        } else {
            out.put(&[self.topic.len() as u8]);
        }
        out.put(self.topic.as_bytes());
        out.put(&(self.properties.len() as u16).to_be_bytes());
        out.put(self.properties);
        assert!(out.0.is_empty(), "encoded_len and encode_into must agree");
    }

    fn is_v2(&self) -> bool {
        self.topic.len() > TOPIC_BYTES_MAX_V1
    }
}

/// Bytes of two hosts and what lies between them.
const HOSTS_BYTES_MAX: usize = 2 * HOST_BYTES_V6 + 8;

/// What a broker fills into the records of one frame that a client made; each has to be one that
/// [`RecordView::has_room_for`] the two hosts.
#[derive(Clone, Copy, Debug)]
pub struct Patch {
    /// Bits that are set beside those that the client has set.
    sys_flag: i32,
    /// Born host, store timestamp and store host as they are stored.
    hosts: [u8; HOSTS_BYTES_MAX],
    hosts_bytes: usize,
}

impl Patch {
    /// `sys_flag`: bits that are set beside those that the client has set. The store timestamp is in milliseconds since 1970.
    pub fn new(
        sys_flag: i32,
        born_host: SocketAddr,
        store_timestamp: i64,
        store_host: SocketAddr,
    ) -> Self {
        let mut hosts = [0; HOSTS_BYTES_MAX];
        let mut rest = Writer(&mut hosts);
        rest.put_host(born_host);
        rest.put(&store_timestamp.to_be_bytes());
        rest.put_host(store_host);
        let hosts_bytes = HOSTS_BYTES_MAX - rest.0.len();
        Self {
            sys_flag,
            hosts,
            hosts_bytes,
        }
    }

    /// Copies a record to a place of the same length and fills in there what the broker knows; the offset of a prepared
    /// transaction becomes 0. Lengths, flags of the hosts and all else stay as they are. Nothing is read from the new place:
    /// a load there would wait until the copy's stores have reached memory.
    pub fn copy(&self, queue_offset: i64, physical_offset: i64, record: &[u8], into: &mut [u8]) {
        into.copy_from_slice(record);
        let mut put = |at: usize, bytes: &[u8]| into[at..at + bytes.len()].copy_from_slice(bytes);
        put(QUEUE_OFFSET, &queue_offset.to_be_bytes());
        put(PHYSICAL_OFFSET, &physical_offset.to_be_bytes());
        let sys_flag = u32_at(record, SYS_FLAG) as i32 | self.sys_flag;
        put(SYS_FLAG, &sys_flag.to_be_bytes());
        put(BORN_HOST, &self.hosts[..self.hosts_bytes]);
        put(BORN_HOST + self.hosts_bytes + 4, &0i64.to_be_bytes());
    }
}

/// CRC-32 (IEEE) of a body with the sign bit cleared, as RocketMQ stores it.
pub fn body_crc(body: &[u8]) -> u32 {
    crc32fast::hash(body) & 0x7FFF_FFFF
}

/// An IPv4 address that came in through an IPv6 socket counts as IPv4.
fn is_v6(host: SocketAddr) -> bool {
    host.ip().to_canonical().is_ipv6()
}

fn host_bytes(v6: bool) -> usize {
    if v6 { HOST_BYTES_V6 } else { HOST_BYTES_V4 }
}

fn topic_length_bytes(v2: bool) -> usize {
    if v2 { 2 } else { 1 }
}

/// The rest of a slice that is being filled.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let (head, rest) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        self.0 = rest;
    }

    fn put_host(&mut self, host: SocketAddr) {
        match host.ip().to_canonical() {
            IpAddr::V4(address) => self.put(&address.octets()),
            IpAddr::V6(address) => self.put(&address.octets()),
        }
        self.put(&u32::from(host.port()).to_be_bytes());
    }
}

/// Bytes that are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error(
        "a record says that it has {total_bytes} bytes; allowed are {RECORD_BYTES_MIN} to the {left_bytes} that are there"
    )]
    Length { total_bytes: u32, left_bytes: usize },
    #[error("{left_bytes} bytes are left, too few for a record")]
    Short { left_bytes: usize },
    #[error(
        "the magic of a record is {magic:#010x}; known are {MAGIC_V1:#010x} and {MAGIC_V2:#010x}"
    )]
    Magic { magic: u32 },
    #[error("the {what} of a record ends {over_bytes} bytes behind the record's end")]
    Overrun { what: &'static str, over_bytes: i64 },
    #[error("a record of {total_bytes} bytes has {spare_bytes} bytes behind its properties")]
    Spare {
        total_bytes: usize,
        spare_bytes: usize,
    },
    #[error("the topic of a record is not UTF-8: {0}")]
    Topic(#[from] std::str::Utf8Error),
    #[error("the CRC of a record's body is {found:#010x}; the record says {stored:#010x}")]
    BodyCrc { stored: u32, found: u32 },
}

/// A record in place. Every length in it has been checked.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    bytes: &'a [u8],
    topic: &'a str,
    /// End of the born host, where the store timestamp is.
    store_timestamp_at: usize,
    /// End of the store host, where the reconsume times are.
    reconsume_times_at: usize,
    body: (usize, usize),
    properties_at: usize,
}

impl<'a> RecordView<'a> {
    /// The record at the start of `bytes`; what follows it is ignored. The body's CRC is not checked.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let left_bytes = bytes.len();
        if left_bytes < RECORD_BYTES_MIN {
            return Err(RecordError::Short { left_bytes });
        }
        let total_bytes = u32_at(bytes, TOTAL_SIZE);
        if !(RECORD_BYTES_MIN..=left_bytes).contains(&(total_bytes as usize)) {
            return Err(RecordError::Length {
                total_bytes,
                left_bytes,
            });
        }
        let bytes = &bytes[..total_bytes as usize];
        let v2 = match u32_at(bytes, MAGIC) {
            MAGIC_V1 => false,
            MAGIC_V2 => true,
            magic => return Err(RecordError::Magic { magic }),
        };
        let sys_flag = u32_at(bytes, SYS_FLAG) as i32;
        let mut cursor = Cursor {
            bytes,
            at: BORN_HOST,
        };
        cursor.take(
            "born host",
            host_bytes(sys_flag & SYS_FLAG_BORN_HOST_V6 != 0),
        )?;
        let store_timestamp_at = cursor.at;
        cursor.take("store timestamp", 8)?;
        cursor.take(
            "store host",
            host_bytes(sys_flag & SYS_FLAG_STORE_HOST_V6 != 0),
        )?;
        let reconsume_times_at = cursor.at;
        cursor.take("transaction offset", 4 + 8)?;
        let body = cursor.counted("body", 4)?;
        let topic = cursor.counted("topic", topic_length_bytes(v2))?;
        let properties = cursor.counted("properties", 2)?;
        if properties.end != bytes.len() {
            return Err(RecordError::Spare {
                total_bytes: bytes.len(),
                spare_bytes: bytes.len() - properties.end,
            });
        }
        Ok(Self {
            bytes,
            topic: std::str::from_utf8(&bytes[topic])?,
            store_timestamp_at,
            reconsume_times_at,
            body: (body.start, body.end),
            properties_at: properties.start,
        })
    }

    /// The record at the start of `bytes` with its body's CRC checked.
    pub fn parse_checked(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let record = Self::parse(bytes)?;
        record.check_body()?;
        Ok(record)
    }

    /// Whether the body is the one that was stored.
    pub fn check_body(&self) -> Result<(), RecordError> {
        let (stored, found) = (self.body_crc(), body_crc(self.body()));
        if stored == found {
            Ok(())
        } else {
            Err(RecordError::BodyCrc { stored, found })
        }
    }

    /// The whole record.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Its length in bytes.
    pub fn total_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn body_crc(&self) -> u32 {
        u32_at(self.bytes, BODY_CRC)
    }

    pub fn queue_id(&self) -> i32 {
        self.int(QUEUE_ID)
    }

    pub fn flag(&self) -> i32 {
        self.int(FLAG)
    }

    pub fn queue_offset(&self) -> i64 {
        self.long(QUEUE_OFFSET)
    }

    pub fn physical_offset(&self) -> i64 {
        self.long(PHYSICAL_OFFSET)
    }

    pub fn sys_flag(&self) -> i32 {
        self.int(SYS_FLAG)
    }

    /// Milliseconds since 1970.
    pub fn born_timestamp(&self) -> i64 {
        self.long(BORN_TIMESTAMP)
    }

    pub fn born_host(&self) -> SocketAddr {
        self.host(BORN_HOST, SYS_FLAG_BORN_HOST_V6)
    }

    /// Milliseconds since 1970.
    pub fn store_timestamp(&self) -> i64 {
        self.long(self.store_timestamp_at)
    }

    pub fn store_host(&self) -> SocketAddr {
        self.host(self.store_timestamp_at + 8, SYS_FLAG_STORE_HOST_V6)
    }

    pub fn reconsume_times(&self) -> i32 {
        self.int(self.reconsume_times_at)
    }

    pub fn prepared_transaction_offset(&self) -> i64 {
        self.long(self.reconsume_times_at + 4)
    }

    pub fn body(&self) -> &'a [u8] {
        &self.bytes[self.body.0..self.body.1]
    }

    /// Whether the places of its two hosts are as large as these addresses need.
    pub fn has_room_for(&self, born_host: SocketAddr, store_host: SocketAddr) -> bool {
        let flag = |bit| self.sys_flag() & bit != 0;
        flag(SYS_FLAG_BORN_HOST_V6) == is_v6(born_host)
            && flag(SYS_FLAG_STORE_HOST_V6) == is_v6(store_host)
    }

    /// Where the properties begin in the record; they end with it.
    pub fn properties_at(&self) -> usize {
        self.properties_at
    }

    /// Where the body is in the record.
    pub fn body_range(&self) -> Range<usize> {
        self.body.0..self.body.1
    }

    pub fn topic(&self) -> &'a str {
        self.topic
    }

    /// See [`crate::properties`].
    pub fn properties(&self) -> &'a [u8] {
        &self.bytes[self.properties_at..]
    }

    /// Everything, to store it again with changes.
    pub fn fields(&self) -> RecordFields<'a> {
        RecordFields {
            topic: self.topic(),
            body: self.body(),
            properties: self.properties(),
            queue_id: self.queue_id(),
            flag: self.flag(),
            queue_offset: self.queue_offset(),
            physical_offset: self.physical_offset(),
            sys_flag: self.sys_flag(),
            born_timestamp: self.born_timestamp(),
            born_host: self.born_host(),
            store_timestamp: self.store_timestamp(),
            store_host: self.store_host(),
            reconsume_times: self.reconsume_times(),
            prepared_transaction_offset: self.prepared_transaction_offset(),
        }
    }

    fn int(&self, at: usize) -> i32 {
        u32_at(self.bytes, at) as i32
    }

    fn long(&self, at: usize) -> i64 {
        i64::from_be_bytes(array_at(self.bytes, at))
    }

    fn host(&self, at: usize, v6_flag: i32) -> SocketAddr {
        let (address, port_at) = if self.sys_flag() & v6_flag != 0 {
            let octets: [u8; 16] = array_at(self.bytes, at);
            (IpAddr::V6(Ipv6Addr::from(octets)), at + 16)
        } else {
            let octets: [u8; 4] = array_at(self.bytes, at);
            (IpAddr::V4(Ipv4Addr::from(octets)), at + 4)
        };
        SocketAddr::new(address, u32_at(self.bytes, port_at) as u16)
    }
}

/// Store time in milliseconds of a record of which only the front is at hand (80 bytes are always enough).
pub fn store_timestamp_of(front: &[u8]) -> Option<i64> {
    const SYS_FLAG_AT: usize = 36;
    const BORN_HOST_AT: usize = 48;
    let sys_flag = i32::from_be_bytes(*front.get(SYS_FLAG_AT..)?.first_chunk::<4>()?);
    let host_bytes = if sys_flag & 0x10 == 0 { 8 } else { 20 };
    let at = BORN_HOST_AT + host_bytes;
    Some(i64::from_be_bytes(*front.get(at..)?.first_chunk::<8>()?))
}

/// Records that lie one after the other, as in the body of a pull answer. Ends after the first error.
pub fn records(mut bytes: &[u8]) -> impl Iterator<Item = Result<RecordView<'_>, RecordError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let record = RecordView::parse(bytes);
        bytes = match &record {
            Ok(record) => &bytes[record.total_bytes()..],
            Err(_) => &[],
        };
        Some(record)
    })
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take(&mut self, what: &'static str, bytes: usize) -> Result<Range<usize>, RecordError> {
        let left = self.bytes.len() - self.at;
        if bytes > left {
            return Err(RecordError::Overrun {
                what,
                over_bytes: bytes as i64 - left as i64,
            });
        }
        let start = self.at;
        self.at += bytes;
        Ok(start..self.at)
    }

    fn counted(
        &mut self,
        what: &'static str,
        length_bytes: usize,
    ) -> Result<Range<usize>, RecordError> {
        // A length that Java would read as negative is one that overruns here.
        let length = self.bytes[self.take(what, length_bytes)?]
            .iter()
            .fold(0usize, |length, &byte| length << 8 | usize::from(byte));
        self.take(what, length)
    }
}

/// For offsets that are checked.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array_at(bytes, at))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    struct Owned {
        topic: String,
        body: Vec<u8>,
        properties: Vec<u8>,
        ints: [i32; 4],
        longs: [i64; 5],
        hosts: [SocketAddr; 2],
    }

    impl Owned {
        fn fields(&self) -> RecordFields<'_> {
            RecordFields {
                topic: &self.topic,
                body: &self.body,
                properties: &self.properties,
                queue_id: self.ints[0],
                flag: self.ints[1],
                sys_flag: self.ints[2],
                reconsume_times: self.ints[3],
                queue_offset: self.longs[0],
                physical_offset: self.longs[1],
                born_timestamp: self.longs[2],
                store_timestamp: self.longs[3],
                prepared_transaction_offset: self.longs[4],
                born_host: self.hosts[0],
                store_host: self.hosts[1],
            }
        }
    }

    fn encode(fields: &RecordFields<'_>) -> Vec<u8> {
        let mut out = vec![0xAA; fields.encoded_len()];
        fields.encode_into(&mut out);
        out
    }

    fn host() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>())
            .prop_map(|(address, port)| SocketAddr::new(address.to_canonical(), port))
    }

    prop_compose! {
        fn message()(
            topic in "[a-zA-Z0-9_%|-]{0,200}",
            body in any::<Vec<u8>>(),
            properties in any::<Vec<u8>>(),
            ints in any::<[i32; 4]>(),
            longs in any::<[i64; 5]>(),
            hosts in [host(), host()],
        ) -> Owned {
            Owned { topic, body, properties, ints, longs, hosts }
        }
    }

    fn sample() -> Owned {
        Owned {
            topic: "T1".into(),
            body: b"hello".to_vec(),
            properties: b"TAGS\x01a\x02".to_vec(),
            ints: [0; 4],
            longs: [0, 0, 1, 2, 0],
            hosts: [
                "127.0.0.1:5000".parse().unwrap(),
                "127.0.0.1:30911".parse().unwrap(),
            ],
        }
    }

    #[test]
    fn a_record_starts_as_the_live_sample_does() {
        // Live sample of topic T1 with the body "hello": magic and CRC.
        let bytes = encode(&sample().fields());
        assert_eq!(
            bytes[4..20],
            [
                0xDA, 0xA3, 0x20, 0xA7, 0x36, 0x10, 0xA6, 0x86, 0, 0, 0, 0, 0, 0, 0, 0
            ]
        );
        assert_eq!(bytes.len(), 91 + 2 + 5 + 7);
        // Born host behind the timestamps, as drawn in the protocol's table.
        assert_eq!(bytes[48..56], [127, 0, 0, 1, 0, 0, 0x13, 0x88]);
        assert_eq!(bytes[64..72], [127, 0, 0, 1, 0, 0, 0x78, 0xBF]);
    }

    #[test]
    fn a_long_topic_needs_the_second_form() {
        for (length, magic) in [(127, MAGIC_V1), (128, MAGIC_V2), (255, MAGIC_V2)] {
            let message = Owned {
                topic: "t".repeat(length),
                ..sample()
            };
            let bytes = encode(&message.fields());
            assert_eq!(u32_at(&bytes, MAGIC), magic);
            assert_eq!(RecordView::parse(&bytes).unwrap().topic(), message.topic);
        }
    }

    #[test]
    fn an_ipv4_address_in_ipv6_clothes_is_stored_as_ipv4() {
        let mut message = sample();
        message.hosts[0] = "[::ffff:10.1.2.3]:77".parse().unwrap();
        message.hosts[1] = "[fe80::1]:10911".parse().unwrap();
        let bytes = encode(&message.fields());
        let record = RecordView::parse(&bytes).unwrap();
        assert_eq!(record.sys_flag(), SYS_FLAG_STORE_HOST_V6);
        assert_eq!(record.born_host(), "10.1.2.3:77".parse().unwrap());
        assert_eq!(record.store_host(), message.hosts[1]);
    }

    #[test]
    fn the_crc_is_stored_without_its_sign_bit() {
        // The CRC-32 of "a" is 0xE8B7BE43.
        assert_eq!(body_crc(b"a"), 0x68B7_BE43);
    }

    #[test]
    fn bytes_between_the_properties_and_the_end_are_an_error() {
        let mut bytes = encode(&sample().fields());
        bytes.push(0);
        let total_bytes = bytes.len();
        bytes[3] += 1;
        assert_eq!(
            RecordView::parse(&bytes).err(),
            Some(RecordError::Spare {
                total_bytes,
                spare_bytes: 1
            })
        );
    }

    #[test]
    fn a_changed_body_is_found_by_its_crc() {
        let mut bytes = encode(&sample().fields());
        assert!(RecordView::parse_checked(&bytes).is_ok());
        let at = RecordView::parse(&bytes).unwrap().body_range().start;
        bytes[at] ^= 1;
        assert!(RecordView::parse(&bytes).is_ok());
        assert!(matches!(
            RecordView::parse_checked(&bytes),
            Err(RecordError::BodyCrc { .. })
        ));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(message in message(), tail in any::<Vec<u8>>()) {
            let fields = message.fields();
            let mut bytes = encode(&fields);
            let encoded = bytes.clone();
            bytes.extend_from_slice(&tail);
            let record = RecordView::parse_checked(&bytes).unwrap();
            prop_assert_eq!(record.bytes(), &encoded[..]);
            prop_assert_eq!(record.topic(), fields.topic);
            prop_assert_eq!(record.body(), fields.body);
            prop_assert_eq!(record.properties(), fields.properties);
            prop_assert_eq!(record.queue_id(), fields.queue_id);
            prop_assert_eq!(record.flag(), fields.flag);
            prop_assert_eq!(record.sys_flag() & !0x30, fields.sys_flag & !0x30);
            prop_assert_eq!(record.reconsume_times(), fields.reconsume_times);
            prop_assert_eq!(record.queue_offset(), fields.queue_offset);
            prop_assert_eq!(record.physical_offset(), fields.physical_offset);
            prop_assert_eq!(record.born_timestamp(), fields.born_timestamp);
            prop_assert_eq!(record.store_timestamp(), fields.store_timestamp);
            prop_assert_eq!(record.prepared_transaction_offset(), fields.prepared_transaction_offset);
            prop_assert_eq!(record.born_host(), fields.born_host);
            prop_assert_eq!(record.store_host(), fields.store_host);
            prop_assert_eq!(encode(&record.fields()), encoded);
        }

        #[test]
        fn a_patched_record_differs_in_what_the_broker_fills_in_and_nowhere_else(
            message in message(),
            numbers in any::<[i64; 3]>(),
        ) {
            let record = encode(&message.fields());
            let mut bytes = vec![0xFF; record.len()];
            let (born, store) = (message.hosts[1], message.hosts[0]);
            prop_assume!(RecordView::parse(&record).unwrap().has_room_for(born, store));
            let patch = Patch::new(SYS_FLAG_MULTI_TAGS, born, numbers[2], store);
            patch.copy(numbers[0], numbers[1], &record, &mut bytes);
            let expected = encode(&RecordFields {
                queue_offset: numbers[0],
                physical_offset: numbers[1],
                sys_flag: message.ints[2] | SYS_FLAG_MULTI_TAGS,
                born_host: born,
                store_timestamp: numbers[2],
                store_host: store,
                prepared_transaction_offset: 0,
                ..message.fields()
            });
            prop_assert_eq!(bytes, expected);
        }

        #[test]
        fn records_in_a_row_are_found_and_a_torn_one_ends_them(
            messages in proptest::collection::vec(message(), 1..5),
            torn in 1..90usize,
        ) {
            let mut bytes: Vec<u8> =
                messages.iter().flat_map(|message| encode(&message.fields())).collect();
            let found: Vec<_> = records(&bytes).map(|record| record.unwrap().topic().to_owned()).collect();
            let topics: Vec<_> = messages.iter().map(|message| message.topic.clone()).collect();
            prop_assert_eq!(found, topics);
            bytes.truncate(bytes.len() - torn);
            prop_assert_eq!(records(&bytes).filter(Result::is_ok).count(), messages.len() - 1);
            prop_assert_eq!(records(&bytes).filter(Result::is_err).count(), 1);
        }

        #[test]
        fn mutated_records_never_panic(
            message in message(),
            mutations in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..5),
            keep in any::<u16>(),
        ) {
            let mut bytes = encode(&message.fields());
            for (at, byte) in mutations {
                let at = usize::from(at) % bytes.len();
                bytes[at] = byte;
            }
            for record in records(&bytes).chain(records(&bytes[..usize::from(keep) % bytes.len()])).flatten() {
                let _ = (record.check_body(), record.fields());
            }
        }
    }
}
