//! What may go: whole segments, by age, by bytes, and when the disk fills. Consumption never deletes.
//!
//! Delayed messages that are not due yet outlive their segment: they are stored again at the end of the log, in one batch
//! with the end of their old timers, before the segment goes. So do half messages whose transactions are open; they keep
//! the origin by which their producers know them.

use std::io;
use std::time::Duration;

use crate::base::offset::Position;
use crate::io::env::{DiskSpace, Env};
use crate::store::commit_log::CommitLog;
use crate::store::delayed;
use crate::store::half;
use crate::store::tables::halves::{Half, Outcome};
use crate::store::tables::timers::{Timer, TimerKey};
use crate::store::types::{NewMessage, Refusal};

/// Bytes of delayed records that are carried forward in one batch, unless one alone has more.
const CARRY_BYTES: u64 = 128 << 10;
/// So often a record is read in vain before the pass gives up.
const READ_TRIES: u32 = 5;
/// Pause between these.
const READ_PAUSE: Duration = Duration::from_millis(200);
/// How often is looked whether what was carried is durable.
const CARRY_POLL: Duration = Duration::from_millis(2);
/// A pass gives up then: timers of the segment are being fired and the log does not get on.
const CARRY_POLLS_MAX: u32 = 5_000;

/// Rules of one pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionRules {
    /// Segments whose last record was stored before this (milliseconds since 1970) may go.
    pub older_than_ms: Option<u64>,
    /// Bytes of the log to keep.
    pub bytes_max: Option<u64>,
    /// So many segments may go whatever their age.
    pub before_time: usize,
}

/// Watermarks of the disk in percent of what users of it may have (`diskMaxUsedSpaceRatio`, `diskSpaceCleanForciblyRatio`,
/// `diskSpaceWarningLevelRatio`). Source: `DefaultMessageStore.CleanCommitLogService`.
#[derive(Clone, Copy, Debug)]
pub struct DiskRules {
    /// Above it, what is old enough goes at any hour.
    pub clean_percent: u8,
    /// Above it, the oldest segments go before their time, if `clean_early` (`cleanFileForciblyEnable`).
    pub clean_early_percent: u8,
    pub clean_early: bool,
    /// Above it, new messages are refused.
    pub refuse_percent: u8,
}

/// What is to be done about a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskVerdict {
    pub clean_now: bool,
    pub clean_early: bool,
    /// Why new messages are refused.
    pub refuse: Option<String>,
}

impl DiskRules {
    /// Judges a disk; one of unknown size is left alone.
    pub fn judge(&self, space: DiskSpace) -> DiskVerdict {
        let used_bytes = space.total_bytes.saturating_sub(space.available_bytes);
        let above = |percent: u8| {
            u128::from(used_bytes) * 100 > u128::from(space.total_bytes) * u128::from(percent)
        };
        if space.total_bytes == 0 {
            return DiskVerdict::default();
        }
        // A refusal asks for space as well, whatever the order of the two watermarks.
        let refuse = above(self.refuse_percent);
        DiskVerdict {
            clean_now: above(self.clean_percent) || refuse,
            clean_early: self.clean_early && (above(self.clean_early_percent) || refuse),
            refuse: refuse.then(|| {
                format!(
                    "{} % of it is in use ({} MiB are free), and new messages are refused above {} % (diskSpaceWarningLevelRatio); make space, or lower fileReservedTime",
                    (u128::from(used_bytes) * 100).div_ceil(u128::from(space.total_bytes)),
                    space.available_bytes >> 20,
                    self.refuse_percent
                )
            }),
        }
    }
}

/// Removes what the rules let go, oldest first. Returns the new start of the log if it moved.
/// The segment that is written to always stays, and so does all that no snapshot stands in for.
pub async fn clean<E: Env>(
    log: &CommitLog<E>,
    rules: RetentionRules,
) -> io::Result<Option<Position>> {
    let mut moved = None;
    let mut before_time = rules.before_time;
    log.finish_trim().await?;
    loop {
        let segments = log.segments();
        let start = segments.start();
        let first_end = segments.segment_end(start);
        let durable = log.durable().0;
        if first_end > durable {
            break;
        }
        let time = log.segment_times.borrow().get(&first_end).copied();
        let expired = rules
            .older_than_ms
            .is_some_and(|limit| time.is_some_and(|time| time < limit));
        let too_many = rules.bytes_max.is_some_and(|limit| durable - start > limit);
        if !expired && !too_many {
            if before_time == 0 {
                break;
            }
            before_time -= 1;
            tracing::warn!(
                log = log.id(),
                start = first_end,
                "a segment goes before its time: the disk is fuller than diskSpaceCleanForciblyRatio"
            );
        }
        carry_timers(log, first_end).await?;
        carry_halves(log, first_end).await?;
        if !remove_first(log, first_end).await? {
            break;
        }
        moved = Some(Position(first_end));
        tracing::info!(
            log = log.id(),
            start = first_end,
            by_age = expired,
            "a segment was removed"
        );
    }
    Ok(moved)
}

