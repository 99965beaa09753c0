//! The executor of one thread: its queues, its turn, and how other threads wake it.
//!
//! Tasks are local (`!Send`); their wakers may be used from any thread. A wake on the executor's own thread appends to a
//! queue; one from elsewhere goes through [`Remote`] and costs a system call only if the executor sleeps.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use async_task::Runnable;
use io_uring::{cqueue, opcode, squeue, types};
use slab::Slab;

use crate::io::ring::helper::Helper;
use crate::io::ring::op::{Completion, Op};
use crate::io::ring::sockets::{Directions, Sockets};
use crate::io::ring::timers::Timers;
use crate::io::ring::uring::Ring;

/// Tasks that run between two looks at the ring.
const TURN_TASKS_MAX: usize = 512;
/// No further background task begins in a turn after this time.
const BACKGROUND_MAX: Duration = Duration::from_micros(50);
/// While there is other work, background tasks wait so long for their next time: a tenth of the executor is theirs.
const BACKGROUND_PAUSE: Duration = Duration::from_micros(450);
/// How long sockets and other threads may go unheard while a commit is on its way: a device that takes longer than this
/// must not make a reader wait for it.
const NAP_MAX: Duration = Duration::from_micros(500);
/// How long the end waits for what the kernel still has.
const END_WAIT: Duration = Duration::from_secs(5);

thread_local! {
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// Which task queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// As the foreground, but it can be called to the front ([`Core::hurry_commits`]).
    Commit,
    Foreground,
    Background,
}

/// What other threads know of an executor.
pub(super) struct Remote {
    woken: Mutex<Vec<(Urgency, Runnable)>>,
    /// There is something in `woken`.
    any_woken: AtomicBool,
    /// The main future has something to do.
    main_woken: AtomicBool,
    /// It waits in the kernel, or is about to.
    sleeping: AtomicBool,
    bell: OwnedFd,
}

impl Remote {
    fn new() -> io::Result<Self> {
        // SAFETY: plain system call.
        let bell = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if bell < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            woken: Mutex::default(),
            any_woken: AtomicBool::new(false),
            main_woken: AtomicBool::new(true),
            sleeping: AtomicBool::new(false),
            // SAFETY: a new descriptor that nobody else owns.
            bell: unsafe { OwnedFd::from_raw_fd(bell) },
        })
    }

    /// Ends its sleep. Call it after what it shall see was written.
    pub fn wake(&self) {
        // Pairs with the fence in `Core::sleep_unless`: either we see that it sleeps, or it sees what we wrote.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::SeqCst) {
            let one = 1u64;
            // SAFETY: eight bytes of a local. An error is only possible at 2^64 wakes.
            unsafe {
                libc::write(
                    self.bell.as_raw_fd(),
                    (&raw const one).cast(),
                    size_of::<u64>(),
                );
            }
        }
    }

    fn push(&self, urgency: Urgency, runnable: Runnable) {
        self.woken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((urgency, runnable));
        self.any_woken.store(true, Ordering::SeqCst);
        Remote::wake(self);
    }
}

/// Wakes the main future.
impl Wake for Remote {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.main_woken.store(true, Ordering::SeqCst);
        Remote::wake(self);
    }
}

/// Where messages from other executors arrive.
pub(super) trait Inbox {
    fn is_waiting(&self) -> bool;
    /// Hands over some of what waits.
    fn take(&self);
}

