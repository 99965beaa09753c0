//! The search for damage and the repair in place, on a small log in the simulated world, with an undamaged copy beside it.

use std::time::Duration;

use super::*;
use crate::io::sim::{Crash, OpKind, SimOptions, SimWorld};
use crate::store::commit_log::mend::MendError;
use crate::store::commit_log::replica::{LogEnd, Relation};
use crate::store::testing::copies::{
    FAST, PERIOD, QUEUE, SEGMENT_BYTES, content, fill, flip, found, here, is_of_a_batch,
    make_copies, open, there,
};
use crate::store::testing::message;
use crate::wire::record::RecordView;

#[test]
fn flipped_bits_are_found_and_exactly_what_they_spoiled_is_written_again_from_a_copy() {
    let mut sizes = Vec::new();
    for seed in 0..60 {
        let world = SimWorld::new(seed, SimOptions::default());
        let end = make_copies(&world);
        let settled_end = end & !(SECTOR_BYTES as u64 - 1);
        let before = content(&world, &here());
        // Neighbours at times, and the first and the last byte.
        let position = match seed {
            0 => 0,
            1 => settled_end - SECTOR_BYTES as u64 - 1,
            _ => world.random_u64() % (settled_end - SECTOR_BYTES as u64),
        };
        let far = (position + world.random_u64() % 20_000).min(settled_end - 1);
        if !is_of_a_batch(&before, position) {
            continue;
        }
        flip(&world, position, 1 << (seed % 8));
        if seed % 3 == 0 && far != position && is_of_a_batch(&before, far) {
            flip(&world, far, 0xFF);
        }
        let env = world.env();
        world.block_on(async {
            let copy = open(&env, &there(), ScrubOptions::OFF).await;
            let log = open(&env, &here(), FAST).await;
            // The last sector is looked at when the log has left it.
            let durable = log.durable().0;
            fill(&env, &log, durable + 3 * SECTOR_BYTES as u64).await;
            found(&env, &log).await;
            // One pass finds all of it.
            env.sleep(3 * PERIOD).await;
            let damaged_bytes = log.scrub_figures().damaged_bytes;
            assert!(damaged_bytes > 0);
            assert_eq!(log.reader().chunk_bytes(), 0, "past the read cache");
            let mut repaired = 0;
            while let Some(damaged) = log.fetchable(u64::MAX, |_| false) {
                let batches = copy.whole_batches(damaged.position, damaged.end).await;
                log.mend(&damaged, &batches).await.unwrap();
                repaired += damaged.bytes();
                sizes.push(damaged.bytes());
            }
            assert_eq!(repaired, damaged_bytes);
            let figures = log.scrub_figures();
            assert_eq!(
                (figures.damaged_bytes, figures.repaired_bytes),
                (0, repaired)
            );
            env.sleep(3 * PERIOD).await;
            assert_eq!(log.scrub_figures().damaged_bytes, 0);
        });
        for ((start, now), (_, then)) in content(&world, &here()).iter().zip(&before) {
            let old = (settled_end.saturating_sub(*start) as usize).min(then.len());
            assert!(now[..old] == then[..old], "seed {seed}, segment {start}");
        }
    }
    // A batch, and not a segment.
    sizes.sort_unstable();
    assert!(sizes[sizes.len() / 2] < 20_000, "{sizes:?}");
}

#[test]
fn a_place_that_takes_several_answers_is_split_where_they_end() {
    let world = SimWorld::new(7, SimOptions::default());
    make_copies(&world);
    let before = content(&world, &here());
    // From the first segment into the third one.
    for position in (SEGMENT_BYTES / 2..2 * SEGMENT_BYTES + 9_000).step_by(50) {
        if is_of_a_batch(&before, position) {
            flip(&world, position, 0x55);
        }
    }
    let env = world.env();
    world.block_on(async {
        let copy = open(&env, &there(), ScrubOptions::OFF).await;
        let log = open(&env, &here(), FAST).await;
        let whole = found(&env, &log).await;
        assert!(whole.bytes() > SEGMENT_BYTES);
        let (mut rest, mut parts) = (whole, Vec::new());
        while rest.position < whole.end {
            let batches = copy.whole_batches(rest.position, whole.end).await;
            let link = check_answer(&rest, 9, SEGMENT_BYTES, &batches).unwrap();
            parts.push(Damaged {
                end: link.position,
                end_crc: link.crc,
                ..rest
            });
            rest.position = link.position;
            rest.previous_crc = Some(link.crc);
        }
        assert_eq!(parts.len(), 3, "an answer is of one segment");
        let first = copy.whole_batches(whole.position, whole.end).await;
        let short = log.mend(&whole, &first).await;
        assert!(matches!(short, Err(MendError::Short { .. })), "{short:?}");
        log.split_damaged(&whole, &parts);
        assert_eq!(log.scrub_figures().damaged_bytes, whole.bytes());
        for part in &parts {
            let batches = copy.whole_batches(part.position, part.end).await;
            log.mend(part, &batches).await.unwrap();
        }
        assert_eq!(log.scrub_figures().damaged_bytes, 0);
    });
    let settled = 3 * SEGMENT_BYTES as usize;
    for ((_, now), (_, then)) in content(&world, &here()).iter().zip(&before).take(3) {
        assert!(now.len() <= settled && now == then);
    }
}

