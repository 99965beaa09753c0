//! What a controller node must not forget: its vote, its Raft log, and its newest snapshot, in one redb file.
//!
//! Every change is one transaction that is flushed before it counts. The log is small (snapshots cut it off), so all of it is
//! in memory too and only written to the file. Writes are awaited one after the other, on the runtime's blocking threads: a
//! slow disk delays Raft, not the connections. The state itself is in memory; after a start it is the snapshot and what is
//! applied from the log again.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::Cursor;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{LogFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{BasicNode, RaftTypeConfig};
use openraft::{
    Entry, EntryPayload, ErrorSubject, ErrorVerb, LogId, LogState, OptionalSend, RaftLogReader,
    RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageError, StorageIOError, StoredMembership,
    Vote,
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::controller::state::{Change, Groups, Outcome};

openraft::declare_raft_types!(
    /// What Raft is told about this application.
    pub Types:
        D = Change,
        R = Outcome,
        NodeId = u64,
        Node = BasicNode,
);

/// Large, and given by the library's traits: it is made once, when the node's disk has failed.
type Failure = StorageError<u64>;

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const SNAPSHOT: &str = "snapshot";
/// The file itself could not be used; the text names it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DiskError(String);

fn failed(verb: ErrorVerb, error: impl std::error::Error + 'static) -> Failure {
    let error = StorageIOError::new(ErrorSubject::Store, verb, openraft::AnyError::new(&error));
    StorageError::IO { source: error }
}

/// A snapshot as it lies in the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Saved {
    meta: SnapshotMeta<u64, BasicNode>,
    groups: Groups,
}

#[derive(Default)]
struct LogInMemory {
    entries: BTreeMap<u64, Entry<Types>>,
    purged: Option<LogId<u64>>,
    vote: Option<Vote<u64>>,
}

#[derive(Default)]
struct Applied {
    last: Option<LogId<u64>>,
    membership: StoredMembership<u64, BasicNode>,
    groups: Groups,
    snapshot: Option<Saved>,
}

struct Inner {
    file: Database,
    log: Mutex<LogInMemory>,
    applied: Mutex<Applied>,
}

/// The file of a node. Cloning gives another handle.
#[derive(Clone)]
pub struct Disk(Arc<Inner>);

/// The state machine over that file.
#[derive(Clone)]
pub struct Machine(Disk);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it guards is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is to be written in one transaction.
#[derive(Default)]
struct Write {
    put: Vec<(u64, Vec<u8>)>,
    remove: Vec<u64>,
    meta: Vec<(&'static str, Vec<u8>)>,
}

impl Inner {
    fn write(&self, write: &Write) -> Result<(), redb::Error> {
        let transaction = self.file.begin_write()?;
        {
            let mut log = transaction.open_table(LOG)?;
            for index in &write.remove {
                log.remove(index)?;
            }
            for (index, bytes) in &write.put {
                log.insert(index, bytes.as_slice())?;
            }
            let mut meta = transaction.open_table(META)?;
            for (key, bytes) in &write.meta {
                meta.insert(key, bytes.as_slice())?;
            }
        }
        // The default durability of redb: the file is flushed when this returns.
        transaction.commit()?;
        Ok(())
    }
}

impl Disk {
    /// Opens or makes the file in a directory, which is made if need be.
    pub fn open(directory: &Path) -> Result<Self, DiskError> {
        let path = directory.join("controller.redb");
        let named =
            |error: &dyn std::fmt::Display| DiskError(format!("{}: {error}", path.display()));
        std::fs::create_dir_all(directory).map_err(|error| named(&error))?;
        let file = Database::create(&path).map_err(|error| named(&error))?;
        let inner = Inner {
            file,
            log: Mutex::default(),
            applied: Mutex::default(),
        };
        // Makes both tables.
        inner
            .write(&Write::default())
            .map_err(|error| named(&error))?;
        inner.load().map_err(|error| named(&error))?;
        Ok(Self(Arc::new(inner)))
    }

    /// The groups as they are applied here by now.
    pub fn groups(&self) -> GroupsGuard<'_> {
        GroupsGuard(lock(&self.0.applied))
    }

    pub fn machine(&self) -> Machine {
        Machine(self.clone())
    }

    async fn write(&self, verb: ErrorVerb, write: Write) -> Result<(), Failure> {
        let inner = self.0.clone();
        match tokio::task::spawn_blocking(move || inner.write(&write)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(verb, error)),
            Err(error) => Err(failed(verb, error)),
        }
    }
}

/// The groups, as long as this is held.
pub struct GroupsGuard<'a>(MutexGuard<'a, Applied>);

