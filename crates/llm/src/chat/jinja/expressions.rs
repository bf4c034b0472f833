//! Parses expressions by Jinja2's grammar. Operators from the loosest binding to the tightest:
//! `if`, `or`, `and`, `not`, comparisons, `+ -`, `~`, `* / // %`, `**`, signs; one method a level.
//! [`operands`](super::operands) parses their operands.

use super::ast::{Comparison, Conditional, Expr, ExprKind};
use super::error::{Error, Result};
use super::lexer::TokenKind;
use super::ops::Arithmetic;
use super::parser::Parser;

/// The tallest expression tree: `1 + 1 + …` grows by one level for each operator, as each operation
/// is an operand of the next.
const HIGHEST_EXPRESSION: u32 = 300;

impl Parser {
    /// An expression node, unless the tree gets too tall to evaluate.
    pub(super) fn expr(&self, line: u32, kind: ExprKind) -> Result<Expr> {
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

    /// An expression, or several separated by commas: a tuple without brackets. `ends` are the
    /// words that end it; without `with_conditional` an `if` ends it too.
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
        let operand = self.not()?;
        self.leave();

        self.expr(line, ExprKind::Not(Box::new(operand)))
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

    /// One level of left-associative operators.
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
        let first = self.term()?;
        if !self.is_op("~") {
            return Ok(first);
        }

        let mut parts = vec![first];
        while self.skip_op("~") {
            parts.push(self.term()?);
        }

        self.expr(line, ExprKind::Concat(parts))
    }

    fn term(&mut self) -> Result<Expr> {
        let operators = [
            ("*", Arithmetic::Mul),
            ("/", Arithmetic::Div),
            ("//", Arithmetic::FloorDiv),
            ("%", Arithmetic::Mod),
        ];

        self.arithmetic(&operators, Self::power)
    }

    /// `**`: left-associative, unlike in Python.
    fn power(&mut self) -> Result<Expr> {
        self.arithmetic(&[("**", Arithmetic::Pow)], |parser| parser.unary(true))
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expr> {
        let line = self.line();
        let is_negative = self.is_op("-");
        let value = if is_negative || self.is_op("+") {
            self.next();
            self.enter()?;
            let operand = self.unary(false)?;
            self.leave();
            self.expr(line, ExprKind::Signed(is_negative, Box::new(operand)))?
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
}
