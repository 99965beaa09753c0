//! The outside ledger: what the broker has acknowledged and shown, and so what it may never take back.
//!
//! It lives outside the machine, so no crash touches it. Every answer of the broker passes through it. A message is
//! promised from its acknowledgement on, or from the first time that any consumer saw it, whichever comes first.
//! A breach ends the run by unwinding with a [`Breach`].

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use ringmq::io::sim::Control;

use crate::sut::{Message, PullGift, PullWish, Queue, Refused, Stored, Topic};

pub type MessageId = u64;

/// The promise was broken: how.
pub struct Breach(pub String);

/// Ends the run.
pub fn breach(what: String) -> ! {
    resume_unwind(Box::new(Breach(what)))
}

/// Runs a world; an error tells how the promise was broken, or what else ended it.
pub fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|payload| {
        if let Some(Breach(what)) = payload.downcast_ref() {
            return what.clone();
        }
        let text = match (payload.downcast_ref::<String>(), payload.downcast_ref()) {
            (Some(text), _) => text,
            (None, Some(text)) => *text,
            (None, None) => return "panic without a text".to_owned(),
        };
        format!("panic: {text}")
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Sent, not answered.
    Outstanding,
    /// Acknowledged, or seen by a consumer.
    Promised,
    /// Refused before anything was written: must never be seen.
    Refused,
    /// Refused since the log failed: must not be seen before a restart, may be there after it.
    Failed,
    /// The machine crashed before the answer: may be there or not.
    Unknown,
    /// Was not there when all was read after a restart: must never come back.
    Gone,
}

struct Sent {
    queue: Queue,
    body_bytes: usize,
    tags_code: i64,
    fate: Fate,
    /// Its offset must be at least this: everything below was acknowledged before it was sent.
    offset_min: i64,
    offset: Option<i64>,
    sent_at_ns: u64,
    promised_at_ns: u64,
}

#[derive(Default)]
struct QueueLedger {
    promised: BTreeMap<i64, MessageId>,
    /// One past the greatest promised offset.
    next: i64,
    /// Greatest first offset that the broker told since it was started.
    min: i64,
}

#[derive(Default)]
struct OffsetLedger {
    acknowledged: Option<i64>,
    submitted: i64,
    /// A commit is on its way; another one might overtake it.
    in_flight: bool,
}

/// What was known of a queue when a question was asked: an answer may not fall behind it.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    /// One past the last promised offset.
    pub next: i64,
    pub min: i64,
}

/// What is known of a topic name.
#[derive(Clone, Debug, Default)]
struct NameLedger {
    /// As acknowledged.
    topic: Option<Topic>,
    /// A change that is not answered: queues of the topic to be, or `None` for a deletion.
    pending: Option<Option<u32>>,
}

/// What the run allows.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whether messages may be removed at all.
    pub retention: bool,
    /// Age below which no message may be removed.
    pub retention_min: Duration,
    /// How long a parked pull may overlook a message, for slow disks.
    pub wake_slack: Duration,
}

/// Figures of a run, to show that it tried what it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub acknowledged: u64,
    pub delivered: u64,
    pub commits: u64,
    pub refused_busy: u64,
    pub refused_full: u64,
    pub refused_failed: u64,
    pub restarts: u64,
    pub topics: u64,
    pub unknown_kept: u64,
    pub unknown_gone: u64,
    pub retained_away: u64,
    pub reads_refused: u64,
}

macro_rules! add_fields {
    ($sum:ident, $more:ident, $($field:ident),*) => { $($sum.$field += $more.$field;)* };
}

impl Counts {
    pub fn add(&mut self, more: &Self) {
        add_fields!(
            self,
            more,
            acknowledged,
            delivered,
            commits,
            refused_busy,
            refused_full,
            refused_failed,
            restarts,
            topics,
            unknown_kept,
            unknown_gone,
            retained_away,
            reads_refused
        );
    }
}

/// See the module's page.
pub struct Ledger {
    world: Control,
    rules: Rules,
    messages: Vec<Sent>,
    queues: BTreeMap<Queue, QueueLedger>,
    offsets: BTreeMap<(String, Queue), OffsetLedger>,
    names: BTreeMap<String, NameLedger>,
    topic_ids: BTreeMap<u32, String>,
    /// Logs that refused a message since a write failed, since the last restart.
    failed_logs: BTreeSet<u8>,
    /// Since all was last read there was a crash that the broker is not set up to survive.
    void: bool,
    /// Stored bytes were spoiled: things may be missing, nothing may be wrong.
    pub spoiled: bool,
    /// Reads fail on purpose in this life, or bytes are spoiled.
    pub reads_may_fail: bool,
    pub counts: Counts,
}

