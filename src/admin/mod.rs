//! What an operator does with a running cluster: the verbs behind `ringmq topic|group|message|dlq|broker|cluster|offset`
//! and behind `ringmq mqadmin`.
//!
//! All of them speak RocketMQ's admin protocol through a [`session::Session`], so they work with RocketMQ's own brokers
//! and name servers too. [`args`] has the command line, [`output`] what is printed, [`run`] goes from one to the other.
//! What a command changes it asks of the brokers; it never touches a store.

pub mod args;
mod broker;
mod cluster;
mod dlq;
mod group;
mod lag;
mod message;
mod mqadmin;
mod offset;
pub mod output;
mod session;
mod stored;
mod topic;

use crate::admin::args::{AdminCommand, Common};
use crate::admin::output::Output;
use crate::admin::session::Session;
use crate::shard::executor::run_once;

/// Why a command did not do what it was asked, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// What was asked for is not there.
    #[error("{0}")]
    NotFound(String),
    /// The command line asks for something that makes no sense, or was not confirmed.
    #[error("{0}")]
    Usage(String),
    /// Some of it was done; what was not is in the output.
    #[error("{0}")]
    Partly(String),
    /// A server could not be reached, or its answer not be read.
    #[error("{0}")]
    Failed(String),
    /// A server refused.
    #[error("{address} refused {request}: {name} ({code}): {remark}")]
    Refused {
        address: String,
        request: &'static str,
        code: i32,
        name: &'static str,
        remark: String,
    },
}

/// What a verb comes to.
pub(in crate::admin) type Outcome<T = ()> = Result<T, AdminError>;

/// Runs one command on an executor of its own.
pub fn run(command: AdminCommand) -> Result<(), AdminError> {
    let ran = run_once(move |env| async move {
        let context = |common: &Common| Context {
            session: Session::new(env.clone(), common),
            output: Output::new(common.output),
        };
        match command {
            AdminCommand::Topic(noun) => topic::run(&context(&noun.common), noun.verb).await,
            AdminCommand::Group(noun) => group::run(&context(&noun.common), noun.verb).await,
            AdminCommand::Message(noun) => message::run(&context(&noun.common), noun.verb).await,
            AdminCommand::Dlq(noun) => dlq::run(&context(&noun.common), noun.verb).await,
            AdminCommand::Offset(noun) => offset::run(&context(&noun.common), noun.verb).await,
            AdminCommand::Broker(verb) => broker::run(&context(verb.common()), verb).await,
            AdminCommand::Cluster(noun) => cluster::run(&context(&noun.common), noun.verb).await,
            AdminCommand::Mqadmin(old) => mqadmin::run(env, old.words).await,
        }
    });
    match ran {
        Ok(outcome) => outcome,
        Err(reason) => Err(AdminError::Failed(reason)),
    }
}

/// What every verb gets.
pub(in crate::admin) struct Context {
    pub session: Session,
    pub output: Output,
}
