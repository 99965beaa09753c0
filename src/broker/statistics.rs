//! Figures per minute, hour and day: VIEW_BROKER_STATS_DATA (315).
//!
//! Each core counts what its connections send and get; a question sums all cores. A row appears with its first value, as
//! in RocketMQ, and goes when it is among those that were used longest ago and others need its room. What has no row is
//! counted in one for all of its kind, so that sums stay right. Source: `StatsItemSet`, `BrokerStatsManager`.

use std::sync::Arc;

use ahash::AHashMap;

use crate::base::histogram::Histogram;
use crate::base::limits::STATISTICS_ROWS_MAX;
use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::shard::message::{GroupCommand, LocalReply, ShardReply, ShardRequest, Traffic};
use crate::wire::remoting::body::{BrokerStatsData, BrokerStatsItem};
use crate::wire::remoting::command::Command;

/// The topic and group of what is counted without a row of its own.
const OTHERS: &str = "(others)";

/// Rows go at most this often: with more topics than rows in turns each message would throw half of them away.
const DROP_PAUSE_MS: u64 = 10_000;

/// Length of one cell and number of cells: a minute, an hour, a day.
const WINDOWS: [(u64, usize); 3] = [(10_000, 6), (600_000, 6), (3_600_000, 24)];

/// Length of the shortest cell; each other one begins with one of these.
const CELL_MS: u64 = WINDOWS[0].0;
const _: () = assert!(WINDOWS[1].0.is_multiple_of(CELL_MS) && WINDOWS[2].0.is_multiple_of(CELL_MS));

/// What is counted. A row's key is a topic and a group; of what was sent, a topic and the type of the messages.
pub(super) use crate::shard::message::TrafficKind as Counted;

/// Bounds of the sizes of messages in bytes, as RocketMQ's metrics have them.
const SIZE_BOUNDS: &[u64] = &[1 << 10, 4 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];

/// Messages, their bytes, and in how many requests they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    messages: u64,
    bytes: u64,
    requests: u64,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.requests += other.requests;
    }
}

/// The last cells of one window.
#[derive(Clone, Debug)]
struct Window {
    cell_ms: u64,
    /// (number of the cell since 1970, what was counted in it).
    cells: Box<[(u64, Sum)]>,
}

impl Window {
    fn new((cell_ms, count): (u64, usize)) -> Self {
        Self {
            cell_ms,
            cells: vec![(0, Sum::default()); count].into(),
        }
    }

    fn add(&mut self, now_ms: u64, what: Sum) {
        let number = now_ms / self.cell_ms;
        let at = (number % self.cells.len() as u64) as usize;
        let (found, sum) = &mut self.cells[at];
        if *found != number {
            (*found, *sum) = (number, Sum::default());
        }
        sum.add(what);
    }

    /// Adds another one of the same length.
    fn merge(&mut self, other: &Self) {
        for ((number, sum), (more_number, more)) in self.cells.iter_mut().zip(&other.cells) {
            if more_number > number {
                (*number, *sum) = (*more_number, *more);
            } else if more_number == number {
                sum.add(*more);
            }
        }
    }

    fn sum(&self, now_ms: u64) -> Sum {
        let mut total = Sum::default();
        for (number, sum) in &self.cells {
            if self.covers(*number, now_ms) {
                total.add(*sum);
            }
        }
        total
    }

    /// Whether the cell of this number is not over for so long that it is none of the window's any more.
    fn covers(&self, number: u64, now_ms: u64) -> bool {
        let now = now_ms / self.cell_ms;
        number + self.cells.len() as u64 > now && number <= now
    }
}

#[derive(Clone, Debug)]
struct Row {
    /// Number of the shortest window's newest cell, and what was counted in it. Windows and total get it when it is over, so
    /// that counting touches one place and not five.
    newest: (u64, Sum),
    used_ms: u64,
    /// Sizes of sent messages.
    sizes: Option<Box<Histogram>>,
    windows: [Window; 3],
    /// Since the row is there, without the newest cell.
    total: Sum,
}

