//! What a core does with each request. Never waits: what has to wait goes on as a task or in the ack gate.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;

use crate::base::limits::MESH_WAITING_MAX;
use crate::base::offset::{LogId, PhysicalOffset, Position};
use crate::io::body::Body;
use crate::io::env::Env;
use crate::shard::core::{Appending, Gated, InLine, ReplyTo, Shard};
use crate::shard::message::{
    Boundary, ClientAnswer, CommittedOffset, Delayed, LocalReply, LogStats, NewMessage, NewRecords,
    Orphan, QueueKey, Refusal, ShardRequest,
};
use crate::shard::pull::{read_refusal, run_or_spawn};
use crate::store::CommitLog;
use crate::store::control::Control;
use crate::wire::record::RecordView;

/// Offsets that pulls bring along go to the log together, at most this late.
const OFFSETS_DELAY: Duration = Duration::from_millis(500);
/// So many offsets that are being committed are remembered before those that are durable are forgotten.
const COMMITTING_MAX: usize = 4_096;
/// By group.
pub(super) type NewerOffsets = AHashMap<Arc<str>, Vec<(QueueKey, i64)>>;

/// What of a record has to be read for its store time.
const TIME_PREFIX_BYTES: usize = 80;

impl<E: Env> Shard<E> {
    /// The log of a queue, if it is one of this core's.
    pub(super) fn log_of(&self, queue: QueueKey) -> Option<&Rc<CommitLog<E>>> {
        let id: LogId = {
            let meta = self.meta.borrow();
            let topic = meta.topics_by_id.get(&queue.topic_id)?;
            *topic.logs.get(queue.queue_id as usize)?
        };
        self.logs.get(&id)
    }

    /// Serves a request, from wherever it came.
    pub(super) fn serve(&self, request: ShardRequest, reply_to: ReplyTo) {
        let reply = match request {
            ShardRequest::Append(messages) => return self.serve_append(&messages, reply_to),
            ShardRequest::AppendRecords(new) => return self.serve_append_records(*new, reply_to),
            ShardRequest::AppendDelayed(delayed) => return self.serve_delayed(*delayed, reply_to),
            ShardRequest::AppendHalf(half) => return self.serve_half(*half, reply_to),
            ShardRequest::ReadHalf { log, origin } => {
                return self.serve_read_half(log, origin, reply_to);
            }
            ShardRequest::OpenHalves { limit } => self.open_halves(limit),
            ShardRequest::EndHalf { log, origin, end } => {
                return self.serve_end_half(log, origin, *end, reply_to);
            }
            ShardRequest::Pull(pull) => return self.serve_pull(*pull, reply_to),
            ShardRequest::Pop(request) => return self.serve_pop(*request, reply_to),
            ShardRequest::Bounds(queue) => LocalReply::Bounds(self.bounds(queue)),
            ShardRequest::BoundsOf(queues) => {
                LocalReply::BoundsOf(queues.into_iter().map(|queue| self.bounds(queue)).collect())
            }
            ShardRequest::SearchByTime {
                queue,
                timestamp_ms,
                boundary,
            } => return self.serve_search(queue, timestamp_ms, boundary, reply_to),
            ShardRequest::EarliestTime(queue) => return self.serve_earliest(queue, reply_to),
            ShardRequest::ReadRecord { log, position } => {
                return self.serve_record(log, position, reply_to);
            }
            ShardRequest::FindByKey(query) => return self.serve_query(*query, reply_to),
            ShardRequest::CommitOffset {
                group,
                queue,
                offset,
            } if !self.resets.borrow().is_pending(&group, queue) => {
                return self.serve_commit(group, queue, offset, reply_to);
            }
            // Of a place that the group has left.
            ShardRequest::CommitOffset { .. } => LocalReply::Done,
            ShardRequest::ResetOffset {
                group,
                queue,
                offset,
            } => {
                self.resets.borrow_mut().put(group.clone(), queue, offset);
                return self.serve_commit(group, queue, offset, reply_to);
            }
            ShardRequest::TakeReset {
                group,
                queue,
                asked,
            } => LocalReply::Offset(self.resets.borrow_mut().take(&group, queue, asked)),
            ShardRequest::QueryOffset { group, queue } => {
                return self.serve_offset(group, queue, reply_to);
            }
            ShardRequest::LockQueues {
                group,
                client_id,
                queues,
            } => {
                let now_ms = self.env.now_ns() / 1_000_000;
                let locked = self
                    .locks
                    .borrow_mut()
                    .lock(&group, &client_id, &queues, now_ms);
                LocalReply::Queues(locked)
            }
            ShardRequest::UnlockQueues {
                group,
                client_id,
                queues,
            } => {
                self.locks.borrow_mut().unlock(&group, &client_id, &queues);
                LocalReply::Done
            }
            ShardRequest::HoldsLock { group } => {
                let now_ms = self.env.now_ns() / 1_000_000;
                LocalReply::Flag(self.locks.borrow().is_held(&group, now_ms))
            }
            ShardRequest::Meta(command) => return self.queue_meta(*command, reply_to),
            ShardRequest::Publish(change) => {
                self.meta.borrow_mut().apply(change);
                LocalReply::Done
            }
            ShardRequest::Group(command) => {
                let handler = self.handlers.group.borrow().clone();
                match handler {
                    Some(handler) => handler(*command),
                    None => LocalReply::Refused(Refusal::Stopping),
                }
            }
            ShardRequest::PushFrame { connections, frame } => {
                let handler = self.handlers.push.borrow().clone();
                if let Some(handler) = handler {
                    handler(connections, frame);
                }
                LocalReply::Done
            }
            ShardRequest::Call(call) => {
                let handler = self.handlers.call.borrow().clone();
                let Some(shard) = self.me.upgrade() else {
                    return;
                };
                return match handler {
                    Some(handler) => handler(
                        *call,
                        Box::new(move |answer| {
                            shard.reply(reply_to, LocalReply::Called(answer));
                        }),
                    ),
                    None => self.reply(reply_to, LocalReply::Called(ClientAnswer::Closed)),
                };
            }
            ShardRequest::DropTopic { topic_id } => return self.drop_topic(topic_id, reply_to),
            ShardRequest::DropGroup { group } => return self.drop_group(&group, reply_to),
            ShardRequest::Offsets { group, topic_id } => {
                LocalReply::Offsets(self.offsets(group.as_ref(), topic_id))
            }
            ShardRequest::AdoptSlave(slave) => {
                let handler = self.handlers.slave.borrow().clone();
                if let Some(handler) = handler {
                    handler(*slave);
                }
                LocalReply::Done
            }
            ShardRequest::Stats => return self.serve_stats(reply_to),
            ShardRequest::Figures => return self.serve_figures(reply_to),
            ShardRequest::DropOrphans { next_topic_id } => {
                return self.drop_orphans(next_topic_id, reply_to);
            }
        };
        self.reply(reply_to, reply);
    }

