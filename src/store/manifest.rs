//! What is fixed when a store is made: its identity, the number of its logs, the size of their segments.
//!
//! File `ringmq.store` in the store directory: one JSON object, padded with blanks to a sector, written once.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::base::limits::SECTOR_BYTES;
use crate::base::offset::LogId;
use crate::io::env::{DiskFile, Env, OpenMode};

const NAME: &str = "ringmq.store";
const NEW_NAME: &str = "ringmq.store.new";
/// Version of everything on the disk.
pub const FORMAT: u32 = 1;

/// See the module's page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub format: u32,
    pub store_id: u64,
    pub logs: u8,
    pub segment_bytes: u64,
}

/// Where a store has one of its logs.
pub fn log_directory(root: &Path, log: LogId) -> PathBuf {
    root.join(format!("log-{log:03}"))
}

/// Makes a directory with its parents and flushes each into the one above it: what is flushed within a directory is lost
/// with it if its own name is not on the device. Done at every start, since the last one may have been cut short.
pub async fn make_durable_directory<E: Env>(env: &E, directory: &Path) -> io::Result<()> {
    env.create_dir(directory).await?;
    for above in directory.ancestors().skip(1) {
        let above = if above.as_os_str().is_empty() {
            Path::new(".")
        } else {
            above
        };
        match env.sync_dir(above).await {
            // Directories that are not ours to open were there before us.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            result => result?,
        }
    }
    Ok(())
}

impl Manifest {
    /// Reads the manifest of a store, or makes it. Errors name the file.
    pub async fn open_or_create<E: Env>(
        env: &E,
        directory: &Path,
        logs: u8,
        segment_bytes: u64,
    ) -> io::Result<Self> {
        if let Some(found) = Self::read(env, directory).await? {
            return Ok(found);
        }
        let manifest = Self {
            format: FORMAT,
            // JSON readers keep 53 bits.
            store_id: env.random_u64() >> 11 | 1,
            logs,
            segment_bytes,
        };
        Self::create(env, directory, manifest).await
    }

    /// Makes a store like another one, in a directory that has none.
    pub async fn create<E: Env>(env: &E, directory: &Path, manifest: Self) -> io::Result<Self> {
        let mut text = serde_json::to_vec(&manifest).map_err(io::Error::other)?;
        text.push(b'\n');
        text.resize(text.len().next_multiple_of(SECTOR_BYTES), b' ');
        let mut pages = env.alloc(text.len());
        pages.as_mut().copy_from_slice(&text);
        let new = directory.join(NEW_NAME);
        let mode = OpenMode {
            create: true,
            flush_each_write: false,
        };
        let file = env.open(&new, mode).await?;
        file.write_at(Rc::new(pages), 0).await?;
        file.sync().await?;
        env.rename(&new, &directory.join(NAME)).await?;
        env.sync_dir(directory).await?;
        Ok(manifest)
    }

    /// Reads the manifest of a store, if there is one.
    pub async fn read<E: Env>(env: &E, directory: &Path) -> io::Result<Option<Self>> {
        make_durable_directory(env, directory).await?;
        if !env
            .list(directory)
            .await?
            .iter()
            .any(|(name, _)| name == NAME)
        {
            return Ok(None);
        }
        let path = directory.join(NAME);
        let file = env.open(&path, OpenMode::default()).await?;
        let bytes = file.read_at(0, SECTOR_BYTES).await?;
        let manifest: Self = serde_json::from_slice(bytes.trim_ascii()).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is damaged: {error}", path.display()),
            )
        })?;
        if manifest.format != FORMAT || manifest.logs == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{} has format {}; this version of ringmq reads format {FORMAT}",
                    path.display(),
                    manifest.format
                ),
            ));
        }
        Ok(Some(manifest))
    }
}
