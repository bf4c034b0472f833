//! The skip list: which linear layers stay float.
//!
//! In transformers, the user's list (`llm_int8_skip_modules`) replaces the model's own, which
//! breaks models with tied weights. Here the user's names are *added* to the model's own, and a
//! name that matches nothing is an error instead of a silent no-op.

use super::{ModulePath, Node};
use crate::error::{NnError, Result};
use crate::near_names::near_names;

/// Names of modules that stay float.
///
/// A name matches a module if it is a run of whole components of the module's path: `c_proj`,
/// `h.1`, `transformer.h.1.attn.c_proj`. `h.1` does not match `h.11`. Everything below a matching
/// module is skipped too.
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
    /// A list of these names.
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

    /// The first name that matches this module or one of its ancestors.
    pub fn matching(&self, path: &ModulePath) -> Option<&str> {
        let path: Vec<&str> = path.as_str().split('.').collect();
        self.names.iter().map(String::as_str).find(|name| {
            let name: Vec<&str> = name.split('.').collect();
            path.windows(name.len()).any(|window| window == name)
        })
    }

    /// Checks that every name matches at least one module of the tree.
    ///
    /// # Errors
    /// [`NnError::UnknownModule`] with similar names of the tree.
    pub fn check(&self, tree: &Node) -> Result<()> {
        let modules = tree.named_modules();
        for name in &self.names {
            let list_of_one = Self::new([name.as_str()]);
            let matches_any = modules
                .iter()
                .any(|(path, _)| list_of_one.matching(path).is_some());
            if name.is_empty() || !matches_any {
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
            "a fragment of a component does not match"
        );
    }
}
