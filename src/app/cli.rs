//! Subcommands and flags, and what each flag sets. No logic beyond that.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::admin::args::{AdminCommand, BrokerVerb, Format};
use crate::base::config::Roles;

const EXAMPLES: &str = "\
Examples:
  ringmq try                     send one message and receive it, to see that it works here
  ringmq standalone              name server and broker here, in ./ringmq-data
  ringmq standalone --store /data/mq --bind 0.0.0.0 --set brokerIP1=mq.example.org
  ringmq namesrv --bind 0.0.0.0
  ringmq controller --id n0 --peers 'n0-10.0.0.1:9878;n1-10.0.0.2:9878;n2-10.0.0.3:9878'
  ringmq broker -n 10.0.0.1:9876 -c broker.conf --set flushDiskType=ASYNC_FLUSH
  RINGMQ_BROKER_NAME=broker-b ringmq broker -n 10.0.0.1:9876
  ringmq group show orders       who consumes, what, and how far behind (-o json for scripts)
  ringmq dlq resend orders --key 4711 --dry-run
                                 send dead letters again
  ringmq mqadmin consumerProgress -g orders
                                 as RocketMQ's own tool prints it
  ringmq doctor --store /data/mq what of this machine costs a broker how much
  ringmq config explain flushDiskType
                                 what a key does, its default, unit and bounds
  ringmq config check broker.conf
                                 is this file right, what does nothing here?

Configuration: RocketMQ's keys in properties syntax, as in its broker.conf.
  A flag counts more than the environment (brokerName is RINGMQ_BROKER_NAME),
  which counts more than the file of -c.
Signals: TERM or INT ends what is under way and stops, a second one stops now;
  HUP opens the log file again.
Exit codes: 0 done, or stopped as asked; 1 failed; 2 usage, or not confirmed;
  3 not there; 4 partly done; 78 configuration.";

