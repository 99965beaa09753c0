//! What the key index does in the background: sealed parts become files, gaps are read from the log, runs are merged,
//! files that nobody needs are removed. Whatever fails is tried again later; the log never waits for it.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future::yield_now;

use crate::io::env::{DiskFile, Env};
use crate::store::batch::HEADER_BYTES;
use crate::store::keys::entry::{Entry, MessageKeys, TopicHash};
use crate::store::keys::files::{self, Loaded, RunReader, RunWriter};
use crate::store::keys::order::{BucketSort, Heads};
use crate::store::keys::parts::{Run, Sealed};
use crate::store::keys::run;
use crate::store::keys::spares::Spares;
use crate::store::keys::{KeyIndex, KeyIndexOptions, Newest};
use crate::store::recovery::{Scanner, Step, is_control, raw_records};
use crate::wire::record::RecordView;

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// Entries that are sorted, merged or copied before others have their turn.
const TURN_ENTRIES: usize = 2 << 10;
/// Bytes of the log that one step of folding a gap reads at most.
const FOLD_BYTES: u64 = 64 << 20;

/// The runs that a directory holds, cut to the log's end, and the last id that was used. Its spare files join `spares`.
pub(super) async fn find_runs<E: Env>(
    env: &E,
    options: &KeyIndexOptions,
    end: u64,
    spares: &mut Spares,
) -> io::Result<(Vec<Run>, u64)> {
    env.create_dir(&options.directory).await?;
    let mut runs = Vec::new();
    let mut last_id = 0;
    for (name, bytes) in env.list(&options.directory).await? {
        if let Some(id) = files::spare_id_of(&name) {
            last_id = last_id.max(id);
            match spares.wants(bytes, 0) {
                true => spares.put(id, bytes),
                false => {
                    remove_file(env, options, &files::spare_path_of(&options.directory, id)).await
                }
            }
            continue;
        }
        let Some(id) = files::id_of(&name) else {
            continue;
        };
        last_id = last_id.max(id);
        let found = read_run(env, options, id, end).await;
        match found {
            Ok(Some(run)) => runs.push(run),
            Ok(None) => remove(env, options, id).await,
            Err(error) => {
                tracing::warn!(log = options.log, file = name, %error, "a file of the key index cannot be read: it is made again from the log");
                remove(env, options, id).await;
            }
        }
    }
    Ok((runs, last_id))
}

async fn remove<E: Env>(env: &E, options: &KeyIndexOptions, id: u64) {
    remove_file(env, options, &files::path_of(&options.directory, id)).await;
}

async fn remove_file<E: Env>(env: &E, options: &KeyIndexOptions, path: &Path) {
    if let Err(error) = env.remove(path).await {
        tracing::warn!(log = options.log, path = %path.display(), %error, "a file of the key index that is not needed any more cannot be removed");
    }
}

async fn read_run<E: Env>(
    env: &E,
    options: &KeyIndexOptions,
    id: u64,
    end: u64,
) -> io::Result<Option<Run>> {
    let file = files::open(env, &options.directory, id, false).await?;
    let Some(mut run) = files::read_header(&file, options.store_id, options.log).await? else {
        return Ok(None);
    };
    if run.id != id || run.from >= end {
        return Ok(None);
    }
    if run.to > end {
        // The log lost its end after the run was written: what it says of that end is not true of what comes there next.
        run.to = end;
        files::write_header(env, &file, &run, options.store_id, options.log).await?;
    }
    Ok(Some(run))
}

impl<E: Env> KeyIndex<E> {
    /// Starts the background work. Once.
    pub fn start(self: &Rc<Self>) {
        if !self.is_on() {
            return;
        }
        self.keeping.set(true);
        let index = self.clone();
        self.env.spawn_background(async move {
            index.keep().await;
            index.keeping.set(false);
            index.changed.notify();
        });
    }

    /// Puts what is in memory into files, as far as the disk lets it. Nothing is appended any more.
    pub async fn stop(&self) {
        if !self.keeping.get() {
            return;
        }
        self.parts.borrow_mut().seal_for_stop();
        self.stopping.set(true);
        self.work.notify();
        self.changed.notify();
        self.changed
            .until(|| !self.keeping.get() && !self.merging.get())
            .await;
    }

