//! Connections and frames. This layer knows neither broker nor name server, only their [`Handler`].
//!
//! `listener.rs` accepts and keeps the connections of one core, `connection.rs` runs one of them, `outbox.rs` gathers
//! what it has to write, `tasks.rs` is what a connection needs of its core. `http.rs` serves the pages of the metrics port.

pub mod connection;
pub mod http;
pub mod listener;
pub mod outbox;
pub mod tasks;
#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test that panics has failed, which is what it is for.
mod tests;

use std::rc::Rc;

use crate::wire::native;
use crate::wire::remoting::command::Command;
use connection::{Connection, NativeResponder, Responder};

/// What a process does with a command. Called on the connection's core, in order of arrival.
///
/// A handler answers through the [`Responder`], at once or later, in any order. It must not block; what waits is spawned.
pub trait Handler: 'static {
    /// A request arrived (responses to our own requests are matched by the connection and do not come here).
    fn handle(&self, request: Command, responder: Responder);
    /// Whether this core has room for more. While it has none, nothing is read from connections that still wait for
    /// an answer, so a client that asks one thing at a time is not held up.
    fn has_room(&self) -> bool {
        true
    }
    /// Whether a connection may speak the native protocol.
    fn speaks_native(&self) -> bool {
        false
    }
    /// A frame of the native protocol arrived, as [`Handler::handle`]. Its header is not verified yet.
    fn handle_native(&self, _frame: native::frame::Frame, _responder: NativeResponder) {}
    /// The connection is gone, for whatever reason. Called once.
    fn closed(&self, connection: &Rc<Connection>);
}
