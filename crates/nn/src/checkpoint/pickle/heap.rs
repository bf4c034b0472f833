//! The values of a pickle: small `Copy` values, and an arena of the lists, tuples, dictionaries,
//! storages and tensors that they refer to by index.

use super::global::{self, Global};

/// A value of a pickle.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Text(&'a str),
    /// Index in [`Heap::lists`].
    Tuple(usize),
    /// Index in [`Heap::lists`].
    List(usize),
    /// Index in [`Heap::dictionaries`].
    Dictionary(usize),
    Global(Global),
    /// Index in [`Heap::storages`].
    Storage(usize),
    /// Index in [`Heap::tensors`].
    Tensor(usize),
    /// A value that no tensor depends on; only its Python type is kept.
    Other(&'static str),
}

impl Value<'_> {
    /// Its Python type, for error messages.
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

/// A storage: the memory that tensors are views of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storage<'a> {
    /// Dtype of its elements.
    pub(super) scalar: global::Scalar,
    /// The name of its record, without `data/`.
    pub(super) key: &'a str,
    /// Its length according to the pickle: in elements, or in bytes if it is untyped.
    pub(super) length: usize,
}

/// A tensor as the pickle describes it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tensor {
    /// A strided view of a storage.
    View {
        /// Index in [`Heap::storages`].
        storage: usize,
        scalar: global::Scalar,
        /// Offset of the first element, in elements.
        offset: usize,
        /// Index in [`Heap::lists`] of a list of integers.
        shape: usize,
        /// Index in [`Heap::lists`] of a list of integers.
        strides: usize,
    },
    /// An unsupported kind.
    Other(&'static str),
}

/// The arena that values refer to.
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
