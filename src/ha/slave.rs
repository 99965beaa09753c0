//! The slave's end of a slave stream: one log from its master.
//!
//! The log asks from where it ends, takes whole batches, and acknowledges what is durable here as `flushDiskType` says. A
//! connection that breaks is made again, with a growing pause; the log goes on where it was. What the master refuses is told
//! once and tried again, since an operator may put it right on the other side.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::base::doubt::Doubt;
use crate::base::limits::HA_WINDOW_BYTES;
use crate::base::planted::{PlantedBug, planted};
use crate::ha::control::Control;
use crate::ha::fetch::Exchange;
use crate::ha::handshake::{
    Secret, StreamError, greet_master, read_frame, read_frame_and_features, write_frame,
};
use crate::ha::master::StreamTimes;
use crate::io::env::Env;
use crate::io::net::{Net, NetStream, within};
use crate::io::tcp::ReadBuffer;
use crate::store::CommitLog;
use crate::store::commit_log::replica::ReplicaError;
use crate::store::recovery::Damage;
use crate::store::retention;
use crate::store::seed::Seed;
use crate::store::snapshot::Mark;
use crate::wire::ha::{Frame, StoreShape, Trust};

/// How long a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Pause after the first failure; doubled with each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// With a controller somebody waits for this slave, and the next master may be anywhere at any time.
const PAUSE_MAX_ELECTED: Duration = Duration::from_millis(400);
/// With a controller a slave acknowledges so often at least.
const ELECTED_HEARTBEAT: Duration = Duration::from_millis(200);
/// How often space is asked for while the disk of the slave has none.
const SPACE_PAUSE: Duration = Duration::from_millis(200);

/// How long a log that was given a seed waits for the other ones before all are opened again.
const SEED_PAUSE: Duration = Duration::from_millis(200);

/// What a slave is started with.
#[derive(Clone)]
pub struct SlaveOptions {
    pub broker_id: u64,
    pub shape: StoreShape,
    pub secret: Secret,
    pub times: StreamTimes,
    /// Where the master is, if that is known by now: `host:port`.
    pub master: Rc<dyn Fn() -> Option<String>>,
    /// With a controller.
    pub control: Option<Arc<Control>>,
    /// Has the logs opened again: what was noted in one of them is carried out then.
    pub reopen: Rc<dyn Fn()>,
}

impl SlaveOptions {
    fn group_epoch(&self) -> u32 {
        self.control.as_ref().map_or(0, |control| control.epoch())
    }
}

/// How a log's stream is doing, for who wants to know.
#[derive(Debug, Default)]
pub struct SlaveProgress {
    pub is_connected: Cell<bool>,
    /// Where the master's log began and ended when it last said so.
    pub master_start: Cell<u64>,
    pub master_end: Cell<u64>,
    /// Monotonic milliseconds of the last frame.
    pub heard_ms: Cell<u64>,
    last_error: RefCell<String>,
}

impl SlaveProgress {
    /// Why the log does not follow its master, if it does not.
    pub fn last_error(&self) -> String {
        self.last_error.borrow().clone()
    }
}

/// Asks a master what its store is made of.
pub async fn ask_shape<E: Env, N: Net>(
    env: &E,
    net: &N,
    address: &str,
    secret: &[u8],
) -> Result<StoreShape, StreamError> {
    let stream = net.connect(address, CONNECT_LIMIT).await?;
    let mut buffer = ReadBuffer::new();
    match greet_master(env, &stream, &mut buffer, secret, &Frame::Describe).await? {
        Frame::Description(shape) => Ok(shape),
        _ => Err(StreamError::Unexpected("a description was due")),
    }
}

/// Follows the master for ever: until the log stops or takes no writes any more.
pub async fn follow<E: Env, N: Net>(
    env: E,
    net: N,
    log: Rc<CommitLog<E>>,
    options: SlaveOptions,
    progress: Rc<SlaveProgress>,
) {
    let pause_max = match options.control {
        Some(_) => PAUSE_MAX_ELECTED,
        None => PAUSE_MAX,
    };
    let mut pause = PAUSE_FIRST;
    if let Some(control) = &options.control {
        control.note_doubt(log.id(), log.doubt());
    }
    while !log.has_ended() {
        if let Some(address) = (options.master)() {
            let error = one_session(&env, &net, &log, &options, &progress, &address).await;
            if progress.is_connected.replace(false) {
                pause = PAUSE_FIRST;
            }
            let text = error.to_string();
            if *progress.last_error.borrow() != text && !log.has_ended() {
                tracing::warn!(log = log.id(), master = %address, error = %text, "this log does not follow its master; it is tried again");
                *progress.last_error.borrow_mut() = text;
            }
            if matches!(error, StreamError::Refused(_) | StreamError::Secret) {
                pause = pause_max;
            }
        }
        // Slaves of one master, and logs of one slave, need not come at the same moment.
        let jitter = env.random_u64() % (pause.as_millis() as u64 / 2).max(1);
        env.sleep(pause / 2 + Duration::from_millis(jitter)).await;
        pause = (pause * 2).min(pause_max);
    }
}

