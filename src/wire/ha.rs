//! Frames of the slave stream: what a slave and its master say to each other at `haListenPort`.
//!
//! Little-endian, sans-io. A frame is a head of 12 bytes and a payload:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `RMQH`: anything else is dropped at once |
//! | 4 | 1 | version of the stream, 3 |
//! | 5 | 1 | kind of the frame |
//! | 6 | 1 | what the sender knows besides: 1 = it answers [`Frame::Want`] |
//! | 7 | 1 | zero |
//! | 8 | 4 | bytes of the payload, checked against the limit of the moment before anything is reserved |
//!
//! A conversation: the slave's [`Frame::Hello`], the master's [`Frame::Challenge`] with its proof, the slave's
//! [`Frame::Proof`]; then [`Frame::Describe`] (a slave without a store asks what to make) or [`Frame::Join`] for one log,
//! and from there [`Frame::Data`] down and [`Frame::Ack`] up. A slave whose log ends before the master's begins gets a
//! [`Frame::Seed`] and its [`Frame::SeedPart`]s instead, opens its log with it, and joins again. The master proves itself first, so a slave tells a stranger
//! nothing. Either end may send a [`Frame::Want`] for what is damaged in its log, if the other one's frames say that it knows that; the
//! answer is a [`Frame::Range`]. (A new version of the stream would part brokers of both versions for as long as a group is being
//! updated; this way they only do not ask each other.) Nonces need not be secret, only new. Batches travel as they are stored; their CRC and chain are checked by
//! the store. What follows the handshake is neither signed nor encrypted.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::base::limits::{HA_BATCHES_BYTES_MAX, HA_CONTROL_BYTES_MAX};

/// Bytes of a frame's head.
pub const HEAD_BYTES: usize = 12;
/// Bytes of [`Frame::Data`]'s payload in front of the batches.
pub const DATA_FIXED_BYTES: usize = 32;
/// Version of the stream.
pub const VERSION: u8 = 3;
/// In the seventh byte of a head: the sender answers [`Frame::Want`]. Older versions send zero there and look at nothing.
pub const FEATURE_FETCH: u8 = 1;
const FEATURES_AT: usize = 6;
const MAGIC: [u8; 4] = *b"RMQH";

pub type Nonce = [u8; 16];
pub type ProofBytes = [u8; 32];

/// Why a stream is dropped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HaError {
    #[error(
        "these bytes are not of RingMQ's slave stream: RocketMQ's replicas cannot follow a RingMQ broker, nor the other way round"
    )]
    Magic,
    #[error(
        "the peer speaks version {0} of the slave stream, this broker version {VERSION}: run the same version on both"
    )]
    Version(u8),
    #[error("a frame of kind {kind} with {bytes} bytes: the limit is {limit}")]
    Length { kind: u8, bytes: u32, limit: usize },
    #[error("a frame of kind {kind} is malformed")]
    Malformed { kind: u8 },
}

/// Whose proof it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Master,
    Slave,
    /// A controller, to a broker or another controller.
    Controller,
    /// Who connects to a controller.
    ControllerClient,
}

/// HMAC-SHA-256 of both nonces under the shared secret, different for each side.
pub fn proof(secret: &[u8], side: Side, slave: &Nonce, master: &Nonce) -> ProofBytes {
    sign(secret, side, slave, master)
        .finalize()
        .into_bytes()
        .into()
}

/// Whether a proof is right; compared in constant time.
pub fn proof_is_right(
    secret: &[u8],
    side: Side,
    slave: &Nonce,
    master: &Nonce,
    found: &ProofBytes,
) -> bool {
    sign(secret, side, slave, master)
        .verify_slice(found)
        .is_ok()
}

