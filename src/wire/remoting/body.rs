//! JSON bodies of the protocol as serde types, with RocketMQ's field names and defaults.
//!
//! Read them with [`crate::wire::remoting::json::from_slice`] and write them with [`crate::wire::remoting::json::to_vec`]:
//! plain `serde_json` knows neither integer nor object keys. Fields are declared in alphabetical order, as fastjson writes
//! them; a field that is `None` is left out. Source: the classes of the same names in
//! `remoting/.../protocol/{body,heartbeat,route,subscription}` and `common`.

mod client;
mod group;
mod lenient;
mod pop;
mod queue;
mod route;
mod stats;
mod topic;

pub use client::*;
pub use group::*;
pub use pop::*;
pub use queue::*;
pub use route::*;
pub use stats::*;
pub use topic::*;
