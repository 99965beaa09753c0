//! Damaged places of a log over its slave stream: either end asks the other one for them, and answers.
//!
//! An [`Exchange`] belongs to one connection. It decides what to ask for and what to answer, one question each way at a time; the task that
//! writes the stream anyway sends it ([`Exchange::next`]), and the one that reads it hands over what comes. What a question
//! costs is paid in the background, in bounded pieces: batches and acknowledgements wait for one piece at most. The store checks
//! every answer and decides what is written (`store/commit_log/mend.rs`). A peer of a version that does not know these frames
//! is not asked.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::base::limits::FETCH_PIECES_MAX;
use crate::ha::handshake::StreamError;
use crate::io::env::Env;
use crate::store::CommitLog;
use crate::store::commit_log::mend::Fetch;
use crate::store::scrub::{Damaged, check_answer};
use crate::wire::ha::{FEATURE_FETCH, Frame};

/// A peer has so long for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// What a peer could not give it is asked for again after so long, and after twice as long each further time.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_DOUBLINGS_MAX: u32 = 9;

/// Where a question stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    ToSend,
    Sent,
    /// Its answer is being written to the disk.
    Mending,
}

struct Asked<E: Env> {
    place: Damaged,
    /// What came of it so far, if it takes several answers.
    parts: Vec<Damaged>,
    /// What is still missing of it.
    rest: Damaged,
    stage: Stage,
    until_ns: u64,
    _fetch: Fetch<E>,
}

/// When to ask again for what a peer could not give, and how often it could not.
#[derive(Clone, Copy)]
struct Refusal {
    until_ns: u64,
    times: u32,
}

/// See the module's page.
pub struct Exchange<E: Env> {
    env: E,
    log: Rc<CommitLog<E>>,
    peer: String,
    is_able: Cell<bool>,
    says_little: Cell<bool>,
    asked: RefCell<Option<Asked<E>>>,
    refused: RefCell<BTreeMap<u64, Refusal>>,
    is_serving: Cell<bool>,
    answer: RefCell<Option<(u64, Bytes)>>,
}

impl<E: Env> Exchange<E> {
    pub fn new(env: &E, log: &Rc<CommitLog<E>>, peer: String) -> Rc<Self> {
        Rc::new(Self {
            env: env.clone(),
            log: log.clone(),
            peer,
            is_able: Cell::new(false),
            says_little: Cell::new(false),
            asked: RefCell::default(),
            refused: RefCell::default(),
            is_serving: Cell::new(false),
            answer: RefCell::default(),
        })
    }

    /// A frame of the peer says what it knows.
    pub fn hear_features(&self, features: u8) {
        let is_able = features & FEATURE_FETCH != 0;
        if is_able && !self.is_able.replace(is_able) {
            self.log.look_again();
        }
    }

    /// Somebody else tells, and less often, what could not be had.
    pub fn says_little(&self) {
        self.says_little.set(true);
    }

    fn is_refused(&self, position: u64) -> bool {
        let refused = self.refused.borrow();
        let refusal = refused.get(&position);
        refusal.is_some_and(|refusal| self.env.now_ns() < refusal.until_ns)
    }

    fn fetchable(&self, peer_durable: u64) -> Option<Damaged> {
        self.log
            .fetchable(peer_durable, |position| self.is_refused(position))
    }

    /// Whether there is something to write. The peer's log is durable up to `peer_durable`.
    pub fn has_next(&self, peer_durable: u64) -> bool {
        if self.answer.borrow().is_some() {
            return true;
        }
        match &*self.asked.borrow() {
            Some(asked) => asked.stage == Stage::ToSend,
            None => self.is_able.get() && self.fetchable(peer_durable).is_some(),
        }
    }

    /// The next frame to write.
    pub fn next(&self, peer_durable: u64) -> Option<Frame> {
        if let Some((position, batches)) = self.answer.borrow_mut().take() {
            self.is_serving.set(false);
            return Some(Frame::Range { position, batches });
        }
        let now_ns = self.env.now_ns();
        let is_late = self
            .asked
            .borrow()
            .as_ref()
            .is_some_and(|asked| asked.stage == Stage::Sent && now_ns > asked.until_ns);
        if is_late {
            self.refuse("no answer came");
        }
        let is_free = self.asked.borrow().is_none() && self.is_able.get();
        if is_free && let Some(place) = self.fetchable(peer_durable) {
            *self.asked.borrow_mut() = Some(Asked {
                place,
                parts: Vec::new(),
                rest: place,
                stage: Stage::ToSend,
                until_ns: 0,
                _fetch: self.log.begin_fetch(&place),
            });
        }
        let mut asked = self.asked.borrow_mut();
        let asked = asked
            .as_mut()
            .filter(|asked| asked.stage == Stage::ToSend)?;
        asked.stage = Stage::Sent;
        asked.until_ns = now_ns + ANSWER_LIMIT.as_nanos() as u64;
        Some(Frame::Want {
            position: asked.rest.position,
            bytes: asked.rest.bytes(),
        })
    }

