//! `ringmq store ...`: looks into a store that no broker uses at the moment.

use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;

use crate::admin::args::Format;
use crate::app::run::Exit;
use crate::io::preflight::StoreLock;
use crate::shard::executor::run_once;
use crate::store::compare;
use crate::store::tool::{self, LogReport};

/// `ringmq store check PATH`: exit code 0 if all is well, 1 if there is damage.
pub fn check(path: &Path) -> Exit {
    with_lock(path, |path| read(path, Verb::Check))
}

/// `ringmq store dump PATH [--json]`.
pub fn dump(path: &Path, json: bool) -> Exit {
    with_lock(path, |path| read(path, Verb::Dump { json }))
}

/// `ringmq store compare A B`: exit code 0 if both have the same, 1 if not.
pub fn compare(a: &Path, b: &Path, output: Format) -> Exit {
    with_lock(a, |a| with_lock(b, |b| compare_both(a, b, output)))
}

fn compare_both(a: &Path, b: &Path, output: Format) -> Exit {
    let (a, b) = (a.to_owned(), b.to_owned());
    let result = run_once(move |env| async move {
        let found = compare::compare(&env, &a, &b).await?;
        let mut out = BufWriter::new(std::io::stdout().lock());
        for log in &found {
            match output {
                Format::Json => writeln!(out, "{}", log.to_json())?,
                Format::Table => writeln!(out, "{log}")?,
            }
        }
        out.flush()?;
        Ok(found.iter().all(compare::Comparison::is_equal))
    });
    exit(result, "the stores are not the same")
}

enum Verb {
    Check,
    Dump { json: bool },
}

/// Reads the store on an executor of its own.
fn read(path: &Path, verb: Verb) -> Exit {
    let path = path.to_owned();
    let result = run_once(move |env| async move {
        let mut out = BufWriter::new(std::io::stdout().lock());
        let reports = match verb {
            Verb::Check => tool::check(&env, &path, &mut out).await,
            Verb::Dump { json } => tool::dump(&env, &path, json, &mut out).await,
        };
        reports.and_then(|reports| {
            out.flush()?;
            Ok(reports.iter().all(LogReport::is_sound))
        })
    });
    exit(result, "the store is damaged")
}

fn exit(result: Result<std::io::Result<bool>, String>, otherwise: &str) -> Exit {
    match result {
        Ok(Ok(true)) => Exit::Stopped,
        Ok(Ok(false)) => Exit::Failed.because(otherwise),
        // Whoever reads us has seen enough, as in `ringmq store dump | head`.
        Ok(Err(error)) if error.kind() == ErrorKind::BrokenPipe => Exit::Stopped,
        Ok(Err(error)) => Exit::Failed.because(&error.to_string()),
        Err(error) => Exit::Failed.because(&error),
    }
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