    fn bounds(&self, queue: QueueKey) -> crate::store::types::QueueBounds {
        self.log_of(queue)
            .map(|log| log.bounds(queue))
            .unwrap_or_default()
    }

    /// Appends messages of one queue; the answer waits at the gate until they are safe.
    pub(super) fn serve_append(&self, messages: &[NewMessage], reply_to: ReplyTo) {
        let log = messages.first().and_then(|first| self.log_of(first.queue));
        let Some(log) = log else {
            return self.reply(reply_to, LocalReply::Refused(Refusal::NoQueue));
        };
        if self.is_first_in_line(log) {
            match self.try_append(log, messages) {
                Err(Refusal::SpaceOnItsWay { .. }) => {}
                result => return self.answer_append(log, result, reply_to),
            }
        }
        self.stall(log, Appending::Now(messages.to_vec()), reply_to);
    }

    /// The same for whole records.
    fn serve_append_records(&self, new: NewRecords, reply_to: ReplyTo) {
        let queue = new.queue;
        self.serve_appending(queue, Appending::Records(new), reply_to);
    }

    /// Stores a message for later. The answer leaves when it is durable, with the message's physical offset.
    fn serve_delayed(&self, delayed: Delayed, reply_to: ReplyTo) {
        let queue = delayed.message.queue;
        self.serve_appending(queue, Appending::Later(delayed), reply_to);
    }

    pub(super) fn serve_appending(&self, queue: QueueKey, appending: Appending, reply_to: ReplyTo) {
        let Some(log) = self.log_of(queue) else {
            return self.reply(reply_to, LocalReply::Refused(Refusal::NoQueue));
        };
        if self.is_first_in_line(log) {
            match self.try_appending(log, &appending) {
                Err(Refusal::SpaceOnItsWay { .. }) => {}
                result => return self.answer_append(log, result, reply_to),
            }
        }
        self.stall(log, appending, reply_to);
    }

