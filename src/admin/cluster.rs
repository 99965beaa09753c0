//! `ringmq cluster`: the brokers that name servers know, and the groups that a controller decides about.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::admin::args::{ClusterVerb, Confirm, Controllers};
use crate::admin::output::Table;
use crate::admin::{AdminError, Context, Outcome, broker};
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::{Command, Outgoing};
use crate::wire::remoting::controller::{BrokerReplicasInfo, ReplicasInfo};
use crate::wire::remoting::json;

pub async fn run(context: &Context, verb: ClusterVerb) -> Outcome {
    match verb {
        ClusterVerb::List => broker::list(context).await,
        ClusterVerb::Status { at, group } => status(context, &at, group.as_deref()).await,
        ClusterVerb::Elect {
            at,
            group,
            broker,
            confirm,
        } => elect(context, &at, &group, broker, confirm).await,
        ClusterVerb::Forget {
            at,
            group,
            brokers,
            confirm,
        } => forget(context, &at, &group, &brokers, confirm).await,
    }
}

/// The leader of the controllers, as the first one says that answers and knows it.
async fn leader(context: &Context, at: &Controllers) -> Outcome<String> {
    let mut why = AdminError::Usage("--controller needs host:port".to_owned());
    for address in at.addresses() {
        let asked = context
            .session
            .call(
                address,
                Outgoing::request(request::CONTROLLER_GET_METADATA_INFO),
                Bytes::new(),
            )
            .await;
        match asked {
            Ok(found) => match found.text("controllerLeaderAddress") {
                Some(leader) if !leader.is_empty() => return Ok(leader.into_owned()),
                _ => {
                    why = AdminError::Failed(format!(
                        "{address} knows no leader: less than half of the controllers can talk to each other"
                    ))
                }
            },
            Err(error) => why = error,
        }
    }
    Err(why)
}

async fn groups(
    context: &Context,
    leader: &str,
    group: Option<&str>,
) -> Outcome<BrokerReplicasInfo> {
    let names: Vec<&str> = group.into_iter().collect();
    let ask = Outgoing::request(request::CONTROLLER_GET_SYNC_STATE_DATA);
    let answer = context
        .session
        .call(leader, ask, Bytes::from(json::to_vec(&names)))
        .await?;
    json::from_slice(&answer.body).map_err(|error| AdminError::Failed(format!("{leader}: {error}")))
}

fn rows(name: &str, info: &ReplicasInfo, table: &mut Table) {
    let in_sync = info.in_sync_replicas.iter().map(|replica| (replica, true));
    let others = info
        .not_in_sync_replicas
        .iter()
        .map(|replica| (replica, false));
    let mut all: Vec<_> = in_sync.chain(others).collect();
    all.sort_by_key(|(replica, _)| replica.broker_id);
    for (replica, is_in_sync) in all {
        let role = match replica.broker_id == info.master_broker_id {
            true => "master",
            false => "slave",
        };
        table.push([
            json!(name),
            json!(replica.broker_id),
            json!(replica.broker_address),
            json!(role),
            json!(info.master_epoch),
            json!(is_in_sync),
            json!(replica.alive),
        ]);
    }
}

async fn status(context: &Context, at: &Controllers, group: Option<&str>) -> Outcome {
    let leader = leader(context, at).await?;
    let info = groups(context, &leader, group).await?;
    let mut table = Table::new(&[
        "group", "brokerId", "address", "role", "epoch", "inSync", "alive",
    ]);
    for (name, info) in &info.replicas_info_table {
        rows(name, info, &mut table);
    }
    if !context.output.is_json() {
        context
            .output
            .say(&format!("The leader of the controllers is {leader}."));
    }
    if let (Some(group), 0) = (group, table.len()) {
        return Err(AdminError::NotFound(format!(
            "no broker of a group '{group}' has ever registered with {leader}"
        )));
    }
    context.output.list(&table);
    Ok(())
}

/// What only the controllers' leader does, for peers that it trusts.
async fn change(context: &Context, leader: &str, ask: Outgoing) -> Outcome<Command> {
    context.session.call(leader, ask, Bytes::new()).await.map_err(|error| match error {
        AdminError::Refused {
            code: response::NO_PERMISSION,
            ..
        } => AdminError::Failed(format!(
            "{leader} takes changes from its own machine only: run this there, with --controller 127.0.0.1:PORT"
        )),
        error => error,
    })
}

async fn elect(
    context: &Context,
    at: &Controllers,
    group: &str,
    broker: Option<u64>,
    confirm: Confirm,
) -> Outcome {
    let leader = leader(context, at).await?;
    let info = groups(context, &leader, Some(group)).await?;
    let Some(known) = info.replicas_info_table.get(group) else {
        return Err(AdminError::NotFound(format!(
            "no broker of a group '{group}' has ever registered with {leader}"
        )));
    };
    let whom = broker.map_or("the best broker that is in sync".to_owned(), |id| {
        format!("brokerId {id}")
    });
    let what = format!(
        "make {whom} the master of {group} instead of brokerId {}, while sends fail for a second or two",
        known.master_broker_id
    );
    if !context.output.confirmed(confirm, &what)? {
        return Ok(());
    }
    let ask = Outgoing::request(request::CONTROLLER_ELECT_MASTER)
        .field("clusterName", "")
        .field("brokerName", group.to_owned())
        .field("brokerId", broker.map_or(-1, |id| id as i64))
        .field("designateElect", true);
    let answer = change(context, &leader, ask).await?;
    let number = |name| answer.int(name).ok().flatten();
    let address = answer
        .text("masterAddress")
        .unwrap_or_default()
        .into_owned();
    let (id, epoch) = (number("masterBrokerId"), number("masterEpoch"));
    let row: Value = json!({ "group": group, "masterBrokerId": id, "masterAddress": address, "masterEpoch": epoch });
    context.output.item(&row, || {
        format!(
            "{address} (brokerId {}) is the master of {group}, epoch {}.",
            id.unwrap_or(-1),
            epoch.unwrap_or(-1)
        )
    });
    Ok(())
}

async fn forget(
    context: &Context,
    at: &Controllers,
    group: &str,
    brokers: &[u64],
    confirm: Confirm,
) -> Outcome {
    let leader = leader(context, at).await?;
    let ids: Vec<String> = brokers.iter().map(u64::to_string).collect();
    let ids = ids.join(";");
    if !context.output.confirmed(
        confirm,
        &format!("let the controller forget brokerId {ids} of {group}"),
    )? {
        return Ok(());
    }
    let ask = Outgoing::request(request::CLEAN_BROKER_DATA)
        .field("clusterName", "")
        .field("brokerName", group.to_owned())
        .field("brokerControllerIdsToClean", ids.clone())
        .field("isCleanLivingBroker", false);
    change(context, &leader, ask).await?;
    context.output.say(&format!(
        "The controller has forgotten brokerId {ids} of {group}."
    ));
    Ok(())
}
