//! What a start prints on standard output: the lines that scripts wait for, worded like RocketMQ's, and a first example.

use std::path::Path;

use crate::base::config::value::{FlushDiskType, size};
use crate::base::config::{Config, host_port};

/// The name server answers requests from now on.
pub fn namesrv_line(config: &Config) -> String {
    let address = host_port(&config.server.bind_address, config.namesrv.listen_port);
    format!("The Name Server boot success. serializeType=JSON, address {address}")
}

/// The broker answers requests from now on, and was offered to its name servers.
pub fn broker_line(config: &Config) -> String {
    let (name, address) = (&config.broker.broker_name, config.broker_address());
    let namesrv = match config.namesrv_addresses_text() {
        none if none.is_empty() => String::new(),
        addresses => format!(" and name server is {addresses}"),
    };
    format!("The broker[{name}, {address}] boot success. serializeType=JSON{namesrv}")
}

/// What a newcomer wants to know next.
pub fn standalone_help(config: &Config) -> String {
    let namesrv = host_port(&config.broker.advertised_host, config.namesrv.listen_port);
    let store = std::path::absolute(&config.store.root).unwrap_or(config.store.root.clone());
    let flush = match config.store.flush {
        FlushDiskType::SyncFlush => "SYNC_FLUSH: what is acknowledged survives a power loss",
        FlushDiskType::AsyncFlush => {
            "ASYNC_FLUSH: what is acknowledged survives a kill of the process"
        }
    };
    let bound = bound_text(config);
    let Config { node, broker, .. } = config;
    format!(
        "\n  name server  {namesrv}\n  broker       {address} ({name} of {cluster}){bound}\n  store        {store}, {flush}\n  size         {shards} shards, {memory} memory at most\n\n\
         Try it with any RocketMQ client, from another terminal:\n\
         \x20 mqadmin sendMessage -n {namesrv} -t TopicTest -p hello\n\
         \x20 mqadmin consumeMessage -n {namesrv} -t TopicTest\n\
         Java:\n\
         \x20 DefaultMQProducer producer = new DefaultMQProducer(\"example\");\n\
         \x20 producer.setNamesrvAddr(\"{namesrv}\");\n\
         \x20 producer.start();\n\
         \x20 producer.send(new Message(\"TopicTest\", \"hello\".getBytes()));\n\
         Ctrl-C stops it.",
        address = config.broker_address(),
        name = broker.broker_name,
        cluster = broker.cluster_name,
        store = shown(&store),
        shards = node.shards,
        memory = size(node.memory_bytes),
    )
}

/// Clients are told one address; say so where the ports are open on others too.
fn bound_text(config: &Config) -> String {
    if config.bind_ip == config.advertised_ip {
        String::new()
    } else {
        format!(", open on {}", config.server.bind_address)
    }
}

/// Quoted where a shell would need it, so that it can be copied.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    if text.contains(char::is_whitespace) {
        format!("'{text}'")
    } else {
        text
    }
}