/// The body of a message, in words of eight bytes: a function of its id, so that nothing has to be remembered.
fn words_of(id: MessageId) -> impl Iterator<Item = [u8; 8]> {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    // Another factor, so that no body is a part of the next one.
    let mut state = id.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    std::iter::repeat_with(move || {
        state = state.wrapping_add(ODD);
        ((state ^ state >> 32).wrapping_mul(ODD)).to_le_bytes()
    })
}

fn body_of(id: MessageId, bytes: usize) -> Vec<u8> {
    let words = words_of(id).take(bytes.div_ceil(8));
    let mut body = words.collect::<Vec<_>>().concat();
    body.truncate(bytes);
    body
}

fn is_body_of(stored: &[u8], id: MessageId, bytes: usize) -> bool {
    let (whole, last) = stored.as_chunks::<8>();
    let mut words = words_of(id);
    stored.len() == bytes
        && whole.iter().all(|found| words.next() == Some(*found))
        && words.next().is_some_and(|word| word.starts_with(last))
}

/// The tags that messages have: of one letter, so that their code (Java's `String.hashCode`) is that letter.
pub const TAGS_CODES: std::ops::Range<i64> = 'A' as i64..'D' as i64;

fn properties_of(id: MessageId, tags_code: i64) -> Vec<u8> {
    let tag = tags_code as u8 as char;
    format!(
        "UNIQ_KEY\u{1}{id:016X}\u{2}KEYS\u{1}k{}\u{2}TAGS\u{1}{tag}\u{2}",
        id % 7
    )
    .into_bytes()
}

fn id_of(properties: &[u8]) -> Option<MessageId> {
    let text = std::str::from_utf8(properties).ok()?;
    let id = text
        .split('\u{2}')
        .find_map(|pair| pair.strip_prefix("UNIQ_KEY\u{1}"))?;
    MessageId::from_str_radix(id, 16).ok()
}

impl Ledger {
    pub fn new(world: Control, rules: Rules) -> Self {
        Self {
            world,
            rules,
            messages: Vec::new(),
            queues: BTreeMap::new(),
            offsets: BTreeMap::new(),
            names: BTreeMap::new(),
            topic_ids: BTreeMap::new(),
            failed_logs: BTreeSet::new(),
            void: false,
            spoiled: false,
            reads_may_fail: false,
            counts: Counts::default(),
        }
    }

    // Topics.

    /// Topics that are acknowledged and not about to change.
    pub fn topics(&self) -> Vec<Topic> {
        self.names
            .values()
            .filter(|name| name.pending.is_none())
            .filter_map(|name| name.topic.clone())
            .collect()
    }

    pub fn has_topic(&self, name: &str) -> bool {
        self.names
            .get(name)
            .is_some_and(|known| known.topic.is_some())
    }

    /// Whether a creation (with its queues) or a deletion may be asked for now: not while one is open.
    pub fn on_topic_change(&mut self, name: &str, queues: Option<u32>) -> bool {
        let known = self.names.entry(name.to_owned()).or_default();
        if known.pending.is_some() {
            return false;
        }
        known.pending = Some(queues);
        true
    }

    pub fn on_topic_created(&mut self, topic: Topic) {
        let known = self.names.entry(topic.name.clone()).or_default();
        if known.pending.take() != Some(Some(topic.queues)) {
            breach(format!("{topic:?} was made, but {known:?} was asked for"));
        }
        self.adopt_topic(topic);
    }

    pub fn on_topic_deleted(&mut self, name: &str) {
        let known = self.names.entry(name.to_owned()).or_default();
        known.pending = None;
        known.topic = None;
    }

    /// The broker refused a change. One that failed at the disk may still be there after a restart.
    pub fn on_topic_refused(&mut self, name: &str, refused: &Refused) {
        self.count_refusal(refused);
        if !matches!(refused, Refused::Poisoned(_)) {
            self.names.entry(name.to_owned()).or_default().pending = None;
        }
    }

