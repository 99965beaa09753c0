//! Connections and frames. This layer knows neither broker nor name server, only their [`Handler`].

pub mod connection;
pub mod listener;

use std::rc::Rc;

use crate::wire::remoting::command::Command;
use connection::{Connection, Responder};

/// What a process does with a command. Called on the connection's core, in order of arrival.
///
/// A handler answers through the [`Responder`], at once or later, in any order. It must not block; what waits is spawned.
pub trait Handler: 'static {
    /// A request arrived (responses to our own requests are matched by the connection and do not come here).
    fn handle(&self, request: Command, responder: Responder);
    /// The connection is gone, for whatever reason. Called once.
    fn closed(&self, connection: &Rc<Connection>);
}
