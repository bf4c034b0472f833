//! Which linear layers become int8: the skip list and its report.
//!
//! transformers replaces its default list by the user's (`llm_int8_skip_modules`), which breaks
//! tied models; here the user's names are *added* to the model's own, and a name that matches
//! nothing is an error instead of a silent no-op.

use super::{ModulePath, Node};
use crate::error::{NnError, Result};

/// Names of modules to leave as they are.
///
/// A name matches a module when it is the module's own name, or a run of whole parts of its path:
/// `c_proj`, `h.1`, `transformer.h.1.attn.c_proj`; `h.1` does not match `h.11`.
///
/// ```
/// use llm_int8_nn::module::{ModulePath, SkipList};
/// let skip = SkipList::new(["lm_head"]).with(["h.1"]);
/// assert_eq!(skip.matching(&ModulePath::from("transformer.h.1.mlp.c_fc")), Some("h.1"));
/// assert_eq!(skip.matching(&ModulePath::from("transformer.h.11.mlp.c_fc")), None);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SkipList {
    names: Vec<String>,
}

impl SkipList {
    /// A list of those names.
    pub fn new<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self {
            names: names.into_iter().map(Into::into).collect(),
        }
    }

    /// The same list with more names.
    pub fn with<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.names.extend(names.into_iter().map(Into::into));
        self
    }

    /// The names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The first name that covers this module or one above it.
    pub fn matching(&self, path: &ModulePath) -> Option<&str> {
        let parts: Vec<&str> = path.as_str().split('.').collect();
        self.names.iter().map(String::as_str).find(|name| {
            let wanted: Vec<&str> = name.split('.').collect();
            parts.windows(wanted.len()).any(|window| window == wanted)
        })
    }

    /// Checks that every name matches some module of the tree.
    ///
    /// # Errors
    /// [`NnError::UnknownModule`] with the nearest names of the tree.
    pub fn check(&self, tree: &Node) -> Result<()> {
        let modules = tree.named_modules();
        for name in &self.names {
            let alone = Self::new([name.as_str()]);
            if name.is_empty()
                || !modules
                    .iter()
                    .any(|(path, _)| alone.matching(path).is_some())
            {
                let candidates = modules
                    .iter()
                    .flat_map(|(path, _)| [path.name(), path.as_str()]);
                return Err(NnError::UnknownModule {
                    name: name.clone(),
                    hint: near_names(name, candidates),
                });
            }
        }
        Ok(())
    }
}

/// A linear layer that was kept, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptLinear {
    /// Its path.
    pub path: ModulePath,
    /// The name of the skip list that covers it.
    pub because: String,
}

/// What replacing did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplaceReport {
    /// Layers that are int8 now.
    pub replaced: Vec<ModulePath>,
    /// Layers that were kept.
    pub kept: Vec<KeptLinear>,
}

/// `; did you mean `a`, `b`?` of the nearest candidates, or nothing where none is near.
pub fn near_names<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    let limit = (name.len() / 3).max(2);
    let mut near: Vec<(usize, &str)> = candidates
        .filter(|candidate| !candidate.is_empty())
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    near.sort_unstable();
    near.dedup();
    let names: Vec<String> = near
        .iter()
        .take(3)
        .map(|(_, candidate)| format!("`{candidate}`"))
        .collect();
    if names.is_empty() {
        String::new()
    } else {
        format!("; did you mean {}?", names.join(" or "))
    }
}

/// Levenshtein distance over bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Node {
        let attn = Node::container("GPT2Attention")
            .with_child("c_attn", Node::leaf("Linear", ""))
            .with_child("c_proj", Node::leaf("Linear", ""));
        Node::container("GPT2LMHeadModel").with_child("h", Node::list([attn.clone(), attn]))
    }

    #[test]
    fn an_unknown_name_is_an_error_with_suggestions() {
        assert!(
            SkipList::new(["c_attn", "h.1", "h.0.c_proj"])
                .check(&tree())
                .is_ok()
        );
        let error = SkipList::new(["c_atn"])
            .check(&tree())
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "skip list: `c_atn` matches no module of this model; did you mean `c_attn`?"
        );
        assert!(SkipList::new([""]).check(&tree()).is_err());
        assert!(
            SkipList::new(["attn"]).check(&tree()).is_err(),
            "a part of a name is not the name"
        );
    }

    #[test]
    fn edit_distance_counts_changes() {
        assert_eq!(edit_distance("gpt2", "gpt2"), 0);
        assert_eq!(edit_distance("c_atn", "c_attn"), 1);
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
