//! What controllers, brokers and tools say to each other besides header fields: bodies of RocketMQ, and two codes of ours.
//!
//! A peer that is not on loopback proves that it knows the shared secret before it may change anything: [`HELLO`] brings its
//! number and is answered with the controller's and a proof, [`PROVE`] brings its own proof. Source of the bodies:
//! `SyncStateSet`, `BrokerReplicasInfo`, `ElectMasterResponseBody`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::wire::ha::{Nonce, Side, proof, proof_is_right};
use crate::wire::remoting::command::{Command, Outgoing};

/// Fields `nonce`; answered with `nonce` and `proof`, all in hexadecimal digits.
pub const HELLO: i32 = 30_010;
/// Field `proof`.
pub const PROVE: i32 = 30_011;

/// Body of 1001, 1004 and 1008.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SyncStateSet {
    pub sync_state_set: BTreeSet<i64>,
    pub sync_state_set_epoch: i32,
}

/// Body of 1006.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BrokerReplicasInfo {
    pub replicas_info_table: BTreeMap<String, ReplicasInfo>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicasInfo {
    pub in_sync_replicas: Vec<ReplicaIdentity>,
    pub master_address: String,
    pub master_broker_id: i64,
    pub master_epoch: i32,
    pub not_in_sync_replicas: Vec<ReplicaIdentity>,
    pub sync_state_set_epoch: i32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaIdentity {
    pub alive: bool,
    pub broker_address: String,
    pub broker_id: i64,
    pub broker_name: String,
}

/// Body of the answer to 1002. RocketMQ's brokers read it as `ElectMasterResponseBody`, mqadmin as `BrokerMemberGroup`: it has the
/// fields of both. Ids are written as text, because fastjson2 cannot pass over a name that is a number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ElectMasterResponseBody {
    #[serde(flatten)]
    pub group: BrokerMemberGroup,
    pub broker_member_group: BrokerMemberGroup,
    pub sync_state_set: BTreeSet<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BrokerMemberGroup {
    pub broker_addrs: BTreeMap<String, String>,
    pub broker_name: String,
    pub cluster: String,
}

/// How a peer proves to a controller that it knows the secret: send [`Greeting::hello`], then what [`Greeting::prove`] makes of
/// the answer.
pub struct Greeting(Nonce);

impl Greeting {
    /// With a fresh random number.
    pub fn new(nonce: Nonce) -> Self {
        Self(nonce)
    }

    pub fn hello(&self) -> Outgoing {
        Outgoing::request(HELLO).field("nonce", hex(&self.0))
    }

    /// `None`: the controller has not shown that it knows the secret, so it is told nothing.
    pub fn prove(&self, secret: &[u8], challenge: &Command) -> Option<Outgoing> {
        let theirs: Nonce = unhex(&challenge.text("nonce")?)?;
        let found = unhex(&challenge.text("proof")?)?;
        if !proof_is_right(secret, Side::Controller, &self.0, &theirs, &found) {
            return None;
        }
        let proof = proof(secret, Side::ControllerClient, &self.0, &theirs);
        Some(Outgoing::request(PROVE).field("proof", hex(&proof)))
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// So many bytes from hexadecimal digits.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use crate::wire::remoting::json;
    use proptest::prelude::*;

    #[test]
    fn the_bodies_are_those_of_rocketmq() {
        let set = SyncStateSet {
            sync_state_set: [1, 2].into(),
            sync_state_set_epoch: 3,
        };
        assert_eq!(
            json::to_string(&set),
            r#"{"syncStateSet":[1,2],"syncStateSetEpoch":3}"#
        );
        let info = BrokerReplicasInfo {
            replicas_info_table: [(
                "b".to_owned(),
                ReplicasInfo {
                    in_sync_replicas: vec![ReplicaIdentity {
                        alive: false,
                        broker_address: "a:1".into(),
                        broker_id: 1,
                        broker_name: "b".into(),
                    }],
                    ..ReplicasInfo::default()
                },
            )]
            .into(),
        };
        assert_eq!(
            json::to_string(&info),
            r#"{"replicasInfoTable":{"b":{"inSyncReplicas":[{"alive":false,"brokerAddress":"a:1","brokerId":1,"brokerName":"b"}],"masterAddress":"","masterBrokerId":0,"masterEpoch":0,"notInSyncReplicas":[],"syncStateSetEpoch":0}}}"#
        );
    }

    #[test]
    fn an_elections_answer_can_be_read_by_brokers_and_by_mqadmin() {
        let group = BrokerMemberGroup {
            broker_addrs: [("1".to_owned(), "a:1".to_owned())].into(),
            broker_name: "b".into(),
            cluster: "c".into(),
        };
        let body = ElectMasterResponseBody {
            group: group.clone(),
            broker_member_group: group,
            sync_state_set: [1].into(),
        };
        assert_eq!(
            json::to_string(&body),
            r#"{"brokerAddrs":{"1":"a:1"},"brokerName":"b","cluster":"c","brokerMemberGroup":{"brokerAddrs":{"1":"a:1"},"brokerName":"b","cluster":"c"},"syncStateSet":[1]}"#
        );
    }

    proptest! {
        #[test]
        fn hexadecimal_digits_come_back(bytes: [u8; 16], junk: String) {
            prop_assert_eq!(unhex::<16>(&hex(&bytes)), Some(bytes));
            let _ = unhex::<16>(&junk);
        }
    }
}
