//! One connection: read, decode, hand over; gather what is ready and write it in one call.
//!
//! Invariants: a request is answered at most once; a connection whose peer breaks the framing is closed without an
//! answer and no other connection notices; what waits for an answer and what waits to be written is bounded in bytes
//! (`base/limits.rs`): over the bound the socket is not read.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::base::id::ConnectionId;
use crate::io::body::Body;
use crate::wire::remoting::command::{Command, Encoding, Outgoing};

/// Why a request of ours to a client got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvokeError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the connection was closed")]
    Closed,
}

/// See the module's page.
pub struct Connection {}

impl Connection {
    pub fn id(&self) -> ConnectionId {
        todo!()
    }

    /// Address of the peer.
    pub fn peer(&self) -> SocketAddr {
        todo!()
    }

    /// Address that the peer connected to.
    pub fn local(&self) -> SocketAddr {
        todo!()
    }

    /// Sends a request of ours that wants no answer (flag and opaque are set here).
    pub fn push_oneway(&self, request: Outgoing, body: Bytes) {
        let _ = (request, body);
        todo!()
    }

    /// Writes a frame that is encoded already (length prefix included).
    pub fn push_frame(&self, frame: Bytes) {
        let _ = frame;
        todo!()
    }

    /// Sends a request of ours and waits for the answer.
    pub async fn invoke(
        self: &Rc<Self>,
        request: Outgoing,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Command, InvokeError> {
        let _ = (request, body, timeout);
        todo!()
    }

    /// Closes it, after what is already queued has been written.
    pub fn close(&self) {
        todo!()
    }
}

/// The right to answer one request. Dropping it without an answer is right for a oneway request only.
pub struct Responder {
    pub connection: Rc<Connection>,
    pub opaque: i32,
    pub encoding: Encoding,
    pub oneway: bool,
    /// Bytes of the request, given back to the connection's budget when this is dropped.
    pub request_bytes: usize,
}

impl Responder {
    /// Answers, unless the request was oneway. Opaque and the response flag are set here.
    pub fn send(self, response: Outgoing, body: Body) {
        let _ = (response, body);
        todo!()
    }
}