/// One executor.
pub struct Core {
    ring: RefCell<Ring>,
    pub(super) ops: RefCell<Slab<Op>>,
    pub(super) timers: Timers,
    foreground: RefCell<VecDeque<Runnable>>,
    commits_due: RefCell<VecDeque<Runnable>>,
    /// Tasks of the foreground that were there first when a task of `commits_due` was woken.
    before_commits: Cell<usize>,
    background: RefCell<VecDeque<Runnable>>,
    /// A waker of each task that has not ended, to find them all at the end.
    alive: RefCell<Slab<Waker>>,
    inboxes: RefCell<Vec<Rc<dyn Inbox>>>,
    remote: Arc<Remote>,
    pub(super) helper: Helper,
    pub(super) sockets: Sockets,
    /// The ring polls the set of sockets.
    listening: Cell<bool>,
    /// Commits that are on their way to the device.
    commits: Cell<u32>,
    /// The last one may not have been given to the kernel yet.
    commit_waits: Cell<bool>,
    /// When background tasks ran last.
    background_ended: Cell<Instant>,
    /// Nanoseconds that it has slept.
    idle_ns: Cell<u64>,
    completions: RefCell<Vec<cqueue::Entry>>,
}

/// Removes a task from `alive` when it ends or is dropped.
struct Alive {
    core: Rc<Core>,
    key: Rc<Cell<Option<usize>>>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let waker = self.core.alive.borrow_mut().try_remove(key);
            drop(waker);
        }
    }
}

impl Core {
    fn new(name: &str) -> io::Result<Rc<Self>> {
        let core = Rc::new(Self {
            ring: RefCell::new(Ring::new()?),
            ops: RefCell::default(),
            timers: Timers::default(),
            foreground: RefCell::default(),
            commits_due: RefCell::default(),
            before_commits: Cell::new(0),
            background: RefCell::default(),
            alive: RefCell::default(),
            inboxes: RefCell::default(),
            remote: Arc::new(Remote::new()?),
            helper: Helper::start(name)?,
            sockets: Sockets::new()?,
            listening: Cell::new(false),
            commits: Cell::new(0),
            commit_waits: Cell::new(false),
            background_ended: Cell::new(Instant::now()),
            idle_ns: Cell::new(0),
            completions: RefCell::default(),
        });
        Ok(core)
    }

    /// The executor of this thread. Panics where there is none: our own bug.
    pub(super) fn current() -> Rc<Self> {
        let Some(core) = Self::try_current() else {
            panic!("this thread runs no executor");
        };
        core
    }

    /// The executor of this thread, if it runs one.
    pub(super) fn try_current() -> Option<Rc<Self>> {
        CURRENT
            .try_with(|current| current.borrow().clone())
            .ok()
            .flatten()
    }

    pub(super) fn remote(&self) -> Arc<Remote> {
        self.remote.clone()
    }

    pub(super) fn add_inbox(&self, inbox: Rc<dyn Inbox>) {
        self.inboxes.borrow_mut().push(inbox);
    }

    /// Runs a task until it ends or the executor does.
    pub(super) fn spawn(
        self: &Rc<Self>,
        urgency: Urgency,
        task: impl Future<Output = ()> + 'static,
    ) {
        let key = Rc::new(Cell::new(None));
        let alive = Alive {
            core: self.clone(),
            key: key.clone(),
        };
        let remote = self.remote.clone();
        let (runnable, task) = async_task::spawn_local(
            async move {
                let _alive = alive;
                task.await;
            },
            move |runnable| schedule(&remote, urgency, runnable),
        );
        key.set(Some(self.alive.borrow_mut().insert(runnable.waker())));
        runnable.schedule();
        task.detach();
    }

    fn queue(&self, urgency: Urgency) -> &RefCell<VecDeque<Runnable>> {
        match urgency {
            Urgency::Commit => &self.commits_due,
            Urgency::Foreground => &self.foreground,
            Urgency::Background => &self.background,
        }
    }

    /// Gives an entry to the ring and its result to whoever awaits the future.
    ///
    /// # Safety
    /// `held` owns all memory and descriptors that `entry` names, at addresses that do not change.
    pub(super) unsafe fn submit(
        self: &Rc<Self>,
        entry: squeue::Entry,
        held: Box<dyn Any>,
    ) -> Completion {
        let mut ops = self.ops.borrow_mut();
        let key = ops.insert(Op::Waiting { waker: None, held });
        let entry = entry.user_data(key as u64);
        // SAFETY: `held` stays in the table of entries until the completion.
        if let Err(error) = unsafe { self.ring.borrow_mut().push(&entry) } {
            ops[key] = Op::Done(-error.raw_os_error().unwrap_or(libc::EIO));
        }
        drop(ops);
        Completion::new(self.clone(), key)
    }

