//! Waiting for the connections of one thread: in `recv` if there is one and nothing has a time, in epoll otherwise.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::connection::{Connection, ConnectionError};

/// How long a thread sleeps at most before it looks whether the run is over.
pub const NAP: Duration = Duration::from_millis(100);
/// Events of one wait.
const EVENTS_MAX: usize = 1024;

/// What became of one connection.
pub struct Ready {
    pub index: usize,
    pub readable: bool,
    pub writable: bool,
}

/// An epoll instance for connections that are known by their index.
pub struct Reactor {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    wants_output: Vec<bool>,
}

impl Reactor {
    /// Watches all of them for input.
    pub fn new<'a>(connections: impl Iterator<Item = &'a Connection>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut wants_output = Vec::new();
        for (index, connection) in connections.enumerate() {
            connection.stream().set_read_timeout(Some(NAP))?;
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&epoll, connection.stream(), data, epoll::EventFlags::IN)?;
            wants_output.push(false);
        }
        Ok(Self {
            epoll,
            events: Vec::with_capacity(EVENTS_MAX),
            wants_output,
        })
    }

    /// Whether a connection waits for room in its socket.
    pub fn is_stuck(&self, index: usize) -> bool {
        self.wants_output[index]
    }

    /// Writes what waits, and asks to be told when more can be written.
    pub fn flush(
        &mut self,
        index: usize,
        connection: &mut Connection,
    ) -> Result<(), ConnectionError> {
        if !connection.has_output() {
            return Ok(());
        }
        connection.flush()?;
        let wants = connection.has_output();
        if wants != self.wants_output[index] {
            self.wants_output[index] = wants;
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, wants);
            let data = epoll::EventData::new_u64(index as u64);
            epoll::modify(&self.epoll, connection.stream(), data, flags)
                .map_err(io::Error::from)?;
        }
        Ok(())
    }

    /// Waits until something can be read or written, at most `wait`.
    pub fn wait(&mut self, wait: Duration) -> io::Result<usize> {
        let timeout = Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: wait.subsec_nanos().into(),
        };
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            Some(&timeout),
        ) {
            Ok(_) | Err(Errno::INTR) => Ok(self.events.len()),
            Err(error) => Err(error.into()),
        }
    }

    /// What the last wait found.
    pub fn ready(&self, at: usize) -> Ready {
        let event = self.events[at];
        let flags = event.flags; // the struct is packed
        Ready {
            index: event.data.u64() as usize,
            readable: flags.intersects(!epoll::EventFlags::OUT),
            writable: flags.contains(epoll::EventFlags::OUT),
        }
    }
}

/// Pins the calling thread, and lets its timers fire when they are due and not up to 50 us later.
pub fn settle(cpu: Option<usize>) -> io::Result<()> {
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    if let Some(cpu) = cpu {
        if cpu >= rustix::thread::CpuSet::MAX_CPU {
            return Err(io::Error::other(format!("there is no processor {cpu}")));
        }
        let mut set = rustix::thread::CpuSet::new();
        set.set(cpu);
        rustix::thread::sched_setaffinity(None, &set)?;
    }
    Ok(())
}
