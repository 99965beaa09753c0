//! `ringmq mqadmin`: the everyday commands of RocketMQ's mqadmin, with its names, flags and what it prints.
//!
//! Run books grep what mqadmin prints, so heads, widths and phrases are the original's; times are UTC. Unlike the original,
//! a command that fails says so in its exit code. docs/mqadmin.md lists all commands, with what is different.
//! Source: `tools/.../command/`.

mod brokers;
mod flags;
mod groups;
mod messages;
mod text;
mod topics;

use std::time::Duration;

use crate::admin::args::Where;
use crate::admin::mqadmin::flags::{COMMANDS, Flags, Spec};
use crate::admin::output::line;
use crate::admin::session::{Master, Session};
use crate::admin::{AdminError, Outcome};
use crate::io::ring::RingEnv;

/// For each request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Where mqadmin looks for a name server without `-n`.
const NAMESRV_VARIABLE: &str = "NAMESRV_ADDR";
const NAMESRV_DEFAULT: &str = "127.0.0.1:9876";

/// A command with its flags and the servers that it talks to.
struct Old {
    session: Session,
    flags: Flags,
}

/// Runs the command that these words are.
pub async fn run(env: RingEnv, words: Vec<String>) -> Outcome {
    let Some(name) = words.first() else {
        help();
        return Ok(());
    };
    if matches!(name.as_str(), "help" | "-h" | "--help") {
        match words.get(1).and_then(|name| find(name)) {
            Some(spec) => line(&spec.usage()),
            None => help(),
        }
        return Ok(());
    }
    let spec = find(name).ok_or_else(|| unknown(name))?;
    if words[1..]
        .iter()
        .any(|word| matches!(word.as_str(), "-h" | "--help"))
    {
        line(&spec.usage());
        return Ok(());
    }
    let flags = Flags::parse(spec, &words[1..])?;
    let namesrv = flags
        .get('n')
        .map(str::to_owned)
        .or_else(|| std::env::var(NAMESRV_VARIABLE).ok())
        .unwrap_or_else(|| NAMESRV_DEFAULT.to_owned());
    let old = Old {
        session: Session::with(env, &namesrv, TIMEOUT),
        flags,
    };
    match spec.name {
        "topicList" => old.topic_list().await,
        "topicRoute" => old.topic_route().await,
        "topicStatus" => old.topic_status().await,
        "topicClusterList" => old.topic_clusters().await,
        "updateTopic" => old.update_topic().await,
        "updateTopicPerm" => old.update_topic_perm().await,
        "deleteTopic" => old.delete_topic().await,
        "updateOrderConf" => old.order_conf().await,
        "clusterList" => old.cluster_list().await,
        "brokerStatus" => old.broker_status().await,
        "getBrokerConfig" => old.broker_config().await,
        "updateBrokerConfig" => old.update_broker_config().await,
        "getNamesrvConfig" => old.namesrv_config().await,
        "updateKvConfig" => old.update_kv().await,
        "deleteKvConfig" => old.delete_kv().await,
        "wipeWritePerm" => old.write_perm(true).await,
        "addWritePerm" => old.write_perm(false).await,
        "updateSubGroup" => old.update_group().await,
        "deleteSubGroup" => old.delete_group().await,
        "getConsumerConfig" => old.group_config().await,
        "setConsumeMode" => old.consume_mode().await,
        "consumerProgress" => old.progress().await,
        "consumerConnection" => old.consumers().await,
        "producerConnection" => old.producers().await,
        "resetOffsetByTime" => old.reset_offset().await,
        "skipAccumulatedMessage" => old.skip().await,
        "cloneGroupOffset" => old.clone_offset().await,
        "queryMsgById" => old.query_by_id().await,
        "queryMsgByKey" => old.query_by_key().await,
        "queryMsgByUniqueKey" => old.query_by_unique_key().await,
        "queryMsgByOffset" => old.query_by_offset().await,
        "sendMessage" => old.send_message().await,
        "consumeMessage" => old.consume_message().await,
        "printMsg" => old.print_messages().await,
        "printMsgByQueue" => old.print_queue().await,
        _ => Err(unknown(name)),
    }
}

fn find(name: &str) -> Option<&'static Spec> {
    COMMANDS
        .iter()
        .find(|spec| spec.name.eq_ignore_ascii_case(name))
}

fn unknown(name: &str) -> AdminError {
    AdminError::Usage(format!(
        "ringmq mqadmin has no command '{name}'; `ringmq mqadmin help` lists them, and docs/mqadmin.md says what there is instead"
    ))
}

fn help() {
    line("The commands of mqadmin that are offered:");
    for spec in COMMANDS {
        line(&format!("   {:<35} {}", spec.name, spec.about));
    }
    line("");
    line("See 'ringmq mqadmin help <command>' for more information on a specific command.");
}

impl Old {
    /// The masters of `-b` (an address) or `-c` (a cluster), of which one is needed.
    async fn masters(&self) -> Outcome<Vec<Master>> {
        let place = Where {
            broker: self.flags.get('b').map(str::to_owned),
            cluster: match self.flags.get('b') {
                Some(_) => None,
                None => self.flags.get('c').map(str::to_owned),
            },
        };
        if place.broker.is_none() && place.cluster.is_none() {
            return Err(AdminError::Usage(format!(
                "give a broker with -b or a cluster with -c\n{}",
                self.flags.spec.usage()
            )));
        }
        self.session.masters(&place).await
    }

    /// A flag that has to be there.
    fn need(&self, short: char) -> Outcome<&str> {
        self.flags.get(short).ok_or_else(|| {
            AdminError::Usage(format!(
                "the flag -{short} is missing\n{}",
                self.flags.spec.usage()
            ))
        })
    }

    fn number<T: std::str::FromStr>(&self, short: char) -> Outcome<Option<T>> {
        match self.flags.get(short) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                AdminError::Usage(format!("the value '{text}' of -{short} is no such number"))
            }),
        }
    }

    /// Java's `Boolean.parseBoolean`.
    fn boolean(&self, short: char) -> Option<bool> {
        let text = self.flags.get(short)?;
        Some(text.eq_ignore_ascii_case("true"))
    }
}
