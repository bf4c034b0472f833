//! Parses statements: Jinja2's `Parser`, with the tags of its `loopcontrols` extension and
//! transformers' `generation`.

use super::ast::{Expr, ExprKind, For, Macro, Stmt, StmtKind, Uses};
use super::error::{Error, Result};
use super::lexer::{Token, TokenKind, tokens};
use std::sync::Arc;

/// The deepest nesting of expressions and statements that the parser recurses into.
const DEEPEST_SYNTAX: u32 = 60;

/// The statements of a template.
pub(super) fn parse(source: &str) -> Result<Vec<Stmt>> {
    let mut parser = Parser::new(tokens(source)?);
    let body = parser.body(&[]).and_then(|body| match parser.peek() {
        TokenKind::End => Ok(body),
        _ => Err(parser.unexpected("end of template")),
    });
    body.map_err(|error| error.at(parser.line()))
}

/// The parameters of a macro, and the defaults of the last ones.
#[derive(Default)]
struct Parameters {
    names: Vec<Arc<str>>,
    defaults: Vec<Expr>,
}

pub(super) struct Parser {
    tokens: Vec<Token>,
    position: usize,
    depth: u32,
    /// Loops around the current statement, within the innermost macro.
    pub(super) loops: u32,
    /// What each open macro or `call` block uses, the innermost last.
    uses: Vec<Uses>,
}

impl Parser {
    fn new(tokens: Vec<Token>) -> Self {
        Self {
            tokens,
            position: 0,
            depth: 0,
            loops: 0,
            uses: Vec::new(),
        }
    }

    pub(super) fn peek(&self) -> &TokenKind {
        self.look(0)
    }

    pub(super) fn look(&self, ahead: usize) -> &TokenKind {
        // The last token is `End`: past it there is nothing but more of it.
        let last = self.tokens.len().saturating_sub(1);
        self.tokens
            .get((self.position + ahead).min(last))
            .map_or(&TokenKind::End, |token| &token.kind)
    }

    pub(super) fn line(&self) -> u32 {
        let last = self.tokens.len().saturating_sub(1);
        self.tokens
            .get(self.position.min(last))
            .map_or(1, |token| token.line)
    }

    pub(super) fn next(&mut self) -> TokenKind {
        let kind = self.peek().clone();
        self.position += 1;
        kind
    }

    pub(super) fn skip_op(&mut self, operator: &str) -> bool {
        let found = matches!(self.peek(), TokenKind::Op(found) if *found == operator);
        self.position += usize::from(found);
        found
    }

