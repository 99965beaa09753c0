//! `ringmq store compare`: whether two stores that no broker has open hold the same logs. It writes nothing.
//!
//! The logs of a master and of its slaves are the same bytes at the same positions, so a comparison walks both batch by batch
//! from the first position that both have. It tells how far they are equal, with a digest of each segment that can be held against
//! a third store's, and the first place where they are not: other bytes (with the epochs of who wrote them), a batch that one
//! side cannot read, or the end of the shorter one.

use std::io;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::base::offset::LogId;
use crate::io::env::Env;
use crate::store::batch::BatchHeader;
use crate::store::manifest::log_directory;
use crate::store::recovery::{Scanner, Step};
use crate::store::segment::Segments;
use crate::store::tool::manifest_of;

/// One of the two stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    A,
    B,
}

/// Where two logs part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parting {
    /// They do not: both end here.
    None,
    /// One of them ends here, and the other goes on.
    Shorter { side: Side, missing_bytes: u64 },
    /// One of them has a batch here that cannot be read: its CRC is wrong, or it was torn.
    Damaged { side: Side, epoch: u32 },
    /// Both have a batch here, and they are not the same.
    Differs { epoch_a: u32, epoch_b: u32 },
    /// They have no position in common.
    Apart { start_a: u64, start_b: u64 },
}

/// What a comparison of two logs has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    pub log: LogId,
    /// Everything from `start` to `end` is the same.
    pub start: u64,
    pub end: u64,
    pub parting: Parting,
    /// Of each segment, or the part of it that is the same: where it begins and ends, and the SHA-256 of its batches.
    pub segments: Vec<(u64, u64, String)>,
}

impl Comparison {
    pub fn is_equal(&self) -> bool {
        self.parting == Parting::None
    }

    pub fn to_json(&self) -> Value {
        let segments: Vec<Value> = self
            .segments
            .iter()
            .map(|(start, end, digest)| json!({"start": start, "end": end, "sha256": digest}))
            .collect();
        let mut value = json!({
            "log": self.log,
            "start": self.start,
            "equalTo": self.end,
            "segments": segments,
        });
        let parting = match &self.parting {
            Parting::None => json!({"result": "equal"}),
            Parting::Shorter {
                side,
                missing_bytes,
            } => {
                json!({"result": "shorter", "store": format!("{side:?}"), "position": self.end, "missingBytes": missing_bytes})
            }
            Parting::Damaged { side, epoch } => {
                json!({"result": "damaged", "store": format!("{side:?}"), "position": self.end, "epoch": epoch})
            }
            Parting::Differs { epoch_a, epoch_b } => {
                json!({"result": "differs", "position": self.end, "epochA": epoch_a, "epochB": epoch_b})
            }
            Parting::Apart { start_a, start_b } => {
                json!({"result": "apart", "startA": start_a, "startB": start_b})
            }
        };
        if let (Some(value), Value::Object(parting)) = (value.as_object_mut(), parting) {
            value.extend(parting);
        }
        value
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            log, start, end, ..
        } = self;
        match &self.parting {
            Parting::None => write!(f, "log {log}: equal, positions {start}..{end}"),
            Parting::Shorter {
                side,
                missing_bytes,
            } => write!(
                f,
                "log {log}: equal up to position {end}, where {side:?} ends: it lacks {missing_bytes} bytes"
            ),
            Parting::Damaged { side, epoch } => write!(
                f,
                "log {log}: equal up to position {end}; the batch there, of epoch {epoch}, cannot be read in {side:?}: its CRC is wrong"
            ),
            Parting::Differs { epoch_a, epoch_b } => write!(
                f,
                "log {log}: equal up to position {end}; the batch there is another one: epoch {epoch_a} in A, {epoch_b} in B"
            ),
            Parting::Apart { start_a, start_b } => write!(
                f,
                "log {log}: nothing in common: A begins at position {start_a}, B at {start_b}"
            ),
        }
    }
}

/// What one side has next: a batch with its records, or none.
type Next = Option<(BatchHeader, Vec<u8>)>;

async fn next<E: Env>(scanner: &mut Scanner<'_, E>) -> io::Result<Next> {
    match scanner.next().await? {
        Step::Batch(header, range) => Ok(Some((header, scanner.records(range).to_vec()))),
        Step::End => Ok(None),
    }
}

