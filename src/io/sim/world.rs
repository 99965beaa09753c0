//! The simulated world: executor, virtual clock, machines, crashes.
//!
//! One thread runs everything. The seed decides which runnable task is polled next, how long each poll and each disk
//! operation takes and what fails. Virtual time moves a little with each poll and jumps to the next timer when nothing
//! is runnable. A machine's tasks die with it, at whatever await they have reached; its disk stays.
//! [`SimWorld`] owns the world and frees it; [`Control`] is a handle that tasks may keep.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Deref;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::io::sim::disk::{Disk, Op, Output};
use crate::io::sim::env::SimEnv;
use crate::io::sim::faults::{DiskOptions, Errno, OpKind};

/// Number of a machine, 0-based.
pub type NodeId = usize;
type TaskId = u64;

/// The future that [`Control::block_on`] drives.
const MAIN: TaskId = 0;
/// Of how many picks a background task gets one while foreground tasks are runnable.
const BACKGROUND_PICKS: u32 = 16;
/// Virtual time of one poll, in nanoseconds.
const POLL_NS: std::ops::Range<u64> = 100..3_000;
/// 2023-11-14T22:13:20Z, the wall clock at the start of every world.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// How a machine dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// kill -9: completed writes stay, flushed or not; those in flight happen, happen in part, or do not.
    Process,
    /// Loss of power: only what was flushed is sure to stay.
    Power,
}

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Machines at the start; [`Control::add_node`] makes more.
    pub nodes: usize,
    /// Of every machine at its start; see [`Control::with_disk`] for changes.
    pub disk: DiskOptions,
    /// Polls and events after which a run counts as stalled.
    pub steps_max: u64,
    /// Prints every event.
    pub trace: bool,
    /// Greatest difference of a machine's wall clock from the world's, in milliseconds, either way.
    pub wall_skew_max_ms: u64,
    /// A machine's wall clock jumps by up to `wall_skew_max_ms` at random moments about this far apart.
    pub wall_jump_every: Option<Duration>,
    /// Memory for reads is never there before it is needed.
    pub memory_is_slow: bool,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            nodes: 1,
            disk: DiskOptions::default(),
            steps_max: 10_000_000,
            trace: false,
            wall_skew_max_ms: 0,
            wall_jump_every: None,
            memory_is_slow: false,
        }
    }
}

/// Why a world went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stalled {
    #[error("nothing is runnable and no timer is set: a deadlock")]
    Deadlock,
    #[error("{0} steps were taken, which is the limit")]
    StepLimit(u64),
}

#[derive(Default)]
struct Ready {
    foreground: Vec<TaskId>,
    background: Vec<TaskId>,
}

struct TaskWaker {
    id: TaskId,
    background: bool,
    queued: AtomicBool,
    ready: Arc<Mutex<Ready>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            let mut ready = lock(&self.ready);
            if self.background {
                ready.background.push(self.id);
            } else {
                ready.foreground.push(self.id);
            }
        }
    }
}

/// The lock is there because a `Waker` has to be `Send`; one thread only ever takes it.
fn lock(ready: &Mutex<Ready>) -> MutexGuard<'_, Ready> {
    ready.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Task {
    /// Machine and incarnation; `None` lives as long as the world.
    home: Option<(NodeId, u32)>,
    waker: Arc<TaskWaker>,
    /// Absent while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

/// Where an operation leaves its result.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) result: Option<std::io::Result<Output>>,
    pub(super) waker: Option<Waker>,
}

struct InFlight {
    op: Op,
    fault: Option<Errno>,
    slot: Rc<RefCell<Slot>>,
}

enum Event {
    Wake(Waker),
    Disk { node: NodeId, id: u64 },
}

struct Node {
    disk: Disk,
    /// In the order in which they were submitted.
    in_flight: BTreeMap<u64, InFlight>,
    incarnation: u32,
    up: bool,
    skew_ms: i64,
    next_jump_ns: u64,
    /// None of its tasks runs before.
    paused_until_ns: u64,
}

