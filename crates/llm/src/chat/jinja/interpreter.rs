//! Runs statements: [`Interpreter`] holds the state of one rendering. Other files add its methods
//! for expressions, calls, filters and printing.

use super::ast::{Expr, For, Macro, Stmt, StmtKind, Target};
use super::budget::{Budget, MAKING, Text, check_list, text_units};
use super::error::{Error, Result};
use super::scopes::{ROOT, Scopes};
use super::value::{Items, Loop, Value};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// Work charged for a value that is kept until the end of the rendering.
const KEPT: u64 = 16;

/// The state of one rendering. `'t` is the template's syntax tree. After an error nothing is tidied
/// up: the rendering is over.
pub(super) struct Interpreter<'t> {
    pub(super) budget: Budget,
    pub(super) scopes: Scopes,
    /// A stack: the output so far, then that of each enclosing block or macro whose text becomes a
    /// value.
    outputs: Vec<Text>,
    /// The attributes of each namespace.
    pub(super) namespaces: Vec<Vec<(Arc<str>, Value)>>,
    pub(super) macros: Vec<Closure<'t>>,
    /// Each recursive loop and the scope it runs in.
    recursions: Vec<(&'t For, usize)>,
    /// For each loop that calls it, the arguments of the last `loop.changed`.
    pub(super) changed: Vec<Value>,
    /// A stack of the texts that the enclosing filter blocks filter.
    pub(super) inputs: Vec<Value>,
}

/// A macro and the scope it is defined in.
pub(super) struct Closure<'t> {
    pub(super) node: &'t Macro,
    pub(super) scope: usize,
}

/// Where control goes after a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

impl<'t> Interpreter<'t> {
    pub(super) fn new(context: Vec<(Arc<str>, Value)>) -> Self {
        Self {
            budget: Budget::new(),
            scopes: Scopes::new(context),
            outputs: vec![Text::default()],
            namespaces: Vec::new(),
            macros: Vec::new(),
            recursions: Vec::new(),
            changed: Vec::new(),
            inputs: Vec::new(),
        }
    }

    /// Renders a whole template.
    pub(super) fn render(mut self, body: &'t [Stmt]) -> Result<String> {
        self.body(body)?;
        Ok(self.outputs.pop().unwrap_or_default().into_string())
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.budget.spend(text_units(text.len()))?;
        self.outputs
            .last_mut()
            .map_or(Ok(()), |output| output.push(text))
    }

    fn body(&mut self, body: &'t [Stmt]) -> Result<Flow> {
        self.budget.enter()?;
        for statement in body {
            let flow = self
                .statement(statement)
                .map_err(|error| error.at(statement.line))?;
            if flow != Flow::Next {
                self.budget.leave();
                return Ok(flow);
            }
        }

        self.budget.leave();
        Ok(Flow::Next)
    }

    /// Runs a body in a new scope inside `parent`.
    fn scoped(&mut self, parent: usize, body: &'t [Stmt]) -> Result<Flow> {
        let back = self.scopes.enter(parent);
        let flow = self.body(body)?;
        self.scopes.leave(back);
        Ok(flow)
    }

    fn statement(&mut self, statement: &'t Stmt) -> Result<Flow> {
        match &statement.kind {
            StmtKind::Data(text) => self.write(text)?,
            StmtKind::Print(value) => self.print(value)?,
            StmtKind::For(node) => self.for_loop(node)?,
            StmtKind::If(branches, otherwise) => return self.conditional(branches, otherwise),
            StmtKind::Set(target, value) => {
                let value = self.eval(value)?;
                self.assign(target, value)?;
            }
            StmtKind::SetBlock(target, filter, body) => {
                return self.set_block(target, filter.as_ref(), body);
            }
            StmtKind::With(values, body) => return self.with(values, body),
            StmtKind::Macro(node) => self.define(node)?,
            StmtKind::Call(call, node) => {
                let caller = self.closure(node)?;
                let value = self.call_with_caller(call, caller)?;
                self.write_value(&value)?;
            }
            StmtKind::Filter(filter, body) => return self.filter_block(filter, body),
            StmtKind::Scope(body) => return self.scoped(self.scopes.current, body),
            StmtKind::Block { body, is_scoped } => {
                let parent = if *is_scoped {
                    self.scopes.current
                } else {
                    ROOT
                };
                return self.scoped(parent, body);
            }
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
            StmtKind::Refused(reason) => return Err(Error::new(reason.clone())),
        }

        Ok(Flow::Next)
    }

