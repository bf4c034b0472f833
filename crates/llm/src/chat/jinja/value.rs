//! The values of a template: Python's types. Lists and dicts are immutable, as in the sandbox, so
//! none can contain itself.

use super::budget::{check_list, text_units};
use super::dict::Dict;
use super::error::{Error, Result};
use super::held::{Held, SharedText};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// The deepest nesting of containers. Python's recursion limit ends at about five times as many.
const DEEPEST_VALUE: u32 = 200;

/// A Python value.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Undefined(Rc<Missing>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(SharedText),
    /// A `str` that is already HTML: the result of `safe` or `escape`.
    Markup(SharedText),
    List(Rc<Items>),
    Tuple(Rc<Items>),
    Dict(Rc<Dict>),
    View(ViewKind, Rc<Dict>),
    Range(Range),
    /// A generator: it can be iterated once.
    Iterator(Rc<Stream>),
    Loop(Rc<Loop>),
    /// An index into the interpreter's namespaces, which may refer to each other.
    Namespace(usize),
    Cycler(Rc<Cycler>),
    Joiner(Rc<Joiner>),
    /// An index into the interpreter's macros.
    Macro(usize),
    Function(Function),
    Method(Rc<Method>),
}

/// Why a value is undefined. Using it is an error that says so.
#[derive(Debug)]
pub(super) enum Missing {
    Name(Arc<str>),
    Attribute {
        object: &'static str,
        name: Value,
    },
    /// An attribute that the sandbox forbids.
    Unsafe {
        object: &'static str,
        name: Arc<str>,
    },
    Hint(String),
}

/// The elements of a list or tuple.
#[derive(Debug)]
pub(super) struct Items {
    values: Vec<Value>,
    extent: Extent,
    _held: Held,
    /// A pair made by `groupby`, which has the attributes `grouper` and `list`.
    pub(super) is_group: bool,
}

/// The nesting depth of a value, and the work of walking all of it (see `budget`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    depth: u32,
    units: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ViewKind {
    Keys,
    Values,
    Items,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: i128,
    pub(super) stop: i128,
    pub(super) step: i128,
}

#[derive(Debug)]
pub(super) struct Stream {
    rest: RefCell<std::vec::IntoIter<Value>>,
    extent: Extent,
    _held: Held,
    pub(super) name: &'static str,
}

/// The `loop` of a `for`.
#[derive(Debug)]
pub(super) struct Loop {
    pub(super) items: Rc<Items>,
    pub(super) index0: Cell<usize>,
    pub(super) depth0: usize,
    /// An index into the interpreter's recursive loops.
    pub(super) recursion: Option<usize>,
    /// An index into the interpreter's values of `loop.changed`.
    pub(super) changed: Cell<Option<usize>>,
}

#[derive(Debug)]
pub(super) struct Cycler {
    pub(super) items: Rc<Items>,
    pub(super) position: Cell<usize>,
}

#[derive(Debug)]
pub(super) struct Joiner {
    pub(super) separator: Value,
    pub(super) used: Cell<bool>,
}

/// The global functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Range,
    Dict,
    Cycler,
    Joiner,
    Namespace,
    RaiseException,
    StrftimeNow,
}

#[derive(Debug)]
pub(super) struct Method {
    pub(super) receiver: Value,
    pub(super) name: Arc<str>,
}

impl Items {
    pub(super) fn new(values: Vec<Value>) -> Result<Self> {
        check_list(Some(values.len()))?;
        let extent = Extent::around(values.iter())?;
        Ok(Self {
            _held: Held::by(values.iter())?,
            values,
            extent,
            is_group: false,
        })
    }

    pub(super) fn values(&self) -> &[Value] {
        &self.values
    }
}

impl Extent {
    const LEAF: Self = Self { depth: 0, units: 1 };

    pub(super) fn around<'a>(values: impl Iterator<Item = &'a Value>) -> Result<Self> {
        let mut around = Self { depth: 0, units: 1 };
        for value in values {
            let extent = value.extent();
            around.depth = around.depth.max(extent.depth);
            around.units = around.units.saturating_add(extent.units);
        }

        around.depth += 1;
        if around.depth > DEEPEST_VALUE {
            return Err(Error::new(format!(
                "a value is nested more than {DEEPEST_VALUE} deep"
            )));
        }

        Ok(around)
    }
}

