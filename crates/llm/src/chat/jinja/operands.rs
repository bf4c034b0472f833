//! Parses the operands of expressions: literals, names and brackets, and what follows them
//! (attributes, subscripts, calls, filters and tests).

use super::ast::{CallArgs, Const, Expr, ExprKind, SliceBounds};
use super::error::{Error, Result};
use super::lexer::TokenKind;
use super::parser::Parser;
use std::sync::Arc;

impl Parser {
    pub(super) fn primary(&mut self) -> Result<Expr> {
        let line = self.line();
        let kind = match self.peek().clone() {
            TokenKind::Name(name) => {
                self.next();
                match &*name {
                    "true" | "True" => ExprKind::Const(Const::Bool(true)),
                    "false" | "False" => ExprKind::Const(Const::Bool(false)),
                    "none" | "None" => ExprKind::Const(Const::None),
                    _ => {
                        self.note_use(&name);
                        ExprKind::Name(name)
                    }
                }
            }
            TokenKind::Str(_) => {
                let mut text = String::new();
                while let TokenKind::Str(part) = self.peek() {
                    text.push_str(part);
                    self.next();
                }
                ExprKind::Const(Const::Str(text.into()))
            }
            TokenKind::Int(number) => {
                self.next();
                ExprKind::Const(Const::Int(number))
            }
            TokenKind::Float(number) => {
                self.next();
                ExprKind::Const(Const::Float(number))
            }
            TokenKind::Op("(") => return self.bracketed(),
            TokenKind::Op("[") => ExprKind::List(self.list()?),
            TokenKind::Op("{") => ExprKind::Dict(self.dict()?),
            _ => return Err(self.unexpected("an expression")),
        };

        self.expr(line, kind)
    }

    fn bracketed(&mut self) -> Result<Expr> {
        let line = self.line();
        self.expect_op("(")?;
        if self.skip_op(")") {
            return self.expr(line, ExprKind::Tuple(Vec::new()));
        }

        let value = self.tuple(true, &[])?;
        self.expect_op(")")?;
        Ok(value)
    }

    fn list(&mut self) -> Result<Vec<Expr>> {
        self.expect_op("[")?;
        let mut values = Vec::new();
        while !self.skip_op("]") {
            if !values.is_empty() {
                self.expect_op(",")?;
                if self.skip_op("]") {
                    break;
                }
            }

            values.push(self.expression()?);
        }

        Ok(values)
    }

    fn dict(&mut self) -> Result<Vec<(Expr, Expr)>> {
        self.expect_op("{")?;
        let mut pairs = Vec::new();
        while !self.skip_op("}") {
            if !pairs.is_empty() {
                self.expect_op(",")?;
                if self.skip_op("}") {
                    break;
                }
            }

            let key = self.expression()?;
            self.expect_op(":")?;
            pairs.push((key, self.expression()?));
        }

        Ok(pairs)
    }

    pub(super) fn postfixes(&mut self, mut value: Expr) -> Result<Expr> {
        loop {
            let line = self.line();
            let kind = if self.skip_op(".") {
                match self.next() {
                    TokenKind::Name(name) => ExprKind::Attribute(Box::new(value), name),
                    TokenKind::Int(number) => {
                        let index = self.expr(line, ExprKind::Const(Const::Int(number)))?;
                        ExprKind::Item(Box::new(value), Box::new(index))
                    }
                    _ => return Err(Error::new("expected name or number").at(line)),
                }
            } else if self.skip_op("[") {
                self.subscript(value)?
            } else if self.is_op("(") {
                ExprKind::Call(Box::new(value), self.call_args()?)
            } else {
                return Ok(value);
            };

            value = self.expr(line, kind)?;
        }
    }

    /// An index or a slice, after the opening bracket.
    fn subscript(&mut self, object: Expr) -> Result<ExprKind> {
        let line = self.line();
        let start = if self.is_op(":") {
            None
        } else {
            Some(Box::new(self.expression()?))
        };

        if !self.skip_op(":") {
            let Some(first) = start else {
                return Err(self.unexpected("an expression"));
            };
            if self.skip_op("]") {
                return Ok(ExprKind::Item(Box::new(object), first));
            }

            let mut keys = vec![*first];
            while self.skip_op(",") {
                keys.push(self.expression()?);
            }

            self.expect_op("]")?;
            let keys = self.expr(line, ExprKind::Tuple(keys))?;
            return Ok(ExprKind::Item(Box::new(object), Box::new(keys)));
        }

        let bound = |parser: &mut Self| {
            let is_open = parser.is_op(":") || parser.is_op("]");
            if is_open {
                Ok(None)
            } else {
                parser.expression().map(|value| Some(Box::new(value)))
            }
        };

        let stop = bound(self)?;
        let step = if self.skip_op(":") {
            bound(self)?
        } else {
            None
        };

        self.expect_op("]")?;
        let bounds = SliceBounds { start, stop, step };
        Ok(ExprKind::Slice(Box::new(object), bounds))
    }

