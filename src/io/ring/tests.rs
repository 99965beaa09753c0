//! The executor against the real kernel.

#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::fs::OpenOptions;
use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::base::notify::Notify;
use crate::io::aligned_buf::PageBuf;
use crate::io::env::{DiskFile, Env, OpenMode};
use crate::io::ring::testing::on_executor;
use crate::io::ring::{
    Executor, Listener, Placement, RingEnv, Stream, TrySendError, channel, connect,
};

async fn accept(listener: &Listener) -> Stream {
    poll_fn(|cx| listener.poll_accept(cx)).await.unwrap()
}

async fn read(stream: &Stream) -> Vec<u8> {
    let mut buffer = BytesMut::with_capacity(64 << 10);
    poll_fn(|cx| stream.poll_read(cx, &mut buffer))
        .await
        .unwrap();
    buffer.to_vec()
}

async fn write(stream: &Stream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let written = poll_fn(|cx| stream.poll_write(cx, &[IoSlice::new(bytes)]))
            .await
            .unwrap();
        bytes = &bytes[written..];
    }
}

async fn pair() -> (Stream, Stream) {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let ours = connect(&listener.local().to_string(), Duration::from_secs(5))
        .await
        .unwrap();
    (ours, accept(&listener).await)
}

#[test]
fn sleeps_end_in_the_order_of_their_times() {
    on_executor(async |env: RingEnv| {
        let order = Rc::new(RefCell::new(Vec::new()));
        let done = Rc::new(Notify::default());
        for ms in [30u64, 10, 20] {
            let (order, done) = (order.clone(), done.clone());
            let sleep = env.sleep(Duration::from_millis(ms));
            env.spawn(async move {
                sleep.await;
                order.borrow_mut().push(ms);
                done.notify();
            });
        }
        while order.borrow().len() < 3 {
            done.notified().await;
        }
        assert_eq!(*order.borrow(), [10, 20, 30]);
    });
}

#[test]
fn bytes_come_through_a_socket_whole_and_its_end_is_seen() {
    on_executor(async |env: RingEnv| {
        let (ours, theirs) = pair().await;
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| ((n * 31) >> 7) as u8).collect();
        let copy = sent.clone();
        env.spawn(async move {
            write(&ours, &copy).await;
            ours.close();
        });
        let mut got = Vec::new();
        loop {
            let part = read(&theirs).await;
            if part.is_empty() {
                break;
            }
            got.extend(part);
        }
        assert!(got == sent);
    });
}

#[test]
fn an_end_right_behind_the_last_bytes_is_not_lost() {
    on_executor(async |_| {
        for _ in 0..500 {
            let (ours, theirs) = pair().await;
            write(&ours, b"last").await;
            ours.close();
            assert_eq!(read(&theirs).await, b"last");
            assert_eq!(read(&theirs).await, b"");
        }
    });
}

#[test]
fn a_thousand_exchanges_go_one_after_the_other() {
    on_executor(async |env: RingEnv| {
        let (ours, theirs) = pair().await;
        env.spawn(async move {
            loop {
                let part = read(&theirs).await;
                if part.is_empty() {
                    break;
                }
                write(&theirs, &part).await;
            }
        });
        for round in 0..1000u32 {
            write(&ours, &round.to_be_bytes()).await;
            assert_eq!(read(&ours).await, round.to_be_bytes());
        }
    });
}

#[test]
fn a_reader_wakes_when_its_own_side_is_shut_down() {
    on_executor(async |env: RingEnv| {
        let (ours, theirs) = pair().await;
        let ours = Rc::new(ours);
        let (same, sleep) = (ours.clone(), env.sleep(Duration::from_millis(20)));
        env.spawn(async move {
            sleep.await;
            same.shutdown();
        });
        assert_eq!(read(&ours).await, b"");
        assert_eq!(read(&theirs).await, b"");
    });
}

