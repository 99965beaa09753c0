//! `ringmq store ...`: looks into a store that no broker uses at the moment.

use std::path::Path;

use crate::app::run::Exit;
use crate::io::preflight::StoreLock;

/// `ringmq store check PATH`: exit code 0 if all is well, 1 if there is damage.
pub fn check(path: &Path) -> Exit {
    with_lock(path, |_| not_built("check"))
}

/// `ringmq store dump PATH [--json]`.
pub fn dump(path: &Path, json: bool) -> Exit {
    let _ = json;
    with_lock(path, |_| not_built("dump"))
}

/// The reader of stores is called here: `crate::store::tool::{check, dump}`.
fn not_built(verb: &str) -> Exit {
    Exit::Failed.because(&format!("store {verb} is not built yet"))
}

/// A broker that writes would make every answer wrong, so the store is ours while we read it.
fn with_lock(path: &Path, read: impl FnOnce(&Path) -> Exit) -> Exit {
    if !path.is_dir() {
        return Exit::Failed.because(&format!("{} is no directory of a store", path.display()));
    }
    // A directory without a lock was never a store of ours: the reader says so, and nothing is written into it.
    if !path.join(StoreLock::FILE).exists() {
        return read(path);
    }
    match StoreLock::take(path) {
        Ok(_lock) => read(path),
        Err(obstacle) => Exit::Failed.because(&obstacle.to_string()),
    }
}