#[test]
fn an_answer_with_any_other_byte_is_not_written() {
    let world = SimWorld::new(3, SimOptions::default());
    make_copies(&world);
    flip(&world, SEGMENT_BYTES + 5_000, 4);
    let env = world.env();
    world.block_on(async {
        let copy = open(&env, &there(), ScrubOptions::OFF).await;
        let log = open(&env, &here(), FAST).await;
        let damaged = found(&env, &log).await;
        let right = copy.whole_batches(damaged.position, damaged.end).await;
        let spoiled = content(&world, &here());
        for at in 0..right.len() {
            let mut wrong = right.clone();
            wrong[at] ^= 1 << (at % 8);
            let answer = log.mend(&damaged, &wrong).await;
            assert!(
                matches!(answer, Err(MendError::Mismatch(_))),
                "{at}: {answer:?}"
            );
        }
        for wrong in [&right[..right.len() - 8], &right[8..], &[]] {
            assert!(log.mend(&damaged, wrong).await.is_err());
        }
        // Whole batches of the same log, from another place.
        let other = copy.whole_batches(damaged.end, damaged.end + 50_000).await;
        assert!(!other.is_empty() && log.mend(&damaged, &other).await.is_err());
        // A whole batch with right CRCs that is not the one that was here: the batch behind it says so.
        let mut forged = right.clone();
        let header = BatchHeader::read(&forged, Position(damaged.position), 9).unwrap();
        if header.length as usize == forged.len() {
            forged[HEADER_BYTES + 40] ^= 1;
            let mut header = header;
            header.seal(&mut forged);
            let answer = log.mend(&damaged, &forged).await;
            assert!(matches!(answer, Err(MendError::Mismatch(_))), "{answer:?}");
        } else {
            panic!("choose another place: this one takes several batches");
        }
        assert!(content(&world, &here()) == spoiled, "nothing was written");
        log.mend(&damaged, &right).await.unwrap();
    });
}

#[test]
fn a_crash_in_a_repair_leaves_the_place_damaged_or_whole_and_its_neighbours_as_they_were() {
    let mut torn = 0;
    for seed in 0..80 {
        let world = SimWorld::new(seed, SimOptions::default());
        let end = make_copies(&world);
        let settled_end = end & !(SECTOR_BYTES as u64 - 1);
        let position = world.random_u64() % (settled_end - SECTOR_BYTES as u64);
        let before = content(&world, &here());
        if !is_of_a_batch(&before, position) {
            continue;
        }
        for position in (position..(position + 12_000).min(settled_end)).step_by(100) {
            if is_of_a_batch(&before, position) {
                flip(&world, position, 0x11);
            }
        }
        let spoiled = content(&world, &here());
        let env = world.env();
        let damaged = world.block_on(async {
            let copy = open(&env, &there(), ScrubOptions::OFF).await;
            let log = open(&env, &here(), FAST).await;
            let durable = log.durable().0;
            fill(&env, &log, durable + 3 * SECTOR_BYTES as u64).await;
            let damaged = found(&env, &log).await;
            let batches = copy.whole_batches(damaged.position, damaged.end).await;
            env.spawn(async move {
                let _ = log.mend(&damaged, &batches).await;
            });
            world.after_steps(world.random_u64() % 8).await;
            damaged
        });
        world.crash(0, Crash::Power);
        for (((start, now), (_, then)), (_, bad)) in
            content(&world, &here()).iter().zip(&before).zip(&spoiled)
        {
            let old = (settled_end.saturating_sub(*start) as usize).min(then.len());
            let mut changed = 0;
            for at in 0..old {
                let is_within = (damaged.position..damaged.end).contains(&(start + at as u64));
                assert!(
                    now[at] == bad[at] || is_within && now[at] == then[at],
                    "seed {seed}, segment {start}, byte {at}"
                );
                changed += usize::from(now[at] != bad[at]);
            }
            let left =
                (0..old).filter(|&at| is_in(&damaged, start + at as u64) && now[at] != then[at]);
            torn += usize::from(changed > 0 && left.count() > 0);
        }
    }
    assert!(torn > 0, "no write was torn");
}