impl Row {
    fn new(what: Counted, now_ms: u64) -> Self {
        let sizes = (what == Counted::In).then(|| Box::new(Histogram::new(SIZE_BOUNDS)));
        Self {
            newest: (now_ms / CELL_MS, Sum::default()),
            used_ms: now_ms,
            sizes,
            windows: WINDOWS.map(Window::new),
            total: Sum::default(),
        }
    }

    fn add(&mut self, now_ms: u64, sum: Sum) {
        let cell = now_ms / CELL_MS;
        if self.newest.0 != cell {
            self.settle();
            self.newest.0 = cell;
        }
        self.newest.1.add(sum);
        self.used_ms = now_ms;
        if let Some(sizes) = &mut self.sizes {
            sizes.record_many(sum.bytes / sum.messages.max(1), sum.messages);
        }
    }

    /// Puts what is in the newest cell where it belongs.
    fn settle(&mut self) {
        let (cell, sum) = &mut self.newest;
        let sum = std::mem::take(sum);
        if sum != Sum::default() {
            self.total.add(sum);
            for window in &mut self.windows {
                window.add(*cell * CELL_MS, sum);
            }
        }
    }

    fn total(&self) -> Sum {
        let mut total = self.total;
        total.add(self.newest.1);
        total
    }

    /// What one of the windows has.
    fn sum(&self, window: usize, now_ms: u64) -> Sum {
        let window = &self.windows[window];
        let mut sum = window.sum(now_ms);
        if window.covers(self.newest.0 * CELL_MS / window.cell_ms, now_ms) {
            sum.add(self.newest.1);
        }
        sum
    }

    /// Adds another one of the same kind.
    fn merge(&mut self, other: &mut Self) {
        self.settle();
        other.settle();
        self.total.add(other.total);
        for (window, more) in self.windows.iter_mut().zip(&other.windows) {
            window.merge(more);
        }
        if let (Some(sizes), Some(more)) = (&mut self.sizes, &other.sizes) {
            sizes.add(more);
        }
    }
}

/// The rows of one topic in the order of their names, which are groups or types of message: a few, so that they are found
/// sooner than in a map.
#[derive(Default)]
struct RowsByName(Vec<(Arc<str>, Row)>);

impl RowsByName {
    /// Where a name is, or where it would be.
    fn place(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| (**known).cmp(name))
    }

    fn get_mut(&mut self, name: &str) -> Option<&mut Row> {
        let at = self.place(name).ok()?;
        Some(&mut self.0[at].1)
    }

    fn insert(&mut self, name: Arc<str>, row: Row) {
        if let Err(at) = self.place(&name) {
            self.0.insert(at, (name, row));
        }
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.0.iter().map(|(_, row)| row)
    }
}

/// The rows of one kind.
struct Rows {
    kind: Counted,
    topics: AHashMap<Arc<str>, RowsByName>,
    /// What was counted in rows that are gone, and what came when there was no room.
    others: Option<Row>,
}

impl Rows {
    fn others(&mut self, now_ms: u64) -> &mut Row {
        self.others
            .get_or_insert_with(|| Row::new(self.kind, now_ms))
    }
}

/// The rows of one core.
#[derive(Default)]
pub(super) struct Statistics {
    /// Of the kinds that were counted: seven at most.
    kinds: Vec<Rows>,
    count: usize,
    /// From when on rows may go again.
    next_drop_ms: u64,
    /// Refused requests by reason; there are about twenty.
    refused: Vec<(&'static str, u64)>,
}

impl Statistics {
    /// Counts a refused request.
    pub fn refused(&mut self, reason: &'static str) {
        match self.refused.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => self.refused.push((reason, 1)),
        }
    }

