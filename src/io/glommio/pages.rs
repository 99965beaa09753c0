//! The runtime's buffers under our names, so that nothing above `io/` names the runtime.

use std::rc::Rc;

/// Aligned, writable memory of the runtime. The `Rc` lets a frozen buffer be written without a copy while others read it.
pub struct DmaPages(pub(super) Rc<glommio::io::DmaBuffer>);

impl DmaPages {
    /// The content.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The content for writing. Panics while a write of it is in flight: it has one owner at a time.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        Rc::get_mut(&mut self.0)
            .expect("a buffer is filled before it is written")
            .as_bytes_mut()
    }

    /// Forgets all behind the first `bytes`.
    pub(in crate::io) fn trim_to(&mut self, bytes: usize) {
        Rc::get_mut(&mut self.0)
            .expect("a buffer is trimmed before it is written")
            .trim_to_size(bytes);
    }
}

/// What the runtime read from a file.
pub type ReadPages = glommio::io::ReadResult;
