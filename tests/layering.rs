//! The layers of the source tree, as data: an edge that is not in this table is an edit that a reviewer sees.
#![allow(clippy::unwrap_used)] // a test may panic

use std::fs;
use std::path::{Path, PathBuf};

/// What each layer may name, itself apart.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("wire", &["base"]),
    ("io", &["base"]),
    ("store", &["base", "wire", "io"]),
    ("server", &["base", "wire", "io", "store"]),
    // A client's connection is the server layer's, with the roles changed.
    ("client", &["base", "wire", "io", "store", "server"]),
    // The slave stream reads and writes logs; what a replica's acknowledgement is worth is the shard's.
    ("ha", &["base", "wire", "io", "store"]),
    ("shard", &["base", "wire", "io", "store", "ha"]),
    (
        "namesrv",
        &["base", "wire", "io", "store", "server", "client", "shard"],
    ),
    (
        "broker",
        &["base", "wire", "io", "store", "server", "client", "shard"],
    ),
    ("admin", &["base", "wire", "io", "client", "shard"]),
    ("controller", &["base", "wire"]),
    (
        "app",
        &[
            "base",
            "wire",
            "io",
            "store",
            "ha",
            "server",
            "client",
            "shard",
            "namesrv",
            "broker",
            "admin",
            "controller",
        ],
    ),
];

/// Tests that need a layer above: the file and what it names.
const TESTS_MAY_NAME: &[(&str, &str)] = &[("server/tests.rs", "client")];

/// The only places that may name what the executor is made of (the preflight asks the kernel for it), so that everything else runs in the simulator.
const MAY_NAME_RUNTIME: &[&str] = &["io/ring/", "io/preflight.rs"];
const RUNTIME: &[&str] = &["io_uring", "async_task", "crossbeam_queue"];

/// Rust files below a directory of `src`, by path relative to `src`, with their text.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut directories: Vec<PathBuf> = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 20, "the sources are elsewhere");
    found.sort();
    found
}

/// The text without its comments: a comment may name anything. Strings with `//` in them are cut short, which is harmless.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(number, line)| {
        let code = line.split("//").next().unwrap_or(line);
        (number + 1, code)
    })
}

/// Words of a line of code, each with what stands before it.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|character: char| !character.is_alphanumeric() && character != '_')
        .filter(|word| !word.is_empty())
}

fn layer_of(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}

fn report(violations: Vec<String>) {
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

/// The modules that a line names by `crate::`.
fn named_modules(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("crate::").filter_map(|(at, found)| {
        // `$crate::` and `pub(in crate::x)` count as well; a word that merely ends in "crate" does not.
        let before = line[..at].chars().next_back();
        if before.is_some_and(|character| character.is_alphanumeric() || character == '_') {
            return None;
        }
        words(&line[at + found.len()..]).next()
    })
}

#[test]
fn each_layer_names_only_those_below_it() {
    let mut violations = Vec::new();
    for (path, text) in sources() {
        let layer = layer_of(&path);
        if path == "lib.rs" || layer == "bin" {
            continue;
        }
        let Some((_, lower)) = MAY_NAME.iter().find(|(name, _)| *name == layer) else {
            violations.push(format!("{path}: the layer '{layer}' is not in the table"));
            continue;
        };
        for (number, line) in code_lines(&text) {
            for named in named_modules(line) {
                let is_macro = line.contains(&format!("crate::{named}!"));
                let is_excepted = TESTS_MAY_NAME.contains(&(path.as_str(), named));
                if named != layer && !lower.contains(&named) && !is_macro && !is_excepted {
                    violations.push(format!("{path}:{number}: '{layer}' names '{named}'"));
                }
            }
        }
    }
    report(violations);
}

#[test]
fn every_edge_is_visible_to_grep() {
    let mut violations = Vec::new();
    for (path, text) in sources() {
        for (number, line) in code_lines(&text) {
            let squeezed: String = line.split_whitespace().collect();
            for hidden in ["super::super", "crate::{", "usecrate::*", "crateas"] {
                if squeezed.contains(hidden) {
                    violations.push(format!("{path}:{number}: {}", line.trim()));
                }
            }
        }
    }
    report(violations);
}

#[test]
fn the_runtime_is_named_in_few_places() {
    let mut violations = Vec::new();
    for (path, text) in sources() {
        if MAY_NAME_RUNTIME.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        for (number, line) in code_lines(&text) {
            if words(line).any(|word| RUNTIME.contains(&word)) {
                violations.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    report(violations);
}

#[test]
fn unsafe_code_lives_in_io() {
    let mut violations = Vec::new();
    for (path, text) in sources() {
        if layer_of(&path) == "io" || path.ends_with("generated.rs") {
            continue;
        }
        for (number, line) in code_lines(&text) {
            if words(line).any(|word| word == "unsafe") {
                violations.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    report(violations);
}

#[test]
fn sans_io_layers_touch_neither_files_nor_clocks() {
    let forbidden = [
        "std::fs",
        "std::net::Tcp",
        "SystemTime",
        "Instant::now",
        "async fn",
    ];
    let mut violations = Vec::new();
    for (path, text) in sources() {
        if layer_of(&path) != "wire" {
            continue;
        }
        for (number, line) in code_lines(&text) {
            if forbidden.iter().any(|name| line.contains(name)) {
                violations.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    report(violations);
}