impl Range {
    pub(super) fn len(&self) -> usize {
        let (low, high, step) = if self.step > 0 {
            (self.start, self.stop, self.step)
        } else {
            (self.stop, self.start, self.step.saturating_neg())
        };
        if low >= high {
            return 0;
        }

        let span = high.saturating_sub(low).saturating_sub(1) / step;
        usize::try_from(span.saturating_add(1)).unwrap_or(usize::MAX)
    }

    /// The element at an index below the length.
    pub(super) fn at(&self, index: usize) -> Value {
        Value::Int(
            self.start
                .saturating_add(self.step.saturating_mul(index as i128)),
        )
    }
}

impl Stream {
    pub(super) fn next(&self) -> Option<Value> {
        self.rest.borrow_mut().next()
    }

    pub(super) fn take_all(&self) -> Vec<Value> {
        self.rest.borrow_mut().by_ref().collect()
    }
}

impl Value {
    pub(super) fn str(text: impl Into<SharedText>) -> Self {
        Self::Str(text.into())
    }

    pub(super) fn list(values: Vec<Self>) -> Result<Self> {
        Ok(Self::List(Rc::new(Items::new(values)?)))
    }

    pub(super) fn tuple(values: Vec<Self>) -> Result<Self> {
        Ok(Self::Tuple(Rc::new(Items::new(values)?)))
    }

    pub(super) fn dict(pairs: Vec<(Self, Self)>) -> Result<Self> {
        Ok(Self::Dict(Rc::new(Dict::new(pairs)?)))
    }

    /// A generator. `name` is its Python function's, for printing.
    pub(super) fn stream(name: &'static str, values: Vec<Self>) -> Result<Self> {
        let extent = Extent::around(values.iter())?;
        Ok(Self::Iterator(Rc::new(Stream {
            _held: Held::by(values.iter())?,
            rest: RefCell::new(values.into_iter()),
            extent,
            name,
        })))
    }

    pub(super) fn hint(text: impl Into<String>) -> Self {
        Self::Undefined(Rc::new(Missing::Hint(text.into())))
    }

