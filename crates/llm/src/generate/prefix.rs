//! Keys and values that are kept after a sequence ended, for later prompts that start with the same
//! ids.

use super::running::{Context, common};
use std::collections::VecDeque;

/// Who may share a kept prefix.
pub(super) type Salt = Option<String>;

#[derive(Debug)]
struct Kept {
    salt: Salt,
    context: Context,
}

impl Kept {
    fn bytes(&self) -> u64 {
        self.context.bytes()
    }

    fn ids(&self) -> &[u32] {
        self.context.ids()
    }
}

/// A prompt that looks for its beginning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) salt: &'a Salt,
    pub(super) prompt: &'a [u32],
    /// Bytes that its cache may grow to.
    pub(super) bytes: u64,
}

impl Wanted<'_> {
    /// How many ids the prompt has in common with other ids at its beginning; none if their salts
    /// differ. The last id of the prompt does not count: it is computed for its logits.
    pub(super) fn common(self, salt: &Salt, ids: &[u32]) -> usize {
        let prompt = &self.prompt[..self.prompt.len().saturating_sub(1)];
        match salt == self.salt {
            true => common(ids, prompt),
            false => 0,
        }
    }
}

/// Kept prefixes, the least recently used at the front. Prefixes are found by comparing ids, not
/// hashes, so that no prompt can be given keys and values of another.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    /// Bytes that all kept prefixes may have together.
    budget: u64,
    kept: VecDeque<Kept>,
    bytes: u64,
}

impl PrefixCache {
    pub(super) fn new(budget: u64) -> Self {
        Self {
            budget,
            ..Self::default()
        }
    }

    /// Whether anything is ever kept.
    pub(super) fn is_on(&self) -> bool {
        self.budget > 0
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes the longest kept beginning of a prompt, and drops the least recently used prefixes
    /// until what is left and the cache of the new sequence fit into `room` bytes together.
    ///
    /// A prefix is moved if the prompt begins with all of it and no other prompt needs it
    /// (`is_shared` says so of its ids), or if there is no room for two; else it is copied.
    /// `None`: nothing is kept that the prompt begins with, or it cannot be copied.
    pub(super) fn take(
        &mut self,
        wanted: Wanted<'_>,
        room: u64,
        is_shared: impl FnOnce(&[u32]) -> bool,
    ) -> Option<Context> {
        let Some((place, same)) = self.longest(wanted) else {
            self.fit(room.saturating_sub(wanted.bytes));
            return None;
        };

        let found = &self.kept[place];
        let bytes = found.bytes();
        let has_room = wanted.bytes.saturating_add(bytes) <= room;
        let is_whole = same == found.ids().len() && !is_shared(found.ids());
        if bytes <= wanted.bytes && (is_whole || !has_room) {
            let moved = self.remove(place).map(|kept| kept.context);
            self.fit(room.saturating_sub(wanted.bytes));
            return moved;
        }

        // Now it is the last to be dropped. Others are dropped before the copy needs memory.
        let found = self.remove(place)?;
        self.push(found);
        self.fit(room.saturating_sub(wanted.bytes));
        let found = self.kept.back().filter(|_| has_room)?;
        found.context.prefix(same).ok()
    }

    /// Keeps the context of a sequence that ended, if there is room for it. Prefixes that it begins
    /// with are dropped, because it does their work.
    pub(super) fn store(&mut self, salt: Salt, context: Context) {
        let new = Kept { salt, context };
        if new.ids().is_empty() || new.bytes() > self.budget {
            return;
        }

        let includes = |a: &Kept, b: &Kept| a.salt == b.salt && a.ids().starts_with(b.ids());
        if let Some(place) = self.kept.iter().position(|old| includes(old, &new)) {
            let old = self.remove(place);
            old.into_iter().for_each(|old| self.push(old));
            return;
        }

        while let Some(place) = self.kept.iter().position(|old| includes(&new, old)) {
            self.remove(place);
        }

        self.fit(self.budget - new.bytes());
        self.push(new);
    }

    /// How many ids of a prompt are kept, of its beginning.
    pub(super) fn common(&self, wanted: Wanted<'_>) -> usize {
        self.longest(wanted).map_or(0, |(_, same)| same)
    }

    /// Drops the least recently used prefixes until the rest has at most `bytes` bytes.
    pub(super) fn fit(&mut self, bytes: u64) {
        while self.bytes > bytes && self.remove(0).is_some() {}
    }

    fn remove(&mut self, place: usize) -> Option<Kept> {
        let removed = self.kept.remove(place)?;
        self.bytes -= removed.bytes();
        Some(removed)
    }

    fn push(&mut self, kept: Kept) {
        self.bytes += kept.bytes();
        self.kept.push_back(kept);
    }

    /// The place of the kept prefix that has most ids in common with a prompt, and how many.
    fn longest(&self, wanted: Wanted<'_>) -> Option<(usize, usize)> {
        let kept = self.kept.iter().enumerate();
        kept.map(|(place, kept)| (place, wanted.common(&kept.salt, kept.ids())))
            .filter(|(_, same)| *same > 0)
            .max_by_key(|(_, same)| *same)
    }
}
