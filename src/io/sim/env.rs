//! [`Env`] and [`DiskFile`] of the simulated world. A handle whose process has crashed is dead: its futures never end
//! and change nothing.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::base::limits::SECTOR_BYTES;
use crate::io::aligned_buf::PageBuf;
use crate::io::env::{DirEntry, DiskFile, DiskSpace, Env, OpenMode};
use crate::io::sim::disk::{InodeId, Op, Output};
use crate::io::sim::world::{Control, NodeId, Slot};

/// A core of a simulated machine.
#[derive(Clone)]
pub struct SimEnv {
    control: Control,
    node: NodeId,
    incarnation: u32,
}

impl SimEnv {
    pub(super) fn new(control: Control, node: NodeId, incarnation: u32) -> Self {
        Self {
            control,
            node,
            incarnation,
        }
    }

    /// The machine that this core belongs to.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The world that the machine is in.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Whether the process of this handle still runs.
    pub fn is_alive(&self) -> bool {
        self.control.is_alive(self.node, self.incarnation)
    }

    fn disk_op(&self, op: Op) -> DiskOp {
        DiskOp {
            env: self.clone(),
            op: Some(op),
            slot: None,
        }
    }

    async fn done(operation: DiskOp) -> io::Result<()> {
        operation.await.map(|_| ())
    }

    fn spawn_task(&self, background: bool, task: impl Future<Output = ()> + 'static) {
        if self.is_alive() {
            let home = Some((self.node, self.incarnation));
            self.control.spawn_at(home, background, Box::pin(task));
        }
    }
}

/// An operation of the disk: submitted at its first poll, as in production. Once submitted it goes on without us.
struct DiskOp {
    env: SimEnv,
    op: Option<Op>,
    slot: Option<Rc<RefCell<Slot>>>,
}

impl Future for DiskOp {
    type Output = io::Result<Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if !self.env.is_alive() {
            return Poll::Pending;
        }
        if let Some(mut op) = self.op.take() {
            let env = &self.env;
            if let Op::Sync { through, .. } | Op::SyncDir { through, .. } = &mut op {
                *through = env.control.with_disk(env.node, |disk| disk.serial());
            }
            let slot = env.control.submit(env.node, op);
            self.slot = Some(slot);
        }
        let slot = self.slot.as_ref().expect("submitted above");
        let mut slot = slot.borrow_mut();
        match slot.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Env for SimEnv {
    type File = SimFile;

    fn now_ms(&self) -> u64 {
        self.control.wall_ms(self.node)
    }

    fn now_ns(&self) -> u64 {
        self.control.now_ns()
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.control.sleep_on(self.node, self.incarnation, duration)
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawn_task(false, task);
    }

    fn spawn_background(&self, task: impl Future<Output = ()> + 'static) {
        self.spawn_task(true, task);
    }

    fn random_u64(&self) -> u64 {
        self.control.random_u64()
    }

    fn read_memory_is_ready(&self) -> bool {
        !self.control.memory_is_slow()
    }

    /// The content is a random byte over and over: nobody may rely on zeros.
    fn alloc(&self, bytes: usize) -> PageBuf {
        assert!(
            bytes > 0 && bytes.is_multiple_of(SECTOR_BYTES),
            "whole sectors"
        );
        PageBuf::from_heap(vec![self.random_u64() as u8; bytes])
    }

    fn open(
        &self,
        path: &Path,
        mode: OpenMode,
    ) -> impl Future<Output = io::Result<SimFile>> + 'static {
        let env = self.clone();
        let operation = self.disk_op(Op::Open {
            path: path.to_owned(),
            create: mode.create,
        });
        async move {
            match operation.await? {
                Output::Inode(inode) => Ok(SimFile {
                    env,
                    inode,
                    flush: mode.flush_each_write,
                }),
                _ => unreachable!("opening gives an inode"),
            }
        }
    }

