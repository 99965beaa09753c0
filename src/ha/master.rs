//! The master's end of a slave stream: one log to one slave.
//!
//! Batches leave as they lie in the tail cache or in chunks of the disk, whole, as far as the slave's window allows, as soon
//! as they are durable here. What a slave far behind needs is read in the background queue, so that a commit goes first.
//! Acknowledgements are told to [`Windows`], which is the shard.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::base::limits::{HA_FRAME_BYTES_TARGET, HA_READ_AHEAD_BYTES};
use crate::base::offset::LogId;
use crate::ha::fetch::Exchange;
use crate::ha::handshake::{
    StreamError, check_shape, greet_slave, read_frame, read_frame_and_features, write_frame,
};
use crate::io::env::Env;
use crate::io::net::{NetStream, within, write_all};
use crate::io::tcp::ReadBuffer;
use crate::store::CommitLog;
use crate::store::commit_log::replica::{LogEnd, Relation};
use crate::store::types::Refusal;
use crate::wire::ha::{FEATURE_FETCH, Frame, StoreShape, Trust, data_head};

/// The pause after a frame from the disk: long enough for the core to look at the device and at other connections.
const TURN: Duration = Duration::from_micros(10);

/// How long a slave that comes waits until damage that it may mend is found.
const SEARCH_LIMIT: Duration = Duration::from_millis(500);

/// Who weighs what slaves acknowledge.
pub trait Windows {
    /// A slave follows a log from there. Gives the number of its connection; an older one of the same slave is dead by that.
    fn joined(&self, log: LogId, broker_id: u64, address: &str, position: u64) -> u64;
    /// It has everything before `durable` on its disk. False: the connection is dead.
    fn acked(&self, log: LogId, connection: u64, durable: u64) -> bool;
    /// The connection ended.
    fn left(&self, log: LogId, connection: u64);
    /// The epoch that the controller gave this master; 0 without a controller.
    fn group_epoch(&self) -> u32 {
        0
    }
}

/// Times of a stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamTimes {
    /// After so long without data a heartbeat is sent, either way (`haSendHeartbeatInterval`).
    pub heartbeat: Duration,
    /// After so long without a frame the peer counts as gone (`haHousekeepingInterval`).
    pub silence: Duration,
}

/// What a slave wants, from its [`Frame::Join`].
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub broker_id: u64,
    pub end: LogEnd,
    pub window_bytes: u64,
    /// The greatest epoch of a master that it has heard of; 0 without a controller.
    pub group_epoch: u32,
    /// It begins anew if its log ends before this one begins.
    pub takes_seed: bool,
}

/// Lets a slave prove itself and answers what any core can answer: gives the log and wish of one that wants to follow. `own` is
/// what the master's store is made of; `is_elected`: a controller made it the master.
pub async fn let_in<E: Env, S: NetStream>(
    env: &E,
    stream: &S,
    secret: &[u8],
    own: StoreShape,
    is_elected: bool,
) -> Result<Option<(LogId, Wish)>, StreamError> {
    let mut buffer = ReadBuffer::new();
    match greet_slave(env, stream, &mut buffer, secret).await? {
        Frame::Describe => {
            write_frame(stream, &Frame::Description(own)).await?;
            Ok(None)
        }
        Frame::Join {
            broker_id,
            shape,
            log,
            position,
            epoch,
            previous_crc,
            window_bytes,
            group_epoch,
            takes_seed,
        } => {
            let checked = match check_shape(shape, own) {
                Ok(()) if (group_epoch > 0) != is_elected => Err(
                    "enableControllerMode has to be the same on all brokers of a group".to_owned(),
                ),
                Ok(()) if u16::from(log) >= own.logs => Err(format!("there is no log {log} here")),
                Ok(()) if broker_id == 0 => Err(
                    "brokerId 0 is the master's: a slave needs a greater one of its own".to_owned(),
                ),
                checked => checked,
            };
            if let Err(remark) = checked {
                write_frame(stream, &Frame::refused(remark.clone())).await?;
                return Err(StreamError::Refused(remark));
            }
            if !buffer.bytes.is_empty() {
                return Err(StreamError::Unexpected("nothing was due before the answer"));
            }
            let end = LogEnd {
                position,
                epoch,
                previous_crc,
            };
            let wish = Wish {
                broker_id,
                end,
                window_bytes,
                group_epoch,
                takes_seed,
            };
            Ok(Some((log, wish)))
        }
        _ => Err(StreamError::Unexpected("a join was due")),
    }
}