    /// A commit goes to the device, or has come back. See [`Core::wait`].
    pub(super) fn count_commit(&self, under_way: bool) {
        let commits = self.commits.get();
        self.commits.set(if under_way {
            commits + 1
        } else {
            commits.saturating_sub(1)
        });
        self.commit_waits.set(under_way);
    }

    /// Whether other tasks of the foreground wait for their turn.
    pub(super) fn is_busy(&self) -> bool {
        !self.foreground.borrow().is_empty()
    }

    /// Tasks that commit go next, before those that were woken before them.
    pub(super) fn hurry_commits(&self) {
        self.before_commits.set(0);
    }

    fn wake_task(&self, urgency: Urgency, runnable: Runnable) {
        let mut queue = self.queue(urgency).borrow_mut();
        if urgency == Urgency::Commit && queue.is_empty() {
            self.before_commits.set(self.foreground.borrow().len());
        }
        queue.push_back(runnable);
    }

    /// The task of the foreground, or of the commits, whose turn it is.
    fn next_task(&self) -> Option<Runnable> {
        let before = self.before_commits.get();
        if (before == 0 || !self.is_busy())
            && let Some(commit) = self.commits_due.borrow_mut().pop_front()
        {
            return Some(commit);
        }
        self.before_commits.set(before.saturating_sub(1));
        self.foreground.borrow_mut().pop_front()
    }

    /// Lets sockets wake the executor, once.
    fn listen(&self) {
        if self.listening.get() {
            return;
        }
        let mut ops = self.ops.borrow_mut();
        let key = ops.insert(Op::Sockets);
        let entry = opcode::PollAdd::new(types::Fd(self.sockets.as_raw_fd()), libc::POLLIN as u32)
            .build()
            .user_data(key as u64);
        // SAFETY: a poll names no memory, and the set lives as long as the ring.
        match unsafe { self.ring.borrow_mut().push(&entry) } {
            Ok(()) => self.listening.set(true),
            Err(error) => {
                // The next turn tries again; until then it looks by itself.
                tracing::error!(%error, "sockets cannot be watched");
                ops.remove(key);
            }
        }
    }