struct State {
    options: SimOptions,
    random: fastrand::Rng,
    now_ns: u64,
    /// The same, for who may not hold the world.
    clock: Arc<AtomicU64>,
    steps: u64,
    hash: u64,
    next_id: u64,
    nodes: Vec<Node>,
    tasks: BTreeMap<TaskId, Task>,
    /// By time in nanoseconds and a serial.
    events: BTreeMap<(u64, u64), Event>,
    /// Futures that wait for a number of steps.
    step_waiters: BTreeMap<(u64, u64), Waker>,
    closed: bool,
}

impl State {
    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn trace(&mut self, what: &str, numbers: [u64; 3]) {
        let mut hash = self.hash ^ u64::from(crc32c::crc32c(what.as_bytes()));
        for number in [self.now_ns].into_iter().chain(numbers) {
            hash = (hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 29;
        }
        self.hash = hash;
        if self.options.trace {
            let [a, b, c] = numbers;
            eprintln!("{:>14} {what} {a:x} {b:x} {c:x}", self.now_ns);
        }
    }

    fn add_node(&mut self) -> NodeId {
        let max = self.options.wall_skew_max_ms as i64;
        let skew_ms = if max == 0 {
            0
        } else {
            self.random.i64(-max..=max)
        };
        self.nodes.push(Node {
            disk: Disk::new(self.options.disk.clone()),
            in_flight: BTreeMap::new(),
            incarnation: 0,
            up: true,
            skew_ms,
            next_jump_ns: 0,
            paused_until_ns: 0,
        });
        let node = self.nodes.len() - 1;
        self.plan_jump(node);
        node
    }

    fn plan_jump(&mut self, node: NodeId) {
        self.nodes[node].next_jump_ns = match self.options.wall_jump_every {
            Some(every) => self.now_ns + self.random.u64(0..=2 * every.as_nanos() as u64),
            None => u64::MAX,
        };
    }

    /// Moves time and gives what has to be woken for it.
    fn advance_to(&mut self, now_ns: u64) -> Vec<Waker> {
        self.now_ns = self.now_ns.max(now_ns);
        self.clock.store(self.now_ns, Ordering::Relaxed);
        let mut woken = Vec::new();
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > self.now_ns {
                break;
            }
            match entry.remove() {
                Event::Wake(waker) => woken.push(waker),
                Event::Disk { node, id } => woken.extend(self.complete(node, id)),
            }
        }
        while let Some(entry) = self.step_waiters.first_entry() {
            if entry.key().0 > self.steps {
                break;
            }
            woken.push(entry.remove());
        }
        woken
    }

    fn complete(&mut self, node: NodeId, id: u64) -> Option<Waker> {
        let machine = &mut self.nodes[node];
        let InFlight { op, fault, slot } = machine.in_flight.remove(&id)?;
        let kind = op.kind();
        let result = match fault {
            Some(errno) => Err(machine.disk.fail(&mut self.random, op, errno)),
            None => machine.disk.perform(&mut self.random, op),
        };
        self.trace("done", [id, kind as u64, u64::from(result.is_err())]);
        let mut slot = slot.borrow_mut();
        slot.result = Some(result);
        slot.waker.take()
    }

    fn submit(&mut self, node: NodeId, op: Op) -> Rc<RefCell<Slot>> {
        let id = self.take_id();
        let kind = op.kind();
        let (a, b) = op.digest();
        self.trace(kind.name(), [id, a, b]);
        let State { nodes, random, .. } = self;
        let machine = &mut nodes[node];
        let fault = machine.disk.submit(random, kind);
        let latency = &machine.disk.options.latency;
        let mut duration_ns = match kind {
            OpKind::Write | OpKind::Read => random.u64(latency.data_ns.clone()),
            OpKind::Sync | OpKind::SyncDir => random.u64(latency.flush_ns.clone()),
            _ => random.u64(latency.metadata_ns.clone()),
        };
        if matches!(op, Op::Write { flush: true, .. }) {
            duration_ns += random.u64(latency.flush_ns.clone());
        }
        if latency.spikes_per_million > 0 && random.u32(..1_000_000) < latency.spikes_per_million {
            duration_ns += random.u64(0..=latency.spike_max.as_nanos() as u64);
        }
        let slot = Rc::new(RefCell::new(Slot::default()));
        machine.in_flight.insert(
            id,
            InFlight {
                op,
                fault,
                slot: slot.clone(),
            },
        );
        self.events
            .insert((self.now_ns + duration_ns, id), Event::Disk { node, id });
        slot
    }
}

