//! The log: one line per event, as text or JSON, to standard error or to a file that is rotated by its size.
//!
//! Nothing on the path of a message logs. A log that cannot be written is no reason to stop a broker: the error is dropped,
//! and the next HUP or rotation opens the file again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::base::config::NodeSettings;
use crate::base::config::value::LogFormat;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(
        "logLevel={level}: {reason}; expected error, warn, info, debug or trace, or filters such as info,ringmq::store=debug"
    )]
    Level { level: String, reason: String },
    #[error("the log file {} cannot be opened ({source}); choose another with --log-file", path.display())]
    File { path: PathBuf, source: io::Error },
}

/// Opens the log file again, if there is one.
#[derive(Clone, Default)]
pub struct LogHandle(Option<Arc<LogFile>>);

impl LogHandle {
    /// For HUP: whoever moved the file away gets a new one.
    pub fn reopen(&self) {
        if let Some(file) = &self.0 {
            file.reopen();
        }
    }
}

/// The filter of `logLevel`. A bare word has to be a level: the crate would take a typing error for a module's name.
pub fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let error = |reason: String| LogError::Level {
        level: level.to_owned(),
        reason,
    };
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for part in level.split(',').map(str::trim) {
        let word = part.rsplit_once('=').map_or(part, |(_, level)| level);
        if !LEVELS.contains(&word.to_ascii_lowercase().as_str()) {
            return Err(error(format!("{word:?} is no level")));
        }
    }
    // What the Raft library tells is for its makers; the controller says what it means. A filter that names it shows it.
    let quiet = if level.contains("openraft") {
        ""
    } else {
        ",openraft=off"
    };
    EnvFilter::try_new(format!("{level}{quiet}")).map_err(|cause| error(cause.to_string()))
}

/// Starts the log of this process. Call once.
pub fn start(node: &NodeSettings) -> Result<LogHandle, LogError> {
    let filter = filter(&node.log_level)?;
    let (handle, writer, colour) = if node.log_file.as_os_str().is_empty() {
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        (LogHandle(None), BoxMakeWriter::new(io::stderr), colour)
    } else {
        let file = LogFile::open(&node.log_file, node.log_file_bytes_max, node.log_files_kept)
            .map_err(|source| LogError::File {
                path: node.log_file.clone(),
                source,
            })?;
        let file = Arc::new(file);
        let writer = BoxMakeWriter::new(FileWriter(file.clone()));
        (LogHandle(Some(file)), writer, false)
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(writer);
    // A second start in one process (tests) keeps the first log.
    let _ = match node.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(handle)
}

struct FileWriter(Arc<LogFile>);

impl<'a> MakeWriter<'a> for FileWriter {
    type Writer = &'a LogFile;

    fn make_writer(&'a self) -> &'a LogFile {
        &self.0
    }
}

/// A file that is renamed to `NAME.1`, `NAME.2`, .. when it has grown to its bound.
struct LogFile {
    path: PathBuf,
    bytes_max: u64,
    kept: u32,
    open: Mutex<Open>,
}

struct Open {
    file: File,
    bytes: u64,
}

impl Open {
    fn new(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes })
    }
}

impl LogFile {
    fn open(path: &Path, bytes_max: u64, kept: u32) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            bytes_max,
            kept,
            open: Mutex::new(Open::new(path)?),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reopen(&self) {
        if let Ok(open) = Open::new(&self.path) {
            *self.lock() = open;
        }
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    fn rotate(&self, open: &mut Open) -> io::Result<()> {
        for number in (1..self.kept).rev() {
            let _ = fs::rename(self.numbered(number), self.numbered(number + 1));
        }
        if self.kept > 0 {
            fs::rename(&self.path, self.numbered(1))?;
        } else {
            fs::remove_file(&self.path)?;
        }
        *open = Open::new(&self.path)?;
        Ok(())
    }
}

impl Write for &LogFile {
    /// One call is one event: the formatter hands over whole lines.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut open = self.lock();
        if open.bytes > 0 && open.bytes + line.len() as u64 > self.bytes_max {
            // If it cannot be rotated the old file goes on: a longer log is better than none.
            let _ = self.rotate(&mut open);
        }
        open.file.write_all(line)?;
        open.bytes += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;

    #[test]
    fn a_log_file_is_rotated_between_lines_and_old_ones_are_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/broker.log");
        let file = LogFile::open(&path, 10, 2).unwrap();
        for line in ["aaaa\n", "bbbb\n", "cccc\n", "dddddddddddddddd\n", "eeee\n"] {
            (&file).write_all(line.as_bytes()).unwrap();
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(read(&path), "eeee\n");
        assert_eq!(read(&file.numbered(1)), "dddddddddddddddd\n");
        assert_eq!(read(&file.numbered(2)), "cccc\n");
        assert!(!file.numbered(3).exists());

        let long = LogFile::open(&directory.path().join("long"), 1, 2).unwrap();
        (&long).write_all(b"longer than the bound\n").unwrap();
        assert!(!long.numbered(1).exists(), "an empty file is not rotated");
    }

    #[test]
    fn after_a_reopen_lines_go_to_a_new_file_and_an_old_one_is_continued() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("log"), directory.path().join("moved"));
        let file = LogFile::open(&path, 1 << 20, 1).unwrap();
        (&file).write_all(b"one\n").unwrap();
        fs::rename(&path, &moved).unwrap();
        (&file).write_all(b"two\n").unwrap();
        file.reopen();
        (&file).write_all(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&moved).unwrap(), "one\ntwo\n");
        drop(file);
        let file = LogFile::open(&path, 1 << 20, 1).unwrap();
        (&file).write_all(b"four\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\nfour\n");
    }

    #[test]
    fn the_raft_library_is_silent_unless_it_is_named() {
        let shown = |level| filter(level).unwrap().to_string();
        assert!(shown("debug").contains("openraft=off"));
        assert!(shown("warn,ringmq=info").contains("openraft=off"));
        assert!(!shown("info,openraft=info").contains("openraft=off"));
    }

    #[test]
    fn a_level_that_is_none_is_refused() {
        for level in [
            "info",
            "WARN",
            "info,ringmq::store=debug",
            "ringmq=trace",
            "off",
        ] {
            assert!(filter(level).is_ok(), "{level}");
        }
        for level in ["infoo", "", "ringmq=loud", "info,", "info debug"] {
            assert!(filter(level).is_err(), "{level}");
        }
    }
}
