//! Fetch: one request reads many queues, which the broker remembers (`session.rs`).
//!
//! A queue is read by the pull that remoting uses too, parked at its owner while there is nothing, and judged anew each
//! time: a group that may no longer consume, or a topic that is gone, ends the queue with the code that a pull gets.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::base::limits::{
    NATIVE_FETCH_BYTES_MAX, NATIVE_FETCH_QUEUES_MAX, NATIVE_SESSIONS_MAX, PULL_BYTES_MAX,
    PULL_MESSAGES_MAX,
};
use crate::broker::dispatch::Broker;
use crate::broker::error::BrokerError;
use crate::broker::native::session::{Part, PullNumber, Read, Session, Waiting};
use crate::broker::native::{Fault, NativeClient};
use crate::broker::pull::{DirectPull, status};
use crate::broker::statistics::Counted;
use crate::broker::subscription::SQL92;
use crate::broker::topics;
use crate::io::body::Body;
use crate::server::connection::NativeResponder;
use crate::shard::message::{LocalReply, ShardReply, ShardRequest};
use crate::wire::native::message::{
    Fetch, FetchQueue, FetchReply, FetchedQueue, FilterKind, Message,
};
use crate::wire::remoting::code::response;

/// How long a pull is parked at its owner; then it is asked again if anybody still fetches.
const PARK_MS: u64 = 15_000;
/// A parked pull that ends empty before this was not parked: the owner is stopping.
const PARKED_MS_MIN: u64 = 1_000;
/// Pulls that are begun before others of the core have their turn.
const READS_PER_TURN: usize = 64;
/// Pulls of queues that were moved or removed end by themselves; more of them than this, and moving has to wait.
const STALE_PULLS_MAX: usize = NATIVE_FETCH_QUEUES_MAX;

/// Which queue a session reads, and what of it.
#[derive(Clone)]
struct Target {
    topic: Arc<str>,
    queue_id: u32,
    filter_kind: FilterKind,
    filter: Arc<str>,
}

/// A session with its group and its timer.
pub(super) struct FetchSession {
    number: u32,
    group: Arc<str>,
    state: RefCell<Session<Target, NativeResponder>>,
    /// When the task that ends a fetch by time wakes next, in milliseconds; none sleeps if this is `u64::MAX`.
    wakes_ms: Cell<u64>,
}

impl FetchSession {
    /// The connection is gone: whoever waits needs no answer.
    pub fn end(&self) {
        let waiting = self.state.borrow_mut().take_waiting();
        if let Some(waiting) = waiting {
            waiting.responder.stay_silent();
        }
    }
}

impl Broker {
    pub(super) fn native_fetch(
        &self,
        id: u64,
        client: &Rc<NativeClient>,
        fetch: &Fetch<'_>,
        responder: NativeResponder,
    ) {
        let known = client.sessions.borrow().get(&fetch.session).cloned();
        let session = match known {
            Some(session) => session,
            None => match self.begin_session(client, fetch) {
                Ok(session) => session,
                Err(error) => return self.native_error(responder, id, &error),
            },
        };
        if let Err(error) = change_queues(&session, fetch) {
            return self.native_error(responder, id, &error);
        }
        let now_ms = self.shard.now_ms();
        let limits = (
            fetch.min_bytes as usize,
            (fetch.max_bytes as usize).min(NATIVE_FETCH_BYTES_MAX),
        );
        let wait_ms = u64::from(fetch.max_wait_ms).min(self.options.suspend_ms_max);
        let before = session
            .state
            .borrow_mut()
            .wait(responder, id, limits, now_ms + wait_ms);
        if let Some(before) = before {
            self.answer_fetch(&session, before);
        }
        if self.known_group(&session.group).is_some() {
            return self.read_session(&session);
        }
        let broker = self.clone();
        self.shard.spawn(async move {
            // If it may not be made, the first pull says so.
            if let Err(error) = broker.create_group_of_session(&session.group).await {
                tracing::debug!(group = %session.group, %error, "the group of a fetch cannot be made");
            }
            broker.read_session(&session);
        });
    }

    pub(super) async fn create_group_of_session(&self, group: &str) -> Result<(), BrokerError> {
        crate::base::names::check_group(group)?;
        if !self.options.auto_create_group {
            return Err(BrokerError::NoGroup {
                group: group.to_owned(),
            });
        }
        self.create_group(group).await
    }