fn is_in(damaged: &Damaged, position: u64) -> bool {
    (damaged.position..damaged.end).contains(&position)
}

#[test]
fn a_segment_that_is_being_repaired_is_not_recycled() {
    let world = SimWorld::new(5, SimOptions::default());
    make_copies(&world);
    flip(&world, 5_000, 4);
    let env = world.env();
    world.block_on(async {
        let copy = open(&env, &there(), ScrubOptions::OFF).await;
        let log = open(&env, &here(), FAST).await;
        let damaged = found(&env, &log).await;
        let batches = copy.whole_batches(damaged.position, damaged.end).await;
        let own = log.clone();
        env.spawn(async move { own.mend(&damaged, &batches).await.unwrap() });
        env.sleep(Duration::from_micros(1)).await;
        let rules = crate::store::retention::RetentionRules {
            bytes_max: Some(1),
            ..Default::default()
        };
        let first = crate::store::retention::clean(&log, rules).await.unwrap();
        assert_eq!(first, None);
        env.sleep(Duration::from_millis(20)).await;
        assert_eq!(log.scrub_figures().damaged_bytes, 0);
        let then = crate::store::retention::clean(&log, rules).await.unwrap();
        assert!(then.is_some());
    });
}

#[test]
fn what_cannot_be_read_counts_as_damaged_until_it_can() {
    let world = SimWorld::new(5, SimOptions::default());
    make_copies(&world);
    let env = world.env();
    world.block_on(async {
        let log = open(&env, &here(), FAST).await;
        env.sleep(3 * PERIOD).await;
        let figures = log.scrub_figures();
        assert!(figures.damaged_bytes == 0 && figures.scrubbed_bytes > 3 * SEGMENT_BYTES - 20_000);
        let set_eio = |rate| {
            world.with_disk(0, |disk| disk.options.faults.read_eio_per_million = rate);
        };
        set_eio(1_000_000);
        while log.scrub_figures().damaged_bytes == 0 {
            env.sleep(PERIOD).await;
        }
        set_eio(0);
        env.sleep(Duration::from_secs(10)).await;
        assert_eq!(log.scrub_figures().damaged_bytes, 0);
    });
}

