//! Pulls: from a queue's index to slices of stored records, and the waiting for more.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use smallvec::SmallVec;

use crate::base::limits::{
    PULL_BYTES_MAX, PULL_MESSAGES_MAX, PULL_SCAN_BYTES_MAX, PULL_SCAN_ENTRIES_MAX,
};
use crate::io::aligned_buf::PageSlice;
use crate::io::body::Body;
use crate::io::env::Env;
use crate::shard::core::{ReplyTo, Shard, Waiting};
use crate::shard::hold::Parked;
use crate::shard::message::{
    LocalReply, MessageFilter, Pull, PullStatus, Pulled, QueueBounds, QueueKey, Refusal, ShardReply,
};
use crate::store::CommitLog;
use crate::store::tables::consume_queue::EntryRun;
use crate::wire::record::RecordView;
use crate::wire::sql::CompiledFilter;

/// Index entries that are looked up together.
const RUN_ENTRIES_MAX: usize = 32;

/// What a failed read is answered with.
pub(super) fn read_refusal(error: &io::Error) -> Refusal {
    Refusal::Read {
        reason: Arc::from(error.to_string()),
    }
}

fn empty(status: PullStatus, next_offset: i64, bounds: QueueBounds) -> Pulled<Body> {
    Pulled {
        status,
        next_offset,
        min_offset: bounds.min_offset,
        max_offset: bounds.max_offset,
        records: Body::Empty,
        message_count: 0,
        is_far_behind: false,
    }
}

/// Whether a SQL92 filter wants a record, and the bytes of work that this took. Only what is in front of and behind the
/// body is looked at; a record over the border of two reads is joined first.
pub(super) fn wanted(filter: &CompiledFilter, record: &[PageSlice]) -> (bool, usize) {
    let joined;
    let bytes: &[u8] = match record {
        [one] => one,
        parts => {
            joined = parts.iter().fold(Vec::new(), |mut all, part| {
                all.extend_from_slice(part);
                all
            });
            &joined
        }
    };
    // A record that cannot be read has no properties, as in RocketMQ.
    let properties = RecordView::parse(bytes).map_or(&[][..], |record| record.properties());
    let work_bytes = bytes.len() + filter.work_bytes(properties.len());
    (filter.matches(properties), work_bytes)
}

/// Reads one pull. Never waits for new messages; waits for the disk only when the bytes are not in memory.
async fn read<E: Env>(log: &CommitLog<E>, pull: &Pull) -> io::Result<Pulled<Body>> {
    let bounds = log.bounds(pull.queue);
    if bounds.max_offset == bounds.min_offset && pull.offset != bounds.max_offset
        || bounds.max_offset == 0
    {
        return Ok(empty(
            PullStatus::NoMessageInQueue,
            bounds.max_offset,
            bounds,
        ));
    }
    if pull.offset < bounds.min_offset {
        return Ok(empty(PullStatus::OffsetTooSmall, bounds.min_offset, bounds));
    }
    if pull.offset == bounds.max_offset {
        return Ok(empty(PullStatus::OffsetOverflowOne, pull.offset, bounds));
    }
    if pull.offset > bounds.max_offset {
        return Ok(empty(
            PullStatus::OffsetOverflowBadly,
            bounds.max_offset,
            bounds,
        ));
    }
    let messages_max = pull.messages_max.clamp(1, PULL_MESSAGES_MAX as u32);
    let bytes_max = (pull.bytes_max as usize).min(PULL_BYTES_MAX);
    let scan_end = bounds
        .max_offset
        .min(pull.offset + PULL_SCAN_ENTRIES_MAX.max(u64::from(messages_max)) as i64);
    let mut slices: SmallVec<[PageSlice; 4]> = SmallVec::new();
    let (mut bytes, mut messages, mut next) = (0usize, 0u32, pull.offset);
    let mut scanned_bytes = 0;
    let mut is_far_behind = false;
    let in_memory_from = log
        .durable()
        .0
        .saturating_sub(log.options().tail_cache_bytes as u64);
    let (mut run, mut run_at) = (EntryRun::new(), pull.offset);
    // The rest of what a filter would have to read is left to the next pull.
    while next < scan_end && messages < messages_max && scanned_bytes < PULL_SCAN_BYTES_MAX {
        let known = run.get((next - run_at) as usize).copied();
        let entry = match known {
            Some(entry) => entry,
            None => {
                run.clear();
                run_at = next;
                let count = (messages_max - messages).min((scan_end - next) as u32) as usize;
                log.entries(pull.queue, next, count.min(RUN_ENTRIES_MAX), &mut run)
                    .await?;
                match run.first() {
                    Some(&first) => first,
                    None => break,
                }
            }
        };
        let offset = next;
        next += 1;
        if !pull.filter.matches_entry(entry.tags_code) {
            continue;
        }
        let full = messages > 0 && bytes + entry.size as usize > bytes_max;
        if full {
            next -= 1;
            break;
        }
        is_far_behind |= entry.position < in_memory_from;
        let record = match log.record(pull.queue, offset, entry).await {
            Ok(record) => record,
            // What lies before one that cannot be read is given out first.
            Err(_) if messages > 0 => {
                next -= 1;
                break;
            }
            Err(error) => return Err(error),
        };
        if let MessageFilter::Sql(filter) = &pull.filter {
            let (wanted, work_bytes) = wanted(filter, &record);
            scanned_bytes += work_bytes;
            if !wanted {
                continue;
            }
        }
        for slice in record {
            let joined = slices.last_mut().is_some_and(|last| last.try_join(&slice));
            if !joined {
                slices.push(slice);
            }
        }
        bytes += entry.size as usize;
        messages += 1;
    }
    if messages == 0 {
        return Ok(empty(PullStatus::NoMatchedMessage, next, bounds));
    }
    Ok(Pulled {
        status: PullStatus::Found,
        next_offset: next,
        min_offset: bounds.min_offset,
        max_offset: bounds.max_offset,
        records: Body::Pages(slices),
        message_count: messages,
        is_far_behind,
    })
}

