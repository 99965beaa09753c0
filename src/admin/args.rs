//! The command line of the admin commands: nouns, verbs and flags. No logic.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Commands for a running cluster.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Topics of a running cluster: list, show, stats, create, delete.
    Topic(Noun<TopicVerb>),
    /// Consumer groups: who is in them, what they subscribe, how far they are behind.
    Group(Noun<GroupVerb>),
    /// Messages: get one, find by key, print a part of a queue, send.
    Message(Noun<MessageVerb>),
    /// Dead letters of a group: list, show, export, send again.
    Dlq(Noun<DlqVerb>),
    /// Consumer offsets: show, reset, skip, clone.
    Offset(Noun<OffsetVerb>),
    /// Of `ringmq broker`, which starts one without a verb.
    #[command(skip)]
    Broker(BrokerVerb),
    /// Clusters and their brokers.
    Cluster(Noun<ClusterVerb>),
    /// RocketMQ's mqadmin: its everyday commands with their old names, flags and output.
    #[command(disable_help_flag = true)]
    Mqadmin(OldCommand),
}

/// A noun with its verb; the common flags may stand before or behind the verb.
#[derive(Debug, Args)]
pub struct Noun<V: Subcommand> {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub verb: V,
}

#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Name servers, between semicolons
    #[arg(
        short = 'n',
        long = "namesrv",
        value_name = "HOST:PORT",
        env = "NAMESRV_ADDR",
        default_value = "127.0.0.1:9876",
        global = true
    )]
    pub namesrv: String,
    /// Shape of what is printed
    #[arg(
        short = 'o',
        long,
        value_enum,
        value_name = "FORMAT",
        default_value = "table",
        global = true
    )]
    pub output: Format,
    /// How long to wait for each answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10_000, global = true)]
    pub timeout: u64,
}

/// Shape of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For scripts: times in milliseconds since 1970, no number cut short
    Json,
}

/// What destroys or repeats something shows first what it would do, and wants a yes.
#[derive(Clone, Copy, Debug, Args)]
pub struct Confirm {
    /// Do it without asking
    #[arg(short = 'y', long)]
    pub yes: bool,
    /// Show what would be done, and do nothing
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
}

