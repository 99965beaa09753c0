//! The mesh of a process: one bounded channel from each core to each other one.
//!
//! Messages from one core to another stay in order. A sender never waits: what does not fit into the channel waits in a
//! queue of its own, and when that is full, requests are refused. Answers always fit: they are as many as requests.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use crate::base::limits::{MESH_SLOTS, MESH_WAITING_MAX};
use crate::io::env::Env;
use crate::io::ring::{Receiver, RingEnv, Sender, TrySendError, channel};
use crate::shard::core::{Mesh, Shard};
use crate::shard::message::{MeshMessage, Refusal};

/// How long a full channel is left alone. The other core takes thousands of messages in that time.
const FULL_WAIT: Duration = Duration::from_micros(100);

/// The ends of one core, before it runs. `None` at its own place.
pub struct MeshEnds {
    to: Vec<Option<Sender<MeshMessage>>>,
    from: Vec<Option<Receiver<MeshMessage>>>,
}

/// The ends of all cores.
pub fn mesh(cores: usize) -> Vec<MeshEnds> {
    let mut ends: Vec<MeshEnds> = (0..cores)
        .map(|_| MeshEnds {
            to: (0..cores).map(|_| None).collect(),
            from: (0..cores).map(|_| None).collect(),
        })
        .collect();
    for from in 0..cores {
        for to in (0..cores).filter(|&to| to != from) {
            let (sender, receiver) = channel(MESH_SLOTS);
            ends[from].to[to] = Some(sender);
            ends[to].from[from] = Some(receiver);
        }
    }
    ends
}

struct Road {
    sender: Sender<MeshMessage>,
    waiting: RefCell<VecDeque<MeshMessage>>,
    draining: Cell<bool>,
}

/// The connected sending ends of one core.
pub struct RingMesh {
    env: RingEnv,
    roads: Vec<Option<Rc<Road>>>,
}

impl MeshEnds {
    /// Connects both sides. Messages go to `shard` from then on.
    pub async fn connect(self, env: RingEnv, shard: Rc<Shard<RingEnv>>) -> Rc<RingMesh> {
        for (from, receiver) in self.from.into_iter().enumerate() {
            let Some(receiver) = receiver else { continue };
            let shard = shard.clone();
            receiver.connect(move |message| shard.on_mesh(from, message));
        }
        let roads = self
            .to
            .into_iter()
            .map(|sender| {
                sender.map(|sender| {
                    Rc::new(Road {
                        sender,
                        waiting: RefCell::default(),
                        draining: Cell::new(false),
                    })
                })
            })
            .collect();
        Rc::new(RingMesh { env, roads })
    }
}

impl Mesh for RingMesh {
    fn send(&self, to: usize, message: MeshMessage) -> Result<(), (MeshMessage, Refusal)> {
        let Some(road) = &self.roads[to] else {
            return Err((message, Refusal::Stopping));
        };
        if road.draining.get() {
            let waiting = road.waiting.borrow().len();
            if waiting >= MESH_WAITING_MAX && matches!(message, MeshMessage::Request { .. }) {
                let refusal = Refusal::MeshFull {
                    shard: to,
                    waiting,
                    limit: MESH_WAITING_MAX,
                };
                return Err((message, refusal));
            }
            road.waiting.borrow_mut().push_back(message);
            return Ok(());
        }
        match road.sender.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(message)) => Err((message, Refusal::Stopping)),
            Err(TrySendError::Full(message)) => {
                road.waiting.borrow_mut().push_back(message);
                road.draining.set(true);
                let (road, env) = (road.clone(), self.env.clone());
                self.env.spawn(async move { road.drain(&env).await });
                Ok(())
            }
        }
    }
}

impl Road {
    /// Sends what waits, in order, as places become free.
    async fn drain(&self, env: &RingEnv) {
        loop {
            let next = self.waiting.borrow_mut().pop_front();
            let Some(message) = next else { break };
            match self.sender.try_send(message) {
                Ok(()) => {}
                Err(TrySendError::Closed(_)) => self.waiting.borrow_mut().clear(),
                Err(TrySendError::Full(message)) => {
                    self.waiting.borrow_mut().push_front(message);
                    env.sleep(FULL_WAIT).await;
                }
            }
        }
        self.draining.set(false);
    }
}
