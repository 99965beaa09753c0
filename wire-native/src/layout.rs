//! Where the fields of a flatbuffer lie, for what reads or writes them by their place.
//!
//! ```text
//! buffer   0  u32  where its root table is
//! table    0  i32  how far in front of it its vtable is
//! vtable   0  u16  its bytes
//!          2  u16  bytes of the table
//!          4  u16  for each field, where it is in the table; 0: it is absent
//! offset      u32  how far behind itself what it names is: a table, text or vector
//! text     0  u32  its bytes, which follow; so do the members of a vector behind their number
//! ```
//! Little-endian ("FlatBuffers internals"). Whoever asks has verified the buffer; what is not in it is `None` all the same.

use std::ops::Range;

/// Bytes of an offset, and of the length of a text or vector.
pub(crate) const OFFSET_BYTES: usize = 4;

/// A table of a buffer.
#[derive(Clone, Debug)]
pub(crate) struct TableAt<'a> {
    buffer: &'a [u8],
    at: usize,
    vtable: Range<usize>,
}

impl<'a> TableAt<'a> {
    /// The table that the buffer begins with.
    pub fn root(buffer: &'a [u8]) -> Option<Self> {
        Self::new(buffer, u32_at(buffer, 0)? as usize)
    }

    /// The table that an offset at this place names.
    pub fn behind(buffer: &'a [u8], at: usize) -> Option<Self> {
        Self::new(buffer, target(buffer, at)?)
    }

    fn new(buffer: &'a [u8], at: usize) -> Option<Self> {
        let before = u32_at(buffer, at)?.cast_signed();
        let vtable = i64::try_from(at).ok()? - i64::from(before);
        let vtable = usize::try_from(vtable).ok()?;
        let bytes = usize::from(u16_at(buffer, vtable)?);
        Some(Self {
            buffer,
            at,
            vtable: vtable..vtable.checked_add(bytes)?,
        })
    }

    /// Where a field is, by the number that the generated code calls `VT_...`; `None`: it is absent.
    pub fn field(&self, vt: u16) -> Option<usize> {
        let entry = self.vtable.start.checked_add(usize::from(vt))?;
        if entry + 2 > self.vtable.end {
            return None;
        }
        match u16_at(self.buffer, entry)? {
            0 => None,
            place => self.at.checked_add(usize::from(place)),
        }
    }

    /// What says where the fields are: with the same bytes there they are at the same places.
    pub fn structure(&self) -> [Range<usize>; 2] {
        [self.at..self.at + OFFSET_BYTES, self.vtable.clone()]
    }
}

/// The place that the offset at this one names.
pub(crate) fn target(buffer: &[u8], at: usize) -> Option<usize> {
    at.checked_add(u32_at(buffer, at)? as usize)
}

pub(crate) fn u16_at(buffer: &[u8], at: usize) -> Option<u16> {
    let bytes = buffer.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*bytes))
}

#[inline]
pub(crate) fn u32_at(buffer: &[u8], at: usize) -> Option<u32> {
    let bytes = buffer.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

#[inline]
pub(crate) fn u64_at(buffer: &[u8], at: usize) -> Option<u64> {
    let bytes = buffer.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}
