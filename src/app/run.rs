//! From the command line to an exit code.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::{CommandFactory, Parser};

use crate::admin::args::AdminCommand;
use crate::admin::{self, AdminError};
use crate::app::cli::{Cli, Command, CommonArgs, Flag, StoreCommand};
use crate::app::log::{self, LogHandle};
use crate::app::node::RunError;
use crate::app::shutdown::{Phase, Shutdown};
use crate::app::supervisor;
use crate::app::{
    config_command, controlled, controller_command, doctor, node, store_command, try_command,
    tx_command,
};
use crate::base::config::{
    Config, ConfigError, Machine, Origin, Problem, Roles, Sources, load, properties,
};
use crate::io::preflight::{self, Needs, Report, StoreNeeds};
use crate::io::process::{self, Signal, Signals};
use crate::wire::remoting::code::response;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did what it was asked, stopping included.
    Stopped,
    /// It could not start, or could not go on.
    Failed,
    /// The command line is wrong.
    Usage,
    /// What was asked for is not there.
    NotFound,
    /// Some of it was done, some failed; which is in the output.
    Partly,
    /// The configuration is wrong: EX_CONFIG of sysexits.
    Configuration,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Partly => 4,
            Self::Configuration => 78,
        }
    }

    /// Says why on standard error, a line each.
    pub fn because(self, reason: &str) -> Self {
        for line in reason.lines() {
            let _ = writeln!(std::io::stderr(), "ringmq: {line}");
        }
        self
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// Writes a line to standard output. Whoever closed the pipe has read enough, so that is no failure.
pub fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush())
        && error.kind() != ErrorKind::BrokenPipe
    {
        let _ = writeln!(std::io::stderr(), "ringmq: standard output: {error}");
    }
}

/// Everything that `ringmq` does.
pub fn main() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Stopped
            };
        }
    };
    match cli.command {
        Command::Standalone(args) => run(Roles::Standalone, args.flags(), &args.common),
        Command::Namesrv(args) => run(Roles::Namesrv, args.flags(), &args.common),
        Command::Broker(args) => match args.verb {
            Some(verb) => admin_command(AdminCommand::Broker(verb)),
            None => run(Roles::Broker, args.flags(), &args.common),
        },
        Command::Controller(args) => run(Roles::Controller, args.flags(), &args.common),
        Command::Admin(command) => admin_command(command),
        Command::Try(args) => try_command::run(&args),
        Command::Store(StoreCommand::Check { path }) => store_command::check(&path),
        Command::Store(StoreCommand::Compare { a, b, output }) => {
            store_command::compare(&a, &b, output)
        }
        Command::Store(StoreCommand::Dump { path, json }) => store_command::dump(&path, json),
        Command::Doctor(args) => doctor::run(&args.store, args.output),
        Command::Tx(command) => tx_command::run(command),
        Command::Config(command) => config_command::run(&command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ringmq", &mut script);
            print(String::from_utf8_lossy(&script).trim_end());
            Exit::Stopped
        }
    }
}

/// Runs a command for a running cluster.
fn admin_command(command: AdminCommand) -> Exit {
    let Err(error) = admin::run(command) else {
        return Exit::Stopped;
    };
    let exit = match &error {
        AdminError::NotFound(_) => Exit::NotFound,
        AdminError::Refused {
            code:
                response::TOPIC_NOT_EXIST
                | response::QUERY_NOT_FOUND
                | response::SUBSCRIPTION_GROUP_NOT_EXIST
                | response::CONSUMER_NOT_ONLINE,
            ..
        } => Exit::NotFound,
        AdminError::Usage(_) => Exit::Usage,
        AdminError::Partly(_) => Exit::Partly,
        AdminError::Failed(_) | AdminError::Refused { .. } => Exit::Failed,
    };
    exit.because(&error.to_string())
}

fn run(roles: Roles, flags: Vec<Flag>, args: &CommonArgs) -> Exit {
    let config = match load_config(roles, args.keys.file.as_deref(), flags) {
        Ok(config) => config,
        Err(error) => return Exit::Configuration.because(&error.to_string()),
    };
    if args.print {
        print(config.properties_text().trim_end());
        return Exit::Stopped;
    }
    if args.print_changed {
        print(&changed_text(&config));
        return Exit::Stopped;
    }
    // Before the first thread, since threads inherit what is blocked.
    let signals = match Signals::block() {
        Ok(signals) => signals,
        Err(error) => return Exit::Failed.because(&format!("signals cannot be blocked: {error}")),
    };
    let log = match log::start(&config.node) {
        Ok(log) => log,
        Err(error @ log::LogError::Level { .. }) => {
            return Exit::Configuration.because(&error.to_string());
        }
        Err(error) => return Exit::Failed.because(&error.to_string()),
    };
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let report = preflight::check(&needs(&config));
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    if !report.obstacles.is_empty() {
        let lines: Vec<_> = report
            .obstacles
            .iter()
            .map(|obstacle| format!("cannot start: {obstacle}"))
            .collect();
        return Exit::Failed.because(&lines.join("\n"));
    }
    run_node(Arc::new(config), signals, log, report)
}

