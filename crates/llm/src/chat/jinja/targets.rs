//! Parses the targets of assignments, in `set`, `for` and `with`.

use super::ast::Target;
use super::error::{Error, Result};
use super::lexer::TokenKind;
use super::parser::Parser;

impl Parser {
    /// The target of an assignment; `with_namespace` allows `namespace.attribute`.
    pub(super) fn target(&mut self, with_namespace: bool, ends: &[&str]) -> Result<Target> {
        self.enter()?;
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            let is_end = matches!(self.peek(), TokenKind::BlockEnd)
                || self.is_op(")")
                || ends.iter().any(|end| self.is_word(end));
            if is_end && !targets.is_empty() {
                break;
            }

            targets.push(self.one_target(with_namespace)?);
            if !self.skip_op(",") {
                break;
            }

            is_tuple = true;
        }

        self.leave();
        match targets.pop() {
            Some(target) if !is_tuple => Ok(target),
            last => {
                targets.extend(last);
                Ok(Target::Tuple(targets))
            }
        }
    }

    fn one_target(&mut self, with_namespace: bool) -> Result<Target> {
        if self.skip_op("(") {
            let target = self.target(false, &[])?;
            self.expect_op(")")?;
            return Ok(target);
        }

        let name = self.expect_name()?;
        if with_namespace && self.skip_op(".") {
            return Ok(Target::Attribute(name, self.expect_name()?));
        }

        match &*name {
            "true" | "false" | "none" | "True" | "False" | "None" => {
                Err(Error::new("can't assign to 'const'").at(self.line()))
            }
            "loop" if self.loops > 0 || !with_namespace => Err(Error::new(
                "Can't assign to special loop variable in for-loop target",
            )
            .at(self.line())),
            _ => Ok(Target::Name(name)),
        }
    }
}
