//! Clients: producers, consumers, an administrator and an observer, each a task of the broker's process.
//!
//! They die with it, as connections do. What they do comes from the seed; what they are told goes to the ledger.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ringmq::io::env::Env;
use ringmq::io::sim::SimEnv;

use crate::ledger::{Ledger, TAGS_CODES, breach};
use crate::sut::{Broker, PullWish, Queue, Refused, Topic};

/// How busy a run is.
#[derive(Clone, Debug)]
pub struct Load {
    pub producers: u32,
    pub consumers: u32,
    pub topic_names: u32,
    pub queues_max: u32,
    pub messages_per_send_max: u32,
    /// Of a hundred sends, how many are of up to 64 KiB, and of a thousand, how many of more.
    pub large_percent: u32,
    pub huge_permille: u32,
    /// Greatest pause of a client between two requests.
    pub pause_max: Duration,
    /// Whether topics come and go during the run.
    pub topics_change: bool,
    /// Greatest time until any request has its answer, beyond the time that it asked to wait.
    pub answer_within: Duration,
}

/// What every client has.
pub struct Clients<B> {
    pub env: SimEnv,
    pub broker: B,
    pub ledger: Rc<RefCell<Ledger>>,
    pub load: Rc<Load>,
}

impl<B: Broker> Clone for Clients<B> {
    fn clone(&self) -> Self {
        Self {
            env: self.env.clone(),
            broker: self.broker.clone(),
            ledger: self.ledger.clone(),
            load: self.load.clone(),
        }
    }
}

/// Waits for a future, but not longer than a time.
pub async fn within<F: Future>(env: &SimEnv, limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut limit = pin!(env.sleep(limit));
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        limit.as_mut().poll(context).map(|()| None)
    })
    .await
}

impl<B: Broker> Clients<B> {
    /// Starts the clients of one life of the broker.
    pub fn start(&self) {
        for _ in 0..self.load.producers {
            self.spawn(|clients, random| async move { clients.produce(random).await });
        }
        for consumer in 0..self.load.consumers {
            self.spawn(move |clients, random| async move {
                clients.consume(random, &format!("g{}", consumer % 2)).await;
            });
        }
        self.spawn(|clients, random| async move { clients.observe(random).await });
        if self.load.topics_change {
            self.spawn(|clients, random| async move { clients.administrate(random).await });
        }
    }