struct Session<W: Windows + ?Sized> {
    windows: Rc<W>,
    log: LogId,
    connection: u64,
    /// Nothing from here on may be sent yet.
    window_end: Cell<u64>,
    /// The slave has this durably.
    acked: Cell<u64>,
    ended: Cell<bool>,
}

impl<W: Windows + ?Sized> Drop for Session<W> {
    fn drop(&mut self) {
        self.windows.left(self.log, self.connection);
    }
}

/// Serves a slave that has proved itself until the connection ends, and says why it did.
pub async fn serve<E: Env, S: NetStream, W: Windows + ?Sized + 'static>(
    env: E,
    stream: Rc<S>,
    wish: Wish,
    log: Rc<CommitLog<E>>,
    windows: Rc<W>,
    times: StreamTimes,
) -> StreamError {
    match begin(&env, &*stream, &wish, &log, windows.group_epoch(), times).await {
        Ok(()) => {}
        Err(error) => return error,
    }
    let address = stream.peer().to_string();
    let position = wish.end.position;
    let connection = windows.joined(log.id(), wish.broker_id, &address, position);
    tracing::info!(log = log.id(), slave = wish.broker_id, %address, position, "a slave follows this log");
    let session = Rc::new(Session {
        windows,
        log: log.id(),
        connection,
        window_end: Cell::new(position.saturating_add(wish.window_bytes)),
        acked: Cell::new(position),
        ended: Cell::new(false),
    });
    let exchange = Exchange::new(&env, &log, address);
    let failure: Rc<Cell<Option<StreamError>>> = Rc::default();
    {
        let (env, stream, session) = (env.clone(), stream.clone(), session.clone());
        let (log, failure, exchange) = (log.clone(), failure.clone(), exchange.clone());
        env.clone().spawn(async move {
            let error = take_acks(&env, &*stream, &session, &log, &exchange, times).await;
            failure.set(Some(error));
            session.ended.set(true);
            stream.shutdown();
            log.look_again();
        });
    }
    let error = send(&env, &*stream, &session, &log, &exchange, position, times).await;
    session.ended.set(true);
    stream.shutdown();
    failure.take().unwrap_or(error)
}