/// A message broker and name server that speaks the Apache RocketMQ protocol.
#[derive(Debug, Parser)]
#[command(name = "ringmq", version = version(), after_help = EXAMPLES, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// Version of the package, with that of the source tree if the build was told (RINGMQ_GIT_DESCRIBE).
fn version() -> String {
    match option_env!("RINGMQ_GIT_DESCRIBE") {
        Some(describe) if !describe.is_empty() => {
            format!("{} ({describe})", env!("CARGO_PKG_VERSION"))
        }
        _ => env!("CARGO_PKG_VERSION").to_owned(),
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Name server and broker in one process: the way to start.
    #[command(visible_alias = "dev")]
    Standalone(StandaloneArgs),
    /// A name server.
    Namesrv(NamesrvArgs),
    /// A broker; with a verb: ask running ones.
    Broker(BrokerArgs),
    /// A node of the controller, which decides who is the master of each broker group.
    Controller(ControllerArgs),
    /// Send one message and receive it: through a broker of its own for a moment, or through yours.
    Try(TryArgs),
    /// Look into a store that no broker uses at the moment.
    #[command(subcommand)]
    Store(StoreCommand),
    /// What of this machine costs a broker how much: measures for two seconds, changes nothing.
    Doctor(DoctorArgs),
    /// Look at the open transactions of a running broker.
    #[command(subcommand)]
    Tx(TxCommand),
    #[command(flatten)]
    Admin(AdminCommand),
    /// Show, explain and check configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script for a shell.
    Completions { shell: Shell },
}

#[derive(Debug, Args)]
pub struct StandaloneArgs {
    /// Directory of the store [default: ./ringmq-data]
    #[arg(long, value_name = "DIR")]
    pub store: Option<String>,
    /// Port of the name server [default: 9876]
    #[arg(long, value_name = "PORT")]
    pub namesrv_port: Option<String>,
    /// Port of the broker [default: 10911]
    #[arg(long, value_name = "PORT")]
    pub port: Option<String>,
    #[command(flatten)]
    pub size: SizeArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_precedence_over_arg = true
)]
pub struct BrokerArgs {
    #[command(subcommand)]
    pub verb: Option<BrokerVerb>,
    /// Name servers to register with, between semicolons
    #[arg(short = 'n', long = "namesrv", value_name = "HOST:PORT")]
    pub namesrv: Option<String>,
    /// Directory of the store
    #[arg(long, value_name = "DIR")]
    pub store: Option<String>,
    /// Port of the broker [default: 10911]
    #[arg(long, value_name = "PORT")]
    pub port: Option<String>,
    #[command(flatten)]
    pub size: SizeArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct NamesrvArgs {
    /// Port of the name server [default: 9876]
    #[arg(long, value_name = "PORT")]
    pub port: Option<String>,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct ControllerArgs {
    /// Port of the controller [default: 9878]
    #[arg(long, value_name = "PORT")]
    pub port: Option<String>,
    /// Directory of the node's file
    #[arg(long, value_name = "DIR")]
    pub store: Option<String>,
    /// All nodes: n0-host:port between semicolons [default: this node alone]
    #[arg(long, value_name = "NODES")]
    pub peers: Option<String>,
    /// Which of them this node is [default: n0]
    #[arg(long, value_name = "NODE")]
    pub id: Option<String>,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Args)]
pub struct TryArgs {
    /// Name servers of the cluster to try, between semicolons [default: start one here, with a broker]
    #[arg(short = 'n', long = "namesrv", value_name = "HOST:PORT")]
    pub namesrv: Option<String>,
    /// Topic to send to
    #[arg(short = 't', long, default_value = "TopicTest")]
    pub topic: String,
}

#[derive(Debug, Args)]
pub struct SizeArgs {
    /// Cores to use
    #[arg(long, value_name = "N")]
    pub shards: Option<String>,
    /// Memory of all caches together, such as 512MiB or 2g
    #[arg(long, value_name = "BYTES")]
    pub memory: Option<String>,
}

#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Address that the ports are opened on [default: 0.0.0.0; standalone outside of a container: 127.0.0.1]
    #[arg(long, value_name = "ADDR")]
    pub bind: Option<String>,
    #[command(flatten)]
    pub keys: KeyArgs,
    /// Print the configuration as a file and exit
    #[arg(short = 'p')]
    pub print: bool,
    /// Print what is not at its default and exit
    #[arg(short = 'm', conflicts_with = "print")]
    pub print_changed: bool,
    /// Least level of what is logged: error, warn, info, debug, trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Shape of a log line: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Log to this file, rotated by size, not to standard error
    #[arg(long, value_name = "PATH")]
    pub log_file: Option<String>,
}

/// Where keys come from.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// Configuration file, in properties syntax
    #[arg(
        short = 'c',
        long = "config",
        value_name = "FILE",
        env = "RINGMQ_CONFIG"
    )]
    pub file: Option<PathBuf>,
    /// Set a key; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// The same without the flag
    #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
    pub trailing: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Directory of the store, which need not be there yet: its file system is measured with a scratch file of 34 MiB
    #[arg(long, value_name = "DIR", default_value = "ringmq-data")]
    pub store: PathBuf,
    /// table or json
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Format,
}

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Read everything and report damage with its place and size.
    Check { path: PathBuf },
    /// Compare the stores of two brokers of a group, both of them stopped.
    ///
    /// Exit code 0 if their logs are the same, 1 if one is shorter, damaged, or another one.
    Compare {
        a: PathBuf,
        b: PathBuf,
        /// One JSON object a log, with a digest of each segment
        #[arg(short = 'o', long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Print what the store holds.
    Dump {
        path: PathBuf,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum TxCommand {
    /// Open transactions, each log's oldest first, one a line.
    List {
        /// Show at most so many, up to 1000
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: i32,
        #[command(flatten)]
        args: TxArgs,
    },
    /// One open transaction, with the properties of its half message.
    Show {
        /// The offset id that `tx list` and the producer have
        id: String,
        #[command(flatten)]
        args: TxArgs,
    },
}

#[derive(Debug, Args)]
pub struct TxArgs {
    /// The broker
    #[arg(
        short = 'b',
        long,
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:10911"
    )]
    pub broker: String,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// All keys with their values, and where each came from.
    List {
        /// What the values are for
        #[arg(long = "as", value_enum, default_value_t = RoleName::Standalone)]
        role: RoleName,
        /// One JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        keys: KeyArgs,
    },
    /// What a key does, its default, unit and bounds.
    Explain { key: String },
    /// Check a file: errors, and keys that do nothing here.
    Check {
        file: PathBuf,
        /// What the file is for
        #[arg(long = "as", value_enum, default_value_t = RoleName::Broker)]
        role: RoleName,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RoleName {
    Standalone,
    Broker,
    Namesrv,
    Controller,
}

impl From<RoleName> for Roles {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Standalone => Self::Standalone,
            RoleName::Broker => Self::Broker,
            RoleName::Namesrv => Self::Namesrv,
            RoleName::Controller => Self::Controller,
        }
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.to_owned()))
        }
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// A flag as a key, its value, and the flag as it was written.
pub type Flag = (String, String, String);