/// Runs a node on a machine that was checked. The lock on the store is given back when all has ended.
fn run_node(config: Arc<Config>, signals: Signals, log: LogHandle, report: Report) -> Exit {
    let shutdown = Shutdown::new();
    let drain = Duration::from_secs(config.server.drain_s);
    let handle = shutdown.clone();
    let listener = thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || take_signals(&signals, &log, &handle, drain));
    if let Err(error) = listener {
        return Exit::Failed.because(&format!("no thread for signals: {error}"));
    }
    let roles = config.roles;
    let result = match roles {
        Roles::Controller => controller_command::run(&config, &shutdown).map_err(RunError::Failed),
        Roles::Broker if config.broker.controller_mode => controlled::run(&config, &shutdown),
        Roles::Broker | Roles::Namesrv | Roles::Standalone => {
            node::start_node(config, roles, shutdown)
        }
    };
    drop(report.lock);
    match result {
        Ok(()) => {
            tracing::info!("stopped");
            Exit::Stopped
        }
        Err(error) => {
            tracing::error!("{error}");
            Exit::Failed.because(&error.to_string())
        }
    }
}

/// The first wish to stop drains, the second one ends the process, and so does the end of the time for it.
fn take_signals(signals: &Signals, log: &LogHandle, shutdown: &Shutdown, drain: Duration) {
    loop {
        match signals.next() {
            Signal::Reopen => {
                log.reopen();
                tracing::info!("HUP: the log was opened again");
            }
            Signal::Stop if shutdown.phase() == Phase::Running => {
                tracing::info!("stopping: what is under way is ended; a second signal stops now");
                supervisor::stopping();
                shutdown.request(Phase::Draining);
                let late = shutdown.clone();
                // If there is no thread for it, the second signal remains.
                let _ = thread::Builder::new()
                    .name("drain-timeout".to_owned())
                    .spawn(move || {
                        thread::sleep(drain);
                        stop_now(
                            &late,
                            "requests under way did not end within shutdownWaitTimeSeconds",
                        );
                    });
            }
            Signal::Stop => stop_now(shutdown, "a second signal"),
        }
    }
}

/// Ends the process. What was acknowledged is on the medium, so nothing is lost but answers.
fn stop_now(shutdown: &Shutdown, why: &str) {
    tracing::warn!("stopping now: {why}");
    shutdown.request(Phase::Now);
    std::process::exit(Exit::Failed.code().into());
}

/// Reads the file and collects everything else that sets keys.
pub fn sources(file: Option<&Path>, flags: Vec<Flag>) -> Result<Sources, ConfigError> {
    let file = match file {
        None => None,
        Some(path) => {
            let text = std::fs::read(path)
                .map_err(|error| error.to_string())
                .and_then(|bytes| {
                    String::from_utf8(bytes).map_err(|error| {
                        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
                            .iter()
                            .filter(|byte| **byte == b'\n')
                            .count();
                        format!("line {} is not UTF-8", line + 1)
                    })
                });
            match text {
                Ok(text) => Some((path.to_owned(), text)),
                Err(reason) => {
                    return Err(ConfigError(vec![Problem {
                        origin: Some(Origin::Flag(format!("-c {}", path.display()))),
                        message: reason,
                    }]));
                }
            }
        }
    };
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    Ok(Sources {
        file,
        environment,
        flags,
    })
}

/// The configuration of this process on this machine.
pub fn load_config(
    roles: Roles,
    file: Option<&Path>,
    flags: Vec<Flag>,
) -> Result<Config, ConfigError> {
    load_from(roles, &sources(file, flags)?)
}

/// The configuration from given sources on this machine.
pub fn load_from(roles: Roles, sources: &Sources) -> Result<Config, ConfigError> {
    let machine = Machine {
        host_name: process::host_name(),
        cores: process::cores(),
        memory_bytes: process::memory_bytes(),
        first_address: process::first_address(),
        in_container: process::in_container(),
        resolve: &process::resolve,
    };
    load(roles, sources, &machine)
}

fn changed_text(config: &Config) -> String {
    let lines: Vec<_> = config
        .entries()
        .iter()
        .filter(|entry| entry.origin != Origin::Default)
        .map(|entry| properties::render(entry.key, &entry.value))
        .collect();
    lines.join("\n")
}

/// What a node with this configuration needs of the machine.
pub fn needs(config: &Config) -> Needs<'_> {
    let at = |port| SocketAddr::new(config.bind_ip, port);
    let mut ports = Vec::new();
    let mut store = None;
    if config.roles.has_namesrv() {
        ports.push(("name server", at(config.namesrv.listen_port)));
    }
    if config.roles.has_broker() {
        ports.push(("broker", at(config.server.listen_port)));
        ports.extend(
            config
                .fast_listen_port()
                .map(|port| ("broker VIP", at(port))),
        );
        let native = config.native_ports().into_iter();
        ports.extend(native.map(|port| ("broker native", at(port))));
        store = Some(StoreNeeds {
            root: &config.store.root,
            new_bytes: config.store.segment_bytes * u64::from(config.store.logs),
        });
    }
    if config.roles == Roles::Controller {
        ports.push(("controller", at(config.controller.listen_port)));
    }
    Needs {
        shards: config.node.shards,
        store,
        ports,
    }
}
