//! POP consumers: the owner of a queue gives its messages out one by one and remembers who has not acknowledged them.
//!
//! Each group and queue has a [`PopQueue`] here, made of what the log says at its first use and changed with each record
//! that is appended for it. Invariants: a message is in flight before it is given out, and durably so before the answer
//! leaves; an acknowledgement that was answered is durable; one request at a time takes from a queue of a group, others
//! pass it by. A hidden message is given out again from its own queue when its time is over: nothing is copied.

pub mod hold;
pub mod message;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use smallvec::SmallVec;

use crate::base::limits::{
    POP_IN_FLIGHT_MAX, PULL_BYTES_MAX, PULL_SCAN_BYTES_MAX, PULL_SCAN_ENTRIES_MAX,
};
use crate::base::notify::Notify;
use crate::io::aligned_buf::{PageBuf, PageSlice};
use crate::io::body::Body;
use crate::io::env::Env;
use crate::shard::core::{ReplyTo, Shard};
use crate::shard::message::{LocalReply, MessageFilter, QueueKey, Refusal};
use crate::shard::pull::{read_refusal, run_or_spawn, wanted};
use crate::store::CommitLog;
use crate::store::control::Control;
use crate::store::tables::pop::{InFlight, PopQueue};
use crate::store::types::QueueBounds;
use crate::wire::record::{RecordFields, RecordView};
use hold::{PopHold, Waiter};
use message::{
    Dead, PopAck, PopChange, PopPart, PopReply, PopRequest, PopSource, PopTake, PopWait, Receipt,
    Taken, TakenQueue,
};

/// Time in which a message that failed too often has to be put elsewhere before somebody else tries.
const BURIAL_MS: u64 = 30_000;
/// The wall clock may jump: it is looked at this often while somebody waits for a hidden message.
const CLOCK_CHECK_MS: u64 = 1_000;

/// A queue of a group as this core has it.
struct Live {
    queue: PopQueue,
    /// Somebody takes from it.
    busy: bool,
    /// One more each time somebody sets the group's offset.
    generation: u64,
    /// Who has the messages in flight, of an orderly group.
    attempt: Option<Arc<str>>,
    /// The log knows where the group began.
    recorded: bool,
}

impl Live {
    /// Whether an orderly group has to wait for messages in flight.
    fn is_blocked(&self, now_ms: u64) -> bool {
        self.queue
            .in_flight()
            .any(|(_, state)| state.visible_ms > now_ms)
    }

    /// Whether there is something to look at.
    fn is_ready(&self, now_ms: u64, bounds: QueueBounds, order: bool) -> bool {
        if self.busy || (order && self.is_blocked(now_ms)) {
            return false;
        }
        let has_new = self.queue.next() < bounds.max_offset && self.queue.len() < POP_IN_FLIGHT_MAX;
        has_new
            || self
                .queue
                .first_visible_ms()
                .is_some_and(|visible_ms| visible_ms <= now_ms)
    }

    /// When the next hidden message becomes visible.
    fn next_visible_ms(&self, now_ms: u64) -> Option<u64> {
        self.queue
            .in_flight()
            .map(|(_, state)| state.visible_ms)
            .filter(|&visible_ms| visible_ms > now_ms)
            .min()
    }
}

type Groups = AHashMap<Arc<str>, AHashMap<QueueKey, Live>>;

/// What a core has of its POP consumers.
#[derive(Default)]
pub(super) struct Pops {
    live: RefCell<Groups>,
    hold: RefCell<PopHold<ReplyTo>>,
    hold_changed: Notify,
}

impl Pops {
    /// Whether a group pops from a queue in this life of the process.
    pub fn has(&self, group: &str, queue: QueueKey) -> bool {
        let live = self.live.borrow();
        live.get(group)
            .is_some_and(|queues| queues.contains_key(&queue))
    }

    /// Somebody set the group's offset.
    pub fn reset(&self, group: &str, queue: QueueKey, offset: i64) {
        self.with(group, queue, |live| {
            live.queue = PopQueue::new(offset);
            live.generation += 1;
            live.recorded = true;
            live.attempt = None;
        });
    }

    pub fn drop_group(&self, group: &str) {
        self.live.borrow_mut().remove(group);
    }