/// Runs a task to its first wait here and the rest as a task of its own: what is in memory costs no task at all.
pub(super) fn run_or_spawn<E: Env>(env: &E, task: impl Future<Output = ()> + 'static) {
    let mut task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(task);
    if task
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_pending()
    {
        // Polled again by its own task, which leaves its waker then.
        env.spawn(task);
    }
}

impl<E: Env> Shard<E> {
    /// Serves a pull of a queue of this core.
    pub(super) fn serve_pull(&self, pull: Pull, reply_to: ReplyTo) {
        if let Some((group, offset)) = &pull.commit {
            self.remember_offset(group.clone(), pull.queue, *offset);
        }
        let asked_offset = pull.offset;
        self.try_pull(
            Waiting {
                pull,
                asked_offset,
                reply_to,
            },
            None,
        );
    }

    /// `deadline_ms`: of a pull that was parked already.
    fn try_pull(&self, waiting: Waiting, deadline_ms: Option<u64>) {
        let Some(log) = self.log_of(waiting.pull.queue) else {
            let refusal = ShardReply::Refused(Refusal::NoQueue);
            return self.reply(waiting.reply_to, refusal);
        };
        if !log.is_settled() {
            let refusal = ShardReply::Refused(Refusal::Unsettled);
            return self.reply(waiting.reply_to, refusal);
        }
        let log = log.clone();
        let Some(shard) = self.me.upgrade() else {
            return;
        };
        let is_cold = log.is_cold(waiting.pull.queue, waiting.pull.offset);
        let task = async move {
            let mut next = Some((waiting, deadline_ms));
            while let Some((waiting, deadline_ms)) = next {
                match read(&log, &waiting.pull).await {
                    Ok(pulled) => next = shard.on_pulled(waiting, pulled, deadline_ms),
                    // Retention removed it meanwhile: the answer is where the queue begins now.
                    Err(_) if waiting.pull.offset < log.bounds(waiting.pull.queue).min_offset => {
                        next = Some((waiting, deadline_ms));
                    }
                    Err(error) => {
                        tracing::error!(queue = ?waiting.pull.queue, %error, "a pull cannot be read");
                        let refusal = ShardReply::Refused(read_refusal(&error));
                        return shard.reply(waiting.reply_to, refusal);
                    }
                }
                if next.is_some() {
                    // A filter that wants little goes through much: others have their turn in between.
                    futures_lite::future::yield_now().await;
                }
            }
        };
        // Whoever reads from the disk waits anyhow; its copying must not hold up those who are in memory, or who write.
        match is_cold {
            true => self.env.spawn_background(task),
            false => run_or_spawn(&self.env, task),
        }
    }