pub(super) struct Inner {
    state: RefCell<State>,
    ready: Arc<Mutex<Ready>>,
    main_is_running: Cell<bool>,
}

/// A handle to a world.
#[derive(Clone)]
pub struct Control(Rc<Inner>);

/// A world and all that runs in it; both end when this is dropped.
pub struct SimWorld(Control);

impl SimWorld {
    /// A world that is wholly determined by the seed, the options and the code that runs in it.
    pub fn new(seed: u64, options: SimOptions) -> Self {
        let nodes = options.nodes;
        let mut state = State {
            random: fastrand::Rng::with_seed(seed),
            now_ns: 0,
            clock: Arc::default(),
            steps: 0,
            hash: seed,
            next_id: MAIN,
            nodes: Vec::new(),
            tasks: BTreeMap::new(),
            events: BTreeMap::new(),
            step_waiters: BTreeMap::new(),
            closed: false,
            options,
        };
        for _ in 0..nodes {
            state.add_node();
        }
        Self(Control(Rc::new(Inner {
            state: RefCell::new(state),
            ready: Arc::default(),
            main_is_running: Cell::new(false),
        })))
    }
}

impl Deref for SimWorld {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.0
    }
}

impl Drop for SimWorld {
    fn drop(&mut self) {
        // Tasks hold handles to the world, and the world holds the tasks.
        let mut state = self.0.0.state.borrow_mut();
        state.closed = true;
        let tasks = std::mem::take(&mut state.tasks);
        let events = std::mem::take(&mut state.events);
        let waiters = std::mem::take(&mut state.step_waiters);
        // A handle that is leaked must not keep whole disks.
        for node in &mut state.nodes {
            node.disk = Disk::new(DiskOptions::default());
            node.in_flight.clear();
        }
        drop(state);
        drop((tasks, events, waiters));
    }
}

impl Control {
    /// Another machine.
    pub fn add_node(&self) -> NodeId {
        self.0.state.borrow_mut().add_node()
    }

    /// A core of machine 0.
    pub fn env(&self) -> SimEnv {
        self.core(0)
    }

    /// A core of a machine that runs. All cores of a machine share its disk and its clock and die together.
    pub fn core(&self, node: NodeId) -> SimEnv {
        let state = self.0.state.borrow();
        let machine = &state.nodes[node];
        assert!(machine.up, "machine {node} is down: restart it first");
        SimEnv::new(self.clone(), node, machine.incarnation)
    }

    /// Ends a machine at once: its tasks are dropped wherever they are, what was volatile is decided. Its old
    /// handles are dead: nothing that is asked of them happens or ends.
    pub fn crash(&self, node: NodeId, crash: Crash) {
        let mut state = self.0.state.borrow_mut();
        state.trace("crash", [node as u64, crash as u64, 0]);
        let State { nodes, random, .. } = &mut *state;
        let machine = &mut nodes[node];
        if !machine.up {
            // The process is gone already; the power still may go.
            if crash == Crash::Power {
                machine.disk.lose_power(random, Vec::new());
            }
            return;
        }
        machine.up = false;
        machine.incarnation += 1;
        machine.paused_until_ns = 0;
        let (ops, slots): (Vec<_>, Vec<_>) = std::mem::take(&mut machine.in_flight)
            .into_values()
            .map(|flight| (flight.op, flight.slot))
            .unzip();
        match crash {
            Crash::Process => machine.disk.lose_process(random, ops),
            Crash::Power => machine.disk.lose_power(random, ops),
        }
        let dead: Vec<TaskId> = state
            .tasks
            .iter()
            .filter(|(_, task)| task.home.is_some_and(|(home, _)| home == node))
            .map(|(id, _)| *id)
            .collect();
        let dropped: Vec<Option<Task>> = dead.iter().map(|id| state.tasks.remove(id)).collect();
        drop(state);
        // Destructors may ask the world for something.
        drop((dropped, slots));
    }

