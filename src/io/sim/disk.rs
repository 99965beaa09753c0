//! A disk as a pure state machine: what is on the medium, what is only volatile, and what a crash makes of it.
//!
//! Every file has two images: `current`, which reads see, and `durable`, which a loss of power leaves at least. Between
//! them lies a list of volatile changes in their order. A flush moves changes to the durable image; a crash lets each
//! volatile write be lost, kept or torn on its own, and keeps a prefix of the changes of a file's length. Names are the
//! same one level up: changes of a directory become durable in their order, by `sync_dir` or by luck.
//! Time, tasks and faults by chance are the world's affair.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::base::limits::SECTOR_BYTES;
use crate::io::aligned_buf::PageBuf;
use crate::io::env::{DirEntry, DiskSpace};
use crate::io::sim::faults::{DiskOptions, Errno, OpKind};

const PAGE: u64 = SECTOR_BYTES as u64;
type Page = [u8; SECTOR_BYTES];
pub(super) type InodeId = u64;

/// An operation as it is submitted; its effect comes when it completes.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Write {
        inode: InodeId,
        position: u64,
        buf: Rc<PageBuf>,
        flush: bool,
    },
    Read {
        inode: InodeId,
        position: u64,
        bytes: usize,
    },
    /// Flushes the changes that were complete when it was submitted: up to `through`.
    Sync {
        inode: InodeId,
        through: u64,
    },
    Allocate {
        inode: InodeId,
        position: u64,
        bytes: u64,
    },
    Truncate {
        inode: InodeId,
        bytes: u64,
    },
    Len {
        inode: InodeId,
    },
    Open {
        path: PathBuf,
        create: bool,
    },
    List {
        directory: PathBuf,
    },
    CreateDir {
        directory: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    /// As [`Op::Sync`].
    SyncDir {
        directory: PathBuf,
        through: u64,
    },
}

impl Op {
    pub(super) fn kind(&self) -> OpKind {
        match self {
            Self::Write { .. } => OpKind::Write,
            Self::Read { .. } => OpKind::Read,
            Self::Sync { .. } => OpKind::Sync,
            Self::Allocate { .. } => OpKind::Allocate,
            Self::Truncate { .. } => OpKind::Truncate,
            Self::Len { .. } => OpKind::Len,
            Self::Open { .. } => OpKind::Open,
            Self::List { .. } => OpKind::List,
            Self::CreateDir { .. } => OpKind::CreateDir,
            Self::Rename { .. } => OpKind::Rename,
            Self::Remove { .. } => OpKind::Remove,
            Self::SyncDir { .. } => OpKind::SyncDir,
        }
    }

    /// What the trace shows of it: two numbers.
    pub(super) fn digest(&self) -> (u64, u64) {
        let of_path = |path: &Path| u64::from(crc32c::crc32c(path.as_os_str().as_encoded_bytes()));
        match self {
            Self::Write {
                inode,
                position,
                buf,
                ..
            } => (inode << 48 | position, u64::from(crc32c::crc32c(buf))),
            Self::Read {
                inode,
                position,
                bytes,
            } => (inode << 48 | position, *bytes as u64),
            Self::Sync { inode, through } => (*inode, *through),
            Self::Allocate {
                inode,
                position,
                bytes,
            } => (inode << 48 | position, *bytes),
            Self::Truncate { inode, bytes } => (*inode, *bytes),
            Self::Len { inode } => (*inode, 0),
            Self::Open { path, create } => (of_path(path), u64::from(*create)),
            Self::List { directory } | Self::CreateDir { directory } => (of_path(directory), 0),
            Self::Rename { from, to } => (of_path(from), of_path(to)),
            Self::Remove { path } => (of_path(path), 0),
            Self::SyncDir { directory, through } => (of_path(directory), *through),
        }
    }
}

/// What an operation gives.
pub(super) enum Output {
    Done,
    Inode(InodeId),
    Bytes(Vec<u8>),
    Entries(Vec<DirEntry>),
    Number(u64),
}