impl std::ops::Deref for GroupsGuard<'_> {
    type Target = Groups;

    fn deref(&self) -> &Groups {
        &self.0.groups
    }
}

fn decoded<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, DiskError> {
    serde_json::from_slice(bytes)
        .map_err(|error| DiskError(format!("its {what} cannot be read: {error}")))
}

#[allow(clippy::result_large_err)] // See Failure.
fn encoded<T: Serialize>(value: &T, verb: ErrorVerb) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|error| failed(verb, error))
}

impl Inner {
    fn load(&self) -> Result<(), DiskError> {
        let wrong = |error: redb::Error| DiskError(error.to_string());
        let transaction = self
            .file
            .begin_read()
            .map_err(|error| wrong(error.into()))?;
        let meta = transaction
            .open_table(META)
            .map_err(|error| wrong(error.into()))?;
        let table = transaction
            .open_table(LOG)
            .map_err(|error| wrong(error.into()))?;
        let found = |key: &str| -> Result<Option<Vec<u8>>, DiskError> {
            let bytes = meta.get(key).map_err(|error| wrong(error.into()))?;
            Ok(bytes.map(|bytes| bytes.value().to_vec()))
        };
        let mut log = lock(&self.log);
        if let Some(bytes) = found(VOTE)? {
            log.vote = Some(decoded("vote", &bytes)?);
        }
        if let Some(bytes) = found(PURGED)? {
            log.purged = decoded("start", &bytes)?;
        }
        for row in table.iter().map_err(|error| wrong(error.into()))? {
            let (index, bytes) = row.map_err(|error| wrong(error.into()))?;
            log.entries
                .insert(index.value(), decoded("log", bytes.value())?);
        }
        if let Some(bytes) = found(SNAPSHOT)? {
            let saved: Saved = decoded("snapshot", &bytes)?;
            let mut applied = lock(&self.applied);
            applied.last = saved.meta.last_log_id;
            applied.membership = saved.meta.last_membership.clone();
            applied.groups = saved.groups.clone();
            applied.snapshot = Some(saved);
        }
        Ok(())
    }
}

impl RaftLogReader<Types> for Disk {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<Types>>, Failure> {
        let bounds: (Bound<u64>, Bound<u64>) =
            (range.start_bound().cloned(), range.end_bound().cloned());
        let log = lock(&self.0.log);
        Ok(log
            .entries
            .range(bounds)
            .map(|(_, entry)| entry.clone())
            .collect())
    }
}