    /// What has come is being written.
    pub fn is_mending(&self) -> bool {
        let asked = self.asked.borrow();
        asked
            .as_ref()
            .is_some_and(|asked| asked.stage == Stage::Mending)
    }

    /// The peer asks.
    pub fn on_want(self: &Rc<Self>, position: u64, bytes: u64) -> Result<(), StreamError> {
        if self.is_serving.replace(true) {
            return Err(StreamError::Unexpected("one question at a time was due"));
        }
        let own = self.clone();
        self.env.spawn_background(async move {
            let end = position.saturating_add(bytes);
            let batches = own.log.whole_batches(position, end).await;
            *own.answer.borrow_mut() = Some((position, batches.into()));
            own.log.look_again();
        });
        Ok(())
    }

    /// The peer answers. What nobody waits for any more is passed over.
    pub fn on_range(self: &Rc<Self>, position: u64, batches: Bytes) {
        let options = self.log.options();
        let checked = {
            let mut asked = self.asked.borrow_mut();
            let is_due = |asked: &&mut Asked<E>| {
                asked.stage == Stage::Sent && asked.rest.position == position
            };
            let Some(asked) = asked.as_mut().filter(is_due) else {
                return;
            };
            let rest = asked.rest;
            check_answer(&rest, options.store_id, options.segment_bytes, &batches).map(|link| {
                if asked.parts.is_empty() && link.position == asked.place.end {
                    asked.stage = Stage::Mending;
                    return;
                }
                asked.parts.push(Damaged {
                    end: link.position,
                    end_crc: link.crc,
                    ..rest
                });
                asked.rest.position = link.position;
                asked.rest.previous_crc = Some(link.crc);
                asked.stage = Stage::ToSend;
            })
        };
        match checked {
            Ok(()) => self.go_on(batches),
            Err(error) => self.refuse(&error.to_string()),
        }
    }

    fn go_on(self: &Rc<Self>, batches: Bytes) {
        let mut asked = self.asked.borrow_mut();
        let Some(now) = asked.as_ref() else { return };
        if now.stage == Stage::Mending {
            let (own, place) = (self.clone(), now.place);
            return self
                .env
                .spawn_background(async move { own.mend(place, batches).await });
        }
        if now.rest.position < now.place.end {
            if now.parts.len() >= FETCH_PIECES_MAX {
                drop(asked);
                return self.refuse("it comes in too many pieces");
            }
            drop(asked);
            return self.log.look_again();
        }
        // Everything leads to its end: each part is fetched once more and written.
        if let Some(done) = asked.take() {
            drop(asked);
            self.log.split_damaged(&done.place, &done.parts);
        }
    }

    async fn mend(&self, place: Damaged, batches: Bytes) {
        match self.log.mend(&place, &batches).await {
            Ok(()) => {
                tracing::warn!(
                    log = self.log.id(),
                    position = place.position,
                    bytes = place.bytes(),
                    from = %self.peer,
                    "damaged bytes of this log were fetched from another copy and written in place: they are whole again"
                );
                let done = self.asked.borrow_mut().take();
                drop(done);
            }
            Err(error) => self.refuse(&error.to_string()),
        }
    }

