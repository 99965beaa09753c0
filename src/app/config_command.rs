//! `ringmq config ...`: shows, explains and checks configuration.

use std::path::Path;

use crate::app::cli::{ConfigCommand, KeyArgs};
use crate::app::log;
use crate::app::run::{Exit, load_config, print, sources};
use crate::base::config::value::{Bounds, size};
use crate::base::config::{
    BrokerSettings, Config, ConfigError, KeyClass, NamesrvSettings, NodeSettings, Problem, Roles,
    ServerSettings, Setting, Sources, StoreSettings, classify, env_name, nearest_key,
};

pub fn run(command: &ConfigCommand) -> Exit {
    match command {
        ConfigCommand::List { role, json, keys } => list((*role).into(), *json, keys),
        ConfigCommand::Explain { key } => explain(key),
        ConfigCommand::Check { file, role } => check(file, (*role).into()),
    }
}

fn list(roles: Roles, json: bool, keys: &KeyArgs) -> Exit {
    let config = match load_config(roles, keys.file.as_deref(), keys.flags()) {
        Ok(config) => config,
        Err(error) => return refused(&error),
    };
    print(&if json {
        listing_json(&config)
    } else {
        listing(&config)
    });
    Exit::Stopped
}

fn listing(config: &Config) -> String {
    let entries = config.entries();
    let key_chars = entries
        .iter()
        .map(|entry| entry.key.len())
        .max()
        .unwrap_or(0);
    let value_chars = entries
        .iter()
        .map(|entry| entry.value.chars().count())
        .filter(|chars| *chars <= 40)
        .max()
        .unwrap_or(0);
    let lines: Vec<_> = entries
        .iter()
        .map(|entry| {
            format!(
                "{:key_chars$}  {:value_chars$}  {}",
                entry.key, entry.value, entry.origin
            )
        })
        .collect();
    lines.join("\n")
}

fn listing_json(config: &Config) -> String {
    let entries = config.entries().into_iter().map(|entry| {
        let value = serde_json::json!({ "value": entry.value, "origin": entry.origin.to_string() });
        (entry.key.to_owned(), value)
    });
    serde_json::Value::Object(entries.collect()).to_string()
}

fn explain(key: &str) -> Exit {
    let Some((canonical, class)) = classify(key) else {
        let hint = nearest_key(key).map_or(String::new(), |nearest| {
            format!("; did you mean {nearest}?")
        });
        return Exit::Configuration.because(&format!("unknown key {key}{hint}"));
    };
    let mut text = canonical.to_owned();
    if canonical != key {
        text.push_str(&format!(" ({key} is another spelling of it)"));
    }
    match class {
        KeyClass::Honoured(setting) => text.push_str(&explanation(setting)),
        KeyClass::Ignored(reason) => {
            text.push_str(&format!(
                "\n  A key of RocketMQ that does nothing here: {reason}."
            ));
        }
        KeyClass::Refused(harmless, reason) => text.push_str(&format!(
            "\n  A key of RocketMQ that may only be {} here: {reason}.",
            harmless.join(" or ")
        )),
    }
    print(&text);
    Exit::Stopped
}

fn explanation(setting: &Setting) -> String {
    let default = setting
        .found
        .map(str::to_owned)
        .or_else(|| default_text(setting.key))
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "none".to_owned());
    let readable = match (setting.bounds, default.parse()) {
        (Bounds::Bytes(..) | Bounds::BytesMultiple(..), Ok(bytes)) if bytes > 0 => {
            format!(" ({})", size(bytes))
        }
        _ => String::new(),
    };
    let doc = setting.doc();
    let mut text = format!("\n  {doc}\n  default      {default}{readable}");
    if !setting.unit.is_empty() {
        text.push_str(&format!("\n  unit         {}", setting.unit));
    }
    let bounds = setting.bounds.to_string();
    if !bounds.is_empty() {
        text.push_str(&format!("\n  bounds       {bounds}"));
    }
    let (key, variable) = (setting.key, env_name(setting.key));
    text.push_str(&format!(
        "\n  set it with  {key}=VALUE in the file, {variable}=VALUE, or --set {key}=VALUE"
    ));
    text
}

fn default_text(key: &str) -> Option<String> {
    NodeSettings::default()
        .get(key)
        .or_else(|| ServerSettings::default().get(key))
        .or_else(|| BrokerSettings::default().get(key))
        .or_else(|| StoreSettings::default().get(key))
        .or_else(|| NamesrvSettings::default().get(key))
}

/// Only the file counts here, not the environment of whoever asks.
fn check(file: &Path, roles: Roles) -> Exit {
    let only_file = sources(Some(file), Vec::new()).map(|sources| Sources {
        environment: Vec::new(),
        ..sources
    });
    let loaded = only_file.and_then(|sources| crate::app::run::load_from(roles, &sources));
    let config = match loaded {
        Ok(config) => config,
        Err(error) => return refused(&error),
    };
    if let Err(error) = log::filter(&config.node.log_level) {
        return Exit::Configuration.because(&error.to_string());
    }
    // Warnings without a place are about this machine, not about the file.
    let warnings: Vec<&Problem> = config
        .warnings
        .iter()
        .filter(|warning| warning.origin.is_some())
        .collect();
    for warning in &warnings {
        print(&format!("warning: {warning}"));
    }
    print(&format!(
        "{}: right, {} warnings",
        file.display(),
        warnings.len()
    ));
    Exit::Stopped
}

fn refused(error: &ConfigError) -> Exit {
    Exit::Configuration.because(&error.to_string())
}