    /// Starts a crashed machine: a fresh process on the disk as the crash left it.
    pub fn restart(&self, node: NodeId) -> SimEnv {
        let mut state = self.0.state.borrow_mut();
        state.trace("restart", [node as u64, 0, 0]);
        let machine = &mut state.nodes[node];
        assert!(!machine.up, "machine {node} runs: crash it first");
        machine.up = true;
        drop(state);
        self.core(node)
    }

    /// Stops a machine for a time, as SIGSTOP or a busy hypervisor does: its clock and its disk go on, its tasks do not.
    pub fn pause(&self, node: NodeId, duration: Duration) {
        let mut state = self.0.state.borrow_mut();
        let until_ns = state.now_ns.saturating_add(duration.as_nanos() as u64);
        state.trace("pause", [node as u64, until_ns, 0]);
        state.nodes[node].paused_until_ns = until_ns;
    }

    /// Whether [`Control::pause`] holds a machine at the moment.
    pub fn is_paused(&self, node: NodeId) -> bool {
        let state = self.0.state.borrow();
        state.now_ns < state.nodes[node].paused_until_ns
    }

    /// Looks at a machine's disk, or changes it.
    pub fn with_disk<T>(&self, node: NodeId, look: impl FnOnce(&mut Disk) -> T) -> T {
        look(&mut self.0.state.borrow_mut().nodes[node].disk)
    }

    /// Moves a machine's wall clock.
    pub fn jump_clock(&self, node: NodeId, by_ms: i64) {
        self.0.state.borrow_mut().nodes[node].skew_ms += by_ms;
    }