    /// A topic was taken back by a crash that nothing was promised for: its id may be given again.
    fn forget_topic(&mut self, id: u32) {
        self.topic_ids.remove(&id);
        self.queues.retain(|queue, _| queue.topic_id != id);
        self.offsets.retain(|(_, queue), _| queue.topic_id != id);
        for sent in &mut self.messages {
            if sent.queue.topic_id == id {
                sent.fate = Fate::Gone;
            }
        }
    }

    fn adopt_topic(&mut self, topic: Topic) {
        self.counts.topics += 1;
        if let Some(name) = self.topic_ids.insert(topic.id, topic.name.clone()) {
            breach(format!("{topic:?} has the id of an earlier {name}"));
        }
        let known = self.names.entry(topic.name.clone()).or_default();
        known.topic = Some(topic);
    }

    /// After a restart: the broker's topics against the acknowledged ones.
    pub fn check_topics(&mut self, found: &[Topic]) {
        if self.spoiled {
            return;
        }
        if self.void {
            let ids: Vec<u32> = self.topic_ids.keys().copied().collect();
            for id in ids {
                if !found.iter().any(|topic| topic.id == id) {
                    self.forget_topic(id);
                }
            }
        }
        let mut found: BTreeMap<&str, &Topic> = found
            .iter()
            .map(|topic| (topic.name.as_str(), topic))
            .collect();
        let names = self.names.clone();
        for (name, known) in names {
            let there = found.remove(name.as_str());
            match (known.topic, known.pending, there) {
                // A crash that nothing was promised for took a change back.
                (_, _, None) if self.void => self.on_topic_deleted(&name),
                (_, _, Some(there)) if self.void => {
                    self.topic_ids.insert(there.id, name.clone());
                    self.names.entry(name.clone()).or_default().topic = Some(there.clone());
                }
                (Some(topic), None | Some(None), Some(there)) if topic == *there => {}
                (None, None, None) | (None, Some(_), None) | (Some(_), Some(None), None) => {
                    self.on_topic_deleted(&name);
                }
                (None, Some(Some(queues)), Some(there)) if there.queues == queues => {
                    self.adopt_topic(there.clone());
                }
                (topic, pending, there) => breach(format!(
                    "topic {name}: acknowledged {topic:?}, asked for {pending:?}, after the restart {there:?}"
                )),
            }
            if let Some(known) = self.names.get_mut(&name) {
                known.pending = None;
            }
        }
        if let Some(topic) = found.values().next() {
            breach(format!("{topic:?} was never asked for"));
        }
    }

    // Messages in.

    /// New messages of one send.
    pub fn on_send(
        &mut self,
        queue: Queue,
        sizes_and_tags: &[(usize, i64)],
    ) -> (MessageId, Vec<Message>) {
        let offset_min = self.queues.entry(queue).or_default().next;
        let first = self.messages.len() as MessageId;
        let messages = sizes_and_tags
            .iter()
            .map(|&(body_bytes, tags_code)| {
                let id = self.messages.len() as MessageId;
                self.messages.push(Sent {
                    queue,
                    body_bytes,
                    tags_code,
                    fate: Fate::Outstanding,
                    offset_min,
                    offset: None,
                    sent_at_ns: self.world.now_ns(),
                    promised_at_ns: 0,
                });
                Message {
                    body: body_of(id, body_bytes),
                    properties: properties_of(id, tags_code),
                    tags_code,
                }
            })
            .collect();
        (first, messages)
    }

    /// Whether the queue still takes part: a topic that is deleted, or about to be, promises nothing.
    pub fn is_live(&self, queue: Queue) -> bool {
        self.topic_ids.get(&queue.topic_id).is_some_and(|name| {
            self.names.get(name).is_some_and(|known| {
                known.pending.is_none()
                    && known.topic.as_ref().is_some_and(|topic| {
                        // A topic that was made again from its messages may have fewer queues.
                        topic.id == queue.topic_id && queue.queue_id < topic.queues
                    })
            })
        })
    }

    pub fn on_acknowledged(
        &mut self,
        first: MessageId,
        count: usize,
        offset: i64,
        log: u8,
        log_had_failed: bool,
    ) {
        if log_had_failed {
            breach(format!(
                "log {log} acknowledged message {first} that was sent after it had refused one for a failed write"
            ));
        }
        for at in 0..count {
            self.promise(first + at as u64, offset + at as i64);
            self.counts.acknowledged += 1;
        }
    }