    pub(super) fn call_args(&mut self) -> Result<CallArgs> {
        let line = self.line();
        self.expect_op("(")?;

        let mut args = CallArgs::default();
        let mut is_first = true;
        while !self.is_op(")") {
            if !std::mem::take(&mut is_first) {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }

            self.argument(&mut args, line)?;
        }

        self.expect_op(")")?;
        Ok(args)
    }

    fn argument(&mut self, args: &mut CallArgs, line: u32) -> Result<()> {
        let invalid = || Error::new("invalid syntax for function call expression").at(line);
        let is_last = args.all_named.is_some();

        if self.skip_op("*") {
            if is_last || args.all_positional.is_some() {
                return Err(invalid());
            }
            args.all_positional = Some(Box::new(self.expression()?));
        } else if self.skip_op("**") {
            if is_last {
                return Err(invalid());
            }
            args.all_named = Some(Box::new(self.expression()?));
        } else if matches!(
            (self.peek(), self.look(1)),
            (TokenKind::Name(_), TokenKind::Op("="))
        ) {
            if is_last {
                return Err(invalid());
            }
            let name = self.expect_name()?;
            self.next();
            args.named.push((name, self.expression()?));
        } else {
            if is_last || args.all_positional.is_some() || !args.named.is_empty() {
                return Err(invalid());
            }
            args.positional.push(self.expression()?);
        }

        Ok(())
    }

    pub(super) fn filters_and_tests(&mut self, mut value: Expr) -> Result<Expr> {
        loop {
            let line = self.line();
            if self.is_op("|") {
                value = self.filters(Some(value), false)?;
            } else if self.skip_word("is") {
                value = self.test(value, line)?;
            } else if self.is_op("(") {
                let args = self.call_args()?;
                value = self.expr(line, ExprKind::Call(Box::new(value), args))?;
            } else {
                return Ok(value);
            }
        }
    }

    /// A chain of `| name(…)`. In a `{% filter %}` tag the first has no bar.
    pub(super) fn filters(&mut self, mut input: Option<Expr>, is_block: bool) -> Result<Expr> {
        let mut is_first_of_block = is_block;
        loop {
            if !std::mem::take(&mut is_first_of_block) && !self.skip_op("|") {
                return input.ok_or_else(|| self.unexpected("a filter"));
            }

            let line = self.line();
            let name = self.dotted_name()?;
            let args = if self.is_op("(") {
                self.call_args()?
            } else {
                CallArgs::default()
            };

            input = Some(self.expr(line, ExprKind::Filter(input.map(Box::new), name, args))?);
        }
    }

    fn dotted_name(&mut self) -> Result<Arc<str>> {
        let mut name = self.expect_name()?;
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?).into();
        }
        Ok(name)
    }

    fn test(&mut self, value: Expr, line: u32) -> Result<Expr> {
        let is_negated = self.skip_word("not");
        let name = self.dotted_name()?;

        let takes_argument = match self.peek() {
            TokenKind::Name(word) => !matches!(&**word, "else" | "or" | "and"),
            TokenKind::Str(_) | TokenKind::Int(_) | TokenKind::Float(_) => true,
            TokenKind::Op(operator) => matches!(*operator, "[" | "{"),
            _ => false,
        };

        let args = if self.is_op("(") {
            self.call_args()?
        } else if takes_argument {
            if self.is_word("is") {
                return Err(Error::new("You cannot chain multiple tests with is").at(line));
            }

            let argument = self.primary()?;
            CallArgs {
                positional: vec![self.postfixes(argument)?],
                ..CallArgs::default()
            }
        } else {
            CallArgs::default()
        };

        let test = self.expr(line, ExprKind::Test(Box::new(value), name, args))?;
        if is_negated {
            self.expr(line, ExprKind::Not(Box::new(test)))
        } else {
            Ok(test)
        }
    }
}
