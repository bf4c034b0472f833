//! Expressions, by Jinja2's grammar: `if`, `or`, `and`, `not`, comparisons, `+ -`, `~`, `* / // %`,
//! `**`, signs, postfixes, filters and tests, from the loosest to the tightest.

use super::ast::{CallArgs, Comparison, Conditional, Const, Expr, ExprKind};
use super::error::{Error, Result};
use super::lexer::TokenKind;
use super::ops::Arithmetic;
use super::parser::Parser;

/// Operations in a chain, each of which takes the one before as its operand.
const HIGHEST_EXPRESSION: u32 = 300;

impl Parser {
    fn expr(&self, line: u32, kind: ExprKind) -> Result<Expr> {
        let height = kind.height();
        if height > HIGHEST_EXPRESSION {
            return Err(Error::new("an expression has too many operations").at(line));
        }
        Ok(Expr { kind, line, height })
    }

    pub(super) fn expression(&mut self) -> Result<Expr> {
        self.enter()?;
        let line = self.line();

        let mut value = self.or()?;
        while self.skip_word("if") {
            let condition = self.or()?;
            let other = if self.skip_word("else") {
                Some(self.expression()?)
            } else {
                None
            };

            value = self.expr(
                line,
                ExprKind::Conditional(Box::new(Conditional {
                    condition,
                    value,
                    other,
                })),
            )?;
        }

        self.leave();
        Ok(value)
    }

    /// An expression, or several with commas between them. `ends` are words that end it.
    pub(super) fn tuple(&mut self, with_conditional: bool, ends: &[&str]) -> Result<Expr> {
        let line = self.line();
        let mut values = Vec::new();
        let mut is_tuple = false;
        loop {
            let is_end = matches!(self.peek(), TokenKind::VariableEnd | TokenKind::BlockEnd)
                || self.is_op(")")
                || ends.iter().any(|end| self.is_word(end));
            if is_end {
                break;
            }

            values.push(if with_conditional {
                self.expression()?
            } else {
                self.or()?
            });
            if !self.skip_op(",") {
                break;
            }

            is_tuple = true;
        }

        match values.pop() {
            None => Err(self.unexpected("an expression")),
            Some(value) if !is_tuple => Ok(value),
            Some(value) => {
                values.push(value);
                self.expr(line, ExprKind::Tuple(values))
            }
        }
    }

    fn or(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.and()?;
        while self.skip_word("or") {
            let right = self.and()?;
            left = self.expr(line, ExprKind::Or(Box::new(left), Box::new(right)))?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.not()?;
        while self.skip_word("and") {
            let right = self.not()?;
            left = self.expr(line, ExprKind::And(Box::new(left), Box::new(right)))?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr> {
        let line = self.line();
        if !self.skip_word("not") {
            return self.comparison();
        }

        self.enter()?;
        let of = self.not()?;
        self.leave();

        self.expr(line, ExprKind::Not(Box::new(of)))
    }

    fn comparison(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.sum()?;
        let mut rest = Vec::new();
        while let Some(comparison) = self.comparison_operator() {
            rest.push((comparison, self.sum()?));
        }

        if rest.is_empty() {
            return Ok(first);
        }

        self.expr(line, ExprKind::Compare(Box::new(first), rest))
    }

    fn comparison_operator(&mut self) -> Option<Comparison> {
        let comparison = match self.peek() {
            TokenKind::Op("==") => Comparison::Eq,
            TokenKind::Op("!=") => Comparison::Ne,
            TokenKind::Op("<") => Comparison::Lt,
            TokenKind::Op("<=") => Comparison::Le,
            TokenKind::Op(">") => Comparison::Gt,
            TokenKind::Op(">=") => Comparison::Ge,
            TokenKind::Name(name) if **name == *"in" => Comparison::In,
            TokenKind::Name(name) if **name == *"not" => {
                let follows = matches!(self.look(1), TokenKind::Name(name) if **name == *"in");
                if !follows {
                    return None;
                }
                self.next();
                Comparison::NotIn
            }
            _ => return None,
        };

        self.next();
        Some(comparison)
    }

    /// Left-associative operators of one level.
    fn arithmetic(
        &mut self,
        operators: &[(&str, Arithmetic)],
        operand: fn(&mut Self) -> Result<Expr>,
    ) -> Result<Expr> {
        let line = self.line();
        let mut left = operand(self)?;
        while let Some((_, operator)) = operators.iter().find(|(sign, _)| self.is_op(sign)) {
            self.next();
            let right = operand(self)?;
            left = self.expr(
                line,
                ExprKind::Arithmetic(*operator, Box::new(left), Box::new(right)),
            )?;
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<Expr> {
        self.arithmetic(
            &[("+", Arithmetic::Add), ("-", Arithmetic::Sub)],
            Self::concatenation,
        )
    }

    fn concatenation(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }

        let mut parts = vec![first];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }

        self.expr(line, ExprKind::Concat(parts))
    }

    fn product(&mut self) -> Result<Expr> {
        let operators = [
            ("*", Arithmetic::Mul),
            ("/", Arithmetic::Div),
            ("//", Arithmetic::FloorDiv),
            ("%", Arithmetic::Mod),
        ];

        self.arithmetic(&operators, Self::power)
    }

    /// Left-associative, unlike Python's.
    fn power(&mut self) -> Result<Expr> {
        self.arithmetic(&[("**", Arithmetic::Pow)], |parser| parser.unary(true))
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expr> {
        let line = self.line();
        let is_negative = self.is_op("-");
        let value = if is_negative || self.is_op("+") {
            self.next();
            self.enter()?;
            let of = self.unary(false)?;
            self.leave();
            self.expr(line, ExprKind::Signed(is_negative, Box::new(of)))?
        } else {
            self.primary()?
        };

        let value = self.postfixes(value)?;
        if with_filters {
            self.filters_and_tests(value)
        } else {
            Ok(value)
        }
    }

    fn primary(&mut self) -> Result<Expr> {
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

    fn postfixes(&mut self, mut value: Expr) -> Result<Expr> {
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

    /// An index or slice in square brackets after a value.
    fn subscript(&mut self, of: Expr) -> Result<ExprKind> {
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
                return Ok(ExprKind::Item(Box::new(of), first));
            }

            let mut keys = vec![*first];
            while self.skip_op(",") {
                keys.push(self.expression()?);
            }

            self.expect_op("]")?;
            let keys = self.expr(line, ExprKind::Tuple(keys))?;
            return Ok(ExprKind::Item(Box::new(of), Box::new(keys)));
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
        Ok(ExprKind::Slice(Box::new(of), [start, stop, step]))
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

    fn filters_and_tests(&mut self, mut value: Expr) -> Result<Expr> {
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

    /// `| name(…)`, as many as there are; at the beginning of a filter block the first has no bar.
    pub(super) fn filters(&mut self, mut input: Option<Expr>, is_block: bool) -> Result<Expr> {
        let mut is_begun = is_block;
        loop {
            if !std::mem::take(&mut is_begun) && !self.skip_op("|") {
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

    fn dotted_name(&mut self) -> Result<std::sync::Arc<str>> {
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
