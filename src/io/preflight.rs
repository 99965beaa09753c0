//! Whether this machine lets us run, asked before any port is opened: kernel, io_uring, limits, file system, ports.
//!
//! Each answer that stops us is one line: what is missing, and what to do about it in a shell, in a systemd unit and in a
//! container. What only costs speed is a warning. The lock on the store is held as long as [`StoreLock`] lives.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::base::config::value::size;
use crate::base::limits::SECTOR_BYTES;
use crate::io::process::{self, Limit, Resource};

/// Oldest kernel that the executor works on: timed waits (5.11) and multishot polls (5.13).
const KERNEL_MIN: (u32, u32) = (5, 13);
/// Locked memory of the ring of one executor: 256 submissions of 64 bytes and 4096 completions of 16 are 80 KiB; with room.
const RING_BYTES_PER_SHARD: u64 = 192 << 10;
/// Descriptors without those of connections: rings, segments, listeners, logs.
const OPEN_FILES_MIN: u64 = 1024;
/// Below this a busy broker will run out.
const OPEN_FILES_ENOUGH: u64 = 8192;
/// What we ask for, if we may: each connection takes one.
const OPEN_FILES_WANTED: u64 = 1 << 20;

/// What is missing, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    pub what: String,
    pub remedy: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

fn obstacle(what: impl Into<String>, remedy: impl Into<String>) -> Obstacle {
    Obstacle {
        what: what.into(),
        remedy: remedy.into(),
    }
}

/// What a process is about to need.
pub struct Needs<'a> {
    pub shards: usize,
    /// Directory of the store, if there is one.
    pub store: Option<StoreNeeds<'a>>,
    /// Ports to open: what for, and where.
    pub ports: Vec<(&'static str, SocketAddr)>,
}

/// What the store is about to need.
pub struct StoreNeeds<'a> {
    pub root: &'a Path,
    /// Space that a new store takes at once.
    pub new_bytes: u64,
}

/// The result of all checks.
#[derive(Default)]
pub struct Report {
    /// The process must not start.
    pub obstacles: Vec<Obstacle>,
    /// It may, but an operator should know.
    pub warnings: Vec<Obstacle>,
    /// The store, ours alone until this is dropped.
    pub lock: Option<StoreLock>,
    /// The ports, ours alone among the processes of RingMQ until this is dropped.
    pub ports: Vec<PortGuard>,
}

/// Runs all checks, so that one start shows all that is missing.
pub fn check(needs: &Needs) -> Report {
    let mut report = Report::default();
    report.obstacles.extend(kernel());
    report.obstacles.extend(io_uring());
    locked_memory(needs, &mut report);
    open_files(&mut report);
    if let Some(store) = &needs.store {
        check_store(store, &mut report);
    }
    for (purpose, address) in &needs.ports {
        match PortGuard::take(purpose, *address) {
            Ok(guard) => report.ports.push(guard),
            Err(obstacle) => report.obstacles.push(obstacle),
        }
    }
    report
}

fn kernel() -> Option<Obstacle> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let release = release.trim();
    let version = parse_release(release)?;
    (version < KERNEL_MIN).then(|| {
        obstacle(
            format!(
                "kernel {release} is too old: io_uring as it is used here came with {}.{}",
                KERNEL_MIN.0, KERNEL_MIN.1
            ),
            "update the kernel of this host (a container uses its host's)",
        )
    })
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|char: char| !char.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Makes a ring and closes it.
fn io_uring() -> Option<Obstacle> {
    // struct io_uring_params is 120 bytes, all of which are zero for a plain ring.
    let mut params = [0u64; 15];
    // SAFETY: the kernel reads and writes 120 bytes at the pointer, which is the size of the array, and keeps nothing.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2, params.as_mut_ptr()) };
    if ring >= 0 {
        // SAFETY: the descriptor was made above and nobody else knows it.
        unsafe { libc::close(ring as libc::c_int) };
        return None;
    }
    let error = io::Error::last_os_error();
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    io_uring_obstacle(&error, disabled.as_deref().map(str::trim))
}

