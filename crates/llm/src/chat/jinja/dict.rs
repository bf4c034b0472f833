//! Python's `dict`: its keys in the order they were given, found by hash where there are many.

use super::budget::check_list;
use super::error::{Error, Result};
use super::value::{Extent, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// Dicts of more keys than this are looked up by hash.
const FEW: usize = 8;

/// A dict in the order its keys were given.
#[derive(Debug)]
pub(super) struct Dict {
    entries: Vec<(Value, Value)>,
    /// Places of the keys that are strings, for dicts of more than a few.
    places: Option<HashMap<Arc<str>, usize>>,
    pub(super) extent: Extent,
}

impl Dict {
    /// Of pairs in order; a later value of the same key takes the place of the earlier one.
    pub(super) fn new(pairs: Vec<(Value, Value)>) -> Result<Self> {
        check_list(Some(pairs.len()))?;
        let extent = Extent::around(pairs.iter().flat_map(|(key, value)| [key, value]))?;
        let mut dict = Self {
            entries: Vec::with_capacity(pairs.len()),
            places: None,
            extent,
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

        if let Some(place) = self.place(&key) {
            self.entries[place].1 = value;
            return Ok(());
        }

        self.entries.push((key, value));
        if self.entries.len() > FEW {
            self.index();
        }

        Ok(())
    }

    /// Brings the table of places up to date.
    fn index(&mut self) {
        let known = if self.places.is_some() {
            self.entries.len() - 1
        } else {
            0
        };

        let places = self.places.get_or_insert_with(HashMap::new);
        for (place, (key, _)) in self.entries.iter().enumerate().skip(known) {
            if let Some(text) = key.as_arc() {
                places.insert(text.clone(), place);
            }
        }
    }

    fn place(&self, key: &Value) -> Option<usize> {
        if let (Some(places), Some(text)) = (&self.places, key.as_str()) {
            return places.get(text).copied();
        }
        self.entries
            .iter()
            .position(|(other, _)| super::ops::equal(other, key))
    }

    pub(super) fn get(&self, key: &Value) -> Option<&Value> {
        self.place(key).map(|place| &self.entries[place].1)
    }

    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }
}