    pub fn drop_topic(&self, topic_id: u32) {
        let mut live = self.live.borrow_mut();
        for queues in live.values_mut() {
            queues.retain(|queue, _| queue.topic_id != topic_id);
        }
        live.retain(|_, queues| !queues.is_empty());
    }

    fn with<T>(&self, group: &str, queue: QueueKey, f: impl FnOnce(&mut Live) -> T) -> Option<T> {
        let mut live = self.live.borrow_mut();
        live.get_mut(group)?.get_mut(&queue).map(f)
    }
}

/// A message that was read.
struct Read {
    offset: i64,
    /// What was in flight when it was read; a new message has none.
    before: Option<InFlight>,
    slices: SmallVec<[PageSlice; 2]>,
}

/// What one queue comes to.
#[derive(Default)]
struct Found {
    messages: Vec<Read>,
    /// In flight and not wanted any more.
    done: Vec<i64>,
    dead: Vec<(Read, Receipt)>,
    next: i64,
    bytes: usize,
}

impl Found {
    fn has_any(&self) -> bool {
        !(self.messages.is_empty() && self.done.is_empty() && self.dead.is_empty())
    }
}

/// What is decided before anything is read.
struct Plan {
    due: Vec<(i64, InFlight)>,
    /// The attempt that has them asks again: that is no further try.
    repeats: bool,
    next: i64,
    /// How many new messages may be given out.
    room: usize,
    generation: u64,
    bounds: QueueBounds,
}

impl Plan {
    /// How often a message was tried before this time.
    fn tries_of(&self, state: InFlight) -> u32 {
        state.deliveries.saturating_sub(self.repeats.into())
    }
}

/// What a request has got so far.
struct Gathered {
    queues: Vec<TakenQueue>,
    slices: SmallVec<[PageSlice; 4]>,
    bytes: usize,
    messages: usize,
    rest: i64,
    more: bool,
    dead: Vec<Dead<Body>>,
    durable: Vec<Durable>,
}

/// An answer of the ack gate that is to come.
struct Durable {
    reply: Rc<RefCell<Option<LocalReply>>>,
    bell: Rc<Notify>,
}

impl Durable {
    async fn wait(self) -> Result<(), Refusal> {
        self.bell.notified().await;
        match self.reply.take() {
            Some(LocalReply::Refused(refusal)) => Err(refusal),
            Some(_) => Ok(()),
            None => Err(Refusal::Stopping),
        }
    }
}

/// Marks a queue of a group as taken from, until it is dropped.
struct Busy<'a, E: Env> {
    shard: &'a Shard<E>,
    group: &'a Arc<str>,
    queue: QueueKey,
}

impl<E: Env> Drop for Busy<'_, E> {
    fn drop(&mut self) {
        let pops = &self.shard.pops;
        pops.with(self.group, self.queue, |live| live.busy = false);
        self.shard.wake_pop(self.group, self.queue);
    }
}

/// The bytes of a record with another number of tries.
fn tried_again(record: &[PageSlice], deliveries: u32) -> Option<(i32, PageSlice)> {
    let bytes: Vec<u8> = record
        .iter()
        .flat_map(|part| part.iter().copied())
        .collect();
    let view = RecordView::parse(&bytes).ok()?;
    let times = i32::try_from(deliveries).unwrap_or(i32::MAX);
    let reconsume_times = view.reconsume_times().saturating_add(times);
    let fields = RecordFields {
        reconsume_times,
        ..view.fields()
    };
    let length = fields.encoded_len();
    let mut copy = vec![0; length];
    fields.encode_into(&mut copy);
    let slice = PageSlice::new(Rc::new(PageBuf::from_heap(copy)), 0, length);
    Some((reconsume_times, slice))
}

