//! Which incarnation of a topic the message records of this log belong to: a record has the name only.

use std::sync::Arc;

use ahash::AHashMap;

use crate::base::id_set::IdSet;
use crate::store::snapshot::{Reader, Short, Writer};

/// Names of topics with their current incarnation in this log.
#[derive(Default)]
pub struct OpenTopics {
    ids: AHashMap<Arc<str>, u32>,
    names: AHashMap<u32, Arc<str>>,
    /// Those that have a name: asked for each message.
    open: IdSet,
}

impl OpenTopics {
    /// From here on `name` is this incarnation.
    pub fn open(&mut self, topic_id: u32, name: Arc<str>) {
        if let Some(old) = self.ids.insert(name.clone(), topic_id)
            && old != topic_id
        {
            self.names.remove(&old);
            self.open.remove(old);
        }
        self.names.insert(topic_id, name);
        self.open.insert(topic_id);
    }

    /// The incarnation is gone.
    pub fn drop_topic(&mut self, topic_id: u32) {
        self.open.remove(topic_id);
        if let Some(name) = self.names.remove(&topic_id)
            && self.ids.get(&name) == Some(&topic_id)
        {
            self.ids.remove(&name);
        }
    }

    /// Current incarnation of a name.
    pub fn id(&self, name: &str) -> Option<u32> {
        self.ids.get(name).copied()
    }

    /// Name of an incarnation that is open here.
    pub fn name(&self, topic_id: u32) -> Option<Arc<str>> {
        self.names.get(&topic_id).cloned()
    }

    /// Whether messages of an incarnation can be stored here.
    pub fn is_open(&self, topic_id: u32) -> bool {
        self.open.contains(topic_id)
    }

    /// All incarnations with their names.
    pub fn all(&self) -> impl Iterator<Item = (u32, &Arc<str>)> {
        self.names.iter().map(|(&id, name)| (id, name))
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.u32(self.names.len() as u32);
        for (id, name) in &self.names {
            out.u32(*id);
            out.text(name);
        }
    }

    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self, Short> {
        let mut table = Self::default();
        for _ in 0..input.u32()? {
            let id = input.u32()?;
            table.open(id, input.text()?);
        }
        Ok(table)
    }
}
