//! Decodes stored messages as a consumer receives them, and checks all that can be checked in one record.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A message as it is stored (`MessageDecoder`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub queue_id: i32,
    pub flag: i32,
    pub queue_offset: i64,
    pub physical_offset: i64,
    pub sys_flag: i32,
    pub born_timestamp: i64,
    pub born_host: SocketAddr,
    pub store_timestamp: i64,
    pub store_host: SocketAddr,
    pub reconsume_times: i32,
    pub body: Vec<u8>,
    pub topic: String,
    pub properties: BTreeMap<String, String>,
}

const MAGIC_V1: u32 = 0xDAA3_20A7;
/// Topic length in two bytes.
const MAGIC_V2: u32 = 0xDAA3_20AB;
const SYS_FLAG_BORN_V6: i32 = 0x10;
const SYS_FLAG_STORE_V6: i32 = 0x20;

/// All records of a pull's body.
pub fn decode_all(mut bytes: &[u8]) -> Result<Vec<Record>, String> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let prefix = bytes
            .first_chunk::<4>()
            .ok_or_else(|| format!("{} stray bytes after the records", bytes.len()))?;
        let total = u32::from_be_bytes(*prefix) as usize;
        let (record, rest) = bytes
            .split_at_checked(total)
            .ok_or_else(|| format!("a record of {total} bytes, but {} are left", bytes.len()))?;
        records.push(decode(record)?);
        bytes = rest;
    }
    Ok(records)
}

fn decode(record: &[u8]) -> Result<Record, String> {
    let mut reader = Reader { rest: record };
    reader.take(4)?;
    let magic = reader.u32()?;
    let body_crc = reader.u32()?;
    let queue_id = reader.u32()? as i32;
    let flag = reader.u32()? as i32;
    let queue_offset = reader.u64()? as i64;
    let physical_offset = reader.u64()? as i64;
    let sys_flag = reader.u32()? as i32;
    let born_timestamp = reader.u64()? as i64;
    let born_host = reader.host(sys_flag & SYS_FLAG_BORN_V6 != 0)?;
    let store_timestamp = reader.u64()? as i64;
    let store_host = reader.host(sys_flag & SYS_FLAG_STORE_V6 != 0)?;
    let reconsume_times = reader.u32()? as i32;
    reader.take(8)?; // prepared transaction offset
    let body_bytes = reader.u32()? as usize;
    let body = reader.take(body_bytes)?.to_vec();
    let topic_bytes = match magic {
        MAGIC_V1 => usize::from(reader.take(1)?[0]),
        MAGIC_V2 => usize::from(reader.u16()?),
        other => return Err(format!("a record with the magic {other:#010x}")),
    };
    let topic = reader.text(topic_bytes)?;
    let properties_bytes = usize::from(reader.u16()?);
    // A client may have sent bytes that are no text; the Java client reads them in this way.
    let properties = String::from_utf8_lossy(reader.take(properties_bytes)?);
    if !reader.rest.is_empty() {
        return Err(format!("{} bytes after the properties", reader.rest.len()));
    }
    let crc = crc32fast::hash(&body) & 0x7FFF_FFFF;
    if crc != body_crc {
        return Err(format!(
            "{topic}/{queue_id} at {queue_offset}: the body's CRC is {crc:#x}, the record says {body_crc:#x}"
        ));
    }
    Ok(Record {
        queue_id,
        flag,
        queue_offset,
        physical_offset,
        sys_flag,
        born_timestamp,
        born_host,
        store_timestamp,
        store_host,
        reconsume_times,
        body,
        topic,
        properties: properties
            .split('\u{2}')
            .filter_map(|pair| pair.split_once('\u{1}'))
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
    })
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or_else(|| {
            format!(
                "a field of {bytes} bytes where {} are left",
                self.rest.len()
            )
        })?;
        self.rest = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, String> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().unwrap()))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().unwrap()))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_be_bytes(self.take(8)?.try_into().unwrap()))
    }

    fn text(&mut self, bytes: usize) -> Result<String, String> {
        String::from_utf8(self.take(bytes)?.to_vec()).map_err(|error| error.to_string())
    }

    fn host(&mut self, v6: bool) -> Result<SocketAddr, String> {
        let address = if v6 {
            let bytes: [u8; 16] = self.take(16)?.try_into().unwrap();
            IpAddr::V6(Ipv6Addr::from(bytes))
        } else {
            let bytes: [u8; 4] = self.take(4)?.try_into().unwrap();
            IpAddr::V4(Ipv4Addr::from(bytes))
        };
        let port = self.u32()?;
        let port = u16::try_from(port).map_err(|_| format!("port {port}"))?;
        Ok(SocketAddr::new(address, port))
    }
}
