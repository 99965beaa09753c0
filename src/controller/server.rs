//! The port of a controller node, on tokio: connections, frames, and who has proved itself.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use crate::base::limits::CONTROLLER_CONNECTIONS_MAX;
use crate::controller::consensus::RaftAgreement;
use crate::controller::disk::Disk;
use crate::controller::node::{Node, PUSH_FRAMES_MAX};
use crate::controller::{ControllerOptions, consensus, node_name};
use crate::wire::ha::{Nonce, Side, proof, proof_is_right};
use crate::wire::remoting::code::response;
use crate::wire::remoting::command::{Command, Outgoing};
use crate::wire::remoting::controller::{HELLO, PROVE, hex, unhex};
use crate::wire::remoting::frame::next_frame;

/// Threads of the runtime: Raft and connections wait, they do not compute.
const WORKERS: usize = 2;
/// A peer that has proved nothing sends no longer frames.
const STRANGER_FRAME_BYTES_MAX: usize = 64 << 10;
/// Requests of one connection that are under way.
const REQUESTS_MAX: usize = 64;
/// A connection that says nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(120);

/// Runs a node until `stop` completes. `serving` is called when its port is open.
pub fn run(
    options: ControllerOptions,
    serving: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("controller")
        .enable_all()
        .build()
        .map_err(|error| format!("the controller's threads: {error}"))?;
    let result = runtime.block_on(async {
        let disk = Disk::open(&options.directory).map_err(|error| error.to_string())?;
        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(|error| format!("port {} cannot be opened: {error}", options.listen))?;
        let raft = consensus::start(options.id, &options.members, &disk, options.secret.clone())
            .await
            .map_err(|error| error.to_string())?;
        let node = Node::new(options, RaftAgreement::new(raft, disk));
        let watch = tokio::spawn(node.clone().watch());
        tokio::spawn(accept(node.clone(), listener));
        serving();
        let wait = node.agreement.raft.wait(None);
        tokio::select! {
            () = stop => {}
            // Raft ends by itself when its disk fails.
            _ = wait.metrics(|metrics| metrics.running_state.is_err(), "it ended") => {
                return Err(format!("{} cannot go on: its disk failed", node_name(node.options.id)));
            }
        }
        watch.abort();
        node.agreement
            .raft
            .shutdown()
            .await
            .map_err(|error| error.to_string())
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn accept(node: Arc<Node<RaftAgreement>>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(CONTROLLER_CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            continue;
        };
        let node = node.clone();
        tokio::spawn(async move {
            let peer = stream.peer_addr();
            if let Err(error) = serve(node, stream).await {
                tracing::debug!(?peer, %error, "a connection ended");
            }
            drop(permit);
        });
    }
}

/// What a peer has shown of itself.
struct Stranger {
    address: IpAddr,
    nonces: Option<(Nonce, Nonce)>,
    has_proved: bool,
}

impl Stranger {
    /// Answers the requests by which a peer proves itself; `None` for all others.
    fn greet(&mut self, secret: &[u8], command: &Command) -> Option<Outgoing> {
        let wrong = |remark: &'static str| Some(Outgoing::error(response::NO_PERMISSION, remark));
        match command.code {
            HELLO => {
                let Some(theirs) = command.text("nonce").and_then(|text| unhex::<16>(&text)) else {
                    return wrong("a number of 16 bytes was due");
                };
                if secret.is_empty() {
                    return wrong(
                        "this controller has no haSecretFile: set it on all nodes and brokers, with the same content",
                    );
                }
                let mut ours = Nonce::default();
                for byte in &mut ours {
                    *byte = fastrand::u8(..);
                }
                self.nonces = Some((theirs, ours));
                let proof = proof(secret, Side::Controller, &theirs, &ours);
                Some(
                    Outgoing::success()
                        .field("nonce", hex(&ours))
                        .field("proof", hex(&proof)),
                )
            }
            PROVE => {
                let found = command.text("proof").and_then(|text| unhex::<32>(&text));
                let (Some((theirs, ours)), Some(found)) = (self.nonces.take(), found) else {
                    return wrong("a hello was due");
                };
                if !proof_is_right(secret, Side::ControllerClient, &theirs, &ours, &found) {
                    tracing::warn!(peer = %self.address, "a peer does not know the secret of haSecretFile");
                    return wrong(
                        "it did not prove that it knows the secret: haSecretFile has to have the same content on controllers and brokers",
                    );
                }
                self.has_proved = true;
                Some(Outgoing::success())
            }
            _ => None,
        }
    }

    /// With a secret it has to be known, loopback apart: there are the tools of an operator who is on the machine.
    fn is_trusted(&self) -> bool {
        self.has_proved || self.address.is_loopback()
    }
}

async fn serve(node: Arc<Node<RaftAgreement>>, stream: TcpStream) -> Result<(), String> {
    let address = stream.peer_addr().map_err(|error| error.to_string())?.ip();
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let (mut reading, mut writing) = stream.into_split();
    let (push, mut frames) = mpsc::channel::<Bytes>(PUSH_FRAMES_MAX);
    let writer = tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            if writing.write_all(&frame).await.is_err() {
                return;
            }
        }
    });
    let mut stranger = Stranger {
        address,
        nonces: None,
        has_proved: false,
    };
    let room = Arc::new(Semaphore::new(REQUESTS_MAX));
    let mut buffer = BytesMut::new();
    let result = loop {
        let is_trusted = stranger.is_trusted();
        let announced = buffer
            .first_chunk::<4>()
            .map(|bytes| u32::from_be_bytes(*bytes));
        if !is_trusted && announced.is_some_and(|bytes| bytes as usize > STRANGER_FRAME_BYTES_MAX) {
            break Err("a stranger's frame is too long".to_owned());
        }
        let command = match next_frame(&mut buffer) {
            Ok(Some(command)) => command,
            Ok(None) => match tokio::time::timeout(IDLE, reading.read_buf(&mut buffer)).await {
                Ok(Ok(0)) | Err(_) => break Ok(()),
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => break Err(error.to_string()),
            },
            Err(error) => break Err(error.to_string()),
        };
        if command.is_response() {
            continue;
        }
        if let Some(answer) = stranger.greet(&node.options.secret, &command) {
            if push.send(framed(answer, &[], &command)).await.is_err() {
                break Ok(());
            }
            continue;
        }
        let Ok(permit) = room.clone().acquire_owned().await else {
            break Ok(());
        };
        let (node, push) = (node.clone(), push.clone());
        tokio::spawn(async move {
            let (answer, body) = node.answer(&command, is_trusted, &push).await;
            if !command.is_oneway() {
                // The connection may be gone: then nobody waits for it.
                let _ = push.send(framed(answer, &body, &command)).await;
            }
            drop(permit);
        });
    };
    writer.abort();
    node.on_gone(&push);
    result
}

fn framed(mut answer: Outgoing, body: &[u8], to: &Command) -> Bytes {
    answer.opaque = to.opaque;
    answer.frame(to.encoding, body)
}