    fn print(&mut self, value: &'t Expr) -> Result<()> {
        let value = self.eval(value)?;
        self.write_value(&value)
    }

    fn write_value(&mut self, value: &Value) -> Result<()> {
        let text = self.str(value)?;
        self.write(&text)
    }

    fn conditional(
        &mut self,
        branches: &'t [(Expr, Vec<Stmt>)],
        otherwise: &'t [Stmt],
    ) -> Result<Flow> {
        for (condition, body) in branches {
            if self.eval(condition)?.truth() {
                return self.body(body);
            }
        }
        self.body(otherwise)
    }

    fn with(&mut self, values: &'t [(Target, Expr)], body: &'t [Stmt]) -> Result<Flow> {
        let outer = self.scopes.current;
        let values = values
            .iter()
            .map(|(target, value)| Ok((target, self.eval(value)?)));
        let values = values.collect::<Result<Vec<_>>>()?;
        let back = self.scopes.enter(outer);
        for (target, value) in values {
            self.assign(target, value)?;
        }

        let flow = self.body(body)?;
        self.scopes.leave(back);
        Ok(flow)
    }

    /// Runs a body in a new scope inside `parent` and captures its output as a value.
    fn captured(&mut self, parent: usize, body: &'t [Stmt]) -> Result<(Flow, Value)> {
        self.outputs.push(Text::default());
        let flow = self.scoped(parent, body)?;
        Ok((flow, self.captured_text()))
    }

    fn captured_text(&mut self) -> Value {
        Value::str(self.outputs.pop().unwrap_or_default().into_string())
    }

    fn set_block(
        &mut self,
        target: &'t Target,
        filter: Option<&'t Expr>,
        body: &'t [Stmt],
    ) -> Result<Flow> {
        let (flow, text) = self.captured(self.scopes.current, body)?;
        if flow != Flow::Next {
            return Ok(flow);
        }
        let value = match filter {
            Some(filter) => self.filtered(filter, text)?,
            None => text,
        };
        self.assign(target, value)?;
        Ok(Flow::Next)
    }

    fn filter_block(&mut self, filter: &'t Expr, body: &'t [Stmt]) -> Result<Flow> {
        let (flow, text) = self.captured(self.scopes.current, body)?;
        if flow == Flow::Next {
            let value = self.filtered(filter, text)?;
            self.write_value(&value)?;
        }
        Ok(flow)
    }

    /// Applies the filters of a block to its text.
    fn filtered(&mut self, filter: &'t Expr, text: Value) -> Result<Value> {
        self.inputs.push(text);
        let value = self.eval(filter)?;
        self.inputs.pop();
        Ok(value)
    }