    /// Refused requests by reason.
    pub fn refusals(&self) -> Vec<(&'static str, u64)> {
        self.refused.clone()
    }

    /// Counts messages of one request; for [`Counted::In`] the `group` is the type of the messages.
    pub fn add(
        &mut self,
        what: Counted,
        topic: &Arc<str>,
        group: &str,
        now_ms: u64,
        sum: (u64, u64),
    ) {
        let sum = Sum {
            messages: sum.0,
            bytes: sum.1,
            requests: 1,
        };
        let known = (self.kinds.iter_mut())
            .find(|rows| rows.kind == what)
            .and_then(|rows| rows.topics.get_mut(&**topic))
            .and_then(|rows| rows.get_mut(group));
        if let Some(row) = known {
            return row.add(now_ms, sum);
        }
        if self.count >= STATISTICS_ROWS_MAX {
            if now_ms < self.next_drop_ms {
                return self.kind(what).others(now_ms).add(now_ms, sum);
            }
            self.next_drop_ms = now_ms + DROP_PAUSE_MS;
            self.drop_older_half(now_ms);
        }
        let mut row = Row::new(what, now_ms);
        row.add(now_ms, sum);
        let topics = &mut self.kind(what).topics;
        let rows = topics.entry(topic.clone()).or_default();
        rows.insert(Arc::from(group), row);
        self.count += 1;
    }

    fn kind(&mut self, what: Counted) -> &mut Rows {
        let known = self.kinds.iter().position(|rows| rows.kind == what);
        let at = known.unwrap_or_else(|| {
            self.kinds.push(Rows {
                kind: what,
                topics: AHashMap::new(),
                others: None,
            });
            self.kinds.len() - 1
        });
        &mut self.kinds[at]
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.kinds
            .iter()
            .flat_map(|rows| rows.topics.values())
            .flat_map(RowsByName::rows)
    }

    fn drop_older_half(&mut self, now_ms: u64) {
        let mut ages: Vec<u64> = self.rows().map(|row| row.used_ms).collect();
        let half = ages.len() / 2;
        let (_, median, _) = ages.select_nth_unstable(half);
        let median = *median;
        for rows in &mut self.kinds {
            let mut topics = std::mem::take(&mut rows.topics);
            topics.retain(|_, named| {
                named.0.retain_mut(|(_, row)| {
                    let stays = row.used_ms > median;
                    if !stays {
                        rows.others(now_ms).merge(row);
                    }
                    stays
                });
                !named.0.is_empty()
            });
            rows.topics = topics;
        }
        self.count = self.rows().count();
    }

    /// All rows since they are there, and those of all others.
    pub fn traffic(&self) -> Vec<Traffic> {
        let mut all = Vec::with_capacity(self.count + self.kinds.len());
        let others: Arc<str> = Arc::from(OTHERS);
        for rows in &self.kinds {
            let mut put = |topic: &Arc<str>, by: &Arc<str>, row: &Row| {
                let total = row.total();
                all.push(Traffic {
                    kind: rows.kind,
                    topic: topic.clone(),
                    by: by.clone(),
                    messages: total.messages,
                    bytes: total.bytes,
                    sizes: row.sizes.as_deref().copied(),
                });
            };
            for (topic, named) in &rows.topics {
                for (by, row) in &named.0 {
                    put(topic, by, row);
                }
            }
            if let Some(row) = &rows.others {
                put(&others, &others, row);
            }
        }
        all
    }

