//! Variables: scopes inside of each other. A macro keeps the scope it is defined in alive.

use super::value::Value;
use std::sync::Arc;

/// The variables given from outside.
pub(super) const CONTEXT: usize = 0;

/// The template's own variables.
pub(super) const ROOT: usize = 1;

#[derive(Debug, Default)]
struct Scope {
    variables: Vec<(Arc<str>, Value)>,
    parent: Option<usize>,
    is_captured: bool,
}

/// All scopes; an index names one.
#[derive(Debug)]
pub(super) struct Scopes {
    all: Vec<Scope>,
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

    /// Enters a new scope inside of another; gives the one left, for [`Scopes::leave`].
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

    /// Leaves the current scope for the one that was left for it.
    pub(super) fn leave(&mut self, back: usize) {
        let left = std::mem::replace(&mut self.current, back);
        let scope = &mut self.all[left];
        if !scope.is_captured {
            scope.variables.clear();
            self.free.push(left);
        }
    }

    /// Keeps the current scope and those around it for the rest of the rendering.
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

    pub(super) fn set(&mut self, name: &Arc<str>, value: Value) {
        let variables = &mut self.all[self.current].variables;
        match variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => variables.push((name.clone(), value)),
        }
    }
}