/// Removes old segments of a slave's log after its master has, until the log stops.
pub async fn follow_retention<E: Env>(
    env: E,
    log: Rc<CommitLog<E>>,
    progress: Rc<SlaveProgress>,
    period: Duration,
) {
    while !log.has_ended() {
        env.sleep(period).await;
        // The master carries what is still needed out of its oldest segment before it moves its start, so
        // the slave has to have come as far as the master was then.
        let (start, end) = (progress.master_start.get(), progress.master_end.get());
        if log.durable().0 >= end
            && let Err(error) = retention::follow(&log, start).await
        {
            tracing::warn!(log = log.id(), %error, "old segments cannot be removed");
        }
    }
}

async fn one_session<E: Env, N: Net>(
    env: &E,
    net: &N,
    log: &Rc<CommitLog<E>>,
    options: &SlaveOptions,
    progress: &Rc<SlaveProgress>,
    address: &str,
) -> StreamError {
    match session(env, net, log, options, progress, address).await {
        Ok(()) => StreamError::Ended,
        Err(error) => error,
    }
}

async fn session<E: Env, N: Net>(
    env: &E,
    net: &N,
    log: &Rc<CommitLog<E>>,
    options: &SlaveOptions,
    progress: &Rc<SlaveProgress>,
    address: &str,
) -> Result<(), StreamError> {
    let stream = Rc::new(net.connect(address, CONNECT_LIMIT).await?);
    let mut buffer = ReadBuffer::new();
    let end = log.replica_end();
    // With a controller nothing was ever acknowledged that only a log behind its master's beginning has. Without one a person
    // decides that, unless it is a copy that was not finished.
    let takes_seed = options.control.is_some() || end.position == 0 || log.is_seeding();
    let join = Frame::Join {
        broker_id: options.broker_id,
        shape: options.shape,
        log: log.id(),
        position: end.position,
        epoch: end.epoch,
        previous_crc: end.previous_crc,
        window_bytes: HA_WINDOW_BYTES,
        group_epoch: options.group_epoch(),
        takes_seed,
    };
    let mut answer = greet_master(env, &*stream, &mut buffer, &options.secret, &join).await?;
    while let Frame::Want { position, bytes } = answer {
        // The master's log is damaged where it parts from this one.
        let end = position.saturating_add(bytes);
        let batches = log.whole_batches(position, end).await.into();
        write_frame(&*stream, &Frame::Range { position, batches }).await?;
        let silence = options.times.silence;
        let next = read_frame(&*stream, &mut buffer, Trust::Peer);
        answer = match within(env, silence, next).await {
            Some(Ok(Frame::Refused { remark })) => return Err(StreamError::Refused(remark)),
            Some(next) => next?,
            None => return Err(StreamError::Silent(silence)),
        };
    }
    let (start, end, epoch) = match (answer, &options.control) {
        (
            Frame::Joined {
                start,
                end,
                group_epoch,
            },
            _,
        ) => (start, end, group_epoch),
        (Frame::Apart { epoch, position }, Some(_)) => {
            // What lies behind the damage is no chain that a cut could follow.
            log.wipe_damage().await?;
            log.ask_for_cut(epoch, position).await?;
            (options.reopen)();
            return Err(StreamError::Apart);
        }
        (
            Frame::Seed {
                position,
                epoch,
                previous_crc,
                bytes,
                crc,
            },
            _,
        ) if takes_seed => {
            let mark = Mark {
                position,
                previous_crc,
                epoch,
                store_id: options.shape.store_id,
            };
            let payload = take_seed(env, &*stream, &mut buffer, options, bytes, crc).await?;
            log.note_seed(&Seed { mark, payload }).await?;
            // The other logs of a new store get theirs at the same time.
            env.sleep(SEED_PAUSE).await;
            (options.reopen)();
            return Err(StreamError::Seeded);
        }
        _ => return Err(StreamError::Unexpected("an answer to a join was due")),
    };
    check_epoch(options, epoch)?;
    if let Some(control) = &options.control {
        control.hear_epoch(epoch);
    }
    repair(log, options, address, end).await?;
    progress.master_start.set(start);
    progress.master_end.set(end);
    log.set_master_end(end);
    progress.is_connected.set(true);
    progress.last_error.borrow_mut().clear();
    tracing::info!(log = log.id(), master = %address, from = log.replica_end().position, to = end, "this log follows its master");
    let ended = Rc::new(Cell::new(false));
    if log.doubt() > Doubt::None {
        let (log, ended, options) = (log.clone(), ended.clone(), options.clone());
        env.spawn(async move { until_whole(&log, &ended, &options, end).await });
    }
    let exchange = Exchange::new(env, log, address.to_owned());
    let followed = Followed {
        log: log.clone(),
        options: options.clone(),
        progress: progress.clone(),
        exchange,
        epoch,
        ended: ended.clone(),
    };
    {
        let (env, stream, followed) = (env.clone(), stream.clone(), followed.clone());
        env.clone().spawn(async move {
            acknowledge(&env, &*stream, &followed).await;
            stream.shutdown();
        });
    }
    let result = take_batches(env, &*stream, &mut buffer, &followed).await;
    ended.set(true);
    stream.shutdown();
    log.look_again();
    result
}