impl<E: Env> Shard<E> {
    /// Serves POP consumers of queues of this core.
    pub(super) fn serve_pop(&self, request: PopRequest, reply_to: ReplyTo) {
        let Some(shard) = self.me.upgrade() else {
            return;
        };
        match request {
            PopRequest::Take(take) => run_or_spawn(&self.env, async move {
                let reply = match shard.take(&take).await {
                    Ok(taken) => LocalReply::Pop(PopReply::Taken(Box::new(taken))),
                    Err(refusal) => LocalReply::Refused(refusal),
                };
                shard.reply(reply_to, reply);
            }),
            PopRequest::Wait(wait) => self.wait_for_messages(wait, reply_to),
            PopRequest::Unwait { id, group, queues } => {
                let waiter = self.pops.hold.borrow_mut().take(id);
                // Its answer is not expected any more, but a question is answered once.
                if let Some(waiter) = waiter {
                    self.reply(waiter.reply_to, LocalReply::Pop(PopReply::Woken(false)));
                }
                for queue in queues {
                    self.wake_pop(&group, queue);
                }
                self.reply(reply_to, LocalReply::Done);
            }
            PopRequest::Ack(ack) => run_or_spawn(&self.env, async move {
                let reply = shard.acknowledge(&ack).await;
                shard.reply(reply_to, reply);
            }),
            PopRequest::Change(change) => run_or_spawn(&self.env, async move {
                let reply = shard.change_time(&change).await;
                shard.reply(reply_to, reply);
            }),
            PopRequest::Waiting { group, queue } => {
                let count = self.pops.hold.borrow().count(&group, queue);
                self.reply(reply_to, LocalReply::Pop(PopReply::Waiting(count)));
            }
        }
    }

    /// Lets this core have the queue of a group as its log has it. False if the group has no offset in it.
    fn load_pop(&self, log: &CommitLog<E>, group: &Arc<str>, queue: QueueKey) -> bool {
        if self.pops.has(group, queue) {
            return true;
        }
        let is_dirty = {
            let dirty = self.dirty_offsets.borrow();
            dirty.contains_key(&(group.clone(), queue))
        };
        let Some(offset) = self.committed_offset(group, queue) else {
            return false;
        };
        if is_dirty {
            // It has to stand in the log before what is popped from there.
            self.flush_offsets();
        }
        let known = {
            let tables = log.tables().borrow();
            tables.pop.get(group, queue).filter(|_| !is_dirty).cloned()
        };
        let state = known.unwrap_or_else(|| PopQueue::new(offset));
        self.keep_pop(group, queue, state, true);
        true
    }

    fn keep_pop(&self, group: &Arc<str>, queue: QueueKey, state: PopQueue, recorded: bool) {
        let mut live = self.pops.live.borrow_mut();
        live.entry(group.clone()).or_default().insert(
            queue,
            Live {
                queue: state,
                busy: false,
                generation: 0,
                attempt: None,
                recorded,
            },
        );
    }

    /// Appends what happened to a queue of a group and lets it happen here. Waits for the disk's next space.
    /// `None` if `decide` finds that there is nothing to say any more.
    async fn append_pop(
        &self,
        log: &CommitLog<E>,
        group: &Arc<str>,
        queue: QueueKey,
        mut decide: impl FnMut(&mut Live) -> Option<Vec<Control>>,
    ) -> Result<Option<Durable>, Refusal> {
        loop {
            let Some(controls) = self.pops.with(group, queue, &mut decide).flatten() else {
                return Ok(None);
            };
            let end = log.allocated_end();
            match log.append_control(&controls) {
                Ok(position) => {
                    self.pops.with(group, queue, |live| {
                        for control in &controls {
                            apply(&mut live.queue, control);
                        }
                        live.recorded = true;
                    });
                    let durable = Durable {
                        reply: Rc::default(),
                        bell: Rc::default(),
                    };
                    let (slot, bell) = (durable.reply.clone(), durable.bell.clone());
                    let done = ReplyTo::Local(Box::new(move |reply| {
                        *slot.borrow_mut() = Some(reply);
                        bell.notify();
                    }));
                    self.wait_for(log.id(), position, done, LocalReply::Done);
                    return Ok(Some(durable));
                }
                Err(Refusal::SpaceOnItsWay { .. }) => log.space_beyond(end).await,
                Err(refusal) => return Err(refusal),
            }
        }
    }

