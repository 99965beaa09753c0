//! Which brokers have which queues of a topic, asked from the name servers: who assigns queues has to know them all.
//!
//! Source: `TopicRouteInfoManager`. Unlike there nothing is polled: a route is asked for when it is needed, and kept for
//! some seconds. If no name server answers, the last route that is known counts.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use ahash::AHashMap;
use bytes::Bytes;

use crate::client::Reconnecting;
use crate::io::env::Env;
use crate::wire::remoting::body::TopicRouteData;
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::Outgoing;
use crate::wire::remoting::json;

/// The client waits 1 s for an assignment at first.
const TIMEOUT: Duration = Duration::from_millis(700);
/// A route is asked for again after this.
const FRESH_MS: u64 = 10_000;
/// Routes that are kept.
const KNOWN_MAX: usize = 4096;

/// A route that will be there.
pub type RouteFuture = Pin<Box<dyn Future<Output = Option<TopicRouteData>>>>;

/// Where routes come from, without the environment, so that the broker need not be generic over it.
pub trait RouteSource {
    /// The route of a topic, `None` if nobody knows one.
    fn route(&self, topic: &str) -> RouteFuture;
}

/// The name servers of a broker as one core asks them.
pub struct NameServers<E: Env>(Rc<Inner<E>>);

struct Inner<E: Env> {
    env: E,
    servers: Vec<Reconnecting<E>>,
    /// With the time at which each was learnt, monotonic milliseconds.
    known: RefCell<AHashMap<String, (u64, TopicRouteData)>>,
}

impl<E: Env> NameServers<E> {
    /// For the name servers `host:port` of `namesrvAddr`; connects when it is asked.
    pub fn new(env: E, addresses: &[String]) -> Self {
        let servers = addresses
            .iter()
            .map(|address| Reconnecting::new(env.clone(), address.clone()))
            .collect();
        Self(Rc::new(Inner {
            env,
            servers,
            known: RefCell::default(),
        }))
    }
}

impl<E: Env> RouteSource for NameServers<E> {
    fn route(&self, topic: &str) -> RouteFuture {
        let (inner, topic) = (self.0.clone(), topic.to_owned());
        Box::pin(async move { inner.route(topic).await })
    }
}

impl<E: Env> Inner<E> {
    fn now_ms(&self) -> u64 {
        self.env.now_ns() / 1_000_000
    }

    async fn route(&self, topic: String) -> Option<TopicRouteData> {
        let known = self.known.borrow().get(&topic).cloned();
        if let Some((learnt_ms, route)) = &known
            && self.now_ms() - learnt_ms < FRESH_MS
        {
            return Some(route.clone());
        }
        for server in &self.servers {
            let ask =
                Outgoing::request(request::GET_ROUTEINFO_BY_TOPIC).field("topic", topic.clone());
            let answer = match server.call(ask, Bytes::new(), TIMEOUT).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(%error, topic, "a name server gives no route");
                    continue;
                }
            };
            if answer.code != response::SUCCESS {
                self.known.borrow_mut().remove(&topic);
                return None;
            }
            match json::from_slice::<TopicRouteData>(&answer.body) {
                Ok(route) => {
                    let mut known = self.known.borrow_mut();
                    if known.len() >= KNOWN_MAX {
                        known.clear();
                    }
                    known.insert(topic, (self.now_ms(), route.clone()));
                    return Some(route);
                }
                Err(error) => {
                    tracing::warn!(%error, topic, "the route from {} cannot be read", server.address());
                }
            }
        }
        known.map(|(_, route)| route)
    }
}