/// What both tasks of a connection that follows share.
#[derive(Clone)]
struct Followed<E: Env> {
    log: Rc<CommitLog<E>>,
    options: SlaveOptions,
    progress: Rc<SlaveProgress>,
    exchange: Rc<Exchange<E>>,
    /// Of the master.
    epoch: u32,
    ended: Rc<Cell<bool>>,
}

/// Takes the bytes that a [`Frame::Seed`] has announced; as much memory as has come.
async fn take_seed<E: Env, S: NetStream>(
    env: &E,
    stream: &S,
    buffer: &mut ReadBuffer,
    options: &SlaveOptions,
    bytes: u64,
    crc: u32,
) -> Result<Vec<u8>, StreamError> {
    let silence = options.times.silence;
    let mut payload = Vec::new();
    while (payload.len() as u64) < bytes {
        let frame = read_frame(stream, buffer, Trust::Peer);
        match within(env, silence, frame).await {
            Some(Ok(Frame::SeedPart { bytes })) if !bytes.is_empty() => {
                payload.extend_from_slice(&bytes);
            }
            Some(Ok(_)) => return Err(StreamError::Unexpected("the rest of a seed was due")),
            Some(Err(error)) => return Err(error),
            None => return Err(StreamError::Silent(silence)),
        }
    }
    if payload.len() as u64 != bytes || crc32c::crc32c(&payload) != crc {
        return Err(StreamError::Unexpected("the seed is damaged"));
    }
    Ok(payload)
}

/// The master sends on from where this log is damaged: what lies there is wiped. `end` is the master's.
async fn repair<E: Env>(
    log: &CommitLog<E>,
    options: &SlaveOptions,
    address: &str,
    end: u64,
) -> Result<(), StreamError> {
    let Some(damage) = log.damage() else {
        return Ok(());
    };
    let Damage {
        position,
        lost_bytes,
    } = damage;
    // With fixed roles nobody has decided that the master's log counts.
    if options.control.is_none() && end < position + lost_bytes {
        return Err(StreamError::Refused(format!(
            "log {} is damaged at position {position} here, and the master's ends at position {end}, before what was durable here: it cannot be repaired from there. Keep this store until it is known which of the two counts",
            log.id()
        )));
    }
    let held = log.allocated_end().saturating_sub(position);
    // Said before: another log's change of role may end this one on the way, and the next opening goes on with it.
    tracing::warn!(
        log = log.id(),
        position,
        lost_bytes,
        wiped_bytes = held,
        to = end,
        master = %address,
        "this log is damaged: everything from there on is wiped and fetched from the master again"
    );
    log.wipe_damage().await?;
    Ok(())
}

