//! `ringmq tx ...`: open transactions of a running broker.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use crate::app::cli::{TxArgs, TxCommand};
use crate::app::run::{Exit, print};
use crate::client::RemotingClient;
use crate::shard::executor::run_once;
use crate::wire::message_id::MessageId;
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::Outgoing;

const TIMEOUT: Duration = Duration::from_secs(10);

/// `ringmq tx list`, `ringmq tx show ID`.
pub fn run(command: TxCommand) -> Exit {
    let result = match command {
        TxCommand::List { limit, args } => list(limit, args),
        TxCommand::Show { id, args } => show(&id, args),
    };
    match result {
        Ok(()) => Exit::Stopped,
        Err(reason) => Exit::Failed.because(&reason),
    }
}

fn list(limit: i32, args: TxArgs) -> Result<(), String> {
    let ask = Outgoing::request(request::RINGMQ_TRANSACTIONS).field("limit", limit);
    let answer = asked(args.broker, ask)?;
    let none = Vec::new();
    let transactions = answer["transactions"].as_array().unwrap_or(&none);
    for transaction in transactions {
        print(&match args.json {
            true => transaction.to_string(),
            false => line(transaction),
        });
    }
    let open = answer["open"].as_u64().unwrap_or(0);
    if !args.json {
        print(&format!("{open} open, {} shown", transactions.len()));
    }
    Ok(())
}

fn show(id: &str, args: TxArgs) -> Result<(), String> {
    let id = MessageId::parse(id).map_err(|error| error.to_string())?;
    let ask = Outgoing::request(request::RINGMQ_TRANSACTIONS).field("commitLogOffset", id.offset.0);
    let answer = asked(args.broker, ask)?;
    if args.json {
        print(&answer.to_string());
        return Ok(());
    }
    let (mut fields, mut properties) = (Vec::new(), Vec::new());
    for (name, value) in answer.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(inner) => properties.extend(inner.iter()),
            None => fields.push((name, value)),
        }
    }
    for (name, value) in fields {
        print(&format!("{name} {}", text(value)));
    }
    for (name, value) in properties {
        print(&format!("property {name} {}", text(value)));
    }
    Ok(())
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn line(transaction: &Value) -> String {
    let field = |name: &str| text(&transaction[name]);
    format!(
        "{} topic {} queue {} group {} checks {} next check at {} ms key {}",
        field("offsetMsgId"),
        field("topic"),
        field("queueId"),
        field("producerGroup"),
        field("checks"),
        field("nextCheckTimestamp"),
        field("uniqueKey")
    )
}

/// The answer's body as JSON.
fn asked(broker: String, ask: Outgoing) -> Result<Value, String> {
    run_once(move |env| async move {
        let broker = RemotingClient::connect(&env, &broker, TIMEOUT)
            .await
            .map_err(|error| reason_of(&error))?;
        let answer = broker
            .call(ask, Bytes::new(), TIMEOUT)
            .await
            .map_err(|error| reason_of(&error))?;
        if answer.code != response::SUCCESS {
            return Err(answer.remark.unwrap_or_default());
        }
        serde_json::from_slice(&answer.body)
            .map_err(|error| format!("the answer cannot be read: {error}"))
    })?
}

fn reason_of(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