    async fn take(&self, take: &PopTake) -> Result<Taken<Body>, Refusal> {
        let mut gathered = Gathered {
            queues: Vec::new(),
            slices: SmallVec::new(),
            bytes: 0,
            messages: 0,
            rest: 0,
            more: false,
            dead: Vec::new(),
            durable: Vec::new(),
        };
        for &source in &take.queues {
            let Some(log) = self.log_of(source.queue).cloned() else {
                continue;
            };
            let is_full = gathered.messages >= take.messages_max as usize
                || gathered.bytes >= take.bytes_max as usize;
            if is_full {
                // Others may want what is left.
                self.wake_pop(&take.group, source.queue);
                continue;
            }
            if let Err(refusal) = self.take_from(&log, take, source, &mut gathered).await {
                if gathered.messages == 0 {
                    return Err(refusal);
                }
                break;
            }
        }
        for durable in std::mem::take(&mut gathered.durable) {
            durable.wait().await?;
        }
        {
            let mut stats = self.stats.borrow_mut();
            if gathered.messages > 0 {
                stats.get_found += 1;
                stats.get_messages += gathered.messages as u64;
                stats.get_bytes += gathered.bytes as u64;
            } else {
                stats.get_missed += 1;
            }
        }
        Ok(Taken {
            queues: gathered.queues,
            records: if gathered.slices.is_empty() {
                Body::Empty
            } else {
                Body::Pages(gathered.slices)
            },
            rest: gathered.rest,
            more: gathered.more,
            dead: gathered.dead,
        })
    }

    /// What may be taken from a queue now; marks it as busy. `None` if nothing may.
    fn plan_take(&self, log: &CommitLog<E>, take: &PopTake, source: PopSource) -> Option<Plan> {
        let (group, queue) = (&take.group, source.queue);
        let bounds = log.bounds(queue);
        if !self.load_pop(log, group, queue) {
            let start = if source.from_end && bounds.min_offset > 0 {
                (bounds.max_offset - 1).max(bounds.min_offset)
            } else {
                bounds.min_offset
            };
            self.keep_pop(group, queue, PopQueue::new(start), false);
        }
        let now_ms = self.env.now_ms();
        self.pops.with(group, queue, |live| {
            if live.busy {
                return None;
            }
            let same_attempt = take
                .order
                .as_ref()
                .is_some_and(|order| order.attempt.is_some() && order.attempt == live.attempt);
            if take.order.is_some() && !same_attempt && live.is_blocked(now_ms) {
                return None;
            }
            // What this very request was given as new is not due again, even if it is hidden for no time at all.
            let is_own =
                |state: &InFlight| source.part == PopPart::Again && state.pop_ms == take.pop_ms;
            let due = match source.part {
                PopPart::New => Vec::new(),
                PopPart::All | PopPart::Again => live
                    .queue
                    .in_flight()
                    .filter(|(_, state)| state.visible_ms <= now_ms || same_attempt)
                    .filter(|(_, state)| !is_own(state))
                    .take(take.messages_max as usize)
                    .collect(),
            };
            live.busy = true;
            Some(Plan {
                due,
                repeats: same_attempt,
                next: live
                    .queue
                    .next()
                    .clamp(bounds.min_offset, bounds.max_offset),
                room: POP_IN_FLIGHT_MAX.saturating_sub(live.queue.len()),
                generation: live.generation,
                bounds,
            })
        })?
    }

    async fn take_from(
        &self,
        log: &Rc<CommitLog<E>>,
        take: &PopTake,
        source: PopSource,
        gathered: &mut Gathered,
    ) -> Result<(), Refusal> {
        let (group, queue) = (&take.group, source.queue);
        let Some(plan) = self.plan_take(log, take, source) else {
            return Ok(());
        };
        let busy = Busy {
            shard: self,
            group,
            queue,
        };
        let mut found = self
            .read_due(log, take, source, &plan, gathered)
            .await
            .map_err(|error| {
                tracing::error!(?queue, %error, "a pop cannot be read");
                read_refusal(&error)
            })?;
        if !take.peek {
            self.give_out(log, take, queue, &plan, &mut found, gathered)
                .await?;
        }
        drop(busy);
        // A pop of both parts asks for each: what lies behind is counted once.
        if source.part != PopPart::Again {
            gathered.rest += (plan.bounds.max_offset - found.next).max(0);
        }
        gathered.more |= found.messages.is_empty()
            && found.next > plan.next
            && found.next < plan.bounds.max_offset;
        for (read, receipt) in found.dead {
            gathered.dead.push(Dead {
                queue,
                receipt,
                record: Body::Pages(read.slices.into_iter().collect()),
            });
        }
        if found.messages.is_empty() {
            return Ok(());
        }
        let mut messages = Vec::with_capacity(found.messages.len());
        for read in found.messages {
            let tries = read.before.map_or(0, |state| plan.tries_of(state));
            messages.push((read.offset, tries));
            gathered.messages += 1;
            for slice in read.slices {
                gathered.bytes += slice.len();
                let last = gathered.slices.last_mut();
                if !last.is_some_and(|last| last.try_join(&slice)) {
                    gathered.slices.push(slice);
                }
            }
        }
        gathered.queues.push(TakenQueue { queue, messages });
        Ok(())
    }