    fn assign(&mut self, target: &Target, value: Value) -> Result<()> {
        match target {
            Target::Name(name) => self.scopes.set(name, value),
            Target::Attribute(name, attribute) => {
                let Some(Value::Namespace(index)) = self.scopes.get(name) else {
                    return Err(Error::new(
                        "cannot assign attribute on non-namespace object",
                    ));
                };

                let attributes = &mut self.namespaces[*index];
                match attributes.iter_mut().find(|(known, _)| known == attribute) {
                    Some((_, old)) => *old = value,
                    None => attributes.push((attribute.clone(), value)),
                }
            }
            Target::Tuple(targets) => {
                let values = self.iterate(&value)?;
                if values.len() != targets.len() {
                    let expected = targets.len();
                    let given = values.len();
                    let few = if given < expected {
                        "not enough"
                    } else {
                        "too many"
                    };

                    return Err(Error::new(format!(
                        "{few} values to unpack (expected {expected}, got {given})"
                    )));
                }

                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value)?;
                }
            }
        }

        Ok(())
    }

    fn for_loop(&mut self, node: &'t For) -> Result<()> {
        let items = self.eval(&node.items)?;
        if !node.is_recursive {
            return self.run_loop(node, &items, 0, None);
        }

        self.budget.spend(KEPT)?;
        let scope = self.scopes.capture();
        self.recursions.push((node, scope));
        let recursion = Some(self.recursions.len() - 1);

        self.run_loop(node, &items, 0, recursion)
    }

    /// `loop(items)` in a recursive loop: runs the loop over other items and gives its output.
    pub(super) fn recurse(&mut self, state: &Loop, items: &Value) -> Result<Value> {
        let error =
            || Error::new("The loop must have the 'recursive' marker to be called recursively.");
        let recursion = state.recursion.ok_or_else(error)?;
        let &(node, scope) = self.recursions.get(recursion).ok_or_else(error)?;
        let back = std::mem::replace(&mut self.scopes.current, scope);
        self.outputs.push(Text::default());
        self.run_loop(node, items, state.depth0 + 1, Some(recursion))?;
        self.scopes.current = back;

        Ok(self.captured_text())
    }

    fn run_loop(
        &mut self,
        node: &'t For,
        items: &Value,
        depth0: usize,
        recursion: Option<usize>,
    ) -> Result<()> {
        let items = self.iterate(items)?;
        let items = match &node.condition {
            Some(condition) => self.selected(node, items, condition)?,
            None => items,
        };
        let state = Rc::new(Loop {
            items: Rc::new(Items::new(items)?),
            index0: Cell::new(0),
            depth0,
            recursion,
            changed: Cell::new(None),
        });
        let outer = self.scopes.current;
        let name: Arc<str> = "loop".into();
        // As in Jinja2, `else` runs if no iteration reached the end of the body.
        let mut has_completed = false;
        for (index, item) in state.items.values().iter().enumerate() {
            state.index0.set(index);
            let back = self.scopes.enter(outer);
            self.scopes.set(&name, Value::Loop(state.clone()));
            self.assign(&node.target, item.clone())?;
            let flow = self.body(&node.body)?;
            self.scopes.leave(back);

            match flow {
                Flow::Break => break,
                Flow::Continue => {}
                Flow::Next => has_completed = true,
            }
        }
        if !has_completed && !node.otherwise.is_empty() {
            self.scoped(outer, &node.otherwise)?;
        }
        Ok(())
    }

    /// `for … if condition`: the items for which the condition holds.
    fn selected(
        &mut self,
        node: &'t For,
        items: Vec<Value>,
        condition: &'t Expr,
    ) -> Result<Vec<Value>> {
        let mut selected = Vec::new();
        for item in items {
            let back = self.scopes.enter(self.scopes.current);
            self.assign(&node.target, item.clone())?;
            if self.eval(condition)?.truth() {
                selected.push(item);
            }
            self.scopes.leave(back);
        }
        Ok(selected)
    }

    /// A macro as a value: it captures the current scope.
    fn closure(&mut self, node: &'t Macro) -> Result<Value> {
        self.budget.spend(KEPT)?;
        let scope = self.scopes.capture();
        self.macros.push(Closure { node, scope });
        Ok(Value::Macro(self.macros.len() - 1))
    }

    fn define(&mut self, node: &'t Macro) -> Result<()> {
        let value = self.closure(node)?;
        if let Some(name) = &node.name {
            self.scopes.set(name, value);
        }
        Ok(())
    }

    /// Runs a macro whose parameters are bound and gives its output.
    pub(super) fn macro_text(&mut self, node: &'t Macro) -> Result<Value> {
        self.outputs.push(Text::default());
        self.body(&node.body)?;
        Ok(self.captured_text())
    }

    /// The elements of an iterable value. A generator is used up.
    pub(super) fn iterate(&mut self, value: &Value) -> Result<Vec<Value>> {
        use super::value::ViewKind;

        // Each character of a string becomes a value.
        let units = value
            .as_str()
            .map_or_else(|| value.shallow_units(), |text| MAKING * text.len() as u64);
        self.budget.spend(units)?;
        check_list(if value.as_str().is_some() {
            value.len()
        } else {
            Some(0)
        })?;

        Ok(match value {
            Value::Undefined(_) => Vec::new(),
            Value::List(items) | Value::Tuple(items) => items.values().to_vec(),
            Value::Str(text) | Value::Markup(text) => {
                text.chars().map(|c| Value::str(c.to_string())).collect()
            }
            Value::Dict(dict) | Value::View(ViewKind::Keys, dict) => {
                dict.entries().iter().map(|(key, _)| key.clone()).collect()
            }
            Value::View(ViewKind::Values, dict) => dict
                .entries()
                .iter()
                .map(|(_, value)| value.clone())
                .collect(),
            Value::View(ViewKind::Items, dict) => {
                self.budget.spend(MAKING * dict.entries().len() as u64)?;
                let pair =
                    |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
                dict.entries().iter().map(pair).collect::<Result<_>>()?
            }
            Value::Range(range) => {
                self.budget.spend(range.len() as u64)?;
                (0..range.len()).map(|index| range.at(index)).collect()
            }
            Value::Iterator(stream) => stream.take_all(),
            other => {
                return Err(Error::new(format!(
                    "'{}' object is not iterable",
                    other.type_name()
                )));
            }
        })
    }
}
