//! Variables, in nested scopes. A macro captures the scope it is defined in.

use super::value::Value;
use std::sync::Arc;

/// The scope of the variables that `render` is given.
pub(super) const CONTEXT: usize = 0;

/// The template's top-level scope.
pub(super) const ROOT: usize = 1;

#[derive(Debug, Default)]
struct Scope {
    variables: Vec<(Arc<str>, Value)>,
    parent: Option<usize>,
    /// A macro or a recursive loop refers to the scope: it must not be reused.
    is_captured: bool,
}

/// All scopes; an index stands for one.
#[derive(Debug)]
pub(super) struct Scopes {
    all: Vec<Scope>,
    /// Scopes that were left and can be reused.
    free: Vec<usize>,
    pub(super) current: usize,
}

impl Scopes {
    pub(super) fn new(context: Vec<(Arc<str>, Value)>) -> Self {
        let given = Scope {
            variables: context,
            ..Scope::default()
        };
        let root = Scope {
            parent: Some(CONTEXT),
            ..Scope::default()
        };
        Self {
            all: vec![given, root],
            free: Vec::new(),
            current: ROOT,
        }
    }

    /// Enters a new scope inside `parent`. Returns the scope that was current, for
    /// [`Scopes::leave`].
    pub(super) fn enter(&mut self, parent: usize) -> usize {
        let scope = match self.free.pop() {
            Some(scope) => scope,
            None => {
                self.all.push(Scope::default());
                self.all.len() - 1
            }
        };

        self.all[scope].parent = Some(parent);
        std::mem::replace(&mut self.current, scope)
    }

    /// Leaves the current scope and makes `back` the current one.
    pub(super) fn leave(&mut self, back: usize) {
        let left = std::mem::replace(&mut self.current, back);
        let scope = &mut self.all[left];
        if !scope.is_captured {
            scope.variables.clear();
            self.free.push(left);
        }
    }

    /// Keeps the current scope and its ancestors until the end of the rendering; returns it.
    pub(super) fn capture(&mut self) -> usize {
        let mut next = Some(self.current);
        while let Some(scope) = next {
            if std::mem::replace(&mut self.all[scope].is_captured, true) {
                break;
            }
            next = self.all[scope].parent;
        }

        self.current
    }

    /// The variable of the innermost scope that has one of this name.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        let mut next = Some(self.current);
        while let Some(scope) = next {
            let scope = &self.all[scope];
            if let Some((_, value)) = scope.variables.iter().find(|(known, _)| **known == *name) {
                return Some(value);
            }
            next = scope.parent;
        }

        None
    }

    /// Sets a variable of the current scope.
    pub(super) fn set(&mut self, name: &Arc<str>, value: Value) {
        let variables = &mut self.all[self.current].variables;
        match variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => variables.push((name.clone(), value)),
        }
    }
}