/// Content of a file; pages that are not there are zeros.
#[derive(Clone, Default)]
struct Image {
    pages: BTreeMap<u64, Rc<Page>>,
    len: u64,
}

impl Image {
    /// Makes everything from `len` on zeros, without changing the length.
    fn clear_from(&mut self, len: u64) {
        self.pages.split_off(&len.div_ceil(PAGE));
        let inside = (len % PAGE) as usize;
        if inside > 0
            && let Some(page) = self.pages.get_mut(&(len / PAGE))
        {
            Rc::make_mut(page)[inside..].fill(0);
        }
    }

    fn put(&mut self, pages: &[(u64, Rc<Page>)]) {
        for (index, page) in pages {
            self.pages.insert(*index, page.clone());
        }
    }

    /// Copies the chosen pieces of `atomic_bytes` only.
    fn put_pieces(
        &mut self,
        pages: &[(u64, Rc<Page>)],
        atomic_bytes: usize,
        mut chosen: impl FnMut() -> bool,
    ) {
        for (index, page) in pages {
            let target = self
                .pages
                .entry(*index)
                .or_insert_with(|| Rc::new([0; SECTOR_BYTES]));
            for piece in (0..SECTOR_BYTES).step_by(atomic_bytes) {
                if chosen() {
                    let range = piece..piece + atomic_bytes;
                    Rc::make_mut(target)[range.clone()].copy_from_slice(&page[range]);
                }
            }
        }
    }

    fn read(&self, position: u64, bytes: usize) -> Vec<u8> {
        let bytes = self.len.saturating_sub(position).min(bytes as u64) as usize;
        let mut content = Vec::with_capacity(bytes);
        let mut index = position / PAGE;
        while content.len() < bytes {
            let take = (bytes - content.len()).min(SECTOR_BYTES);
            match self.pages.get(&index) {
                Some(page) => content.extend_from_slice(&page[..take]),
                None => content.resize(content.len() + take, 0),
            }
            index += 1;
        }
        content
    }
}

enum Change {
    Write(Vec<(u64, Rc<Page>)>),
    /// The length becomes this; what lay behind is gone.
    Truncate(u64),
    /// The length becomes at least this.
    Extend(u64),
}

struct Volatile {
    serial: u64,
    change: Change,
}

#[derive(Default)]
struct Inode {
    current: Image,
    durable: Image,
    volatile: Vec<Volatile>,
    /// Bytes of space that the file takes; files are filled from the front.
    allocated_bytes: u64,
}

impl Inode {
    /// Makes one change durable. The caller goes by the order of the changes.
    fn settle(durable: &mut Image, change: &Change) {
        match change {
            Change::Write(pages) => durable.put(pages),
            Change::Truncate(len) => {
                durable.clear_from(*len);
                durable.len = *len;
            }
            Change::Extend(len) => durable.len = durable.len.max(*len),
        }
    }

    /// Makes the changes of the length durable, as a flush of a write does that needs them to be found again.
    fn settle_length(&mut self) {
        let mut kept: Vec<Volatile> = Vec::new();
        for entry in std::mem::take(&mut self.volatile) {
            match &entry.change {
                Change::Write(_) => kept.push(entry),
                Change::Extend(_) => Self::settle(&mut self.durable, &entry.change),
                Change::Truncate(len) => {
                    Self::settle(&mut self.durable, &entry.change);
                    for earlier in &mut kept {
                        if let Change::Write(pages) = &mut earlier.change {
                            let mut cut = Image::default();
                            cut.put(pages);
                            cut.clear_from(*len);
                            *pages = cut.pages.into_iter().collect();
                        }
                    }
                }
            }
        }
        self.volatile = kept;
    }
}

#[derive(Clone, Debug)]
enum NameChange {
    Create(PathBuf, InodeId),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    MakeDir(PathBuf),
}