    /// Whether a log has refused something for a failed write since it was started.
    pub fn log_has_failed(&self, log: u8) -> bool {
        self.failed_logs.contains(&log)
    }

    pub fn on_refused(&mut self, first: MessageId, count: usize, log: u8, refused: &Refused) {
        self.count_refusal(refused);
        let fate = match refused {
            Refused::Poisoned(_) => {
                self.failed_logs.insert(log);
                Fate::Failed
            }
            // The process ends: the bytes may be on their way.
            Refused::Stopping => Fate::Unknown,
            _ => Fate::Refused,
        };
        for at in 0..count {
            let sent = &mut self.messages[first as usize + at];
            if sent.fate == Fate::Promised {
                breach(format!(
                    "message {first}+{at} was refused ({refused:?}), but a consumer saw it"
                ));
            }
            sent.fate = fate;
        }
    }

    pub fn count_refusal(&mut self, refused: &Refused) {
        match refused {
            Refused::Busy => self.counts.refused_busy += 1,
            Refused::DiskFull(reason) => {
                if reason.is_empty() {
                    breach("a full disk was reported without a reason".to_owned());
                }
                self.counts.refused_full += 1;
            }
            Refused::Poisoned(reason) => {
                if reason.is_empty() {
                    breach("a failed log was reported without a reason".to_owned());
                }
                self.counts.refused_failed += 1;
            }
            _ => {}
        }
    }

    fn promise(&mut self, id: MessageId, offset: i64) {
        let sent = &mut self.messages[id as usize];
        match sent.fate {
            Fate::Refused | Fate::Gone | Fate::Failed => breach(format!(
                "message {id} at {:?} {offset} is there, but its fate is {:?}",
                sent.queue, sent.fate
            )),
            Fate::Promised if sent.offset != Some(offset) => breach(format!(
                "message {id} of {:?} is at {offset} and at {:?}",
                sent.queue, sent.offset
            )),
            Fate::Promised => return,
            Fate::Unknown => self.counts.unknown_kept += 1,
            Fate::Outstanding => {}
        }
        if offset < sent.offset_min {
            breach(format!(
                "message {id} of {:?} is at {offset}, but messages up to {} were acknowledged before it was sent",
                sent.queue, sent.offset_min
            ));
        }
        sent.fate = Fate::Promised;
        sent.offset = Some(offset);
        sent.promised_at_ns = self.world.now_ns();
        let queue = self.queues.entry(sent.queue).or_default();
        if let Some(other) = queue.promised.insert(offset, id) {
            breach(format!(
                "{:?} {offset} holds message {id}, but it was promised to message {other}",
                sent.queue
            ));
        }
        queue.next = queue.next.max(offset + 1);
    }

    // Messages out.

    /// To be taken when a question is asked.
    pub fn before(&self, queue: Queue) -> Before {
        self.queues
            .get(&queue)
            .map_or(Before { next: 0, min: 0 }, |known| Before {
                next: known.next,
                min: known.min,
            })
    }

    pub fn on_bounds(&mut self, queue: Queue, before: Before, (min, max): (i64, i64)) {
        if self.spoiled {
            return;
        }
        let known = self.queues.entry(queue).or_default();
        if max < before.next || min > max || min < before.min {
            breach(format!(
                "{queue:?} has the bounds {min}..{max}; it had {before:?}"
            ));
        }
        if min > known.min {
            if !self.rules.retention {
                breach(format!(
                    "{queue:?} begins at {min}, and there is no retention"
                ));
            }
            let young_ns = self
                .world
                .now_ns()
                .saturating_sub(self.rules.retention_min.as_nanos() as u64);
            for (offset, id) in known.promised.range(known.min..min) {
                if self.messages[*id as usize].sent_at_ns > young_ns {
                    breach(format!(
                        "{queue:?} begins at {min}, but {offset} is not old enough to go"
                    ));
                }
            }
            self.counts.retained_away += (min - known.min) as u64;
        }
        known.min = known.min.max(min);
    }

