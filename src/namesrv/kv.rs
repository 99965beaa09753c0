//! The key-value table of the name server and its file: RocketMQ's `KVConfigManager` and `kvConfig.json`.
//!
//! A change is in the table at once and is answered when it is on the disk. The file is replaced as a whole (a new one is
//! written and flushed, renamed over the old one, and the directory is flushed), by one task at a time: what comes
//! while it writes goes into the next file together. A damaged file stops the start; it is never overwritten.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::base::limits::SECTOR_BYTES;
use crate::io::env::{DiskFile, Env, OpenMode};
use crate::wire::remoting::body::KVConfigSerializeWrapper;
use crate::wire::remoting::json;

/// Namespace whose keys are topics and whose values are `broker:queues;broker:queues`.
pub const ORDER_TOPIC_CONFIG: &str = "ORDER_TOPIC_CONFIG";
/// Greatest file. It is read and written as a whole, and one answer has to hold a namespace.
pub const KV_FILE_BYTES_MAX: u64 = 16 << 20;
/// Greatest sum of all names and values, so that their JSON (at most 6 bytes for one) has room in the file.
pub const KV_TEXT_BYTES_MAX: usize = 1 << 20;

/// What can go wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    #[error("the key-value file {} cannot be {action}: {source}", path.display())]
    Io {
        path: PathBuf,
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "the key-value file {} is damaged: {reason}. Restore it from a copy, or move it away to start with an empty table",
        path.display()
    )]
    Damaged { path: PathBuf, reason: String },
}

/// A table that has become too large.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the key-value table would have {bytes} bytes of names and values, the limit is {KV_TEXT_BYTES_MAX}; delete some keys"
)]
pub struct KvFull {
    pub bytes: usize,
}

type Waiter = Box<dyn FnOnce(Result<(), String>)>;

struct Inner<E: Env> {
    env: E,
    path: PathBuf,
    table: RefCell<KVConfigSerializeWrapper>,
    text_bytes: Cell<usize>,
    /// Those whose change is in the table and not yet in the file.
    waiters: RefCell<Vec<Waiter>>,
    writing: Cell<bool>,
    /// The directory exists and survives a loss of power.
    directory_is_durable: Cell<bool>,
}

/// See the module's page. Cloning gives another handle.
pub struct KvStore<E: Env>(Rc<Inner<E>>);

impl<E: Env> Clone for KvStore<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Env> KvStore<E> {
    /// Reads the file; no file is an empty table.
    pub async fn load(env: E, path: &Path) -> Result<Self, KvError> {
        let table = read(&env, path).await?;
        let text_bytes = table.config_table.iter().fold(0, |sum, (namespace, keys)| {
            keys.iter()
                .fold(sum + namespace.len(), |sum, (key, value)| {
                    sum + key.len() + value.len()
                })
        });
        Ok(Self(Rc::new(Inner {
            env,
            path: path.to_owned(),
            table: RefCell::new(table),
            text_bytes: Cell::new(text_bytes),
            waiters: RefCell::new(Vec::new()),
            writing: Cell::new(false),
            directory_is_durable: Cell::new(false),
        })))
    }

    /// A value.
    pub fn get(&self, namespace: &str, key: &str) -> Option<String> {
        let table = self.0.table.borrow();
        table.config_table.get(namespace)?.get(key).cloned()
    }

    /// Looks at all keys of a namespace; `None` if it never had one.
    pub fn with_namespace<T>(
        &self,
        namespace: &str,
        look: impl FnOnce(Option<&BTreeMap<String, String>>) -> T,
    ) -> T {
        look(self.0.table.borrow().config_table.get(namespace))
    }

    /// Sets a value, and calls back when it is durable or with the reason why it is not.
    pub fn put(
        &self,
        namespace: &str,
        key: &str,
        value: &str,
        done: impl FnOnce(Result<(), String>) + 'static,
    ) -> Result<(), KvFull> {
        {
            let mut table = self.0.table.borrow_mut();
            let known = table.config_table.get(namespace);
            let known_value = known.and_then(|keys| keys.get(key));
            let added = value.len()
                + known.map_or(namespace.len(), |_| 0)
                + known_value.map_or(key.len(), |_| 0);
            let bytes = (self.0.text_bytes.get() + added)
                .saturating_sub(known_value.map_or(0, String::len));
            if bytes > KV_TEXT_BYTES_MAX {
                return Err(KvFull { bytes });
            }
            self.0.text_bytes.set(bytes);
            table
                .config_table
                .entry(namespace.to_owned())
                .or_default()
                .insert(key.to_owned(), value.to_owned());
        }
        self.persist(Box::new(done));
        Ok(())
    }