    /// Runs a task that belongs to no machine: a client, an observer.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawn_at(None, false, Box::pin(task));
    }

    /// Completes after a time, on no machine.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        Sleep {
            control: self.clone(),
            home: None,
            deadline_ns: self.now_ns().saturating_add(duration.as_nanos() as u64),
            key: None,
        }
    }

    /// Completes when so many more steps were taken (or nothing else could go on): a crash at any await.
    pub fn after_steps(&self, steps: u64) -> AfterSteps {
        AfterSteps {
            control: self.clone(),
            at: self.steps() + steps,
            key: None,
        }
    }

    /// Virtual time since the world began, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        self.0.state.borrow().now_ns
    }

    /// The same as a clock that may go to other threads.
    pub fn clock(&self) -> Arc<AtomicU64> {
        self.0.state.borrow().clock.clone()
    }

    /// Polls and events so far.
    pub fn steps(&self) -> u64 {
        self.0.state.borrow().steps
    }

    /// Digest of everything that happened so far.
    pub fn trace_hash(&self) -> u64 {
        self.0.state.borrow().hash
    }

    /// Puts something of the caller's into the trace.
    pub fn note(&self, what: &str, number: u64) {
        self.0.state.borrow_mut().trace(what, [number, 0, 0]);
    }

    pub(super) fn memory_is_slow(&self) -> bool {
        self.0.state.borrow().options.memory_is_slow
    }

    /// A random number of the world's seed.
    pub fn random_u64(&self) -> u64 {
        self.0.state.borrow_mut().random.u64(..)
    }

    /// Runs a future to its end, and everything else meanwhile. Panics if the world stalls.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self.try_block_on(future) {
            Ok(output) => output,
            Err(stalled) => panic!("the simulated world stalled: {stalled}"),
        }
    }

    /// Runs a future to its end, and everything else meanwhile.
    pub fn try_block_on<F: Future>(&self, future: F) -> Result<F::Output, Stalled> {
        assert!(
            !self.0.main_is_running.replace(true),
            "one future is driven at a time"
        );
        // A panic of a task leaves through here; the world may be looked at afterwards.
        struct Running<'a>(&'a Cell<bool>);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.set(false);
            }
        }
        let _running = Running(&self.0.main_is_running);
        let waker = self.task_waker(MAIN, false);
        let context_waker = Waker::from(waker.clone());
        let mut context = Context::from_waker(&context_waker);
        let mut future = pin!(future);
        context_waker.wake_by_ref();
        loop {
            match self.next()? {
                Some(MAIN) => {
                    waker.queued.store(false, Ordering::Relaxed);
                    if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                        return Ok(output);
                    }
                }
                Some(id) => self.poll(id),
                None => return Err(Stalled::Deadlock),
            }
        }
    }

    /// Runs everything for a span of virtual time.
    pub fn run_for(&self, duration: Duration) {
        self.block_on(self.sleep(duration));
    }

    /// Runs everything until a condition holds; it is asked after each step.
    pub fn run_until(&self, mut condition: impl FnMut() -> bool) -> Result<(), Stalled> {
        while !condition() {
            match self.next()? {
                Some(id) => self.poll(id),
                None => return Err(Stalled::Deadlock),
            }
        }
        Ok(())
    }

    /// The next task to poll, after moving time; `None` if there will never be one.
    fn next(&self) -> Result<Option<TaskId>, Stalled> {
        loop {
            let mut state = self.0.state.borrow_mut();
            state.steps += 1;
            if state.steps > state.options.steps_max {
                return Err(Stalled::StepLimit(state.options.steps_max));
            }
            let now_ns = state.now_ns + state.random.u64(POLL_NS);
            let woken = state.advance_to(now_ns);
            drop(state);
            woken.into_iter().for_each(Waker::wake);

            let mut state = self.0.state.borrow_mut();
            let mut ready = lock(&self.0.ready);
            let Ready {
                foreground,
                background,
            } = &mut *ready;
            let queue = match (foreground.is_empty(), background.is_empty()) {
                (false, true) => foreground,
                (true, false) => background,
                (false, false) if state.random.u32(..BACKGROUND_PICKS) == 0 => background,
                (false, false) => foreground,
                (true, true) => {
                    drop(ready);
                    let next_ns = state.events.first_key_value().map(|(key, _)| key.0);
                    let woken = match next_ns {
                        Some(next_ns) => state.advance_to(next_ns),
                        // Nothing else can go on: the step that someone waits for comes now.
                        None => match state.step_waiters.pop_first() {
                            Some((_, waker)) => vec![waker],
                            None => return Ok(None),
                        },
                    };
                    drop(state);
                    woken.into_iter().for_each(Waker::wake);
                    continue;
                }
            };
            let picked = state.random.usize(..queue.len());
            let id = queue.swap_remove(picked);
            drop(ready);
            state.trace("poll", [id, 0, 0]);
            return Ok(Some(id));
        }
    }

    fn poll(&self, id: TaskId) {
        let mut state = self.0.state.borrow_mut();
        let now_ns = state.now_ns;
        let home = state.tasks.get(&id).and_then(|task| task.home);
        let paused_until_ns = home.map_or(0, |(node, _)| state.nodes[node].paused_until_ns);
        let Some(task) = state.tasks.get_mut(&id) else {
            return;
        };
        if now_ns < paused_until_ns {
            let waker = task.waker.clone();
            waker.queued.store(false, Ordering::Relaxed);
            let key = (paused_until_ns, state.take_id());
            state.events.insert(key, Event::Wake(Waker::from(waker)));
            return;
        }
        let Some(mut future) = task.future.take() else {
            return;
        };
        let waker = task.waker.clone();
        drop(state);
        waker.queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(waker);
        let done = future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready();
        let mut state = self.0.state.borrow_mut();
        let ended = if done {
            state.tasks.remove(&id)
        } else if let Some(task) = state.tasks.get_mut(&id) {
            task.future = Some(future);
            return;
        } else {
            None
        };
        drop(state);
        drop((future, ended));
    }

    fn task_waker(&self, id: TaskId, background: bool) -> Arc<TaskWaker> {
        Arc::new(TaskWaker {
            id,
            background,
            queued: AtomicBool::new(false),
            ready: self.0.ready.clone(),
        })
    }

    /// Whether a handle of this incarnation still belongs to a running process.
    pub(super) fn is_alive(&self, node: NodeId, incarnation: u32) -> bool {
        let state = self.0.state.borrow();
        !state.closed && state.nodes[node].up && state.nodes[node].incarnation == incarnation
    }

    pub(super) fn spawn_at(
        &self,
        home: Option<(NodeId, u32)>,
        background: bool,
        future: Pin<Box<dyn Future<Output = ()>>>,
    ) {
        let mut state = self.0.state.borrow_mut();
        if state.closed {
            drop(state);
            drop(future);
            return;
        }
        let id = state.take_id();
        let waker = self.task_waker(id, background);
        state.tasks.insert(
            id,
            Task {
                home,
                waker: waker.clone(),
                future: Some(future),
            },
        );
        drop(state);
        waker.wake_by_ref();
    }

    pub(super) fn submit(&self, node: NodeId, op: Op) -> Rc<RefCell<Slot>> {
        self.0.state.borrow_mut().submit(node, op)
    }

    pub(super) fn wall_ms(&self, node: NodeId) -> u64 {
        let mut state = self.0.state.borrow_mut();
        if state.now_ns >= state.nodes[node].next_jump_ns {
            let max = state.options.wall_skew_max_ms as i64;
            state.nodes[node].skew_ms = state.random.i64(-max..=max);
            state.plan_jump(node);
        }
        (EPOCH_MS + state.now_ns / 1_000_000).saturating_add_signed(state.nodes[node].skew_ms)
    }

    pub(super) fn sleep_on(&self, node: NodeId, incarnation: u32, duration: Duration) -> Sleep {
        let mut sleep = self.sleep(duration);
        sleep.home = Some((node, incarnation));
        sleep
    }
}

