//! Requests that come one at a time: routes, topics, offsets, a broker's settings.
//!
//! A blocking client on the broker's codec. Nothing that is measured goes through it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use bytes::BytesMut;
use ringmq::wire::remoting::body::{ClusterInfo, MASTER_ID, TopicRouteData};
use ringmq::wire::remoting::code::{request, response, response_name};
use ringmq::wire::remoting::command::{Command, Encoding, Outgoing};
use ringmq::wire::remoting::frame::next_frame;
use ringmq::wire::remoting::json;

/// For each request and each connection attempt.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Read and write.
const PERM_READ_WRITE: i32 = 6;

/// Why a broker or name server could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{address}: {source}")]
    Io { address: String, source: io::Error },
    #[error("{address} answers with what is no frame of the remoting protocol: {reason}")]
    Protocol { address: String, reason: String },
    #[error("{address} refuses {what} with code {code} ({name}): {remark}")]
    Refused {
        address: String,
        what: String,
        code: i32,
        name: &'static str,
        remark: String,
    },
    #[error(
        "the name server {address} knows no master broker; is the broker running and registered?"
    )]
    NoBroker { address: String },
}

/// A broker that takes messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    pub name: String,
    pub address: SocketAddr,
}

/// A blocking connection.
pub struct Control {
    address: String,
    stream: TcpStream,
    buffer: BytesMut,
    opaque: i32,
}

/// The first address that a text names.
pub fn resolve(address: &str) -> Result<SocketAddr, ControlError> {
    let failed = |source| ControlError::Io {
        address: address.to_owned(),
        source,
    };
    address
        .to_socket_addrs()
        .map_err(failed)?
        .next()
        .ok_or_else(|| {
            failed(io::Error::new(
                io::ErrorKind::NotFound,
                "the name has no address",
            ))
        })
}

impl Control {
    /// Connects to `host:port`.
    pub fn connect(address: &str) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Io {
            address: address.to_owned(),
            source,
        };
        let stream = TcpStream::connect_timeout(&resolve(address)?, TIMEOUT).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
        stream.set_write_timeout(Some(TIMEOUT)).map_err(failed)?;
        Ok(Self {
            address: address.to_owned(),
            stream,
            buffer: BytesMut::new(),
            opaque: 0,
        })
    }

    /// Sends a request and waits for its answer, whatever its code.
    pub fn call(&mut self, mut ask: Outgoing, body: &[u8]) -> Result<Command, ControlError> {
        self.opaque += 1;
        ask.opaque = self.opaque;
        let frame = ask.frame(Encoding::Json, body);
        let io_error = |address: &str, source| ControlError::Io {
            address: address.to_owned(),
            source,
        };
        self.stream
            .write_all(&frame)
            .map_err(|error| io_error(&self.address, error))?;
        loop {
            let next = next_frame(&mut self.buffer).map_err(|error| ControlError::Protocol {
                address: self.address.clone(),
                reason: error.to_string(),
            })?;
            match next {
                // A broker may also ask a client something; nobody who asks here owes it an answer.
                Some(answer) if answer.is_response() && answer.opaque == self.opaque => {
                    return Ok(answer);
                }
                Some(_) => {}
                None => {
                    let mut chunk = [0; 16 << 10];
                    let read = match self.stream.read(&mut chunk) {
                        // A process that was stopped and goes on; with a timeout the call is not restarted by itself.
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        other => other.map_err(|error| io_error(&self.address, error))?,
                    };
                    if read == 0 {
                        return Err(io_error(&self.address, io::ErrorKind::UnexpectedEof.into()));
                    }
                    self.buffer.extend_from_slice(&chunk[..read]);
                }
            }
        }
    }

    /// The same; an answer that is no success is an error.
    pub fn ask(&mut self, what: &str, ask: Outgoing, body: &[u8]) -> Result<Command, ControlError> {
        let answer = self.call(ask, body)?;
        if answer.code == response::SUCCESS {
            return Ok(answer);
        }
        Err(ControlError::Refused {
            address: self.address.clone(),
            what: what.to_owned(),
            code: answer.code,
            name: response_name(answer.code).unwrap_or("unknown"),
            remark: answer.remark.unwrap_or_default(),
        })
    }

    fn broken(&self, error: impl std::fmt::Display) -> ControlError {
        ControlError::Protocol {
            address: self.address.clone(),
            reason: error.to_string(),
        }
    }

    /// The masters that a name server knows, by name.
    pub fn brokers(&mut self) -> Result<Vec<Broker>, ControlError> {
        let answer = self.ask(
            "the cluster",
            Outgoing::request(request::GET_BROKER_CLUSTER_INFO),
            &[],
        )?;
        let cluster: ClusterInfo =
            json::from_slice(&answer.body).map_err(|error| self.broken(error))?;
        let mut brokers = Vec::new();
        for (name, data) in cluster.broker_addr_table {
            if let Some(address) = data.broker_addrs.get(&MASTER_ID) {
                brokers.push(Broker {
                    name,
                    address: resolve(address)?,
                });
            }
        }
        if brokers.is_empty() {
            return Err(ControlError::NoBroker {
                address: self.address.clone(),
            });
        }
        Ok(brokers)
    }

    /// Makes a topic with this number of queues, or changes it to it.
    pub fn make_topic(&mut self, topic: &str, queues: u32) -> Result<(), ControlError> {
        let ask = Outgoing::request(request::UPDATE_AND_CREATE_TOPIC)
            .field("topic", topic.to_owned())
            .field("defaultTopic", "TBW102")
            .field("readQueueNums", queues)
            .field("writeQueueNums", queues)
            .field("perm", PERM_READ_WRITE)
            .field("topicFilterType", "SINGLE_TAG")
            .field("topicSysFlag", 0)
            .field("order", false);
        self.ask("the topic", ask, &[]).map(|_| ())
    }

    /// The offset behind the last message of a queue, or that of the first one.
    pub fn offset(&mut self, topic: &str, queue: u32, newest: bool) -> Result<u64, ControlError> {
        let code = if newest {
            request::GET_MAX_OFFSET
        } else {
            request::GET_MIN_OFFSET
        };
        let ask = Outgoing::request(code)
            .field("topic", topic.to_owned())
            .field("queueId", queue);
        let answer = self.ask("an offset", ask, &[])?;
        let offset = answer
            .required_int("offset")
            .map_err(|error| self.broken(error))?;
        u64::try_from(offset).map_err(|_| self.broken(format!("the offset is {offset}")))
    }

    /// The queues of a topic for readers: broker name and number of queues.
    pub fn route(&mut self, topic: &str) -> Result<TopicRouteData, ControlError> {
        let ask =
            Outgoing::request(request::GET_ROUTEINFO_BY_TOPIC).field("topic", topic.to_owned());
        let answer = self.ask("the route", ask, &[])?;
        json::from_slice(&answer.body).map_err(|error| self.broken(error))
    }

    /// A broker's settings, as `key=value` lines.
    pub fn broker_config(&mut self) -> Result<BTreeMap<String, String>, ControlError> {
        let answer = self.ask(
            "its settings",
            Outgoing::request(request::GET_BROKER_CONFIG),
            &[],
        )?;
        let text = String::from_utf8_lossy(&answer.body);
        Ok(text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
            .collect())
    }
}