    /// The undefined value that `object.name` gives if there is no such attribute.
    pub(super) fn missing(object: &Self, name: &Self) -> Self {
        // Keeps only names that the message prints, so that undefined values cannot form a chain.
        let name = match name {
            Self::Str(_) | Self::Int(_) => name.clone(),
            _ => Self::None,
        };
        Self::Undefined(Rc::new(Missing::Attribute {
            object: object.object_type(),
            name,
        }))
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    pub(super) fn as_text(&self) -> Option<&SharedText> {
        match self {
            Self::Str(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        self.as_text().map(|text| &**text)
    }

    /// The value of an `int` or a `bool`.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Bool(bool) => Some(i128::from(*bool)),
            _ => None,
        }
    }

    /// The value of a `float`, an `int` or a `bool`.
    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            _ => self.as_int().map(|number| number as f64),
        }
    }

    /// Python's `bool()`.
    pub(super) fn truth(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(bool) => *bool,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            other => other.len() != Some(0),
        }
    }

    /// Python's `len()`, for types that have one.
    pub(super) fn len(&self) -> Option<usize> {
        match self {
            Self::Undefined(_) => Some(0),
            Self::Str(text) | Self::Markup(text) => Some(text.chars().count()),
            Self::List(items) | Self::Tuple(items) => Some(items.values.len()),
            Self::Dict(dict) | Self::View(_, dict) => Some(dict.entries().len()),
            Self::Range(range) => Some(range.len()),
            Self::Loop(state) => Some(state.items.values.len()),
            _ => None,
        }
    }

    pub(super) fn is_hashable(&self) -> bool {
        match self {
            Self::List(_) | Self::Dict(_) | Self::View(..) => false,
            Self::Tuple(items) => items.values.iter().all(Self::is_hashable),
            _ => true,
        }
    }

    fn extent(&self) -> Extent {
        let one_more = |extent: Extent| Extent {
            depth: extent.depth + 1,
            ..extent
        };
        match self {
            Self::Str(text) | Self::Markup(text) => Extent {
                depth: 0,
                units: text_units(text.len()),
            },
            Self::List(items) | Self::Tuple(items) => items.extent,
            Self::Dict(dict) => dict.extent,
            Self::View(_, dict) => one_more(dict.extent),
            Self::Iterator(stream) => stream.extent,
            Self::Loop(state) => one_more(state.items.extent),
            Self::Cycler(cycler) => one_more(cycler.items.extent),
            Self::Joiner(joiner) => one_more(joiner.separator.extent()),
            Self::Method(method) => one_more(method.receiver.extent()),
            _ => Extent::LEAF,
        }
    }

    /// The work of an operation that walks the whole value, including everything it contains.
    pub(super) fn units(&self) -> u64 {
        self.extent().units
    }

    /// The work of an operation that visits only the value's own elements.
    pub(super) fn shallow_units(&self) -> u64 {
        match self {
            Self::Str(text) | Self::Markup(text) => text_units(text.len()),
            Self::List(items) | Self::Tuple(items) => 1 + items.values.len() as u64,
            Self::Dict(dict) | Self::View(_, dict) => 1 + dict.entries().len() as u64,
            _ => 1,
        }
    }

    /// Python's name of the type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Markup(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(ViewKind::Keys, _) => "dict_keys",
            Self::View(ViewKind::Values, _) => "dict_values",
            Self::View(ViewKind::Items, _) => "dict_items",
            Self::Range(_) => "range",
            Self::Iterator(_) => "generator",
            Self::Loop(_) => "LoopContext",
            Self::Namespace(_) => "Namespace",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
            Self::Macro(_) => "Macro",
            Self::Function(_) => "function",
            Self::Method(_) => "builtin_function_or_method",
        }
    }

    /// What Jinja2 calls an object in the message about a missing attribute.
    fn object_type(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "bool object",
            Self::Int(_) => "int object",
            Self::Float(_) => "float object",
            Self::Str(_) => "str object",
            Self::Markup(_) => "markupsafe.Markup object",
            Self::List(_) => "list object",
            Self::Tuple(_) => "tuple object",
            Self::Dict(_) => "dict object",
            Self::Range(_) => "range object",
            Self::Iterator(_) => "generator object",
            Self::Loop(_) => "jinja2.runtime.LoopContext object",
            Self::Namespace(_) => "jinja2.utils.Namespace object",
            Self::Macro(_) => "jinja2.runtime.Macro object",
            _ => "object",
        }
    }
}

impl Missing {
    pub(super) fn error(&self) -> Error {
        Error::new(match self {
            Self::Name(name) => format!("'{name}' is undefined"),
            Self::Attribute { object, name } => match name {
                Value::Str(name) => format!("'{object}' has no attribute '{name}'"),
                Value::Int(number) => format!("{object} has no element {number}"),
                _ => format!("{object} has no such element"),
            },
            Self::Unsafe { object, name } => {
                format!("access to attribute '{name}' of '{object}' object is unsafe.")
            }
            Self::Hint(text) => text.clone(),
        })
    }
}

/// Converts a JSON value; keys keep their order.
pub(super) fn from_json(json: &serde_json::Value) -> Result<Value> {
    use serde_json::Value as Json;

    Ok(match json {
        Json::Null => Value::None,
        Json::Bool(bool) => Value::Bool(*bool),
        Json::Number(number) => match number
            .as_i64()
            .map(i128::from)
            .or(number.as_u64().map(i128::from))
        {
            Some(number) => Value::Int(number),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::str(text.as_str()),
        Json::Array(values) => Value::list(values.iter().map(from_json).collect::<Result<_>>()?)?,
        Json::Object(entries) => {
            let pair =
                |(key, value): (&String, _)| Ok((Value::str(key.as_str()), from_json(value)?));
            Value::dict(entries.iter().map(pair).collect::<Result<_>>()?)?
        }
    })
}