fn sign(secret: &[u8], side: Side, slave: &Nonce, master: &Nonce) -> Hmac<Sha256> {
    let mut mac = match <Hmac<Sha256> as Mac>::new_from_slice(secret) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes keys of any length"),
    };
    mac.update(match side {
        Side::Master => b"ringmq ha master v1",
        Side::Slave => b"ringmq ha slave  v1",
        Side::Controller => b"ringmq controller 1",
        Side::ControllerClient => b"ringmq co client  1",
    });
    mac.update(slave);
    mac.update(master);
    mac
}

/// What a store is made of, so that a slave can make one that takes the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreShape {
    pub store_id: u64,
    pub logs: u16,
    pub segment_bytes: u64,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Hello {
        nonce: Nonce,
    },
    Challenge {
        nonce: Nonce,
        proof: ProofBytes,
    },
    Proof {
        proof: ProofBytes,
    },
    /// What is your store made of?
    Describe,
    Description(StoreShape),
    /// Send me a log from here on.
    Join {
        broker_id: u64,
        shape: StoreShape,
        log: u8,
        /// End of the slave's log.
        position: u64,
        /// Epoch and CRC field of the batch before it; 0 if there is none.
        epoch: u32,
        previous_crc: u32,
        /// How much may be on its way.
        window_bytes: u64,
        /// The greatest epoch of a master that the slave has heard of; 0 without a controller.
        group_epoch: u32,
        /// If the log begins later at the master, the slave begins anew from a seed.
        takes_seed: bool,
    },
    /// The slave's log is a prefix of the master's.
    Joined {
        start: u64,
        end: u64,
        /// The epoch that the controller gave this master; 0 without a controller.
        group_epoch: u32,
    },
    /// With a controller: the slave's log has what this master's has not. The master's last epoch that is not greater than
    /// that of the slave's end, and where it ends in the master's log.
    Apart {
        epoch: u32,
        position: u64,
    },
    /// The peer will not go on, and what to do about it.
    Refused {
        remark: String,
    },
    /// What the slave's log has to begin with, since the master's log begins at `position` by now. `bytes` of it follow.
    Seed {
        position: u64,
        /// Epoch and CRC field of the batch before.
        epoch: u32,
        previous_crc: u32,
        bytes: u64,
        /// CRC-32C of them all.
        crc: u32,
    },
    SeedPart {
        bytes: Bytes,
    },
    /// Whole batches, the first at `position`; none is a heartbeat.
    Data {
        position: u64,
        /// First position that the master's retention has left.
        start: u64,
        /// The master's log is durable there up to this.
        end: u64,
        /// What may be shown: everything before it is on all copies that were asked for.
        confirmed: u64,
        batches: Bytes,
    },
    /// Some of these bytes are damaged here: the whole batches from `position` on, please, that end within them.
    Want {
        position: u64,
        bytes: u64,
    },
    /// As many of them as fit, from `position` on; none if there are none to be had here.
    Range {
        position: u64,
        batches: Bytes,
    },
    /// The slave's log is durable, as its flushDiskType says, up to there.
    Ack {
        durable: u64,
        window_bytes: u64,
    },
}

const HELLO: u8 = 1;
const CHALLENGE: u8 = 2;
const PROOF: u8 = 3;
const DESCRIBE: u8 = 4;
const DESCRIPTION: u8 = 5;
const JOIN: u8 = 6;
const JOINED: u8 = 7;
const REFUSED: u8 = 8;
const DATA: u8 = 9;
const ACK: u8 = 10;
const APART: u8 = 11;
const SEED: u8 = 12;
const SEED_PART: u8 = 13;
const WANT: u8 = 14;
const RANGE: u8 = 15;

/// What may come now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The peer has proved nothing: small frames only.
    None,
    /// The peer knows the secret.
    Peer,
}

