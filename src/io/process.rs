//! What the process may use and how it is told things: limits, cores, memory of the container, addresses, signals.
//!
//! Called at the start and never on a path of messages. Signals are blocked in every thread and taken one at a time by one
//! thread ([`Signals::next`]), so nothing ever runs inside a signal handler (but for the empty one of `io::nudge`). Facts that are missing are `None`: each caller
//! has a default, and a start must not fail because a file of /proc looks unusual.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};

/// Nanoseconds of the clock that never goes back and goes on while the machine sleeps (CLOCK_BOOTTIME): what a lease counts by.
pub fn sleepless_ns() -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the pointer is to a live value of the right type for the time of the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, time.as_mut_ptr()) };
    if result != 0 {
        // Linux has had this clock since 2.6.39. Without it no lease ever holds.
        return u64::MAX;
    }
    // SAFETY: clock_gettime filled it.
    let time = unsafe { time.assume_init() };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A signal that asks something of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// TERM or INT: stop.
    Stop,
    /// HUP: open the log files again.
    Reopen,
}

/// The signals of this process, blocked until they are asked for.
pub struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    /// Blocks them for this thread and all that it starts from now on, so call it first of all in `main`.
    /// A write to a closed socket or pipe becomes an error and no signal, as everywhere in Rust.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set before it is used; the other calls take pointers to it that outlive them.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(&mut set, signal);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) {
                0 => Ok(Self { set }),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        }
    }

    /// Waits for the next one.
    pub fn next(&self) -> Signal {
        loop {
            let mut signal = 0;
            // SAFETY: the set was initialised by `block`, and both pointers outlive the call.
            let error = unsafe { libc::sigwait(&self.set, &mut signal) };
            match (error, signal) {
                (0, libc::SIGHUP) => return Signal::Reopen,
                (0, _) => return Signal::Stop,
                // Only EINTR is possible with a valid set.
                _ => {}
            }
        }
    }
}

/// A limit of the process: what counts now, and how far it may raise that itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

/// Which limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Bytes that may be locked, which io_uring's rings and registered buffers count as.
    LockedBytes,
    OpenFiles,
}

impl Resource {
    fn number(self) -> libc::__rlimit_resource_t {
        match self {
            Self::LockedBytes => libc::RLIMIT_MEMLOCK,
            Self::OpenFiles => libc::RLIMIT_NOFILE,
        }
    }
}

/// Reads a limit; `u64::MAX` is none.
pub fn limit(resource: Resource) -> io::Result<Limit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a whole rlimit that outlives the call.
    match unsafe { libc::getrlimit(resource.number(), &mut limit) } {
        0 => Ok(Limit {
            soft: limit.rlim_cur,
            hard: limit.rlim_max,
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Raises a limit to `wanted` as far as the process may: with the right to it beyond the hard limit too. Never lowers.
pub fn raise(resource: Resource, wanted: u64) -> io::Result<Limit> {
    let now = limit(resource)?;
    if now.soft >= wanted {
        return Ok(now);
    }
    let tries = [
        Limit {
            soft: wanted,
            hard: now.hard.max(wanted),
        },
        Limit {
            soft: wanted.min(now.hard),
            hard: now.hard,
        },
    ];
    for Limit { soft, hard } in tries {
        let limit = libc::rlimit {
            rlim_cur: soft,
            rlim_max: hard,
        };
        // SAFETY: `limit` is a whole rlimit that outlives the call.
        if unsafe { libc::setrlimit(resource.number(), &limit) } == 0 {
            break;
        }
    }
    limit(resource)
}

/// Whether the process may lock memory without a limit (CAP_IPC_LOCK): then rings and buffers are not charged.
pub fn may_lock_any_memory() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let capabilities = fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        });
    capabilities.is_some_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1)
}

/// Numbers of the processors that this process may run on, in order.
pub fn processors() -> Vec<usize> {
    let mut set = std::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the set has the size that is passed, and all-zero is a valid one.
    let known =
        unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) } == 0;
    if !known {
        return Vec::new();
    }
    // SAFETY: zeroed above and filled by the kernel.
    let set = unsafe { set.assume_init() };
    (0..libc::CPU_SETSIZE as usize)
        // SAFETY: the number is below CPU_SETSIZE, which is what the set has room for.
        .filter(|&number| unsafe { libc::CPU_ISSET(number, &set) })
        .collect()
}

/// Hour of the day, 0 to 23, in local time.
pub fn local_hour(now_ms: u64) -> u8 {
    let seconds = (now_ms / 1000) as libc::time_t;
    let mut local = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are to live values of the right type for the time of the call.
    let done = unsafe { libc::localtime_r(&raw const seconds, local.as_mut_ptr()) };
    if done.is_null() {
        return (seconds / 3600 % 24) as u8;
    }
    // SAFETY: localtime_r filled it.
    unsafe { local.assume_init() }.tm_hour as u8
}

/// Cores that this process may run on: its affinity, bounded by the CPU quota of its cgroup. At least 1.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

/// Memory that this process may use in bytes: the limit of its cgroup (v2 or v1), else that of the machine.
pub fn memory_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| parse_meminfo(&text));
    let v1 = fs::read_to_string("/sys/fs/cgroup/memory/memory.limit_in_bytes").ok();
    cgroup_files("memory.max")
        .chain(v1)
        // "max" is no number, and v1 says none by a number larger than any machine.
        .filter_map(|text| text.trim().parse::<u64>().ok())
        .chain(machine)
        .min()
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The contents of one control file of our cgroup (v2) and of all above it, since each of them bounds us.
fn cgroup_files(name: &str) -> impl Iterator<Item = String> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or("")
        .to_owned();
    let root = Path::new("/sys/fs/cgroup");
    let directories: Vec<PathBuf> = root
        .join(path)
        .ancestors()
        .take_while(|directory| directory.starts_with(root))
        .map(Path::to_owned)
        .collect();
    let name = name.to_owned();
    directories
        .into_iter()
        .filter_map(move |directory| fs::read_to_string(directory.join(&name)).ok())
}