    /// Reads what is due again, then what is new.
    async fn read_due(
        &self,
        log: &Rc<CommitLog<E>>,
        take: &PopTake,
        source: PopSource,
        plan: &Plan,
        gathered: &Gathered,
    ) -> io::Result<Found> {
        let queue = source.queue;
        let messages_max = take.messages_max as usize - gathered.messages;
        let bytes_max = (take.bytes_max as usize).min(PULL_BYTES_MAX);
        let mut found = Found {
            next: plan.next,
            bytes: gathered.bytes,
            ..Found::default()
        };
        let is_full = |found: &Found, size: u32| {
            let has_any = !found.messages.is_empty() || gathered.messages > 0;
            has_any && found.bytes + size as usize > bytes_max
        };
        let mut cut = false;
        for &(offset, state) in &plan.due {
            if found.messages.len() >= messages_max {
                cut = true;
                break;
            }
            // Retention may have taken it; the tags may be of no interest any more.
            let entry = log.entry(queue, offset).await?;
            let Some(entry) = entry.filter(|entry| take.filter.matches_entry(entry.tags_code))
            else {
                found.done.push(offset);
                continue;
            };
            if is_full(&found, entry.size) {
                cut = true;
                break;
            }
            let mut slices = match log.record(queue, offset, entry).await {
                Ok(slices) => slices,
                // One that cannot be read stays in flight, and only an order makes the others wait for it.
                Err(error) if take.order.is_none() => {
                    tracing::error!(?queue, offset, %error, "a message in flight cannot be read");
                    continue;
                }
                Err(_) if found.has_any() => return Ok(found),
                Err(error) => return Err(error),
            };
            if let MessageFilter::Sql(filter) = &take.filter
                && !wanted(filter, &slices).0
            {
                found.done.push(offset);
                continue;
            }
            let mut is_dead = false;
            let tries = plan.tries_of(state);
            if tries > 0
                && let Some((times, slice)) = tried_again(&slices, tries)
            {
                is_dead = take.order.is_none() && times > take.retries_max;
                slices = SmallVec::from_iter([slice]);
            }
            let read = Read {
                offset,
                before: Some(state),
                slices,
            };
            if is_dead && !take.peek {
                let receipt = Receipt {
                    offset,
                    pop_ms: state.pop_ms,
                };
                found.dead.push((read, receipt));
            } else {
                found.bytes += entry.size as usize;
                found.messages.push(read);
            }
        }
        // An orderly group gets nothing new past what it has to do again.
        if cut || source.part == PopPart::Again {
            return Ok(found);
        }
        let mut scanned_bytes = 0;
        let (end, mut room) = (plan.bounds.max_offset, plan.room);
        let scan_end = end.min(plan.next + PULL_SCAN_ENTRIES_MAX as i64);
        while found.next < scan_end
            && found.messages.len() < messages_max
            && room > 0
            && scanned_bytes < PULL_SCAN_BYTES_MAX
        {
            let offset = found.next;
            let entry = log.entry(queue, offset).await?;
            let Some(entry) = entry.filter(|entry| take.filter.matches_entry(entry.tags_code))
            else {
                found.next += 1;
                continue;
            };
            if is_full(&found, entry.size) {
                break;
            }
            let slices = match log.record(queue, offset, entry).await {
                Ok(slices) => slices,
                // What lies before one that cannot be read is given out first.
                Err(_) if found.has_any() || offset > plan.next => break,
                Err(error) => return Err(error),
            };
            found.next += 1;
            if let MessageFilter::Sql(filter) = &take.filter {
                let (is_wanted, work_bytes) = wanted(filter, &slices);
                scanned_bytes += work_bytes;
                if !is_wanted {
                    continue;
                }
            }
            room -= 1;
            found.bytes += entry.size as usize;
            found.messages.push(Read {
                offset,
                before: None,
                slices,
            });
        }
        Ok(found)
    }