    /// An answer to a pull. `before` is of when it was asked.
    pub fn on_pulled(&mut self, queue: Queue, wish: &PullWish, before: Before, gift: &PullGift) {
        if self.spoiled {
            gift.messages
                .iter()
                .for_each(|stored| self.check_spoiled(stored));
            return;
        }
        self.on_bounds(queue, before, (gift.min_offset, gift.max_offset));
        // Retention may have moved the first offset after the messages were read.
        let from = match gift.messages.first() {
            Some(first) if first.queue_offset < gift.min_offset => wish.offset,
            _ => wish.offset.max(gift.min_offset),
        };
        let mut at = from;
        for stored in &gift.messages {
            if stored.queue_offset < at || stored.queue_offset >= gift.next_offset {
                breach(format!(
                    "a pull of {queue:?} from {} to {} gave offset {} where {at} or more was due",
                    wish.offset, gift.next_offset, stored.queue_offset
                ));
            }
            let id = self.check_stored(queue, stored);
            let tags_code = self.messages[id as usize].tags_code;
            if wish.tags_code.is_some_and(|wanted| wanted != tags_code) {
                breach(format!(
                    "a pull of {queue:?} for tag {:?} gave tag {tags_code}",
                    wish.tags_code
                ));
            }
            self.check_skipped(queue, at, stored.queue_offset, wish.tags_code);
            at = stored.queue_offset + 1;
            self.counts.delivered += 1;
        }
        self.check_skipped(queue, at, gift.next_offset, wish.tags_code);
        if gift.messages.is_empty()
            && wish.tags_code.is_none()
            && let Some(id) = self.queues[&queue].promised.get(&wish.offset)
        {
            let promised_at_ns = self.messages[*id as usize].promised_at_ns;
            let slept_ns = self.world.now_ns().saturating_sub(promised_at_ns);
            if gift.min_offset <= wish.offset && slept_ns > self.rules.wake_slack.as_nanos() as u64
            {
                breach(format!(
                    "a pull of {queue:?} at {} slept for {slept_ns} ns after that message was acknowledged",
                    wish.offset
                ));
            }
        }
        if (gift.min_offset..before.next).contains(&wish.offset) && gift.next_offset <= wish.offset
        {
            breach(format!(
                "a pull of {queue:?} at {} went no further than {}, but all up to {} was acknowledged",
                wish.offset, gift.next_offset, before.next
            ));
        }
    }

    /// Nothing that was promised may be left out between two offsets.
    fn check_skipped(&self, queue: Queue, from: i64, to: i64, tags_code: Option<i64>) {
        if to <= from {
            return;
        }
        let known = &self.queues[&queue];
        for offset in from..to {
            match known.promised.get(&offset) {
                Some(id) => {
                    let own = self.messages[*id as usize].tags_code;
                    if tags_code.is_none_or(|wanted| wanted == own) {
                        breach(format!(
                            "a pull of {queue:?} left out message {id} at {offset}"
                        ));
                    }
                }
                None if tags_code.is_none() => {
                    breach(format!("a pull of {queue:?} found a hole at {offset}"));
                }
                None => {}
            }
        }
    }

    /// Reads do not check the CRC of the batch: clients check that of the body. So the body has to be right, if the
    /// message can be told at all.
    fn check_spoiled(&self, stored: &Stored) {
        let sent =
            id_of(&stored.properties).and_then(|id| Some((id, self.messages.get(id as usize)?)));
        if let Some((id, sent)) = sent
            && stored.properties == properties_of(id, sent.tags_code)
            && !is_body_of(&stored.body, id, sent.body_bytes)
        {
            breach(format!("message {id} has a wrong body"));
        }
    }

    fn check_stored(&mut self, queue: Queue, stored: &Stored) -> MessageId {
        let offset = stored.queue_offset;
        let Some(id) = id_of(&stored.properties).filter(|id| *id < self.messages.len() as u64)
        else {
            breach(format!(
                "{queue:?} {offset} holds a message that nobody sent: properties {:?}",
                String::from_utf8_lossy(&stored.properties)
            ));
        };
        let sent = &self.messages[id as usize];
        if sent.queue != queue {
            breach(format!(
                "message {id} of {:?} is in {queue:?} at {offset}",
                sent.queue
            ));
        }
        if stored.properties != properties_of(id, sent.tags_code)
            || !is_body_of(&stored.body, id, sent.body_bytes)
        {
            let body = body_of(id, sent.body_bytes);
            let place = body.iter().zip(&stored.body).position(|(a, b)| a != b);
            breach(format!(
                "message {id} in {queue:?} at {offset} is not what was sent: {} of {} bytes, first difference at {place:?}",
                stored.body.len(),
                body.len()
            ));
        }
        if let Some(promised) = self
            .queues
            .get(&queue)
            .and_then(|known| known.promised.get(&offset))
            && *promised != id
        {
            breach(format!(
                "{queue:?} {offset} holds message {id}, but it was promised to message {promised}"
            ));
        }
        self.promise(id, offset);
        id
    }