    fn begin_session(
        &self,
        client: &NativeClient,
        fetch: &Fetch<'_>,
    ) -> Result<Rc<FetchSession>, BrokerError> {
        let mut sessions = client.sessions.borrow_mut();
        if sessions.len() >= NATIVE_SESSIONS_MAX {
            return Err(BrokerError::InvalidParameter(format!(
                "the connection has {} fetch sessions, which is the limit",
                sessions.len()
            )));
        }
        if fetch.group.is_empty() {
            return Err(BrokerError::InvalidParameter(
                "the first fetch of a session names its consumer group".into(),
            ));
        }
        let session = Rc::new(FetchSession {
            number: fetch.session,
            group: Arc::from(fetch.group),
            state: RefCell::new(Session::new()),
            wakes_ms: Cell::new(u64::MAX),
        });
        sessions.insert(fetch.session, session.clone());
        Ok(session)
    }

    /// Reads what is ready, answers if that is enough, and sees to it that the fetch ends in time.
    fn read_session(&self, session: &Rc<FetchSession>) {
        let mut reads = 0;
        while reads < READS_PER_TURN {
            let read = session.state.borrow_mut().next_read();
            let Some(read) = read else { break };
            self.read_queue(session, read);
            reads += 1;
        }
        if reads == READS_PER_TURN {
            let (broker, session) = (self.clone(), session.clone());
            self.shard.spawn(async move {
                futures_lite::future::yield_now().await;
                broker.read_session(&session);
            });
        }
        self.finish_fetch(session);
        self.wake_in_time(session);
    }

    fn finish_fetch(&self, session: &Rc<FetchSession>) {
        let now_ms = self.shard.now_ms();
        let finished = session.state.borrow_mut().take_finished(now_ms);
        if let Some(waiting) = finished {
            self.answer_fetch(session, waiting);
        }
    }

    /// One pull. Its answer may come before this returns: then the loop of the caller goes on with it.
    fn read_queue(&self, session: &Rc<FetchSession>, read: Read<Target>) {
        let Read {
            handle,
            number,
            what: target,
            offset,
            bytes_max,
        } = read;
        let sql = target.filter_kind == FilterKind::Sql92;
        let planned = self.plan_direct_pull(&DirectPull {
            group: &session.group,
            topic: &target.topic,
            queue_id: target.queue_id,
            offset,
            messages_max: PULL_MESSAGES_MAX as u32,
            bytes_max: bytes_max.min(PULL_BYTES_MAX) as u32,
            suspend_ms: PARK_MS,
            filter_kind: sql.then_some(SQL92),
            filter: &target.filter,
        });
        let (topic, pull) = match planned {
            Ok(planned) => planned,
            Err(error) => return self.queue_failed(session, handle, number, &error),
        };
        let Some(core) = self.shard.shard_of_queue(&topic, target.queue_id) else {
            let error = topics::no_queue(&target.topic, target.queue_id);
            return self.queue_failed(session, handle, number, &error);
        };
        let begun_ms = self.shard.now_ms();
        let (broker, session) = (self.clone(), session.clone());
        // Whoever called is in the loop of `read_session` until this is set.
        let inline = Rc::new(Cell::new(true));
        let is_inline = inline.clone();
        self.shard
            .call(core, ShardRequest::Pull(Box::new(pull)), move |reply| {
                let began = (offset, begun_ms);
                broker.queue_read(&session, handle, number, began, &target, reply);
                if !is_inline.get() {
                    broker.read_session(&session);
                }
            });
        inline.set(false);
    }

    /// A pull has ended.
    fn queue_read(
        &self,
        session: &Rc<FetchSession>,
        handle: u32,
        number: PullNumber,
        (offset, begun_ms): (i64, u64),
        target: &Target,
        reply: LocalReply,
    ) {
        let pulled = match reply {
            ShardReply::Pulled(pulled) => pulled,
            ShardReply::Refused(refusal) => {
                return self.queue_failed(session, handle, number, &refusal.into());
            }
            other => {
                let error = BrokerError::unexpected(&other);
                return self.queue_failed(session, handle, number, &error);
            }
        };
        let mut state = session.state.borrow_mut();
        if !state.ended(handle, number) {
            return;
        }
        let (code, remark, next_offset) = status(
            pulled.status,
            offset,
            pulled.next_offset,
            pulled.min_offset,
            pulled.max_offset,
        );
        match code {
            response::SUCCESS => {
                let sum = (u64::from(pulled.message_count), pulled.records.len() as u64);
                let taken = state.found(Part {
                    handle,
                    code,
                    remark: String::new(),
                    next_offset,
                    min_offset: pulled.min_offset,
                    max_offset: pulled.max_offset,
                    records: pulled.message_count,
                    body: pulled.records,
                });
                drop(state);
                if taken {
                    let now_ms = self.shard.now_ms();
                    let topic = &target.topic;
                    self.count(Counted::Out, topic, &session.group, now_ms, sum);
                }
            }
            response::PULL_OFFSET_MOVED => {
                if state.is_waiting() {
                    state.moved(handle, next_offset);
                }
                state.tell(Part {
                    handle,
                    code,
                    remark: remark.to_owned(),
                    next_offset,
                    min_offset: pulled.min_offset,
                    max_offset: pulled.max_offset,
                    records: 0,
                    body: Body::Empty,
                });
            }
            // Nothing there, or nothing that the filter wants.
            code => {
                state.moved(handle, next_offset);
                let parked_ms = self.shard.now_ms().saturating_sub(begun_ms);
                if code == response::PULL_NOT_FOUND && parked_ms < PARKED_MS_MIN {
                    state.rest(handle);
                }
            }
        }
    }

