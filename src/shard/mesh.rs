//! The mesh of a process: one bounded channel of the runtime from each core to each other one.
//!
//! Messages from one core to another stay in order. A sender never waits: what does not fit into the channel waits in a
//! queue of its own, and when that is full, requests are refused. Answers always fit: they are as many as requests.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use glommio::channels::shared_channel::{
    ConnectedSender, SharedReceiver, SharedSender, new_bounded,
};

use crate::base::limits::{MESH_SLOTS, MESH_WAITING_MAX};
use crate::io::env::Env;
use crate::io::glommio::GlommioEnv;
use crate::shard::core::{Mesh, Shard};
use crate::shard::message::{MeshMessage, Refusal};

/// The ends of one core, before it runs. `None` at its own place.
pub struct MeshEnds {
    to: Vec<Option<SharedSender<MeshMessage>>>,
    from: Vec<Option<SharedReceiver<MeshMessage>>>,
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
            let (sender, receiver) = new_bounded(MESH_SLOTS);
            ends[from].to[to] = Some(sender);
            ends[to].from[from] = Some(receiver);
        }
    }
    ends
}

struct Road {
    sender: Rc<ConnectedSender<MeshMessage>>,
    waiting: RefCell<VecDeque<MeshMessage>>,
    draining: Cell<bool>,
}

/// The connected sending ends of one core.
pub struct GlommioMesh {
    env: GlommioEnv,
    roads: Vec<Option<Rc<Road>>>,
}

impl MeshEnds {
    /// Connects both sides; every core has to do so at about the same time. Messages go to `shard` from then on.
    pub async fn connect(self, env: GlommioEnv, shard: Rc<Shard<GlommioEnv>>) -> Rc<GlommioMesh> {
        for (from, receiver) in self.from.into_iter().enumerate() {
            let Some(receiver) = receiver else { continue };
            let shard = shard.clone();
            env.spawn(async move {
                let receiver = receiver.connect().await;
                while let Some(message) = receiver.recv().await {
                    shard.on_mesh(from, message);
                }
            });
        }
        let mut roads = Vec::new();
        for sender in self.to {
            roads.push(match sender {
                None => None,
                Some(sender) => Some(Rc::new(Road {
                    sender: Rc::new(sender.connect().await),
                    waiting: RefCell::default(),
                    draining: Cell::new(false),
                })),
            });
        }
        Rc::new(GlommioMesh { env, roads })
    }
}

impl Mesh for GlommioMesh {
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
            Err(glommio::GlommioError::WouldBlock(glommio::ResourceType::Channel(message))) => {
                road.waiting.borrow_mut().push_back(message);
                road.draining.set(true);
                let road = road.clone();
                self.env.spawn(async move {
                    loop {
                        let next = road.waiting.borrow_mut().pop_front();
                        let Some(message) = next else { break };
                        if road.sender.send(message).await.is_err() {
                            road.waiting.borrow_mut().clear();
                            break;
                        }
                    }
                    road.draining.set(false);
                });
                Ok(())
            }
            Err(glommio::GlommioError::Closed(glommio::ResourceType::Channel(message))) => {
                Err((message, Refusal::Stopping))
            }
            Err(error) => {
                tracing::error!(%error, to, "a channel between cores failed");
                Ok(())
            }
        }
    }
}