    /// The peer is not asked for this for a while; another one may be.
    fn refuse(&self, why: &str) {
        let Some(asked) = self.asked.borrow_mut().take() else {
            return;
        };
        let position = asked.place.position;
        let mut refused = self.refused.borrow_mut();
        // Of places that are whole by now nothing is kept.
        let now_ns = self.env.now_ns();
        let times = refused.get(&position).map_or(0, |refusal| refusal.times);
        let wait = RETRY_FIRST * (1 << times.min(RETRY_DOUBLINGS_MAX));
        refused.retain(|_, refusal| refusal.until_ns + wait.as_nanos() as u64 > now_ns);
        let refusal = Refusal {
            until_ns: now_ns + wait.as_nanos() as u64,
            times: times + 1,
        };
        refused.insert(position, refusal);
        drop(refused);
        if self.says_little.get() {
            return;
        }
        tracing::warn!(
            log = self.log.id(),
            position,
            bytes = asked.place.bytes(),
            from = %self.peer,
            error = why,
            "damaged bytes of this log cannot be repaired from there; it is tried again"
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use crate::io::sim::{SimEnv, SimOptions, SimWorld};
    use crate::store::scrub::ScrubOptions;
    use crate::store::testing::copies::{
        FAST, SEGMENT_BYTES, content, flip, found, here, is_of_a_batch, make_copies, open, there,
    };

    /// Hands over what both ends say until they have nothing to say any more, and counts the answers.
    async fn talk(
        env: &SimEnv,
        asks: &Rc<Exchange<SimEnv>>,
        answers: &Rc<Exchange<SimEnv>>,
    ) -> u32 {
        let (mut quiet, mut count) = (0, 0);
        while quiet < 100 {
            quiet += 1;
            match asks.next(u64::MAX) {
                Some(Frame::Want { position, bytes }) => {
                    answers.on_want(position, bytes).unwrap();
                    assert!(answers.on_want(position, bytes).is_err(), "one at a time");
                    quiet = 0;
                }
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            if let Some(Frame::Range { position, batches }) = answers.next(u64::MAX) {
                asks.on_range(position, batches);
                count += 1;
                quiet = 0;
            }
            env.sleep(Duration::from_millis(1)).await;
        }
        count
    }

    #[test]
    fn a_place_larger_than_an_answer_is_fetched_and_repaired_whoever_else_could_not_give_it() {
        let world = SimWorld::new(7, SimOptions::default());
        make_copies(&world);
        let before = content(&world, &here());
        for position in (SEGMENT_BYTES / 2..2 * SEGMENT_BYTES + 9_000).step_by(50) {
            if is_of_a_batch(&before, position) {
                flip(&world, position, 0x55);
            }
        }
        let env = world.env();
        world.block_on(async {
            let copy = open(&env, &there(), ScrubOptions::OFF).await;
            let log = open(&env, &here(), FAST).await;
            let whole = found(&env, &log).await;
            let own = Exchange::new(&env, &log, "a copy".to_owned());
            let theirs = Exchange::new(&env, &copy, "us".to_owned());
            // A peer that does not know the question is not asked; one that has not got there is not, either.
            assert!(own.next(u64::MAX).is_none() && !own.has_next(u64::MAX));
            own.hear_features(FEATURE_FETCH);
            assert!(!own.has_next(whole.end - 1) && own.has_next(whole.end));
            // One that is damaged at the same place cannot help, is not asked for a while, and keeps nobody else from it.
            let useless = Exchange::new(&env, &log, "one as bad".to_owned());
            assert_eq!(talk(&env, &own, &useless).await, 1);
            assert!(!own.has_next(u64::MAX));
            let second = Exchange::new(&env, &log, "a copy".to_owned());
            second.hear_features(FEATURE_FETCH);
            // Three to learn where they end, and each of them once more.
            assert_eq!(talk(&env, &second, &theirs).await, 6);
            assert_eq!(log.scrub_figures().damaged_bytes, 0);
            assert_eq!(log.scrub_figures().repaired_bytes, whole.bytes());
        });
        for ((_, now), (_, then)) in content(&world, &here()).iter().zip(&before).take(3) {
            assert!(now == then);
        }
    }

    #[test]
    fn an_answer_that_nobody_waits_for_or_with_other_bytes_changes_nothing() {
        let world = SimWorld::new(7, SimOptions::default());
        make_copies(&world);
        flip(&world, SEGMENT_BYTES + 5_000, 4);
        let spoiled = content(&world, &here());
        let env = world.env();
        world.block_on(async {
            let copy = open(&env, &there(), ScrubOptions::OFF).await;
            let log = open(&env, &here(), FAST).await;
            let place = found(&env, &log).await;
            let own = Exchange::new(&env, &log, "a copy".to_owned());
            own.hear_features(FEATURE_FETCH);
            let right = copy.whole_batches(place.position, place.end).await;
            own.on_range(place.position, right.clone().into());
            assert!(matches!(own.next(u64::MAX), Some(Frame::Want { .. })));
            own.on_range(place.position + 8, right.clone().into());
            let mut wrong = right.clone();
            wrong[200] ^= 1;
            own.on_range(place.position, wrong.into());
            env.sleep(Duration::from_millis(50)).await;
            assert!(content(&world, &here()) == spoiled);
            assert!(!own.has_next(u64::MAX), "not at once again");
            own.on_range(place.position, right.clone().into());
            env.sleep(RETRY_FIRST).await;
            assert!(matches!(own.next(u64::MAX), Some(Frame::Want { .. })));
            // What does not come is given up.
            env.sleep(ANSWER_LIMIT + Duration::from_secs(1)).await;
            assert!(own.next(u64::MAX).is_none());
            env.sleep(3 * RETRY_FIRST).await;
            assert!(matches!(own.next(u64::MAX), Some(Frame::Want { .. })));
            own.on_range(place.position, right.into());
            env.sleep(Duration::from_millis(50)).await;
            assert_eq!(log.scrub_figures().damaged_bytes, 0);
        });
    }
}
