//! What operators do: the verbs of the command line, mqadmin's old commands, offset resets of groups that consume, and
//! attacks on the admin requests that RocketMQ once fell for.

use std::process::Output;

use serde_json::Value;

use crate::node::{Node, broker_command};

mod attacks;
mod mqadmin;
mod resets;
mod verbs;

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// Standard output of a command that did what it was asked.
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    pub fn json(self) -> Value {
        let out = self.ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    /// One JSON object a line.
    fn json_lines(self) -> Vec<Value> {
        let lines = self.ok();
        let lines = lines.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// Runs the binary against a node. Standard input is no terminal.
pub fn ringmq(node: &Node, arguments: &[&str]) -> Ran {
    let Output {
        status,
        stdout,
        stderr,
    } = broker_command()
        .args(arguments)
        .env("NAMESRV_ADDR", node.namesrv.to_string())
        .output()
        .unwrap();
    Ran {
        code: status.code().expect("an exit and no signal"),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}
