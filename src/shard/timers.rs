//! Firing of delayed messages: one task a log, which sleeps until the earliest timer of the log is due.
//!
//! A message that is due is read back and stored in its queue, in one batch with the end of its timer, so that a crash fires it
//! exactly once. Only durable timers fire, never before their time by the wall clock, in the order of their times. What
//! the log refuses (disk full, too much pending) is tried again; the timer stays. Timers whose record cannot be read are put
//! aside after some tries, so that they do not hold up the others.
//!
//! A **recall** (TIMER_DEL_UNIQKEY) is a delayed message too, due one millisecond before the message that it names. When it
//! is due, it and that message end in one batch and neither is stored anywhere. Whoever recalls does not know the queue,
//! so each log of the topic gets one; in the others it finds nothing. Source: `TimerMessageStore`.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::base::limits::PROPERTIES_BYTES_MAX;
use crate::base::notify::Notify;
use crate::base::offset::{LogId, Position};
use crate::io::env::Env;
use crate::shard::core::Shard;
use crate::shard::message::{NewMessage, Refusal};
use crate::store::CommitLog;
use crate::store::delayed::{self, DelayedError};
use crate::store::tables::timers::{Timer, TimerKey};
use crate::wire::properties::{self, PropertiesBuilder, name};

/// Bytes of delayed records that are moved in one batch, unless one alone has more.
const FIRE_BYTES_MAX: u64 = 128 << 10;
/// The wall clock may jump: it is looked at this often while a timer waits.
const CLOCK_CHECK: Duration = Duration::from_secs(1);
/// Pause before a refused batch is tried again.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// The same while the log's next space is made ready.
const SPACE_PAUSE: Duration = Duration::from_millis(2);
/// Pause before a failed read is tried again.
const UNREADABLE_PAUSE: Duration = Duration::from_millis(500);
/// So often a record is read in vain before its timer is put aside.
const READ_TRIES: u32 = 5;

/// How a task of a log is woken.
#[derive(Default)]
pub(super) struct Bell {
    bell: Notify,
    /// Wall clock at which the task wakes by itself; 0 while it is at work.
    sleeps_until_ms: Cell<u64>,
    /// It waits for the log to be durable beyond this.
    awaits: Cell<Option<Position>>,
}

impl Bell {
    /// The log is durable up to `end`: the task wakes if it waits for that, or if what it sleeps for comes earlier now.
    fn ring_if(&self, end: Position, first_ms: impl FnOnce() -> Option<u64>) {
        let is_awaited = self.awaits.get().is_some_and(|position| position < end);
        let is_earlier = || first_ms().is_some_and(|first| first < self.sleeps_until_ms.get());
        if is_awaited || is_earlier() {
            self.bell.notify();
        }
    }

    /// Completes when it rings.
    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }

    /// The task is about to sleep until then, or for ever.
    pub(super) fn sleeps_until(&self, until_ms: Option<u64>) {
        self.sleeps_until_ms.set(until_ms.unwrap_or(u64::MAX));
    }

    pub(super) fn is_awake(&self) {
        self.sleeps_until_ms.set(0);
    }

    /// Completes when it rings, also because the log is durable beyond `position`.
    pub(super) async fn rung_beyond(&self, position: Position) {
        self.awaits.set(Some(position));
        self.rung().await;
        self.awaits.set(None);
    }
}

/// Why a batch of timers was not moved.
enum Unmoved {
    Refused(Refusal),
    Unreadable { key: TimerKey, error: io::Error },
}

impl<E: Env> Shard<E> {
    /// A log has got further: the tasks of its timers and of its open transactions wake if that is what they wait for, or if
    /// something is due before they would wake.
    pub(super) fn ring_timers(&self, id: LogId, end: Position) {
        let Some(log) = self.logs.get(&id) else {
            return;
        };
        let tables = log.tables();
        if let Some(bell) = self.timers.get(&id) {
            bell.ring_if(end, || tables.borrow().timers.first_due_ms());
        }
        if let Some(bell) = self.halves.get(&id) {
            bell.ring_if(end, || tables.borrow().halves.first_check_ms());
        }
    }

    /// Wakes these tasks so that they see that they are to end.
    pub(super) fn ring_all_timers(&self) {
        for bell in self.timers.values().chain(self.halves.values()) {
            bell.bell.notify();
        }
    }