#[test]
fn a_connection_that_nobody_accepts_is_refused_and_one_that_hangs_times_out() {
    on_executor(async |_| {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local().to_string();
        drop(listener);
        let refused = connect(&address, Duration::from_secs(5)).await;
        assert_eq!(
            refused.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
    });
}

#[test]
fn what_is_written_to_a_file_is_read_back_and_the_end_is_short() {
    on_executor(async |env: RingEnv| {
        let directory = tempfile::tempdir().unwrap();
        let mode = OpenMode {
            create: true,
            flush_each_write: true,
        };
        let file = env
            .open(&directory.path().join("file"), mode)
            .await
            .unwrap();
        file.allocate(0, 64 << 10).await.unwrap();
        let mut pages = env.alloc(8192);
        pages.as_mut().fill(7);
        file.write_at(Rc::new(pages), 4096).await.unwrap();
        file.sync().await.unwrap();
        assert_eq!(file.len().await.unwrap(), 64 << 10);
        let back = file.read_at(0, 16 << 10).await.unwrap();
        assert!(back[..4096].iter().all(|&byte| byte == 0));
        assert!(back[4096..12288].iter().all(|&byte| byte == 7));
        assert_eq!(file.read_at(60 << 10, 16 << 10).await.unwrap().len(), 4096);
        file.truncate(4096).await.unwrap();
        assert_eq!(file.read_at(4096, 4096).await.unwrap().len(), 0);
    });
}

/// The first byte of a file, past the page cache.
fn first_byte(path: &Path) -> u8 {
    #[repr(align(4096))]
    struct Sector([u8; 4096]);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap();
    let mut sector = Box::new(Sector([0; 4096]));
    file.read_at(&mut sector.0, 0).unwrap();
    sector.0[0]
}

#[test]
fn a_commit_is_at_the_device_before_the_next_task_runs_and_its_end_is_seen_between_two() {
    on_executor(async |env: RingEnv| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mode = OpenMode {
            create: true,
            flush_each_write: true,
        };
        let file = env.open(&path, mode).await.unwrap();
        file.allocate(0, 64 << 10).await.unwrap();
        let mut pages = env.alloc(4096);
        pages.as_mut().fill(7);
        let [turns, turns_at_end] = [(); 2].map(|()| Rc::new(Cell::new(None::<u32>)));
        let ended = turns_at_end.clone();
        let (commit_env, seen) = (env.clone(), turns.clone());
        env.spawn(async move {
            commit_env.commit_under_way(true);
            file.write_at(Rc::new(pages), 0).await.unwrap();
            commit_env.commit_under_way(false);
            ended.set(seen.get());
        });
        let (ended, done) = (turns_at_end.clone(), Rc::new(Notify::default()));
        let told = done.clone();
        env.spawn(async move {
            let begun = Instant::now();
            while first_byte(&path) != 7 && begun.elapsed() < Duration::from_secs(20) {
                thread::sleep(Duration::from_millis(1));
            }
            turns.set((first_byte(&path) == 7).then_some(0));
            while let (Some(count), None) = (turns.get(), ended.get()) {
                turns.set(Some(count + 1));
                // The flush and its completion follow the bytes.
                thread::sleep(Duration::from_millis(20));
                futures_lite::future::yield_now().await;
            }
            told.notify();
        });
        done.notified().await;
        let turns = turns_at_end.get();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let most = match kernel.starts_with("5.") || kernel.starts_with("6.0") {
            true => 1000,
            false => 100,
        };
        assert!(turns.is_some_and(|turns| turns <= most), "{turns:?}");
    });
}

/// Tasks that are busy all the time: what they put into `order`.
fn names_in_order(hurry: bool) -> Vec<&'static str> {
    let order = Rc::new(RefCell::new(Vec::new()));
    let seen = order.clone();
    on_executor(async move |env: RingEnv| {
        let (work, done) = (Rc::new(Notify::default()), Rc::new(Notify::default()));
        let (wanted, commits) = (work.clone(), order.clone());
        env.spawn_commit(async move {
            wanted.notified().await;
            commits.borrow_mut().push("commit");
        });
        futures_lite::future::yield_now().await;
        for name in ["a", "b", "c"] {
            let (env, order, work, done) = (env.clone(), order.clone(), work.clone(), done.clone());
            let spawner = env.clone();
            spawner.spawn(async move {
                order.borrow_mut().push(name);
                if name == "a" {
                    work.notify();
                }
                if name == "b" && hurry {
                    env.hurry_commits();
                }
                if name == "c" {
                    done.notify();
                }
            });
        }
        done.notified().await;
        env.sleep(Duration::from_millis(1)).await;
    });
    seen.take()
}

#[test]
fn a_commit_waits_for_its_turn_unless_it_is_called() {
    assert_eq!(names_in_order(false), ["a", "b", "c", "commit"]);
    assert_eq!(names_in_order(true), ["a", "b", "commit", "c"]);
}

