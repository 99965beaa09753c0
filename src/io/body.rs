//! What is gathered behind a header on its way out.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::io::aligned_buf::PageSlice;

/// Body of an outgoing command. Never copied on its core.
#[derive(Clone, Debug, Default)]
pub enum Body {
    #[default]
    Empty,
    Bytes(Bytes),
    Pages(SmallVec<[PageSlice; 4]>),
}

impl Body {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Bytes(bytes) => bytes.len(),
            Self::Pages(slices) => slices.iter().map(|slice| slice.len()).sum(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One contiguous copy, to cross to another core.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Empty => Bytes::new(),
            Self::Bytes(bytes) => bytes,
            Self::Pages(slices) => {
                let mut copy = Vec::with_capacity(slices.iter().map(|slice| slice.len()).sum());
                for slice in &slices {
                    copy.extend_from_slice(slice);
                }
                copy.into()
            }
        }
    }
}
