//! Transactions of this core's logs: half messages are stored, read back and ended; and one task a log, which sleeps until
//! the producer of an open half is to be asked how its transaction ended.
//!
//! Asking is the broker's ([`crate::shard::ShardHandle::set_check_handler`]); here a check is counted, durably, before the
//! broker hears of it, so that a half is not asked about more often than allowed whatever happens between. After a start
//! nobody is asked before one period has passed: the producers have to come back first. A transaction ends once: who
//! ends it again hears how it ended.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::base::offset::{LogId, Position};
use crate::io::body::Body;
use crate::io::env::Env;
use crate::shard::core::{Appending, Gated, InLine, ReplyTo, Shard};
use crate::shard::message::{HalfEnd, LocalReply, NewHalf, Outcome, Refusal};
use crate::shard::pull::{read_refusal, run_or_spawn};
use crate::shard::timers::Bell;
use crate::store::CommitLog;
use crate::store::commit_log::halves::Ending;
use crate::store::control::Control;
use crate::store::half::{self, HalfError};
use crate::store::tables::halves::Half;

/// Halves whose producers are asked in one go, and the bytes of their records, unless one alone has more.
const CHECK_COUNT_MAX: usize = 256;
const CHECK_BYTES_MAX: u64 = 256 << 10;
/// The wall clock may jump: it is looked at this often while a check waits.
const CLOCK_CHECK: Duration = Duration::from_secs(1);
/// Pause before a check that the log refused to count is tried again.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);

/// What a half that a producer is to be asked about is told to the broker as.
#[derive(Clone, Debug)]
pub struct HalfDue {
    pub log: LogId,
    pub origin: u64,
    /// Checks before this one.
    pub checks: u32,
    /// The message record.
    pub record: Bytes,
}

/// When producers are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckRules {
    /// Between two checks of one half, and between the start and the first check, in milliseconds.
    pub period_ms: u64,
}

impl<E: Env> Shard<E> {
    /// Stores a half message. The answer leaves when it is durable, with its origin.
    pub(super) fn serve_half(&self, half: NewHalf, reply_to: ReplyTo) {
        let queue = half.message.queue;
        self.serve_appending(queue, Appending::Half(half), reply_to);
    }

    pub(super) fn try_append_half(
        &self,
        log: &CommitLog<E>,
        half: &NewHalf,
    ) -> Result<(LocalReply, Position), Refusal> {
        self.check_replicas(log.id())?;
        let check_at_ms = self.env.now_ms().saturating_add(half.check_after_ms);
        let (appended, position) = log.append_half(&half.message, check_at_ms)?;
        let mut stats = self.stats.borrow_mut();
        stats.put_messages += 1;
        stats.put_bytes += half.message.body.len() as u64;
        Ok((LocalReply::Appended(appended), position))
    }

    /// The message record of an open half; none if its transaction is not open.
    pub(super) fn serve_read_half(&self, log: LogId, origin: u64, reply_to: ReplyTo) {
        let (Some(log), Some(shard)) = (self.logs.get(&log).cloned(), self.me.upgrade()) else {
            return self.reply(reply_to, LocalReply::Record(None));
        };
        run_or_spawn(&self.env, async move {
            let reply = match read_half(&log, origin).await {
                Ok(record) => LocalReply::Record(record.map(Body::Bytes)),
                Err(error) => LocalReply::Refused(read_refusal(&error)),
            };
            shard.reply(reply_to, reply);
        });
    }

    /// Ends a transaction. The answer leaves when its end is durable, and says how it ended.
    pub(super) fn serve_end_half(&self, id: LogId, origin: u64, end: HalfEnd, reply_to: ReplyTo) {
        let Some(log) = self.logs.get(&id) else {
            return self.reply(reply_to, LocalReply::HalfEnded(None));
        };
        if self.is_first_in_line(log) {
            match self.try_end_half(log, origin, &end) {
                Err(Refusal::SpaceOnItsWay { .. }) => {}
                result => return self.answer_end_half(log, result, reply_to),
            }
        }
        self.join_line(log, InLine::EndHalf { origin, end }, reply_to);
    }

    pub(super) fn try_end_half(
        &self,
        log: &CommitLog<E>,
        origin: u64,
        end: &HalfEnd,
    ) -> Result<Ending, Refusal> {
        match end {
            HalfEnd::Commit(message, due_ms) => {
                // Asked last, without a wait until the append: whoever deletes a topic tells the cores before the logs.
                let owner = self.log_of(message.queue);
                if owner.is_none_or(|owner| owner.id() != log.id()) {
                    return Err(Refusal::NoQueue);
                }
                log.end_half(origin, Outcome::Committed, Some((message, *due_ms)))
            }
            HalfEnd::RollBack => log.end_half(origin, Outcome::RolledBack, None),
            HalfEnd::GiveUp => log.end_half(origin, Outcome::GivenUp, None),
            HalfEnd::Ask => Ok(log.ending_of(origin).unwrap_or(Ending::Unknown)),
        }
    }

    pub(super) fn answer_end_half(
        &self,
        log: &CommitLog<E>,
        ending: Result<Ending, Refusal>,
        reply_to: ReplyTo,
    ) {
        match ending {
            Ok(Ending::Appended(outcome, position)) => {
                let reply = LocalReply::HalfEnded(Some(outcome));
                self.wait_for(log.id(), position, reply_to, reply);
            }
            Ok(Ending::Ending(outcome, position)) => {
                let reply = LocalReply::HalfEnded(Some(outcome));
                if let Some(gate) = self.gates.borrow_mut().get_mut(&log.id()) {
                    gate.wait_for_last(position, Gated::new(reply_to, reply));
                }
            }
            Ok(Ending::Ended(outcome)) => {
                self.reply(reply_to, LocalReply::HalfEnded(Some(outcome)));
            }
            Ok(Ending::Unknown) => self.reply(reply_to, LocalReply::HalfEnded(None)),
            Err(refusal) => self.reply(reply_to, LocalReply::Refused(refusal)),
        }
    }

