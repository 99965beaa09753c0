//! Keys of `ringmq controller`. RocketMQ's `ControllerConfig`; what brokers need to find one is in `broker.rs`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::base::config::setting::settings;
use crate::base::config::value::Bounds;

settings! {
    /// What a controller node reads. See the module's page.
    ControllerSettings {
        /// Port of a controller, for brokers, tools and the other nodes. `ringmq controller` takes it from listenPort too.
        "controllerListenPort" listen_port: u16 = 9878, Bounds::Range(1, 65535), "";
        /// Name of the controllers together, as tools show it.
        "controllerDLegerGroup" group: String = "controller".to_owned(), Bounds::Any, "";
        /// All nodes: n0-host:port between semicolons, 1, 3 or 5 of them, the same on each. The port is the one that brokers use.
        "controllerDLegerPeers" peers: String = String::new(), Bounds::Any, "", found "this node alone";
        /// Which of them this node is.
        "controllerDLegerSelfId" self_id: String = "n0".to_owned(), Bounds::Any, "";
        /// Directory of the node's file.
        "controllerStorePath" directory: PathBuf = PathBuf::new(), Bounds::Any, "", found "controller below storePathRootDir";
        /// A broker that may lack acknowledged messages becomes the master when nobody else is left.
        "enableElectUncleanMaster" unclean: bool = false, Bounds::Any, "";
        /// How often masters are looked at. RocketMQ has 5000.
        "scanInactiveMasterInterval" scan_ms: u64 = 50, Bounds::Range(10, 60_000), "ms";
    }
}

/// Members by number, `host:port` each.
pub type Members = BTreeMap<u64, String>;

impl ControllerSettings {
    /// The number of this node, and all nodes.
    pub fn members(&self) -> Result<(u64, Members), String> {
        let number = |text: &str| text.trim().strip_prefix('n')?.parse::<u64>().ok();
        let id = number(&self.self_id).ok_or_else(|| {
            format!(
                "controllerDLegerSelfId={}: n and a number, such as n0, is due",
                self.self_id
            )
        })?;
        let mut members = Members::new();
        for word in self
            .peers
            .split(';')
            .map(str::trim)
            .filter(|word| !word.is_empty())
        {
            let parsed = word.split_once('-').and_then(|(name, address)| {
                let (host, port) = address.rsplit_once(':')?;
                port.parse::<u16>().ok().filter(|_| !host.is_empty())?;
                Some((number(name)?, address.to_owned()))
            });
            let Some((member, address)) = parsed else {
                return Err(format!(
                    "controllerDLegerPeers: '{word}' is not like n0-host:port"
                ));
            };
            if members.insert(member, address).is_some() {
                return Err(format!("controllerDLegerPeers has n{member} twice"));
            }
        }
        if !matches!(members.len(), 1 | 3 | 5) {
            return Err(format!(
                "controllerDLegerPeers has {} nodes: 1, 3 or 5 are due, since an even number tolerates no more failures than one less",
                members.len()
            ));
        }
        if !members.contains_key(&id) {
            return Err(format!(
                "controllerDLegerSelfId=n{id} is not one of controllerDLegerPeers"
            ));
        }
        Ok((id, members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_nodes_with_numbers() {
        let members = |peers: &str, id: &str| {
            let settings = ControllerSettings {
                peers: peers.to_owned(),
                self_id: id.to_owned(),
                ..ControllerSettings::default()
            };
            settings.members().map(|(id, members)| (id, members.len()))
        };
        assert_eq!(members("n0-a:1;n1-b-c:2; n2-[::1]:3;", "n1"), Ok((1, 3)));
        for (peers, id) in [
            ("n0-a:1;n1-b:2", "n0"),
            ("n0-a:1", "n1"),
            ("n0-a:1", "zero"),
            ("n0-a", "n0"),
            ("n0-a:1;n0-b:2;n1-c:3", "n0"),
            ("", "n0"),
        ] {
            assert!(members(peers, id).is_err(), "{peers} {id}");
        }
    }
}
