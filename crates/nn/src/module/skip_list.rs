//! Which linear layers stay as they are: the skip list.
//!
//! transformers replaces its default list by the user's (`llm_int8_skip_modules`), which breaks
//! tied models; here the user's names are *added* to the model's own, and a name that matches
//! nothing is an error instead of a silent no-op.

use super::{ModulePath, Node};
use crate::error::{NnError, Result};
use crate::near_names::near_names;

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
}