    pub(super) fn log_has_ended(&self, log: &CommitLog<E>) -> bool {
        self.stopping.get() || log.refusal().is_some()
    }

    /// The task of one log.
    pub(super) async fn fire_timers(self: Rc<Self>, log: Rc<CommitLog<E>>, bell: Rc<Bell>) {
        // A topic that is not known yet must not look like a deleted one.
        self.ready().await;
        let bytes_max = FIRE_BYTES_MAX.min(log.options().segment_bytes / 4);
        let mut unread: Option<(TimerKey, u32)> = None;
        while !self.log_has_ended(&log) {
            let now_ms = self.env.now_ms();
            let due = log.tables().borrow_mut().timers.take_due(now_ms, bytes_max);
            if due.is_empty() {
                self.sleep_until_due(&log, &bell, now_ms).await;
                continue;
            }
            let pause = match self.fire(&log, &due).await {
                Ok((position, fired)) => {
                    while log.durable() <= position && !self.log_has_ended(&log) {
                        bell.rung_beyond(position).await;
                    }
                    self.count_fired(&fired);
                    continue;
                }
                Err(Unmoved::Refused(Refusal::SpaceOnItsWay { .. })) => SPACE_PAUSE,
                Err(Unmoved::Refused(refusal)) => {
                    tracing::debug!(log = log.id(), %refusal, "delayed messages are late: the log takes none now");
                    REFUSED_PAUSE
                }
                Err(Unmoved::Unreadable { key, error }) => {
                    let tries = match unread {
                        Some((last, tries)) if last == key => tries + 1,
                        _ => 1,
                    };
                    unread = Some((key, tries));
                    if tries >= READ_TRIES {
                        tracing::error!(log = log.id(), position = key.position, due_ms = key.due_ms, %error, "a delayed message cannot be read; it is tried again at the next start");
                        log.tables().borrow_mut().timers.set_unreadable(key);
                    } else {
                        tracing::warn!(log = log.id(), position = key.position, %error, "a delayed message cannot be read; it is tried again");
                    }
                    UNREADABLE_PAUSE
                }
            };
            let keys = due.iter().map(|(key, _)| *key);
            log.tables().borrow_mut().timers.give_back(keys);
            self.env.sleep(pause).await;
        }
    }

    fn count_fired(&self, fired: &[(TimerKey, u32)]) {
        let now_ms = self.env.now_ms();
        let mut figures = self.timer_figures.borrow_mut();
        for (key, topic_id) in fired {
            *figures.fired.entry(*topic_id).or_default() += 1;
            figures.late_ms.record(now_ms.saturating_sub(key.due_ms));
        }
    }

    async fn sleep_until_due(&self, log: &CommitLog<E>, bell: &Bell, now_ms: u64) {
        let first = log.tables().borrow().timers.first_due_ms();
        bell.sleeps_until(first);
        match first {
            None => bell.rung().await,
            Some(first) => {
                let wait = Duration::from_millis(first.saturating_sub(now_ms)).min(CLOCK_CHECK);
                let sleep = self.env.sleep(wait);
                futures_lite::future::or(sleep, bell.rung()).await;
            }
        }
        bell.is_awake();
    }

    /// Moves timers that are due into their queues. Gives the position that has to be durable, and which were delivered.
    async fn fire(
        &self,
        log: &Rc<CommitLog<E>>,
        due: &[(TimerKey, Timer)],
    ) -> Result<(Position, Vec<(TimerKey, u32)>), Unmoved> {
        let mut read = Vec::with_capacity(due.len());
        for &(key, timer) in due {
            let message = read_message(log, key, timer).await;
            read.push((
                key,
                message.map_err(|error| Unmoved::Unreadable { key, error })?,
            ));
        }
        let recalled = self.recalled(log, due, &read).await?;
        let (fired, mut messages): (Vec<(TimerKey, u32)>, Vec<NewMessage>) = read
            .into_iter()
            .filter(|(key, message)| recall_of(message).is_none() && !recalled.contains(key))
            .map(|(key, message)| ((key, message.queue.topic_id), message))
            .unzip();
        // Asked last, without a wait until the append: whoever deletes a topic tells the cores before the logs.
        messages.retain(|message| {
            let has_queue = self
                .log_of(message.queue)
                .is_some_and(|owner| owner.id() == log.id());
            if !has_queue {
                tracing::info!(topic = %message.topic, topic_id = message.queue.topic_id, "a delayed message of a deleted topic is dropped");
            }
            has_queue
        });
        let now_ms = self.env.now_ms();
        for message in &mut messages {
            note_firing(message, now_ms);
        }
        let mut keys: BTreeSet<TimerKey> = due.iter().map(|(key, _)| *key).collect();
        keys.extend(&recalled);
        let keys: Vec<TimerKey> = keys.into_iter().collect();
        let moved = log.append_moved(&messages, &[], &keys);
        if moved.is_err() {
            // Those of `due` are given back by the caller.
            log.tables().borrow_mut().timers.give_back(recalled);
        }
        moved
            .map(|position| (position, fired))
            .map_err(Unmoved::Refused)
    }