    /// Puts what was read in flight. What was acknowledged or changed while it was read is not given out.
    async fn give_out(
        &self,
        log: &Rc<CommitLog<E>>,
        take: &PopTake,
        queue: QueueKey,
        plan: &Plan,
        found: &mut Found,
        gathered: &mut Gathered,
    ) -> Result<(), Refusal> {
        let visible_ms = take.pop_ms.saturating_add(take.invisible_ms);
        let burial_ms = self.env.now_ms() + BURIAL_MS;
        let attempt = take.order.as_ref().and_then(|order| order.attempt.clone());
        let mut is_reset = false;
        let durable = {
            let found = &mut *found;
            let is_reset = &mut is_reset;
            self.append_pop(log, &take.group, queue, move |live| {
                *is_reset = live.generation != plan.generation;
                if *is_reset {
                    return None;
                }
                let is_same = |read: &Read| match read.before {
                    Some(before) => live.queue.get(read.offset) == Some(before),
                    None => true,
                };
                found.messages.retain(is_same);
                found.dead.retain(|(read, _)| is_same(read));
                found
                    .done
                    .retain(|&offset| live.queue.get(offset).is_some());
                for (read, _) in &found.dead {
                    if let Some(before) = read.before {
                        let state = InFlight {
                            visible_ms: burial_ms,
                            ..before
                        };
                        // Not in the log: after a crash somebody tries at once.
                        live.queue.changed(read.offset, state);
                    }
                }
                let mut controls = Vec::new();
                if !found.done.is_empty() {
                    controls.push(Control::PopAcked {
                        group: take.group.clone(),
                        queue,
                        offsets: found.done.as_slice().into(),
                    });
                }
                let moved = found.next != live.queue.next() || !live.recorded;
                if !found.messages.is_empty() || moved {
                    let messages = found.messages.iter().map(|read| {
                        let tries = read.before.map_or(0, |state| plan.tries_of(state));
                        let state = InFlight {
                            pop_ms: take.pop_ms,
                            visible_ms,
                            deliveries: tries.saturating_add(1),
                        };
                        (read.offset, state)
                    });
                    controls.push(Control::Popped {
                        group: take.group.clone(),
                        queue,
                        next: found.next,
                        min: plan.bounds.min_offset,
                        messages: messages.collect(),
                    });
                    if !found.messages.is_empty() {
                        live.attempt = attempt.clone();
                    }
                }
                (!controls.is_empty()).then_some(controls)
            })
            .await
        };
        match durable {
            Ok(Some(durable)) => gathered.durable.push(durable),
            Ok(None) if is_reset => {
                *found = Found {
                    next: plan.next,
                    ..Found::default()
                }
            }
            Ok(None) => {}
            Err(refusal) => return Err(refusal),
        }
        Ok(())
    }

