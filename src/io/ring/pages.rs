//! Memory for O_DIRECT, aligned to a page, with a small store of returned buffers per thread.
//!
//! Batches of a log take theirs from **runs**: large pieces of memory that are filled from front to back and come back
//! as a whole when the last buffer in them is gone. The tail cache drops its oldest buffers first, so runs come back in
//! the order in which they were filled, are used again without a page fault, and hold no more than what was written.
//! Until the first ones come back new ones are needed, and the kernel zeroes them at the first touch: 0.1 ms for a huge page, and
//! 5 ms in a virtual machine whose host gives memory only then. So the executor's helper thread touches [`RUNS_AHEAD`] of them
//! before they are asked for; and where a huge page takes so long that whatever waits for its processor would notice,
//! the next runs are small pages, which are touched in steps with pauses.
//!
//! Reads of [`READ_BYTES`] take **pieces** of runs that nobody else fills. Pieces stay with their thread: there are as many as
//! were in use at once, which is what the caches above keep. New ones are touched by the helper thread, too, and whoever can
//! do without waits for none ([`Pages::piece_is_ready`]).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::base::config::memory::IO_BYTES_PER_SHARD;
use crate::base::limits::READ_BYTES;
use crate::io::ring::core::Core;

/// Alignment of every buffer: that of the strictest block device we know.
const ALIGN_BYTES: usize = 4096;
/// Buffers up to this size are kept, by their number of pages; larger ones go back to the allocator.
const KEPT_BYTES_MAX: usize = 2 << 20;
const CLASSES: usize = KEPT_BYTES_MAX / ALIGN_BYTES;
/// Kept in all, per thread.
const STORE_BYTES_MAX: usize = IO_BYTES_PER_SHARD as usize;
/// Bytes of a run: one huge page, where the kernel has them.
const RUN_BYTES: usize = 2 << 20;
/// A buffer that takes more of a run than this has memory of its own.
const RUN_PART_BYTES_MAX: usize = RUN_BYTES / 2;
/// Empty runs that a thread keeps: those of a replica far behind come back some at a time, and new ones cost more than what
/// is written to them.
const SPARE_RUNS_MAX: usize = 4;
/// Runs that are there, or on their way, before one is needed; one fewer as long as the first one is not full.
const RUNS_AHEAD: usize = 2;
const PIECE_BYTES: usize = READ_BYTES;
/// With fewer pieces left the helper thread is asked for a run of them.
const PIECES_AHEAD: usize = 8;
/// What the helper thread touches before it lets others run for as long as that took.
const STEP_BYTES: usize = 64 << 10;
/// After a huge page that took more processor time than this come small ones.
const HUGE_PAGE_LIMIT: Duration = Duration::from_micros(500);
/// So many runs of small pages, twice as many after each time it happens again.
const SMALL_RUNS_MIN: u32 = 32;
const SMALL_RUNS_MAX: u32 = 1 << 12;

/// Steps that take no longer need no pause.
const STEP_UNNOTICED: Duration = Duration::from_micros(50);

/// Memory comes slowly on this machine: the runs that are to be small pages yet, and how many they were.
static SMALL_RUNS: AtomicU32 = AtomicU32::new(0);
static SMALL_RUNS_LAST: AtomicU32 = AtomicU32::new(SMALL_RUNS_MIN / 2);

/// A huge page has taken too long.
fn on_slow_page() {
    let runs = (2 * SMALL_RUNS_LAST.load(Ordering::Relaxed)).min(SMALL_RUNS_MAX);
    SMALL_RUNS_LAST.store(runs, Ordering::Relaxed);
    SMALL_RUNS.store(runs, Ordering::Relaxed);
}

/// Whether the next run is to be small pages.
fn next_is_small() -> bool {
    let one_less = |left: u32| left.checked_sub(1);
    SMALL_RUNS
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
        .is_ok()
}

/// Processor time of the calling thread: a page is not slow because others had the processor.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes one timespec. It cannot fail with a clock that there is.
    let _ = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// [`RUN_BYTES`] of memory from [`map_run`], given back to the kernel when nobody wants it.
