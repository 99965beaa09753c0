//! The heartbeats of a membership, in a task of their own: so they go on while the application works on a message. What
//! changes is left in the membership; the consumer looks at it when it is asked for the next message.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringmq_wire_native::feature;
use ringmq_wire_native::message::Message;
use tokio::sync::Notify;

use super::client::{Client, read, unexpected};
use super::rt;
use crate::core::group::{Membership, Request};
use crate::error::Error;

/// How long an answer to a heartbeat may take at most.
const ANSWER: Duration = Duration::from_secs(3);

/// A membership that a consumer and its task share.
pub struct Member {
    begun: Instant,
    membership: Mutex<Membership>,
    /// The consumer has something to look at.
    news: AtomicBool,
    lease_ends_ns: AtomicU64,
    /// Rings when there are news.
    pub rings: Notify,
    /// Rings when the task has something to do.
    work: Notify,
    /// Why the broker does not take the member.
    refused: Mutex<Option<Error>>,
    left: Notify,
}

impl Member {
    /// Begins a membership and its heartbeats, which end when it is left.
    pub fn begin(client: Client, membership: Membership) -> Arc<Self> {
        let member = Arc::new(Self {
            begun: Instant::now(),
            membership: Mutex::new(membership),
            news: AtomicBool::new(false),
            lease_ends_ns: AtomicU64::new(0),
            rings: Notify::new(),
            work: Notify::new(),
            refused: Mutex::new(None),
            left: Notify::new(),
        });
        let own = member.clone();
        rt::spawn(async move { own.beat(client).await });
        member
    }

    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Membership> {
        self.membership
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the membership, or changes it.
    pub fn with<T>(&self, work: impl FnOnce(&mut Membership, u64) -> T) -> T {
        let now_ns = self.now_ns();
        let mut membership = self.lock();
        let due_ns = membership.next_due_ns();
        let done = work(&mut membership, now_ns);
        let is_earlier = membership.next_due_ns() < due_ns;
        self.show(&membership);
        drop(membership);
        if is_earlier {
            self.work.notify_one();
        }
        done
    }

    fn show(&self, membership: &Membership) {
        let news = membership.has_news();
        self.lease_ends_ns
            .store(membership.lease_ends_ns(), Ordering::Release);
        if news && !self.news.swap(news, Ordering::AcqRel) {
            self.rings.notify_one();
        }
        self.news.store(news, Ordering::Release);
    }

    /// Whether there is something to look at before the next message; cheap.
    pub fn has_news(&self) -> bool {
        self.news.load(Ordering::Acquire)
            || self.now_ns() >= self.lease_ends_ns.load(Ordering::Acquire)
    }

    /// Time that is left of the lease.
    pub fn lease_left(&self) -> Duration {
        let left_ns = self.lease_ends_ns.load(Ordering::Acquire);
        Duration::from_nanos(left_ns.saturating_sub(self.now_ns()))
    }

    /// Why the broker does not take the member, once.
    pub fn take_refusal(&self) -> Option<Error> {
        self.refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Ends the membership; the broker hears of it soon.
    pub fn leave(&self) {
        self.lock().leave(self.now_ns());
        self.work.notify_one();
    }

    /// The broker has heard that the membership is over, or will not hear it.
    pub async fn left(&self) {
        self.left.notified().await;
    }

    async fn beat(&self, client: Client) {
        loop {
            let (request, due_ns) = {
                let mut membership = self.lock();
                let request = membership.request(self.now_ns());
                self.show(&membership);
                (request, membership.next_due_ns())
            };
            match request {
                Some(request) => self.ask(&client, &request).await,
                None if self.lock().is_gone() => break,
                None => {
                    let wait = Duration::from_nanos(due_ns.saturating_sub(self.now_ns()));
                    tokio::select! {
                        () = rt::sleep(wait) => {}
                        () = self.work.notified() => {}
                    }
                }
            }
        }
        self.left.notify_one();
    }

    async fn ask(&self, client: &Client, request: &Request) {
        let answer = async {
            let connection = client.connection(None).await?;
            if connection.welcome().features & feature::GROUPS == 0 {
                return Err(Error::Refused {
                    code: 3,
                    remark: "this broker is older than consumer groups of the native protocol; assign queues instead".into(),
                });
            }
            let limit = client.request_timeout().min(ANSWER);
            connection.ask(&request.message(), Vec::new(), limit).await
        };
        let answer = answer.await;
        let now_ns = self.now_ns();
        let read = answer.as_ref().map_err(Clone::clone).and_then(read);
        let mut membership = self.lock();
        match read {
            Ok(Message::Assignment(assignment)) => {
                membership.answered(request.token, &assignment, now_ns);
            }
            Ok(other) => {
                membership.failed(request.token, now_ns);
                self.refuse(unexpected(&other));
            }
            Err(Error::Refused { code, remark }) => {
                if membership.refused(request.token, code, now_ns) {
                    self.refuse(Error::Refused { code, remark });
                }
            }
            Err(_) => membership.failed(request.token, now_ns),
        }
        self.show(&membership);
    }

    fn refuse(&self, error: Error) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        self.rings.notify_one();
    }
}