fn io_uring_obstacle(error: &io::Error, disabled: Option<&str>) -> Option<Obstacle> {
    let disabled = disabled.filter(|value| *value != "0");
    match error.raw_os_error() {
        Some(libc::ENOMEM) => Some(obstacle(
            "no locked memory is left for an io_uring ring",
            MEMLOCK_REMEDY,
        )),
        Some(libc::EPERM | libc::EACCES) if disabled.is_some() => Some(obstacle(
            format!(
                "io_uring is switched off by kernel.io_uring_disabled={}",
                disabled.unwrap_or_default()
            ),
            "on the host: sysctl kernel.io_uring_disabled=0, and the same line in a file of /etc/sysctl.d",
        )),
        Some(libc::ENOSYS | libc::EPERM | libc::EACCES) => Some(obstacle(
            format!("io_uring is not permitted here ({error})"),
            "docker and podman: --security-opt seccomp=tuning/container/seccomp.json (or unconfined): a profile that allows io_uring_setup, \
             io_uring_enter and io_uring_register; Kubernetes: seccompProfile of type Unconfined or Localhost; \
             systemd: no SystemCallFilter without @io-event and those three",
        )),
        // What a first ring does not tell, the executors will.
        _ => None,
    }
}

const MEMLOCK_REMEDY: &str = "shell: ulimit -l unlimited (as root, or in /etc/security/limits.conf); \
     systemd: LimitMEMLOCK=infinity; container: --ulimit memlock=-1";

fn locked_memory(needs: &Needs, report: &mut Report) {
    if process::may_lock_any_memory() {
        return;
    }
    let shards = needs.shards.max(1) as u64;
    let rings = RING_BYTES_PER_SHARD * shards;
    match process::raise(Resource::LockedBytes, rings) {
        Ok(limit) => report
            .obstacles
            .extend(locked_memory_obstacle(limit, rings, shards)),
        Err(error) => report.warnings.push(obstacle(
            format!("the limit of locked memory cannot be read ({error})"),
            MEMLOCK_REMEDY,
        )),
    }
}

/// Too little memory may be locked to start.
fn locked_memory_obstacle(limit: Limit, rings: u64, shards: u64) -> Option<Obstacle> {
    (limit.soft < rings).then(|| {
        let what = format!(
            "only {} of memory may be locked, and the rings of {shards} shards need {}",
            size(limit.soft),
            size(rings)
        );
        obstacle(what, MEMLOCK_REMEDY)
    })
}

fn open_files(report: &mut Report) {
    const REMEDY: &str = "shell: ulimit -n 1048576; systemd: LimitNOFILE=1048576; container: --ulimit nofile=1048576";
    match process::raise(Resource::OpenFiles, OPEN_FILES_WANTED) {
        Ok(limit) if limit.soft < OPEN_FILES_MIN => report.obstacles.push(obstacle(
            format!(
                "only {} files may be open, and {OPEN_FILES_MIN} are needed",
                limit.soft
            ),
            REMEDY,
        )),
        Ok(limit) if limit.soft < OPEN_FILES_ENOUGH => report.warnings.push(obstacle(
            format!(
                "only {} files may be open: each connection takes one",
                limit.soft
            ),
            REMEDY,
        )),
        Ok(_) => {}
        Err(error) => report.warnings.push(obstacle(
            format!("the limit of open files cannot be read ({error})"),
            REMEDY,
        )),
    }
}

fn check_store(needs: &StoreNeeds, report: &mut Report) {
    let root = needs.root;
    let shown = root.display();
    if let Err(error) = fs::create_dir_all(root) {
        report.obstacles.push(obstacle(
            format!("the store directory {shown} cannot be made ({error})"),
            "make it for this user, or choose another with --store",
        ));
        return;
    }
    if root.join("consumequeue").is_dir() && root.join("checkpoint").is_file() {
        report.obstacles.push(obstacle(
            format!("{shown} holds a store of the Java broker, whose files are different"),
            "choose another directory with --store or storePathRootDir; that one stays as it is",
        ));
        return;
    }
    // A store that has something besides its lock was in use before: it starts on a full disk too, for its readers.
    let new = fs::read_dir(root).is_ok_and(|entries| {
        entries
            .flatten()
            .all(|entry| entry.file_name() == StoreLock::FILE || entry.file_name() == "namesrv")
    });
    match StoreLock::take(root) {
        Ok(lock) => report.lock = Some(lock),
        Err(obstacle) => {
            report.obstacles.push(obstacle);
            return;
        }
    }
    check_space_and_kind(needs, new, report);
}

/// Whether a store can be in a directory that is there: O_DIRECT, a disk behind it, space. Makes and removes one small file.
pub fn check_file_system(needs: &StoreNeeds) -> Report {
    let mut report = Report::default();
    check_space_and_kind(needs, true, &mut report);
    report
}