    /// Minute, hour and day of a row, three numbers each, or nothing. An empty topic sums all of a kind, without a group
    /// all of the topic.
    fn look(&self, what: Counted, topic: &str, group: Option<&str>, now_ms: u64) -> Vec<u64> {
        let Some(of_kind) = self.kinds.iter().find(|rows| rows.kind == what) else {
            return Vec::new();
        };
        let rows: Vec<&Row> = if topic.is_empty() {
            let rows = of_kind.topics.values().flat_map(RowsByName::rows);
            rows.chain(&of_kind.others).collect()
        } else {
            let named = of_kind.topics.get(topic);
            let named = named.into_iter().flat_map(|named| &named.0);
            named
                .filter(|(name, _)| group.is_none_or(|group| group == &**name))
                .map(|(_, row)| row)
                .collect()
        };
        if rows.is_empty() {
            return Vec::new();
        }
        (0..WINDOWS.len())
            .flat_map(|window| {
                let mut total = Sum::default();
                for row in &rows {
                    total.add(row.sum(window, now_ms));
                }
                [total.messages, total.bytes, total.requests]
            })
            .collect()
    }
}

/// A statistic by RocketMQ's name.
struct Named {
    name: &'static str,
    what: Counted,
    /// Bytes, or messages.
    bytes: bool,
    /// Its key is a topic and a group, a topic, or the cluster.
    key: Key,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Topic,
    TopicAndGroup,
    Cluster,
}

const fn named(name: &'static str, what: Counted, bytes: bool, key: Key) -> Named {
    Named {
        name,
        what,
        bytes,
        key,
    }
}

const NAMED: [Named; 9] = [
    named("TOPIC_PUT_NUMS", Counted::In, false, Key::Topic),
    named("TOPIC_PUT_SIZE", Counted::In, true, Key::Topic),
    named("GROUP_GET_NUMS", Counted::Out, false, Key::TopicAndGroup),
    named("GROUP_GET_SIZE", Counted::Out, true, Key::TopicAndGroup),
    named("GROUP_ACK_NUMS", Counted::Acked, false, Key::TopicAndGroup),
    named(
        "SNDBCK_PUT_NUMS",
        Counted::SentBack,
        false,
        Key::TopicAndGroup,
    ),
    named("BROKER_PUT_NUMS", Counted::In, false, Key::Cluster),
    named("BROKER_GET_NUMS", Counted::Out, false, Key::Cluster),
    named("BROKER_ACK_NUMS", Counted::Acked, false, Key::Cluster),
];

/// One item of the answer from the numbers of its window.
fn item(numbers: &[u64], bytes: bool, window: (u64, usize)) -> BrokerStatsItem {
    let [messages, size, requests] = numbers else {
        return BrokerStatsItem::default();
    };
    let sum = if bytes { *size } else { *messages };
    let window_ms = window.0 * window.1 as u64;
    BrokerStatsItem {
        avgpt: sum as f64 / (*requests).max(1) as f64,
        sum: sum as i64,
        tps: sum as f64 * 1_000.0 / window_ms as f64,
    }
}

impl Broker {
    /// Counts messages of one request on this core.
    pub(super) fn count(
        &self,
        what: Counted,
        topic: &Arc<str>,
        group: &str,
        now_ms: u64,
        sum: (u64, u64),
    ) {
        self.statistics
            .borrow_mut()
            .add(what, topic, group, now_ms, sum);
    }

    /// What this core has counted, for another one.
    pub(super) fn statistics_here(&self, name: &str, key: &str, now_ms: u64) -> LocalReply {
        let Some(named) = NAMED.iter().find(|named| named.name == name) else {
            return LocalReply::Numbers(Vec::new());
        };
        let (topic, group) = match named.key {
            Key::Topic => (key, None),
            Key::TopicAndGroup => key
                .split_once('@')
                .map_or((key, Some("")), |(topic, group)| (topic, Some(group))),
            Key::Cluster => ("", None),
        };
        let empty = named.key == Key::Cluster && key != &*self.options.cluster
            || named.key != Key::Cluster && topic.is_empty();
        if empty {
            return LocalReply::Numbers(Vec::new());
        }
        let numbers = self
            .statistics
            .borrow()
            .look(named.what, topic, group, now_ms);
        LocalReply::Numbers(numbers)
    }

