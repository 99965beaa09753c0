//! A remoting client: one connection to one server, requests matched to answers by the server layer's connection.
//!
//! The broker registers at its name servers with it, and admin commands use it. It knows no request: callers build an
//! [`Outgoing`] and read the [`Command`]. [`Reconnecting`] connects when it is first used and again after a loss; it
//! never sends a request twice, because it cannot know whether the first one took effect.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::io::body::Body;
use crate::io::env::Env;
use crate::io::tcp;
use crate::server::Handler;
use crate::server::connection::{Connection, Core, InvokeError, Responder};
use crate::server::listener::new_connection_id;
use crate::wire::remoting::code::response::REQUEST_CODE_NOT_SUPPORTED;
use crate::wire::remoting::command::{Command, Outgoing};

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect to {address}")]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("{address} gave no answer within {timeout:?}")]
    Timeout { address: String, timeout: Duration },
    #[error("{address} closed the connection before it answered")]
    Closed { address: String },
}

/// Refuses what a server asks of a client that offers nothing.
struct OffersNothing;

impl Handler for OffersNothing {
    fn handle(&self, request: Command, responder: Responder) {
        let refusal = Outgoing {
            code: REQUEST_CODE_NOT_SUPPORTED,
            remark: Some(format!(" request type {} not supported", request.code).into()),
            ..Outgoing::default()
        };
        responder.send(refusal, Body::Empty);
    }

    fn closed(&self, _connection: &Rc<Connection>) {}
}

/// A connection to a server. Closed when this is dropped.
pub struct RemotingClient {
    address: String,
    connection: Rc<Connection>,
}

impl RemotingClient {
    /// Connects to `host:port`.
    pub async fn connect<E: Env>(
        env: &E,
        address: &str,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        Self::connect_with(env, address, timeout, Rc::new(OffersNothing)).await
    }

    /// The same with a handler for the requests that the server sends.
    pub async fn connect_with<E: Env>(
        env: &E,
        address: &str,
        timeout: Duration,
        handler: Rc<dyn Handler>,
    ) -> Result<Self, ClientError> {
        let stream =
            tcp::connect(address, timeout)
                .await
                .map_err(|source| ClientError::Connect {
                    address: address.to_owned(),
                    source,
                })?;
        let core = Rc::new(Core::new(Rc::new(env.clone()), handler));
        Ok(Self {
            address: address.to_owned(),
            connection: Connection::start(stream, new_connection_id(u16::MAX), core),
        })
    }

    /// Sends a request and waits for its answer, whatever its code.
    pub async fn call(
        &self,
        request: Outgoing,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Command, ClientError> {
        self.connection
            .invoke(request, body, timeout)
            .await
            .map_err(|error| match error {
                InvokeError::Timeout(timeout) => ClientError::Timeout {
                    address: self.address.clone(),
                    timeout,
                },
                InvokeError::Closed => ClientError::Closed {
                    address: self.address.clone(),
                },
            })
    }

    /// Sends a request that wants no answer. It may be lost.
    pub fn oneway(&self, request: Outgoing, body: Bytes) {
        self.connection.push_oneway(request, body);
    }

    /// Whether it can still be used.
    pub fn is_open(&self) -> bool {
        self.connection.is_open()
    }

    /// The connection, for its addresses.
    pub fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }
}

impl Drop for RemotingClient {
    fn drop(&mut self) {
        self.connection.close();
    }
}

/// A client that connects when it is needed. See the module's page.
pub struct Reconnecting<E: Env> {
    env: E,
    address: String,
    client: RefCell<Option<Rc<RemotingClient>>>,
}

impl<E: Env> Reconnecting<E> {
    /// For a server at `host:port`; does not connect yet.
    pub fn new(env: E, address: impl Into<String>) -> Self {
        Self {
            env,
            address: address.into(),
            client: RefCell::new(None),
        }
    }

    /// The server's address as it was given.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Connects if there is no open connection, and calls; `timeout` is for both together.
    pub async fn call(
        &self,
        request: Outgoing,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Command, ClientError> {
        let started_ns = self.env.now_ns();
        let client = self.client(timeout).await?;
        let spent = Duration::from_nanos(self.env.now_ns().saturating_sub(started_ns));
        let left = timeout.saturating_sub(spent);
        client.call(request, body, left).await
    }

    /// Connects if there is no open connection, and sends without waiting for an answer.
    pub async fn oneway(
        &self,
        request: Outgoing,
        body: Bytes,
        timeout: Duration,
    ) -> Result<(), ClientError> {
        self.client(timeout).await?.oneway(request, body);
        Ok(())
    }

    /// Drops the connection; the next call makes a new one.
    pub fn disconnect(&self) {
        self.client.take();
    }

    async fn client(&self, timeout: Duration) -> Result<Rc<RemotingClient>, ClientError> {
        let known = self.client.borrow().clone();
        if let Some(client) = known.filter(|client| client.is_open()) {
            return Ok(client);
        }
        let client = Rc::new(RemotingClient::connect(&self.env, &self.address, timeout).await?);
        self.client.replace(Some(client.clone()));
        Ok(client)
    }
}