impl RaftLogStorage<Types> for Disk {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, Failure> {
        let log = lock(&self.0.log);
        let last = log.entries.last_key_value().map(|(_, entry)| entry.log_id);
        Ok(LogState {
            last_purged_log_id: log.purged,
            last_log_id: last.or(log.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), Failure> {
        let write = Write {
            meta: vec![(VOTE, encoded(vote, ErrorVerb::Write)?)],
            ..Write::default()
        };
        self.write(ErrorVerb::Write, write).await?;
        lock(&self.0.log).vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, Failure> {
        Ok(lock(&self.0.log).vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), Failure>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut write = Write::default();
        {
            let mut log = lock(&self.0.log);
            for entry in entries {
                let index = entry.log_id.index;
                write.put.push((index, encoded(&entry, ErrorVerb::Write)?));
                log.entries.insert(index, entry);
            }
        }
        let written = self.write(ErrorVerb::Write, write).await;
        match &written {
            Ok(()) => callback.log_io_completed(Ok(())),
            Err(error) => callback.log_io_completed(Err(std::io::Error::other(error.to_string()))),
        }
        written
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), Failure> {
        let removed = lock(&self.0.log).entries.split_off(&log_id.index);
        let write = Write {
            remove: removed.into_keys().collect(),
            ..Write::default()
        };
        self.write(ErrorVerb::Delete, write).await
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<(), Failure> {
        let removed = {
            let mut log = lock(&self.0.log);
            let kept = log.entries.split_off(&(log_id.index + 1));
            log.purged = Some(log_id);
            std::mem::replace(&mut log.entries, kept)
        };
        let write = Write {
            remove: removed.into_keys().collect(),
            meta: vec![(PURGED, encoded(&Some(log_id), ErrorVerb::Delete)?)],
            ..Write::default()
        };
        self.write(ErrorVerb::Delete, write).await
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, Failure> {
        let saved = {
            let applied = lock(&self.0.0.applied);
            let id = applied.last.map_or("0".to_owned(), |last| {
                format!("{}-{}", last.leader_id, last.index)
            });
            Saved {
                meta: SnapshotMeta {
                    last_log_id: applied.last,
                    last_membership: applied.membership.clone(),
                    snapshot_id: id,
                },
                groups: applied.groups.clone(),
            }
        };
        self.save(saved).await
    }
}

impl Machine {
    async fn save(&mut self, saved: Saved) -> Result<Snapshot<Types>, Failure> {
        let write = Write {
            meta: vec![(SNAPSHOT, encoded(&saved, ErrorVerb::Write)?)],
            ..Write::default()
        };
        self.0.write(ErrorVerb::Write, write).await?;
        lock(&self.0.0.applied).snapshot = Some(saved.clone());
        as_snapshot(&saved)
    }
}

#[allow(clippy::result_large_err)] // See Failure.
fn as_snapshot(saved: &Saved) -> Result<Snapshot<Types>, Failure> {
    Ok(Snapshot {
        meta: saved.meta.clone(),
        snapshot: Box::new(Cursor::new(encoded(&saved.groups, ErrorVerb::Read)?)),
    })
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, BasicNode>), Failure> {
        let applied = lock(&self.0.0.applied);
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, Failure>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut applied = lock(&self.0.0.applied);
        let mut outcomes = Vec::new();
        for entry in entries {
            applied.last = Some(entry.log_id);
            outcomes.push(match entry.payload {
                EntryPayload::Blank => Outcome::Nothing,
                EntryPayload::Normal(change) => {
                    let term = entry.log_id.leader_id.term;
                    applied.groups.apply_in(term, &change)
                }
                EntryPayload::Membership(membership) => {
                    applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Outcome::Nothing
                }
            });
        }
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(
        &mut self,
    ) -> Result<Box<<Types as RaftTypeConfig>::SnapshotData>, Failure> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, BasicNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), Failure> {
        let groups: Groups = serde_json::from_slice(snapshot.get_ref())
            .map_err(|error| failed(ErrorVerb::Read, error))?;
        let saved = Saved {
            meta: meta.clone(),
            groups,
        };
        self.save(saved.clone()).await?;
        let mut applied = lock(&self.0.0.applied);
        applied.last = meta.last_log_id;
        applied.membership = meta.last_membership.clone();
        applied.groups = saved.groups;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, Failure> {
        let saved = lock(&self.0.0.applied).snapshot.clone();
        saved.as_ref().map(as_snapshot).transpose()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use openraft::testing::{StoreBuilder, Suite};

    struct Builder;

    impl StoreBuilder<Types, Disk, Machine, tempfile::TempDir> for Builder {
        async fn build(&self) -> Result<(tempfile::TempDir, Disk, Machine), Failure> {
            let directory = tempfile::tempdir().unwrap();
            let disk = Disk::open(directory.path()).unwrap();
            let machine = disk.machine();
            Ok((directory, disk, machine))
        }
    }

    /// The suite of the Raft library for whoever stores for it.
    #[test]
    fn the_library_accepts_this_store() {
        Suite::test_all(Builder).unwrap();
    }

    #[test]
    fn a_node_that_is_opened_again_knows_its_vote_log_and_snapshot() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let change = Change::ApplyId {
            cluster: "c".into(),
            group: "g".into(),
            id: 1,
            check_code: "x".into(),
            returns: false,
        };
        let entry = |index| Entry::<Types> {
            log_id: LogId::new(openraft::CommittedLeaderId::new(1, 0), index),
            payload: EntryPayload::Normal(change.clone()),
        };
        runtime.block_on(async {
            let mut disk = Disk::open(directory.path()).unwrap();
            disk.save_vote(&Vote::new(7, 2)).await.unwrap();
            let mut write = Write::default();
            for index in 0..3 {
                write
                    .put
                    .push((index, serde_json::to_vec(&entry(index)).unwrap()));
            }
            disk.write(ErrorVerb::Write, write).await.unwrap();
            let mut machine = disk.machine();
            machine.apply([entry(0)]).await.unwrap();
            machine.build_snapshot().await.unwrap();
        });
        let mut disk = Disk::open(directory.path()).unwrap();
        runtime.block_on(async {
            assert_eq!(disk.read_vote().await.unwrap(), Some(Vote::new(7, 2)));
            assert_eq!(disk.try_get_log_entries(0..9).await.unwrap().len(), 3);
            let (last, _) = disk.machine().applied_state().await.unwrap();
            assert_eq!(last.map(|last| last.index), Some(0));
        });
        let groups = disk.groups().clone();
        assert!(groups.0.contains_key("g"));
    }
}