struct RunMemory(NonNull<u8>);

// SAFETY: it is the only way to its memory, and unmapping works from any thread.
unsafe impl Send for RunMemory {}

impl RunMemory {
    /// Has the kernel give all of it now, in steps.
    fn touch(&self) {
        for step in (0..RUN_BYTES).step_by(STEP_BYTES) {
            let (begun, begun_cpu) = (Instant::now(), thread_time());
            for at in (step..step + STEP_BYTES).step_by(ALIGN_BYTES) {
                // SAFETY: within the mapping, which nobody else knows. Volatile, since the value means nothing.
                unsafe { self.0.add(at).write_volatile(0) };
            }
            let took = begun.elapsed();
            if thread_time().saturating_sub(begun_cpu) > HUGE_PAGE_LIMIT {
                on_slow_page();
            }
            if took > STEP_UNNOTICED {
                thread::sleep(took);
            }
        }
    }
}

impl Drop for RunMemory {
    fn drop(&mut self) {
        unmap(self.0, RUN_BYTES);
    }
}

/// Memory of many buffers. `None` only while it is dropped.
struct Run(Option<RunMemory>);

impl Run {
    fn new() -> Self {
        let runs = RUNS.try_with(|runs| {
            let mut runs = runs.borrow_mut();
            let memory = runs.spare.pop().or_else(|| runs.ahead.take());
            runs.prepare();
            memory
        });
        Self(Some(runs.ok().flatten().unwrap_or_else(map_run)))
    }

    fn start(&self) -> NonNull<u8> {
        match &self.0 {
            Some(memory) => memory.0,
            None => unreachable!("its memory goes when it is dropped"),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let memory = self.0.take();
        // Beyond what is kept, and at the end of the thread, it goes back to the kernel.
        let _ = RUNS.try_with(|runs| {
            let mut runs = runs.borrow_mut();
            if runs.spare.len() < SPARE_RUNS_MAX {
                runs.spare.extend(memory);
            }
        });
    }
}

/// Runs that the helper thread has touched. The lock is taken once for 2 MiB, and held for a push or a pop.
#[derive(Default)]
struct Ahead {
    ready: Mutex<Vec<RunMemory>>,
    /// Those that are ready, and those that the helper was asked for.
    count: AtomicUsize,
}

impl Ahead {
    fn take(&self) -> Option<RunMemory> {
        let memory = self.ready().pop()?;
        self.count.fetch_sub(1, Ordering::Relaxed);
        Some(memory)
    }