/// Cuts the next frame off the front of `buffer`. `Ok(None)`: more bytes are needed. The payload of [`Frame::Data`] is a slice
/// of what was read.
pub fn next_frame(buffer: &mut BytesMut, trust: Trust) -> Result<Option<Frame>, HaError> {
    let known = buffer.len().min(MAGIC.len());
    if buffer[..known] != MAGIC[..known] {
        return Err(HaError::Magic);
    }
    let Some(head) = buffer.first_chunk::<HEAD_BYTES>() else {
        return Ok(None);
    };
    let (version, kind) = (head[4], head[5]);
    if version != VERSION {
        return Err(HaError::Version(version));
    }
    let bytes = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
    let limit = match (kind, trust) {
        (DATA | SEED_PART | RANGE, Trust::Peer) => DATA_FIXED_BYTES + HA_BATCHES_BYTES_MAX,
        _ => HA_CONTROL_BYTES_MAX,
    };
    if bytes as usize > limit {
        return Err(HaError::Length { kind, bytes, limit });
    }
    if buffer.len() < HEAD_BYTES + bytes as usize {
        return Ok(None);
    }
    buffer.advance(HEAD_BYTES);
    let payload = buffer.split_to(bytes as usize).freeze();
    parse(kind, payload)
        .map(Some)
        .ok_or(HaError::Malformed { kind })
}

/// What the sender of the frame at the front of `buffer` knows besides; 0 if that has not come yet.
pub fn features_of(buffer: &[u8]) -> u8 {
    buffer.get(FEATURES_AT).copied().unwrap_or(0)
}

/// Bytes that the frame at the front of `buffer` still lacks; 0 if its length is not known or not legal.
pub fn missing_bytes(buffer: &[u8]) -> usize {
    let Some(head) = buffer.first_chunk::<HEAD_BYTES>() else {
        return 0;
    };
    let bytes = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
    if bytes > DATA_FIXED_BYTES + HA_BATCHES_BYTES_MAX {
        return 0;
    }
    (HEAD_BYTES + bytes).saturating_sub(buffer.len())
}

fn array<const N: usize>(from: &mut Bytes) -> Option<[u8; N]> {
    let found = *from.first_chunk::<N>()?;
    from.advance(N);
    Some(found)
}

fn shape(from: &mut Bytes) -> Option<StoreShape> {
    Some(StoreShape {
        store_id: from.try_get_u64_le().ok()?,
        logs: from.try_get_u16_le().ok()?,
        segment_bytes: from.try_get_u64_le().ok()?,
    })
}

fn parse(kind: u8, mut from: Bytes) -> Option<Frame> {
    let frame = match kind {
        HELLO => Frame::Hello {
            nonce: array(&mut from)?,
        },
        CHALLENGE => Frame::Challenge {
            nonce: array(&mut from)?,
            proof: array(&mut from)?,
        },
        PROOF => Frame::Proof {
            proof: array(&mut from)?,
        },
        DESCRIBE => Frame::Describe,
        DESCRIPTION => Frame::Description(shape(&mut from)?),
        JOIN => Frame::Join {
            broker_id: from.try_get_u64_le().ok()?,
            shape: shape(&mut from)?,
            log: from.try_get_u8().ok()?,
            position: from.try_get_u64_le().ok()?,
            epoch: from.try_get_u32_le().ok()?,
            previous_crc: from.try_get_u32_le().ok()?,
            window_bytes: from.try_get_u64_le().ok()?,
            group_epoch: from.try_get_u32_le().ok()?,
            takes_seed: match from.try_get_u8().ok()? {
                0 => false,
                1 => true,
                _ => return None,
            },
        },
        JOINED => Frame::Joined {
            start: from.try_get_u64_le().ok()?,
            end: from.try_get_u64_le().ok()?,
            group_epoch: from.try_get_u32_le().ok()?,
        },
        APART => Frame::Apart {
            epoch: from.try_get_u32_le().ok()?,
            position: from.try_get_u64_le().ok()?,
        },
        SEED => Frame::Seed {
            position: from.try_get_u64_le().ok()?,
            epoch: from.try_get_u32_le().ok()?,
            previous_crc: from.try_get_u32_le().ok()?,
            bytes: from.try_get_u64_le().ok()?,
            crc: from.try_get_u32_le().ok()?,
        },
        SEED_PART => Frame::SeedPart {
            bytes: std::mem::take(&mut from),
        },
        REFUSED => Frame::Refused {
            remark: String::from_utf8(std::mem::take(&mut from).into()).ok()?,
        },
        DATA => Frame::Data {
            position: from.try_get_u64_le().ok()?,
            start: from.try_get_u64_le().ok()?,
            end: from.try_get_u64_le().ok()?,
            confirmed: from.try_get_u64_le().ok()?,
            batches: std::mem::take(&mut from),
        },
        WANT => Frame::Want {
            position: from.try_get_u64_le().ok()?,
            bytes: from.try_get_u64_le().ok()?,
        },
        RANGE => Frame::Range {
            position: from.try_get_u64_le().ok()?,
            batches: std::mem::take(&mut from),
        },
        ACK => Frame::Ack {
            durable: from.try_get_u64_le().ok()?,
            window_bytes: from.try_get_u64_le().ok()?,
        },
        _ => return None,
    };
    from.is_empty().then_some(frame)
}