fn push(flags: &mut Vec<Flag>, flag: &str, key: &str, value: &Option<String>) {
    if let Some(value) = value {
        flags.push((key.to_owned(), value.clone(), format!("{flag} {value}")));
    }
}

impl KeyArgs {
    /// The keys of `--set`, which count most: they come last.
    pub fn flags(&self) -> Vec<Flag> {
        let set = self
            .set
            .iter()
            .map(|(key, value)| (key, value, format!("--set {key}={value}")));
        let trailing = self
            .trailing
            .iter()
            .map(|(key, value)| (key, value, format!("{key}={value}")));
        set.chain(trailing)
            .map(|(key, value, flag)| (key.clone(), value.clone(), flag))
            .collect()
    }
}

impl CommonArgs {
    fn push_into(&self, flags: &mut Vec<Flag>) {
        push(flags, "--bind", "bindAddress", &self.bind);
        push(flags, "--log-level", "logLevel", &self.log_level);
        push(flags, "--log-format", "logFormat", &self.log_format);
        push(flags, "--log-file", "logFile", &self.log_file);
        flags.extend(self.keys.flags());
    }
}

impl SizeArgs {
    fn push_into(&self, flags: &mut Vec<Flag>) {
        push(flags, "--shards", "shards", &self.shards);
        push(flags, "--memory", "memory", &self.memory);
    }
}

impl StandaloneArgs {
    pub fn flags(&self) -> Vec<Flag> {
        let mut flags = Vec::new();
        push(&mut flags, "--store", "storePathRootDir", &self.store);
        push(
            &mut flags,
            "--namesrv-port",
            "namesrvListenPort",
            &self.namesrv_port,
        );
        push(&mut flags, "--port", "listenPort", &self.port);
        self.size.push_into(&mut flags);
        self.common.push_into(&mut flags);
        flags
    }
}

impl BrokerArgs {
    pub fn flags(&self) -> Vec<Flag> {
        let mut flags = Vec::new();
        push(&mut flags, "-n", "namesrvAddr", &self.namesrv);
        push(&mut flags, "--store", "storePathRootDir", &self.store);
        push(&mut flags, "--port", "listenPort", &self.port);
        self.size.push_into(&mut flags);
        self.common.push_into(&mut flags);
        flags
    }
}

impl NamesrvArgs {
    pub fn flags(&self) -> Vec<Flag> {
        let mut flags = Vec::new();
        push(&mut flags, "--port", "listenPort", &self.port);
        self.common.push_into(&mut flags);
        flags
    }
}

impl ControllerArgs {
    pub fn flags(&self) -> Vec<Flag> {
        let mut flags = Vec::new();
        push(&mut flags, "--port", "listenPort", &self.port);
        push(&mut flags, "--store", "controllerStorePath", &self.store);
        push(&mut flags, "--peers", "controllerDLegerPeers", &self.peers);
        push(&mut flags, "--id", "controllerDLegerSelfId", &self.id);
        self.common.push_into(&mut flags);
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }
}
