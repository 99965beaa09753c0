//! A slave passes sends on to its master.
//!
//! RocketMQ's clients ask the name servers for routes every 30 s (`pollNameServerInterval`) and not after an error, so a producer
//! goes on sending to a master that was replaced. If that broker is alive, now as a slave, the message still arrives: at the
//! master, once, with its answer unchanged. A slave that was sent a passed-on message refuses it, so that nothing goes in circles.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_lite::future;

use crate::broker::dispatch::Broker;
use crate::broker::error::BrokerError;
use crate::client::{ClientError, Reconnecting};
use crate::io::body::Body;
use crate::io::env::Env;
use crate::server::connection::Responder;
use crate::shard::message::Refusal;
use crate::wire::remoting::command::{Command, Outgoing};

/// Marks what a slave has passed on.
const PASSED_ON: &str = "ringmqPassedOn";
/// As long as RocketMQ's clients wait for a send by default.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How often a call looks whether there was an election.
const LOOK: Duration = Duration::from_millis(20);
/// The char that takes the place of bytes that are no text.
const REPLACEMENT: char = '\u{fffd}';

/// What the master answers.
pub type ForwardFuture = Pin<Box<dyn Future<Output = Result<Command, ClientError>>>>;

/// The way to the master, without the environment, so that the broker need not be generic over it.
pub trait MasterLink {
    /// Asks the master; nothing if nobody has said where that is.
    fn call(&self, request: Outgoing, body: Bytes) -> Option<ForwardFuture>;
}

/// One core's connection to the master.
pub struct ToMaster<E: Env> {
    env: E,
    /// Where clients find the master now.
    address: Box<dyn Fn() -> Option<String>>,
    /// Epoch of the last election that was heard of.
    epoch: Rc<dyn Fn() -> u32>,
    client: RefCell<Option<Rc<Reconnecting<E>>>>,
}

impl<E: Env> ToMaster<E> {
    pub fn new(
        env: E,
        address: impl Fn() -> Option<String> + 'static,
        epoch: impl Fn() -> u32 + 'static,
    ) -> Self {
        Self {
            env,
            address: Box::new(address),
            epoch: Rc::new(epoch),
            client: RefCell::default(),
        }
    }
}

impl<E: Env> MasterLink for ToMaster<E> {
    fn call(&self, request: Outgoing, body: Bytes) -> Option<ForwardFuture> {
        let address = (self.address)()?;
        let mut known = self.client.borrow_mut();
        let client = match &*known {
            Some(client) if client.address() == address => client.clone(),
            _ => {
                let client = Rc::new(Reconnecting::new(self.env.clone(), address));
                *known = Some(client.clone());
                client
            }
        };
        let (env, epoch) = (self.env.clone(), self.epoch.clone());
        let begun = epoch();
        Some(Box::pin(async move {
            // A broker that becomes the master answers everything first, and a master that is cut off answers nothing.
            let replaced = async {
                while epoch() == begun {
                    env.sleep(LOOK).await;
                }
                Err(ClientError::Closed {
                    address: client.address().to_owned(),
                })
            };
            future::or(client.call(request, body, TIMEOUT), replaced).await
        }))
    }
}

/// The same request for somebody else; nothing if it was passed on already, or is no text.
fn passed_on(command: &Command) -> Option<Outgoing> {
    let mut request = Outgoing::request(command.code);
    for (name, value) in command.fields() {
        if name == PASSED_ON || name.contains(REPLACEMENT) || value.contains(REPLACEMENT) {
            return None;
        }
        request = request.field(name.into_owned(), value.into_owned());
    }
    Some(request.field(PASSED_ON, true))
}

/// The master's answer as ours.
fn answer_of(answer: Command) -> Outgoing {
    let mut ours = Outgoing::success().with_code(answer.code);
    for (name, value) in answer.fields() {
        ours = ours.field(name.into_owned(), value.into_owned());
    }
    match answer.remark {
        Some(remark) => ours.with_remark(remark),
        None => ours,
    }
}

impl Broker {
    /// Sets how this core reaches its master; without it a slave refuses sends.
    pub fn set_master_link(&self, link: Rc<dyn MasterLink>) {
        *self.master_link.borrow_mut() = Some(link);
    }

    /// A send that came to a slave.
    pub(super) fn pass_on(&self, command: Command, responder: Responder) {
        let link = self.master_link.borrow().clone();
        let call = link.and_then(|link| link.call(passed_on(&command)?, command.body.clone()));
        let Some(call) = call else {
            return self.refuse_send(Refusal::Replica.into(), responder);
        };
        let (broker, underway) = (self.clone(), self.underway.begin(command.body.len()));
        self.shard.spawn(async move {
            match call.await {
                Ok(answer) => responder.send(answer_of(answer), Body::Empty),
                // It was not sent.
                Err(ClientError::Connect { .. }) => {
                    broker.refuse_send(Refusal::Replica.into(), responder);
                }
                Err(error) => {
                    let what = format!("it was passed on to the master and may be stored: {error}");
                    broker.refuse_send(BrokerError::System(what), responder);
                }
            }
            drop(underway);
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use crate::wire::remoting::command::Encoding;
    use crate::wire::remoting::frame::next_frame;
    use bytes::BytesMut;

    fn command(outgoing: &Outgoing) -> Command {
        let frame = outgoing.frame(Encoding::Binary, b"body");
        next_frame(&mut BytesMut::from(&frame[..]))
            .unwrap()
            .unwrap()
    }

    #[test]
    fn a_request_is_passed_on_once_with_all_its_fields() {
        let request = Outgoing::request(310)
            .field("a", "pair-producer")
            .field("i", "KEYS\u{1}k\u{2}UNIQ_KEY\u{1}ü");
        let first = passed_on(&command(&request)).unwrap();
        let first = command(&first);
        assert_eq!(first.code, 310);
        assert!(!first.is_oneway());
        let fields = |command: &Command| -> Vec<(String, String)> {
            let fields = command.fields();
            fields
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect()
        };
        let wanted = fields(&command(&request));
        assert_eq!(&fields(&first)[..2], &wanted[..]);
        assert_eq!(passed_on(&first), None, "in circles");
    }

    #[test]
    fn an_answer_keeps_its_code_remark_and_fields() {
        let answer = Outgoing::error(14, "no lease").field("queueId", 3);
        let ours = answer_of(command(&answer));
        assert_eq!((ours.code, ours.remark.as_deref()), (14, Some("no lease")));
        assert_eq!(command(&ours).int("queueId").unwrap(), Some(3));
    }
}