    fn ready(&self) -> MutexGuard<'_, Vec<RunMemory>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the helper thread for one more. False: there is none, since there is no executor.
    fn ask(self: &Arc<Self>) -> bool {
        let ahead = self.clone();
        let asked = Core::try_current().is_some_and(|core| {
            core.helper.post(move || {
                let memory = map_run();
                memory.touch();
                ahead.ready().push(memory);
            })
        });
        if asked {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        asked
    }
}

/// A new run from the kernel: zeros, aligned to its size, and one huge page where the kernel gives them soon. By the
/// allocator it would be touched in 512 small steps.
fn map_run() -> RunMemory {
    // Twice the size has an aligned part.
    // SAFETY: a new anonymous mapping.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            2 * RUN_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    let (false, Some(memory)) = (
        memory == libc::MAP_FAILED,
        NonNull::new(memory.cast::<u8>()),
    ) else {
        let layout = Layout::new::<[u8; RUN_BYTES]>();
        handle_alloc_error(layout)
    };
    let before = memory.as_ptr().align_offset(RUN_BYTES);
    // SAFETY: the aligned part begins within the first half of the mapping.
    let run = unsafe { memory.add(before) };
    unmap(memory, before);
    // SAFETY: what lies behind the run, up to the end of the mapping.
    unmap(unsafe { run.add(RUN_BYTES) }, RUN_BYTES - before);
    let advice = match next_is_small() {
        false => libc::MADV_HUGEPAGE,
        true => libc::MADV_NOHUGEPAGE,
    };
    // SAFETY: advice about memory that was mapped just now. An error means small pages.
    let _ = unsafe { libc::madvise(run.as_ptr().cast(), RUN_BYTES, advice) };
    RunMemory(run)
}

/// Gives whole pages back to the kernel; none is fine.
fn unmap(memory: NonNull<u8>, bytes: usize) {
    if bytes > 0 {
        // SAFETY: part of a mapping of `map_run` that nobody uses any more.
        let _ = unsafe { libc::munmap(memory.as_ptr().cast(), bytes) };
    }
}

/// The run that is being filled, and those that are empty.
#[derive(Default)]
struct Runs {
    current: Option<(Rc<Run>, usize)>,
    spare: Vec<RunMemory>,
    ahead: Arc<Ahead>,
}

impl Runs {
    /// Asks the helper thread for the runs that come next. Without an executor there is none, and they come when they are needed.
    fn prepare(&self) {
        let wanted = RUNS_AHEAD - usize::from(self.current.is_none());
        while self.spare.len() + self.ahead.count.load(Ordering::Relaxed) < wanted {
            if !self.ahead.ask() {
                return;
            }
        }
    }
}

/// A part of a run for one read.
struct Piece {
    memory: NonNull<u8>,
    run: Rc<RunMemory>,
}

/// Pieces that nobody uses.
#[derive(Default)]
struct Pieces {
    free: Vec<Piece>,
    ahead: Arc<Ahead>,
}

impl Pieces {
    /// Takes over what the helper thread has touched, and asks it for more when few are left.
    fn refill(&mut self) {
        while self.free.len() < PIECES_AHEAD
            && let Some(memory) = self.ahead.take()
        {
            let run = Rc::new(memory);
            self.free
                .extend((0..RUN_BYTES / PIECE_BYTES).map(|number| Piece {
                    // SAFETY: within the run.
                    memory: unsafe { run.0.add(number * PIECE_BYTES) },
                    run: run.clone(),
                }));
        }
        if self.free.len() < PIECES_AHEAD && self.ahead.count.load(Ordering::Relaxed) == 0 {
            self.ahead.ask();
        }
    }
}

struct Store {
    /// By number of pages less one.
    free: Vec<Vec<NonNull<u8>>>,
    /// When each was asked for last, in calls.
    asked: Vec<u64>,
    calls: u64,
    bytes: usize,
}

impl Store {
    fn take(&mut self, capacity: usize) -> Option<NonNull<u8>> {
        let class = class(capacity);
        self.calls += 1;
        self.asked[class] = self.calls;
        let memory = self.free[class].pop()?;
        self.bytes -= capacity;
        Some(memory)
    }

    /// Keeps a buffer if there is room, or others of sizes that were not asked for since this one was. False: it is the caller's.
    fn keep(&mut self, memory: NonNull<u8>, capacity: usize) -> bool {
        let own = class(capacity);
        while self.bytes + capacity > STORE_BYTES_MAX {
            let older = |&other: &usize| {
                !self.free[other].is_empty() && self.asked[other] < self.asked[own]
            };
            let Some(oldest) = (0..CLASSES)
                .filter(older)
                .min_by_key(|&other| self.asked[other])
            else {
                return false;
            };
            let bytes = ALIGN_BYTES * (oldest + 1);
            if let Some(memory) = self.free[oldest].pop() {
                self.bytes -= bytes;
                // SAFETY: it was allocated with the layout of its class and is in no other place.
                unsafe { dealloc(memory.as_ptr(), layout(bytes)) }
            }
        }
        self.free[own].push(memory);
        self.bytes += capacity;
        true
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            free: (0..CLASSES).map(|_| Vec::new()).collect(),
            asked: vec![0; CLASSES],
            calls: 0,
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
    static RUNS: RefCell<Runs> = RefCell::default();
    static PIECES: RefCell<Pieces> = RefCell::default();
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
    origin: Origin,
}

/// What the memory of a buffer is a part of.
enum Origin {
    /// Nothing else: it is the allocator's.
    Own,
    Run(Rc<Run>),
    Piece(Rc<RunMemory>),
}

impl Pages {
    /// `bytes` of memory from the run that is being filled. The newest buffer of it can grow and shrink in place.
    pub fn in_run(bytes: usize) -> Self {
        assert!(bytes > 0, "a buffer of nothing");
        let capacity = bytes.next_multiple_of(ALIGN_BYTES);
        if capacity > RUN_PART_BYTES_MAX {
            return Self::new(bytes);
        }
        let place = RUNS.with_borrow_mut(|runs| {
            let (run, used) = runs.current.as_mut()?;
            let at = *used;
            *used += capacity;
            (*used <= RUN_BYTES).then(|| (run.clone(), at))
        });
        let (run, at) = place.unwrap_or_else(|| {
            let run = Rc::new(Run::new());
            let full = RUNS.with_borrow_mut(|runs| runs.current.replace((run.clone(), capacity)));
            // Its memory may come back here, so the borrow has ended.
            drop(full);
            (run, 0)
        });
        Self {
            // SAFETY: `at` and `capacity` lie within the run, and no other buffer has that part.
            memory: unsafe { run.start().add(at) },
            len: bytes,
            capacity,
            origin: Origin::Run(run),
        }
    }

