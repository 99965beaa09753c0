//! The body of REGISTER_BROKER in its three forms (`body.RegisterBrokerBody`).
//!
//! Brokers before V3_0_11 send a topic table as JSON, later ones a `RegisterBrokerBody` as JSON or, with the header
//! `compressed=true`, one zlib stream of:
//! ```text
//! DataVersion     i32 length, JSON
//! topics          i32 count, each: i32 length, text "name readQueues writeQueues perm filterType [attributes]"
//! filter servers  i32 length, JSON array
//! mapping infos   i32 count, each: i32 length, JSON          (from V5_0_0 on)
//! ```
//! What a stream inflates to is bounded, because 16 MiB of it can say 16 GiB.

use std::io::{self, Read, Write};

use bytes::{Buf, BufMut};
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use serde_json::Value;

use crate::wire::remoting::body::{
    RegisterBrokerBody, TopicConfig, TopicConfigAndMappingSerializeWrapper,
};
use crate::wire::remoting::json::{self, JsonError};

/// Greatest inflated registration: half a million topics.
pub const INFLATED_BYTES_MAX: usize = 64 << 20;
/// `MQVersion.V3_0_11`: from here on the body is a `RegisterBrokerBody`.
const VERSION_WITH_BODY: i32 = 37;
/// `MQVersion.V5_0_0`: from here on a compressed body has mapping infos.
const VERSION_WITH_MAPPINGS: i32 = 413;

/// A registration that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("the compressed registration is no zlib stream: {0}")]
    Inflate(#[from] io::Error),
    #[error("the registration inflates to more than {INFLATED_BYTES_MAX} bytes")]
    TooLong,
    #[error("{what} of the registration needs {wanted_bytes} bytes; {left_bytes} are left")]
    Short {
        what: &'static str,
        wanted_bytes: i64,
        left_bytes: usize,
    },
    #[error(
        "'{text}' is no topic: wanted are name, read queues, write queues, perm and filter type"
    )]
    Topic { text: String },
}

/// Reads a registration as the version of its sender wrote it. No body is no topics.
pub fn decode(
    body: &[u8],
    compressed: bool,
    version: i32,
) -> Result<RegisterBrokerBody, RegisterError> {
    if body.is_empty() {
        return Ok(RegisterBrokerBody::default());
    }
    if version < VERSION_WITH_BODY {
        return Ok(RegisterBrokerBody {
            topic_config_serialize_wrapper: json::from_slice(body)?,
            ..RegisterBrokerBody::default()
        });
    }
    if !compressed {
        return Ok(json::from_slice(body)?);
    }
    let mut inflated = Vec::new();
    ZlibDecoder::new(body)
        .take(INFLATED_BYTES_MAX as u64 + 1)
        .read_to_end(&mut inflated)?;
    if inflated.len() > INFLATED_BYTES_MAX {
        return Err(RegisterError::TooLong);
    }
    decode_parts(&inflated, version)
}

fn decode_parts(mut parts: &[u8], version: i32) -> Result<RegisterBrokerBody, RegisterError> {
    let mut topics = TopicConfigAndMappingSerializeWrapper {
        data_version: json::from_slice(part(&mut parts, "the data version")?)?,
        ..TopicConfigAndMappingSerializeWrapper::default()
    };
    for _ in 0..number(&mut parts, "the count of topics")? {
        let text = String::from_utf8_lossy(part(&mut parts, "a topic")?);
        let topic = topic(&text)?;
        topics
            .topic_config_table
            .insert(topic.topic_name.clone(), topic);
    }
    let filter_server_list = json::from_slice(part(&mut parts, "the list of filter servers")?)?;
    if version >= VERSION_WITH_MAPPINGS && !parts.is_empty() {
        for _ in 0..number(&mut parts, "the count of mappings")? {
            let info = json::parse(part(&mut parts, "a mapping")?)?;
            if let Some(Value::String(topic)) = info.get("topic") {
                let topic = topic.clone();
                topics.topic_queue_mapping_info_map.insert(topic, info);
            }
        }
    }
    Ok(RegisterBrokerBody {
        filter_server_list,
        topic_config_serialize_wrapper: topics,
    })
}

fn number(parts: &mut &[u8], what: &'static str) -> Result<i32, RegisterError> {
    if parts.len() < 4 {
        return Err(RegisterError::Short {
            what,
            wanted_bytes: 4,
            left_bytes: parts.len(),
        });
    }
    Ok(parts.get_i32())
}

fn part<'a>(parts: &mut &'a [u8], what: &'static str) -> Result<&'a [u8], RegisterError> {
    let wanted_bytes = number(parts, what)?;
    match usize::try_from(wanted_bytes) {
        Ok(bytes) if bytes <= parts.len() => {
            let (part, rest) = parts.split_at(bytes);
            *parts = rest;
            Ok(part)
        }
        _ => Err(RegisterError::Short {
            what,
            wanted_bytes: wanted_bytes.into(),
            left_bytes: parts.len(),
        }),
    }
}

/// `TopicConfig.decode`: the flags `order` and `topicSysFlag` are not in this form.
fn topic(text: &str) -> Result<TopicConfig, RegisterError> {
    let mut words = text.splitn(6, ' ');
    let Some(mut config) = topic_of_words(&mut words) else {
        return Err(RegisterError::Topic {
            text: text.chars().take(160).collect(),
        });
    };
    if let Some(attributes) = words.next().filter(|text| !text.trim().is_empty()) {
        config.attributes = json::from_slice(attributes.as_bytes())?;
    }
    Ok(config)
}

