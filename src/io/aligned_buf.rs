//! Memory for O_DIRECT: [`PageBuf`], one owner, and [`PageSlice`], a shared part of one.
//!
//! A buffer is filled by one owner, then frozen into an `Rc` and written, cached and sent from there
//! without another copy. It never leaves its core (`!Send`): what crosses cores is copied into `bytes::Bytes`.

use std::fmt;
use std::ops::Deref;
use std::rc::Rc;

use crate::io::ring::Pages;

enum Storage {
    /// Plain memory: the simulator, and small buffers that never meet a disk.
    Heap(Box<[u8]>),
    /// Aligned memory of the production backend.
    Pages(Pages),
}

/// A run of whole sectors for the disk, or what was read from it. See the module's page.
pub struct PageBuf(Storage);

impl PageBuf {
    /// Plain memory with the given content.
    pub fn from_heap(bytes: Vec<u8>) -> Self {
        Self(Storage::Heap(bytes.into_boxed_slice()))
    }

    /// Wraps memory of the production backend.
    pub fn from_pages(pages: Pages) -> Self {
        Self(Storage::Pages(pages))
    }

    /// The whole memory for writing.
    #[allow(clippy::should_implement_trait)] // AsMut would have to be imported wherever a buffer is filled.
    pub fn as_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Storage::Heap(bytes) => bytes,
            Storage::Pages(pages) => pages.as_bytes_mut(),
        }
    }

    /// Forgets all behind the first `bytes`: a batch is written to its last sector, not to its buffer's end.
    pub fn trim_to(&mut self, bytes: usize) {
        match &mut self.0 {
            Storage::Heap(memory) => {
                let mut content = std::mem::take(memory).into_vec();
                content.truncate(bytes);
                *memory = content.into_boxed_slice();
            }
            Storage::Pages(pages) => pages.trim_to(bytes),
        }
    }

    /// Makes it `bytes` long without moving it, if its memory has the room. The new part is undefined.
    pub fn grow(&mut self, bytes: usize) -> bool {
        match &mut self.0 {
            Storage::Heap(_) => false,
            Storage::Pages(pages) => pages.grow(bytes),
        }
    }

    /// Bytes of memory that it takes, which may be more than it shows.
    pub fn memory_bytes(&self) -> usize {
        match &self.0 {
            Storage::Heap(bytes) => bytes.len(),
            Storage::Pages(pages) => pages.capacity(),
        }
    }

    /// The aligned memory, if this is some.
    pub fn as_pages(&self) -> Option<&Pages> {
        match &self.0 {
            Storage::Pages(pages) => Some(pages),
            Storage::Heap(_) => None,
        }
    }
}

impl Deref for PageBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Storage::Heap(bytes) => bytes,
            Storage::Pages(pages) => pages.as_bytes(),
        }
    }
}

impl fmt::Debug for PageBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageBuf({} bytes)", self.len())
    }
}

/// A shared part of a [`PageBuf`]; keeps the whole buffer alive.
#[derive(Clone, Debug)]
pub struct PageSlice {
    pages: Rc<PageBuf>,
    start: u32,
    len: u32,
}

impl PageSlice {
    /// `len` bytes from `start`. Panics if they are not inside the buffer.
    pub fn new(pages: Rc<PageBuf>, start: usize, len: usize) -> Self {
        assert!(start + len <= pages.len(), "a slice outside of its pages");
        Self {
            pages,
            start: start as u32,
            len: len as u32,
        }
    }

    /// Makes this slice one with `next` if that begins where this one ends, in the same buffer.
    pub fn try_join(&mut self, next: &Self) -> bool {
        let adjacent = Rc::ptr_eq(&self.pages, &next.pages) && self.start + self.len == next.start;
        if adjacent {
            self.len += next.len;
        }
        adjacent
    }

    /// A part of this slice. Panics if it is not inside.
    pub fn slice(&self, start: usize, len: usize) -> Self {
        assert!(
            start + len <= self.len as usize,
            "a slice outside of its slice"
        );
        Self {
            pages: self.pages.clone(),
            start: self.start + start as u32,
            len: len as u32,
        }
    }
}

impl Deref for PageSlice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages[self.start as usize..(self.start + self.len) as usize]
    }
}
