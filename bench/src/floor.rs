//! The floor under a broker that has one message on its way: what a round trip costs here if the server does nothing but
//! receive, write a sector with a flush, and send. Blocking calls, one thread on each side, one connection over loopback.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};

/// A message of 1 KiB with its header, and the header of its answer.
const REQUEST_BYTES: usize = 1_300;
const ANSWER_BYTES: usize = 230;
/// What is written, and the space for it, which is written before.
const SECTOR_BYTES: usize = 4 << 10;
const FILE_BYTES: u64 = 64 << 20;
/// Latencies are kept up to this.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

#[repr(align(4096))]
struct Sector([u8; SECTOR_BYTES]);

/// What was measured of one kind of round trip.
#[derive(Clone, Debug)]
pub struct Floor {
    pub trips: u64,
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// CPU time of a round trip, user and system, without interrupts and the kernel's own threads.
    pub server_cpu_us: f64,
    pub client_cpu_us: f64,
}

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A file of its own in `directory`, written once, and open for writes that pass the page cache and are flushed.
fn prepared(directory: &Path) -> io::Result<File> {
    let path = directory.join(format!("ringmq-bench-floor-{}", std::process::id()));
    let mut file = File::create(&path)?;
    let zeros = vec![0; 1 << 20];
    let written = (0..FILE_BYTES / zeros.len() as u64)
        .try_for_each(|_| file.write_all(&zeros))
        .and_then(|()| file.sync_all())
        .and_then(|()| {
            OpenOptions::new()
                .write(true)
                .custom_flags((OFlags::DIRECT | OFlags::DSYNC).bits() as i32)
                .open(&path)
        });
    // Without a name it goes with its descriptor, whatever happens.
    std::fs::remove_file(&path)?;
    written
}

/// Answers until the client closes. Returns the CPU time of the answers and how many there were.
fn serve(mut stream: TcpStream, file: Option<File>) -> io::Result<(u64, u64)> {
    let sector = Box::new(Sector([7; SECTOR_BYTES]));
    let (mut request, answer) = ([0; REQUEST_BYTES], [1; ANSWER_BYTES]);
    let begun_ns = cpu_ns();
    let mut trips = 0;
    loop {
        match stream.read_exact(&mut request) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            other => other?,
        }
        if let Some(file) = &file {
            file.write_all_at(&sector.0, trips * SECTOR_BYTES as u64 % FILE_BYTES)?;
        }
        stream.write_all(&answer)?;
        trips += 1;
    }
    Ok((cpu_ns() - begun_ns, trips))
}

fn measure(file: Option<File>, time: Duration) -> io::Result<Floor> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut stream = TcpStream::connect(listener.local_addr()?)?;
    stream.set_nodelay(true)?;
    let (peer, _) = listener.accept()?;
    peer.set_nodelay(true)?;
    let server = thread::spawn(move || serve(peer, file));
    let (request, mut answer) = ([1; REQUEST_BYTES], [0; ANSWER_BYTES]);
    let mut latencies =
        Histogram::<u64>::new_with_max(LATENCY_NS_MAX, 3).map_err(io::Error::other)?;
    let (begun, begun_ns) = (Instant::now(), cpu_ns());
    while begun.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(&request)?;
        stream.read_exact(&mut answer)?;
        latencies.saturating_record(sent.elapsed().as_nanos() as u64);
    }
    let (seconds, client_ns) = (begun.elapsed().as_secs_f64(), cpu_ns() - begun_ns);
    drop(stream);
    let server = server
        .join()
        .map_err(|_| io::Error::other("the server panicked"))?;
    let (server_ns, trips) = server?;
    let each_us = |all_ns: u64| all_ns as f64 / 1e3 / trips as f64;
    Ok(Floor {
        trips,
        per_second: trips as f64 / seconds,
        p50_us: latencies.value_at_quantile(0.5) as f64 / 1e3,
        p99_us: latencies.value_at_quantile(0.99) as f64 / 1e3,
        server_cpu_us: each_us(server_ns),
        client_cpu_us: each_us(client_ns),
    })
}

/// A round trip alone, and one with a flushed write of 4 KiB to a file in `directory`, `time` for each. Errors: there is no
/// room for 64 MiB, or the file system has no O_DIRECT.
pub fn floor(directory: &Path, time: Duration) -> io::Result<[Floor; 2]> {
    let file = prepared(directory)?;
    Ok([measure(None, time)?, measure(Some(file), time)?])
}

/// Both as a table.
pub fn text(floors: &[Floor; 2]) -> String {
    let mut out = format!(
        "{:36}{:>14}{:>10}{:>10}{:>15}{:>15}\n",
        "", "round trips/s", "p50 us", "p99 us", "server CPU-us", "client CPU-us"
    );
    for (name, floor) in ["loopback alone", "loopback and a flushed 4 KiB write"]
        .iter()
        .zip(floors)
    {
        out += &format!(
            "{name:36}{:>14.0}{:>10.1}{:>10.1}{:>15.1}{:>15.1}\n",
            floor.per_second, floor.p50_us, floor.p99_us, floor.server_cpu_us, floor.client_cpu_us
        );
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_round_trip_is_counted_and_the_file_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let floors = floor(directory.path(), Duration::from_millis(200)).unwrap();
        for floor in &floors {
            assert!(floor.trips > 0, "{floor:?}");
            assert!(
                0.0 < floor.p50_us && floor.p50_us <= floor.p99_us,
                "{floor:?}"
            );
            assert!(
                floor.server_cpu_us > 0.0 && floor.client_cpu_us > 0.0,
                "{floor:?}"
            );
            // One at a time: the median trips alone fill a part of the time, not more than all of it.
            assert!(floor.per_second * floor.p50_us / 2.0 < 1e6, "{floor:?}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let text = text(&floors);
        assert_eq!(text.lines().count(), 3, "{text}");
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(floor(&directory.path().join("none"), Duration::ZERO).is_err());
    }
}