    pub(super) fn is_op(&self, operator: &str) -> bool {
        matches!(self.peek(), TokenKind::Op(found) if *found == operator)
    }

    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), TokenKind::Name(found) if **found == *word)
    }

    pub(super) fn skip_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.position += usize::from(found);
        found
    }

    pub(super) fn expect_op(&mut self, operator: &str) -> Result<()> {
        if self.skip_op(operator) {
            Ok(())
        } else {
            Err(self.unexpected(&format!("'{operator}'")))
        }
    }

    pub(super) fn expect_name(&mut self) -> Result<Arc<str>> {
        match self.peek().clone() {
            TokenKind::Name(name) => {
                self.position += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    fn expect(&mut self, kind: &TokenKind, what: &str) -> Result<()> {
        if self.peek() != kind {
            return Err(self.unexpected(what));
        }
        self.position += 1;
        Ok(())
    }

    pub(super) fn unexpected(&self, expected: &str) -> Error {
        let found = match self.peek() {
            TokenKind::Data(_) => "text".to_owned(),
            TokenKind::VariableBegin => "'{{'".to_owned(),
            TokenKind::VariableEnd => "'}}'".to_owned(),
            TokenKind::BlockBegin => "'{%'".to_owned(),
            TokenKind::BlockEnd => "'%}'".to_owned(),
            TokenKind::Name(name) => format!("'{name}'"),
            TokenKind::Str(_) => "a string".to_owned(),
            TokenKind::Int(_) | TokenKind::Float(_) => "a number".to_owned(),
            TokenKind::Op(operator) => format!("'{operator}'"),
            TokenKind::End => "the end of the template".to_owned(),
        };

        Error::new(format!("expected {expected}, got {found}")).at(self.line())
    }

    /// Enters a nested construct; [`Parser::leave`] leaves it.
    pub(super) fn enter(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > DEEPEST_SYNTAX {
            return Err(Error::new("it is nested too deeply").at(self.line()));
        }
        Ok(())
    }

    pub(super) fn leave(&mut self) {
        self.depth -= 1;
    }

    /// Records that the enclosing macros use a name, in case it is a special variable.
    pub(super) fn note_use(&mut self, name: &str) {
        for uses in &mut self.uses {
            match name {
                "caller" => uses.caller = true,
                "kwargs" => uses.kwargs = true,
                "varargs" => uses.varargs = true,
                _ => {}
            }
        }
    }

    /// The statements up to a tag of one of these names, which is then the current token; up to the
    /// end of the template if there are none.
    fn body(&mut self, ends: &[&str]) -> Result<Vec<Stmt>> {
        self.enter()?;
        let mut body = Vec::new();
        loop {
            let line = self.line();
            let kind = match self.peek().clone() {
                TokenKind::Data(text) => {
                    self.position += 1;
                    StmtKind::Data(text)
                }
                TokenKind::VariableBegin => {
                    self.position += 1;
                    let value = self.tuple(true, &[])?;
                    self.expect(&TokenKind::VariableEnd, "'}}'")?;
                    StmtKind::Print(value)
                }
                TokenKind::BlockBegin => {
                    self.position += 1;
                    if ends.iter().any(|end| self.is_word(end)) {
                        break;
                    }

                    let kinds = self.statement(ends)?;
                    self.expect(&TokenKind::BlockEnd, "'%}'")?;
                    body.extend(kinds.into_iter().map(|kind| Stmt { kind, line }));
                    continue;
                }
                _ if ends.is_empty() => break,
                _ => return Err(self.unexpected(&format!("the tag '{}'", ends.join("' or '")))),
            };

            body.push(Stmt { kind, line });
        }

        self.leave();
        Ok(body)
    }

    /// The end of the current tag, then the statements up to one of these tags.
    fn block(&mut self, ends: &[&str]) -> Result<Vec<Stmt>> {
        self.skip_op(":");
        self.expect(&TokenKind::BlockEnd, "'%}'")?;
        self.body(ends)
    }

    /// As [`Parser::block`], and moves past the name of the closing tag.
    fn closed_block(&mut self, end: &str) -> Result<Vec<Stmt>> {
        let body = self.block(&[end])?;
        self.position += 1;
        Ok(body)
    }

    /// The statement of a tag, whose name is the current token. `{% print a, b %}` gives several.
    fn statement(&mut self, ends: &[&str]) -> Result<Vec<StmtKind>> {
        let name = self.expect_name()?;
        Ok(vec![match &*name {
            "for" => StmtKind::For(Box::new(self.for_loop()?)),
            "if" => self.conditional()?,
            "set" => self.assignment()?,
            "with" => self.with()?,
            "macro" => {
                let name = self.expect_name()?;
                self.expect_op("(")?;
                let parameters = self.parameters()?;
                StmtKind::Macro(self.macro_body(Some(name), parameters, "endmacro")?)
            }
            "call" => self.call_block()?,
            "filter" => {
                let filter = self.filters(None, true)?;
                StmtKind::Filter(filter, self.closed_block("endfilter")?)
            }
            "generation" => {
                let loops = std::mem::take(&mut self.loops);
                let body = self.closed_block("endgeneration")?;
                self.loops = loops;
                StmtKind::Scope(body)
            }
            "print" => return self.printed(),
            "block" => self.template_block()?,
            "break" | "continue" if self.loops == 0 => {
                return Err(Error::new(format!("'{name}' outside of a loop")));
            }
            "break" => StmtKind::Break,
            "continue" => StmtKind::Continue,
            "include" | "import" | "from" | "extends" | "autoescape" => self.refused(&name)?,
            _ => return Err(unknown_tag(&name, ends)),
        }])
    }

    fn printed(&mut self) -> Result<Vec<StmtKind>> {
        let mut values = Vec::new();
        while *self.peek() != TokenKind::BlockEnd {
            if !values.is_empty() {
                self.expect_op(",")?;
            }
            values.push(StmtKind::Print(self.expression()?));
        }

        Ok(values)
    }

    fn for_loop(&mut self) -> Result<For> {
        let target = self.target(false, &["in"])?;
        if !self.skip_word("in") {
            return Err(self.unexpected("'in'"));
        }

        let items = self.tuple(false, &["recursive"])?;
        let condition = if self.skip_word("if") {
            Some(self.expression()?)
        } else {
            None
        };

        let is_recursive = self.skip_word("recursive");
        self.loops += 1;
        let body = self.block(&["endfor", "else"])?;
        self.loops -= 1;
        let has_else = self.is_word("else");
        self.position += 1;

        let otherwise = if has_else {
            self.closed_block("endfor")?
        } else {
            Vec::new()
        };

        Ok(For {
            target,
            items,
            condition,
            is_recursive,
            body,
            otherwise,
        })
    }

    fn conditional(&mut self) -> Result<StmtKind> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple(false, &[])?;
            let body = self.block(&["elif", "else", "endif"])?;
            branches.push((condition, body));

            if self.skip_word("elif") {
                continue;
            }

            let has_else = self.is_word("else");
            self.position += 1;
            let otherwise = if has_else {
                self.closed_block("endif")?
            } else {
                Vec::new()
            };

            return Ok(StmtKind::If(branches, otherwise));
        }
    }

    fn assignment(&mut self) -> Result<StmtKind> {
        let target = self.target(true, &[])?;
        if self.skip_op("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, &[])?));
        }

        let filter = if self.is_op("|") {
            Some(self.filters(None, false)?)
        } else {
            None
        };

        Ok(StmtKind::SetBlock(
            target,
            filter,
            self.closed_block("endset")?,
        ))
    }

    fn with(&mut self) -> Result<StmtKind> {
        let mut values = Vec::new();
        while *self.peek() != TokenKind::BlockEnd {
            if !values.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(false, &[])?;
            self.expect_op("=")?;
            values.push((target, self.expression()?));
        }

        Ok(StmtKind::With(values, self.closed_block("endwith")?))
    }

    fn call_block(&mut self) -> Result<StmtKind> {
        let line = self.line();
        let has_parameters = self.skip_op("(");
        let parameters = if has_parameters {
            self.parameters()?
        } else {
            Parameters::default()
        };

        let call = self.expression()?;
        if !matches!(call.kind, ExprKind::Call(..)) {
            return Err(Error::new("expected call").at(line));
        }

        Ok(StmtKind::Call(
            call,
            self.macro_body(None, parameters, "endcall")?,
        ))
    }

    /// The parameters of a macro, after the opening bracket.
    fn parameters(&mut self) -> Result<Parameters> {
        let mut names = Vec::new();
        let mut defaults = Vec::new();
        while !self.is_op(")") {
            if !names.is_empty() {
                self.expect_op(",")?;
            }

            names.push(self.expect_name()?);
            if self.skip_op("=") {
                defaults.push(self.expression()?);
            } else if !defaults.is_empty() {
                return Err(
                    Error::new("non-default argument follows default argument").at(self.line())
                );
            }
        }

        self.expect_op(")")?;
        Ok(Parameters { names, defaults })
    }

    fn macro_body(
        &mut self,
        name: Option<Arc<str>>,
        parameters: Parameters,
        end: &str,
    ) -> Result<Macro> {
        let loops = std::mem::take(&mut self.loops);
        self.uses.push(Uses::default());
        let body = self.closed_block(end)?;
        let uses = self.uses.pop().unwrap_or_default();
        self.loops = loops;
        Ok(Macro {
            name,
            parameters: parameters.names,
            defaults: parameters.defaults,
            body,
            uses,
        })
    }

    fn template_block(&mut self) -> Result<StmtKind> {
        let name = self.expect_name()?;
        let is_scoped = self.skip_word("scoped");
        self.skip_word("required");
        let loops = std::mem::take(&mut self.loops);
        let body = self.closed_block("endblock")?;
        self.loops = loops;
        self.skip_word(&name);

        Ok(StmtKind::Block { body, is_scoped })
    }

    /// Skips a statement that is not supported: it fails when it is reached.
    fn refused(&mut self, name: &str) -> Result<StmtKind> {
        while !matches!(self.peek(), TokenKind::BlockEnd | TokenKind::End) {
            self.position += 1;
        }

        Ok(StmtKind::Refused(match name {
            "autoescape" => {
                self.closed_block("endautoescape")?;
                "'autoescape' is not offered".to_owned()
            }
            _ => format!("'{name}' needs another template, and there is none"),
        }))
    }
}

fn unknown_tag(name: &str, ends: &[&str]) -> Error {
    match ends {
        [] => Error::new(format!("Encountered unknown tag '{name}'")),
        ends => {
            let ends = ends.join("' or '");
            Error::new(format!(
                "Encountered unknown tag '{name}'; the tag looked for was '{ends}'"
            ))
        }
    }
}