    fn spawn<F: Future<Output = ()> + 'static>(
        &self,
        client: impl FnOnce(Self, fastrand::Rng) -> F,
    ) {
        let random = fastrand::Rng::with_seed(self.env.random_u64());
        self.env.spawn(client(self.clone(), random));
    }

    async fn pause(&self, random: &mut fastrand::Rng) {
        let max_us = self.load.pause_max.as_micros() as u64;
        self.env
            .sleep(Duration::from_micros(random.u64(0..=max_us)))
            .await;
    }

    /// The answer to a request; none in time is a breach.
    pub async fn answer<F: Future>(&self, what: &str, wait: Duration, request: F) -> F::Output {
        match within(&self.env, wait + self.load.answer_within, request).await {
            Some(output) => output,
            None => breach(format!(
                "no answer to {what} within {:?}",
                wait + self.load.answer_within
            )),
        }
    }

    fn pick_queue(&self, random: &mut fastrand::Rng) -> Option<Queue> {
        let topics = self.ledger.borrow().topics();
        let topic = random.choice(topics.iter())?;
        Some(Queue {
            topic_id: topic.id,
            queue_id: random.u32(..topic.queues),
        })
    }

    fn draw_size(&self, random: &mut fastrand::Rng) -> usize {
        let (large, huge) = (self.load.large_percent, self.load.huge_permille);
        if random.u32(..1000) < huge {
            random.usize(64 << 10..300 << 10)
        } else if random.u32(..100) < large {
            random.usize(200..64 << 10)
        } else {
            random.usize(1..400)
        }
    }

    async fn produce(self, mut random: fastrand::Rng) {
        loop {
            self.pause(&mut random).await;
            let Some(queue) = self.pick_queue(&mut random) else {
                continue;
            };
            // Mostly one at a time; now and then several without waiting for each other.
            let burst = if random.u32(..4) == 0 {
                random.u32(2..8)
            } else {
                1
            };
            for _ in 1..burst {
                let sizes = self.draw_sizes(&mut random);
                let clients = self.clone();
                self.env.spawn(async move {
                    let _ = clients.send(queue, sizes).await;
                });
            }
            let sizes = self.draw_sizes(&mut random);
            let _ = self.send(queue, sizes).await;
        }
    }

    fn draw_sizes(&self, random: &mut fastrand::Rng) -> Vec<(usize, i64)> {
        let count = match random.u32(..3) {
            0 => random.u32(1..=self.load.messages_per_send_max),
            _ => 1,
        };
        (0..count)
            .map(|_| (self.draw_size(random), random.i64(TAGS_CODES)))
            .collect()
    }

    /// Sends, and tells whether it was acknowledged.
    pub async fn send(&self, queue: Queue, sizes: Vec<(usize, i64)>) -> Result<(), Refused> {
        let log = self.broker.log_of(queue);
        let (first, messages, log_had_failed) = {
            let mut ledger = self.ledger.borrow_mut();
            let (first, messages) = ledger.on_send(queue, &sizes);
            (first, messages, ledger.log_has_failed(log))
        };
        let append = self.broker.append(queue, messages);
        let answer = self.answer("a send", Duration::ZERO, append).await;
        let mut ledger = self.ledger.borrow_mut();
        if !ledger.is_live(queue) {
            return answer.map(|_| ());
        }
        match answer {
            Ok(offset) => {
                ledger.on_acknowledged(first, sizes.len(), offset, log, log_had_failed);
                Ok(())
            }
            Err(refused) => {
                if refused == Refused::NoQueue {
                    breach(format!(
                        "a send to {queue:?} was refused: there is no such queue"
                    ));
                }
                ledger.on_refused(first, sizes.len(), log, &refused);
                Err(refused)
            }
        }
    }

    async fn consume(self, mut random: fastrand::Rng, group: &str) {
        loop {
            self.pause(&mut random).await;
            let Some(queue) = self.pick_queue(&mut random) else {
                continue;
            };
            let Some(mut offset) = self.begin(group, queue).await else {
                continue;
            };
            let tags_code = (random.u32(..4) == 0).then(|| random.i64(TAGS_CODES));
            for _ in 0..random.u32(1..30) {
                let wish = PullWish {
                    offset,
                    messages_max: random.u32(1..33),
                    tags_code,
                    suspend_ms: [0, 20, 500, 5_000][random.usize(..4)],
                };
                let Some(next) = self.pull(queue, wish).await else {
                    break;
                };
                offset = next;
                if random.u32(..3) == 0 {
                    self.commit(group, queue, offset).await;
                }
                self.pause(&mut random).await;
            }
        }
    }

    /// Where a group goes on in a queue.
    async fn begin(&self, group: &str, queue: Queue) -> Option<i64> {
        let before = self.ledger.borrow().offset_of(group, queue);
        let query = self.broker.query_offset(group, queue);
        let found = self
            .answer("a query of an offset", Duration::ZERO, query)
            .await;
        let mut ledger = self.ledger.borrow_mut();
        if !ledger.is_live(queue) {
            return None;
        }
        match found {
            Ok(found) => {
                ledger.on_offset(group, queue, before, found);
                Some(found.unwrap_or_else(|| ledger.before(queue).min))
            }
            Err(refused) => {
                ledger.on_read_refused("a query of an offset", queue, &refused);
                None
            }
        }
    }

    /// Pulls once and gives the offset to go on from.
    pub async fn pull(&self, queue: Queue, wish: PullWish) -> Option<i64> {
        let before = self.ledger.borrow().before(queue);
        let wait = Duration::from_millis(wish.suspend_ms);
        let answer = self
            .answer("a pull", wait, self.broker.pull(queue, wish))
            .await;
        let mut ledger = self.ledger.borrow_mut();
        if !ledger.is_live(queue) {
            return None;
        }
        match answer {
            Ok(gift) => {
                ledger.on_pulled(queue, &wish, before, &gift);
                Some(gift.next_offset.max(gift.min_offset))
            }
            Err(refused) => {
                ledger.on_read_refused("a pull", queue, &refused);
                None
            }
        }
    }

    async fn commit(&self, group: &str, queue: Queue, offset: i64) {
        if !self.ledger.borrow_mut().on_commit(group, queue, offset) {
            return;
        }
        let commit = self.broker.commit_offset(group, queue, offset);
        let answer = self
            .answer("a commit of an offset", Duration::ZERO, commit)
            .await;
        let mut ledger = self.ledger.borrow_mut();
        ledger.on_committed(group, queue, offset, &answer);
    }

    async fn observe(self, mut random: fastrand::Rng) {
        loop {
            self.pause(&mut random).await;
            if let Some(queue) = self.pick_queue(&mut random) {
                self.bounds(queue).await;
            }
        }
    }

    /// Asks for the bounds of a queue.
    pub async fn bounds(&self, queue: Queue) -> Option<(i64, i64)> {
        let before = self.ledger.borrow().before(queue);
        let bounds = self.broker.bounds(queue);
        let answer = self
            .answer("a question for bounds", Duration::ZERO, bounds)
            .await;
        let mut ledger = self.ledger.borrow_mut();
        if !ledger.is_live(queue) {
            return None;
        }
        match answer {
            Ok(bounds) => {
                ledger.on_bounds(queue, before, bounds);
                Some(bounds)
            }
            Err(refused) => {
                ledger.on_read_refused("a question for bounds", queue, &refused);
                None
            }
        }
    }

    async fn administrate(self, mut random: fastrand::Rng) {
        loop {
            self.env
                .sleep(self.load.pause_max * random.u32(1..60))
                .await;
            let name = format!("t{}", random.u32(..self.load.topic_names));
            if !self.ledger.borrow().has_topic(&name) {
                self.create_topic(&name, random.u32(1..=self.load.queues_max))
                    .await;
            } else if random.bool() {
                self.delete_topic(&name).await;
            }
        }
    }

    pub async fn create_topic(&self, name: &str, queues: u32) -> Option<Topic> {
        if !self.ledger.borrow_mut().on_topic_change(name, Some(queues)) {
            return None;
        }
        let create = self.broker.create_topic(name, queues);
        match self
            .answer("a creation of a topic", Duration::ZERO, create)
            .await
        {
            Ok(topic) => {
                self.ledger.borrow_mut().on_topic_created(topic.clone());
                Some(topic)
            }
            Err(refused) => {
                self.ledger.borrow_mut().on_topic_refused(name, &refused);
                None
            }
        }
    }

    async fn delete_topic(&self, name: &str) {
        if !self.ledger.borrow_mut().on_topic_change(name, None) {
            return;
        }
        let delete = self.broker.delete_topic(name);
        match self
            .answer("a deletion of a topic", Duration::ZERO, delete)
            .await
        {
            Ok(()) => {
                if self.broker.topics().iter().any(|topic| topic.name == name) {
                    breach(format!("{name} is still there after its deletion"));
                }
                self.ledger.borrow_mut().on_topic_deleted(name);
            }
            Err(refused) => self.ledger.borrow_mut().on_topic_refused(name, &refused),
        }
    }
}

/// After a restart, and at the end: all topics, all queues from the first to the last offset, all consumer offsets.
pub async fn check_all<B: Broker>(clients: &Clients<B>) {
    let found = clients.broker.topics();
    clients.ledger.borrow_mut().check_topics(&found);
    let mut whole = true;
    for topic in &found {
        for queue_id in 0..topic.queues {
            let queue = Queue {
                topic_id: topic.id,
                queue_id,
            };
            let Some((min, max)) = clients.bounds(queue).await else {
                whole = false;
                continue;
            };
            let mut offset = min;
            while offset < max {
                let wish = PullWish {
                    offset,
                    messages_max: 64,
                    tags_code: None,
                    suspend_ms: 0,
                };
                match clients.pull(queue, wish).await {
                    Some(next) if next > offset => offset = next,
                    Some(next) => breach(format!(
                        "{queue:?} from {offset} to {max} is stuck at {next}"
                    )),
                    None => {
                        whole = false;
                        break;
                    }
                }
            }
        }
    }
    let keys = clients.ledger.borrow().offset_keys();
    for (group, queue) in keys {
        whole &= clients.begin(&group, queue).await.is_some();
    }
    if whole {
        clients.ledger.borrow_mut().on_all_read();
    }
}
