//! Frames: where one ends and the next begins in a connection's bytes.
//!
//! ```text
//!  0 magic    4   FE 52 4D 51
//!  4 length   4   bytes of the frame, these 16 included; a multiple of 8
//!  8 header   4   bytes of the header; a multiple of 8
//! 12 reserved 4   sent as 0, not looked at
//! 16 header       a flatbuffer of schema.fbs, then zeros
//!    payload      the rest: stored records, back to back; those of each queue begin at a multiple of 8 bytes
//! ```
//! Numbers are little-endian. The first byte is in no UTF-8 text, starts no TLS record and no remoting frame, so it tells
//! the protocol. An error means that the peer broke the framing: nothing behind it can be trusted to be a frame.

use bytes::{Buf, Bytes, BytesMut};

use crate::generated;

/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = [0xFE, b'R', b'M', b'Q'];
/// Bytes in front of the header.
pub const PREFIX_BYTES: usize = 16;
/// Greatest frame.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// Greatest header.
pub const HEADER_BYTES_MAX: usize = 1 << 20;
/// Frames, headers and the records of each queue begin at multiples of this.
pub const ALIGN_BYTES: usize = 8;
/// Smallest header: the position of its root and its identifier.
const HEADER_BYTES_MIN: usize = 8;

const LENGTH: usize = 4;
const HEADER: usize = 8;

const _: () = assert!(FRAME_BYTES_MAX.is_multiple_of(ALIGN_BYTES));
const _: () = assert!(HEADER_BYTES_MAX < FRAME_BYTES_MAX);

/// What the verifier lets pass. Tables and strings may be named more than once: what they would take if each were there
/// by itself bounds the work.
const VERIFIER: flatbuffers::VerifierOptions = flatbuffers::VerifierOptions {
    max_depth: 8,
    max_tables: 128 << 10,
    max_apparent_size: 4 * HEADER_BYTES_MAX,
    ignore_missing_null_terminator: true,
};

/// Why a connection's bytes are no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame begins with {found:02x?}; expected is {MAGIC:02x?}")]
    Magic { found: [u8; 4] },
    #[error(
        "a frame says that it has {frame_bytes} bytes; allowed are multiples of {ALIGN_BYTES} from {} to {FRAME_BYTES_MAX}",
        PREFIX_BYTES + HEADER_BYTES_MIN
    )]
    Length { frame_bytes: u32 },
    #[error(
        "the header says that it has {header_bytes} bytes; allowed are multiples of {ALIGN_BYTES} from {HEADER_BYTES_MIN} to {limit_bytes}"
    )]
    HeaderLength {
        header_bytes: u32,
        limit_bytes: usize,
    },
    #[error("the header is no flatbuffer of this protocol: {0}")]
    Header(String),
    #[error(
        "queue {index} of the frame has {bytes} bytes of records, but {left_bytes} are left in the payload"
    )]
    Payload {
        index: usize,
        bytes: u32,
        left_bytes: usize,
    },
}

/// A frame as it was cut out of what was read; the header is not verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// See [`crate::message::Envelope::read`].
    pub header: Bytes,
    pub payload: Bytes,
}

/// Takes the first frame out of `buffer`. `Ok(None)`: read more bytes first.
///
/// The frame holds slices of what was read; nothing is copied or reserved.
pub fn next_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some((frame_bytes, header_bytes)) = lengths(buffer)? else {
        return Ok(None);
    };
    if buffer.len() < frame_bytes {
        return Ok(None);
    }
    let mut payload = buffer.split_to(frame_bytes).freeze();
    payload.advance(PREFIX_BYTES);
    let header = payload.split_to(header_bytes);
    Ok(Some(Frame { header, payload }))
}

/// Bytes still missing of the first frame in `buffer`, once its length is known and legal.
pub fn frame_bytes_wanted(buffer: &[u8]) -> usize {
    match lengths(buffer) {
        Ok(Some((frame_bytes, _))) => frame_bytes.saturating_sub(buffer.len()),
        _ => PREFIX_BYTES.saturating_sub(buffer.len()),
    }
}