fn check_space_and_kind(needs: &StoreNeeds, new: bool, report: &mut Report) {
    let root = needs.root;
    let shown = root.display();
    match direct_io(root) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::StorageFull => report.warnings.push(obstacle(
            format!("the file system of {shown} is full"),
            "free space: sends will be refused until there is some",
        )),
        Err(error) => report.obstacles.push(obstacle(
            format!("the file system of {shown} does not take O_DIRECT writes ({error})"),
            "put the store on ext4 or xfs with --store or storePathRootDir; container: mount a volume there",
        )),
    }
    if is_in_memory(root) {
        report.warnings.push(obstacle(
            format!("{shown} is in memory (tmpfs)"),
            "messages are lost with the machine: use a disk for anything but a test",
        ));
    }
    if let Ok(space) = crate::io::ring::disk_space(root)
        && space.available_bytes < needs.new_bytes
    {
        let what = format!(
            "{shown} has {} MiB free, and a new store takes {} at once",
            space.available_bytes >> 20,
            size(needs.new_bytes)
        );
        let remedy = "free space, choose another directory with --store, or take smaller segments with --set mappedFileSizeCommitLog=64MiB";
        if new {
            report.obstacles.push(obstacle(what, remedy));
        } else {
            report.warnings.push(obstacle(what, remedy));
        }
    }
}

/// Writes one sector with O_DIRECT into a file of its own and removes it.
fn direct_io(directory: &Path) -> io::Result<()> {
    #[repr(align(4096))]
    struct Sector([u8; SECTOR_BYTES]);

    let path = directory.join(format!(".direct-io-{}", std::process::id()));
    let result = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .and_then(|mut file| {
            let sector = Box::new(Sector([0; SECTOR_BYTES]));
            file.write_all(&sector.0)
        });
    // A file system that refuses the flag has made the file all the same.
    if let Err(error) = fs::remove_file(&path)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error);
    }
    result
}

fn is_in_memory(directory: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(directory.as_os_str().as_bytes()) else {
        return false;
    };
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path is NUL-terminated and outlives the call; `stat` has room for the answer, which is read only if
    // the call says that it filled it.
    unsafe {
        libc::statfs(path.as_ptr(), stat.as_mut_ptr()) == 0
            && stat.assume_init().f_type == libc::TMPFS_MAGIC
    }
}

/// The right to use a store, held by a lock on one of its files. The kernel takes it back when the process ends, however.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
    path: PathBuf,
}

impl StoreLock {
    /// Name of the file in the store's directory; it holds the process id of the owner.
    pub const FILE: &str = "lock";