    fn list(&self, directory: &Path) -> impl Future<Output = io::Result<Vec<DirEntry>>> + 'static {
        let operation = self.disk_op(Op::List {
            directory: directory.to_owned(),
        });
        async move {
            match operation.await? {
                Output::Entries(entries) => Ok(entries),
                _ => unreachable!("listing gives entries"),
            }
        }
    }

    fn create_dir(&self, directory: &Path) -> impl Future<Output = io::Result<()>> + 'static {
        Self::done(self.disk_op(Op::CreateDir {
            directory: directory.to_owned(),
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>> + 'static {
        Self::done(self.disk_op(Op::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        }))
    }

    fn remove(&self, path: &Path) -> impl Future<Output = io::Result<()>> + 'static {
        Self::done(self.disk_op(Op::Remove {
            path: path.to_owned(),
        }))
    }

    fn sync_dir(&self, directory: &Path) -> impl Future<Output = io::Result<()>> + 'static {
        Self::done(self.disk_op(Op::SyncDir {
            directory: directory.to_owned(),
            through: 0,
        }))
    }

    fn disk_space(&self, _directory: &Path) -> io::Result<DiskSpace> {
        Ok(self.control.with_disk(self.node, |disk| disk.space()))
    }
}

/// An open file of a simulated disk.
#[derive(Clone)]
pub struct SimFile {
    env: SimEnv,
    inode: InodeId,
    flush: bool,
}

impl DiskFile for SimFile {
    fn write_at(
        &self,
        buf: Rc<PageBuf>,
        position: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        assert!(
            buf.len().is_multiple_of(SECTOR_BYTES)
                && position.is_multiple_of(SECTOR_BYTES as u64)
                && !buf.is_empty(),
            "a write of {} bytes at {position}: not whole sectors",
            buf.len()
        );
        SimEnv::done(self.env.disk_op(Op::Write {
            inode: self.inode,
            position,
            buf,
            flush: self.flush,
        }))
    }

    fn write_all_at(
        &self,
        bufs: Vec<Rc<PageBuf>>,
        position: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let mut whole = Vec::with_capacity(bufs.iter().map(|buf| buf.len()).sum());
        for buf in &bufs {
            whole.extend_from_slice(buf);
        }
        self.write_at(Rc::new(PageBuf::from_heap(whole)), position)
    }

    fn read_at(
        &self,
        position: u64,
        bytes: usize,
    ) -> impl Future<Output = io::Result<PageBuf>> + 'static {
        assert!(
            bytes.is_multiple_of(SECTOR_BYTES) && position.is_multiple_of(SECTOR_BYTES as u64),
            "a read of {bytes} bytes at {position}: not whole sectors"
        );
        let operation = self.env.disk_op(Op::Read {
            inode: self.inode,
            position,
            bytes,
        });
        async move {
            match operation.await? {
                Output::Bytes(content) => Ok(PageBuf::from_heap(content)),
                _ => unreachable!("reading gives bytes"),
            }
        }
    }

    fn sync(&self) -> impl Future<Output = io::Result<()>> + 'static {
        SimEnv::done(self.env.disk_op(Op::Sync {
            inode: self.inode,
            through: 0,
        }))
    }

    fn allocate(
        &self,
        position: u64,
        bytes: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        SimEnv::done(self.env.disk_op(Op::Allocate {
            inode: self.inode,
            position,
            bytes,
        }))
    }

    fn truncate(&self, bytes: u64) -> impl Future<Output = io::Result<()>> + 'static {
        SimEnv::done(self.env.disk_op(Op::Truncate {
            inode: self.inode,
            bytes,
        }))
    }

    fn len(&self) -> impl Future<Output = io::Result<u64>> + 'static {
        let operation = self.env.disk_op(Op::Len { inode: self.inode });
        async move {
            match operation.await? {
                Output::Number(bytes) => Ok(bytes),
                _ => unreachable!("a length is a number"),
            }
        }
    }
}
