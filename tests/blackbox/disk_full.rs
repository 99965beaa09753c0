//! A full disk: sends are refused with the reason, reads go on, and service returns by itself.
//!
//! Needs root and a kernel with loop devices; says loudly when it cannot run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::client::{Connection, Failure, Message, Sent};
use crate::node::{Setup, store_dir};

const DISK_MIB: u64 = 320;
/// What the filler leaves free before the broker starts.
const FREE_MIB: u64 = 128;
const BODY_BYTES: usize = 128 << 10;

/// A small ext4 of its own. Unmounted when dropped.
struct SmallDisk {
    mount_point: PathBuf,
}

impl SmallDisk {
    fn new(directory: &Path) -> Result<Self, String> {
        let image = directory.join("image");
        let mount_point = directory.join("disk");
        fs::create_dir(&mount_point).map_err(|error| error.to_string())?;
        let file = File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(DISK_MIB << 20)
            .map_err(|error| error.to_string())?;
        let (image, point) = (image.display(), mount_point.display());
        shell(&format!("mkfs.ext4 -q -F -m 0 {image}"))?;
        shell(&format!("mount -o loop {image} {point}"))?;
        Ok(Self { mount_point })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = shell(&format!("umount {}", self.mount_point.display()));
    }
}

fn shell(line: &str) -> Result<String, String> {
    let output = Command::new("sh")
        .args(["-c", line])
        .output()
        .map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!(
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

fn free_mib(directory: &Path) -> u64 {
    let text = shell(&format!("df -Pk {} | tail -1", directory.display())).unwrap();
    let field = text.split_whitespace().nth(3).unwrap();
    field.parse::<u64>().unwrap() >> 10
}

/// Fills the disk until only `leave_mib` are free, with 0 to its last block.
fn fill(disk: &Path, leave_mib: u64) -> PathBuf {
    let path = disk.join("filler");
    let mut filler = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .unwrap();
    let mut chunk = vec![0x5A; 1 << 20];
    while leave_mib == 0 || free_mib(disk) > leave_mib {
        let written = filler.write_all(&chunk).and_then(|()| filler.sync_all());
        match written {
            Ok(()) => {}
            Err(_) if chunk.len() > 4096 => chunk.truncate(4096),
            Err(_) => break,
        }
    }
    path
}

fn body(number: u64) -> Vec<u8> {
    let mut body = vec![0; BODY_BYTES];
    fastrand::Rng::with_seed(number).fill(&mut body);
    body
}

type Promised = BTreeMap<(i32, i64), u64>;

fn send(
    connection: &mut Connection,
    number: u64,
    promised: &mut Promised,
) -> Result<Sent, Failure> {
    let message = Message::new("full", (number % 4) as i32, body(number));
    let sent = connection.send(&message)?;
    promised.insert((sent.queue_id, sent.queue_offset), number);
    Ok(sent)
}

fn check(connection: &mut Connection, promised: &Promised) {
    for queue_id in 0..4 {
        let records = connection.read_queue("full", queue_id, 0).unwrap();
        let expected: Vec<_> = promised
            .iter()
            .filter(|((queue, _), _)| *queue == queue_id)
            .collect();
        assert_eq!(records.len(), expected.len(), "queue {queue_id}");
        for (record, ((_, offset), number)) in records.iter().zip(expected) {
            assert_eq!(record.queue_offset, *offset);
            assert!(record.body == body(*number), "message {number} has changed");
        }
    }
}

#[test]
fn a_full_disk_refuses_sends_and_recovers_by_itself() {
    let directory = store_dir();
    let disk = match SmallDisk::new(directory.path()) {
        Ok(disk) => disk,
        Err(reason) => {
            say!("SKIPPED disk_full: needs root, mkfs.ext4 and a loop device: {reason}");
            return;
        }
    };
    // Once up to the watermark of the configuration, and once faster than anybody looks at a watermark.
    for (shards, sudden) in [(1, false), (1, true), (2, true)] {
        let store = disk.mount_point.join("store");
        let filler = fill(&disk.mount_point, FREE_MIB);
        let setup = Setup::new(&store, shards)
            .memory(128 << 20)
            .set("mappedFileSizeCommitLog=8388608")
            // The test fills the disk on purpose: nothing may be removed to make room.
            .set("cleanFileForciblyEnable=false")
            .set("fileReservedTime=720");
        let mut node = setup.start();
        let mut connection = node.connect();
        connection.create_topic("full", 4).unwrap();
        let mut promised = Promised::new();
        let mut number = 0;
        let least = if sudden { 0 } else { 100 };
        if sudden {
            while number < 50 {
                send(&mut connection, number, &mut promised).unwrap();
                number += 1;
            }
            fill(&disk.mount_point, 0);
        }
        let refusal = loop {
            match send(&mut connection, number, &mut promised) {
                Ok(_) => number += 1,
                Err(failure) => break failure,
            }
            let limit = (DISK_MIB << 20) / BODY_BYTES as u64;
            assert!(number < limit, "more stored than the disk holds");
        };
        say!(
            "disk_full, {shards} shards, sudden {sudden}: {number} messages of {BODY_BYTES} bytes before {refusal:?}; {} MiB free",
            free_mib(&disk.mount_point)
        );
        assert!(
            number > least,
            "refused long before the disk was full: {number}"
        );
        let remark = refusal.remark().to_lowercase();
        assert!(matches!(refusal, Failure::Refused { .. }), "{refusal:?}");
        assert!(
            remark.contains("disk") || remark.contains("space"),
            "the remark gives the reason: {remark}"
        );
        assert!(node.is_alive());
        let (status, reasons) = crate::metrics::readiness(&node);
        assert_eq!(status, 503, "{reasons}");
        assert!(
            reasons.contains("log 0") || reasons.contains("log 1"),
            "{reasons}"
        );
        check(&mut connection, &promised);
        for more in 0..20 {
            let _ = send(&mut connection, number + more, &mut promised);
        }
        number += 20;
        check(&mut connection, &promised);

        fs::remove_file(&filler).unwrap();
        let begun = Instant::now();
        while let Err(failure) = send(&mut connection, number, &mut promised) {
            assert!(matches!(failure, Failure::Refused { .. }), "{failure:?}");
            assert!(begun.elapsed() < Duration::from_secs(30), "{failure:?}");
            std::thread::sleep(Duration::from_millis(50));
            number += 1;
        }
        say!(
            "disk_full, {shards} shards: service was back {:?} after there was space",
            begun.elapsed()
        );
        assert!(crate::metrics::page(&node).contains("ringmq_refused_total{"));
        // Each log asks the disk by itself: another one may take some moments more.
        for _ in 0..200 {
            number += 1;
            while let Err(failure) = send(&mut connection, number, &mut promised) {
                assert!(matches!(failure, Failure::Refused { .. }), "{failure:?}");
                assert!(begun.elapsed() < Duration::from_secs(30), "{failure:?}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        check(&mut connection, &promised);
        node.kill();
        let mut node = setup.start();
        check(&mut node.connect(), &promised);
        assert!(node.terminate().success());
        fs::remove_dir_all(&store).unwrap();
    }
}

#[test]
fn a_disk_above_its_watermarks_refuses_sends_or_gives_up_the_oldest_segments() {
    let directory = store_dir();
    let disk = match SmallDisk::new(directory.path()) {
        Ok(disk) => disk,
        Err(reason) => {
            say!("SKIPPED disk_full: needs root, mkfs.ext4 and a loop device: {reason}");
            return;
        }
    };
    for forcibly in [false, true] {
        let store = disk.mount_point.join("store");
        let setup = Setup::new(&store, 1)
            .memory(64 << 20)
            .set("mappedFileSizeCommitLog=8388608")
            .set("cleanResourceInterval=100")
            .set(&format!("cleanFileForciblyEnable={forcibly}"));
        let node = setup.start();
        let mut connection = node.connect();
        connection.create_topic("full", 4).unwrap();
        let mut promised = Promised::new();
        for number in 0..600 {
            send(&mut connection, number, &mut promised).unwrap();
        }
        // Of 320 MiB: 7 % are free, or 12 %.
        let filler = fill(&disk.mount_point, if forcibly { 38 } else { 22 });
        let deadline = Instant::now() + Duration::from_secs(20);
        if forcibly {
            while connection.min_offset("full", 0).unwrap() == 0 {
                assert!(Instant::now() < deadline, "nothing went\n{}", node.output());
                std::thread::sleep(Duration::from_millis(50));
            }
            assert!(node.output().contains("before its time"));
            let bounds = |connection: &mut Connection| {
                (
                    connection.min_offset("full", 0).unwrap(),
                    connection.max_offset("full", 0).unwrap(),
                )
            };
            // It goes on until there is enough space, and no further.
            std::thread::sleep(Duration::from_secs(2));
            let (min, max) = bounds(&mut connection);
            assert!(min < max, "all is gone");
            assert_eq!(bounds(&mut connection).0, min);
            send(&mut connection, 600, &mut promised).unwrap();
        } else {
            let refusal = loop {
                match send(&mut connection, 600, &mut promised) {
                    Ok(_) => assert!(Instant::now() < deadline, "{}", node.output()),
                    Err(failure) => break failure,
                }
                std::thread::sleep(Duration::from_millis(100));
            };
            let remark = refusal.remark();
            assert!(remark.contains("diskSpaceWarningLevelRatio"), "{remark}");
            assert!(free_mib(&disk.mount_point) > 8, "there was still space");
            // What was taken goes on.
            connection.create_group("reader").unwrap();
            connection.commit_offset("reader", "full", 0, 7).unwrap();
            assert_eq!(crate::metrics::readiness(&node).0, 503);
            check(&mut connection, &promised);
        }
        fs::remove_file(&filler).unwrap();
        while send(&mut connection, 601, &mut promised).is_err() {
            assert!(Instant::now() < deadline + Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(node);
        fs::remove_dir_all(&store).unwrap();
    }
}
