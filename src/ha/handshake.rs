//! How both ends of a slave stream begin: each proves that it knows the shared secret, the master first.
//!
//! Without a secret only loopback peers are taken, on either side. Whoever is refused hears why, unless it does not even
//! speak this protocol: then the connection ends without a word.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::io::env::Env;
use crate::io::net::{NetStream, read_more, within, write_all};
use crate::io::tcp::ReadBuffer;
use crate::wire::ha::{
    Frame, HaError, Nonce, Side, StoreShape, Trust, features_of, missing_bytes, next_frame, proof,
    proof_is_right,
};

/// How long a peer has to prove itself.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// The shared secret; empty if there is none.
pub type Secret = Arc<[u8]>;

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] HaError),
    #[error(
        "this log has what the master of a later epoch has not: it is cut back to what both have"
    )]
    Apart,
    #[error(
        "this log ends before its master's begins: it begins anew from there, and is a whole copy when it has caught up"
    )]
    Seeded,
    #[error("the master has epoch {theirs}, and one of epoch {known} was elected")]
    OldEpoch { theirs: u32, known: u32 },
    #[error("the peer says: {0}")]
    Refused(String),
    #[error(
        "it did not prove that it knows the shared secret: haSecretFile has to have the same content on both brokers"
    )]
    Secret,
    #[error(
        "{0} is not a loopback address, and there is no shared secret: set haSecretFile on both brokers"
    )]
    NoSecret(SocketAddr),
    #[error("the peer sent a frame that does not belong here: {0}")]
    Unexpected(&'static str),
    #[error("nothing came from the peer for {0:?}")]
    Silent(Duration),
    #[error("another connection of the same slave took its place")]
    Replaced,
    #[error(transparent)]
    Log(#[from] crate::store::commit_log::replica::ReplicaError),
    #[error("the broker is stopping, or its log takes no writes")]
    Ended,
}

/// Reads the next frame.
pub async fn read_frame<S: NetStream>(
    stream: &S,
    buffer: &mut ReadBuffer,
    trust: Trust,
) -> Result<Frame, StreamError> {
    let (frame, _) = read_frame_and_features(stream, buffer, trust).await?;
    Ok(frame)
}

/// The same, with what its sender knows besides.
pub async fn read_frame_and_features<S: NetStream>(
    stream: &S,
    buffer: &mut ReadBuffer,
    trust: Trust,
) -> Result<(Frame, u8), StreamError> {
    loop {
        let features = features_of(&buffer.bytes);
        if let Some(frame) = next_frame(&mut buffer.bytes, trust)? {
            return Ok((frame, features));
        }
        let missing = match trust {
            Trust::Peer => missing_bytes(&buffer.bytes),
            Trust::None => 0,
        };
        read_more(stream, buffer, missing).await?;
    }
}

/// Writes one frame.
pub async fn write_frame<S: NetStream>(stream: &S, frame: &Frame) -> Result<(), StreamError> {
    write_all(stream, &[&frame.encode()]).await?;
    Ok(())
}

/// Without a secret nobody else's word can be checked.
fn check_peer<S: NetStream>(stream: &S, secret: &[u8]) -> Result<(), StreamError> {
    let peer = stream.peer();
    if secret.is_empty() && !peer.ip().is_loopback() {
        return Err(StreamError::NoSecret(peer));
    }
    Ok(())
}

fn nonce<E: Env>(env: &E) -> Nonce {
    let mut nonce = Nonce::default();
    let (first, second) = nonce.split_at_mut(8);
    first.copy_from_slice(&env.random_u64().to_le_bytes());
    second.copy_from_slice(&env.random_u64().to_le_bytes());
    nonce
}

/// The master's side. Gives what the slave wants: [`Frame::Describe`] or [`Frame::Join`].
pub async fn greet_slave<E: Env, S: NetStream>(
    env: &E,
    stream: &S,
    buffer: &mut ReadBuffer,
    secret: &[u8],
) -> Result<Frame, StreamError> {
    let greeting = async {
        let Frame::Hello { nonce: theirs } = read_frame(stream, buffer, Trust::None).await? else {
            return Err(StreamError::Unexpected("a hello was due"));
        };
        if let Err(error) = check_peer(stream, secret) {
            write_frame(stream, &Frame::refused(error.to_string())).await?;
            return Err(error);
        }
        let ours = nonce(env);
        let challenge = Frame::Challenge {
            nonce: ours,
            proof: proof(secret, Side::Master, &theirs, &ours),
        };
        write_frame(stream, &challenge).await?;
        let found = match read_frame(stream, buffer, Trust::None).await? {
            Frame::Proof { proof } => proof,
            // A slave that does not believe the challenge says so.
            Frame::Refused { remark } => return Err(StreamError::Refused(remark)),
            _ => return Err(StreamError::Unexpected("a proof was due")),
        };
        if !proof_is_right(secret, Side::Slave, &theirs, &ours, &found) {
            write_frame(stream, &Frame::refused(StreamError::Secret.to_string())).await?;
            return Err(StreamError::Secret);
        }
        read_frame(stream, buffer, Trust::None).await
    };
    match within(env, HANDSHAKE_LIMIT, greeting).await {
        Some(result) => result,
        None => Err(StreamError::Silent(HANDSHAKE_LIMIT)),
    }
}

/// The slave's side. Gives the answer to `wish`.
pub async fn greet_master<E: Env, S: NetStream>(
    env: &E,
    stream: &S,
    buffer: &mut ReadBuffer,
    secret: &[u8],
    wish: &Frame,
) -> Result<Frame, StreamError> {
    let greeting = async {
        check_peer(stream, secret)?;
        let ours = nonce(env);
        write_frame(stream, &Frame::Hello { nonce: ours }).await?;
        let (theirs, found) = match read_frame(stream, buffer, Trust::None).await? {
            Frame::Challenge { nonce, proof } => (nonce, proof),
            Frame::Refused { remark } => return Err(StreamError::Refused(remark)),
            _ => return Err(StreamError::Unexpected("a challenge was due")),
        };
        if !proof_is_right(secret, Side::Master, &ours, &theirs, &found) {
            write_frame(stream, &Frame::refused(StreamError::Secret.to_string())).await?;
            return Err(StreamError::Secret);
        }
        let proof = proof(secret, Side::Slave, &ours, &theirs);
        write_frame(stream, &Frame::Proof { proof }).await?;
        write_frame(stream, wish).await?;
        match read_frame(stream, buffer, Trust::None).await? {
            Frame::Refused { remark } => Err(StreamError::Refused(remark)),
            frame => Ok(frame),
        }
    };
    match within(env, HANDSHAKE_LIMIT, greeting).await {
        Some(result) => result,
        None => Err(StreamError::Silent(HANDSHAKE_LIMIT)),
    }
}

/// Whether a slave's store takes the bytes of this one, or why not.
pub fn check_shape(slave: StoreShape, master: StoreShape) -> Result<(), String> {
    if slave.store_id != master.store_id {
        return Err(format!(
            "this slave's store belongs to another broker (identity {} there, {} here): start it with an empty storePathRootDir, \
             and it makes a copy of this one",
            slave.store_id, master.store_id
        ));
    }
    if slave != master {
        return Err(format!(
            "this slave's store has {} logs and segments of {} bytes, this broker's {} and {}: start it with an empty storePathRootDir",
            slave.logs, slave.segment_bytes, master.logs, master.segment_bytes
        ));
    }
    Ok(())
}
