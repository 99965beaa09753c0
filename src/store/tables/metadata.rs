//! Topics and groups as keys with values that the shard layer reads and writes. Filled in log 0 only.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use crate::store::snapshot::{Reader, Short, Writer};

/// Key -> value, in the order of the keys.
#[derive(Default)]
pub struct Metadata {
    values: BTreeMap<Arc<str>, Arc<[u8]>>,
    /// Keys that were set or removed since somebody asked, if somebody does.
    changed: Option<BTreeSet<Arc<str>>>,
}

impl Metadata {
    /// Sets or removes a key.
    pub fn put(&mut self, key: Arc<str>, value: Option<Arc<[u8]>>) {
        if let Some(changed) = &mut self.changed {
            changed.insert(key.clone());
        }
        match value {
            Some(value) => {
                self.values.insert(key, value);
            }
            None => {
                self.values.remove(&key);
            }
        }
    }

    /// Gives the keys that were set or removed since the last time, or since the first call, which gives none.
    pub fn take_changed(&mut self) -> BTreeSet<Arc<str>> {
        self.changed.replace(BTreeSet::new()).unwrap_or_default()
    }

    /// Whether there is anything to take.
    pub fn has_changed(&self) -> bool {
        self.changed.as_ref().is_some_and(|keys| !keys.is_empty())
    }

    /// All keys that begin with `prefix`, with their values.
    pub fn with_prefix<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Arc<[u8]>)> {
        self.values
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (&**key, value))
    }

    /// Value of a key.
    pub fn get(&self, key: &str) -> Option<&Arc<[u8]>> {
        self.values.get(key)
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.u32(self.values.len() as u32);
        for (key, value) in &self.values {
            out.text(key);
            out.bytes(value);
        }
    }

    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self, Short> {
        let mut table = Self::default();
        for _ in 0..input.u32()? {
            let key = input.text()?;
            let value = input.bytes()?;
            table.put(key, Some(Arc::from(value)));
        }
        Ok(table)
    }
}