impl NameChange {
    fn directories(&self) -> Vec<PathBuf> {
        match self {
            Self::Create(path, _) | Self::Remove(path) | Self::MakeDir(path) => {
                vec![parent(path)]
            }
            Self::Rename(from, to) => vec![parent(from), parent(to)],
        }
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}

#[derive(Clone, Default)]
struct Names {
    files: BTreeMap<PathBuf, InodeId>,
    directories: BTreeSet<PathBuf>,
}

impl Names {
    fn apply(&mut self, change: &NameChange) {
        match change {
            NameChange::Create(path, inode) => {
                self.files.insert(path.clone(), *inode);
            }
            NameChange::Rename(from, to) => {
                if let Some(inode) = self.files.remove(from) {
                    self.files.insert(to.clone(), inode);
                }
            }
            NameChange::Remove(path) => {
                self.files.remove(path);
            }
            NameChange::MakeDir(path) => {
                self.directories.insert(path.clone());
            }
        }
    }

    fn has_directory(&self, path: &Path) -> bool {
        path.as_os_str().is_empty() || path == Path::new("/") || self.directories.contains(path)
    }

    /// Whether a path is reachable: a directory that is lost takes all in it with it.
    fn reaches(&self, path: &Path) -> bool {
        path.ancestors()
            .skip(1)
            .all(|ancestor| self.has_directory(ancestor))
    }
}

/// A machine's disk. Tests look at it, fill it and spoil it through [`crate::io::sim::Control::with_disk`].
pub struct Disk {
    /// May be changed at any time.
    pub options: DiskOptions,
    inodes: BTreeMap<InodeId, Inode>,
    current: Names,
    durable: Names,
    volatile_names: Vec<(u64, NameChange)>,
    /// Number of the next change; one counter for all, so that "before" has a meaning.
    next_serial: u64,
    next_inode: InodeId,
    counts: BTreeMap<OpKind, u64>,
    count: u64,
}

impl Disk {
    pub(super) fn new(options: DiskOptions) -> Self {
        Self {
            options,
            inodes: BTreeMap::new(),
            current: Names::default(),
            durable: Names::default(),
            volatile_names: Vec::new(),
            next_serial: 0,
            next_inode: 1,
            counts: BTreeMap::new(),
            count: 0,
        }
    }

    /// How many operations of a kind were submitted since the disk was made.
    pub fn count_of(&self, kind: OpKind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// How many operations were submitted since the disk was made.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Files with their lengths as a running process sees them.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        self.current
            .files
            .iter()
            .map(|(path, inode)| (path.clone(), self.inodes[inode].current.len))
            .collect()
    }

    /// Content of a file as a running process sees it.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let image = &self.inodes[self.current.files.get(path)?].current;
        Some(image.read(0, image.len as usize))
    }

    /// Bit rot: flips bits of one byte, on the medium and for readers. Returns false if there is no such byte.
    pub fn flip_bits(&mut self, path: &Path, position: u64, mask: u8) -> bool {
        let Some(inode) = self
            .current
            .files
            .get(path)
            .and_then(|inode| self.inodes.get_mut(inode))
        else {
            return false;
        };
        if position >= inode.current.len {
            return false;
        }
        for image in [&mut inode.current, &mut inode.durable] {
            let page = image
                .pages
                .entry(position / PAGE)
                .or_insert_with(|| Rc::new([0; SECTOR_BYTES]));
            Rc::make_mut(page)[(position % PAGE) as usize] ^= mask;
        }
        true
    }

    /// Space as `statvfs` would tell.
    pub fn space(&self) -> DiskSpace {
        DiskSpace {
            total_bytes: self.options.capacity_bytes,
            available_bytes: self
                .options
                .capacity_bytes
                .saturating_sub(self.used_bytes()),
        }
    }

    fn used_bytes(&self) -> u64 {
        self.current
            .files
            .values()
            .map(|inode| self.inodes[inode].allocated_bytes)
            .sum()
    }

    /// Counts an operation and tells its fault, if it has one.
    pub(super) fn submit(&mut self, random: &mut fastrand::Rng, kind: OpKind) -> Option<Errno> {
        let of_kind = self.counts.entry(kind).or_default();
        let (nth_of_kind, nth) = (*of_kind, self.count);
        *of_kind += 1;
        self.count += 1;
        self.options.faults.decide(random, kind, nth_of_kind, nth)
    }

