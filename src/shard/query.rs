//! Messages by key, from the logs of one core: the key index names records, the records say whether they have the key.
//!
//! Bounded: a query reads so many blocks of each index, looks at so many records, and answers with so many bytes.

use std::rc::Rc;

use crate::base::limits::QUERY_BYTES_MAX;
use crate::base::offset::{PhysicalOffset, Position};
use crate::io::body::Body;
use crate::io::env::Env;
use crate::shard::core::{ReplyTo, Shard};
use crate::shard::message::{KeyFinds, KeyQuery, LocalReply, QueueKey};
use crate::shard::pull::{read_refusal, run_or_spawn};
use crate::shard::pump::read_record;
use crate::store::CommitLog;
use crate::store::keys::entry;
use crate::wire::record::RecordView;

/// Records that are looked at beyond those that are wanted: others have the same hash, or lie outside of the times.
const SPARE_RECORDS: usize = 64;

impl<E: Env> Shard<E> {
    /// Serves a query of all logs of this core.
    pub(super) fn serve_query(&self, query: KeyQuery, reply_to: ReplyTo) {
        let Some(shard) = self.me.upgrade() else {
            return;
        };
        run_or_spawn(&self.env, async move {
            let mut all = KeyFinds {
                found: Vec::new(),
                newest_offset: 0,
                newest_ms: 0,
                missing_bytes: 0,
            };
            for log in shard.logs.values().filter(|log| log.is_settled()) {
                let newest = log.keys().newest();
                if newest.store_ms as i64 > all.newest_ms {
                    all.newest_ms = newest.store_ms as i64;
                    all.newest_offset = PhysicalOffset::new(log.id(), Position(newest.position)).0;
                }
                match find(log, &query).await {
                    Ok(found) => {
                        all.found.extend(found);
                        all.missing_bytes += log.keys().gap_bytes();
                    }
                    Err(error) => {
                        tracing::error!(log = log.id(), %error, "a query by key cannot be read");
                        let refusal = LocalReply::Refused(read_refusal(&error));
                        return shard.reply(reply_to, refusal);
                    }
                }
            }
            newest_first(&mut all.found, query.messages_max, Body::len);
            shard.reply(reply_to, LocalReply::Found(all));
        });
    }
}

/// Puts the newest first and leaves as many as an answer may have.
pub fn newest_first<B>(found: &mut Vec<(i64, B)>, messages_max: usize, len: impl Fn(&B) -> usize) {
    // Stable: of one log, one millisecond, and one order of appending.
    found.sort_by_key(|(time_ms, _)| std::cmp::Reverse(*time_ms));
    found.truncate(messages_max);
    let mut bytes = 0;
    let fitting = found.iter().take_while(|(_, record)| {
        bytes += len(record);
        bytes <= QUERY_BYTES_MAX
    });
    let fitting = fitting.count().max(1);
    found.truncate(fitting);
}

/// Seconds of an index entry for a time in milliseconds.
fn seconds_of(ms: i64) -> u32 {
    u32::try_from(ms.max(0) / 1_000).unwrap_or(u32::MAX)
}

async fn find<E: Env>(
    log: &Rc<CommitLog<E>>,
    query: &KeyQuery,
) -> std::io::Result<Vec<(i64, Body)>> {
    // Another incarnation of the topic, or none, in this log: there is nothing of this one.
    if log.tables().borrow().topic_id(&query.topic) != Some(query.topic_id) {
        return Ok(Vec::new());
    }
    let index = log.keys();
    let seconds = seconds_of(query.begin_ms)..=seconds_of(query.end_ms);
    let mut positions = Vec::new();
    for &kind in &query.kinds {
        let hash = entry::hash_of(&query.topic, kind, &query.key);
        let count_max = query.messages_max + SPARE_RECORDS;
        positions.extend(index.find(hash, seconds.clone(), count_max).await?);
    }
    positions.sort_unstable_by(|a, b| b.cmp(a));
    positions.dedup();
    let (mut found, mut bytes) = (Vec::new(), 0);
    for position in positions {
        if found.len() >= query.messages_max || bytes >= QUERY_BYTES_MAX {
            break;
        }
        let Some(record) = read_record(log, Position(position)).await else {
            continue;
        };
        if let Some(time_ms) = wanted(log, query, &record, position) {
            bytes += record.len();
            found.push((time_ms, record));
        }
    }
    Ok(found)
}

/// Store time of a record if it is one that the query wants.
fn wanted<E: Env>(
    log: &CommitLog<E>,
    query: &KeyQuery,
    record: &Body,
    position: u64,
) -> Option<i64> {
    let Body::Pages(pages) = record else {
        return None;
    };
    let record = RecordView::parse(pages.first()?).ok()?;
    let queue = QueueKey {
        topic_id: query.topic_id,
        queue_id: record.queue_id() as u32,
    };
    // A topic that was deleted and made again does not show what it had before.
    let first = log.tables().borrow().queues.first_position(queue)?;
    let time_ms = record.store_timestamp();
    let right = record.topic() == &*query.topic
        && position >= first
        && (query.begin_ms..=query.end_ms).contains(&time_ms)
        && query
            .kinds
            .iter()
            .any(|&kind| entry::has_key(record.properties(), kind, &query.key));
    right.then_some(time_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_newest_and_stays_within_its_bounds_but_for_the_first() {
        let mut found = vec![(1, 10), (3, QUERY_BYTES_MAX), (2, 5)];
        newest_first(&mut found, 3, |bytes| *bytes);
        assert_eq!(found, [(3, QUERY_BYTES_MAX)]);
        let mut found = vec![(1, 10), (3, 20), (2, 5)];
        newest_first(&mut found, 2, |bytes| *bytes);
        assert_eq!(found, [(3, 20), (2, 5)]);
        let mut found = vec![(1, QUERY_BYTES_MAX + 1)];
        newest_first(&mut found, 2, |bytes| *bytes);
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn times_outside_of_all_seconds_are_the_first_and_the_last() {
        assert_eq!(seconds_of(-5), 0);
        assert_eq!(seconds_of(1_999), 1);
        assert_eq!(seconds_of(i64::MAX), u32::MAX);
    }
}