    /// The answer of an append: at the gate until its record is safe.
    fn answer_append(
        &self,
        log: &CommitLog<E>,
        result: Result<(LocalReply, Position), Refusal>,
        reply_to: ReplyTo,
    ) {
        match result {
            Ok((reply, position)) => self.wait_for(log.id(), position, reply_to, reply),
            Err(refusal) => self.reply(reply_to, LocalReply::Refused(refusal)),
        }
    }

    /// Whoever waits for space goes first: the order of arrival is the order in the queue.
    pub(super) fn is_first_in_line(&self, log: &CommitLog<E>) -> bool {
        self.stalled
            .borrow()
            .get(&log.id())
            .is_none_or(|line| line.is_empty())
    }

    fn try_appending(
        &self,
        log: &CommitLog<E>,
        appending: &Appending,
    ) -> Result<(LocalReply, Position), Refusal> {
        match appending {
            Appending::Now(messages) => self.try_append(log, messages),
            Appending::Records(new) => self.try_append_records(log, new),
            Appending::Later(delayed) => self.try_append_delayed(log, delayed),
            Appending::Half(half) => self.try_append_half(log, half),
            Appending::Control(controls) => self.try_append_control(log, controls),
        }
    }

    fn try_append_delayed(
        &self,
        log: &CommitLog<E>,
        delayed: &Delayed,
    ) -> Result<(LocalReply, Position), Refusal> {
        self.check_replicas(log.id())?;
        let (appended, position) = log.append_delayed(&delayed.message, delayed.due_ms)?;
        let mut timers = self.timer_figures.borrow_mut();
        let topic_id = delayed.message.queue.topic_id;
        *timers.accepted.entry(topic_id).or_default() += 1;
        drop(timers);
        let mut stats = self.stats.borrow_mut();
        stats.put_messages += 1;
        stats.put_bytes += delayed.message.body.len() as u64;
        Ok((LocalReply::Appended(appended), position))
    }

    fn try_append(
        &self,
        log: &CommitLog<E>,
        messages: &[NewMessage],
    ) -> Result<(LocalReply, Position), Refusal> {
        self.check_replicas(log.id())?;
        let (appended, position) = log.append(messages)?;
        let mut stats = self.stats.borrow_mut();
        stats.put_messages += messages.len() as u64;
        stats.put_bytes += messages.iter().map(|m| m.body.len() as u64).sum::<u64>();
        Ok((LocalReply::Appended(appended), position))
    }

    fn try_append_records(
        &self,
        log: &CommitLog<E>,
        new: &NewRecords,
    ) -> Result<(LocalReply, Position), Refusal> {
        self.check_replicas(log.id())?;
        let (appended, position) = log.append_records(new)?;
        let mut stats = self.stats.borrow_mut();
        stats.put_messages += new.marks.len() as u64;
        stats.put_bytes += new.body_bytes;
        Ok((LocalReply::Appended(appended), position))
    }

    fn try_append_control(
        &self,
        log: &CommitLog<E>,
        controls: &[Control],
    ) -> Result<(LocalReply, Position), Refusal> {
        let position = log.append_control(controls)?;
        for control in controls {
            if let Control::OffsetCommitted {
                group,
                queue,
                offset,
            } = control
            {
                self.remember_commit(group, *queue, *offset, position);
                self.pops.reset(group, *queue, *offset);
            }
        }
        Ok((LocalReply::Done, position))
    }

    /// Lets an append wait for space; a task tries again when there is some.
    fn stall(&self, log: &Rc<CommitLog<E>>, appending: Appending, reply_to: ReplyTo) {
        self.join_line(log, InLine::Append(appending), reply_to);
    }