    /// The messages that recalls among what is due name: in the same batch, or due at the next millisecond, which are
    /// then taken.
    async fn recalled(
        &self,
        log: &CommitLog<E>,
        due: &[(TimerKey, Timer)],
        read: &[(TimerKey, NewMessage)],
    ) -> Result<BTreeSet<TimerKey>, Unmoved> {
        let mut wanted: BTreeMap<(u64, u32), BTreeSet<&str>> = BTreeMap::new();
        for (key, message) in read {
            if let Some(recall) = recall_of(message) {
                let slot = (key.due_ms + 1, message.queue.topic_id);
                wanted.entry(slot).or_default().insert(recall);
            }
        }
        let mut found = BTreeSet::new();
        for ((due_ms, topic_id), unique_keys) in wanted {
            let names = |message: &NewMessage| {
                recall_of(message).is_none()
                    && properties::get(&message.properties, name::UNIQUE_KEY)
                        .is_some_and(|unique_key| unique_keys.contains(unique_key))
            };
            let own = read.iter().filter(|(key, message)| {
                key.due_ms == due_ms && message.queue.topic_id == topic_id && names(message)
            });
            found.extend(own.map(|(key, _)| *key));
            let others = log
                .tables()
                .borrow_mut()
                .timers
                .take_at(due_ms, topic_id, due);
            let Some(others) = others else {
                // Retention is moving one of them: in a moment it has another place.
                log.tables().borrow_mut().timers.give_back(found);
                return Err(Unmoved::Refused(Refusal::SpaceOnItsWay { log: log.id() }));
            };
            for (key, timer) in others {
                // What cannot be read now is not delivered either; it is told when it is due.
                let message = read_message(log, key, timer).await;
                if message.is_ok_and(|message| names(&message)) {
                    found.insert(key);
                } else {
                    log.tables().borrow_mut().timers.give_back([key]);
                }
            }
        }
        Ok(found)
    }
}

async fn read_message<E: Env>(
    log: &CommitLog<E>,
    key: TimerKey,
    timer: Timer,
) -> io::Result<NewMessage> {
    let record = log.reader().read_whole(key.position, timer.bytes as usize);
    record
        .await
        .and_then(|record| message_of(&record, key).map_err(io::Error::other))
}

/// The unique key of the message that this one recalls, if it is a recall.
fn recall_of(message: &NewMessage) -> Option<&str> {
    properties::get(&message.properties, name::TIMER_DEL_UNIQUE_KEY)
}

fn message_of(record: &[u8], key: TimerKey) -> Result<NewMessage, DelayedError> {
    let (head, message) = delayed::message(record)?;
    if head.due_ms == key.due_ms {
        Ok(message)
    } else {
        Err(DelayedError::Kind)
    }
}

/// Messages with a chosen time say when they were delivered (`TIMER_DEQUEUE_MS`), those with a level do not.
fn note_firing(message: &mut NewMessage, now_ms: u64) {
    if !properties::contains(&message.properties, name::TIMER_OUT_MS) {
        return;
    }
    let mut noted = PropertiesBuilder::from_bytes(&message.properties, 40);
    noted.set(name::TIMER_DEQUEUE_MS, &now_ms.to_string());
    if noted.len() <= PROPERTIES_BYTES_MAX {
        message.properties = noted.finish();
    }
}

#[cfg(test)]
mod tests;