/// See [`Control::sleep`].
pub struct Sleep {
    control: Control,
    home: Option<(NodeId, u32)>,
    deadline_ns: u64,
    key: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some((node, incarnation)) = self.home
            && !self.control.is_alive(node, incarnation)
        {
            return Poll::Pending;
        }
        let mut state = self.control.0.state.borrow_mut();
        if state.now_ns >= self.deadline_ns {
            return Poll::Ready(());
        }
        let key = self
            .key
            .unwrap_or_else(|| (self.deadline_ns, state.take_id()));
        let old = state
            .events
            .insert(key, Event::Wake(context.waker().clone()));
        drop(state);
        drop(old);
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let event = self.control.0.state.borrow_mut().events.remove(&key);
            drop(event);
        }
    }
}

/// See [`Control::after_steps`].
pub struct AfterSteps {
    control: Control,
    at: u64,
    key: Option<(u64, u64)>,
}

impl Future for AfterSteps {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.control.0.state.borrow_mut();
        let old = match self.key {
            None if state.steps >= self.at => return Poll::Ready(()),
            // Taken out by the executor: the step has come, or nothing else could go on.
            Some(key) if !state.step_waiters.contains_key(&key) => return Poll::Ready(()),
            key => {
                let key = key.unwrap_or_else(|| (self.at, state.take_id()));
                let old = state.step_waiters.insert(key, context.waker().clone());
                drop(state);
                self.key = Some(key);
                old
            }
        };
        drop(old);
        Poll::Pending
    }
}

impl Drop for AfterSteps {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.control.0.state.borrow_mut().step_waiters.remove(&key);
            drop(waker);
        }
    }
}
