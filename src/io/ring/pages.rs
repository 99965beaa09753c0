//! Memory for O_DIRECT, aligned to a page, with a small store of returned buffers per thread.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;

use crate::base::config::memory::IO_BYTES_PER_SHARD;

/// Alignment of every buffer: that of the strictest block device we know.
const ALIGN_BYTES: usize = 4096;
/// Buffers up to this size are kept, by their number of pages; larger ones go back to the allocator.
const KEPT_BYTES_MAX: usize = 2 << 20;
const CLASSES: usize = KEPT_BYTES_MAX / ALIGN_BYTES;
/// Kept in all, per thread.
const STORE_BYTES_MAX: usize = IO_BYTES_PER_SHARD as usize;

struct Store {
    /// By number of pages less one.
    free: Vec<Vec<NonNull<u8>>>,
    bytes: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            free: (0..CLASSES).map(|_| Vec::new()).collect(),
            bytes: 0,
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for (class, buffers) in self.free.iter_mut().enumerate() {
            for memory in buffers.drain(..) {
                // SAFETY: it was allocated with the layout of its class and is in no other place.
                unsafe { dealloc(memory.as_ptr(), layout(ALIGN_BYTES * (class + 1))) }
            }
        }
    }
}

thread_local! {
    static STORE: RefCell<Store> = RefCell::default();
}

fn layout(bytes: usize) -> Layout {
    match Layout::from_size_align(bytes, ALIGN_BYTES) {
        Ok(layout) => layout,
        Err(error) => panic!("{bytes} bytes cannot be allocated: {error}"),
    }
}

fn class(capacity_bytes: usize) -> usize {
    capacity_bytes / ALIGN_BYTES - 1
}

/// Aligned, writable, initialised memory of one owner. The content of a new one is undefined (zeros or old bytes).
pub struct Pages {
    memory: NonNull<u8>,
    len: usize,
    /// Whole pages.
    capacity: usize,
}

impl Pages {
    /// `bytes` of memory, at least one.
    pub fn new(bytes: usize) -> Self {
        assert!(bytes > 0, "a buffer of nothing");
        let capacity = bytes.next_multiple_of(ALIGN_BYTES);
        let kept = if capacity <= KEPT_BYTES_MAX {
            STORE
                .try_with(|store| {
                    let mut store = store.borrow_mut();
                    let memory = store.free[class(capacity)].pop()?;
                    store.bytes -= capacity;
                    Some(memory)
                })
                .ok()
                .flatten()
        } else {
            None
        };
        let memory = kept.unwrap_or_else(|| {
            // SAFETY: the layout has a size of at least a page. Zeroed, because it is read as bytes before all of it is
            // written (the padding of a batch).
            let memory = unsafe { alloc_zeroed(layout(capacity)) };
            NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout(capacity)))
        });
        Self {
            memory,
            len: bytes,
            capacity,
        }
    }

    /// The content.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }

    /// The content for writing.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is the only owner.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }

    /// Forgets all behind the first `bytes`.
    pub fn trim_to(&mut self, bytes: usize) {
        self.len = self.len.min(bytes);
    }

    /// Where the kernel writes what it reads.
    pub(super) fn address(&self) -> *mut u8 {
        self.memory.as_ptr()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let (memory, capacity) = (self.memory, self.capacity);
        let kept = capacity <= KEPT_BYTES_MAX
            && STORE
                .try_with(|store| {
                    let mut store = store.borrow_mut();
                    let fits = store.bytes + capacity <= STORE_BYTES_MAX;
                    if fits {
                        store.free[class(capacity)].push(memory);
                        store.bytes += capacity;
                    }
                    fits
                })
                .unwrap_or(false);
        if !kept {
            // SAFETY: allocated with this layout in `new`; nobody else has it.
            unsafe { dealloc(memory.as_ptr(), layout(capacity)) }
        }
    }
}