/// Which brokers; all of the name server's clusters without these.
#[derive(Clone, Debug, Default, Args)]
pub struct Where {
    /// Only this broker
    #[arg(short = 'b', long, value_name = "HOST:PORT")]
    pub broker: Option<String>,
    /// Only the brokers of this cluster
    #[arg(short = 'c', long, value_name = "NAME", conflicts_with = "broker")]
    pub cluster: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum TopicVerb {
    /// Names of topics and what kind each is.
    List {
        /// With retry topics, dead letter topics and those of the brokers
        #[arg(short, long)]
        all: bool,
    },
    /// Route, configuration and consumers of a topic.
    Show { topic: String },
    /// Offsets of each queue of a topic.
    Stats { topic: String },
    /// Create a topic, or change one that is there: only what is given changes.
    Create {
        topic: String,
        /// Queues to read and to write
        #[arg(short, long, value_name = "N")]
        queues: Option<u32>,
        #[arg(long, value_name = "N")]
        read_queues: Option<u32>,
        #[arg(long, value_name = "N")]
        write_queues: Option<u32>,
        /// 2 write, 4 read, 6 both
        #[arg(long, value_name = "BITS")]
        perm: Option<i32>,
        /// Messages of a key keep their queue if a broker is away (order configuration)
        #[arg(long)]
        order: Option<bool>,
        /// Attributes: +key=value to set, -key to remove, between commas
        #[arg(long, value_name = "CHANGES", allow_hyphen_values = true)]
        attributes: Option<String>,
        #[command(flatten)]
        place: Where,
    },
    /// Delete topics with all their messages, on every broker and name server.
    Delete {
        #[arg(required = true)]
        topics: Vec<String>,
        #[command(flatten)]
        confirm: Confirm,
    },
}

#[derive(Debug, Subcommand)]
pub enum GroupVerb {
    /// Consumer groups, their members and lag.
    List {
        /// With the groups of tools and brokers
        #[arg(short, long)]
        all: bool,
    },
    /// Members, subscriptions, and lag of each queue.
    Show { group: String },
    /// Create a group, or change one that is there: only what is given changes.
    Create {
        group: String,
        /// Deliveries after the first one, before a message becomes a dead letter
        #[arg(long, value_name = "N")]
        retry_max_times: Option<i32>,
        #[arg(long, value_name = "N")]
        retry_queues: Option<i32>,
        /// Whether the group may consume at all
        #[arg(long, value_name = "BOOL")]
        consume_enable: Option<bool>,
        #[arg(long, value_name = "BOOL")]
        broadcast_enable: Option<bool>,
        #[arg(long, value_name = "BOOL")]
        orderly: Option<bool>,
        /// Attributes: +key=value to set, -key to remove, between commas
        #[arg(long, value_name = "CHANGES", allow_hyphen_values = true)]
        attributes: Option<String>,
        #[command(flatten)]
        place: Where,
    },
    /// Delete a group with its offsets, retry and dead letter topics.
    Delete {
        group: String,
        /// Keep the group's retry and dead letter topics
        #[arg(long)]
        keep_topics: bool,
        #[command(flatten)]
        confirm: Confirm,
    },
}

#[derive(Debug, Subcommand)]
pub enum MessageVerb {
    /// One message by its offset id, or by its unique key in a topic.
    Get {
        /// Offset id; with --topic also the unique key that the producer got
        id: String,
        #[arg(short, long)]
        topic: Option<String>,
    },
    /// Messages with a key, the newest first.
    Query {
        #[arg(short, long)]
        topic: String,
        #[arg(short, long)]
        key: String,
        #[command(flatten)]
        between: Between,
        /// At most so many of each broker
        #[arg(long, value_name = "N", default_value_t = 64)]
        max: u32,
    },
    /// Print messages of a topic's queues, in the order of each queue. Commits nothing.
    Print {
        #[arg(short, long)]
        topic: String,
        /// Only this queue
        #[arg(short, long, value_name = "ID")]
        queue: Option<i32>,
        /// Only queues of this broker
        #[arg(long, value_name = "NAME")]
        broker_name: Option<String>,
        /// First queue offset; the oldest message without it
        #[arg(long, value_name = "OFFSET", conflicts_with = "begin")]
        from: Option<i64>,
        #[command(flatten)]
        between: Between,
        /// At most so many of each queue
        #[arg(long, value_name = "N", default_value_t = 32)]
        count: u32,
    },
    /// Send one message.
    Send {
        #[arg(short, long)]
        topic: String,
        /// Text of the message
        body: String,
        /// Keys to find it by, between spaces
        #[arg(short, long)]
        keys: Option<String>,
        #[arg(long)]
        tags: Option<String>,
        /// Further properties
        #[arg(short, long = "property", value_name = "NAME=VALUE")]
        properties: Vec<String>,
        /// Only to this broker
        #[arg(long, value_name = "NAME")]
        broker_name: Option<String>,
        #[arg(short, long, value_name = "ID")]
        queue: Option<i32>,
    },
}

/// A range of store times. A time is a date (2026-01-31T08:00, in UTC), milliseconds since 1970, `now`, or -90s, -30m, -2h,
/// -7d.
#[derive(Clone, Debug, Default, Args)]
pub struct Between {
    /// Stored at this time or later
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub begin: Option<String>,
    /// Stored at this time or earlier
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub end: Option<String>,
}

/// Which dead letters; all without these.
#[derive(Clone, Debug, Default, Args)]
pub struct Select {
    /// With this id: offset id, unique key, or the id of the first delivery; may be given several times
    #[arg(long = "id", value_name = "ID")]
    pub ids: Vec<String>,
    /// With this key; may be given several times
    #[arg(short, long = "key", value_name = "KEY")]
    pub keys: Vec<String>,
    #[command(flatten)]
    pub between: Between,
    /// At most so many
    #[arg(long, value_name = "N")]
    pub max: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub enum DlqVerb {
    /// Groups that have dead letters, and how many.
    List,
    /// Dead letters of a group.
    Show {
        group: String,
        #[command(flatten)]
        select: Select,
    },
    /// Send dead letters again, and say for each what came of it. They stay among the dead letters.
    Resend {
        group: String,
        #[command(flatten)]
        select: Select,
        /// Who gets them
        #[arg(long, value_enum, default_value = "group")]
        to: ResendTo,
        /// At most so many a second
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rate: u32,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Write dead letters with properties and bodies to a file, one JSON object a line.
    Export {
        group: String,
        #[command(flatten)]
        select: Select,
        /// File to write, which must not exist; `-` is standard output
        #[arg(short, long, value_name = "FILE", default_value = "-")]
        file: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ResendTo {
    /// Only the group that gave them up: through its retry topic (a group that pops: use topic)
    Group,
    /// All groups of the topic that they came from
    Topic,
}

#[derive(Debug, Subcommand)]
pub enum OffsetVerb {
    /// Committed offsets of a group and its lag, queue by queue.
    Show {
        group: String,
        #[arg(short, long)]
        topic: Option<String>,
    },
    /// Let a group go on elsewhere: at a time, an end of the queues, or an offset. Works while it consumes, too.
    Reset {
        group: String,
        #[arg(short, long)]
        topic: String,
        /// `begin`, `end`, or a time (2026-01-31T08:00 in UTC, milliseconds since 1970, -2h)
        #[arg(
            long,
            value_name = "WHERE",
            allow_hyphen_values = true,
            required_unless_present = "offset"
        )]
        to: Option<String>,
        /// Only this queue
        #[arg(short, long, value_name = "ID")]
        queue: Option<i32>,
        /// Only this broker's queues
        #[arg(long, value_name = "NAME")]
        broker_name: Option<String>,
        /// This offset of one queue
        #[arg(long, value_name = "OFFSET", requires = "queue", conflicts_with = "to")]
        offset: Option<i64>,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Give a group another group's offsets.
    Clone {
        from: String,
        to: String,
        /// Only of this topic
        #[arg(short, long)]
        topic: Option<String>,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Skip everything that a group has not consumed yet.
    Skip {
        group: String,
        #[arg(short, long)]
        topic: String,
        #[command(flatten)]
        confirm: Confirm,
    },
}

#[derive(Debug, Subcommand)]
pub enum BrokerVerb {
    /// Running brokers, their addresses and load.
    List {
        #[command(flatten)]
        common: Common,
    },
    /// All runtime figures of a running broker.
    Status {
        /// Its address, or its name
        broker: String,
        #[command(flatten)]
        common: Common,
    },
    /// Configuration of a running broker.
    #[command(subcommand)]
    Config(BrokerConfigVerb),
}

#[derive(Debug, Subcommand)]
pub enum BrokerConfigVerb {
    /// Keys and values; one key with its name.
    Get {
        /// Its address, or its name
        broker: String,
        key: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Change keys at run time: those that the broker allows.
    Set {
        /// Its address, or its name
        broker: String,
        #[arg(required = true, value_name = "KEY=VALUE")]
        changes: Vec<String>,
        /// Show old and new values, and change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        common: Common,
    },
}

impl BrokerVerb {
    /// The common flags, whichever verb they stand behind.
    pub fn common(&self) -> &Common {
        match self {
            Self::List { common }
            | Self::Status { common, .. }
            | Self::Config(
                BrokerConfigVerb::Get { common, .. } | BrokerConfigVerb::Set { common, .. },
            ) => common,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// Clusters with their brokers and load.
    List,
    /// What the controller knows: masters, epochs, who is in sync, who is alive.
    Status {
        /// Only this broker group
        group: Option<String>,
        #[command(flatten)]
        at: Controllers,
    },
    /// Make another broker the master of its group, without losing anything.
    Elect {
        /// The broker group (brokerName)
        group: String,
        /// Id of the new master [default: whoever is in sync and has most]
        broker: Option<u64>,
        #[command(flatten)]
        at: Controllers,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Let the controller forget brokers that will not come back.
    Forget {
        /// The broker group (brokerName)
        group: String,
        /// Their ids
        #[arg(required = true)]
        brokers: Vec<u64>,
        #[command(flatten)]
        at: Controllers,
        #[command(flatten)]
        confirm: Confirm,
    },
}

/// Where the controllers are.
#[derive(Clone, Debug, Args)]
pub struct Controllers {
    /// Controllers, between semicolons; one is enough to find the leader
    #[arg(
        long = "controller",
        value_name = "HOST:PORT",
        env = "RINGMQ_CONTROLLER_ADDR",
        default_value = "127.0.0.1:9878"
    )]
    addresses: String,
}

impl Controllers {
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.addresses
            .split(';')
            .map(str::trim)
            .filter(|address| !address.is_empty())
    }
}

/// An old command, as it was typed.
#[derive(Debug, Args)]
pub struct OldCommand {
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND AND FLAGS"
    )]
    pub words: Vec<String>,
}
