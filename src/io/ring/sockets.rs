//! The sockets of an executor: one epoll set, edge-triggered, in which each socket is registered once for its life.
//!
//! The ring polls the set only before a sleep in which a socket may wake the executor. While a commit is on its way to
//! the device it does not: what arrives meanwhile could only wait for the next commit, so it is found by one look when
//! the first one ends, instead of by one wake each.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Waker};

use slab::Slab;

/// Events that one look takes at once.
const EVENTS: usize = 256;
/// Both directions, and the peer's end; told once per change.
const ALL_EVENTS: i32 = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
/// After these, tries never block again.
const END_EVENTS: i32 = libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR;

/// What is known of one direction of a socket.
pub(super) struct Readiness {
    /// Worth a try. A system call that would block clears it.
    pub ready: Cell<bool>,
    /// The other side has ended, or the socket failed: tries never block again.
    pub ended: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Readiness {
    fn new() -> Self {
        Self {
            ready: Cell::new(true),
            ended: Cell::new(false),
            waker: RefCell::new(None),
        }
    }

    pub fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Remembers whom to wake.
    pub fn wait(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }
}

/// Both directions of a socket.
pub(super) struct Directions {
    pub readable: Readiness,
    pub writable: Readiness,
}

impl Directions {
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            readable: Readiness::new(),
            writable: Readiness::new(),
        })
    }
}

/// The set of an executor.
pub(super) struct Sockets {
    epoll: OwnedFd,
    known: RefCell<Slab<Rc<Directions>>>,
    events: RefCell<Vec<libc::epoll_event>>,
}

impl Sockets {
    /// Errors as `epoll_create1(2)`.
    pub fn new() -> io::Result<Self> {
        // SAFETY: plain system call.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: a new descriptor that nobody else owns.
            epoll: unsafe { OwnedFd::from_raw_fd(epoll) },
            known: RefCell::default(),
            events: RefCell::new(vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS]),
        })
    }

    /// Readable while there is something to look at.
    pub fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn control(&self, operation: i32, descriptor: RawFd, key: usize) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: ALL_EVENTS as u32,
            u64: key as u64,
        };
        // SAFETY: the event is a local that the kernel copies.
        match unsafe { libc::epoll_ctl(self.as_raw_fd(), operation, descriptor, &raw mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Takes a descriptor into the set. It has to be [removed](Self::remove) before it is closed.
    pub fn add(&self, descriptor: RawFd, directions: Rc<Directions>) -> io::Result<usize> {
        let key = self.known.borrow_mut().insert(directions);
        let added = self.control(libc::EPOLL_CTL_ADD, descriptor, key);
        if added.is_err() {
            self.known.borrow_mut().remove(key);
        }
        added.map(|()| key)
    }

    /// Forgets a descriptor, which is still open.
    pub fn remove(&self, descriptor: RawFd, key: usize) {
        // An error would mean that the kernel does not know it, which is what is wanted.
        let _ = self.control(libc::EPOLL_CTL_DEL, descriptor, key);
        let directions = self.known.borrow_mut().try_remove(key);
        drop(directions);
    }

    /// Asks the kernel what has changed, without waiting, and wakes whom it concerns.
    pub fn look(&self) {
        let mut events = self.events.borrow_mut();
        loop {
            // SAFETY: room for EVENTS events, which this function alone borrows.
            let count = unsafe {
                libc::epoll_wait(self.as_raw_fd(), events.as_mut_ptr(), EVENTS as i32, 0)
            };
            // An error can only be a signal: the next look sees the same.
            let count = usize::try_from(count).unwrap_or(0);
            for event in &events[..count] {
                let (told, key) = (event.events as i32, event.u64 as usize);
                // Gone between two looks: removed, and its event was on its way.
                let Some(directions) = self.known.borrow().get(key).cloned() else {
                    continue;
                };
                let ended = told & END_EVENTS != 0;
                for (direction, wanted) in [
                    (&directions.readable, libc::EPOLLIN),
                    (&directions.writable, libc::EPOLLOUT),
                ] {
                    if ended {
                        direction.ended.set(true);
                    }
                    if ended || told & wanted != 0 {
                        direction.ready.set(true);
                        direction.wake();
                    }
                }
            }
            if count < EVENTS {
                return;
            }
        }
    }
}