    /// Removes a value, if it is there, and calls back as [`KvStore::put`]. A namespace stays, without keys, as in RocketMQ.
    pub fn delete(
        &self,
        namespace: &str,
        key: &str,
        done: impl FnOnce(Result<(), String>) + 'static,
    ) {
        let removed = self
            .0
            .table
            .borrow_mut()
            .config_table
            .get_mut(namespace)
            .and_then(|keys| keys.remove(key));
        match removed {
            Some(value) => {
                let bytes = self.0.text_bytes.get();
                self.0
                    .text_bytes
                    .set(bytes.saturating_sub(key.len() + value.len()));
                self.persist(Box::new(done));
            }
            None => done(Ok(())),
        }
    }

    fn persist(&self, done: Waiter) {
        self.0.waiters.borrow_mut().push(done);
        if !self.0.writing.replace(true) {
            let store = self.clone();
            self.0.env.spawn(async move { store.write_all().await });
        }
    }

    async fn write_all(&self) {
        let inner = &self.0;
        loop {
            let waiters = inner.waiters.take();
            if waiters.is_empty() {
                inner.writing.set(false);
                return;
            }
            let mut text = json::to_standard_vec(&*inner.table.borrow());
            text.push(b'\n');
            let result = inner.replace_file(&text).await;
            if let Err(error) = &result {
                tracing::error!("{error}; the change is in memory and is lost with this process");
            }
            let result = result.map_err(|error| {
                format!("{error}. The change holds until the name server stops; repeat it when the disk is repaired")
            });
            for waiter in waiters {
                waiter(result.clone());
            }
        }
    }
}

impl<E: Env> Inner<E> {
    /// Replaces the file as a whole and durably.
    async fn replace_file(&self, text: &[u8]) -> Result<(), KvError> {
        let env = &self.env;
        let failed = |action| {
            move |source| KvError::Io {
                path: self.path.clone(),
                action,
                source,
            }
        };
        let directory = parent(&self.path);
        if !self.directory_is_durable.get() {
            let made = failed("given a directory");
            env.create_dir(directory).await.map_err(made)?;
            // Each directory that was made is an entry of the one above it.
            for above in directory.ancestors().skip(1) {
                let above = if above.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    above
                };
                match env.sync_dir(above).await {
                    Ok(()) => {}
                    // Where we may not look we have made nothing.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                    Err(error) => return Err(failed("given a durable directory")(error)),
                }
            }
            self.directory_is_durable.set(true);
        }
        let mut name = OsString::from(&self.path);
        name.push(".tmp");
        let new_path = PathBuf::from(name);
        let create = OpenMode {
            create: true,
            ..OpenMode::default()
        };
        let file = env.open(&new_path, create).await;
        let file = file.map_err(failed("created"))?;
        let mut pages = env.alloc(text.len().next_multiple_of(SECTOR_BYTES));
        pages.as_mut()[..text.len()].copy_from_slice(text);
        pages.as_mut()[text.len()..].fill(0);
        let written = file.write_at(Rc::new(pages), 0).await;
        written.map_err(failed("written"))?;
        let cut = file.truncate(text.len() as u64).await;
        cut.map_err(failed("cut to its length"))?;
        file.sync().await.map_err(failed("flushed"))?;
        let renamed = env.rename(&new_path, &self.path).await;
        renamed.map_err(failed("renamed into place"))?;
        let kept = env.sync_dir(directory).await;
        kept.map_err(failed("made durable in its directory"))
    }
}

/// The directory that holds a path.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

async fn read<E: Env>(env: &E, path: &Path) -> Result<KVConfigSerializeWrapper, KvError> {
    let failed = |source| KvError::Io {
        path: path.to_owned(),
        action: "read",
        source,
    };
    let damaged = |reason| KvError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let file = match env.open(path, OpenMode::default()).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(KVConfigSerializeWrapper::default());
        }
        Err(error) => return Err(failed(error)),
    };
    let bytes = file.len().await.map_err(failed)?;
    if bytes > KV_FILE_BYTES_MAX {
        return Err(damaged(format!(
            "it has {bytes} bytes, the limit is {KV_FILE_BYTES_MAX}"
        )));
    }
    if bytes == 0 {
        return Err(damaged("it is empty".to_owned()));
    }
    let wanted = bytes as usize;
    let read = file
        .read_at(0, wanted.next_multiple_of(SECTOR_BYTES))
        .await
        .map_err(failed)?;
    let text = read
        .get(..wanted)
        .ok_or_else(|| damaged(format!("{} of its {bytes} bytes could be read", read.len())))?;
    let value = json::parse(text).map_err(|error| damaged(error.to_string()))?;
    // Serde would take an array for a struct whose fields all have defaults.
    if !value.is_object() {
        return Err(damaged("it is not a JSON object".to_owned()));
    }
    serde_json::from_value(value).map_err(|error| damaged(error.to_string()))
}

#[cfg(test)]
mod tests;
