//! The syntax tree of a template.

use super::ops::Arithmetic;
use std::sync::Arc;

/// An expression.
#[derive(Debug)]
pub(super) struct Expr {
    pub(super) kind: ExprKind,
    pub(super) line: u32,
    /// The longest way down to a leaf.
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
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    Call(Box<Expr>, CallArgs),
    /// Without an input it applies to the text of the block it stands at.
    Filter(Option<Box<Expr>>, Arc<str>, CallArgs),
    Test(Box<Expr>, Arc<str>, CallArgs),
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    /// A minus (`true`) or plus before a number.
    Signed(bool, Box<Expr>),
    Arithmetic(Arithmetic, Box<Expr>, Box<Expr>),
    /// `a < b < c`.
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    /// `a ~ b ~ c`.
    Concat(Vec<Expr>),
    /// `value if condition else other`.
    Conditional(Box<Conditional>),
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

/// What is assigned to.
#[derive(Debug)]
pub(super) enum Target {
    Name(Arc<str>),
    /// `namespace.attribute`.
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
    /// With the filters its text goes through.
    SetBlock(Target, Option<Expr>, Vec<Stmt>),
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    Macro(Macro),
    Call(Expr, Macro),
    Filter(Expr, Vec<Stmt>),
    /// A block with a scope of its own and nothing else: `generation`.
    Scope(Vec<Stmt>),
    /// `block`, which sees the template's own variables only, unless it is `scoped`.
    Block {
        body: Vec<Stmt>,
        is_scoped: bool,
    },
    Break,
    Continue,
    /// A statement that loads another template, or that is not offered here.
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

/// A macro, or the body of a `call` block, which has no name.
#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: Option<Arc<str>>,
    pub(super) parameters: Vec<Arc<str>>,
    /// Of the last parameters.
    pub(super) defaults: Vec<Expr>,
    pub(super) body: Vec<Stmt>,
    pub(super) uses: Uses,
}

/// Special variables that a macro's body mentions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Uses {
    pub(super) caller: bool,
    pub(super) kwargs: bool,
    pub(super) varargs: bool,
}

impl ExprKind {
    /// One more than the height of the highest expression inside.
    pub(super) fn height(&self) -> u32 {
        let of = |expr: &Expr| expr.height;
        let all = |exprs: &[Expr]| exprs.iter().map(of).max().unwrap_or(0);

        let inner = match self {
            Self::Const(_) | Self::Name(_) => 0,
            Self::List(exprs) | Self::Tuple(exprs) | Self::Concat(exprs) => all(exprs),
            Self::Dict(pairs) => pairs
                .iter()
                .map(|(key, value)| of(key).max(of(value)))
                .max()
                .unwrap_or(0),
            Self::Attribute(expr, _) | Self::Not(expr) | Self::Signed(_, expr) => of(expr),
            Self::Item(left, right)
            | Self::And(left, right)
            | Self::Or(left, right)
            | Self::Arithmetic(_, left, right) => of(left).max(of(right)),
            Self::Slice(expr, bounds) => bounds
                .iter()
                .flatten()
                .map(|bound| of(bound))
                .fold(of(expr), u32::max),
            Self::Call(expr, args) | Self::Test(expr, _, args) => of(expr).max(args.height()),
            Self::Filter(expr, _, args) => expr.as_deref().map_or(0, of).max(args.height()),
            Self::Compare(expr, rest) => rest
                .iter()
                .map(|(_, expr)| of(expr))
                .fold(of(expr), u32::max),
            Self::Conditional(parts) => {
                let other = parts.other.as_ref().map_or(0, of);
                of(&parts.condition).max(of(&parts.value)).max(other)
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