    /// Reads may be refused while the broker stops, and where stored bytes cannot be read; for nothing else.
    pub fn on_read_refused(&mut self, what: &str, queue: Queue, refused: &Refused) {
        let allowed = match refused {
            Refused::Stopping | Refused::Busy => true,
            Refused::Unreadable(why) => self.reads_may_fail && !why.is_empty(),
            Refused::NoQueue => self.spoiled,
            _ => false,
        };
        if !allowed {
            breach(format!("{what} of {queue:?} was refused: {refused:?}"));
        }
        self.counts.reads_refused += 1;
    }

    // Consumer offsets.

    /// Whether a group may commit this offset now. The model only ever moves offsets forward, one commit at a time.
    pub fn on_commit(&mut self, group: &str, queue: Queue, offset: i64) -> bool {
        let known = self.offsets.entry((group.to_owned(), queue)).or_default();
        if known.in_flight || offset <= known.submitted {
            return false;
        }
        known.submitted = offset;
        known.in_flight = true;
        true
    }

    pub fn on_committed(
        &mut self,
        group: &str,
        queue: Queue,
        offset: i64,
        answer: &Result<(), Refused>,
    ) {
        let known = self.offsets.entry((group.to_owned(), queue)).or_default();
        known.in_flight = false;
        match answer {
            Ok(()) => {
                known.acknowledged = known.acknowledged.max(Some(offset));
                self.counts.commits += 1;
            }
            Err(refused) => self.count_refusal(refused),
        }
    }

    /// The acknowledged offset, for [`Ledger::on_offset`].
    pub fn offset_of(&self, group: &str, queue: Queue) -> Option<i64> {
        self.offsets.get(&(group.to_owned(), queue))?.acknowledged
    }

    pub fn on_offset(
        &mut self,
        group: &str,
        queue: Queue,
        acknowledged_before: Option<i64>,
        found: Option<i64>,
    ) {
        let known = self.offsets.entry((group.to_owned(), queue)).or_default();
        if self.spoiled {
            return;
        }
        if found < acknowledged_before || found.is_some_and(|offset| offset > known.submitted) {
            breach(format!(
                "group {group} has offset {found:?} in {queue:?}; acknowledged was {acknowledged_before:?}, the greatest asked for {}",
                known.submitted
            ));
        }
        // What was read is relied upon.
        known.acknowledged = known.acknowledged.max(found);
    }

    /// All groups and queues with a known offset.
    pub fn offset_keys(&self) -> Vec<(String, Queue)> {
        self.offsets
            .keys()
            .filter(|(_, queue)| self.is_live(*queue))
            .cloned()
            .collect()
    }

    // Crashes.

    /// The machine is down. Whatever was not answered is open. `promise_holds` is false when the crash is one that
    /// the broker was not set up to survive: then only order and content are still checked.
    pub fn on_crash(&mut self, promise_holds: bool) {
        self.counts.restarts += 1;
        self.void |= !promise_holds;
        self.failed_logs.clear();
        for sent in &mut self.messages {
            match sent.fate {
                Fate::Outstanding | Fate::Failed => sent.fate = Fate::Unknown,
                Fate::Promised | Fate::Gone if !promise_holds => {
                    sent.fate = Fate::Unknown;
                    sent.offset = None;
                    sent.offset_min = 0;
                }
                _ => {}
            }
        }
        for queue in self.queues.values_mut() {
            // A removal by retention may itself be taken back.
            queue.min = 0;
            if !promise_holds {
                queue.promised.clear();
                queue.next = 0;
            }
        }
        for known in self.offsets.values_mut() {
            known.in_flight = false;
            if !promise_holds {
                known.acknowledged = None;
            }
        }
    }

    /// All queues were read after a restart: what was open and is not there must never come back.
    pub fn on_all_read(&mut self) {
        self.void = false;
        for at in 0..self.messages.len() {
            if self.messages[at].fate == Fate::Unknown && self.is_live(self.messages[at].queue) {
                self.messages[at].fate = Fate::Gone;
                self.counts.unknown_gone += 1;
            }
        }
    }

    /// The figures of a run, as one line.
    pub fn summary(&self) -> String {
        format!("{} sent, {:?}", self.messages.len(), self.counts)
    }
}