    /// Before something is tried again; not when it is to stop.
    async fn pause(&self) {
        let stops = self.changed.until(|| self.stopping.get());
        futures_lite::future::or(stops, self.env.sleep(RETRY)).await;
    }

    async fn keep(self: &Rc<Self>) {
        loop {
            self.remove_garbage().await;
            let step = self.step().await;
            self.changed.notify();
            match step {
                Ok(true) => yield_now().await,
                Ok(false) if self.stopping.get() => return,
                Ok(false) => self.work.notified().await,
                Err(error) => {
                    tracing::warn!(log = self.options.log, %error, "the key index cannot be written; messages are found from memory, or when it is tried again");
                    if self.stopping.get() {
                        return;
                    }
                    self.pause().await;
                }
            }
        }
    }

    /// Does one thing, the most urgent first. False if there is nothing to do.
    async fn step(self: &Rc<Self>) -> io::Result<bool> {
        let sealed = self.parts.borrow().first_sealed();
        if let Some(sealed) = sealed {
            self.write_sealed(sealed).await?;
            return Ok(true);
        }
        if self.stopping.get() {
            return Ok(false);
        }
        self.start_merge();
        let gap = {
            let mut parts = self.parts.borrow_mut();
            // A run that reached below the log's start may have become a gap that does.
            parts.trim(self.segments.start());
            parts.last_gap()
        };
        if let Some((from, to)) = gap {
            self.fold(from, to).await?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn remove_garbage(&self) {
        let garbage = self.parts.borrow_mut().take_garbage();
        if garbage.is_empty() {
            return;
        }
        let mut spared = Vec::new();
        for id in garbage {
            self.loaded.borrow_mut().remove(&id);
            self.opened.borrow_mut().remove(&id);
            self.blocks.borrow_mut().retain(|(run, _), _| *run != id);
            match self.spare(id, spared.len()).await {
                Ok(Some(bytes)) => spared.push((id, bytes)),
                _ => remove(&self.env, &self.options, id).await,
            }
        }
        // Before it is written over it must not come back under its old name, where its header would say that it is whole.
        match self.env.sync_dir(&self.options.directory).await {
            Ok(()) => {
                let mut spares = self.spares.borrow_mut();
                spared
                    .into_iter()
                    .for_each(|(id, bytes)| spares.put(id, bytes));
            }
            Err(error) => {
                tracing::warn!(log = self.options.log, %error, "the directory of the key index cannot be flushed");
                for (id, _) in spared {
                    self.remove_spare(id).await;
                }
            }
        }
    }

    /// Keeps the file of a run that is gone, to be written over, beside `coming` others. Its bytes; `None` if it is not worth it.
    async fn spare(&self, id: u64, coming: usize) -> io::Result<Option<u64>> {
        let directory = &self.options.directory;
        let file = files::open(&self.env, directory, id, false).await?;
        let bytes = file.len().await?;
        if !self.spares.borrow().wants(bytes, coming) {
            return Ok(None);
        }
        let (from, to) = (
            files::path_of(directory, id),
            files::spare_path_of(directory, id),
        );
        self.env.rename(&from, &to).await?;
        Ok(Some(bytes))
    }

    async fn remove_spare(&self, id: u64) {
        let path = files::spare_path_of(&self.options.directory, id);
        remove_file(&self.env, &self.options, &path).await;
    }

    /// Gives spare files back to a disk that is full.
    pub async fn drop_spares(&self) {
        let spares = self.spares.borrow_mut().take_all();
        for id in spares {
            self.remove_spare(id).await;
        }
    }

    /// A file for a run of at most so many entries: one to be written over, or a new one whose space is in one piece.
    async fn new_file(&self, id: u64, entries_max: u64) -> io::Result<E::File> {
        let (env, directory) = (&self.env, &self.options.directory);
        let bytes = run::file_bytes(entries_max);
        let spare = self.spares.borrow_mut().take(bytes);
        if let Some(spare) = spare {
            let (from, to) = (
                files::spare_path_of(directory, spare),
                files::path_of(directory, id),
            );
            env.rename(&from, &to).await?;
            return files::open(env, directory, id, false).await;
        }
        let file = files::open(env, directory, id, true).await?;
        match file.allocate(0, bytes).await {
            Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(error),
            _ => Ok(file),
        }
    }

    fn take_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    /// Runs `write` on a new file; what it leaves if it fails is removed.
    async fn new_run(
        self: &Rc<Self>,
        entries_max: u64,
        span: std::ops::Range<u64>,
        write: impl AsyncFnOnce(&mut RunWriter<E>) -> io::Result<()>,
    ) -> io::Result<Rc<Run>> {
        let id = self.take_id();
        match self.write_run(id, entries_max, span, write).await {
            Ok((run, loaded)) => {
                let run = Rc::new(run);
                self.loaded.borrow_mut().insert(id, Rc::new(loaded));
                Ok(run)
            }
            Err(error) => {
                remove(&self.env, &self.options, id).await;
                Err(error)
            }
        }
    }

    async fn write_run(
        self: &Rc<Self>,
        id: u64,
        entries_max: u64,
        span: std::ops::Range<u64>,
        write: impl AsyncFnOnce(&mut RunWriter<E>) -> io::Result<()>,
    ) -> io::Result<(Run, Loaded)> {
        let (env, options) = (&self.env, &self.options);
        env.create_dir(&options.directory).await?;
        let file = self.new_file(id, entries_max).await?;
        let mut writer = RunWriter::new(env.clone(), file, entries_max);
        write(&mut writer).await?;
        let written = writer
            .finish(id, span, options.store_id, options.log)
            .await?;
        env.sync_dir(&options.directory).await?;
        Ok(written)
    }

    async fn write_sealed(self: &Rc<Self>, sealed: Sealed) -> io::Result<()> {
        let entries = sorted(&sealed.entries).await;
        let count = entries.len() as u64;
        let run = self
            .new_run(count, sealed.from..sealed.to, async |writer| {
                for (number, entry) in entries.into_iter().enumerate() {
                    if writer.put(entry) {
                        writer.flush().await?;
                    }
                    if number % TURN_ENTRIES == TURN_ENTRIES - 1 {
                        yield_now().await;
                    }
                }
                Ok(())
            })
            .await?;
        self.parts.borrow_mut().on_written(&sealed, run);
        self.drop_filters();
        Ok(())
    }

    /// Filters of old runs leave when those of new ones need their room.
    fn drop_filters(&self) {
        let runs: Vec<Rc<Run>> = self.parts.borrow().runs().cloned().collect();
        for run in runs {
            if self.has_room_for(&run) {
                continue;
            }
            let mut loaded = self.loaded.borrow_mut();
            if let Some(one) = loaded.get(&run.id)
                && one.filter.is_some()
            {
                let bare = Loaded {
                    fences: one.fences.clone(),
                    filter: None,
                };
                loaded.insert(run.id, Rc::new(bare));
            }
        }
    }

    /// Reads the front of a gap from the log: as many keys as a part has, or so many bytes.
    async fn fold(&self, from: u64, to: u64) -> io::Result<()> {
        let segments = self.segments.clone();
        let mut scanner = Scanner::new(&segments, self.options.store_id, from, 0);
        scanner.trust_first().await?;
        let mut entries = Vec::new();
        let mut whole = true;
        while scanner.position < to
            && entries.len() < self.options.tail_entries_max
            && scanner.position - from < FOLD_BYTES
            && !self.stopping.get()
        {
            let mut at = scanner.position + HEADER_BYTES as u64;
            let Step::Batch(_, range) = scanner.next().await? else {
                whole = false;
                break;
            };
            for record in raw_records(scanner.records(range)) {
                entries_of(record, at, &mut entries);
                at += record.len() as u64;
            }
            yield_now().await;
        }
        if let Some(last) = entries.last()
            && last.position > self.newest.get().position
        {
            self.newest.set(Newest {
                position: last.position,
                store_ms: u64::from(last.seconds) * 1_000,
            });
        }
        let position = scanner.position.min(to);
        if position > from {
            self.parts
                .borrow_mut()
                .on_folded(from, position, Some(entries));
        } else if !whole && segments.start() <= from {
            let next = segments.segment_end(from).min(to);
            tracing::error!(
                log = self.options.log,
                from,
                to = next,
                "this part of the log cannot be read: its messages are not found by key"
            );
            self.parts.borrow_mut().on_folded(from, next, None);
        } else {
            // Retention took it in the meantime.
            self.parts.borrow_mut().trim(segments.start());
        }
        Ok(())
    }

    /// Merges neighbours of one size, one group at a time and beside everything else.
    fn start_merge(self: &Rc<Self>) {
        if self.merging.get() {
            return;
        }
        let runs = self.parts.borrow().mergeable();
        if runs.is_empty() {
            return;
        }
        self.merging.set(true);
        let index = self.clone();
        self.env.spawn_background(async move {
            let merged = index.merge(&runs).await;
            match merged {
                Ok(merged) => index.parts.borrow_mut().on_merged(&runs, merged),
                Err(_) if index.stopping.get() => {}
                Err(error) => {
                    tracing::warn!(log = index.options.log, %error, "files of the key index cannot be merged");
                    // A damaged one would fail for ever: whoever cannot be read is made again. If one went away meanwhile it was
                    // the one, since its file may have been written over.
                    let all_there = runs.iter().all(|run| index.parts.borrow().has(run.id));
                    if all_there && error.kind() == io::ErrorKind::InvalidData {
                        for run in &runs {
                            index.on_damaged(run.id, &error);
                        }
                    }
                    index.pause().await;
                }
            }
            index.merging.set(false);
            index.changed.notify();
            index.work.notify();
        });
    }

    async fn merge(self: &Rc<Self>, runs: &[Rc<Run>]) -> io::Result<Rc<Run>> {
        let mut readers = Vec::with_capacity(runs.len());
        for run in runs.iter().rev() {
            let mut reader = RunReader::new(self.file(run.id).await?, run.clone());
            reader.fill().await?;
            if reader.peek().is_some() {
                readers.push(reader);
            }
        }
        let count = runs.iter().map(|run| run.entries).sum();
        let span = runs[0].from..runs[runs.len() - 1].to;
        self.new_run(count, span, async |writer| {
            let first = readers.iter().filter_map(RunReader::peek);
            let mut heads = Heads::new(first.map(|entry| entry.hash));
            let mut number = 0;
            while let Some(at) = heads.lowest() {
                let reader = &mut readers[at];
                if let Some(&entry) = reader.peek()
                    && writer.put(entry)
                {
                    writer.flush().await?;
                }
                if reader.advance() {
                    reader.fill().await?;
                }
                match reader.peek() {
                    Some(next) => heads.set(at, next.hash),
                    None => {
                        heads.remove(at);
                        readers.remove(at);
                    }
                }
                number += 1;
                if number % TURN_ENTRIES == 0 {
                    yield_now().await;
                    if self.stopping.get() {
                        return Err(io::Error::from(io::ErrorKind::Interrupted));
                    }
                }
            }
            Ok(())
        })
        .await
    }
}

/// The entries of a part in the order of files; others have their turn in between.
async fn sorted(entries: &[Entry]) -> Vec<Entry> {
    let mut sort = BucketSort::new(entries.len());
    for piece in entries.chunks(TURN_ENTRIES) {
        sort.count(piece);
    }
    sort.counted();
    for piece in entries.chunks(TURN_ENTRIES) {
        yield_now().await;
        sort.place(piece);
    }
    while sort.sort(TURN_ENTRIES) {
        yield_now().await;
    }
    sort.into_entries()
}

/// Entries of one record of the log.
fn entries_of(record: &[u8], position: u64, out: &mut Vec<Entry>) {
    if is_control(record) {
        return;
    }
    let Ok(view) = RecordView::parse(record) else {
        return;
    };
    let seconds = (view.store_timestamp() / 1_000) as u32;
    let keys = MessageKeys::of(view.properties());
    keys.hashes(TopicHash::of(view.topic()), |hash| {
        out.push(Entry {
            hash,
            position,
            seconds,
        });
    });
}
