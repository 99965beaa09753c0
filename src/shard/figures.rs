//! What a core tells of itself when somebody asks: work, logs, caches, timers, transactions, and how far its groups are.
//!
//! Nothing here runs unless it is asked for (a scrape of the metrics); the counters that it reads are plain numbers of
//! this core. Lag is computed here and nowhere else in the metrics: of one queue, its bounds and what is in flight are
//! read in one turn, its committed offset not later, and no figure is negative. Times in the past come from the records themselves, of
//! at most [`OLDEST_READS_MAX`] queues a core and question.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use ahash::AHashMap;
use futures_lite::future::yield_now;

use crate::base::histogram::Histogram;
use crate::base::offset::{LogId, Position};
use crate::io::env::Env;
use crate::shard::core::{ReplyTo, Shard};
use crate::shard::message::{CommittedOffset, LocalReply, MasterStats, ReplicaStats};
use crate::shard::pump::{store_time, why_not_writable};
use crate::store::commit_log::CommitFigures;
use crate::store::commit_log::scrub::ScrubFigures;
use crate::store::types::QueueKey;

/// Queues whose oldest unconsumed message is looked up for one answer: each may be a read from the disk.
const OLDEST_READS_MAX: usize = 256;
/// Queues whose lag is computed before others have their turn.
const LAGS_AT_ONCE: usize = 256;
/// Bounds of how late a delayed message is, in milliseconds.
const LATE_MS_BOUNDS: &[u64] = &[
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 10_000, 60_000,
];

/// What the timers of a core have done since its start.
#[derive(Debug)]
pub(super) struct TimerFigures {
    /// By topic incarnation.
    pub accepted: AHashMap<u32, u64>,
    pub fired: AHashMap<u32, u64>,
    /// From when a message was due until it was durable in its queue.
    pub late_ms: Histogram,
}

impl Default for TimerFigures {
    fn default() -> Self {
        Self {
            accepted: AHashMap::new(),
            fired: AHashMap::new(),
            late_ms: Histogram::new(LATE_MS_BOUNDS),
        }
    }
}

/// Answer to [`crate::shard::message::ShardRequest::Figures`].
#[derive(Clone, Debug)]
pub struct ShardFigures {
    /// Since the core's clock began, in nanoseconds.
    pub up_ns: u64,
    pub idle_ns: u64,
    /// Pulls that are parked here.
    pub held_pulls: usize,
    pub logs: Vec<LogFigures>,
    pub lags: Vec<Lag>,
    /// (group, topic incarnation, messages that retention removed before the group had consumed them).
    pub missed: Vec<(Arc<str>, u32, u64)>,
    pub timers_late_ms: Histogram,
    /// By topic incarnation.
    pub timers_accepted: Vec<(u32, u64)>,
    pub timers_fired: Vec<(u32, u64)>,
}

/// Figures of one log.
#[derive(Clone, Debug)]
pub struct LogFigures {
    pub log: LogId,
    /// Bytes that it holds, and those that are not durable yet.
    pub bytes: u64,
    pub pending_bytes: u64,
    pub commits: CommitFigures,
    /// What the search for damage has found.
    pub scrub: ScrubFigures,
    pub tail_cache_bytes: usize,
    pub read_cache_bytes: usize,
    pub index_cache_bytes: usize,
    /// Why it takes no writes, if so.
    pub refusal: Option<Arc<str>>,
    /// Store time of the first batch that retention has left, milliseconds since 1970; none if that is not known.
    pub earliest_ms: Option<u64>,
    pub disk_total_bytes: u64,
    pub disk_available_bytes: u64,
    /// Delayed messages that wait, by topic incarnation, and how late the first one is in milliseconds.
    pub timing: Vec<(u32, u64)>,
    pub timing_late_ms: u64,
    /// Open transactions by topic incarnation.
    pub halves: Vec<(u32, u64)>,
    /// Durable here, whatever the slaves have. Exclusive.
    pub durable_here: Position,
    /// The slaves that follow it.
    pub replicas: Vec<ReplicaStats>,
    /// Of a slave's log.
    pub master: Option<MasterStats>,
}

/// How far a group is with a topic, over the queues of one core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lag {
    pub group: Arc<str>,
    pub topic_id: u32,
    /// Messages that the group has not acknowledged: ready and in flight together.
    pub behind: u64,
    /// Given to POP consumers and hidden from others.
    pub in_flight: u64,
    /// Store time of the oldest message of these, milliseconds since 1970; none if nothing is behind, or not looked up.
    pub oldest_ms: Option<i64>,
}

/// One queue of a group that is behind.
struct Behind {
    group: Arc<str>,
    queue: QueueKey,
    offset: i64,
    behind: u64,
}

/// By group and topic.
type Lags = BTreeMap<(Arc<str>, u32), Lag>;

impl<E: Env> Shard<E> {
    pub(super) fn serve_figures(&self, reply_to: ReplyTo) {
        let Some(shard) = self.me.upgrade() else {
            return;
        };
        // As a background task: whoever watches must not disturb.
        self.env.spawn_background(async move {
            let figures = shard.figures().await;
            shard.reply(reply_to, LocalReply::Figures(Box::new(figures)));
        });
    }