    pub(super) fn join_line(&self, log: &Rc<CommitLog<E>>, waiting: InLine, reply_to: ReplyTo) {
        let mut stalled = self.stalled.borrow_mut();
        let line = stalled.entry(log.id()).or_default();
        if line.len() >= MESH_WAITING_MAX {
            drop(stalled);
            let refusal = Refusal::SpaceOnItsWay { log: log.id() };
            return self.reply(reply_to, LocalReply::Refused(refusal));
        }
        line.push_back((waiting, reply_to));
        if line.len() > 1 {
            return;
        }
        drop(stalled);
        let Some(shard) = self.me.upgrade() else {
            return;
        };
        let log = log.clone();
        self.env.spawn(async move {
            while let Some(front) = shard.front_of_line(log.id()) {
                let end = log.allocated_end();
                match front {
                    InLine::Append(appending) => {
                        let result = shard.try_appending(&log, &appending);
                        if matches!(result, Err(Refusal::SpaceOnItsWay { .. })) {
                            log.space_beyond(end).await;
                        } else if let Some(reply_to) = shard.leave_line(log.id()) {
                            shard.answer_append(&log, result, reply_to);
                        }
                    }
                    InLine::EndHalf { origin, end: how } => {
                        let result = shard.try_end_half(&log, origin, &how);
                        if matches!(result, Err(Refusal::SpaceOnItsWay { .. })) {
                            log.space_beyond(end).await;
                        } else if let Some(reply_to) = shard.leave_line(log.id()) {
                            shard.answer_end_half(&log, result, reply_to);
                        }
                    }
                    InLine::QueryOffset { group, queue } => {
                        if let Some(reply_to) = shard.leave_line(log.id()) {
                            shard.tell_offset(&group, queue, reply_to);
                        }
                    }
                }
            }
        });
    }

    fn front_of_line(&self, log: LogId) -> Option<InLine> {
        let stalled = self.stalled.borrow();
        stalled.get(&log)?.front().map(|(front, _)| front.clone())
    }

    fn leave_line(&self, log: LogId) -> Option<ReplyTo> {
        let mut stalled = self.stalled.borrow_mut();
        let (_, reply_to) = stalled.get_mut(&log)?.pop_front()?;
        Some(reply_to)
    }

    pub(super) fn wait_for(
        &self,
        log: LogId,
        position: Position,
        reply_to: ReplyTo,
        reply: LocalReply,
    ) {
        if let Some(gate) = self.gates.borrow_mut().get_mut(&log) {
            gate.wait(position, Gated::new(reply_to, reply));
        }
    }

    /// Control records into one log; the answer waits until they are durable.
    pub(super) fn append_control(
        &self,
        log: &Rc<CommitLog<E>>,
        controls: &[Control],
        reply_to: ReplyTo,
    ) {
        if controls.is_empty() {
            return self.reply(reply_to, LocalReply::Done);
        }
        if self.is_first_in_line(log) {
            match self.try_append_control(log, controls) {
                Err(Refusal::SpaceOnItsWay { .. }) => {}
                result => return self.answer_append(log, result, reply_to),
            }
        }
        self.stall(log, Appending::Control(controls.into()), reply_to);
    }

    /// The offset of a record that is not durable yet, with its position.
    fn committing_offset(&self, group: &Arc<str>, queue: QueueKey) -> Option<(i64, Position)> {
        let log = self.log_of(queue)?;
        let committing = self.committing.borrow();
        let found = committing.get(&(group.clone(), queue)).copied();
        found.filter(|(_, position)| log.durable() <= *position)
    }

    fn dirty_offset(&self, group: &Arc<str>, queue: QueueKey) -> Option<i64> {
        let dirty = self.dirty_offsets.borrow();
        dirty.get(&(group.clone(), queue)).copied()
    }

    pub(super) fn committed_offset(&self, group: &Arc<str>, queue: QueueKey) -> Option<i64> {
        let newer = self
            .slave_offset(group, queue)
            .or_else(|| self.dirty_offset(group, queue))
            .or_else(|| Some(self.committing_offset(group, queue)?.0));
        newer.or_else(|| self.durable_offset(group, queue))
    }

    pub(super) fn durable_offset(&self, group: &Arc<str>, queue: QueueKey) -> Option<i64> {
        let tables = self.log_of(queue)?.tables().borrow();
        tables.offsets.get(group, queue)
    }

    /// A committed offset. One that waits in line for the disk's space is told when it is through.
    fn serve_offset(&self, group: Arc<str>, queue: QueueKey, reply_to: ReplyTo) {
        match self.log_of(queue) {
            Some(log) if !self.is_first_in_line(log) => {
                self.join_line(log, InLine::QueryOffset { group, queue }, reply_to);
            }
            _ => self.tell_offset(&group, queue, reply_to),
        }
    }

