//! One connection: frames in, frames out, an answer to each request.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use ringmq_wire_native::frame::{Frame, FrameError, frame_bytes_wanted, next_frame, padded};
use ringmq_wire_native::message::{Encoder, Envelope, Hello, Message};
use ringmq_wire_native::{VERSION, feature};

/// What a broker said of itself and of this connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Version of the protocol that both speak.
    pub version: u16,
    /// Bits of the features that both speak.
    pub features: u64,
    /// Name of the broker's cluster.
    pub cluster: String,
    /// Name of the broker.
    pub broker: String,
    /// The core that serves the connection.
    pub shard: u16,
    /// Number of cores.
    pub shards: u16,
    /// Greatest frame in bytes.
    pub frame_bytes_max: usize,
    /// Greatest body of a message in bytes.
    pub body_bytes_max: usize,
    /// Our address, as the broker sees it.
    pub born_host: SocketAddr,
    /// The broker's address, as records carry it.
    pub store_host: SocketAddr,
}

/// Why a connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The broker sends what is no frame.
    #[error("the broker sends what is no frame: {0}")]
    Frame(#[from] FrameError),
    /// The broker ends the connection and says why.
    #[error("the broker ends the connection with code {code}: {remark}")]
    Refused {
        /// A response code of RocketMQ.
        code: i32,
        /// What the broker says.
        remark: String,
    },
    /// The broker answers what was not asked.
    #[error("the broker answers hello with something else: {0}")]
    Hello(String),
}

/// Something that came in.
#[derive(Debug)]
pub enum Incoming {
    /// The broker has taken our hello: requests may be made.
    Ready(Box<Welcome>),
    /// The answer to the request with this id. Read it with [`Envelope::read`].
    Answer(u64, Frame),
}

/// See the module's page.
pub struct Link {
    encoder: Encoder,
    out: VecDeque<Bytes>,
    next_id: u64,
    is_ready: bool,
}

impl Link {
    /// A connection that begins: the first frame waits to be written.
    pub fn new(client_id: &str, credentials: &[u8]) -> Self {
        let mut link = Self {
            encoder: Encoder::new(),
            out: VecDeque::new(),
            next_id: 1,
            is_ready: false,
        };
        link.request(
            &Message::Hello(Hello {
                version: VERSION,
                features: feature::ALL,
                client_id,
                software: concat!("ringmq-client/", env!("CARGO_PKG_VERSION")),
                credentials,
            }),
            Vec::new(),
        );
        link
    }

    /// Makes the frame of a request; its id comes back with the answer. The sections of the payload get their zeros here.
    pub fn request(&mut self, message: &Message<'_>, payload: Vec<Bytes>) -> u64 {
        const ZEROS: &[u8] = &[0; 8];
        let id = self.next_id;
        self.next_id += 1;
        let payload_bytes = payload.iter().map(|part| padded(part.len())).sum();
        let head = self.encoder.encode(id, message, payload_bytes);
        self.out.push_back(Bytes::copy_from_slice(head));
        for part in payload {
            let zeros = padded(part.len()) - part.len();
            self.out.push_back(part);
            if zeros > 0 {
                self.out.push_back(Bytes::from_static(&ZEROS[..zeros]));
            }
        }
        id
    }

    /// What waits to be written, in order. Whoever writes takes it out.
    pub fn out(&mut self) -> &mut VecDeque<Bytes> {
        &mut self.out
    }

    /// Takes the next whole frame out of what was read; none: read more.
    pub fn read(&mut self, input: &mut BytesMut) -> Result<Option<Incoming>, LinkError> {
        let Some(frame) = next_frame(input)? else {
            return Ok(None);
        };
        let envelope = Envelope::read(&frame.header)?;
        if let (0, Message::Error { code, remark }) = (envelope.id, &envelope.message) {
            return Err(LinkError::Refused {
                code: *code,
                remark: (*remark).to_owned(),
            });
        }
        if self.is_ready {
            let id = envelope.id;
            drop(envelope);
            return Ok(Some(Incoming::Answer(id, frame)));
        }
        let welcome = match envelope.message {
            Message::HelloReply(reply) => {
                let address = |text: &str| {
                    text.parse()
                        .map_err(|_| LinkError::Hello(format!("'{text}' is no address")))
                };
                Welcome {
                    version: reply.version,
                    features: reply.features & feature::ALL,
                    cluster: reply.cluster.to_owned(),
                    broker: reply.broker.to_owned(),
                    shard: reply.shard,
                    shards: reply.shards,
                    frame_bytes_max: reply.frame_bytes_max as usize,
                    body_bytes_max: reply.body_bytes_max as usize,
                    born_host: address(reply.born_host)?,
                    store_host: address(reply.store_host)?,
                }
            }
            other => return Err(LinkError::Hello(format!("{other:?}"))),
        };
        self.is_ready = true;
        Ok(Some(Incoming::Ready(Box::new(welcome))))
    }

    /// Bytes that the first frame in `input` still lacks, as far as its length is known: what to make room for.
    pub fn bytes_wanted(input: &[u8]) -> usize {
        frame_bytes_wanted(input)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmq_wire_native::message::HelloReply;

    use super::*;

    fn welcome() -> Vec<u8> {
        let reply = Message::HelloReply(HelloReply {
            version: 1,
            broker: "b",
            born_host: "127.0.0.1:5",
            store_host: "[::1]:6",
            ..HelloReply::default()
        });
        Encoder::new().encode(1, &reply, 0).to_vec()
    }

    #[test]
    fn a_link_is_ready_when_its_hello_is_answered_however_the_bytes_are_cut() {
        let mut link = Link::new("me", b"");
        let mut first = BytesMut::from(&link.out().pop_front().unwrap()[..]);
        let frame = next_frame(&mut first).unwrap().unwrap();
        let envelope = Envelope::read(&frame.header).unwrap();
        assert!(matches!(envelope.message, Message::Hello(hello) if hello.client_id == "me"));
        let mut input = BytesMut::new();
        let bytes = welcome();
        for &byte in &bytes[..bytes.len() - 1] {
            input.extend_from_slice(&[byte]);
            assert!(link.read(&mut input).unwrap().is_none());
        }
        input.extend_from_slice(&bytes[bytes.len() - 1..]);
        let Some(Incoming::Ready(welcome)) = link.read(&mut input).unwrap() else {
            panic!("not ready");
        };
        assert_eq!(welcome.store_host, "[::1]:6".parse().unwrap());
    }

    #[test]
    fn what_the_broker_says_at_the_end_is_the_error() {
        let mut link = Link::new("me", b"");
        let error = Message::Error {
            code: 1,
            remark: "no",
        };
        let mut input = BytesMut::from(Encoder::new().encode(0, &error, 0));
        assert_eq!(
            link.read(&mut input).unwrap_err(),
            LinkError::Refused {
                code: 1,
                remark: "no".into()
            }
        );
    }
}
