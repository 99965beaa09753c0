//! The files of stores that nobody uses: what `ringmq store compare` says of two of them, and bits that flip.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::node::broker_command;

/// `ringmq store compare`: exit code and a JSON object per log.
pub fn compare(one: &Path, other: &Path) -> (Option<i32>, Vec<Value>) {
    let output = broker_command()
        .args(["store", "compare", "-o", "json"])
        .args([one, other])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let logs = text.lines().map(|line| serde_json::from_str(line).unwrap());
    (output.status.code(), logs.collect())
}

/// The file below a directory that holds these bytes, and where.
fn find_bytes(directory: &Path, wanted: &[u8]) -> Option<(PathBuf, usize)> {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if let Some(found) = find_bytes(&path, wanted) {
                return Some(found);
            }
        } else if let Ok(content) = fs::read(&path)
            && let Some(at) = content.windows(wanted.len()).position(|w| w == wanted)
        {
            return Some((path, at));
        }
    }
    None
}

/// Flips a bit `behind` bytes behind the first of these, which a file of the store has. Tells which file, and where they begin.
pub fn flip_bit(store: &Path, wanted: &[u8], behind: usize) -> (PathBuf, usize) {
    let (file, at) = find_bytes(store, wanted).unwrap();
    let mut content = fs::read(&file).unwrap();
    content[at + behind] ^= 1;
    fs::write(&file, content).unwrap();
    (file, at)
}