/// Where a log ends, from where a scanner stands.
async fn end_of<E: Env>(mut scanner: Scanner<'_, E>) -> io::Result<u64> {
    while let Step::Batch(..) = scanner.next().await? {}
    Ok(scanner.position)
}

/// Compares two stores, log by log.
pub async fn compare<E: Env>(env: &E, a: &Path, b: &Path) -> io::Result<Vec<Comparison>> {
    let (manifest_a, manifest_b) = (manifest_of(env, a).await?, manifest_of(env, b).await?);
    if manifest_a != manifest_b {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "these are not stores of one broker group: {} has identity {}, {} logs and segments of {} bytes, {} has {}, {} and {}",
                a.display(),
                manifest_a.store_id,
                manifest_a.logs,
                manifest_a.segment_bytes,
                b.display(),
                manifest_b.store_id,
                manifest_b.logs,
                manifest_b.segment_bytes
            ),
        ));
    }
    let mut all = Vec::new();
    for log in 0..manifest_a.logs {
        let open = |directory: &Path| {
            let path = log_directory(directory, log);
            Segments::open(env.clone(), path, manifest_a.segment_bytes, false)
        };
        let (segments_a, segments_b) = (open(a).await?, open(b).await?);
        all.push(compare_log(log, manifest_a.store_id, &segments_a, &segments_b).await?);
    }
    Ok(all)
}

async fn compare_log<E: Env>(
    log: LogId,
    store_id: u64,
    a: &Segments<E>,
    b: &Segments<E>,
) -> io::Result<Comparison> {
    let start = a.start().max(b.start());
    let mut found = Comparison {
        log,
        start,
        end: start,
        parting: Parting::None,
        segments: Vec::new(),
    };
    let is_there = |segments: &Segments<E>| segments.locate(start).is_some();
    if start > a.start().min(b.start()) && !(is_there(a) && is_there(b)) {
        (found.start, found.end) = (0, 0);
        found.parting = Parting::Apart {
            start_a: a.start(),
            start_b: b.start(),
        };
        return Ok(found);
    }
    let mut scan_a = Scanner::new(a, store_id, start, 0);
    let mut scan_b = Scanner::new(b, store_id, start, 0);
    scan_a.trust_first().await?;
    scan_b.trust_first().await?;
    let mut digest = Sha256::new();
    let mut segment_start = start;
    loop {
        let at = scan_a.position;
        let (next_a, next_b) = (next(&mut scan_a).await?, next(&mut scan_b).await?);
        let parting = match (next_a, next_b) {
            (Some(one), Some(other)) if one == other => {
                let (header, records) = one;
                digest.update(header.crc.to_le_bytes());
                digest.update(header.epoch.to_le_bytes());
                digest.update(&records);
                found.end = scan_a.position;
                if header.ends_segment() {
                    let whole = std::mem::replace(&mut digest, Sha256::new());
                    found
                        .segments
                        .push((segment_start, found.end, hex(&whole.finalize())));
                    segment_start = found.end;
                }
                continue;
            }
            (Some((one, _)), Some((other, _))) => Parting::Differs {
                epoch_a: one.epoch,
                epoch_b: other.epoch,
            },
            (None, None) => Parting::None,
            (Some((header, _)), None) => {
                let end = end_of(scan_a).await?;
                ended(Side::B, &mut scan_b, header, end - at).await?
            }
            (None, Some((header, _))) => {
                let end = end_of(scan_b).await?;
                ended(Side::A, &mut scan_a, header, end - at).await?
            }
        };
        found.parting = parting;
        if found.end > segment_start {
            found
                .segments
                .push((segment_start, found.end, hex(&digest.finalize())));
        }
        return Ok(found);
    }
}

/// What it means that one side has no batch where the other has one.
async fn ended<E: Env>(
    side: Side,
    scanner: &mut Scanner<'_, E>,
    there: BatchHeader,
    missing_bytes: u64,
) -> io::Result<Parting> {
    if scanner.is_unreadable().await? {
        return Ok(Parting::Damaged {
            side,
            epoch: there.epoch,
        });
    }
    Ok(Parting::Shorter {
        side,
        missing_bytes,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
