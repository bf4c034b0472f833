//! What a pickle makes: values that are small and `Copy`, and an arena of the lists, tuples,
//! dictionaries, storages and tensors that they name by number.

use super::global::{self, Global};

/// A value of a pickle.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Text(&'a str),
    /// A number of [`Heap::lists`].
    Tuple(usize),
    /// A number of [`Heap::lists`].
    List(usize),
    /// A number of [`Heap::dictionaries`].
    Dictionary(usize),
    Global(Global),
    /// A number of [`Heap::storages`].
    Storage(usize),
    /// A number of [`Heap::tensors`].
    Tensor(usize),
    /// Something that no tensor depends on, by its type.
    Other(&'static str),
}

impl Value<'_> {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Text(_) => "str",
            Self::Tuple(_) => "tuple",
            Self::List(_) => "list",
            Self::Dictionary(_) => "dict",
            Self::Global(_) => "class",
            Self::Storage(_) => "storage",
            Self::Tensor(_) => "tensor",
            Self::Other(kind) => kind,
        }
    }
}

/// Where the elements of tensors lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage<'a> {
    /// What the pickle says of its elements.
    pub(super) scalar: global::Scalar,
    /// The name of its record, below `data/`.
    pub(super) key: &'a str,
    /// Elements it says it has; bytes where it is untyped.
    pub(super) length: usize,
}

/// A tensor as the pickle describes it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tensor {
    /// Elements of a storage.
    View {
        storage: usize,
        scalar: global::Scalar,
        offset: usize,
        /// Numbers of [`Heap::lists`], which hold whole numbers.
        shape: usize,
        strides: usize,
    },
    /// A kind that is not read.
    Other(&'static str),
}

/// What values of a pickle refer to.
#[derive(Debug, Default)]
pub(super) struct Heap<'a> {
    pub(super) lists: Vec<Vec<Value<'a>>>,
    pub(super) dictionaries: Vec<Vec<(Value<'a>, Value<'a>)>>,
    pub(super) storages: Vec<Storage<'a>>,
    pub(super) tensors: Vec<Tensor>,
}

impl<'a> Heap<'a> {
    pub(super) fn list(&mut self, items: Vec<Value<'a>>) -> usize {
        self.lists.push(items);
        self.lists.len() - 1
    }

    pub(super) fn dictionary(&mut self) -> Value<'a> {
        self.dictionaries.push(Vec::new());
        Value::Dictionary(self.dictionaries.len() - 1)
    }

    /// The items of a tuple or a list.
    pub(super) fn items(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::Tuple(number) | Value::List(number) => self.lists.get(number).map(Vec::as_slice),
            _ => None,
        }
    }
}