async fn begin<E: Env, S: NetStream>(
    env: &E,
    stream: &S,
    wish: &Wish,
    log: &Rc<CommitLog<E>>,
    group_epoch: u32,
    times: StreamTimes,
) -> Result<(), StreamError> {
    if wish.group_epoch > group_epoch {
        let remark = format!(
            "this master has epoch {group_epoch}, the slave has heard of epoch {}: another broker is the master",
            wish.group_epoch
        );
        write_frame(stream, &Frame::refused(remark.clone())).await?;
        return Err(StreamError::Refused(remark));
    }
    if group_epoch > 0
        && let Some(refusal @ Refusal::Poisoned { .. }) = log.refusal()
    {
        // Whatever this log lacks, the slave may have: it must not be cut back to what is left here.
        let remark = format!("the master's log cannot be followed: {refusal}");
        write_frame(stream, &Frame::refused(remark.clone())).await?;
        return Err(StreamError::Refused(remark));
    }
    let relation = async || log.relation_of(wish.end).await;
    let relation = in_common(env, stream, wish, log, times, relation).await?;
    let position = wish.end.position;
    let remark = match relation {
        Relation::Prefix => {
            let joined = Frame::Joined {
                start: log.start_position().0,
                end: log.durable_here().0,
                group_epoch,
            };
            return write_frame(stream, &joined).await;
        }
        Relation::Longer { .. } | Relation::Diverged if group_epoch > 0 => {
            // The controller has decided whose log counts.
            let parting = async || log.end_of_epoch(wish.end.epoch).await;
            let (epoch, position) = in_common(env, stream, wish, log, times, parting).await?;
            write_frame(stream, &Frame::Apart { epoch, position }).await?;
            return Err(StreamError::Apart);
        }
        Relation::TooOld { .. } if wish.takes_seed => {
            give_seed(stream, log).await?;
            return Err(StreamError::Seeded);
        }
        Relation::TooOld { start } => format!(
            "log {} begins at position {start} here, this slave has it up to {position}: what lies between was removed by retention. \
             Start it with an empty storePathRootDir, and it makes a copy of what is there",
            log.id()
        ),
        Relation::Longer { end } => format!(
            "log {} ends at position {end} here, this slave has it up to {position}: it has what this master never had or has lost. \
             If that is wanted, make the slave the master; else start it with an empty storePathRootDir",
            log.id()
        ),
        Relation::Diverged => format!(
            "log {} is another one here than on this slave, which ends at position {position} with epoch {}: both were written to after \
             their common beginning. Keep the one that clients were answered by; start the other one with an empty storePathRootDir",
            log.id(),
            wish.end.epoch
        ),
    };
    write_frame(stream, &Frame::refused(remark.clone())).await?;
    Err(StreamError::Refused(remark))
}

/// What this log has in common with the slave's, which `look` reads. If that cannot be read because it is damaged, the slave, which
/// might be refused or cut back for it, may have it: it is asked before it is told.
async fn in_common<E: Env, S: NetStream, T>(
    env: &E,
    stream: &S,
    wish: &Wish,
    log: &Rc<CommitLog<E>>,
    times: StreamTimes,
    look: impl AsyncFn() -> io::Result<T>,
) -> Result<T, StreamError> {
    let exchange = Exchange::new(env, log, stream.peer().to_string());
    exchange.hear_features(FEATURE_FETCH);
    exchange.says_little();
    let mut buffer = ReadBuffer::new();
    let end = wish.end.position;
    loop {
        let damaged = match look().await {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => error,
            known => return Ok(known?),
        };
        // The search has to find it first, and what it found may not be what the slave can have.
        let found = log.grown_until(|| log.has_ended() || exchange.has_next(end));
        let is_found = within(env, SEARCH_LIMIT, found).await.is_some();
        let Some(want) = exchange.next(end).filter(|_| is_found) else {
            let remark = damaged.to_string();
            write_frame(stream, &Frame::refused(remark.clone())).await?;
            return Err(StreamError::Refused(remark));
        };
        write_frame(stream, &want).await?;
        let answer = read_frame(stream, &mut buffer, Trust::Peer);
        match within(env, times.silence, answer).await {
            Some(Ok(Frame::Range { position, batches })) => exchange.on_range(position, batches),
            Some(Ok(_)) => return Err(StreamError::Unexpected("what was asked for was due")),
            Some(Err(error)) => return Err(error),
            None => return Err(StreamError::Silent(times.silence)),
        }
        let done = log.grown_until(|| log.has_ended() || !exchange.is_mending());
        within(env, times.silence, done).await;
    }
}

/// Sends what a copy of this log begins with.
async fn give_seed<E: Env, S: NetStream>(
    stream: &S,
    log: &CommitLog<E>,
) -> Result<(), StreamError> {
    let seed = log.make_seed().await?;
    let head = Frame::Seed {
        position: seed.mark.position,
        epoch: seed.mark.epoch,
        previous_crc: seed.mark.previous_crc,
        bytes: seed.payload.len() as u64,
        crc: crc32c::crc32c(&seed.payload),
    };
    write_frame(stream, &head).await?;
    let payload = bytes::Bytes::from(seed.payload);
    for from in (0..payload.len()).step_by(HA_FRAME_BYTES_TARGET) {
        let bytes = payload.slice(from..payload.len().min(from + HA_FRAME_BYTES_TARGET));
        write_frame(stream, &Frame::SeedPart { bytes }).await?;
    }
    Ok(())
}