#[test]
fn a_reader_that_meets_damage_has_its_segment_looked_at_without_any_pass() {
    let world = SimWorld::new(5, SimOptions::default());
    make_copies(&world);
    let env = world.env();
    world.block_on(async {
        let log = open(&env, &here(), ScrubOptions::OFF).await;
        let entry = log.entry(QUEUE, 20).await.unwrap().unwrap();
        flip(&world, entry.position + 1, 1);
        env.sleep(Duration::from_secs(60)).await;
        assert_eq!(log.scrub_figures(), Default::default());
        assert!(log.record(QUEUE, 20, entry).await.is_err());
        let damaged = found(&env, &log).await;
        assert!(is_in(&damaged, entry.position));
        // No second look for each of those who ask again.
        let reads = || world.with_disk(0, |disk| disk.count_of(OpKind::Read));
        let before = reads();
        for _ in 0..20 {
            assert!(log.record(QUEUE, 20, entry).await.is_err());
            env.sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(reads(), before);
    });
}

#[test]
fn a_pass_keeps_to_its_rate_and_nothing_happens_between_two_of_them() {
    let world = SimWorld::new(5, SimOptions::default());
    let end = make_copies(&world);
    let env = world.env();
    world.block_on(async {
        let week = Duration::from_secs(7 * 24 * 3600);
        let slow = ScrubOptions {
            bytes_per_second: 64 << 10,
            period: week,
        };
        let log = open(&env, &here(), slow).await;
        let begun_ns = env.now_ns();
        let scrubbed = || log.scrub_figures().scrubbed_bytes;
        while scrubbed() < end - SEGMENT_BYTES / 8 {
            env.sleep(Duration::from_millis(100)).await;
        }
        let took = Duration::from_nanos(env.now_ns() - begun_ns);
        let least = Duration::from_secs((end - 2 * SEGMENT_BYTES) / (64 << 10));
        assert!(
            took > least && took < 3 * least + Duration::from_secs(12),
            "{took:?}"
        );
        env.sleep(Duration::from_secs(60)).await;
        let (reads, steps) = (world.with_disk(0, |disk| disk.count()), world.steps());
        env.sleep(week - Duration::from_secs(120)).await;
        assert_eq!(world.with_disk(0, |disk| disk.count()), reads);
        assert!(
            world.steps() < steps + 10,
            "{} steps",
            world.steps() - steps
        );
        let once = scrubbed();
        env.sleep(Duration::from_secs(300)).await;
        assert_eq!(scrubbed(), 2 * once);
    });
}

#[test]
fn what_a_log_took_into_memory_when_it_was_opened_over_damage_is_not_served_after_the_repair() {
    let world = SimWorld::new(11, SimOptions::default());
    let end = make_copies(&world);
    let env = world.env();
    world.block_on(async {
        let copy = open(&env, &there(), ScrubOptions::OFF).await;
        // A record whose end lies in the last sector, which the next commit begins its buffer with.
        let last_sector = end & !(SECTOR_BYTES as u64 - 1);
        let max_offset = copy.bounds(QUEUE).max_offset;
        let mut entry = copy.entry(QUEUE, max_offset - 1).await.unwrap().unwrap();
        if entry.position >= last_sector {
            entry = copy.entry(QUEUE, max_offset - 2).await.unwrap().unwrap();
        }
        let record_end = entry.position + u64::from(entry.size);
        assert!(record_end > last_sector, "choose another seed");
        flip(&world, record_end - 2, 4);
        let log = open(&env, &here(), FAST).await;
        let wrong = log.reader().read_whole(entry.position, entry.size as usize);
        let wrong = wrong.await.unwrap();
        fill(&env, &log, log.durable().0 + 2 * SECTOR_BYTES as u64).await;
        let damaged = found(&env, &log).await;
        let batches = copy.whole_batches(damaged.position, damaged.end).await;
        log.mend(&damaged, &batches).await.unwrap();
        let (from, bytes) = (entry.position.max(last_sector), record_end);
        let bytes = (bytes - from) as usize;
        let now = log.reader().read_whole(from, bytes).await.unwrap();
        let right = copy.reader().read_whole(from, bytes).await.unwrap();
        assert!(now[..] == right[..], "memory has what was damaged");
        let before = &wrong[wrong.len() - bytes..];
        assert!(*before != right[..], "it was damaged");
    });
}

#[test]
fn a_message_with_another_body_than_was_stored_is_an_error() {
    let world = SimWorld::new(5, SimOptions::default());
    make_copies(&world);
    let env = world.env();
    world.block_on(async {
        let log = open(&env, &here(), ScrubOptions::OFF).await;
        let entry = log.entry(QUEUE, 20).await.unwrap().unwrap();
        let within = entry.position + u64::from(entry.size) - 30;
        for is_flipped in [true, false] {
            flip(&world, within, 1);
            log.reader().forget(0..SEGMENT_BYTES, 0);
            assert_eq!(log.record(QUEUE, 20, entry).await.is_err(), is_flipped);
        }
        // Its place is looked at.
        flip(&world, within, 1);
        log.reader().forget(0..SEGMENT_BYTES, 0);
        env.sleep(Duration::from_secs(20)).await;
        assert!(log.record(QUEUE, 20, entry).await.is_err());
        let damaged = found(&env, &log).await;
        assert!(is_in(&damaged, within));
        // Whoever asks after the repair gets what was stored.
        let copy = open(&env, &there(), ScrubOptions::OFF).await;
        assert!(log.record(QUEUE, 20, entry).await.is_err());
        let batches = copy.whole_batches(damaged.position, damaged.end).await;
        log.mend(&damaged, &batches).await.unwrap();
        log.record(QUEUE, 20, entry).await.unwrap();
    });
}

#[test]
fn a_message_of_another_queue_offset_or_position_than_was_asked_for_is_an_error() {
    let world = SimWorld::new(5, SimOptions::default());
    make_copies(&world);
    let env = world.env();
    world.block_on(async {
        let log = open(&env, &here(), ScrubOptions::OFF).await;
        // The first buffer of the tail cache begins with the last sector of the disk.
        let (newest, last) = loop {
            fill(&env, &log, log.durable().0 + 1).await;
            log.append(&[message(QUEUE, "T", vec![1; 100])]).unwrap();
            env.sleep(Duration::from_millis(5)).await;
            let last = log.bounds(QUEUE).max_offset - 1;
            let newest = log.entry(QUEUE, last).await.unwrap().unwrap();
            if newest.position >= log.durable().0 & !(SECTOR_BYTES as u64 - 1) {
                break (newest, last);
            }
        };
        let end = log.durable().0;
        log.stop().await.unwrap();
        let record_end = newest.position + u64::from(newest.size);
        // The tail of the body, behind which stand a topic of one byte and two properties.
        let mut places = vec![(newest, last, record_end - 20)];
        let entry = log.entry(QUEUE, 20).await.unwrap().unwrap();
        // Queue, queue offset, physical offset; of fields of 4, 8 and 8 bytes.
        places.extend([15, 27, 35].map(|at| (entry, 20, entry.position + at)));
        let topic = log.record(QUEUE, 20, entry).await.unwrap();
        let topic = topic.iter().flat_map(|slice| slice.iter().copied());
        let topic = RecordView::parse(&topic.collect::<Vec<u8>>())
            .unwrap()
            .body_range()
            .end as u64
            + 1;
        places.push((entry, 20, entry.position + topic));
        for (entry, offset, position) in places {
            flip(&world, position, 4);
            let log = open(&env, &here(), ScrubOptions::OFF).await;
            if offset == last {
                fill(&env, &log, end + 1).await;
                assert!(log.reader().tail_start() <= entry.position);
            }
            assert!(
                log.record(QUEUE, offset, entry).await.is_err(),
                "{}",
                position - entry.position
            );
            log.stop().await.unwrap();
            flip(&world, position, 4);
            let log = open(&env, &here(), ScrubOptions::OFF).await;
            log.record(QUEUE, offset, entry).await.unwrap();
            log.stop().await.unwrap();
        }
    });
}

#[test]
fn damage_on_the_way_to_an_epochs_end_is_passed_over_unless_the_epoch_may_end_in_it() {
    let world = SimWorld::new(5, SimOptions::default());
    let end = make_copies(&world);
    let env = world.env();
    let second_end = world.block_on(async {
        // A life more, of epoch 2.
        let log = open(&env, &here(), ScrubOptions::OFF).await;
        assert_eq!(log.end_of_epoch(1).await.unwrap(), (1, end));
        fill(&env, &log, end + 20_000).await;
        log.stop().await.unwrap();
        log.durable().0
    });
    let last_of_first = world.block_on(async {
        let log = open(&env, &here(), ScrubOptions::OFF).await;
        let (mut at, mut last) = (end / SEGMENT_BYTES * SEGMENT_BYTES, 0);
        while at < end {
            (last, at) = (at, log.batches_from(at, 1).await.unwrap().next);
        }
        log.stop().await.unwrap();
        last
    });
    let within = 3 * SEGMENT_BYTES;
    for (position, is_known) in [
        (within + 20_000, true),
        // Where the segment begins: nobody knows by that what epoch it begins with.
        (within, true),
        (last_of_first + 70, false),
        (end + 70, false),
    ] {
        flip(&world, position, 1);
        world.block_on(async {
            let log = open(&env, &here(), ScrubOptions::OFF).await;
            let first = log.end_of_epoch(1).await;
            match is_known {
                true => assert_eq!(first.unwrap(), (1, end)),
                false => {
                    let error = first.unwrap_err();
                    assert!(error.to_string().contains("is damaged"), "{error}");
                }
            }
            // Of the epoch behind it is known, since that goes on.
            assert_eq!(log.end_of_epoch(2).await.unwrap(), (2, second_end));
            // It is looked at, and another copy can be asked for it.
            found(&env, &log).await;
            log.stop().await.unwrap();
        });
        flip(&world, position, 1);
    }
}

#[test]
fn a_damaged_batch_is_not_sent_and_does_not_hide_that_another_log_is_the_front_of_this_one() {
    let world = SimWorld::new(5, SimOptions::default());
    make_copies(&world);
    let env = world.env();
    world.block_on(async {
        let log = open(&env, &here(), ScrubOptions::OFF).await;
        let first = log.batches_from(0, 1).await.unwrap();
        let second = log.batches_from(first.next, 1).await.unwrap();
        let behind = log.header_at(first.next).await.unwrap().unwrap();
        let front = LogEnd {
            position: first.next,
            epoch: 1,
            previous_crc: behind.previous_crc,
        };
        let other = LogEnd {
            previous_crc: front.previous_crc ^ 1,
            ..front
        };
        // In what a batch holds, in its length, and in what it has of the one before.
        for (at, mask) in [
            (second.bytes as u64 - 9, 1),
            (6, 0x80),
            (CRC_FROM as u64, 1),
        ] {
            for is_damaged in [true, false] {
                flip(&world, first.next + at, mask);
                log.reader().forget(0..SEGMENT_BYTES, 0);
                let sent = log.batches_from(0, 1 << 20).await.unwrap();
                assert_eq!(sent.next == first.next, is_damaged, "{at}");
                let next = log.batches_from(first.next, 1).await;
                match is_damaged {
                    true => {
                        let error = next.unwrap_err();
                        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
                    }
                    false => assert_eq!(next.unwrap().next, second.next),
                }
                assert_eq!(log.relation_of(front).await.unwrap(), Relation::Prefix);
                assert_eq!(log.relation_of(other).await.unwrap(), Relation::Diverged);
            }
        }
        // With the one before damaged too nobody knows.
        for at in [first.next + CRC_FROM as u64, 80] {
            flip(&world, at, 1);
        }
        assert!(log.relation_of(front).await.is_err());
        found(&env, &log).await;
    });
}

#[test]
fn a_damaged_length_makes_nobody_read_or_send_what_it_says() {
    let world = SimWorld::new(5, SimOptions::default());
    make_copies(&world);
    let env = world.env();
    world.block_on(async {
        let log = open(&env, &here(), ScrubOptions::OFF).await;
        let first = log.batches_from(0, 1).await.unwrap();
        // The third byte of a length: 8 MiB more than the batch has.
        flip(&world, first.next + 6, 0x80);
        log.reader().forget(0..SEGMENT_BYTES, 0);
        let reads = || world.with_disk(0, |disk| disk.count_of(OpKind::Read));
        log.batches_from(0, 1).await.unwrap();
        let before = reads();
        assert!(log.batches_from(first.next, 1).await.is_err());
        assert_eq!(reads(), before);
        found(&env, &log).await;
    });
}

#[test]
fn what_is_damaged_in_the_last_sector_is_repaired_though_nobody_sends_anything() {
    let (mut reaching, mut within) = (0, 0);
    for seed in 0..12 {
        let world = SimWorld::new(seed, SimOptions::default());
        let end = make_copies(&world);
        let env = world.env();
        world.block_on(async {
            let copy = open(&env, &there(), ScrubOptions::OFF).await;
            let offset = copy.bounds(QUEUE).max_offset - 1;
            let entry = copy.entry(QUEUE, offset).await.unwrap().unwrap();
            flip(&world, entry.position + u64::from(entry.size) - 2, 4);
            match entry.position < end & !(SECTOR_BYTES as u64 - 1) {
                true => reaching += 1,
                false => within += 1,
            }
            let log = open(&env, &here(), ScrubOptions::OFF).await;
            assert_eq!(log.durable().0, end);
            // Its consumer asks again and again.
            let mut asked = 0;
            while log.fetchable(end, |_| false).is_none() {
                asked += 1;
                assert!(asked < 100, "seed {seed}: it waits for a message");
                for _ in 0..20 {
                    assert!(log.record(QUEUE, offset, entry).await.is_err());
                    env.sleep(Duration::from_micros(10)).await;
                }
                env.sleep(Duration::from_millis(500)).await;
                assert!(log.durable().0 < end + 2 * SECTOR_BYTES as u64, "once");
            }
            let damaged = found(&env, &log).await;
            let batches = copy.whole_batches(damaged.position, damaged.end).await;
            log.mend(&damaged, &batches).await.unwrap();
            log.record(QUEUE, offset, entry).await.unwrap();
            log.stop().await.unwrap();
            // The filler is nothing to a log that is opened.
            let again = open(&env, &here(), ScrubOptions::OFF).await;
            assert_eq!(again.bounds(QUEUE), copy.bounds(QUEUE));
        });
    }
    assert!(reaching > 0 && within > 0, "{reaching} {within}");
}