/// Whether something follows the first frame, whole or not.
pub fn is_followed(buffer: &[u8]) -> bool {
    matches!(lengths(buffer), Ok(Some((frame_bytes, _))) if buffer.len() > frame_bytes)
}

/// Lengths of the first frame and its header, checked.
fn lengths(buffer: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
    let known = buffer.len().min(MAGIC.len());
    if buffer[..known] != MAGIC[..known] {
        let mut found = [0; 4];
        found[..known].copy_from_slice(&buffer[..known]);
        return Err(FrameError::Magic { found });
    }
    let Some(prefix) = buffer.first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let frame_bytes = word(prefix, LENGTH);
    let allowed = PREFIX_BYTES + HEADER_BYTES_MIN..=FRAME_BYTES_MAX;
    if !allowed.contains(&(frame_bytes as usize))
        || !(frame_bytes as usize).is_multiple_of(ALIGN_BYTES)
    {
        return Err(FrameError::Length { frame_bytes });
    }
    let header_bytes = word(prefix, HEADER);
    let limit_bytes = HEADER_BYTES_MAX.min(frame_bytes as usize - PREFIX_BYTES);
    if !(HEADER_BYTES_MIN..=limit_bytes).contains(&(header_bytes as usize))
        || !(header_bytes as usize).is_multiple_of(ALIGN_BYTES)
    {
        return Err(FrameError::HeaderLength {
            header_bytes,
            limit_bytes,
        });
    }
    Ok(Some((frame_bytes as usize, header_bytes as usize)))
}

fn word(prefix: &[u8; PREFIX_BYTES], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&prefix[at..at + 4]);
    u32::from_le_bytes(bytes)
}

/// The prefix of a frame with so many bytes of header and payload, both multiples of [`ALIGN_BYTES`].
pub(crate) fn prefix(header_bytes: usize, payload_bytes: usize) -> [u8; PREFIX_BYTES] {
    let frame_bytes = PREFIX_BYTES + header_bytes + payload_bytes;
    assert!(
        frame_bytes <= FRAME_BYTES_MAX && header_bytes <= HEADER_BYTES_MAX,
        "whoever makes a frame keeps it within its limits"
    );
    assert!(header_bytes.is_multiple_of(ALIGN_BYTES) && payload_bytes.is_multiple_of(ALIGN_BYTES));
    let mut prefix = [0; PREFIX_BYTES];
    prefix[..LENGTH].copy_from_slice(&MAGIC);
    prefix[LENGTH..HEADER].copy_from_slice(&(frame_bytes as u32).to_le_bytes());
    prefix[HEADER..HEADER + 4].copy_from_slice(&(header_bytes as u32).to_le_bytes());
    prefix
}

/// The verified header of a frame.
pub(crate) fn verified(header: &[u8]) -> Result<generated::Header<'_>, FrameError> {
    let identifier = generated::HEADER_IDENTIFIER.as_bytes();
    if header.get(4..8) != Some(identifier) {
        return Err(FrameError::Header(format!(
            "its identifier is not {}",
            generated::HEADER_IDENTIFIER
        )));
    }
    generated::root_as_header_with_opts(&VERIFIER, header)
        .map_err(|error| FrameError::Header(error.to_string()))
}

/// The length of records in a payload region with the zeros behind them.
pub const fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN_BYTES)
}

/// Cuts the records of one queue after the other off a payload region.
#[derive(Clone, Debug)]
pub struct Sections {
    rest: Bytes,
    index: usize,
}

impl Sections {
    pub fn new(payload: Bytes) -> Self {
        Self {
            rest: payload,
            index: 0,
        }
    }

    /// The records of the next queue, which has so many bytes of them.
    pub fn take(&mut self, bytes: u32) -> Result<Bytes, FrameError> {
        let left_bytes = self.rest.len();
        if bytes as usize > left_bytes {
            return Err(FrameError::Payload {
                index: self.index,
                bytes,
                left_bytes,
            });
        }
        self.index += 1;
        let mut section = self.rest.split_to(padded(bytes as usize).min(left_bytes));
        section.truncate(bytes as usize);
        Ok(section)
    }
}