    async fn acknowledge(&self, ack: &PopAck) -> LocalReply {
        let (group, queue) = (&ack.group, ack.queue);
        let Some(log) = self.log_of(queue).cloned() else {
            return LocalReply::Refused(Refusal::NoQueue);
        };
        let bounds = log.bounds(queue);
        let (min, max) = (bounds.min_offset, bounds.max_offset);
        let outside = |receipt: &Receipt| !(min..=max).contains(&receipt.offset);
        if let [receipt] = &ack.receipts[..]
            && outside(receipt)
        {
            let offset = receipt.offset;
            return LocalReply::Pop(PopReply::NoOffset { offset, min, max });
        }
        if !self.load_pop(&log, group, queue) {
            return LocalReply::Done;
        }
        let mut not_given = None;
        let is_pending = log.pending_bytes() > 0;
        let done = self
            .append_pop(&log, group, queue, |live| {
                let mut offsets = Vec::new();
                for receipt in &ack.receipts {
                    match live.queue.get(receipt.offset) {
                        // A late acknowledgement of who had it before counts too, since the message was processed;
                        // but not if the next one may then begin before the one who has it now is done.
                        Some(state) if !ack.order || state.pop_ms == receipt.pop_ms => {
                            offsets.push(receipt.offset);
                        }
                        Some(_) => {}
                        None if receipt.offset >= live.queue.next() => {
                            not_given = Some(receipt.offset);
                        }
                        // Acknowledged before, perhaps not durably yet: said again, it is durable when this is.
                        None if is_pending => offsets.push(receipt.offset),
                        None => {}
                    }
                }
                (!offsets.is_empty()).then(|| {
                    vec![Control::PopAcked {
                        group: group.clone(),
                        queue,
                        offsets: offsets.into(),
                    }]
                })
            })
            .await;
        let waited = match done {
            Ok(Some(durable)) => {
                self.wake_pop(group, queue);
                durable.wait().await
            }
            Ok(None) => Ok(()),
            Err(refusal) => Err(refusal),
        };
        match (waited, not_given) {
            (Err(refusal), _) => LocalReply::Refused(refusal),
            (Ok(()), Some(offset)) if ack.order => LocalReply::Pop(PopReply::NotGiven { offset }),
            (Ok(()), _) => LocalReply::Done,
        }
    }

    async fn change_time(&self, change: &PopChange) -> LocalReply {
        let (group, queue, receipt) = (&change.group, change.queue, change.receipt);
        let Some(log) = self.log_of(queue).cloned() else {
            return LocalReply::Refused(Refusal::NoQueue);
        };
        let bounds = log.bounds(queue);
        let (offset, min, max) = (receipt.offset, bounds.min_offset, bounds.max_offset);
        if !(min..max).contains(&offset) {
            return LocalReply::Pop(PopReply::NoOffset { offset, min, max });
        }
        if !self.load_pop(&log, group, queue) {
            return LocalReply::Pop(PopReply::Stale { offset });
        }
        let now_ms = self.env.now_ms();
        let visible_ms = now_ms.saturating_add(change.invisible_ms);
        // The receipt of an orderly consumer stays the same.
        let pop_ms = if change.order { receipt.pop_ms } else { now_ms };
        let changed = self
            .append_pop(&log, group, queue, |live| {
                let state = live.queue.get(offset)?;
                if state.pop_ms != receipt.pop_ms {
                    return None;
                }
                let uncounted = u32::from(change.suspend);
                Some(vec![Control::PopChanged {
                    group: group.clone(),
                    queue,
                    offset,
                    state: InFlight {
                        pop_ms,
                        visible_ms,
                        deliveries: state.deliveries.saturating_sub(uncounted),
                    },
                }])
            })
            .await;
        match changed {
            Ok(Some(durable)) => {
                self.wake_pop(group, queue);
                match durable.wait().await {
                    Ok(()) => LocalReply::Pop(PopReply::Changed { pop_ms, visible_ms }),
                    Err(refusal) => LocalReply::Refused(refusal),
                }
            }
            Ok(None) => LocalReply::Pop(PopReply::Stale { offset }),
            Err(refusal) => LocalReply::Refused(refusal),
        }
    }

    fn wait_for_messages(&self, wait: PopWait, reply_to: ReplyTo) {
        let woken = |found| LocalReply::Pop(PopReply::Woken(found));
        if self.stopping.get() {
            return self.reply(reply_to, woken(false));
        }
        for &queue in &wait.queues {
            if self.is_pop_ready(&wait.group, queue, wait.order) {
                return self.reply(reply_to, woken(true));
            }
        }
        if wait.wait_ms == 0 {
            return self.reply(reply_to, woken(false));
        }
        {
            let mut hold = self.pops.hold.borrow_mut();
            let is_full = hold.len() >= wait.total_max
                || wait
                    .queues
                    .iter()
                    .any(|&queue| hold.count(&wait.group, queue) >= wait.queue_max);
            if is_full {
                drop(hold);
                return self.reply(reply_to, LocalReply::Pop(PopReply::Full));
            }
            hold.park(Waiter {
                id: wait.id,
                group: wait.group.clone(),
                queues: wait.queues.clone(),
                deadline_ms: self.env.now_ns() / 1_000_000 + wait.wait_ms,
                order: wait.order,
                reply_to,
            });
        }
        for &queue in &wait.queues {
            self.set_pop_alarm(&wait.group, queue);
        }
        self.pops.hold_changed.notify();
    }