    fn complete(&self, entry: &cqueue::Entry) {
        let key = entry.user_data() as usize;
        let mut ops = self.ops.borrow_mut();
        let Some(op) = ops.get_mut(key) else { return };
        match op {
            Op::Waiting { .. } => {
                let Op::Waiting { waker, held } = std::mem::replace(op, Op::Done(entry.result()))
                else {
                    return;
                };
                drop(ops);
                drop(held);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Op::Abandoned { .. } => {
                let op = ops.remove(key);
                drop(ops);
                drop(op);
            }
            Op::Sockets => {
                ops.remove(key);
                self.listening.set(false);
            }
            Op::Done(_) => {}
        }
    }

    /// One call into the kernel, and everything that it completes.
    fn enter(&self, wait: Option<Duration>) {
        let mut completions = self.completions.take();
        {
            let mut ring = self.ring.borrow_mut();
            if let Err(error) = ring.enter(wait) {
                // Nothing can be done without the ring; the process must not spin silently.
                panic!("io_uring_enter: {error}");
            }
            ring.take(&mut completions);
        }
        for entry in completions.drain(..) {
            self.complete(&entry);
        }
        if self.commits.get() > 0 {
            // What has come back from the device is answered, and the next commit begun, before more is read.
            self.hurry_commits();
        }
        self.completions.replace(completions);
        // While the ring polls the set and has not told of it, there is nothing to see.
        if !self.listening.get() {
            self.sockets.look();
        }
    }

    fn take_inboxes(&self) {
        let mut at = 0;
        loop {
            // The borrow ends before the messages are handled.
            let inbox = self.inboxes.borrow().get(at).cloned();
            let Some(inbox) = inbox else { return };
            if inbox.is_waiting() {
                inbox.take();
            }
            at += 1;
        }
    }

    fn take_woken(&self) {
        if !self.remote.any_woken.load(Ordering::Acquire) {
            return;
        }
        self.remote.any_woken.store(false, Ordering::SeqCst);
        let woken = std::mem::take(
            &mut *self
                .remote
                .woken
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for (urgency, runnable) in woken {
            self.wake_task(urgency, runnable);
        }
    }

    fn run_tasks(&self) {
        for _ in 0..TURN_TASKS_MAX {
            let Some(runnable) = self.next_task() else {
                break;
            };
            runnable.run();
            if self.commit_waits.take() && !self.foreground.borrow().is_empty() {
                // The device works while the answers of the commit before are written.
                self.ring.borrow_mut().submit();
            }
            if self.commits.get() > 0 && self.ring.borrow_mut().has_completed() {
                break;
            }
        }
        if !self.background.borrow().is_empty()
            && (self.foreground.borrow().is_empty()
                || self.background_ended.get().elapsed() > BACKGROUND_PAUSE)
        {
            self.run_background();
        }
    }

    fn run_background(&self) {
        let begun = Instant::now();
        let mut now = begun;
        while now.duration_since(begun) < BACKGROUND_MAX {
            let runnable = self.background.borrow_mut().pop_front();
            let Some(runnable) = runnable else { break };
            runnable.run();
            now = Instant::now();
        }
        self.background_ended.set(now);
        if self.commits.get() > 0 {
            // The kernel's worker that ends a flushed write may be waiting for this processor, and would have to for some
            // milliseconds: a slice of its scheduler.
            thread::yield_now();
        }
    }

    fn has_work(&self) -> bool {
        !self.foreground.borrow().is_empty()
            || !self.commits_due.borrow().is_empty()
            || !self.background.borrow().is_empty()
            || self.remote.any_woken.load(Ordering::SeqCst)
            || self.remote.main_woken.load(Ordering::SeqCst)
            || self.inboxes.borrow().iter().any(|inbox| inbox.is_waiting())
    }

    /// Time in which nothing was to do, in nanoseconds.
    pub(super) fn idle_ns(&self) -> u64 {
        self.idle_ns.get()
    }

    /// [`Core::enter`] with nothing to do before something happens.
    fn idle(&self, wait: Option<Duration>) {
        let from = Instant::now();
        self.enter(wait);
        let idle_ns = from.elapsed().as_nanos() as u64;
        self.idle_ns.set(self.idle_ns.get() + idle_ns);
    }

    /// The end of a turn: on to the next one, or to sleep until something happens.
    ///
    /// While a commit is on its way the sleep is a nap: only the ring ends it, or [`NAP_MAX`]. A request that comes
    /// meanwhile would wait for the end of that commit anyway; so a busy log costs one wake per commit and not one per
    /// request, and all answers of a commit leave before the next requests are read.
    fn wait(&self) {
        if self.has_work() {
            return self.enter(Some(Duration::ZERO));
        }
        if self.commits.get() > 0 {
            let wait = self
                .timers
                .next_in()
                .map_or(NAP_MAX, |due| due.min(NAP_MAX));
            return self.idle(Some(wait));
        }
        self.listen();
        self.remote.sleeping.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let wait = if self.has_work() {
            Some(Duration::ZERO)
        } else {
            self.timers.next_in()
        };
        self.idle(wait);
        self.remote.sleeping.store(false, Ordering::SeqCst);
    }

    fn turn(&self) {
        self.take_woken();
        self.take_inboxes();
        self.run_tasks();
        if !self.timers.is_empty() {
            self.timers.fire(Instant::now());
        }
    }

    /// Drops all tasks and waits until the kernel uses none of our memory.
    fn end(self: &Rc<Self>) {
        self.inboxes.take();
        loop {
            let alive: Vec<Waker> = self.alive.borrow_mut().drain().collect();
            for waker in alive {
                waker.wake();
            }
            self.take_woken();
            let mut dropped = false;
            for urgency in [Urgency::Commit, Urgency::Foreground, Urgency::Background] {
                loop {
                    let runnable = self.queue(urgency).borrow_mut().pop_front();
                    let Some(runnable) = runnable else { break };
                    dropped = true;
                    drop(runnable);
                }
            }
            if !dropped && self.alive.borrow().is_empty() {
                break;
            }
        }
        let begun = Instant::now();
        // A poll of the set names no memory of ours; the ring takes it along.
        let in_kernel = |op: &Op| !matches!(op, Op::Done(_) | Op::Sockets);
        while self.ops.borrow().iter().any(|(_, op)| in_kernel(op)) {
            if begun.elapsed() > END_WAIT {
                // Memory that the kernel may still write to must not be used again.
                std::mem::forget(self.ops.take());
                break;
            }
            self.enter(Some(Duration::from_millis(100)));
        }
    }
}

fn schedule(remote: &Arc<Remote>, urgency: Urgency, runnable: Runnable) {
    let mut runnable = Some(runnable);
    // A thread that ends has no executor any more.
    let _ = CURRENT.try_with(|current| {
        if let Some(core) = &*current.borrow()
            && Arc::ptr_eq(&core.remote, remote)
            && let Some(runnable) = runnable.take()
        {
            core.wake_task(urgency, runnable);
        }
    });
    if let Some(runnable) = runnable {
        remote.push(urgency, runnable);
    }
}

/// Where an executor runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    Unbound,
    /// On this processor only.
    Fixed(usize),
}

/// Starts executors.
pub struct Executor;

impl Executor {
    /// Runs `main` on this thread, and all that it spawns until it ends. Errors: there is no io_uring.
    pub fn run<F: Future>(name: &str, main: impl FnOnce() -> F) -> io::Result<F::Output> {
        let core = Core::new(name)?;
        let outer = CURRENT.replace(Some(core.clone()));
        assert!(outer.is_none(), "an executor inside of another one");
        // Its edge is all that is needed: nobody reads the count.
        core.sockets
            .add(core.remote.bell.as_raw_fd(), Directions::new())?;
        let value = {
            let waker = Waker::from(core.remote.clone());
            let mut cx = Context::from_waker(&waker);
            let mut main = pin!(main());
            loop {
                if core.remote.main_woken.swap(false, Ordering::SeqCst)
                    && let Poll::Ready(value) = main.as_mut().poll(&mut cx)
                {
                    break value;
                }
                core.turn();
                core.wait();
            }
        };
        core.end();
        CURRENT.take();
        Ok(value)
    }

    /// The same on a thread of its own, which has the name.
    pub fn spawn<T, F>(
        name: &str,
        placement: Placement,
        main: impl FnOnce() -> F + Send + 'static,
    ) -> io::Result<JoinHandle<io::Result<T>>>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let own = name.to_owned();
        thread::Builder::new().name(own.clone()).spawn(move || {
            if let Placement::Fixed(processor) = placement {
                pin(processor)?;
            }
            Self::run(&own, main)
        })
    }
}

/// Binds the calling thread, and those it starts, to one processor.
fn pin(processor: usize) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: an all-zero set is valid and empty; CPU_SET checks nothing, so the bound is checked here.
    let result = unsafe {
        if processor >= libc::CPU_SETSIZE as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        libc::CPU_SET(processor, set.assume_init_mut());
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set.as_ptr())
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
