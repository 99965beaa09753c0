//! Files of runs that nobody needs any more, to be written over by new ones. Pure.
//!
//! Sixteen small files go whenever they are merged, and sixteen of that size come next. To remove and make them costs the
//! file system's journal, and where it is mounted with `discard` the device, too, which stands still meanwhile.

/// So many files are kept: those of one merge of each size.
const FILES_MAX: usize = 32;
/// Larger ones are removed: they are few.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// See the module's page.
#[derive(Debug, Default)]
pub struct Spares {
    /// Id of the run that it was of, and its bytes.
    files: Vec<(u64, u64)>,
}

impl Spares {
    /// Whether a file of so many bytes is worth keeping, if `coming` others are on their way.
    pub fn wants(&self, bytes: u64, coming: usize) -> bool {
        self.files.len() + coming < FILES_MAX && (1..=FILE_BYTES_MAX).contains(&bytes)
    }

    /// A file is there to be written over.
    pub fn put(&mut self, id: u64, bytes: u64) {
        self.files.push((id, bytes));
    }

    /// The smallest file for a run of so many bytes, neither much smaller nor much larger.
    pub fn take(&mut self, bytes: u64) -> Option<u64> {
        let fits = |file: &(u64, u64)| (bytes / 2..=2 * bytes).contains(&file.1);
        let fitting = self.files.iter().enumerate().filter(|(_, file)| fits(file));
        let (at, _) = fitting.min_by_key(|(_, file)| file.1)?;
        Some(self.files.swap_remove(at).0)
    }

    /// All of them, for a disk that is full.
    pub fn take_all(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.files)
            .into_iter()
            .map(|(id, _)| id)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_takes_a_file_of_about_its_size() {
        let mut spares = Spares::default();
        for (id, bytes) in [(1, 100), (2, 1_000), (3, 110), (4, 49)] {
            assert!(spares.wants(bytes, 0));
            spares.put(id, bytes);
        }
        assert_eq!(spares.take(100), Some(1));
        assert_eq!(spares.take(100), Some(3));
        assert_eq!(spares.take(100), None, "49 is too small, 1,000 too large");
        assert_eq!(spares.take(500), Some(2));
        assert_eq!(spares.take_all(), [4]);
        assert_eq!(spares.take(49), None);
    }

    #[test]
    fn few_and_small_ones_are_kept() {
        let mut spares = Spares::default();
        assert!(!spares.wants(FILE_BYTES_MAX + 1, 0) && !spares.wants(0, 0));
        (0..FILES_MAX as u64).for_each(|id| spares.put(id, 4_096));
        assert!(!spares.wants(4_096, 0));
        spares.take(4_096);
        assert!(spares.wants(4_096, 0) && !spares.wants(4_096, 1));
    }
}