    /// Whether a queue of a group has something to look at.
    fn is_pop_ready(&self, group: &Arc<str>, queue: QueueKey, order: bool) -> bool {
        let Some(log) = self.log_of(queue) else {
            return false;
        };
        let bounds = log.bounds(queue);
        if !self.load_pop(log, group, queue) {
            return bounds.max_offset > bounds.min_offset;
        }
        let now_ms = self.env.now_ms();
        self.pops
            .with(group, queue, |live| live.is_ready(now_ms, bounds, order))
            .unwrap_or(false)
    }

    fn set_pop_alarm(&self, group: &Arc<str>, queue: QueueKey) {
        let now_ms = self.env.now_ms();
        let next = self
            .pops
            .with(group, queue, |live| live.next_visible_ms(now_ms));
        if let Some(Some(at_ms)) = next {
            self.pops.hold.borrow_mut().set_alarm(queue, group, at_ms);
            self.pops.hold_changed.notify();
        }
    }

    /// Something changed in a queue of a group: one that waits for it is woken if there is something to look at. When it
    /// has looked, the next one is.
    fn wake_pop(&self, group: &Arc<str>, queue: QueueKey) {
        let first = {
            let hold = self.pops.hold.borrow();
            hold.first(group, queue)
                .map(|first| (first.id, first.order))
        };
        let Some((id, order)) = first else {
            return;
        };
        if !self.is_pop_ready(group, queue, order) {
            return self.set_pop_alarm(group, queue);
        }
        let waiter = self.pops.hold.borrow_mut().take(id);
        if let Some(waiter) = waiter {
            self.reply(waiter.reply_to, LocalReply::Pop(PopReply::Woken(true)));
        }
    }

    /// A queue has new visible messages.
    pub(super) fn wake_pops(&self, queue: QueueKey) {
        let groups = self.pops.hold.borrow().groups(queue);
        for group in groups {
            self.wake_pop(&group, queue);
        }
    }

    /// Ends waits whose time is up, and wakes for what becomes visible again. Sleeps until there is something to do.
    pub(super) async fn expire_pops(self: Rc<Self>) {
        loop {
            let mono_ms = self.env.now_ns() / 1_000_000;
            let now_ms = self.env.now_ms();
            let until_ms = if self.stopping.get() {
                u64::MAX
            } else {
                mono_ms
            };
            let expired = self.pops.hold.borrow_mut().take_expired(until_ms);
            for waiter in expired {
                self.reply(waiter.reply_to, LocalReply::Pop(PopReply::Woken(false)));
            }
            if self.stopping.get() {
                return;
            }
            let due = self.pops.hold.borrow_mut().take_alarms(now_ms);
            for (queue, group) in due {
                self.wake_pop(&group, queue);
            }
            let (deadline, alarm) = {
                let hold = self.pops.hold.borrow();
                (hold.next_deadline_ms(), hold.next_alarm_ms())
            };
            let changed = self.pops.hold_changed.notified();
            let waits = [
                deadline.map(|at_ms| at_ms.saturating_sub(mono_ms)),
                alarm.map(|at_ms| at_ms.saturating_sub(now_ms).min(CLOCK_CHECK_MS)),
            ];
            match waits.into_iter().flatten().min() {
                Some(wait_ms) => {
                    let sleep = self.env.sleep(Duration::from_millis(wait_ms.max(1)));
                    futures_lite::future::or(sleep, changed).await;
                }
                None => changed.await,
            }
        }
    }

    /// Ends all waits.
    pub(super) fn release_pops(&self) {
        self.pops.hold_changed.notify();
    }
}

fn apply(queue: &mut PopQueue, control: &Control) {
    match control {
        Control::Popped {
            next,
            min,
            messages,
            ..
        } => queue.popped(*next, *min, messages),
        Control::PopAcked { offsets, .. } => queue.acked(offsets),
        Control::PopChanged { offset, state, .. } => queue.changed(*offset, *state),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