    /// Changes the number of pages if this is the newest buffer of the run that is being filled and it has the room.
    fn resize(&mut self, capacity: usize) -> bool {
        let Origin::Run(run) = &self.origin else {
            return false;
        };
        let resized = RUNS.with_borrow_mut(|runs| {
            let Some((current, used)) = runs.current.as_mut() else {
                return false;
            };
            let at = self.memory.as_ptr() as usize - run.start().as_ptr() as usize;
            let fits = Rc::ptr_eq(current, run)
                && at + self.capacity == *used
                && at + capacity <= RUN_BYTES;
            if fits {
                *used = at + capacity;
            }
            fits
        });
        if resized {
            self.capacity = capacity;
        }
        resized
    }

    /// Makes the buffer `bytes` long without moving it, if there is room. The new part is undefined.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let capacity = bytes.next_multiple_of(ALIGN_BYTES);
        let grown = capacity <= self.capacity || self.resize(capacity);
        if grown {
            self.len = self.len.max(bytes);
        }
        grown
    }

    /// Bytes of memory.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// `bytes` of memory, at least one.
    pub fn new(bytes: usize) -> Self {
        assert!(bytes > 0, "a buffer of nothing");
        let capacity = bytes.next_multiple_of(ALIGN_BYTES);
        let kept = match capacity <= KEPT_BYTES_MAX {
            true => STORE
                .try_with(|store| store.borrow_mut().take(capacity))
                .ok()
                .flatten(),
            false => None,
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
            origin: Origin::Own,
        }
    }

    /// `bytes` of memory, at least one, for what is read: a piece if it has the size of one and there is one.
    pub fn for_read(bytes: usize) -> Self {
        let piece = match bytes {
            PIECE_BYTES => PIECES
                .try_with(|pieces| pieces.borrow_mut().free.pop())
                .ok()
                .flatten(),
            _ => None,
        };
        match piece {
            Some(Piece { memory, run }) => Self {
                memory,
                len: PIECE_BYTES,
                capacity: PIECE_BYTES,
                origin: Origin::Piece(run),
            },
            None => Self::new(bytes),
        }
    }

