//! NOTIFY_MIN_BROKER_ID_CHANGE (905): tells the brokers of a group that its smallest id changed.
//!
//! Sent to the brokers' own ports as oneway requests over connections made for it, as RocketMQ does; a lost one is
//! repaired by the broker, which asks for its group from time to time.

use std::time::Duration;

use bytes::Bytes;

use crate::client::RemotingClient;
use crate::io::env::Env;
use crate::namesrv::route_table::MinIdChange;
use crate::wire::remoting::code::request::NOTIFY_MIN_BROKER_ID_CHANGE;
use crate::wire::remoting::command::Outgoing;

/// How long a broker may take to accept the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// Tells the brokers of the group, without waiting for them.
pub fn send<E: Env>(env: &E, change: &MinIdChange) {
    for address in &change.targets {
        let (env, address, request) = (env.clone(), address.clone(), request(change));
        env.clone().spawn(async move {
            match RemotingClient::connect(&env, &address, CONNECT_TIMEOUT).await {
                // What is queued is written before the connection closes.
                Ok(client) => client.oneway(request, Bytes::new()),
                Err(error) => {
                    tracing::info!("a change of the smallest broker id is not told: {error}")
                }
            }
        });
    }
}

/// The request for one change (`NotifyMinBrokerIdChangeRequestHeader`).
fn request(change: &MinIdChange) -> Outgoing {
    Outgoing::oneway(NOTIFY_MIN_BROKER_ID_CHANGE)
        .field("minBrokerId", change.min_broker_id)
        .field("brokerName", change.broker_name.clone())
        .field("minBrokerAddr", change.min_broker_addr.clone())
        .field_if("offlineBrokerAddr", change.offline_broker_addr.clone())
        .field_if("haBrokerAddr", change.ha_broker_addr.clone())
}
