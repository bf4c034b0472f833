//! The syntax tree of a template.

use super::ops::Arithmetic;
use std::sync::Arc;

/// An expression.
#[derive(Debug)]
pub(super) struct Expr {
    pub(super) kind: ExprKind,
    pub(super) line: u32,
    /// The height of the subtree: 1 for a leaf. Evaluation recurses this deep, so the parser limits
    /// it.
    pub(super) height: u32,
}

#[derive(Debug)]
pub(super) enum ExprKind {
    Const(Const),
    Name(Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Box<Expr>, Arc<str>),
    Item(Box<Expr>, Box<Expr>),
    /// `object[start:stop:step]`.
    Slice(Box<Expr>, SliceBounds),
    Call(Box<Expr>, CallArgs),
    /// `input | name(args)`. Without an input it is the filter of a `{% filter %}` or `{% set %}`
    /// block and applies to the block's text.
    Filter(Option<Box<Expr>>, Arc<str>, CallArgs),
    Test(Box<Expr>, Arc<str>, CallArgs),
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    /// Unary minus (`true`) or plus (`false`).
    Signed(bool, Box<Expr>),
    Arithmetic(Arithmetic, Box<Expr>, Box<Expr>),
    /// `a < b < c`.
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    /// `a ~ b ~ c`.
    Concat(Vec<Expr>),
    /// `value if condition else other`.
    Conditional(Box<Conditional>),
}

/// The bounds of a slice; `None` where one is left out.
#[derive(Debug)]
pub(super) struct SliceBounds {
    pub(super) start: Option<Box<Expr>>,
    pub(super) stop: Option<Box<Expr>>,
    pub(super) step: Option<Box<Expr>>,
}

#[derive(Debug)]
pub(super) struct Conditional {
    pub(super) condition: Expr,
    pub(super) value: Expr,
    pub(super) other: Option<Expr>,
}

#[derive(Debug, Clone)]
pub(super) enum Const {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// `(a, name=b, *c, **d)`.
#[derive(Debug, Default)]
pub(super) struct CallArgs {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(Arc<str>, Expr)>,
    pub(super) all_positional: Option<Box<Expr>>,
    pub(super) all_named: Option<Box<Expr>>,
}

/// The target of an assignment.
#[derive(Debug)]
pub(super) enum Target {
    Name(Arc<str>),
    /// `namespace.attribute`: the only attributes a template may set.
    Attribute(Arc<str>, Arc<str>),
    Tuple(Vec<Target>),
}

/// A statement and its line.
#[derive(Debug)]
pub(super) struct Stmt {
    pub(super) kind: StmtKind,
    pub(super) line: u32,
}

#[derive(Debug)]
pub(super) enum StmtKind {
    Data(String),
    Print(Expr),
    For(Box<For>),
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    Set(Target, Expr),
    /// `{% set target | filter %}…{% endset %}`: the filter is optional.
    SetBlock(Target, Option<Expr>, Vec<Stmt>),
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    Macro(Macro),
    Call(Expr, Macro),
    Filter(Expr, Vec<Stmt>),
    /// `{% generation %}`: transformers marks the assistant's tokens with it; rendering only gives
    /// it a scope of its own.
    Scope(Vec<Stmt>),
    /// `{% block %}`: sees only the template's top-level variables, unless it is `scoped`.
    Block {
        body: Vec<Stmt>,
        is_scoped: bool,
    },
    Break,
    Continue,
    /// A statement that needs another template or is not supported. It fails only when it is
    /// reached.
    Refused(String),
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) items: Expr,
    pub(super) condition: Option<Expr>,
    pub(super) is_recursive: bool,
    pub(super) body: Vec<Stmt>,
    pub(super) otherwise: Vec<Stmt>,
}

/// A macro. The body of a `{% call %}` block is a macro without a name.
#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: Option<Arc<str>>,
    pub(super) parameters: Vec<Arc<str>>,
    /// Defaults of the last parameters, as in Python.
    pub(super) defaults: Vec<Expr>,
    pub(super) body: Vec<Stmt>,
    pub(super) uses: Uses,
}

/// Which of Jinja's special variables a macro's body mentions: it then accepts the arguments they
/// hold.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Uses {
    pub(super) caller: bool,
    pub(super) kwargs: bool,
    pub(super) varargs: bool,
}

impl ExprKind {
    /// The height of the subtree: one more than that of its tallest child.
    pub(super) fn height(&self) -> u32 {
        let height = |expr: &Expr| expr.height;
        let all = |exprs: &[Expr]| exprs.iter().map(height).max().unwrap_or(0);

        let inner = match self {
            Self::Const(_) | Self::Name(_) => 0,
            Self::List(exprs) | Self::Tuple(exprs) | Self::Concat(exprs) => all(exprs),
            Self::Dict(pairs) => pairs
                .iter()
                .map(|(key, value)| height(key).max(height(value)))
                .max()
                .unwrap_or(0),
            Self::Attribute(expr, _) | Self::Not(expr) | Self::Signed(_, expr) => height(expr),
            Self::Item(left, right)
            | Self::And(left, right)
            | Self::Or(left, right)
            | Self::Arithmetic(_, left, right) => height(left).max(height(right)),
            Self::Slice(expr, bounds) => [&bounds.start, &bounds.stop, &bounds.step]
                .into_iter()
                .flatten()
                .map(|bound| height(bound))
                .fold(height(expr), u32::max),
            Self::Call(expr, args) | Self::Test(expr, _, args) => height(expr).max(args.height()),
            Self::Filter(expr, _, args) => expr.as_deref().map_or(0, height).max(args.height()),
            Self::Compare(expr, rest) => rest
                .iter()
                .map(|(_, expr)| height(expr))
                .fold(height(expr), u32::max),
            Self::Conditional(parts) => {
                let other = parts.other.as_ref().map_or(0, height);
                height(&parts.condition)
                    .max(height(&parts.value))
                    .max(other)
            }
        };

        inner + 1
    }
}

impl CallArgs {
    fn height(&self) -> u32 {
        let named = self.named.iter().map(|(_, expr)| expr);
        let all = [&self.all_positional, &self.all_named]
            .into_iter()
            .flatten()
            .map(|expr| &**expr);

        self.positional
            .iter()
            .chain(named)
            .chain(all)
            .map(|expr| expr.height)
            .max()
            .unwrap_or(0)
    }
}
