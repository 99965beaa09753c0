//! A connection of one controller node to another: one request at a time, made anew when it breaks. On tokio.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::wire::ha::Nonce;
use crate::wire::remoting::code::response;
use crate::wire::remoting::command::{Command, Encoding, Outgoing};
use crate::wire::remoting::controller::Greeting;
use crate::wire::remoting::frame::next_frame;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the peer answers what no controller would: {0}")]
    Strange(String),
    #[error("code {code}: {remark}")]
    Refused { code: i32, remark: String },
    #[error(
        "it did not prove that it knows the secret: haSecretFile has to have the same content on all nodes"
    )]
    Secret,
}

/// See the module's page.
pub struct Peer {
    address: String,
    secret: Arc<[u8]>,
    stream: Option<(TcpStream, BytesMut)>,
    opaque: i32,
}

impl Peer {
    pub fn new(address: &str, secret: Arc<[u8]>) -> Self {
        Self {
            address: address.to_owned(),
            secret,
            stream: None,
            opaque: 0,
        }
    }

    /// Sends a request and gives the body of its answer, which has to be a success.
    pub async fn call(
        &mut self,
        code: i32,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<Bytes, PeerError> {
        // The connection comes back only whole: an answer that was not awaited must not meet the next request.
        let taken = self.stream.take();
        let result = timeout(limit, async {
            let mut stream = match taken {
                Some(stream) => stream,
                None => self.connect().await?,
            };
            let answer = self
                .exchange(&mut stream, Outgoing::request(code), &body)
                .await?;
            Ok::<_, PeerError>((stream, answer))
        })
        .await;
        let (stream, answer) = match result {
            Ok(result) => result?,
            Err(_) => return Err(PeerError::Timeout(limit)),
        };
        self.stream = Some(stream);
        succeeded(answer).map(|answer| answer.body)
    }

    async fn connect(&mut self) -> Result<(TcpStream, BytesMut), PeerError> {
        let named = |source| PeerError::Connect {
            address: self.address.clone(),
            source,
        };
        let stream = TcpStream::connect(&self.address).await.map_err(named)?;
        stream.set_nodelay(true).map_err(named)?;
        let mut stream = (stream, BytesMut::new());
        if self.secret.is_empty() {
            return Ok(stream);
        }
        let mut ours = Nonce::default();
        for byte in &mut ours {
            *byte = fastrand::u8(..);
        }
        let greeting = Greeting::new(ours);
        let challenge = self.exchange(&mut stream, greeting.hello(), &[]).await?;
        let challenge = succeeded(challenge)?;
        let Some(prove) = greeting.prove(&self.secret, &challenge) else {
            return Err(PeerError::Secret);
        };
        succeeded(self.exchange(&mut stream, prove, &[]).await?)?;
        Ok(stream)
    }

    async fn exchange(
        &mut self,
        (stream, buffer): &mut (TcpStream, BytesMut),
        mut request: Outgoing,
        body: &[u8],
    ) -> Result<Command, PeerError> {
        self.opaque = self.opaque.wrapping_add(1);
        request.opaque = self.opaque;
        stream
            .write_all(&request.frame(Encoding::Json, body))
            .await?;
        loop {
            let found =
                next_frame(buffer).map_err(|error| PeerError::Strange(error.to_string()))?;
            match found {
                Some(answer) if answer.opaque == self.opaque && answer.is_response() => {
                    return Ok(answer);
                }
                Some(_) => return Err(PeerError::Strange("another answer was due".to_owned())),
                None if stream.read_buf(buffer).await? == 0 => {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                None => {}
            }
        }
    }
}

fn succeeded(answer: Command) -> Result<Command, PeerError> {
    if answer.code == response::SUCCESS {
        return Ok(answer);
    }
    Err(PeerError::Refused {
        code: answer.code,
        remark: answer.remark.unwrap_or_default().to_string(),
    })
}