/// Waits until this log has everything that its master had when it joined. From then on it may be elected again.
async fn until_whole<E: Env>(
    log: &CommitLog<E>,
    ended: &Cell<bool>,
    options: &SlaveOptions,
    end: u64,
) {
    log.grown_until(|| ended.get() || log.has_ended() || log.durable_here().0 >= end)
        .await;
    if log.durable_here().0 < end {
        return;
    }
    match log.on_whole().await {
        Ok(()) => {
            if let Some(control) = &options.control {
                control.note_doubt(log.id(), Doubt::None);
            }
        }
        Err(error) => {
            tracing::warn!(log = log.id(), %error, "this log has everything again, and cannot note that: the next connection tries again");
        }
    }
}

/// A master that was deposed is not followed and not answered any more.
fn check_epoch(options: &SlaveOptions, theirs: u32) -> Result<(), StreamError> {
    let known = options.group_epoch();
    if theirs < known {
        return Err(StreamError::OldEpoch { theirs, known });
    }
    Ok(())
}

/// Sends what is durable whenever that has moved, and in between so that the master knows of us; and what is asked for or answered.
async fn acknowledge<E: Env, S: NetStream>(env: &E, stream: &S, followed: &Followed<E>) {
    let Followed {
        log,
        options,
        progress,
        exchange,
        epoch,
        ended,
    } = followed;
    let heartbeat = match options.control {
        // A later epoch is noticed between two of them.
        Some(_) => options.times.heartbeat.min(ELECTED_HEARTBEAT),
        None => options.times.heartbeat,
    };
    while !ended.get() && !log.has_ended() && check_epoch(options, *epoch).is_ok() {
        let durable = log.replica_durable();
        let ack = Frame::Ack {
            durable,
            window_bytes: HA_WINDOW_BYTES,
        };
        if write_frame(stream, &ack).await.is_err() {
            return;
        }
        if let Some(frame) = exchange.next(progress.master_end.get())
            && write_frame(stream, &frame).await.is_err()
        {
            return;
        }
        let moved = log.grown_until(|| {
            ended.get()
                || log.has_ended()
                || log.replica_durable() != durable
                || exchange.has_next(progress.master_end.get())
        });
        within(env, heartbeat, moved).await;
    }
}

async fn take_batches<E: Env, S: NetStream>(
    env: &E,
    stream: &S,
    buffer: &mut ReadBuffer,
    followed: &Followed<E>,
) -> Result<(), StreamError> {
    let Followed {
        log,
        options,
        progress,
        exchange,
        epoch,
        ..
    } = followed;
    let silence = options.times.silence;
    loop {
        let frame = read_frame_and_features(stream, buffer, Trust::Peer);
        let (frame, features) = match within(env, silence, frame).await {
            Some(frame) => frame?,
            None => return Err(StreamError::Silent(silence)),
        };
        exchange.hear_features(features);
        let (position, start, end, confirmed, batches) = match frame {
            Frame::Data {
                position,
                start,
                end,
                confirmed,
                batches,
            } => (position, start, end, confirmed, batches),
            Frame::Want { position, bytes } => {
                exchange.on_want(position, bytes)?;
                continue;
            }
            Frame::Range { position, batches } => {
                exchange.on_range(position, batches);
                continue;
            }
            _ => return Err(StreamError::Unexpected("batches were due")),
        };
        progress.master_start.set(start);
        progress.master_end.set(end);
        log.set_master_end(end);
        progress.heard_ms.set(env.now_ns() / 1_000_000);
        if position != log.replica_end().position {
            return Err(StreamError::Unexpected("batches of another place were due"));
        }
        check_epoch(options, *epoch)?;
        if options.control.is_some() {
            // What the in-sync set has not confirmed may be cut off again, so it is neither shown nor in a snapshot.
            log.set_release_limit(confirmed);
        }
        let mut left = &batches[..];
        while !left.is_empty() {
            let space_end = log.allocated_end();
            match log.append_replicated(left) {
                Ok(0) => return Err(StreamError::Unexpected("a batch was cut short")),
                Ok(taken) => left = &left[taken..],
                Err(ReplicaError::NoSpace) => {
                    let more = log.space_beyond(space_end);
                    within(env, SPACE_PAUSE, more).await;
                    if log.disk_full().is_some() {
                        env.sleep(SPACE_PAUSE).await;
                    }
                }
                Err(error) => return Err(error.into()),
            }
            if log.has_ended() {
                return Err(StreamError::Ended);
            }
        }
        if planted(PlantedBug::ReplicaAcksBeforeFlush) {
            log.look_again();
        }
    }
}
