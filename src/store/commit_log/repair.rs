//! A replica whose log is damaged, or may be: it says so until it has everything again, and what is damaged is fetched again.
//!
//! A replica that finds acknowledged bytes damaged when it is opened shows what lies before them and takes nothing. When its
//! master has agreed to send on from there, everything from the damaged batch on is wiped, durably, in the way of a cut
//! (`cut.rs`), and comes over the stream; tables are folds and follow. With a controller the directory has a file `lacks-damaged`
//! or `lacks-torn` from when the log was opened like that until it has everything that its master had when it joined: a log that
//! was wiped and ends cleanly must not pass for a whole one after the next crash. [`look`] tells all that without opening the
//! log, before its broker stands for an election.

use std::io;
use std::path::Path;

use crate::base::doubt::Doubt;
use crate::base::offset::LogId;
use crate::io::env::{DiskFile, Env, OpenMode};
use crate::store::commit_log::{CommitLog, cut, replica};
use crate::store::manifest::{Manifest, log_directory};
use crate::store::recovery::{Damage, Scanner, Step};
use crate::store::seed;
use crate::store::segment::Segments;
use crate::store::snapshot;

const MARKS: [(Doubt, &str); 2] = [
    (Doubt::Torn, "lacks-torn"),
    (Doubt::Damaged, "lacks-damaged"),
];

/// What a log has, as [`look`] finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Epoch and end of the last whole batch.
    pub epoch: u32,
    pub end: u64,
    pub doubt: Doubt,
    pub damage: Option<Damage>,
    /// It was a copy of another broker's log.
    pub was_replica: bool,
}

/// What the log in a directory is known to lack.
pub(super) async fn marked<E: Env>(env: &E, directory: &Path) -> io::Result<Doubt> {
    let entries = env.list(directory).await?;
    let has = |mark: &str| entries.iter().any(|(name, _)| name == mark);
    let found = MARKS.iter().filter(|(_, mark)| has(mark));
    Ok(found.map(|(doubt, _)| *doubt).max().unwrap_or(Doubt::None))
}

/// Notes durably what a log lacks.
pub(super) async fn mark<E: Env>(env: &E, directory: &Path, doubt: Doubt) -> io::Result<()> {
    let mode = OpenMode {
        create: true,
        flush_each_write: false,
    };
    for (_, name) in MARKS.iter().filter(|(marked, _)| *marked == doubt) {
        env.open(&directory.join(name), mode).await?.sync().await?;
    }
    env.sync_dir(directory).await
}

/// The log lacks nothing, or is the one that counts.
pub(super) async fn forget<E: Env>(env: &E, directory: &Path) -> io::Result<()> {
    let entries = env.list(directory).await?;
    for (_, mark) in MARKS {
        if entries.iter().any(|(name, _)| name == mark) {
            env.remove(&directory.join(mark)).await?;
            env.sync_dir(directory).await?;
        }
    }
    Ok(())
}

/// Looks at all logs of a store that nobody has open, and writes nothing into them. A store or a log that was not made yet has
/// nothing to look at.
pub async fn look<E: Env>(env: &E, root: &Path) -> io::Result<Vec<(LogId, Look)>> {
    let mut looks = Vec::new();
    let Some(manifest) = Manifest::read(env, root).await? else {
        return Ok(looks);
    };
    for log in 0..manifest.logs {
        let directory = log_directory(root, log);
        let entries = match env.list(&directory).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            listed => listed?,
        };
        let found = match &entries[..] {
            [] => continue,
            // It begins anew when it is opened.
            names if names.iter().any(|(name, _)| name == seed::NAME) => Look {
                doubt: Doubt::Damaged,
                was_replica: true,
                ..Look::default()
            },
            _ => look_at(env, &directory, &manifest).await.map_err(|error| {
                let text = format!("log {log} cannot be looked at: {error}");
                io::Error::new(error.kind(), text)
            })?,
        };
        looks.push((log, found));
    }
    Ok(looks)
}

async fn look_at<E: Env>(env: &E, directory: &Path, manifest: &Manifest) -> io::Result<Look> {
    let (store_id, segment_bytes) = (manifest.store_id, manifest.segment_bytes);
    let segments = Segments::open(env.clone(), directory.to_owned(), segment_bytes, false).await?;
    let was_replica = replica::is_marked(env, directory).await?;
    let mut look = Look {
        doubt: marked(env, directory).await?,
        was_replica,
        ..Look::default()
    };
    let limit = cut::noted(env, directory).await?;
    let start = segments.start();
    let snapshot = snapshot::load_below(env, directory, store_id, start, limit).await?;
    let (position, previous_crc) = match &snapshot {
        Some((mark, _)) => {
            look.epoch = mark.epoch;
            (mark.position, mark.previous_crc)
        }
        None => (start, 0),
    };
    let mut scanner = Scanner::new(&segments, store_id, position, previous_crc);
    if snapshot.is_none() && start > 0 {
        scanner.trust_first().await?;
    }
    while limit.is_none_or(|limit| scanner.position < limit) {
        let Step::Batch(header, _) = scanner.next().await? else {
            let behind = scanner.look_behind(was_replica, Some(look.epoch)).await?;
            look.damage = behind.damage;
            look.doubt = look.doubt.max(behind.doubt());
            break;
        };
        look.epoch = look.epoch.max(header.epoch);
    }
    look.end = scanner.position;
    Ok(look)
}

impl<E: Env> CommitLog<E> {
    /// Of a replica: where acknowledged bytes are damaged that are to be fetched again.
    pub fn damage(&self) -> Option<Damage> {
        self.damage.get()
    }

    /// What this log may lack of what was acknowledged.
    pub fn doubt(&self) -> Doubt {
        self.doubt.get()
    }

    /// Wipes everything from the damaged batch on, durably: the master sends it again.
    pub async fn wipe_damage(&self) -> io::Result<()> {
        let Some(damage) = self.damage.get() else {
            return Ok(());
        };
        let (env, options) = (self.env(), self.options());
        // Whatever becomes of this, the next opening ends what was begun.
        cut::note_wipe(env, &options.directory, damage.position).await?;
        cut::carry_out(env, options, self.segments()).await?;
        self.damage.set(None);
        self.space.notify();
        Ok(())
    }

    /// It has everything that was acknowledged.
    pub async fn on_whole(&self) -> io::Result<()> {
        if self.doubt.get() == Doubt::None {
            return Ok(());
        }
        forget(self.env(), &self.options().directory).await?;
        self.doubt.set(Doubt::None);
        tracing::info!(
            log = self.id(),
            end = self.durable_here().0,
            "this log has everything again that its master had when it joined"
        );
        Ok(())
    }
}