    /// Answers or parks a pull that was read; gives it back, with its deadline, if there is more to read already.
    fn on_pulled(
        &self,
        mut waiting: Waiting,
        pulled: Pulled<Body>,
        parked_until: Option<u64>,
    ) -> Option<(Waiting, Option<u64>)> {
        let at_the_end = match pulled.status {
            PullStatus::OffsetOverflowOne => true,
            PullStatus::NoMessageInQueue => waiting.pull.offset == pulled.next_offset,
            // A parked pull goes on behind what it does not want; a fresh one is answered, so that its consumer moves on.
            PullStatus::NoMatchedMessage => parked_until.is_some(),
            _ => false,
        };
        let now_ms = self.env.now_ns() / 1_000_000;
        let deadline_ms = parked_until.unwrap_or(now_ms + waiting.pull.suspend_ms);
        if at_the_end && deadline_ms > now_ms && !self.stopping.get() {
            waiting.pull.offset = waiting.pull.offset.max(pulled.next_offset);
            let queue = waiting.pull.queue;
            // Something may have come while the disk was read.
            let grown = self
                .log_of(queue)
                .is_some_and(|log| log.bounds(queue).max_offset > waiting.pull.offset);
            if grown {
                return Some((waiting, Some(deadline_ms)));
            }
            self.hold.borrow_mut().park(Parked {
                queue,
                deadline_ms,
                waiter: waiting,
            });
            self.hold_changed.notify();
            return None;
        }
        self.answer(waiting, pulled);
        None
    }

    fn answer(&self, waiting: Waiting, mut pulled: Pulled<Body>) {
        {
            let mut stats = self.stats.borrow_mut();
            if pulled.message_count > 0 {
                stats.get_found += 1;
                stats.get_messages += u64::from(pulled.message_count);
                stats.get_bytes += pulled.records.len() as u64;
            } else {
                stats.get_missed += 1;
            }
        }
        // It moved on over unwanted entries while it was parked: the consumer has to hear that.
        if pulled.status == PullStatus::OffsetOverflowOne
            && waiting.asked_offset < pulled.next_offset
        {
            pulled.status = PullStatus::NoMatchedMessage;
        }
        self.reply(waiting.reply_to, LocalReply::Pulled(pulled));
    }

    /// Answers a parked pull with what there is: nothing.
    pub(super) fn answer_empty(&self, waiting: Waiting) {
        let bounds = self
            .log_of(waiting.pull.queue)
            .map(|log| log.bounds(waiting.pull.queue))
            .unwrap_or_default();
        let status = if bounds.max_offset == 0 {
            PullStatus::NoMessageInQueue
        } else {
            PullStatus::OffsetOverflowOne
        };
        let next = waiting.pull.offset;
        self.answer(waiting, empty(status, next, bounds));
    }

    /// A queue has new visible messages.
    pub(super) fn wake_pulls(&self, queue: QueueKey) {
        if !self.hold.borrow().has(queue) {
            return;
        }
        let parked = self.hold.borrow_mut().take_queue(queue);
        for parked in parked {
            self.try_pull(parked.waiter, Some(parked.deadline_ms));
        }
    }

    /// Answers parked pulls whose time is up. Sleeps until the next one is.
    pub(super) async fn expire_pulls(self: Rc<Self>) {
        loop {
            let now_ms = self.env.now_ns() / 1_000_000;
            let expired = self.hold.borrow_mut().take_expired(now_ms);
            for parked in expired {
                self.answer_empty(parked.waiter);
            }
            if self.stopping.get() {
                return;
            }
            let next = self.hold.borrow().next_deadline_ms();
            match next {
                // An earlier deadline that comes meanwhile is at most this late.
                Some(deadline_ms) => {
                    let wait = deadline_ms.saturating_sub(now_ms).clamp(1, 100);
                    self.env.sleep(Duration::from_millis(wait)).await;
                }
                None => self.hold_changed.notified().await,
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::io::aligned_buf::PageBuf;
    use crate::wire::record::RecordFields;

    fn record() -> Vec<u8> {
        let host = "127.0.0.1:1".parse().unwrap();
        let fields = RecordFields {
            topic: "T",
            body: &[7; 100],
            properties: b"a\x011\x02",
            queue_id: 0,
            flag: 0,
            queue_offset: 0,
            physical_offset: 0,
            sys_flag: 0,
            born_timestamp: 0,
            born_host: host,
            store_timestamp: 0,
            store_host: host,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
        };
        let mut bytes = vec![0; fields.encoded_len()];
        fields.encode_into(&mut bytes);
        bytes
    }

    #[test]
    fn a_record_is_filtered_wherever_it_is_cut_and_its_bytes_count_as_work() {
        let record = record();
        let slice = |bytes: &[u8]| {
            PageSlice::new(Rc::new(PageBuf::from_heap(bytes.to_vec())), 0, bytes.len())
        };
        for (sql, is_wanted) in [("a = 1", true), ("a = 2", false), ("b IS NULL", true)] {
            let filter = CompiledFilter::compile(sql).unwrap();
            let (whole, work_bytes) = wanted(&filter, &[slice(&record)]);
            assert_eq!(whole, is_wanted, "{sql}");
            assert!(work_bytes > record.len());
            for cut in 1..record.len() {
                let parts = [slice(&record[..cut]), slice(&record[cut..])];
                assert_eq!(wanted(&filter, &parts).0, is_wanted, "{sql} cut at {cut}");
            }
        }
    }
}
