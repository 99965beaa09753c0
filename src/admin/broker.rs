//! `ringmq broker list|status|config`.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::admin::args::{BrokerConfigVerb, BrokerVerb};
use crate::admin::output::Table;
use crate::admin::session::Session;
use crate::admin::{AdminError, Context, Outcome};
use crate::wire::remoting::body::KVTable;
use crate::wire::remoting::code::request;
use crate::wire::remoting::command::Outgoing;

pub async fn run(context: &Context, verb: BrokerVerb) -> Outcome {
    match verb {
        BrokerVerb::List { .. } => list(context).await,
        BrokerVerb::Status { broker, .. } => status(context, &broker).await,
        BrokerVerb::Config(BrokerConfigVerb::Get { broker, key, .. }) => {
            get(context, &broker, key.as_deref()).await
        }
        BrokerVerb::Config(BrokerConfigVerb::Set {
            broker,
            changes,
            dry_run,
            ..
        }) => set(context, &broker, &changes, dry_run).await,
    }
}

/// The runtime figures of a broker.
pub async fn runtime(session: &Session, address: &str) -> Outcome<BTreeMap<String, String>> {
    let table: KVTable = session
        .fetch(address, Outgoing::request(request::GET_BROKER_RUNTIME_INFO))
        .await?;
    Ok(table.table)
}

/// The first of the averages that a figure has.
fn rate(figures: &BTreeMap<String, String>, key: &str) -> Value {
    let first = figures.get(key).and_then(|text| text.split(' ').next());
    first
        .and_then(|text| text.parse::<f64>().ok())
        .map_or(Value::Null, |rate| json!(rate))
}

pub async fn list(context: &Context) -> Outcome {
    let session = &context.session;
    let info = session.cluster_info().await?;
    let mut table = Table::new(&[
        "cluster",
        "brokerName",
        "brokerId",
        "address",
        "version",
        "inTps",
        "outTps",
        "diskRatio",
        "bootTimestamp",
        "state",
    ]);
    for (cluster, names) in &info.cluster_addr_table {
        for name in names {
            let Some(broker) = info.broker_addr_table.get(name) else {
                continue;
            };
            for (id, address) in &broker.broker_addrs {
                // One broker that does not answer is what the list is for, too.
                let (figures, state) = match runtime(session, address).await {
                    Ok(figures) => (figures, "up".to_owned()),
                    Err(error) => (BTreeMap::new(), error.to_string()),
                };
                let text = |key: &str| figures.get(key).map_or(Value::Null, |text| json!(text));
                let number = |key: &str| {
                    let number = figures.get(key).and_then(|text| text.parse::<i64>().ok());
                    number.map_or(Value::Null, |number| json!(number))
                };
                table.push([
                    json!(cluster),
                    json!(name),
                    json!(id),
                    json!(address),
                    text("brokerVersionDesc"),
                    rate(&figures, "putTps"),
                    rate(&figures, "getTransferredTps"),
                    rate(&figures, "commitLogDiskRatio"),
                    number("bootTimestamp"),
                    json!(state),
                ]);
            }
        }
    }
    context.output.list(&table);
    Ok(())
}

async fn status(context: &Context, broker: &str) -> Outcome {
    let session = &context.session;
    let master = session.broker(broker).await?;
    let figures = runtime(session, &master.address).await?;
    print_pairs(context, &figures);
    Ok(())
}

/// Keys and values: a table, or one JSON object.
fn print_pairs(context: &Context, pairs: &BTreeMap<String, String>) {
    if context.output.is_json() {
        context.output.item(&json!(pairs), String::new);
        return;
    }
    let mut table = Table::new(&["key", "value"]);
    for (key, value) in pairs {
        table.push([json!(key), json!(value)]);
    }
    context.output.list(&table);
}

/// The configuration of a broker.
pub async fn config(session: &Session, address: &str) -> Outcome<BTreeMap<String, String>> {
    let ask = Outgoing::request(request::GET_BROKER_CONFIG);
    let answer = session.call(address, ask, Bytes::new()).await?;
    Ok(parse_properties(&String::from_utf8_lossy(&answer.body)))
}

/// `key=value` lines; `#` and `!` begin comments.
pub fn parse_properties(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with(['#', '!']))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

async fn get(context: &Context, broker: &str, key: Option<&str>) -> Outcome {
    let session = &context.session;
    let master = session.broker(broker).await?;
    let mut config = config(session, &master.address).await?;
    if let Some(key) = key {
        if !config.contains_key(key) {
            return Err(AdminError::NotFound(format!(
                "{} has no configuration key '{key}'",
                master.address
            )));
        }
        config.retain(|known, _| known == key);
    }
    print_pairs(context, &config);
    Ok(())
}

/// Changes configuration of a broker while it runs.
pub async fn change_config(
    session: &Session,
    address: &str,
    changes: &BTreeMap<String, String>,
) -> Outcome {
    let lines: Vec<String> = changes
        .iter()
        .map(|(key, value)| format!("{key}={value}\n"))
        .collect();
    let ask = Outgoing::request(request::UPDATE_BROKER_CONFIG);
    session
        .call(address, ask, lines.concat().into())
        .await
        .map(drop)
}

async fn set(context: &Context, broker: &str, changes: &[String], dry_run: bool) -> Outcome {
    let session = &context.session;
    let master = session.broker(broker).await?;
    let mut wanted = BTreeMap::new();
    for change in changes {
        let Some((key, value)) = change.split_once('=') else {
            return Err(AdminError::Usage(format!("'{change}' is not KEY=VALUE")));
        };
        wanted.insert(key.trim().to_owned(), value.trim().to_owned());
    }
    let now = config(session, &master.address).await?;
    let mut table = Table::new(&["key", "value", "newValue"]);
    for (key, value) in &wanted {
        table.push([json!(key), json!(now.get(key)), json!(value)]);
    }
    context.output.list(&table);
    if dry_run {
        context.output.say("dry run: nothing was changed");
        return Ok(());
    }
    change_config(session, &master.address, &wanted).await
}