    /// Takes it, or says who has it.
    pub fn take(root: &Path) -> Result<Self, Obstacle> {
        let path = root.join(Self::FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| {
                obstacle(
                    format!(
                        "the store's lock {} cannot be opened ({error})",
                        path.display()
                    ),
                    "give the directory to this user, or choose another with --store",
                )
            })?;
        // SAFETY: plain system call on a descriptor that `file` owns.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let mut owner = String::new();
            let _ = (&file).take(32).read_to_string(&mut owner);
            let owner = match owner.trim() {
                "" => "another process".to_owned(),
                pid => format!("process {pid}"),
            };
            return Err(obstacle(
                format!("{} is in use by {owner}", root.display()),
                "stop that one first, or choose another directory with --store",
            ));
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        // The lock holds without the text; a full disk must not keep readers out.
        drop(written);
        Ok(Self { _file: file, path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A process that was killed a moment ago keeps its ports, without an owner, until the kernel has wound up its rings.
const PORT_RELEASE_MAX: Duration = Duration::from_secs(5);

/// An address that no second process of RingMQ takes. Listeners are bound with SO_REUSEPORT, one per core, so the kernel
/// would let two brokers of one user share a port and spread the connections over both. The guard is a name in the
/// abstract space of Unix sockets, which belongs to the same network namespace as the port and ends with the process.
#[derive(Debug)]
pub struct PortGuard {
    _name: UnixListener,
}

impl PortGuard {
    fn take(purpose: &str, address: SocketAddr) -> Result<Self, Obstacle> {
        let name = UnixAddr::from_abstract_name(format!("ringmq/{address}"))
            .map_err(|error| refused_port(purpose, address, &error, None))?;
        let deadline = Instant::now() + PORT_RELEASE_MAX;
        loop {
            // The guard first: from then on nobody of ours comes between the look at the port and its listeners. The
            // look is without SO_REUSEPORT, so that a process that does not know of guards is seen too.
            let error = match UnixListener::bind_addr(&name) {
                Ok(held) => match TcpListener::bind(address) {
                    Ok(_) => return Ok(Self { _name: held }),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            let owner = listener_of(address);
            let ownerless = error.kind() == ErrorKind::AddrInUse && owner.is_none();
            if !ownerless || Instant::now() > deadline {
                return Err(refused_port(purpose, address, &error, owner));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn refused_port(
    purpose: &str,
    address: SocketAddr,
    error: &io::Error,
    owner: Option<(u32, String)>,
) -> Obstacle {
    let what = format!("{purpose} port {address}");
    match error.kind() {
        ErrorKind::AddrInUse => {
            let owner = match owner {
                Some((pid, name)) => format!("process {pid} ({name})"),
                None => "another process".to_owned(),
            };
            obstacle(
                format!("{what} is in use by {owner}"),
                format!(
                    "stop that one, or choose another port ({})",
                    port_flag(purpose)
                ),
            )
        }
        ErrorKind::PermissionDenied => obstacle(
            format!("{what} may not be opened by this user"),
            format!("choose a port above 1023 ({})", port_flag(purpose)),
        ),
        ErrorKind::AddrNotAvailable => obstacle(
            format!("{what}: this machine does not have the address"),
            "choose one that it has, or 0.0.0.0 for all (--bind)",
        ),
        _ => obstacle(
            format!("{what} cannot be opened ({error})"),
            "choose another address or port (--bind, --port)",
        ),
    }
}

fn port_flag(purpose: &str) -> &'static str {
    match purpose {
        "name server" => "--namesrv-port, or --port of ringmq namesrv",
        "broker VIP" => "--port, of which this is 2 below, or --set fastListenEnable=false",
        _ => "--port",
    }
}

/// Process id and name of who listens there, if this user may see it.
fn listener_of(address: SocketAddr) -> Option<(u32, String)> {
    const LISTENING: &str = "0A";
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .find_map(|table| {
            table.lines().skip(1).find_map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let (host, port) = fields.get(1)?.rsplit_once(':')?;
                let same_port = u16::from_str_radix(port, 16).ok()? == address.port();
                let any = host.bytes().all(|byte| byte == b'0');
                let same_host = any || address.ip().is_unspecified() || is_host(host, address.ip());
                let listens = *fields.get(3)? == LISTENING;
                (same_port && same_host && listens)
                    .then(|| (*fields.get(9)?).parse::<u64>().ok())?
            })
        })?;
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        let owns = descriptors
            .flatten()
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .any(|target| target.as_os_str() == wanted.as_str());
        if owns {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some((pid, name.trim().to_owned()));
        }
    }
    None
}

/// Whether a host in /proc/net/tcp is this IPv4 address; the kernel prints its bytes as a number of this machine's order.
fn is_host(text: &str, ip: IpAddr) -> bool {
    let IpAddr::V4(ip) = ip else { return false };
    #[allow(clippy::host_endian_bytes)]
    // The table is written in the order of the machine that reads it.
    let number = u32::from_ne_bytes(ip.octets());
    u32::from_str_radix(text, 16).is_ok_and(|shown| shown == number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;

    fn one_line(obstacle: &Obstacle) -> String {
        let line = obstacle.to_string();
        assert!(!line.contains('\n'));
        line
    }

    #[test]
    fn kernels_are_compared_by_number() {
        assert_eq!(parse_release("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(parse_release("5.15"), Some((5, 15)));
        assert!(parse_release("5.15").unwrap() > KERNEL_MIN);
        assert!(parse_release("4.19.0").unwrap() < KERNEL_MIN);
        assert_eq!(parse_release("plan9"), None);
    }

    #[test]
    fn each_way_to_forbid_io_uring_has_its_own_remedy() {
        let of = |errno, disabled| {
            io_uring_obstacle(&io::Error::from_raw_os_error(errno), disabled)
                .map(|obstacle| one_line(&obstacle))
        };
        assert!(
            of(libc::EPERM, Some("2"))
                .unwrap()
                .contains("sysctl kernel.io_uring_disabled=0")
        );
        assert!(of(libc::EPERM, Some("0")).unwrap().contains("seccomp"));
        assert!(of(libc::ENOSYS, None).unwrap().contains("--security-opt"));
        assert!(
            of(libc::ENOMEM, None)
                .unwrap()
                .contains("LimitMEMLOCK=infinity")
        );
        assert_eq!(of(libc::EMFILE, None), None);
    }

    #[test]
    fn too_little_locked_memory_stops_us_only_when_no_ring_fits() {
        let of = |soft| {
            let limit = Limit { soft, hard: soft };
            locked_memory_obstacle(limit, 256 << 10, 2).map(|obstacle| one_line(&obstacle))
        };
        let line = of(64 << 10).unwrap();
        assert!(
            line.contains("64 KiB") && line.contains("--ulimit memlock=-1"),
            "{line}"
        );
        assert_eq!(of(8 << 20), None);
    }

    #[test]
    fn a_store_belongs_to_one_process_and_the_refusal_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let lock = StoreLock::take(directory.path()).unwrap();
        assert_eq!(
            fs::read_to_string(lock.path()).unwrap().trim(),
            std::process::id().to_string()
        );
        let line = one_line(&StoreLock::take(directory.path()).unwrap_err());
        assert!(
            line.contains(&format!("process {}", std::process::id())),
            "{line}"
        );
        drop(lock);
        StoreLock::take(directory.path()).unwrap();
    }

    #[test]
    fn a_port_that_is_taken_names_its_owner() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let refused = |address| PortGuard::take("broker", address).unwrap_err();
        let line = one_line(&refused(address));
        assert!(
            line.contains(&format!("process {}", std::process::id())),
            "{line}"
        );
        assert!(line.contains("--port"), "{line}");
        let any = SocketAddr::from(([0, 0, 0, 0], address.port()));
        assert!(refused(any).what.contains("in use by process"));
        drop(taken);
        PortGuard::take("broker", address).unwrap();
        let nowhere = "192.0.2.1:1024".parse().unwrap();
        assert!(one_line(&refused(nowhere)).contains("--bind"));
    }

    #[test]
    fn a_port_is_kept_for_one_process_before_anything_listens_on_it() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let guard = PortGuard::take("broker", address).unwrap();
        // Nobody owns a listener there, so this one waits for the port to be given back.
        let second = thread::spawn(move || PortGuard::take("broker", address).map(drop));
        thread::sleep(Duration::from_millis(50));
        assert!(!second.is_finished());
        drop(guard);
        second.join().unwrap().unwrap();
    }

    #[test]
    fn a_store_of_the_java_broker_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("consumequeue")).unwrap();
        fs::write(directory.path().join("checkpoint"), b"").unwrap();
        let mut report = Report::default();
        let needs = StoreNeeds {
            root: directory.path(),
            new_bytes: 0,
        };
        check_store(&needs, &mut report);
        assert!(report.obstacles[0].what.contains("Java"));
        assert!(report.lock.is_none());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_store_directory_is_made_probed_and_left_clean() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let root = directory.path().join("deep/store");
        let mut report = Report::default();
        check_store(
            &StoreNeeds {
                root: &root,
                new_bytes: 1,
            },
            &mut report,
        );
        assert_eq!(report.obstacles, []);
        assert!(report.lock.is_some());
        let names: Vec<_> = fs::read_dir(&root)
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(names, [StoreLock::FILE]);
        drop(report);

        let mut report = Report::default();
        check_store(
            &StoreNeeds {
                root: &root,
                new_bytes: u64::MAX,
            },
            &mut report,
        );
        assert!(
            report.obstacles[0].what.contains("MiB free"),
            "{:?}",
            report.obstacles
        );
        drop(report);
        fs::write(root.join("some-log"), b"").unwrap();
        let mut report = Report::default();
        check_store(
            &StoreNeeds {
                root: &root,
                new_bytes: u64::MAX,
            },
            &mut report,
        );
        assert_eq!(
            report.obstacles,
            [],
            "a store that exists starts on a full disk"
        );
        assert!(!report.warnings.is_empty());

        let file = directory.path().join("file");
        fs::write(&file, b"").unwrap();
        let mut report = Report::default();
        check_store(
            &StoreNeeds {
                root: &file,
                new_bytes: 1,
            },
            &mut report,
        );
        assert!(one_line(&report.obstacles[0]).contains("--store"));
    }
}