fn topic_of_words<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<TopicConfig> {
    Some(TopicConfig {
        topic_name: words.next()?.to_owned(),
        read_queue_nums: words.next()?.parse().ok()?,
        write_queue_nums: words.next()?.parse().ok()?,
        perm: words.next()?.parse().ok()?,
        topic_filter_type: words.next()?.to_owned(),
        ..TopicConfig::default()
    })
}

/// Writes the compressed form, with mapping infos.
pub fn encode_compressed(body: &RegisterBrokerBody) -> io::Result<Vec<u8>> {
    let topics = &body.topic_config_serialize_wrapper;
    let mut parts = Vec::new();
    put_part(&mut parts, &json::to_vec(&topics.data_version));
    parts.put_i32(topics.topic_config_table.len() as i32);
    for config in topics.topic_config_table.values() {
        let text = format!(
            "{} {} {} {} {} {}",
            config.topic_name,
            config.read_queue_nums,
            config.write_queue_nums,
            config.perm,
            config.topic_filter_type,
            json::to_string(&config.attributes)
        );
        put_part(&mut parts, text.as_bytes());
    }
    put_part(&mut parts, &json::to_vec(&body.filter_server_list));
    parts.put_i32(topics.topic_queue_mapping_info_map.len() as i32);
    for info in topics.topic_queue_mapping_info_map.values() {
        put_part(&mut parts, &json::to_vec(info));
    }
    let mut stream = ZlibEncoder::new(Vec::new(), Compression::best());
    stream.write_all(&parts)?;
    stream.finish()
}

fn put_part(parts: &mut Vec<u8>, part: &[u8]) {
    parts.put_u32(part.len() as u32);
    parts.put_slice(part);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::remoting::body::DataVersion;
    use proptest::prelude::*;
    use serde_json::json;

    fn sample() -> RegisterBrokerBody {
        let mut body = RegisterBrokerBody {
            filter_server_list: vec!["10.0.0.1:1".into()],
            ..RegisterBrokerBody::default()
        };
        let topics = &mut body.topic_config_serialize_wrapper;
        topics.data_version = DataVersion {
            counter: 3,
            state_version: 0,
            timestamp: 1_700_000_000_000,
        };
        for (name, attributes) in [("T", None), ("U", Some(("message.type", "FIFO X")))] {
            let config = TopicConfig {
                topic_name: name.into(),
                read_queue_nums: 8,
                write_queue_nums: 4,
                attributes: attributes
                    .into_iter()
                    .map(|(key, value)| (key.into(), value.into()))
                    .collect(),
                ..TopicConfig::default()
            };
            topics.topic_config_table.insert(name.into(), config);
        }
        topics.topic_queue_mapping_info_map.insert(
            "U".into(),
            json!({"bname": "b", "topic": "U", "totalQueues": 4}),
        );
        body
    }

    #[test]
    fn all_three_forms_say_the_same() {
        let body = sample();
        assert_eq!(decode(&json::to_vec(&body), false, 513).unwrap(), body);
        let compressed = encode_compressed(&body).unwrap();
        assert_eq!(decode(&compressed, true, 513).unwrap(), body);
        let old = decode(&compressed, true, 407)
            .unwrap()
            .topic_config_serialize_wrapper;
        assert!(old.topic_queue_mapping_info_map.is_empty());
        let table = json::to_vec(&body.topic_config_serialize_wrapper);
        let oldest = decode(&table, false, 36).unwrap();
        assert_eq!(
            oldest.topic_config_serialize_wrapper,
            body.topic_config_serialize_wrapper
        );
        assert_eq!(
            decode(b"", true, 513).unwrap(),
            RegisterBrokerBody::default()
        );
    }

    #[test]
    fn a_topic_of_an_old_broker_has_no_attributes() {
        assert_eq!(
            topic("T 8 4 6 MULTI_TAG").unwrap().topic_filter_type,
            "MULTI_TAG"
        );
        for text in [
            "",
            "T",
            "T 8 4 6",
            "T x 4 6 SINGLE_TAG",
            "T -1 4 6 SINGLE_TAG",
            "T 8 4 6 S {",
        ] {
            assert!(topic(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_stream_that_inflates_without_end_is_refused() {
        let mut stream = ZlibEncoder::new(Vec::new(), Compression::best());
        for _ in 0..=INFLATED_BYTES_MAX >> 20 {
            stream.write_all(&[0; 1 << 20]).unwrap();
        }
        let bomb = stream.finish().unwrap();
        assert!(bomb.len() < 1 << 20);
        assert!(matches!(
            decode(&bomb, true, 513),
            Err(RegisterError::TooLong)
        ));
    }

    proptest! {
        #[test]
        fn mutated_registrations_never_panic(
            mutations in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..5),
        ) {
            let mut parts = Vec::new();
            ZlibDecoder::new(&encode_compressed(&sample()).unwrap()[..]).read_to_end(&mut parts).unwrap();
            for (at, byte) in mutations {
                let at = usize::from(at) % parts.len();
                parts[at] = byte;
            }
            let _ = decode_parts(&parts, 513);
            let _ = decode(&parts, true, 513);
        }
    }
}