    /// A committed offset. One that is on its way to the disk is told when it is there: whoever hears it relies on it.
    fn tell_offset(&self, group: &Arc<str>, queue: QueueKey, reply_to: ReplyTo) {
        let reply = LocalReply::Offset(self.committed_offset(group, queue));
        let waits_for = match self.dirty_offset(group, queue) {
            Some(_) => None,
            None => self.committing_offset(group, queue),
        };
        let log = self.log_of(queue).map(|log| log.id());
        if let (Some((_, position)), Some(log)) = (waits_for, log)
            && let Some(gate) = self.gates.borrow_mut().get_mut(&log)
        {
            // Somebody only asks: if the log fails, the offset from before is still the right answer.
            let gated = Gated {
                if_failed: Some(Box::new(LocalReply::Offset(
                    self.durable_offset(group, queue),
                ))),
                ..Gated::new(reply_to, reply)
            };
            return gate.wait_for_last(position, gated);
        }
        self.reply(reply_to, reply);
    }

    /// Remembers an offset until its record is durable.
    fn remember_commit(&self, group: &Arc<str>, queue: QueueKey, offset: i64, position: Position) {
        let mut committing = self.committing.borrow_mut();
        if committing.len() >= COMMITTING_MAX && committing.len().is_power_of_two() {
            committing.retain(|(_, queue), (_, at)| {
                self.log_of(*queue).is_some_and(|log| log.durable() <= *at)
            });
        }
        committing.insert((group.clone(), queue), (offset, position));
    }

    fn serve_commit(&self, group: Arc<str>, queue: QueueKey, offset: i64, reply_to: ReplyTo) {
        let Some(log) = self.log_of(queue) else {
            return self.reply(reply_to, LocalReply::Refused(Refusal::NoQueue));
        };
        if self.is_slave() {
            self.keep_slave_offset(group, queue, offset);
            return self.reply(reply_to, LocalReply::Done);
        }
        self.dirty_offsets
            .borrow_mut()
            .remove(&(group.clone(), queue));
        if self.is_first_in_line(log)
            && log.pending_bytes() == 0
            && log.tables().borrow().offsets.get(&group, queue) == Some(offset)
        {
            return self.reply(reply_to, LocalReply::Done);
        }
        let control = Control::OffsetCommitted {
            group,
            queue,
            offset,
        };
        self.append_control(log, std::slice::from_ref(&control), reply_to);
    }

    /// An offset that came with a pull: nobody waits for it, so it goes to the log with others, a little later.
    pub(super) fn remember_offset(&self, group: Arc<str>, queue: QueueKey, offset: i64) {
        if self.committed_offset(&group, queue) == Some(offset)
            || self.resets.borrow().is_pending(&group, queue)
        {
            return;
        }
        if self.is_slave() || self.pops.has(&group, queue) {
            // It ends what is in flight: written later, it would do so to what came in between.
            return self.serve_commit(group, queue, offset, ReplyTo::Local(Box::new(|_| {})));
        }
        self.dirty_offsets
            .borrow_mut()
            .insert((group, queue), offset);
        if !self.offsets_timer.replace(true) {
            let Some(shard) = self.me.upgrade() else {
                return;
            };
            let sleep = self.env.sleep(OFFSETS_DELAY);
            self.env.spawn(async move {
                sleep.await;
                shard.offsets_timer.set(false);
                shard.flush_offsets();
            });
        }
    }

    /// Writes what pulls brought along.
    pub(super) fn flush_offsets(&self) {
        let dirty = std::mem::take(&mut *self.dirty_offsets.borrow_mut());
        let mut by_log: std::collections::BTreeMap<LogId, Vec<Control>> = Default::default();
        for ((group, queue), offset) in dirty {
            if let Some(log) = self.log_of(queue) {
                by_log
                    .entry(log.id())
                    .or_default()
                    .push(Control::OffsetCommitted {
                        group,
                        queue,
                        offset,
                    });
            }
        }
        for (id, controls) in by_log {
            // Many small records: in pieces, so that none comes near a batch's size.
            for piece in controls.chunks(256) {
                let done = ReplyTo::Local(Box::new(move |reply| {
                    if let LocalReply::Refused(refusal) = reply {
                        tracing::debug!(log = id, %refusal, "offsets of pulls are not stored; consumers commit them again");
                    }
                }));
                self.append_control(&self.logs[&id], piece, done);
            }
        }
    }