fn put_head(out: &mut Vec<u8>, kind: u8, bytes: usize) {
    out.put_slice(&MAGIC);
    out.put_slice(&[VERSION, kind, FEATURE_FETCH, 0]);
    out.put_u32_le(bytes as u32);
}

fn put_shape(out: &mut Vec<u8>, shape: &StoreShape) {
    out.put_u64_le(shape.store_id);
    out.put_u16_le(shape.logs);
    out.put_u64_le(shape.segment_bytes);
}

/// Head and fixed part of a [`Frame::Data`] whose batches follow from where they lie.
pub fn data_head(
    position: u64,
    start: u64,
    end: u64,
    confirmed: u64,
    batches_bytes: usize,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + DATA_FIXED_BYTES);
    put_head(&mut out, DATA, DATA_FIXED_BYTES + batches_bytes);
    for number in [position, start, end, confirmed] {
        out.put_u64_le(number);
    }
    out
}

impl Frame {
    /// A refusal; a remark that is too long is cut.
    pub fn refused(remark: impl Into<String>) -> Self {
        let mut remark = remark.into();
        remark.truncate(remark.floor_char_boundary(HA_CONTROL_BYTES_MAX));
        Self::Refused { remark }
    }

    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        let kind = match self {
            Self::Hello { nonce } => {
                payload.put_slice(nonce);
                HELLO
            }
            Self::Challenge { nonce, proof } => {
                payload.put_slice(nonce);
                payload.put_slice(proof);
                CHALLENGE
            }
            Self::Proof { proof } => {
                payload.put_slice(proof);
                PROOF
            }
            Self::Describe => DESCRIBE,
            Self::Description(shape) => {
                put_shape(&mut payload, shape);
                DESCRIPTION
            }
            Self::Join {
                broker_id,
                shape,
                log,
                position,
                epoch,
                previous_crc,
                window_bytes,
                group_epoch,
                takes_seed,
            } => {
                payload.put_u64_le(*broker_id);
                put_shape(&mut payload, shape);
                payload.put_u8(*log);
                payload.put_u64_le(*position);
                payload.put_u32_le(*epoch);
                payload.put_u32_le(*previous_crc);
                payload.put_u64_le(*window_bytes);
                payload.put_u32_le(*group_epoch);
                payload.put_u8(u8::from(*takes_seed));
                JOIN
            }
            Self::Joined {
                start,
                end,
                group_epoch,
            } => {
                payload.put_u64_le(*start);
                payload.put_u64_le(*end);
                payload.put_u32_le(*group_epoch);
                JOINED
            }
            Self::Apart { epoch, position } => {
                payload.put_u32_le(*epoch);
                payload.put_u64_le(*position);
                APART
            }
            Self::Seed {
                position,
                epoch,
                previous_crc,
                bytes,
                crc,
            } => {
                payload.put_u64_le(*position);
                payload.put_u32_le(*epoch);
                payload.put_u32_le(*previous_crc);
                payload.put_u64_le(*bytes);
                payload.put_u32_le(*crc);
                SEED
            }
            Self::SeedPart { bytes } => {
                payload.put_slice(bytes);
                SEED_PART
            }
            Self::Refused { remark } => {
                payload.put_slice(remark.as_bytes());
                REFUSED
            }
            Self::Data {
                position,
                start,
                end,
                confirmed,
                batches,
            } => {
                let mut out = data_head(*position, *start, *end, *confirmed, batches.len());
                out.put_slice(batches);
                return out;
            }
            Self::Want { position, bytes } => {
                payload.put_u64_le(*position);
                payload.put_u64_le(*bytes);
                WANT
            }
            Self::Range { position, batches } => {
                payload.reserve_exact(size_of::<u64>() + batches.len());
                payload.put_u64_le(*position);
                payload.put_slice(batches);
                RANGE
            }
            Self::Ack {
                durable,
                window_bytes,
            } => {
                payload.put_u64_le(*durable);
                payload.put_u64_le(*window_bytes);
                ACK
            }
        };
        let mut out = Vec::with_capacity(HEAD_BYTES + payload.len());
        put_head(&mut out, kind, payload.len());
        out.extend_from_slice(&payload);
        out
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_shape() -> impl Strategy<Value = StoreShape> {
        (any::<u64>(), any::<u16>(), any::<u64>()).prop_map(|(store_id, logs, segment_bytes)| {
            StoreShape {
                store_id,
                logs,
                segment_bytes,
            }
        })
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            any::<Nonce>().prop_map(|nonce| Frame::Hello { nonce }),
            (any::<Nonce>(), any::<ProofBytes>())
                .prop_map(|(nonce, proof)| Frame::Challenge { nonce, proof }),
            any::<ProofBytes>().prop_map(|proof| Frame::Proof { proof }),
            Just(Frame::Describe),
            any_shape().prop_map(Frame::Description),
            (
                any_shape(),
                any::<u8>(),
                any::<[u64; 3]>(),
                any::<[u32; 3]>(),
                any::<bool>()
            )
                .prop_map(
                    |(
                        shape,
                        log,
                        [broker_id, position, window_bytes],
                        [epoch, previous_crc, group_epoch],
                        takes_seed,
                    )| {
                        Frame::Join {
                            broker_id,
                            shape,
                            log,
                            position,
                            epoch,
                            previous_crc,
                            window_bytes,
                            group_epoch,
                            takes_seed,
                        }
                    }
                ),
            (any::<[u64; 2]>(), any::<u32>()).prop_map(|([start, end], group_epoch)| {
                Frame::Joined {
                    start,
                    end,
                    group_epoch,
                }
            }),
            (any::<u64>(), any::<u32>())
                .prop_map(|(position, epoch)| Frame::Apart { epoch, position }),
            (any::<[u64; 2]>(), any::<[u32; 3]>()).prop_map(
                |([position, bytes], [epoch, previous_crc, crc])| Frame::Seed {
                    position,
                    epoch,
                    previous_crc,
                    bytes,
                    crc
                }
            ),
            proptest::collection::vec(any::<u8>(), 0..300).prop_map(|bytes| Frame::SeedPart {
                bytes: bytes.into()
            }),
            ".{0,100}".prop_map(Frame::refused),
            (
                any::<[u64; 4]>(),
                proptest::collection::vec(any::<u8>(), 0..300)
            )
                .prop_map(|([position, start, end, confirmed], batches)| Frame::Data {
                    position,
                    start,
                    end,
                    confirmed,
                    batches: batches.into()
                }),
            any::<[u64; 2]>().prop_map(|[position, bytes]| Frame::Want { position, bytes }),
            (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..300)).prop_map(
                |(position, batches)| Frame::Range {
                    position,
                    batches: batches.into()
                }
            ),
            any::<[u64; 2]>().prop_map(|[durable, window_bytes]| Frame::Ack {
                durable,
                window_bytes
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_frame_is_read_as_it_was_written_however_it_is_cut(frame in any_frame(), cut in any::<proptest::sample::Index>()) {
            let bytes = frame.encode();
            let cut = cut.index(bytes.len());
            let mut buffer = BytesMut::from(&bytes[..cut]);
            prop_assert_eq!(next_frame(&mut buffer, Trust::Peer), Ok(None));
            buffer.extend_from_slice(&bytes[cut..]);
            buffer.extend_from_slice(b"RM");
            prop_assert_eq!(next_frame(&mut buffer, Trust::Peer), Ok(Some(frame)));
            prop_assert_eq!(&buffer[..], b"RM");
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..17) {
            let _ = next_frame(&mut BytesMut::from(&bytes[..]), Trust::Peer);
            let mut framed = Vec::new();
            put_head(&mut framed, kind, bytes.len());
            framed.extend_from_slice(&bytes);
            let _ = next_frame(&mut BytesMut::from(&framed[..]), Trust::None);
            let _ = missing_bytes(&bytes);
        }
    }

    #[test]
    fn a_frame_of_an_older_version_says_that_its_sender_is_not_to_be_asked() {
        let mut bytes = Frame::Describe.encode();
        assert_eq!(features_of(&bytes) & FEATURE_FETCH, FEATURE_FETCH);
        bytes[FEATURES_AT] = 0;
        assert_eq!(features_of(&bytes), 0);
        assert_eq!(features_of(&bytes[..FEATURES_AT]), 0);
        let read = next_frame(&mut BytesMut::from(&bytes[..]), Trust::None);
        assert_eq!(read, Ok(Some(Frame::Describe)));
        // What a later one says that this one does not know is passed over.
        bytes[FEATURES_AT] = 0xFF;
        let read = next_frame(&mut BytesMut::from(&bytes[..]), Trust::None);
        assert_eq!(read, Ok(Some(Frame::Describe)));
    }

    #[test]
    fn a_wrong_magic_is_seen_at_its_first_byte_and_a_length_before_its_bytes() {
        let mut http = BytesMut::from(&b"G"[..]);
        assert_eq!(next_frame(&mut http, Trust::None), Err(HaError::Magic));
        // RocketMQ's slave begins with its 8-byte offset.
        let mut rocketmq = BytesMut::from(&0u64.to_be_bytes()[..]);
        assert_eq!(next_frame(&mut rocketmq, Trust::None), Err(HaError::Magic));
        let mut head = Vec::new();
        put_head(&mut head, DATA, 1 << 20);
        let mut stranger = BytesMut::from(&head[..]);
        assert!(matches!(
            next_frame(&mut stranger, Trust::None),
            Err(HaError::Length { .. })
        ));
        let mut peer = BytesMut::from(&head[..]);
        assert_eq!(next_frame(&mut peer, Trust::Peer), Ok(None));
    }

    #[test]
    fn a_proof_holds_for_its_side_its_nonces_and_its_secret_only() {
        let (slave, master) = ([1; 16], [2; 16]);
        let right = proof(b"secret", Side::Slave, &slave, &master);
        assert!(proof_is_right(
            b"secret",
            Side::Slave,
            &slave,
            &master,
            &right
        ));
        assert!(!proof_is_right(
            b"secret",
            Side::Master,
            &slave,
            &master,
            &right
        ));
        assert!(!proof_is_right(
            b"secret",
            Side::Slave,
            &slave,
            &[3; 16],
            &right
        ));
        assert!(!proof_is_right(b"", Side::Slave, &slave, &master, &right));
    }
}