    /// Whether [`Pages::for_read`] has a piece at once. If not, the helper thread is asked for more.
    pub fn piece_is_ready() -> bool {
        PIECES.with_borrow_mut(|pieces| {
            pieces.refill();
            !pieces.free.is_empty()
        })
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

    /// Forgets all behind the first `bytes`, and gives the pages behind them back to a run.
    pub fn trim_to(&mut self, bytes: usize) {
        self.len = self.len.min(bytes);
        self.resize(self.len.next_multiple_of(ALIGN_BYTES));
    }

    /// Where the kernel writes what it reads.
    pub(super) fn address(&self) -> *mut u8 {
        self.memory.as_ptr()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let (memory, capacity) = (self.memory, self.capacity);
        match std::mem::replace(&mut self.origin, Origin::Own) {
            Origin::Run(_) => {}
            Origin::Piece(run) => {
                // At the end of the thread it goes with its run.
                let _ =
                    PIECES.try_with(|pieces| pieces.borrow_mut().free.push(Piece { memory, run }));
            }
            Origin::Own => {
                let kept = capacity <= KEPT_BYTES_MAX
                    && STORE
                        .try_with(|store| store.borrow_mut().keep(memory, capacity))
                        .unwrap_or(false);
                if !kept {
                    // SAFETY: allocated with this layout in `new`; nobody else has it.
                    unsafe { dealloc(memory.as_ptr(), layout(capacity)) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::env::Env;
    use crate::io::ring::testing::on_executor;

    fn address(pages: &Pages) -> usize {
        pages.address() as usize
    }

    #[test]
    fn buffers_of_a_run_lie_behind_each_other_and_give_back_what_they_did_not_use() {
        let mut one = Pages::in_run(3 * ALIGN_BYTES);
        one.as_bytes_mut().fill(1);
        one.trim_to(100);
        assert_eq!((one.as_bytes().len(), one.capacity()), (100, ALIGN_BYTES));
        let mut other = Pages::in_run(2 * ALIGN_BYTES);
        assert_eq!(address(&other), address(&one) + ALIGN_BYTES);
        other.as_bytes_mut().fill(2);
        // Not the newest any more: it stays where it is, as large as it is.
        assert!(!one.grow(2 * ALIGN_BYTES) && one.grow(ALIGN_BYTES));
        assert!(other.grow(8 * ALIGN_BYTES));
        other.as_bytes_mut()[2 * ALIGN_BYTES..].fill(3);
        assert_eq!(one.as_bytes()[..100], [1; 100]);
        assert_eq!(other.as_bytes()[..2 * ALIGN_BYTES], [2; 2 * ALIGN_BYTES]);
    }

    #[test]
    fn a_run_comes_back_when_its_last_buffer_is_gone_and_not_before() {
        let part = RUN_PART_BYTES_MAX;
        let mut parts: Vec<Pages> = (0..RUN_BYTES / part).map(|_| Pages::in_run(part)).collect();
        let first = address(&parts[0]);
        assert_eq!(first % RUN_BYTES, 0);
        let last = parts.pop();
        drop(parts);
        let elsewhere = Pages::in_run(part);
        assert_ne!(address(&elsewhere) / RUN_BYTES, first / RUN_BYTES);
        drop(last);
        let rest: Vec<Pages> = (1..RUN_BYTES / part).map(|_| Pages::in_run(part)).collect();
        let next = Pages::in_run(part);
        assert_eq!(address(&next), first);
        drop(rest);
    }

    #[test]
    fn runs_that_come_back_together_are_all_used_again() {
        let half = RUN_BYTES / 2;
        let take = || -> Vec<Pages> {
            let two_each = 2 * SPARE_RUNS_MAX;
            (0..two_each).map(|_| Pages::in_run(half)).collect()
        };
        let mut first = take();
        for part in &mut first {
            part.as_bytes_mut()[0] = 7;
        }
        // The last one stays the current run until another one is begun.
        let other = Pages::in_run(half);
        drop(first);
        let more = Pages::in_run(half);
        // New memory is zero, whatever its address is.
        assert!(take().iter().all(|part| part.as_bytes()[0] == 7));
        drop((other, more));
    }

    /// Whether the kernel has given every page of it.
    fn is_resident(memory: &RunMemory) -> bool {
        let mut pages = [0; RUN_BYTES / ALIGN_BYTES];
        // SAFETY: the mapping is whole, and the array has a byte for each of its pages.
        let result =
            unsafe { libc::mincore(memory.0.as_ptr().cast(), RUN_BYTES, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().all(|page| page & 1 == 1)
    }

    #[test]
    fn the_runs_that_come_next_were_touched_by_the_helper_thread() {
        on_executor(async |env| {
            let ahead = RUNS.with_borrow(|runs| runs.ahead.clone());
            let prepared = async |count| {
                let limit = Instant::now() + Duration::from_secs(10);
                while ahead.ready().len() < count && Instant::now() < limit {
                    env.sleep(Duration::from_millis(1)).await;
                }
                assert_eq!(ahead.ready().len(), count);
            };
            let first = Pages::in_run(RUN_PART_BYTES_MAX);
            prepared(1).await;
            assert!(ahead.ready().iter().all(is_resident));
            assert!(!is_resident(&map_run()));
            let next = ahead.ready().last().map(|memory| memory.0);
            let rest = Pages::in_run(RUN_PART_BYTES_MAX);
            let second = Pages::in_run(RUN_PART_BYTES_MAX);
            assert_eq!(Some(second.memory), next);
            // One was taken, and never more than two are asked for.
            assert_eq!(ahead.count.load(Ordering::Relaxed), RUNS_AHEAD);
            prepared(RUNS_AHEAD).await;
            // What comes back is used first, and counts.
            drop((first, rest));
            let _rest = Pages::in_run(RUN_PART_BYTES_MAX);
            let third = Pages::in_run(RUN_PART_BYTES_MAX);
            assert!(third.address().addr() != 0);
            assert_eq!(ahead.count.load(Ordering::Relaxed), RUNS_AHEAD);
        });
    }

    #[test]
    fn what_is_too_large_for_a_run_has_memory_of_its_own() {
        let mut large = Pages::in_run(RUN_PART_BYTES_MAX + 1);
        large.as_bytes_mut().fill(1);
        assert!(!large.grow(RUN_BYTES));
        large.trim_to(1);
        assert_eq!(large.capacity(), RUN_PART_BYTES_MAX + ALIGN_BYTES);
    }
    #[test]
    fn buffers_of_sizes_that_nobody_wants_any_more_make_room_for_others() {
        let old: Vec<Pages> = (0..2).map(|_| Pages::new(STORE_BYTES_MAX / 2)).collect();
        drop(old);
        let small = ALIGN_BYTES;
        let one = Pages::new(small);
        let memory = address(&one);
        drop(one);
        assert_eq!(address(&Pages::new(small)), memory);
        // Half of the old ones went for it, and what is wanted stays.
        STORE.with_borrow(|store| assert_eq!(store.bytes, STORE_BYTES_MAX / 2 + small));
        let many: Vec<Pages> = (0..2 * STORE_BYTES_MAX / small)
            .map(|_| Pages::new(small))
            .collect();
        drop(many);
        STORE.with_borrow(|store| {
            assert_eq!(store.bytes, STORE_BYTES_MAX);
            assert_eq!(store.free[class(small)].len(), STORE_BYTES_MAX / small);
        });
    }

    #[test]
    fn reads_take_memory_that_the_helper_thread_has_touched_and_take_it_again() {
        on_executor(async |env| {
            // There is none yet, which stops nobody.
            assert!(!Pages::piece_is_ready());
            assert!(matches!(Pages::for_read(PIECE_BYTES).origin, Origin::Own));
            let limit = Instant::now() + Duration::from_secs(10);
            while !Pages::piece_is_ready() && Instant::now() < limit {
                env.sleep(Duration::from_millis(1)).await;
            }
            let per_run = RUN_BYTES / PIECE_BYTES;
            let first: Vec<Pages> = (0..per_run).map(|_| Pages::for_read(PIECE_BYTES)).collect();
            let mut addresses: Vec<usize> = first.iter().map(address).collect();
            addresses.sort_unstable();
            assert!(
                addresses
                    .windows(2)
                    .all(|two| two[1] - two[0] >= PIECE_BYTES)
            );
            for pages in &first {
                let Origin::Piece(run) = &pages.origin else {
                    panic!("not a piece")
                };
                assert!(is_resident(run));
                let start = run.0.addr().get();
                assert!((start..start + RUN_BYTES).contains(&address(pages)));
            }
            // Another size has nothing to do with them.
            assert!(matches!(
                Pages::for_read(PIECE_BYTES / 2).origin,
                Origin::Own
            ));
            drop(first);
            let again: Vec<Pages> = (0..per_run).map(|_| Pages::for_read(PIECE_BYTES)).collect();
            assert!(
                again
                    .iter()
                    .all(|pages| addresses.contains(&address(pages)))
            );
        });
    }
}