async fn take_acks<E: Env, S: NetStream, W: Windows + ?Sized>(
    env: &E,
    stream: &S,
    session: &Session<W>,
    log: &CommitLog<E>,
    exchange: &Rc<Exchange<E>>,
    times: StreamTimes,
) -> StreamError {
    let mut buffer = ReadBuffer::new();
    loop {
        let frame = read_frame_and_features(stream, &mut buffer, Trust::Peer);
        let (frame, features) = match within(env, times.silence, frame).await {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return error,
            None => return StreamError::Silent(times.silence),
        };
        exchange.hear_features(features);
        let (durable, window_bytes) = match frame {
            Frame::Ack {
                durable,
                window_bytes,
            } => (durable, window_bytes),
            Frame::Want { position, bytes } => match exchange.on_want(position, bytes) {
                Ok(()) => continue,
                Err(error) => return error,
            },
            Frame::Range { position, batches } => {
                exchange.on_range(position, batches);
                continue;
            }
            _ => return StreamError::Unexpected("an acknowledgement was due"),
        };
        if durable > log.durable_here().0 {
            return StreamError::Unexpected("it acknowledges what it was not sent");
        }
        session.window_end.set(durable.saturating_add(window_bytes));
        session.acked.set(durable);
        if !session
            .windows
            .acked(session.log, session.connection, durable)
        {
            return StreamError::Replaced;
        }
        log.look_again();
    }
}