/// How many tasks, each of 10 ms, ran between a write's bytes and its end, with so many of them ready.
fn tasks_before_the_end(busy: usize) -> usize {
    on_executor(async |env: RingEnv| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mode = OpenMode {
            create: true,
            flush_each_write: true,
        };
        let file = env.open(&path, mode).await.unwrap();
        file.allocate(0, 64 << 10).await.unwrap();
        let mut pages = env.alloc(4096);
        pages.as_mut().fill(7);
        let ended = Rc::new(Cell::new(false));
        let (commit_env, tell) = (env.clone(), ended.clone());
        env.spawn_commit(async move {
            commit_env.commit_under_way(true);
            file.write_at(Rc::new(pages), 0).await.unwrap();
            commit_env.commit_under_way(false);
            tell.set(true);
        });
        let (runs, written) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let done = Rc::new(Notify::default());
        for _ in 0..busy {
            let (path, ended, runs) = (path.clone(), ended.clone(), runs.clone());
            let (written, done) = (written.clone(), done.clone());
            env.spawn(async move {
                while !ended.get() {
                    match written.get() {
                        true => runs.set(runs.get() + 1),
                        false => written.set(first_byte(&path) == 7),
                    }
                    // The flush and its completion follow the bytes.
                    thread::sleep(Duration::from_millis(10));
                    futures_lite::future::yield_now().await;
                }
                done.notify();
            });
        }
        done.notified().await;
        runs.get()
    })
}

#[test]
fn what_comes_back_from_the_device_does_not_wait_for_all_that_was_there_before() {
    const BUSY: usize = 60;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    if kernel.starts_with("5.") || kernel.starts_with("6.0") {
        return eprintln!("skipped: Linux {kernel} does not tell of completions between two tasks");
    }
    // A device that stands still for seconds has no end to tell of: the best of five counts, which is all of them otherwise.
    let runs: Vec<usize> = (0..5).map(|_| tasks_before_the_end(BUSY)).collect();
    assert!(
        runs.iter().any(|&runs| runs < BUSY / 2),
        "{runs:?} tasks ran before it"
    );
}

#[test]
fn buffers_that_are_written_together_follow_each_other() {
    on_executor(async |env: RingEnv| {
        let directory = tempfile::tempdir().unwrap();
        let mode = OpenMode {
            create: true,
            flush_each_write: true,
        };
        let file = env
            .open(&directory.path().join("file"), mode)
            .await
            .unwrap();
        let buffers: Vec<_> = [(1, 4096), (2, 64 << 10), (3, 8192)]
            .map(|(value, bytes)| {
                let mut pages = env.alloc(bytes);
                pages.as_mut().fill(value);
                Rc::new(pages)
            })
            .into();
        file.write_all_at(buffers, 4096).await.unwrap();
        let read = file.read_at(4096, 76 << 10).await.unwrap();
        let changes: Vec<_> = (1..read.len())
            .filter(|&at| read[at] != read[at - 1])
            .map(|at| (at, read[at]))
            .collect();
        assert_eq!((read.len(), read[0]), (76 << 10, 1));
        assert_eq!(changes, [(4096, 2), (68 << 10, 3)]);
        let heap = Rc::new(PageBuf::from_heap(vec![0; 4096]));
        assert!(file.write_all_at(vec![heap], 0).await.is_err());
    });
}

