//! The core: everything but sockets, tasks and clocks. Time comes in as a number, bytes go in and out.
//!
//! [`Link`](link::Link) is one connection's frames, [`Batcher`](batch::Batcher) decides when records leave,
//! [`Message`](message::Message) becomes a stored record here, [`Routes`](routes::Routes) knows queues and their cores,
//! [`Membership`](group::Membership) which queues of a group are ours. A shell for a runtime (there are two, for tokio and for
//! glommio) moves bytes and waits.

pub mod batch;
pub mod group;
pub mod link;
pub mod message;
pub mod routes;