/// Retention of a replica: removes what lies before `start`, where its master's log begins.
pub async fn follow<E: Env>(log: &CommitLog<E>, start: u64) -> io::Result<Option<Position>> {
    let mut moved = None;
    if log.is_seeding() {
        return Ok(None);
    }
    log.finish_trim().await?;
    loop {
        let segments = log.segments();
        let first_end = segments.segment_end(segments.start());
        if first_end > start || first_end > log.durable().0 {
            return Ok(moved);
        }
        if !remove_first(log, first_end).await? {
            return Ok(moved);
        }
        moved = Some(Position(first_end));
    }
}

/// Removes the first segment, which ends at `first_end`. The log may have got further since the last one of the same pass went, so
/// each needs a snapshot of its end or later: recovery begins there, and it holds what the segment said of topics and offsets. The
/// tables forget the segment first: a crash in between leaves a file that the next pass removes.
async fn remove_first<E: Env>(log: &CommitLog<E>, first_end: u64) -> io::Result<bool> {
    if log.snapshot_position() < first_end && log.is_confirmed() {
        log.save_snapshot().await?;
    }
    if log.snapshot_position() < first_end {
        return Ok(false);
    }
    let unconsumed = match log.options().replica {
        true => None, // its master counts
        false => Some(log.unconsumed().await),
    };
    log.trim_tables(first_end).await?;
    if let Some(unconsumed) = unconsumed {
        log.count_missed(unconsumed);
    }
    let segments = log.segments();
    if segments.remove_first_below(first_end).await?.is_none() {
        return Ok(false);
    }
    log.segment_times.borrow_mut().remove(&first_end);
    log.reader().forget(0..0, first_end);
    Ok(true)
}

/// Segments that one pass removes before their time (`deleteFileBatchMax`).
const BEFORE_TIME_MAX: usize = 10;

/// One pass over a log: refuses new messages or takes them again, and removes what the rules and the disk ask for.
/// `delete_hour`: it is the hour in which old segments go.
pub async fn keep<E: Env>(
    log: &CommitLog<E>,
    disk: &DiskRules,
    older_than_ms: u64,
    bytes_max: Option<u64>,
    delete_hour: bool,
) -> io::Result<()> {
    let look = || {
        let space = log.env().disk_space(&log.options().directory);
        space.map(|space| disk.judge(space)).unwrap_or_default()
    };
    let mut verdict = look();
    log.set_too_full(verdict.refuse.map(Into::into));
    let rules = RetentionRules {
        older_than_ms: (delete_hour || verdict.clean_now).then_some(older_than_ms),
        bytes_max,
        before_time: 0,
    };
    clean(log, rules).await?;
    if !verdict.clean_early {
        return Ok(());
    }
    // One after the other, since all logs, and others, use the same disk.
    log.drop_spare().await?;
    for _ in 0..BEFORE_TIME_MAX {
        verdict = look();
        if !verdict.clean_early {
            break;
        }
        let rules = RetentionRules {
            before_time: 1,
            ..RetentionRules::default()
        };
        if clean(log, rules).await?.is_none() {
            break;
        }
        log.drop_spare().await?;
    }
    log.set_too_full(look().refuse.map(Into::into));
    Ok(())
}

