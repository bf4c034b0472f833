//! Python's `dict`: insertion-ordered, with a hash index once it has more than a few keys.

use super::budget::check_list;
use super::error::{Error, Result};
use super::held::Held;
use super::value::{Extent, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// A dict with more keys than this gets a hash index.
const FEW: usize = 8;

/// An insertion-ordered dict, immutable once made.
#[derive(Debug)]
pub(super) struct Dict {
    entries: Vec<(Value, Value)>,
    /// Positions of the string keys in `entries`, once there are more than [`FEW`] keys.
    positions: Option<HashMap<Arc<str>, usize>>,
    pub(super) extent: Extent,
    _held: Held,
}

impl Dict {
    /// A dict of these pairs. A key that occurs again keeps its first position and takes the later
    /// value.
    pub(super) fn new(pairs: Vec<(Value, Value)>) -> Result<Self> {
        check_list(Some(pairs.len()))?;
        let extent = Extent::around(pairs.iter().flat_map(|(key, value)| [key, value]))?;
        let mut dict = Self {
            entries: Vec::with_capacity(pairs.len()),
            positions: None,
            extent,
            _held: Held::by(pairs.iter().flat_map(|(key, value)| [key, value]))?,
        };
        for (key, value) in pairs {
            dict.insert(key, value)?;
        }

        Ok(dict)
    }

    fn insert(&mut self, key: Value, value: Value) -> Result<()> {
        if !key.is_hashable() {
            return Err(Error::new(format!(
                "unhashable type: '{}'",
                key.type_name()
            )));
        }

        if let Some(position) = self.position(&key) {
            self.entries[position].1 = value;
            return Ok(());
        }

        self.entries.push((key, value));
        if self.entries.len() > FEW {
            self.update_positions();
        }

        Ok(())
    }

    /// Adds the last entry to the hash index, or makes the index of all entries.
    fn update_positions(&mut self) {
        let known = if self.positions.is_some() {
            self.entries.len() - 1
        } else {
            0
        };

        let positions = self.positions.get_or_insert_with(HashMap::new);
        for (position, (key, _)) in self.entries.iter().enumerate().skip(known) {
            if let Some(text) = key.as_text() {
                positions.insert(text.arc().clone(), position);
            }
        }
    }

    fn position(&self, key: &Value) -> Option<usize> {
        if let (Some(positions), Some(text)) = (&self.positions, key.as_str()) {
            return positions.get(text).copied();
        }
        self.entries
            .iter()
            .position(|(other, _)| super::ops::equal(other, key))
    }

    pub(super) fn get(&self, key: &Value) -> Option<&Value> {
        self.position(key).map(|position| &self.entries[position].1)
    }

    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }
}