    /// Committed offsets of one group or of all in the order of their names, of one topic incarnation or of all; those of
    /// a group in the order of the queues.
    pub(super) fn offsets(
        &self,
        group: Option<&Arc<str>>,
        topic_id: Option<u32>,
    ) -> Vec<CommittedOffset> {
        let newer = self.newer_offsets();
        let mut found = Vec::new();
        let mut add = |group: &Arc<str>| {
            let newer = newer.get(group).map_or(&[][..], Vec::as_slice);
            self.offsets_of(group, topic_id, newer, &mut found);
        };
        match group {
            Some(group) => add(group),
            None => self.groups_with_offsets(&newer).iter().for_each(add),
        }
        found
    }

    /// Offsets that are not durable yet, by group; of two of one queue the later one counts.
    pub(super) fn newer_offsets(&self) -> NewerOffsets {
        let mut newer = NewerOffsets::new();
        for ((group, queue), (offset, at)) in &*self.committing.borrow() {
            if self.log_of(*queue).is_some_and(|log| log.durable() <= *at) {
                let of_group = newer.entry(group.clone()).or_default();
                of_group.push((*queue, *offset));
            }
        }
        for ((group, queue), offset) in &*self.dirty_offsets.borrow() {
            let of_group = newer.entry(group.clone()).or_default();
            of_group.push((*queue, *offset));
        }
        newer
    }

    pub(super) fn groups_with_offsets(&self, newer: &NewerOffsets) -> BTreeSet<Arc<str>> {
        let mut groups: BTreeSet<Arc<str>> = newer.keys().cloned().collect();
        for log in self.logs.values() {
            groups.extend(log.tables().borrow().offsets.groups().cloned());
        }
        groups
    }

    /// Adds the offsets of a group, in the order of its queues.
    pub(super) fn offsets_of(
        &self,
        group: &Arc<str>,
        topic_id: Option<u32>,
        newer: &[(QueueKey, i64)],
        found: &mut Vec<CommittedOffset>,
    ) {
        let mut offsets: Vec<(QueueKey, i64)> = Vec::new();
        let mut pops = false;
        for log in self.logs.values() {
            let tables = log.tables().borrow();
            offsets.extend(tables.offsets.of(group));
            pops |= tables.pop.knows(group);
        }
        offsets.extend_from_slice(newer);
        if let Some(topic_id) = topic_id {
            offsets.retain(|(queue, _)| queue.topic_id == topic_id);
        }
        // Stable: of one queue the newest is the last.
        offsets.sort_by_key(|(queue, _)| *queue);
        for of_queue in offsets.chunk_by(|(left, _), (right, _)| left == right) {
            let Some(&(queue, offset)) = of_queue.last() else {
                continue;
            };
            let taken = match pops {
                true => self.log_of(queue).and_then(|log| {
                    let tables = log.tables().borrow();
                    tables.pop.get(group, queue).map(|popped| popped.next())
                }),
                false => None,
            };
            found.push(CommittedOffset {
                group: group.clone(),
                queue,
                offset,
                taken: taken.unwrap_or(offset).max(offset),
            });
        }
    }

    fn drop_topic(&self, topic_id: u32, reply_to: ReplyTo) {
        self.locks.borrow_mut().drop_topic(topic_id);
        self.resets.borrow_mut().drop_topic(topic_id);
        self.pops.drop_topic(topic_id);
        self.dirty_offsets
            .borrow_mut()
            .retain(|(_, queue), _| queue.topic_id != topic_id);
        self.committing
            .borrow_mut()
            .retain(|(_, queue), _| queue.topic_id != topic_id);
        // Its queues are gone: whoever waits for them hears so now.
        let parked = {
            let mut hold = self.hold.borrow_mut();
            let all = hold.take_all();
            let (gone, stay): (Vec<_>, Vec<_>) = all
                .into_iter()
                .partition(|parked| parked.queue.topic_id == topic_id);
            for parked in stay {
                hold.park(parked);
            }
            gone
        };
        for parked in parked {
            self.reply(
                parked.waiter.reply_to,
                LocalReply::Refused(Refusal::NoQueue),
            );
        }
        self.control_to_logs(reply_to, |_| vec![Control::TopicDropped { topic_id }]);
    }

    fn drop_group(&self, group: &Arc<str>, reply_to: ReplyTo) {
        self.pops.drop_group(group);
        self.resets.borrow_mut().drop_group(group);
        self.dirty_offsets
            .borrow_mut()
            .retain(|(name, _), _| name != group);
        self.committing
            .borrow_mut()
            .retain(|(name, _), _| name != group);
        self.control_to_logs(reply_to, |_| {
            vec![Control::OffsetsDropped {
                group: group.clone(),
            }]
        });
    }