/// Stores all delayed messages whose records lie before `end` again, durably. Then no timer points there any more.
async fn carry_timers<E: Env>(log: &CommitLog<E>, end: u64) -> io::Result<()> {
    let taken = log.tables().borrow_mut().timers.take_below(end);
    let count = taken.len();
    let mut left = &taken[..];
    while !left.is_empty() {
        let (carried, rest) = left.split_at(piece(left, log.options().segment_bytes));
        match carry(log, carried).await {
            Ok(()) => left = rest,
            Err(error) => {
                let keys = left.iter().map(|(key, _)| *key);
                log.tables().borrow_mut().timers.give_back(keys);
                return Err(error);
            }
        }
    }
    let lost = log.tables().borrow().timers.unreadable_below(end);
    if !lost.is_empty() {
        for key in &lost {
            tracing::error!(
                log = log.id(),
                position = key.position,
                due_ms = key.due_ms,
                "a delayed message that cannot be read goes with its segment"
            );
        }
        log.append_moved(&[], &[], &lost)
            .map_err(io::Error::other)?;
    }
    // Those that are being fired now leave by themselves.
    let there = || log.tables().borrow().timers.has_below(end);
    until_left(log, there, "delayed messages", "being moved").await?;
    if count > 0 {
        tracing::info!(
            log = log.id(),
            count,
            "delayed messages were carried out of an old segment"
        );
    }
    Ok(())
}

/// How many timers go into the next batch.
fn piece(timers: &[(TimerKey, Timer)], segment_bytes: u64) -> usize {
    let mut bytes = 0;
    let fitting = timers.iter().take_while(|(_, timer)| {
        bytes += u64::from(timer.bytes);
        bytes <= CARRY_BYTES.min(segment_bytes / 4)
    });
    fitting.count().max(1)
}

async fn read<E: Env>(log: &CommitLog<E>, key: TimerKey, timer: Timer) -> io::Result<NewMessage> {
    let mut tries = 0;
    loop {
        let bytes = timer.bytes as usize;
        let record = log.reader().read_whole(key.position, bytes).await;
        tries += 1;
        match record {
            Ok(record) => {
                let message = delayed::message(&record).map_err(io::Error::other);
                return message.map(|(_, message)| message);
            }
            Err(error) if tries == READ_TRIES => return Err(error),
            Err(_) => log.env().sleep(READ_PAUSE).await,
        }
    }
}

async fn carry<E: Env>(log: &CommitLog<E>, timers: &[(TimerKey, Timer)]) -> io::Result<()> {
    let mut delayed: Vec<(NewMessage, u64)> = Vec::with_capacity(timers.len());
    let mut keys = Vec::with_capacity(timers.len());
    for &(key, timer) in timers {
        match read(log, key, timer).await {
            Ok(message) => delayed.push((message, key.due_ms)),
            Err(error) => {
                // The segment stays for this pass; at the next one the message goes with it, if nobody has read it.
                log.tables().borrow_mut().timers.set_unreadable(key);
                return Err(error);
            }
        }
        keys.push(key);
    }
    let position = append_patiently(log, || log.append_moved(&[], &delayed, &keys)).await?;
    until_durable(log, position).await
}

/// Tries again while the log has no room yet.
async fn append_patiently<E: Env, T>(
    log: &CommitLog<E>,
    append: impl Fn() -> Result<T, Refusal>,
) -> io::Result<T> {
    let mut polls = 0;
    loop {
        match append() {
            Err(Refusal::SpaceOnItsWay { .. } | Refusal::Busy { .. })
                if polls < CARRY_POLLS_MAX =>
            {
                polls += 1;
                log.env().sleep(CARRY_POLL).await;
            }
            result => return result.map_err(io::Error::other),
        }
    }
}

async fn until_durable<E: Env>(log: &CommitLog<E>, position: Position) -> io::Result<()> {
    while log.durable() <= position {
        if let Some(refusal) = log.refusal() {
            return Err(io::Error::other(refusal));
        }
        log.env().sleep(CARRY_POLL).await;
    }
    Ok(())
}

/// Stores all open half messages whose records lie before `end` again, durably. Then none lies there any more.
async fn carry_halves<E: Env>(log: &CommitLog<E>, end: u64) -> io::Result<()> {
    let below = log.tables().borrow().halves.below(end);
    let count = below.len();
    let bytes_max = CARRY_BYTES.min(log.options().segment_bytes / 4);
    let mut carried: Vec<(u64, NewMessage)> = Vec::new();
    let mut bytes = 0;
    for (number, &(origin, half)) in below.iter().enumerate() {
        // It may end while others are carried.
        let open = log.tables().borrow().halves.get(origin);
        if open.is_some() {
            match read_half(log, origin, half).await {
                Ok(Some(message)) => carried.push((origin, message)),
                Ok(None) => {}
                Err(error) => give_up_unreadable(log, origin, half, error).await?,
            }
        }
        bytes += u64::from(half.bytes);
        let next = below.get(number + 1);
        let is_full = next.is_none_or(|(_, next)| bytes + u64::from(next.bytes) > bytes_max);
        if is_full {
            let position = append_patiently(log, || log.carry_halves(&carried)).await?;
            if let Some(position) = position {
                until_durable(log, position).await?;
            }
            carried.clear();
            bytes = 0;
        }
    }
    // Those that are ending now leave by themselves.
    let there = || log.tables().borrow().halves.has_below(end);
    until_left(log, there, "transactions", "ending").await?;
    if count > 0 {
        tracing::info!(
            log = log.id(),
            count,
            "half messages were carried out of an old segment"
        );
    }
    Ok(())
}