/// The host's name.
pub fn host_name() -> Option<String> {
    let mut buffer = [0u8; 256];
    // SAFETY: the pointer and the length are those of the buffer; its last byte stays 0, so it is always terminated.
    let result = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len() - 1) };
    if result != 0 {
        return None;
    }
    let name = CStr::from_bytes_until_nul(&buffer).ok()?.to_str().ok()?;
    (!name.is_empty() && name != "(none)").then(|| name.to_owned())
}

/// Whether this process runs in a container, by the marks that the usual runtimes leave.
pub fn in_container() -> bool {
    ["/.dockerenv", "/run/.containerenv"]
        .iter()
        .any(|path| Path::new(path).exists())
        || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        || std::env::var_os("container").is_some()
}

/// Our address on the default route, else the first one of an interface that is up and not loopback.
pub fn first_address() -> Option<IpAddr> {
    route_address(
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv4Addr::new(192, 0, 2, 1).into(),
    )
    .or_else(interface_address)
    .or_else(|| {
        let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        route_address(Ipv6Addr::UNSPECIFIED.into(), documentation.into())
    })
}

/// The kernel chooses a source address when a datagram socket is connected; nothing is sent.
fn route_address(any: IpAddr, far: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((far, 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

fn interface_address() -> Option<IpAddr> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: `list` outlives the call, which fills it with a list that is freed below.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return None;
    }
    let mut found = None;
    let mut next = list;
    // SAFETY: getifaddrs returned a NULL-terminated list that stays valid until freeifaddrs; an address with the family
    // AF_INET is a sockaddr_in.
    unsafe {
        while let Some(entry) = next.as_ref() {
            next = entry.ifa_next;
            let up = entry.ifa_flags & libc::IFF_UP as u32 != 0;
            let loopback = entry.ifa_flags & libc::IFF_LOOPBACK as u32 != 0;
            let Some(address) = entry.ifa_addr.as_ref() else {
                continue;
            };
            if up && !loopback && i32::from(address.sa_family) == libc::AF_INET && found.is_none() {
                let address = &*entry.ifa_addr.cast::<libc::sockaddr_in>();
                found = Some(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)));
            }
        }
        libc::freeifaddrs(list);
    }
    found.map(IpAddr::V4)
}

/// An address of a host name, IPv4 first since RocketMQ's clients expect it.
pub fn resolve(host: &str) -> Option<IpAddr> {
    let addresses: Vec<SocketAddr> = (host, 0).to_socket_addrs().ok()?.collect();
    let first = addresses
        .iter()
        .find(|address| address.is_ipv4())
        .or(addresses.first())?;
    Some(first.ip())
}

/// What the process uses now; a fact that /proc does not tell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub resident_bytes: Option<u64>,
    /// User and system time of all threads.
    pub cpu_seconds: Option<f64>,
    pub open_files: Option<u64>,
}

/// Reads it from /proc: three short reads.
pub fn usage() -> Usage {
    let pages = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| {
            let resident = text.split_whitespace().nth(1)?;
            resident.parse::<u64>().ok()
        });
    let ticks = fs::read_to_string("/proc/self/stat").ok().and_then(|text| {
        // The name of the process may have blanks and parentheses in it; utime and stime are the 12th and 13th behind it.
        let (_, behind) = text.rsplit_once(')')?;
        let mut fields = behind.split_whitespace().skip(11);
        let (user, system) = (fields.next()?, fields.next()?);
        Some(user.parse::<u64>().ok()? + system.parse::<u64>().ok()?)
    });
    let of_system = |name| {
        // SAFETY: plain system call without memory of ours.
        let value = unsafe { libc::sysconf(name) };
        u64::try_from(value).ok().filter(|&value| value > 0)
    };
    Usage {
        resident_bytes: pages
            .zip(of_system(libc::_SC_PAGESIZE))
            .map(|(pages, bytes)| pages * bytes),
        cpu_seconds: ticks
            .zip(of_system(libc::_SC_CLK_TCK))
            .map(|(ticks, per_second)| ticks as f64 / per_second as f64),
        open_files: fs::read_dir("/proc/self/fd")
            .ok()
            .map(|entries| entries.count() as u64),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       16384 kB\nMemFree: 1 kB\n";
        assert_eq!(parse_meminfo(text), Some(16384 << 10));
        assert_eq!(parse_meminfo("nothing"), None);
    }

    #[test]
    fn the_machine_tells_something_plausible() {
        assert!(cores() >= 1);
        assert!(memory_bytes().unwrap() > 16 << 20);
        assert_eq!(resolve("127.0.0.1"), Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(resolve("no.such.host.invalid"), None);
        assert!(first_address().is_none_or(|ip| !ip.is_loopback()));
    }

    #[test]
    fn a_limit_is_raised_up_to_the_hard_one_and_never_lowered() {
        let before = limit(Resource::OpenFiles).unwrap();
        assert_eq!(raise(Resource::OpenFiles, 1).unwrap(), before);
        let after = raise(Resource::OpenFiles, before.soft + 1).unwrap();
        assert!(after.soft >= before.soft && after.soft <= after.hard);
    }
}