#[test]
fn a_read_that_nobody_waits_for_any_more_leaves_no_trace() {
    on_executor(async |env: RingEnv| {
        let directory = tempfile::tempdir().unwrap();
        let mode = OpenMode {
            create: true,
            flush_each_write: false,
        };
        let file = env
            .open(&directory.path().join("file"), mode)
            .await
            .unwrap();
        let mut pages = env.alloc(1 << 20);
        pages.as_mut().fill(9);
        file.write_at(Rc::new(pages), 0).await.unwrap();
        for _ in 0..200 {
            let mut read = Box::pin(file.read_at(0, 1 << 20));
            poll_fn(|cx| {
                assert!(read.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            drop(read);
            // Its memory must not come back while the kernel still writes to it.
            let mut other = env.alloc(1 << 20);
            other.as_mut().fill(1);
            env.sleep(Duration::from_micros(50)).await;
            assert!(other.iter().all(|&byte| byte == 1));
        }
    });
}

#[test]
fn a_wake_from_another_thread_ends_the_sleep_of_an_executor() {
    on_executor(async |_| {
        for _ in 0..200 {
            let set = Arc::new(AtomicBool::new(false));
            let waker: Arc<Mutex<Option<Waker>>> = Arc::default();
            let (their_set, their_waker) = (set.clone(), waker.clone());
            let thread = std::thread::spawn(move || {
                loop {
                    let waker = their_waker.lock().unwrap().take();
                    if let Some(waker) = waker {
                        their_set.store(true, Ordering::SeqCst);
                        waker.wake();
                        break;
                    }
                    std::thread::yield_now();
                }
            });
            let begun = Instant::now();
            poll_fn(|cx| {
                if set.load(Ordering::SeqCst) {
                    return Poll::Ready(());
                }
                *waker.lock().unwrap() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            assert!(begun.elapsed() < Duration::from_secs(10));
            thread.join().unwrap();
        }
    });
}

#[test]
fn messages_between_executors_stay_in_order_and_a_full_channel_says_so() {
    const MESSAGES: u64 = 200_000;
    let (to, from) = channel::<u64>(64);
    let receiver = Executor::spawn("receiver", Placement::Unbound, move || async move {
        let (next, done) = (Rc::new(Cell::new(0)), Rc::new(Notify::default()));
        let (expected, bell) = (next.clone(), done.clone());
        from.connect(move |number| {
            assert_eq!(number, expected.get());
            expected.set(number + 1);
            bell.notify();
        });
        while next.get() < MESSAGES {
            done.notified().await;
        }
    })
    .unwrap();
    let sender = Executor::spawn("sender", Placement::Unbound, move || async move {
        let env = RingEnv::new();
        let mut full = 0;
        for number in 0..MESSAGES {
            while let Err(TrySendError::Full(_)) = to.try_send(number) {
                full += 1;
                env.sleep(Duration::from_micros(20)).await;
            }
        }
        full
    })
    .unwrap();
    assert!(sender.join().unwrap().unwrap() > 0);
    receiver.join().unwrap().unwrap();
}

#[test]
fn a_busy_foreground_does_not_starve_the_background_and_the_other_way() {
    on_executor(async |env: RingEnv| {
        let stop = Rc::new(Cell::new(false));
        let counts: [Rc<Cell<u32>>; 2] = Default::default();
        for (at, count) in counts.iter().enumerate() {
            let (stop, count) = (stop.clone(), count.clone());
            let task = async move {
                while !stop.get() {
                    count.set(count.get() + 1);
                    futures_lite::future::yield_now().await;
                }
            };
            match at {
                0 => env.spawn(task),
                _ => env.spawn_background(task),
            }
        }
        env.sleep(Duration::from_millis(50)).await;
        stop.set(true);
        let [foreground, background] = counts.map(|count| count.get());
        assert!(background > 10, "{background}");
        assert!(foreground > 4 * background, "{foreground} {background}");
    });
}

#[test]
fn tasks_end_with_their_executor_and_so_do_their_sockets() {
    struct Told(Arc<AtomicBool>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let told = Told(dropped.clone());
    let address = on_executor(async move |env: RingEnv| {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local();
        env.spawn(async move {
            let _told = told;
            accept(&listener).await;
        });
        env.sleep(Duration::from_millis(5)).await;
        address
    });
    assert!(dropped.load(Ordering::SeqCst));
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn a_close_reaches_the_peer_while_an_event_of_the_socket_is_on_its_way() {
    on_executor(async |env: RingEnv| {
        for _ in 0..200 {
            let (ours, theirs) = pair().await;
            let mut buffer = BytesMut::with_capacity(64);
            poll_fn(|cx| {
                assert!(ours.poll_read(cx, &mut buffer).is_pending());
                Poll::Ready(())
            })
            .await;
            env.sleep(Duration::from_micros(10)).await;
            write(&theirs, b"on its way").await;
            ours.close();
            let mut buffer = BytesMut::with_capacity(64);
            let mut end = std::pin::pin!(poll_fn(|cx| theirs.poll_read(cx, &mut buffer)));
            let mut limit = std::pin::pin!(env.sleep(Duration::from_secs(5)));
            poll_fn(|cx| match end.as_mut().poll(cx) {
                // The unread bytes make it a reset.
                Poll::Ready(end) => {
                    assert!(!matches!(end, Ok(1..)), "{end:?}");
                    Poll::Ready(())
                }
                Poll::Pending => {
                    assert!(limit.as_mut().poll(cx).is_pending(), "the peer never knew");
                    Poll::Pending
                }
            })
            .await;
        }
    });
}