/// Waits until nothing of what is asked for is in the oldest segment any more; `what` they are and what they are `doing`
/// is for the error.
async fn until_left<E: Env>(
    log: &CommitLog<E>,
    there: impl Fn() -> bool,
    what: &str,
    doing: &str,
) -> io::Result<()> {
    for _ in 0..CARRY_POLLS_MAX {
        if !there() {
            return Ok(());
        }
        if let Some(refusal) = log.refusal() {
            return Err(io::Error::other(refusal));
        }
        log.env().sleep(CARRY_POLL).await;
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        format!("{what} of the oldest segment are still {doing}"),
    ))
}

/// The message of an open half; none if its transaction ended meanwhile.
async fn read_half<E: Env>(
    log: &CommitLog<E>,
    origin: u64,
    half: Half,
) -> io::Result<Option<NewMessage>> {
    let mut tries = 0;
    loop {
        let read = log.reader().read_whole(half.position, half.bytes as usize);
        let message = read.await.and_then(|record| {
            let (head, message) = half::message(&record).map_err(io::Error::other)?;
            match head.origin == origin {
                true => Ok(message),
                false => Err(io::Error::other("another half is in its place")),
            }
        });
        tries += 1;
        match message {
            Ok(message) => return Ok(Some(message)),
            Err(_) if log.tables().borrow().halves.get(origin).is_none() => return Ok(None),
            Err(error) if tries == READ_TRIES => return Err(error),
            Err(_) => log.env().sleep(READ_PAUSE).await,
        }
    }
}

/// A half that cannot be read keeps its segment for one pass; at the next one it goes with it.
async fn give_up_unreadable<E: Env>(
    log: &CommitLog<E>,
    origin: u64,
    half: Half,
    error: io::Error,
) -> io::Result<()> {
    if !log.tables().borrow_mut().halves.set_unreadable(origin) {
        return Err(error);
    }
    tracing::error!(
        log = log.id(),
        position = half.position,
        %error,
        "a half message that cannot be read goes with its segment"
    );
    let end = || log.end_half(origin, Outcome::GivenUp, None);
    append_patiently(log, end).await.map(|_| ())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn judge(used: u64) -> DiskVerdict {
        let rules = DiskRules {
            clean_percent: 75,
            clean_early_percent: 85,
            clean_early: true,
            refuse_percent: 90,
        };
        rules.judge(DiskSpace {
            total_bytes: 1_000,
            available_bytes: 1_000 - used,
        })
    }

    #[test]
    fn a_disk_is_judged_by_how_far_it_is_above_each_watermark() {
        let marks = |used| {
            let verdict = judge(used);
            (
                verdict.clean_now,
                verdict.clean_early,
                verdict.refuse.is_some(),
            )
        };
        assert_eq!(marks(750), (false, false, false));
        assert_eq!(marks(751), (true, false, false));
        assert_eq!(marks(851), (true, true, false));
        assert_eq!(marks(900), (true, true, false));
        assert_eq!(marks(901), (true, true, true));
        let reason = judge(951).refuse.unwrap();
        for part in ["96 %", "90 %", "diskSpaceWarningLevelRatio"] {
            assert!(reason.contains(part), "{reason}");
        }
    }

    #[test]
    fn nothing_goes_before_its_time_if_that_is_switched_off_and_an_unknown_disk_is_left_alone() {
        let rules = DiskRules {
            clean_percent: 75,
            clean_early_percent: 85,
            clean_early: false,
            refuse_percent: 90,
        };
        let full = DiskSpace {
            total_bytes: 1_000,
            available_bytes: 0,
        };
        assert!(!rules.judge(full).clean_early);
        let unknown = DiskSpace {
            total_bytes: 0,
            available_bytes: 0,
        };
        assert_eq!(rules.judge(unknown), DiskVerdict::default());
    }
}