async fn send<E: Env, S: NetStream, W: Windows + ?Sized>(
    env: &E,
    stream: &S,
    session: &Session<W>,
    log: &Rc<CommitLog<E>>,
    exchange: &Exchange<E>,
    mut sent: u64,
    times: StreamTimes,
) -> StreamError {
    let tells_confirmed = session.windows.group_epoch() > 0;
    let mut told = 0;
    // What comes next is damaged here: until the next heartbeat.
    let is_stuck = Cell::new(false);
    loop {
        let has_more = || log.durable_here().0 > sent && sent < session.window_end.get();
        let may_send = || has_more() && !is_stuck.get();
        let is_news = || tells_confirmed && log.durable().0 > told;
        let has_asked = || exchange.has_next(session.acked.get());
        let due = log.grown_until(|| {
            session.ended.get() || log.has_ended() || may_send() || is_news() || has_asked()
        });
        let is_heartbeat = within(env, times.heartbeat, due).await.is_none();
        if is_heartbeat {
            is_stuck.set(false);
        }
        if session.ended.get() || log.has_ended() {
            return StreamError::Ended;
        }
        if let Some(frame) = exchange.next(session.acked.get()) {
            if let Err(error) = write_frame(stream, &frame).await {
                return error;
            }
            if !is_heartbeat && !may_send() && !is_news() {
                continue;
            }
        }
        let (start, end) = (log.start_position().0, log.durable_here().0);
        let confirmed = log.durable().0;
        told = confirmed;
        if is_heartbeat || !may_send() {
            let head = data_head(sent, start, end, confirmed, 0);
            if let Err(error) = write_all(stream, &[&head]).await {
                return error.into();
            }
            continue;
        }
        log.read_ahead(sent..session.window_end.get().min(sent + HA_READ_AHEAD_BYTES));
        let room = session.window_end.get().saturating_sub(sent) as usize;
        let batches = match log
            .batches_from(sent, HA_FRAME_BYTES_TARGET.min(room))
            .await
        {
            Ok(batches) => batches,
            // The slave may have what is damaged before, or another one what is damaged here.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                is_stuck.set(true);
                continue;
            }
            Err(error) => return error.into(),
        };
        let head = data_head(sent, start, end, confirmed, batches.bytes);
        let mut parts: Vec<&[u8]> = Vec::with_capacity(batches.slices.len() + 1);
        parts.push(&head);
        parts.extend(batches.slices.iter().map(|slice| &slice[..]));
        if let Err(error) = write_all(stream, &parts).await {
            return error.into();
        }
        let was_cold = sent < log.reader().tail_start();
        sent = batches.next;
        if was_cold {
            // What was read ahead and fits into the socket never waits: a commit would have to, for all of it.
            env.sleep(TURN).await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::ha::control::Control;
    use crate::ha::slave::{SlaveOptions, SlaveProgress, follow};
    use crate::io::sim::{SimEnv, SimNetwork, SimOptions, SimWorld};
    use crate::store::LogOptions;
    use crate::store::scrub::ScrubOptions;
    use crate::store::testing::copies::{
        FAST, SEGMENT_BYTES, fill, flip, here, make_copies, open, there,
    };
    use crate::store::testing::{Quiet, small_log};

    const ADDRESS: &str = "master";
    const SHAPE: StoreShape = StoreShape {
        store_id: 9,
        logs: 1,
        segment_bytes: SEGMENT_BYTES,
    };
    const TIMES: StreamTimes = StreamTimes {
        heartbeat: Duration::from_millis(50),
        silence: Duration::from_secs(3),
    };

    /// Nobody waits for the slave; how often it came is counted. With an epoch the master was elected.
    #[derive(Default)]
    struct Counted(Cell<u64>, u32);

    impl Windows for Counted {
        fn joined(&self, _log: LogId, _broker_id: u64, _address: &str, _position: u64) -> u64 {
            self.0.set(self.0.get() + 1);
            self.0.get()
        }
        fn acked(&self, _log: LogId, _connection: u64, _durable: u64) -> bool {
            true
        }
        fn left(&self, _log: LogId, _connection: u64) {}
        fn group_epoch(&self) -> u32 {
            self.1
        }
    }

    /// Serves this log to whoever comes.
    fn listen(
        network: &SimNetwork,
        env: &SimEnv,
        log: &Rc<CommitLog<SimEnv>>,
        slaves: &Rc<Counted>,
    ) {
        let (own, served, windows) = (env.clone(), log.clone(), slaves.clone());
        network.listen(env, ADDRESS, move |stream| {
            let (env, log, windows) = (own.clone(), served.clone(), windows.clone());
            own.spawn(async move {
                let wish = let_in(&env, &stream, b"secret", SHAPE, windows.1 > 0).await;
                let (_, wish) = wish.unwrap().unwrap();
                serve(env, Rc::new(stream), wish, log, windows, TIMES).await;
            });
        });
    }

    fn slave_options() -> SlaveOptions {
        SlaveOptions {
            broker_id: 1,
            shape: SHAPE,
            secret: Arc::from(b"secret".as_slice()),
            times: TIMES,
            master: Rc::new(|| Some(ADDRESS.to_owned())),
            control: None,
            reopen: Rc::new(|| {}),
        }
    }

    async fn open_slave(env: &SimEnv, directory: &Path) -> Rc<CommitLog<SimEnv>> {
        env.create_dir(directory).await.unwrap();
        let options = LogOptions {
            replica: true,
            ..small_log(directory, SEGMENT_BYTES)
        };
        let copy = CommitLog::open(env.clone(), options).await.unwrap();
        copy.start(Rc::new(Quiet));
        copy
    }

    #[test]
    fn a_slave_that_cannot_be_sent_what_is_damaged_stays_and_is_asked_for_what_it_has() {
        let world = SimWorld::new(7, SimOptions::default());
        make_copies(&world);
        let (first, second) = (5_000, SEGMENT_BYTES + 40_000);
        flip(&world, second, 1);
        let network = SimNetwork::new((*world).clone());
        let env = world.env();
        world.block_on(async {
            let log = open(&env, &here(), FAST).await;
            let slaves = Rc::new(Counted::default());
            listen(&network, &env, &log, &slaves);
            let copy = open_slave(&env, Path::new("/data/slave")).await;
            let options = slave_options();
            let progress = Rc::new(SlaveProgress::default());
            let net = network.of(&env);
            env.spawn(follow(
                env.clone(),
                net,
                copy.clone(),
                options,
                progress.clone(),
            ));
            env.sleep(Duration::from_secs(20)).await;
            let reached = copy.replica_end().position;
            assert!(reached > second - 20_000 && reached <= second);
            flip(&world, first, 1);
            env.sleep(Duration::from_secs(20)).await;
            let figures = log.scrub_figures();
            assert!(figures.repaired_bytes > 0 && figures.damaged_bytes > 0);
            assert_eq!((slaves.0.get(), progress.is_connected.get()), (1, true));
            // Somebody has restored the rest.
            flip(&world, second, 1);
            log.reader().forget(0..u64::MAX, 0);
            env.sleep(Duration::from_secs(20)).await;
            assert_eq!(copy.durable_here(), log.durable_here());
        });
    }

    #[test]
    fn a_master_damaged_where_its_slave_parts_from_it_gets_that_from_it_before_the_slave_is_cut() {
        let world = SimWorld::new(7, SimOptions::default());
        let end = make_copies(&world);
        let network = SimNetwork::new((*world).clone());
        let env = world.env();
        world.block_on(async {
            // The master never got the end of epoch 1, and went on in epoch 2.
            let log = open(&env, &here(), ScrubOptions::OFF).await;
            let (mut last, mut cut) = (0, 3 * SEGMENT_BYTES);
            while cut < end - 40_000 {
                (last, cut) = (cut, log.batches_from(cut, 1).await.unwrap().next);
            }
            log.ask_for_cut(1, cut).await.unwrap();
            log.stop().await.unwrap();
            let log = open(&env, &here(), ScrubOptions::OFF).await;
            assert_eq!(log.durable().0, cut);
            fill(&env, &log, cut + 60_000).await;
            log.stop().await.unwrap();
            for (position, is_whole_there) in [(last + 70, true), (cut + 70, false)] {
                flip(&world, position, 1);
                let log = open(&env, &here(), ScrubOptions::OFF).await;
                assert!(log.end_of_epoch(1).await.is_err());
                let slaves = Rc::new(Counted(Cell::new(0), 2));
                listen(&network, &env, &log, &slaves);
                let copy = open_slave(&env, &there()).await;
                let control = Control::new(Box::new(|| 0));
                control.hear_epoch(2);
                let reopened = Rc::new(Cell::new(false));
                let asked = reopened.clone();
                let options = SlaveOptions {
                    control: Some(control),
                    reopen: Rc::new(move || asked.set(true)),
                    ..slave_options()
                };
                let progress = Rc::new(SlaveProgress::default());
                let (net, copy_, told) = (network.of(&env), copy.clone(), progress.clone());
                env.spawn(follow(env.clone(), net, copy_, options, told));
                env.sleep(Duration::from_secs(5)).await;
                assert_eq!(reopened.get(), is_whole_there, "{}", progress.last_error());
                let files = world.with_disk(0, |disk| disk.files());
                let noted: Vec<u64> = files
                    .iter()
                    .filter(|(path, _)| path.parent() == Some(&there()))
                    .filter_map(|(path, _)| {
                        path.file_name()?
                            .to_str()?
                            .strip_prefix("cut-")?
                            .parse()
                            .ok()
                    })
                    .collect();
                match is_whole_there {
                    true => assert_eq!(noted, [cut]),
                    // It has what it was damaged with: another end of epoch 1.
                    false => {
                        assert!(noted.is_empty());
                        let error = progress.last_error();
                        assert!(error.contains("is damaged at position"), "{error}");
                    }
                }
                assert_eq!(log.scrub_figures().repaired_bytes > 0, is_whole_there);
                copy.stop().await.unwrap();
                log.stop().await.unwrap();
                if !is_whole_there {
                    break;
                }
                for position in noted {
                    let note = there().join(format!("cut-{position:020}"));
                    env.remove(&note).await.unwrap();
                }
            }
        });
    }
}