    /// The oldest open halves of each log, at most `limit` together.
    pub(super) fn open_halves(&self, limit: usize) -> LocalReply {
        let (mut count, mut oldest) = (0, Vec::new());
        for log in self.logs.values() {
            let tables = log.tables().borrow();
            count += tables.halves.len();
            let first = tables.halves.all().take(limit - oldest.len());
            oldest.extend(first.map(|(origin, half)| (log.id(), origin, half)));
        }
        LocalReply::OpenHalves { count, oldest }
    }

    /// The task of one log.
    pub(super) async fn check_halves(self: Rc<Self>, log: Rc<CommitLog<E>>, bell: Rc<Bell>) {
        // A topic that is not known yet must not look like a deleted one.
        self.ready().await;
        let started_ms = self.env.now_ms();
        while !self.log_has_ended(&log) {
            let first = log.tables().borrow().halves.first_check_ms();
            let handler = self.handlers.check.borrow().clone();
            let Some((rules, handler)) = handler else {
                // The broker of this core starts after its shard.
                self.sleep_at_bell(&bell, first.map(|_| u64::MAX)).await;
                continue;
            };
            let now_ms = self.env.now_ms();
            let awake_ms = started_ms.saturating_add(rules.period_ms);
            let wanted = first.map(|first| first.max(awake_ms));
            if wanted.is_none_or(|wanted| wanted > now_ms) {
                self.sleep_at_bell(&bell, wanted).await;
                continue;
            }
            match self.count_checks(&log, now_ms, rules).await {
                Ok(due) => {
                    let mut asked = Vec::with_capacity(due.len());
                    for (origin, half) in due {
                        match read_half(&log, origin).await {
                            Ok(Some(record)) => asked.push(HalfDue {
                                log: log.id(),
                                origin,
                                checks: half.checks,
                                record,
                            }),
                            Ok(None) => {}
                            Err(error) => {
                                tracing::warn!(log = log.id(), position = half.position, %error, "a half message cannot be read; it is tried again at its next check");
                            }
                        }
                    }
                    if !asked.is_empty() {
                        handler(asked).await;
                    }
                }
                Err(refusal) => {
                    tracing::debug!(log = log.id(), %refusal, "producers are asked later: the log takes no records now");
                    self.env.sleep(REFUSED_PAUSE).await;
                }
            }
        }
    }

    /// Counts a check of each half that is due, durably, and gives those whose producers are to be asked.
    async fn count_checks(
        &self,
        log: &Rc<CommitLog<E>>,
        now_ms: u64,
        rules: CheckRules,
    ) -> Result<Vec<(u64, Half)>, Refusal> {
        let tables = log.tables();
        let bytes_max = CHECK_BYTES_MAX.min(log.options().segment_bytes / 4);
        let due = (tables.borrow().halves).due(now_ms, CHECK_COUNT_MAX, bytes_max);
        let next_ms = now_ms.saturating_add(rules.period_ms.max(1));
        let halves: Arc<[(u64, u64)]> = due.iter().map(|(origin, _)| (*origin, next_ms)).collect();
        let position = log.append_control(&[Control::HalvesChecked { halves }])?;
        while log.durable() <= position {
            if let Some(refusal) = log.refusal() {
                return Err(refusal);
            }
            let bell = &self.halves[&log.id()];
            bell.rung_beyond(position).await;
        }
        let mut asked = Vec::with_capacity(due.len());
        for (origin, half) in due {
            let is_known = (self.meta.borrow().topics_by_id).contains_key(&half.topic_id);
            if is_known {
                asked.push((origin, half));
            } else {
                // Carried by retention while its topic was deleted.
                log.end_half(origin, Outcome::GivenUp, None)?;
            }
        }
        Ok(asked)
    }

    /// Sleeps until the wall clock shows `until_ms`, the bell rings, or the clock has to be looked at.
    async fn sleep_at_bell(&self, bell: &Bell, until_ms: Option<u64>) {
        bell.sleeps_until(until_ms);
        match until_ms {
            None => bell.rung().await,
            Some(until_ms) => {
                let left_ms = until_ms.saturating_sub(self.env.now_ms());
                let wait = Duration::from_millis(left_ms).min(CLOCK_CHECK);
                futures_lite::future::or(self.env.sleep(wait), bell.rung()).await;
            }
        }
        bell.is_awake();
    }
}

/// The message record of an open half, wherever it lies by now.
async fn read_half<E: Env>(log: &CommitLog<E>, origin: u64) -> std::io::Result<Option<Bytes>> {
    loop {
        let Some(place) = log.tables().borrow().halves.get(origin) else {
            return Ok(None);
        };
        let bytes = place.bytes as usize;
        let record = log.reader().read_whole(place.position, bytes).await;
        let result = record.and_then(|record| match half::view(&record) {
            Ok((head, view)) if head.origin == origin => Ok(Bytes::copy_from_slice(view.bytes())),
            Ok(_) => Err(std::io::Error::other(HalfError::Kind)),
            Err(error) => Err(std::io::Error::other(error)),
        });
        let now = log.tables().borrow().halves.get(origin);
        match result {
            Ok(record) => return Ok(Some(record)),
            Err(_) if now.is_none() => return Ok(None),
            // Retention has moved it meanwhile.
            Err(_) if now.is_some_and(|now| now.position != place.position) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