    /// 315.
    pub(super) async fn view_statistics(self, command: Command) -> Outcome {
        let name: Arc<str> = Arc::from(command.required_text("statsName")?);
        let key: Arc<str> = Arc::from(command.required_text("statsKey")?);
        let mut total: Vec<u64> = Vec::new();
        for core in 0..self.shard.count() {
            let request = GroupCommand::Statistics {
                name: name.clone(),
                key: key.clone(),
            };
            match self
                .ask(core, ShardRequest::Group(Box::new(request)))
                .await?
            {
                ShardReply::Numbers(numbers) => {
                    total.resize(total.len().max(numbers.len()), 0);
                    for (sum, number) in total.iter_mut().zip(numbers) {
                        *sum += number;
                    }
                }
                other => return Err(BrokerError::unexpected(&other)),
            }
        }
        let known = NAMED.iter().find(|named| named.name == &*name);
        let (Some(named), false) = (known, total.is_empty()) else {
            return Err(BrokerError::System(format!(
                "The stats <{name}> <{key}> not exist"
            )));
        };
        let item = |window: usize| {
            let numbers = total.get(window * 3..window * 3 + 3).unwrap_or_default();
            item(numbers, named.bytes, WINDOWS[window])
        };
        Answer::json(&BrokerStatsData {
            stats_minute: item(0),
            stats_hour: item(1),
            stats_day: item(2),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn look(statistics: &Statistics, topic: &str, now_ms: u64) -> Vec<u64> {
        statistics.look(Counted::Out, topic, Some("g"), now_ms)
    }

    #[test]
    fn a_row_appears_with_its_first_value_and_forgets_minute_hour_and_day() {
        let mut statistics = Statistics::default();
        let topic: Arc<str> = Arc::from("t");
        assert!(look(&statistics, "t", NOW).is_empty());
        statistics.add(Counted::Out, &topic, "g", NOW, (3, 30));
        statistics.add(Counted::Out, &topic, "g", NOW + 20_000, (1, 5));
        let all = [4, 35, 2];
        assert_eq!(
            look(&statistics, "t", NOW + 20_000),
            [all, all, all].concat()
        );
        let later = look(&statistics, "t", NOW + 90_000);
        assert_eq!(later, [[0; 3], all, all].concat());
        let later = look(&statistics, "t", NOW + 2 * 3_600_000);
        assert_eq!(later, [[0; 3], [0; 3], all].concat());
        assert_eq!(look(&statistics, "t", NOW + 25 * 3_600_000), [0; 9]);
        assert!(statistics.look(Counted::In, "t", Some("g"), NOW).is_empty());
        assert!(
            statistics
                .look(Counted::Out, "t", Some("other"), NOW)
                .is_empty()
        );
    }

    #[test]
    fn all_topics_are_summed_and_the_number_of_rows_is_bounded() {
        let mut statistics = Statistics::default();
        for number in 0..STATISTICS_ROWS_MAX as u64 {
            let topic: Arc<str> = Arc::from(number.to_string());
            statistics.add(Counted::Out, &topic, "g", NOW + number, (1, 1));
        }
        let all = statistics.look(Counted::Out, "", None, NOW);
        assert_eq!(all[0], STATISTICS_ROWS_MAX as u64);
        statistics.add(Counted::Out, &Arc::from("new"), "g", NOW + 10_000, (1, 1));
        assert!(statistics.count <= STATISTICS_ROWS_MAX / 2 + 1);
        assert!(look(&statistics, "0", NOW).is_empty());
        assert!(!look(&statistics, "new", NOW + 10_000).is_empty());
    }

    #[test]
    fn what_has_no_row_stays_in_the_sums_and_rows_go_only_now_and_then() {
        let mut statistics = Statistics::default();
        let rounds = 3;
        let topics = STATISTICS_ROWS_MAX as u64 * 2;
        let mut drops = 0;
        for round in 0..rounds {
            for number in 0..topics {
                let before = statistics.count;
                let topic: Arc<str> = Arc::from(number.to_string());
                let now = NOW + round * 1_000 + number / 10;
                statistics.add(Counted::In, &topic, "NORMAL", now, (2, 3_000));
                drops += usize::from(statistics.count < before);
            }
        }
        assert_eq!(drops, 1, "all of it was within ten seconds");
        let all = [
            rounds * topics * 2,
            rounds * topics * 3_000,
            rounds * topics,
        ];
        let sums = statistics.look(Counted::In, "", None, NOW + 4_000);
        assert_eq!(sums, [all; 3].concat());
        let traffic = statistics.traffic();
        let sum = |of: fn(&Traffic) -> u64| traffic.iter().map(of).sum::<u64>();
        assert_eq!(
            (sum(|row| row.messages), sum(|row| row.bytes)),
            (all[0], all[1])
        );
        assert_eq!(
            sum(|row| row.sizes.map_or(0, |sizes| sizes.count())),
            all[0]
        );
        let others = traffic.iter().filter(|row| &*row.topic == OTHERS).count();
        assert_eq!((others, traffic.len()), (1, statistics.count + 1));
        // Later they may go again.
        let later = NOW + 60_000;
        statistics.add(Counted::In, &Arc::from("new"), "NORMAL", later, (1, 1));
        assert!(!statistics.look(Counted::In, "new", None, later).is_empty());
    }

    #[test]
    fn counting_now_and_then_is_counting_into_every_window_at_once() {
        let mut random = 7_u64;
        let mut next = |limit: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(99);
            (random >> 33) % limit
        };
        let mut row = Row::new(Counted::In, NOW);
        let mut windows = WINDOWS.map(Window::new);
        let (mut total, mut now) = (Sum::default(), NOW);
        for _ in 0..2_000 {
            now += [next(3_000), next(400_000), next(9_000_000)][next(3) as usize];
            let sum = Sum {
                messages: 1 + next(9),
                bytes: next(9_000),
                requests: 1,
            };
            if next(20) == 0 {
                let mut other = Row::new(Counted::In, now);
                other.add(now, sum);
                row.merge(&mut other);
            } else {
                row.add(now, sum);
            }
            total.add(sum);
            let asked = now + [next(30_000), next(90_000_000)][next(2) as usize];
            for (at, window) in windows.iter_mut().enumerate() {
                window.add(now, sum);
                assert_eq!(row.sum(at, asked), window.sum(asked));
            }
            assert_eq!(row.total(), total);
        }
    }

    #[test]
    fn a_rate_is_the_sum_over_its_window() {
        let item = item(&[120, 600, 60], false, WINDOWS[0]);
        assert_eq!((item.sum, item.tps, item.avgpt), (120, 2.0, 2.0));
    }

    #[test]
    fn a_topic_sums_the_types_of_its_messages_and_totals_stay() {
        let mut statistics = Statistics::default();
        let topic: Arc<str> = Arc::from("t");
        statistics.add(Counted::In, &topic, "normal", NOW, (2, 4_000));
        statistics.add(Counted::In, &topic, "delay", NOW, (1, 5_000));
        let found = statistics.look(Counted::In, "t", None, NOW);
        assert_eq!(found[..3], [3, 9_000, 2]);
        statistics.add(Counted::In, &topic, "delay", NOW + 48 * 3_600_000, (1, 1));
        let traffic = statistics.traffic();
        let delayed = traffic.iter().find(|row| &*row.by == "delay");
        let delayed = delayed.expect("it was counted");
        assert_eq!((delayed.messages, delayed.bytes), (2, 5_001));
        let sizes = delayed.sizes.expect("sizes of what was sent");
        assert_eq!(
            sizes
                .cumulative()
                .take(3)
                .map(|(_, count)| count)
                .collect::<Vec<_>>(),
            [1, 1, 2]
        );
    }
}
