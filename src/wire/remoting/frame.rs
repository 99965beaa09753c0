//! Frames: where one command ends and the next begins in a connection's bytes.
//!
//! ```text
//! 0 length  4   bytes that follow
//! 4 mark    4   high byte: encoding of the header; low 24 bits: its length
//! 8 header, then the body up to the end
//! ```
//! Sans-io. An error means that the peer broke the protocol: RocketMQ closes such a connection without an answer, and so
//! must the caller, because nothing after the error can be trusted to be a frame.

use bytes::{Buf, Bytes, BytesMut};

use crate::base::limits::{FRAME_BYTES_MAX, HEADER_FIELDS_MAX};
use crate::wire::remoting::command::{Command, Encoding};
use crate::wire::remoting::json_scan::ScanError;
use crate::wire::remoting::shape::Shapes;
use crate::wire::remoting::{binary_header, json_header};

/// Bytes before the header: the length and the header mark.
pub const PREFIX_BYTES: usize = LENGTH_BYTES + MARK_BYTES;
const LENGTH_BYTES: usize = 4;
const MARK_BYTES: usize = 4;
/// Greatest header: its length has 24 bits.
pub const HEADER_BYTES_MAX: usize = (1 << 24) - 1;
/// Greatest `length`. RocketMQ's limit includes the length field itself.
const LENGTH_MAX: usize = FRAME_BYTES_MAX - LENGTH_BYTES;

/// Why a connection's bytes are no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error(
        "a frame says that {frame_bytes} bytes follow; allowed are {MARK_BYTES} to {LENGTH_MAX}"
    )]
    Length { frame_bytes: u32 },
    #[error("the header has {header_bytes} bytes, but only {left_bytes} are left in its frame")]
    HeaderOverrun {
        header_bytes: usize,
        left_bytes: usize,
    },
    #[error("the header has encoding {encoding}; known are 0 (JSON) and 1 (ROCKETMQ)")]
    UnknownEncoding { encoding: u8 },
    #[error("the JSON header is broken: {0}")]
    JsonHeader(#[from] ScanError),
    #[error(
        "the binary header is broken: {what} at byte {at} needs {wanted_bytes} bytes, {left_bytes} are left"
    )]
    BinaryHeader {
        what: &'static str,
        at: usize,
        wanted_bytes: i64,
        left_bytes: usize,
    },
    #[error("the header has more than {HEADER_FIELDS_MAX} fields")]
    TooManyFields,
}

/// Takes the first command out of `buffer`. `Ok(None)`: read more bytes first.
///
/// The command holds slices of what was read; nothing is copied. `buffer` keeps what follows the frame. No byte is
/// reserved here, so a caller that reserves for a partial frame can trust [`frame_bytes_wanted`].
pub fn next_frame(buffer: &mut BytesMut) -> Result<Option<Command>, FrameError> {
    next(buffer, json_header::decode)
}

/// The same for who takes one after the other from a connection.
pub fn next_frame_like(
    buffer: &mut BytesMut,
    shapes: &mut Shapes,
) -> Result<Option<Command>, FrameError> {
    next(buffer, |header| shapes.decode(header))
}

fn next(
    buffer: &mut BytesMut,
    decode_json: impl FnOnce(Bytes) -> Result<Command, FrameError>,
) -> Result<Option<Command>, FrameError> {
    let Some(frame_bytes) = frame_bytes(buffer)? else {
        return Ok(None);
    };
    if buffer.len() < frame_bytes {
        return Ok(None);
    }
    let mut frame = buffer.split_to(frame_bytes).freeze();
    frame.advance(LENGTH_BYTES);
    let mark = frame.get_u32();
    let (header_bytes, left_bytes) = ((mark & 0x00FF_FFFF) as usize, frame.len());
    if header_bytes > left_bytes {
        return Err(FrameError::HeaderOverrun {
            header_bytes,
            left_bytes,
        });
    }
    let header = frame.split_to(header_bytes);
    let mut command = match (mark >> 24) as u8 {
        0 => decode_json(header)?,
        1 => binary_header::decode(header)?,
        encoding => return Err(FrameError::UnknownEncoding { encoding }),
    };
    command.body = frame;
    Ok(Some(command))
}

/// Bytes still missing of the first frame in `buffer`, once its length is known and legal.
pub fn frame_bytes_wanted(buffer: &[u8]) -> usize {
    match frame_bytes(buffer) {
        Ok(Some(frame_bytes)) => frame_bytes.saturating_sub(buffer.len()),
        _ => LENGTH_BYTES.saturating_sub(buffer.len()),
    }
}

/// Whether something follows the first frame, whole or not.
pub fn is_followed(buffer: &[u8]) -> bool {
    matches!(frame_bytes(buffer), Ok(Some(frame_bytes)) if buffer.len() > frame_bytes)
}

/// Length of the first frame with its length field, checked.
fn frame_bytes(buffer: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(prefix) = buffer.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let frame_bytes = u32::from_be_bytes(*prefix);
    if !(MARK_BYTES..=LENGTH_MAX).contains(&(frame_bytes as usize)) {
        return Err(FrameError::Length { frame_bytes });
    }
    Ok(Some(LENGTH_BYTES + frame_bytes as usize))
}

/// The header mark of an encoding and a length that fits.
pub(super) fn mark(encoding: Encoding, header_bytes: usize) -> u32 {
    assert!(header_bytes <= HEADER_BYTES_MAX);
    ((encoding as u32) << 24) | header_bytes as u32
}