    /// Control records into each log of this core; the answer leaves when all are durable, or with the first refusal.
    fn control_to_logs(&self, reply_to: ReplyTo, controls: impl Fn(&CommitLog<E>) -> Vec<Control>) {
        struct Countdown {
            left: usize,
            failed: Option<LocalReply>,
            reply_to: Option<ReplyTo>,
        }
        if self.logs.is_empty() {
            return self.reply(reply_to, LocalReply::Done);
        }
        let countdown = Rc::new(std::cell::RefCell::new(Countdown {
            left: self.logs.len(),
            failed: None,
            reply_to: Some(reply_to),
        }));
        for log in self.logs.values() {
            // The shard owns this callback while it waits at the gate.
            let (countdown, shard) = (countdown.clone(), self.me.clone());
            let done = ReplyTo::Local(Box::new(move |reply| {
                let finished = {
                    let mut countdown = countdown.borrow_mut();
                    countdown.left -= 1;
                    if matches!(reply, LocalReply::Refused(_)) {
                        countdown.failed = Some(reply);
                    }
                    if countdown.left == 0 {
                        countdown
                            .reply_to
                            .take()
                            .map(|to| (to, countdown.failed.take().unwrap_or(LocalReply::Done)))
                    } else {
                        None
                    }
                };
                if let (Some((to, reply)), Some(shard)) = (finished, shard.upgrade()) {
                    shard.reply(to, reply);
                }
            }));
            self.append_control(log, &controls(log), done);
        }
    }

    fn drop_orphans(&self, next_topic_id: u32, reply_to: ReplyTo) {
        let mut orphans = Vec::new();
        let mut dead: std::collections::BTreeMap<LogId, Vec<Control>> = Default::default();
        {
            let meta = self.meta.borrow();
            for log in self.logs.values() {
                let tables = log.tables().borrow();
                for (topic_id, name) in tables.open_topics.all() {
                    if meta.topics_by_id.contains_key(&topic_id) {
                        continue;
                    }
                    if topic_id < next_topic_id {
                        tracing::info!(topic = %name, topic_id, log = log.id(), "the rest of a deleted topic is dropped");
                        dead.entry(log.id())
                            .or_default()
                            .push(Control::TopicDropped { topic_id });
                        continue;
                    }
                    let queues = tables.queues.keys().filter(|key| key.topic_id == topic_id);
                    orphans.extend(queues.map(|queue| Orphan {
                        topic_id,
                        name: name.clone(),
                        queue_id: queue.queue_id,
                        log: log.id(),
                    }));
                }
            }
        }
        for (id, controls) in dead {
            let done = ReplyTo::Local(Box::new(move |reply| {
                if let LocalReply::Refused(refusal) = reply {
                    tracing::warn!(log = id, %refusal, "the rest of deleted topics stays until the next start");
                }
            }));
            self.append_control(&self.logs[&id], &controls, done);
        }
        self.reply(reply_to, LocalReply::Orphans(orphans));
    }

    fn serve_record(&self, log: LogId, position: Position, reply_to: ReplyTo) {
        let (Some(log), Some(shard)) = (self.logs.get(&log).cloned(), self.me.upgrade()) else {
            return self.reply(reply_to, LocalReply::Record(None));
        };
        run_or_spawn(&self.env, async move {
            let record = match log.is_settled() {
                true => read_record(&log, position).await,
                false => None,
            };
            shard.reply(reply_to, LocalReply::Record(record));
        });
    }

    fn serve_earliest(&self, queue: QueueKey, reply_to: ReplyTo) {
        let (Some(log), Some(shard)) = (self.log_of(queue).cloned(), self.me.upgrade()) else {
            return self.reply(reply_to, LocalReply::Number(-1));
        };
        run_or_spawn(&self.env, async move {
            let bounds = log.bounds(queue);
            let reply = match store_time(&log, queue, bounds.min_offset).await {
                Ok(time) => LocalReply::Number(time.unwrap_or(-1)),
                Err(error) => LocalReply::Refused(read_refusal(&error)),
            };
            shard.reply(reply_to, reply);
        });
    }

