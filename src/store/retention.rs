//! What may go: whole segments, by age, by bytes, and when the disk fills. Consumption never deletes.

use std::io;

use crate::base::offset::Position;
use crate::io::env::Env;
use crate::store::commit_log::CommitLog;

/// Rules of one pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionRules {
    /// Segments whose last record was stored before this (milliseconds since 1970) may go.
    pub older_than_ms: Option<u64>,
    /// Bytes of the log to keep.
    pub bytes_max: Option<u64>,
}

/// Removes what the rules let go, oldest first. Returns the new start of the log if it moved.
/// The segment that is written to always stays, and so does all that no snapshot stands in for.
pub async fn clean<E: Env>(
    log: &CommitLog<E>,
    rules: RetentionRules,
) -> io::Result<Option<Position>> {
    let mut moved = None;
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
            break;
        }
        // The tables forget it first, and a snapshot holds what the segment said of topics and offsets: a crash in
        // between leaves a file that the next pass removes.
        if moved.is_none() {
            log.save_snapshot().await?;
        }
        log.trim_tables(first_end).await?;
        if segments.remove_first_below(first_end).await?.is_none() {
            break;
        }
        log.segment_times.borrow_mut().remove(&first_end);
        log.reader().forget(0..0, first_end);
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