    /// A queue cannot be read: the client hears why, and it is no longer in the session.
    fn queue_failed(
        &self,
        session: &Rc<FetchSession>,
        handle: u32,
        number: PullNumber,
        error: &BrokerError,
    ) {
        let Fault { code, remark } = self.fault(error);
        let mut state = session.state.borrow_mut();
        // Without a fetch that waits it stays, and fails again when there is one.
        if !state.ended(handle, number) || !state.is_waiting() {
            return;
        }
        state.remove(handle);
        state.tell(Part {
            handle,
            code,
            remark,
            next_offset: -1,
            min_offset: -1,
            max_offset: -1,
            records: 0,
            body: Body::Empty,
        });
    }

    fn answer_fetch(&self, session: &FetchSession, waiting: Waiting<NativeResponder>) {
        let queues: SmallVec<[FetchedQueue<'_>; 4]> = waiting
            .parts
            .iter()
            .map(|part| FetchedQueue {
                handle: part.handle,
                code: part.code,
                remark: &part.remark,
                next_offset: part.next_offset,
                min_offset: part.min_offset,
                max_offset: part.max_offset,
                records: part.records,
                bytes: part.body.len() as u32,
            })
            .collect();
        let payload_bytes = waiting
            .parts
            .iter()
            .map(|part| crate::wire::native::frame::padded(part.body.len()))
            .sum();
        let message = Message::FetchReply(FetchReply {
            session: session.number,
            queues,
        });
        let mut encoder = self.native.encoder.borrow_mut();
        let head = encoder.encode(waiting.id, &message, payload_bytes);
        drop(message);
        let bodies = waiting.parts.into_iter().map(|part| part.body);
        waiting.responder.send(head, bodies);
    }

    /// Lets a task end the fetch that waits when its time is over. There is one for a session, and it sleeps on while fetches
    /// are answered in time.
    fn wake_in_time(&self, session: &Rc<FetchSession>) {
        let Some(deadline_ms) = session.state.borrow().deadline_ms() else {
            return;
        };
        if session.wakes_ms.get() <= deadline_ms {
            return;
        }
        session.wakes_ms.set(deadline_ms);
        let (broker, session) = (self.clone(), session.clone());
        self.shard.spawn(async move {
            let mut wakes_ms = deadline_ms;
            loop {
                let wait_ms = wakes_ms.saturating_sub(broker.shard.now_ms());
                broker.shard.sleep(Duration::from_millis(wait_ms)).await;
                if session.wakes_ms.get() != wakes_ms {
                    // Another one sleeps for an earlier time.
                    return;
                }
                broker.finish_fetch(&session);
                let next_ms = session.state.borrow().deadline_ms();
                match next_ms {
                    Some(next_ms) => {
                        wakes_ms = next_ms;
                        session.wakes_ms.set(next_ms);
                    }
                    None => {
                        session.wakes_ms.set(u64::MAX);
                        return;
                    }
                }
            }
        });
    }
}

/// Adds, moves and removes queues as a fetch says.
fn change_queues(session: &FetchSession, fetch: &Fetch<'_>) -> Result<(), BrokerError> {
    let mut state = session.state.borrow_mut();
    let new = fetch.add.iter().filter(|queue| !state.has(queue.handle));
    let count = state.len() + new.count();
    if count > NATIVE_FETCH_QUEUES_MAX {
        return Err(BrokerError::InvalidParameter(format!(
            "the fetch session would have {count} queues, the limit is {NATIVE_FETCH_QUEUES_MAX}"
        )));
    }
    if !fetch.add.is_empty() && state.outstanding() > state.len() + STALE_PULLS_MAX {
        return Err(BrokerError::Unavailable(format!(
            "{} pulls of queues that were moved have not ended; move queues less often",
            state.outstanding()
        )));
    }
    for &handle in &fetch.remove {
        state.remove(handle);
    }
    for queue in &fetch.add {
        let FetchQueue {
            handle,
            topic,
            queue_id,
            offset,
            filter_kind,
            filter,
        } = *queue;
        let target = Target {
            topic: Arc::from(topic),
            queue_id,
            filter_kind,
            filter: Arc::from(filter),
        };
        state.put(handle, target, offset);
    }
    Ok(())
}