    fn serve_search(
        &self,
        queue: QueueKey,
        timestamp_ms: i64,
        boundary: Boundary,
        reply_to: ReplyTo,
    ) {
        let (Some(log), Some(shard)) = (self.log_of(queue).cloned(), self.me.upgrade()) else {
            return self.reply(reply_to, LocalReply::Number(0));
        };
        run_or_spawn(&self.env, async move {
            let reply = match search(&log, queue, timestamp_ms, boundary).await {
                Ok(offset) => LocalReply::Number(offset),
                Err(error) => LocalReply::Refused(read_refusal(&error)),
            };
            shard.reply(reply_to, reply);
        });
    }

    fn serve_stats(&self, reply_to: ReplyTo) {
        let Some(shard) = self.me.upgrade() else {
            return;
        };
        run_or_spawn(&self.env, async move {
            let mut stats = shard.stats.borrow().clone();
            for log in shard.logs.values() {
                let earliest_ms = log.first_timestamp_ms().await;
                let path = &log.options().directory;
                let space = shard.env.disk_space(path).ok();
                stats.logs.push(LogStats {
                    log: log.id(),
                    min: log.start_position(),
                    max: log.durable(),
                    pending_bytes: log.pending_bytes(),
                    earliest_ms: earliest_ms.map_or(0, |ms| ms as i64),
                    disk_total_bytes: space.map_or(0, |space| space.total_bytes),
                    disk_available_bytes: space.map_or(0, |space| space.available_bytes),
                    path: path.display().to_string(),
                    refusal: why_not_writable(log),
                    durable_here: log.durable_here(),
                    replicas: shard.replica_stats(log.id()),
                    master: shard.master_stats(log.id()),
                });
            }
            shard.reply(reply_to, LocalReply::Stats(Box::new(stats)));
        });
    }
}

/// The message record at a position that a client names; `None` for anything that is not exactly one.
pub(super) async fn read_record<E: Env>(
    log: &Rc<CommitLog<E>>,
    position: Position,
) -> Option<Body> {
    let (start, end) = (log.start_position().0, log.durable().0);
    if position.0 < start || position.0 + 8 > end {
        return None;
    }
    let head = log.reader().read_whole(position.0, 8).await.ok()?;
    let size = u32::from_be_bytes(*head.first_chunk::<4>()?) as usize;
    if !(8..=2 * crate::base::limits::RECORD_BYTES_MAX).contains(&size)
        || position.0 + size as u64 > end
    {
        return None;
    }
    let record = log.reader().read_whole(position.0, size).await.ok()?;
    let view = RecordView::parse_checked(&record).ok()?;
    let expected = PhysicalOffset::new(log.id(), position);
    (view.total_bytes() == size && view.physical_offset() == expected.0)
        .then(|| Body::Pages(smallvec::smallvec![record]))
}

/// Why a log takes no writes, if so.
pub(super) fn why_not_writable<E: Env>(log: &CommitLog<E>) -> Option<Arc<str>> {
    log.refusal()
        .map(|refusal| Arc::from(refusal.to_string()))
        .or_else(|| log.disk_full())
}

/// Store time of a visible message in milliseconds.
pub(super) async fn store_time<E: Env>(
    log: &Rc<CommitLog<E>>,
    queue: QueueKey,
    offset: i64,
) -> std::io::Result<Option<i64>> {
    let Some(entry) = log.entry(queue, offset).await? else {
        return Ok(None);
    };
    let bytes = TIME_PREFIX_BYTES.min(entry.size as usize);
    let head = log.reader().read_whole(entry.position, bytes).await?;
    Ok(crate::wire::record::store_timestamp_of(&head))
}

async fn search<E: Env>(
    log: &Rc<CommitLog<E>>,
    queue: QueueKey,
    timestamp_ms: i64,
    boundary: Boundary,
) -> std::io::Result<i64> {
    let bounds = log.bounds(queue);
    // First offset whose time is at or after (LOWER), or after (UPPER), the wanted one.
    let (mut low, mut high) = (bounds.min_offset, bounds.max_offset);
    while low < high {
        let middle = low + (high - low) / 2;
        let time = store_time(log, queue, middle).await?.unwrap_or(i64::MAX);
        let before = match boundary {
            Boundary::Lower => time < timestamp_ms,
            Boundary::Upper => time <= timestamp_ms,
        };
        if before {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(match boundary {
        Boundary::Lower => low,
        Boundary::Upper => (low - 1).max(bounds.min_offset).max(0),
    })
}