    /// The number up to which changes are complete now.
    pub(super) fn serial(&self) -> u64 {
        self.next_serial
    }

    fn take_serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }

    /// Carries out an operation that ends well.
    pub(super) fn perform(&mut self, random: &mut fastrand::Rng, op: Op) -> io::Result<Output> {
        match op {
            Op::Write {
                inode,
                position,
                buf,
                flush,
            } => self.write(inode, position, &buf, flush)?,
            Op::Read {
                inode,
                position,
                bytes,
            } => {
                let content = self.inode(inode).current.read(position, bytes);
                return Ok(Output::Bytes(content));
            }
            Op::Sync { inode, through } => {
                if self.options.honest_flush {
                    let file = self.inode(inode);
                    let durable = &mut file.durable;
                    file.volatile.retain(|entry| {
                        let settled = entry.serial <= through;
                        if settled {
                            Inode::settle(durable, &entry.change);
                        }
                        !settled
                    });
                }
            }
            Op::Allocate {
                inode,
                position,
                bytes,
            } => {
                self.reserve(inode, position + bytes)?;
                self.extend(inode, position + bytes);
            }
            Op::Truncate { inode, bytes } => {
                let serial = self.take_serial();
                let file = self.inode(inode);
                file.current.clear_from(bytes);
                file.current.len = bytes;
                file.allocated_bytes = file.allocated_bytes.min(bytes.next_multiple_of(PAGE));
                file.volatile.push(Volatile {
                    serial,
                    change: Change::Truncate(bytes),
                });
            }
            Op::Len { inode } => return Ok(Output::Number(self.inode(inode).current.len)),
            Op::Open { path, create } => return self.open(path, create).map(Output::Inode),
            Op::List { directory } => {
                if !self.current.has_directory(&directory) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let mut entries: Vec<DirEntry> = self
                    .current
                    .files
                    .iter()
                    .filter(|(path, _)| path.parent() == Some(&directory))
                    .filter_map(|(path, inode)| {
                        let name = path.file_name()?.to_str()?.to_owned();
                        Some((name, self.inodes[inode].current.len))
                    })
                    .collect();
                random.shuffle(&mut entries);
                return Ok(Output::Entries(entries));
            }
            Op::CreateDir { directory } => {
                let mut missing: Vec<&Path> = directory
                    .ancestors()
                    .take_while(|ancestor| !self.current.has_directory(ancestor))
                    .collect();
                missing.reverse();
                let missing: Vec<PathBuf> = missing.into_iter().map(Path::to_owned).collect();
                for path in missing {
                    self.change_names(NameChange::MakeDir(path));
                }
            }
            Op::Rename { from, to } => {
                if !self.current.files.contains_key(&from)
                    || !self.current.has_directory(&parent(&to))
                {
                    return Err(io::ErrorKind::NotFound.into());
                }
                self.change_names(NameChange::Rename(from, to));
            }
            Op::Remove { path } => {
                if !self.current.files.contains_key(&path) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                self.change_names(NameChange::Remove(path));
            }
            Op::SyncDir { directory, through } => {
                if !self.current.has_directory(&directory) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                if self.options.honest_flush {
                    self.settle_names(&directory, through);
                }
            }
        }
        Ok(Output::Done)
    }

    /// Carries out an operation that ends with an error, as far as chance has it.
    pub(super) fn fail(&mut self, random: &mut fastrand::Rng, op: Op, errno: Errno) -> io::Error {
        if errno == Errno::Io {
            match op {
                Op::Write { .. } => self.perform_partly(random, op),
                // The bytes are no longer waiting for a flush, whether they arrived or not: a second flush says that
                // all is well. The length is the file system's own and is not forgotten.
                Op::Sync { inode, through } => {
                    let file = self.inode(inode);
                    let durable = &mut file.durable;
                    file.volatile.retain(|entry| {
                        let forgotten =
                            entry.serial <= through && matches!(entry.change, Change::Write(_));
                        if forgotten && random.bool() {
                            Inode::settle(durable, &entry.change);
                        }
                        !forgotten
                    });
                }
                Op::SyncDir { directory, through } if random.bool() => {
                    self.settle_names(&directory, through);
                }
                Op::Truncate { .. }
                | Op::Allocate { .. }
                | Op::Rename { .. }
                | Op::Remove { .. }
                    if random.bool() =>
                {
                    let _ = self.perform(random, op);
                }
                _ => {}
            }
        }
        errno.to_error()
    }

    /// What is left of an operation that nobody waited for to its end: all, nothing, or for a write some pieces.
    fn perform_partly(&mut self, random: &mut fastrand::Rng, op: Op) {
        let Op::Write {
            inode,
            position,
            buf,
            flush,
        } = op
        else {
            if random.bool() {
                let _ = self.perform(random, op);
            }
            return;
        };
        let flush = flush && random.bool();
        match random.u8(..4) {
            0 => {}
            1 => {
                let _ = self.write(inode, position, &buf, flush);
            }
            _ => {
                let atomic_bytes = self.options.atomic_bytes;
                let end = position + buf.len() as u64;
                let mut torn = Image {
                    pages: self
                        .inode(inode)
                        .current
                        .pages
                        .range(position / PAGE..end / PAGE)
                        .map(|(index, page)| (*index, page.clone()))
                        .collect(),
                    len: end,
                };
                torn.put_pieces(&split(position, &buf), atomic_bytes, || random.bool());
                let torn = PageBuf::from_heap(torn.read(position, buf.len()));
                let _ = self.write(inode, position, &torn, flush);
            }
        }
    }

    fn inode(&mut self, inode: InodeId) -> &mut Inode {
        self.inodes
            .get_mut(&inode)
            .expect("an open file keeps its inode until its machine crashes")
    }

    fn write(
        &mut self,
        inode: InodeId,
        position: u64,
        buf: &PageBuf,
        flush: bool,
    ) -> io::Result<()> {
        let end = position + buf.len() as u64;
        self.reserve(inode, end)?;
        let pages = split(position, buf);
        let durable = flush && self.options.honest_flush;
        let extends = end > self.inode(inode).current.len;
        self.extend(inode, end);
        let serial = self.take_serial();
        let file = self.inode(inode);
        file.current.put(&pages);
        if durable {
            if extends || file.durable.len < end {
                file.settle_length();
            }
            let range = position / PAGE..end / PAGE;
            for entry in &mut file.volatile {
                if let Change::Write(older) = &mut entry.change {
                    older.retain(|(index, _)| !range.contains(index));
                }
            }
            file.durable.put(&pages);
        } else {
            file.volatile.push(Volatile {
                serial,
                change: Change::Write(pages),
            });
        }
        Ok(())
    }

    /// Takes space for a file up to `end`.
    fn reserve(&mut self, inode: InodeId, end: u64) -> io::Result<()> {
        let available = self.space().available_bytes;
        let file = self.inode(inode);
        let more = end
            .next_multiple_of(PAGE)
            .saturating_sub(file.allocated_bytes);
        if more > available {
            return Err(Errno::NoSpace.to_error());
        }
        file.allocated_bytes += more;
        Ok(())
    }

    fn extend(&mut self, inode: InodeId, end: u64) {
        if end > self.inode(inode).current.len {
            let serial = self.take_serial();
            let file = self.inode(inode);
            file.current.len = end;
            file.volatile.push(Volatile {
                serial,
                change: Change::Extend(end),
            });
        }
    }

    fn open(&mut self, path: PathBuf, create: bool) -> io::Result<InodeId> {
        if let Some(inode) = self.current.files.get(&path) {
            return Ok(*inode);
        }
        if self.current.has_directory(&path) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !create || !self.current.has_directory(&parent(&path)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(inode, Inode::default());
        self.change_names(NameChange::Create(path, inode));
        Ok(inode)
    }

    fn change_names(&mut self, change: NameChange) {
        let serial = self.take_serial();
        self.current.apply(&change);
        self.volatile_names.push((serial, change));
    }

    /// Makes the changes of a directory durable, and those of another one that they depend on.
    fn settle_names(&mut self, directory: &Path, through: u64) {
        let mut wanted = BTreeSet::from([directory.to_owned()]);
        let mut chosen = BTreeSet::new();
        for (serial, change) in self.volatile_names.iter().rev() {
            let directories = change.directories();
            if *serial <= through && directories.iter().any(|one| wanted.contains(one)) {
                chosen.insert(*serial);
                wanted.extend(directories);
            }
        }
        let durable = &mut self.durable;
        self.volatile_names.retain(|(serial, change)| {
            let settled = chosen.contains(serial);
            if settled {
                durable.apply(change);
            }
            !settled
        });
    }

    /// The process ends: what was in flight happens, happens in part, or does not.
    pub(super) fn lose_process(&mut self, random: &mut fastrand::Rng, mut in_flight: Vec<Op>) {
        random.shuffle(&mut in_flight);
        for op in in_flight {
            self.perform_partly(random, op);
        }
    }

    /// The power fails: each volatile change is lost, kept or torn.
    pub(super) fn lose_power(&mut self, random: &mut fastrand::Rng, in_flight: Vec<Op>) {
        self.lose_process(random, in_flight);
        // Extremes are drawn on purpose: a middle rate for everything would hardly ever lose or keep all.
        let keep_percent = [0, 10, 50, 90, 100][random.usize(..5)];
        let tear_percent = [0, 30, 100][random.usize(..3)];
        let atomic_bytes = self.options.atomic_bytes;
        for file in self.inodes.values_mut() {
            let mut length_is_lost = false;
            for entry in file.volatile.drain(..) {
                match &entry.change {
                    Change::Write(pages) => {
                        if random.u32(..100) < tear_percent {
                            let piece_percent = random.u32(1..100);
                            file.durable.put_pieces(pages, atomic_bytes, || {
                                random.u32(..100) < piece_percent
                            });
                        } else if random.u32(..100) < keep_percent {
                            file.durable.put(pages);
                        }
                    }
                    change => {
                        length_is_lost |= random.u32(..100) >= keep_percent;
                        if !length_is_lost {
                            Inode::settle(&mut file.durable, change);
                        }
                    }
                }
            }
            let len = file.durable.len;
            file.durable.clear_from(len);
            file.current = file.durable.clone();
            file.allocated_bytes = len.next_multiple_of(PAGE);
        }
        let mut lost: BTreeSet<PathBuf> = BTreeSet::new();
        for (_, change) in std::mem::take(&mut self.volatile_names) {
            let directories = change.directories();
            if random.u32(..100) >= keep_percent || directories.iter().any(|one| lost.contains(one))
            {
                lost.extend(directories);
            } else {
                self.durable.apply(&change);
            }
        }
        let whole = self.durable.clone();
        self.durable.directories.retain(|path| whole.reaches(path));
        self.durable.files.retain(|path, _| whole.reaches(path));
        self.current = self.durable.clone();
        let named: BTreeSet<InodeId> = self.durable.files.values().copied().collect();
        self.inodes.retain(|inode, _| named.contains(inode));
    }
}

thread_local! {
    /// Most pages that are ever written are the zeros ahead of a log: they share this one.
    static ZEROS: Rc<Page> = Rc::new([0; SECTOR_BYTES]);
}

/// Cuts a write into pages.
fn split(position: u64, buf: &PageBuf) -> Vec<(u64, Rc<Page>)> {
    ZEROS.with(|zeros| {
        buf.chunks_exact(SECTOR_BYTES)
            .enumerate()
            .map(|(at, chunk)| {
                let page = if *chunk == zeros[..] {
                    zeros.clone()
                } else {
                    Rc::<[u8]>::from(chunk)
                        .try_into()
                        .expect("a chunk is a page")
                };
                (position / PAGE + at as u64, page)
            })
            .collect()
    })
}