    async fn figures(self: &Rc<Self>) -> ShardFigures {
        let (mut lags, behind) = self.lags().await;
        self.find_oldest(&mut lags, behind).await;
        let mut logs = Vec::with_capacity(self.logs.len());
        for log in self.logs.values() {
            let earliest_ms = log.first_timestamp_ms().await;
            let now_ms = self.env.now_ms();
            let space = self.env.disk_space(&log.options().directory).ok();
            let tables = log.tables().borrow();
            let mut halves: AHashMap<u32, u64> = AHashMap::new();
            for (_, half) in tables.halves.all() {
                *halves.entry(half.topic_id).or_default() += 1;
            }
            logs.push(LogFigures {
                log: log.id(),
                bytes: log.durable().0 - log.start_position().0,
                pending_bytes: log.pending_bytes(),
                commits: log.figures(),
                scrub: log.scrub_figures(),
                tail_cache_bytes: log.reader().tail_bytes(),
                read_cache_bytes: log.reader().chunk_bytes(),
                index_cache_bytes: log.index_bytes(),
                refusal: why_not_writable(log),
                earliest_ms,
                disk_total_bytes: space.map_or(0, |space| space.total_bytes),
                disk_available_bytes: space.map_or(0, |space| space.available_bytes),
                timing: tables.timers.counts().collect(),
                timing_late_ms: tables
                    .timers
                    .first_due_ms()
                    .map_or(0, |due_ms| now_ms.saturating_sub(due_ms)),
                halves: halves.into_iter().collect(),
                durable_here: log.durable_here(),
                replicas: self.replica_stats(log.id()),
                master: self.master_stats(log.id()),
            });
        }
        let timers = self.timer_figures.borrow();
        let counts = |of: &AHashMap<u32, u64>| of.iter().map(|(&id, &count)| (id, count)).collect();
        ShardFigures {
            up_ns: self.env.now_ns(),
            idle_ns: self.env.idle_ns(),
            held_pulls: self.hold.borrow().len(),
            logs,
            lags: lags.into_values().collect(),
            missed: self.logs.values().flat_map(|log| log.missed()).collect(),
            timers_late_ms: timers.late_ms,
            timers_accepted: counts(&timers.accepted),
            timers_fired: counts(&timers.fired),
        }
    }

    /// Lag of each group and topic, and the queues that are behind.
    async fn lags(&self) -> (Lags, Vec<Behind>) {
        let mut lags = Lags::new();
        let mut waiting = Vec::new();
        let newer = self.newer_offsets();
        for group in self.groups_with_offsets(&newer) {
            let mut offsets = Vec::new();
            let newer = newer.get(&group).map_or(&[][..], Vec::as_slice);
            self.offsets_of(&group, None, newer, &mut offsets);
            let mut looked_at = 0;
            for of_topic in offsets.chunk_by(|a, b| a.queue.topic_id == b.queue.topic_id) {
                let lag = self.lag_of_topic(&group, of_topic, &mut waiting);
                lags.extend(lag.map(|lag| ((group.clone(), lag.topic_id), lag)));
                looked_at += of_topic.len();
                if looked_at >= LAGS_AT_ONCE {
                    looked_at = 0;
                    yield_now().await;
                }
            }
            yield_now().await;
        }
        (lags, waiting)
    }

    /// The lag of a group in the queues of one topic. Adds those that are behind to `waiting`.
    fn lag_of_topic(
        &self,
        group: &Arc<str>,
        offsets: &[CommittedOffset],
        waiting: &mut Vec<Behind>,
    ) -> Option<Lag> {
        let mut lag: Option<Lag> = None;
        for committed in offsets {
            let queue = committed.queue;
            let Some(log) = self.log_of(queue) else {
                continue;
            };
            let bounds = log.bounds(queue);
            let offset = committed.offset.max(bounds.min_offset);
            let new_from = |offset: i64| (bounds.max_offset - offset).max(0) as u64;
            let tables = log.tables().borrow();
            let (behind, in_flight) = match tables.pop.get(group, queue) {
                Some(popped) => {
                    let in_flight = popped.len() as u64;
                    let new = new_from(popped.next().max(bounds.min_offset));
                    (new + in_flight, in_flight)
                }
                None => (new_from(offset), 0),
            };
            drop(tables);
            let lag = lag.get_or_insert_with(|| Lag {
                group: group.clone(),
                topic_id: queue.topic_id,
                behind: 0,
                in_flight: 0,
                oldest_ms: None,
            });
            lag.behind += behind;
            lag.in_flight += in_flight;
            if behind > 0 {
                waiting.push(Behind {
                    group: group.clone(),
                    queue,
                    offset,
                    behind,
                });
            }
        }
        lag
    }

    /// Looks up since when the groups are behind; first those that are behind most.
    async fn find_oldest(
        &self,
        lags: &mut BTreeMap<(Arc<str>, u32), Lag>,
        mut behind: Vec<Behind>,
    ) {
        let most_first = |queue: &Behind| std::cmp::Reverse(queue.behind);
        if behind.len() > OLDEST_READS_MAX {
            behind.select_nth_unstable_by_key(OLDEST_READS_MAX, most_first);
            behind.truncate(OLDEST_READS_MAX);
        }
        behind.sort_unstable_by_key(most_first);
        for queue in behind {
            let Some(log) = self.log_of(queue.queue).cloned() else {
                continue;
            };
            // What cannot be read, or went with retention meanwhile, has no time.
            let time = store_time(&log, queue.queue, queue.offset).await;
            let (Ok(Some(time_ms)), Some(lag)) =
                (time, lags.get_mut(&(queue.group, queue.queue.topic_id)))
            else {
                continue;
            };
            lag.oldest_ms = Some(lag.oldest_ms.map_or(time_ms, |known| known.min(time_ms)));
        }
    }
}
