//! A safe interpreter for pickles. It knows the opcodes that `torch.save` writes in protocols 2 to
//! 5, and none of them runs code.
//!
//! A pickle is a program for a stack machine. Values are small and `Copy`; lists, tuples and
//! dictionaries are in an arena ([`Heap`]) and referred to by index. So sharing is free, cycles are
//! harmless, and nothing recurses however deep the nesting. An opcode makes at most one value, so
//! memory is bounded by the length of the pickle. The opcodes are documented in CPython's
//! `pickletools`.

use super::Refusal;
use super::global::{self, Global};
use super::heap::{Heap, Storage, Tensor, Value};
use super::tape::Tape;
use std::collections::HashMap;

/// Upper bound of opcodes in a pickle. A tensor takes about forty, so no checkpoint of a language
/// model comes near.
const MOST_OPCODES: usize = 1 << 21;

pub(super) type Outcome<T> = std::result::Result<T, Refusal>;

pub(super) fn damaged<T>(reason: impl Into<String>) -> Outcome<T> {
    Err(Refusal::Damaged(format!(
        "its pickle is not one of torch.save: {}",
        reason.into()
    )))
}

/// The state of the stack machine.
pub(super) struct Machine<'a> {
    tape: Tape<'a>,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    pub(super) heap: Heap<'a>,
}

impl<'a> Machine<'a> {
    /// Runs a pickle to its end. Returns its value, the heap that this refers to, and the number of
    /// bytes read.
    pub(super) fn run(bytes: &'a [u8]) -> Outcome<(Value<'a>, Heap<'a>, usize)> {
        let mut machine = Self {
            tape: Tape::new(bytes),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            heap: Heap::default(),
        };

        for _ in 0..MOST_OPCODES {
            let opcode = machine.tape.byte()?;
            if opcode == b'.' {
                return Ok((
                    machine.pop()?,
                    machine.heap,
                    bytes.len() - machine.tape.left(),
                ));
            }

            machine.step(opcode)?;
        }

        damaged(format!("it has more than {MOST_OPCODES} opcodes"))
    }

    fn step(&mut self, opcode: u8) -> Outcome<()> {
        if let Some(value) = self.tape.literal(opcode)? {
            self.stack.push(value);
            return Ok(());
        }

        match opcode {
            0x80 => self.protocol(),
            0x95 => self.tape.take(8).map(drop), // FRAME
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.discard(),
            b'1' => self.pop_to_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            b'q' | b'r' | 0x94 => self.memorise(opcode),
            b'h' | b'j' => self.recall(opcode),
            b'a' | b'e' => self.append(opcode),
            b']' | b'l' => self.list(opcode),
            b')' | b't' | 0x85..=0x87 => self.tuple(opcode),
            b'}' | b'd' | b's' | b'u' => self.dictionary(opcode),
            0x8f..=0x91 => self.set(opcode),
            b'c' | 0x93 => self.global(opcode),
            b'R' | 0x81 => {
                let arguments = self.pop()?;
                let callable = self.pop()?;
                let made = self.made(callable, arguments)?;
                self.stack.push(made);
                Ok(())
            }
            b'b' => self.build(),
            b'Q' => self.storage(),
            other => damaged(format!("opcode {other:#04x} is not expected")),
        }
    }

    fn protocol(&mut self) -> Outcome<()> {
        match self.tape.byte()? {
            0..=5 => Ok(()),
            other => damaged(format!("its protocol is {other}; 5 is the latest")),
        }
    }

    /// The stack index below which the current mark forbids access.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Outcome<Value<'a>> {
        match self.stack.pop() {
            Some(value) if self.stack.len() >= self.floor() => Ok(value),
            _ => damaged("it takes more from the stack than there is"),
        }
    }

    fn top(&self) -> Outcome<Value<'a>> {
        match self.stack.last() {
            Some(value) if self.stack.len() > self.floor() => Ok(*value),
            _ => damaged("it looks at an empty stack"),
        }
    }

    /// POP, which also removes a mark if that is on top.
    fn discard(&mut self) -> Outcome<()> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn pop_to_mark(&mut self) -> Outcome<Vec<Value<'a>>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => damaged("a mark is missing"),
        }
    }

    /// PUT and MEMOIZE.
    fn memorise(&mut self, opcode: u8) -> Outcome<()> {
        let place = match opcode {
            b'q' => u32::from(self.tape.byte()?),
            b'r' => self.tape.u32()?,
            _ => self.memo.len() as u32,
        };

        self.memo.insert(place, self.top()?);
        Ok(())
    }

    /// GET.
    fn recall(&mut self, opcode: u8) -> Outcome<()> {
        let place = if opcode == b'h' {
            u32::from(self.tape.byte()?)
        } else {
            self.tape.u32()?
        };

        let Some(value) = self.memo.get(&place) else {
            return damaged(format!("memo {place} was never written"));
        };

        self.stack.push(*value);
        Ok(())
    }

    /// APPEND and APPENDS.
    fn append(&mut self, opcode: u8) -> Outcome<()> {
        let items = if opcode == b'a' {
            vec![self.pop()?]
        } else {
            self.pop_to_mark()?
        };

        let Value::List(number) = self.top()? else {
            return damaged(format!(
                "it appends to a value of type {}",
                self.top()?.kind()
            ));
        };

        self.heap.lists[number].extend(items);
        Ok(())
    }

    /// EMPTY_LIST and LIST.
    fn list(&mut self, opcode: u8) -> Outcome<()> {
        let items = if opcode == b'l' {
            self.pop_to_mark()?
        } else {
            Vec::new()
        };

        let list = Value::List(self.heap.list(items));
        self.stack.push(list);
        Ok(())
    }

    /// EMPTY_TUPLE, TUPLE, and TUPLE1 to TUPLE3.
    fn tuple(&mut self, opcode: u8) -> Outcome<()> {
        let items = match opcode {
            b')' => Vec::new(),
            b't' => self.pop_to_mark()?,
            _ => {
                let count = usize::from(opcode - 0x84);
                match self.stack.len().checked_sub(count) {
                    Some(start) if start >= self.floor() => self.stack.split_off(start),
                    _ => return damaged("a tuple lacks items"),
                }
            }
        };

        let tuple = Value::Tuple(self.heap.list(items));
        self.stack.push(tuple);

        Ok(())
    }

    /// EMPTY_DICT, DICT, SETITEM and SETITEMS.
    fn dictionary(&mut self, opcode: u8) -> Outcome<()> {
        let items = match opcode {
            b'}' => Vec::new(),
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_to_mark()?,
        };

        if matches!(opcode, b'}' | b'd') {
            let dictionary = self.heap.dictionary();
            self.stack.push(dictionary);
        }

        let Value::Dictionary(number) = self.top()? else {
            return damaged(format!(
                "it sets items of a value of type {}",
                self.top()?.kind()
            ));
        };

        let (pairs, []) = items.as_chunks::<2>() else {
            return damaged("a key has no value");
        };

        self.heap.dictionaries[number].extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    /// EMPTY_SET, ADDITEMS and FROZENSET. No tensor depends on the items of a set.
    fn set(&mut self, opcode: u8) -> Outcome<()> {
        if opcode != 0x8f {
            self.pop_to_mark()?;
        }

        match (opcode, self.stack.last()) {
            (0x90, Some(Value::Other("set"))) => Ok(()),
            (0x90, _) => damaged("it adds to something that is not a set"),
            _ => {
                self.stack.push(Value::Other("set"));
                Ok(())
            }
        }
    }

    /// GLOBAL and STACK_GLOBAL.
    fn global(&mut self, opcode: u8) -> Outcome<()> {
        let (module, name) = if opcode == b'c' {
            (self.tape.line()?, self.tape.line()?)
        } else {
            match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => (module, name),
                _ => return damaged("the name of a class is not a string"),
            }
        };

        let Some(global) = global::find(module, name) else {
            return Err(Refusal::Unsupported(format!(
                "it holds an object of `{}.{}`, and loading that may run code; load the file with torch and save \
                 the model's `state_dict()` alone",
                shortened(module),
                shortened(name)
            )));
        };

        self.stack.push(Value::Global(global));
        Ok(())
    }

    /// BUILD: sets attributes of the value on top, none of which matters to a tensor.
    fn build(&mut self) -> Outcome<()> {
        self.pop()?;
        match self.top()? {
            Value::Dictionary(_) | Value::Tensor(_) | Value::Other(_) => Ok(()),
            other => damaged(format!(
                "it sets attributes of a value of type {}",
                other.kind()
            )),
        }
    }

    /// BINPERSID, which torch uses for storages: `("storage", class, key, device, length)`.
    fn storage(&mut self) -> Outcome<()> {
        let id = self.pop()?;
        let [
            Value::Text("storage"),
            Value::Global(Global::Storage(scalar)),
            Value::Text(key),
            _,
            length,
            view @ ..,
        ] = self.heap.items(id).unwrap_or_default()
        else {
            return damaged("a persistent id does not describe a storage");
        };

        if !matches!(view, [] | [Value::None]) {
            let reason =
                "a storage of it is a view of another one; load it with torch and save it again";
            return Err(Refusal::Unsupported(reason.into()));
        }

        let storage = Storage {
            scalar: *scalar,
            key,
            length: size(*length)?,
        };

        self.heap.storages.push(storage);
        self.stack
            .push(Value::Storage(self.heap.storages.len() - 1));

        Ok(())
    }

    /// REDUCE and NEWOBJ: the value that a class or function of torch would return for these
    /// arguments.
    fn made(&mut self, callable: Value<'a>, arguments: Value<'a>) -> Outcome<Value<'a>> {
        let (Value::Global(global), Value::Tuple(number)) = (callable, arguments) else {
            return damaged(format!(
                "it calls a value of type {} with one of type {}",
                callable.kind(),
                arguments.kind()
            ));
        };

        let given = &self.heap.lists[number];
        match (global, given.as_slice()) {
            (Global::Dictionary, []) => Ok(self.heap.dictionary()),
            (Global::Size, [sizes @ (Value::Tuple(_) | Value::List(_))]) => Ok(*sizes),
            (Global::Parameter | Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => {
                Ok(*tensor)
            }
            (Global::RebuildFromType, [inner, _, arguments, ..]) => match inner {
                // Allowing this would make the recursion below unbounded.
                Value::Global(Global::RebuildFromType) => {
                    damaged("a tensor with attributes has them twice")
                }
                inner => {
                    let (inner, arguments) = (*inner, *arguments);
                    self.made(inner, arguments)
                }
            },
            (Global::RebuildTensor | Global::RebuildTensorV3, _) => self.tensor(global, number),
            (Global::RebuildOther(kind), _) => Ok(self.added(Tensor::Other(kind))),
            (Global::Value(kind), _) => Ok(Value::Other(kind)),
            (global, given) => damaged(format!(
                "{global:?} is called with {} arguments",
                given.len()
            )),
        }
    }

    fn added(&mut self, tensor: Tensor) -> Value<'a> {
        self.heap.tensors.push(tensor);
        Value::Tensor(self.heap.tensors.len() - 1)
    }

    /// `_rebuild_tensor(storage, offset, size, stride)`, version 2 with `requires_grad, hooks[,
    /// metadata]`, version 3 with `requires_grad, hooks, dtype[, metadata]`.
    fn tensor(&mut self, global: Global, arguments: usize) -> Outcome<Value<'a>> {
        let given = &self.heap.lists[arguments];
        let [Value::Storage(storage), offset, shape, strides, rest @ ..] = given.as_slice() else {
            return damaged("a tensor has no storage");
        };
        let (
            Value::Tuple(shape) | Value::List(shape),
            Value::Tuple(strides) | Value::List(strides),
        ) = (shape, strides)
        else {
            return damaged("a tensor has no shape");
        };

        let (scalar, metadata) = match (global, rest) {
            (Global::RebuildTensorV3, [_, _, Value::Global(Global::Dtype(scalar)), rest @ ..]) => {
                (*scalar, rest.first())
            }
            (Global::RebuildTensorV3, _) => return damaged("a tensor has no dtype"),
            _ => (self.heap.storages[*storage].scalar, rest.get(2)),
        };

        let view = Tensor::View {
            storage: *storage,
            scalar,
            offset: size(*offset)?,
            shape: *shape,
            strides: *strides,
        };

        // The metadata holds the negative and conjugate bits: torch applies them lazily
        // (`torch.view_as_real(x.conj())`).
        let is_changed = match metadata {
            Some(Value::Dictionary(number)) => {
                let pairs = &self.heap.dictionaries[*number];
                pairs
                    .iter()
                    .any(|(_, value)| matches!(value, Value::Bool(true)))
            }
            _ => false,
        };

        let tensor = if is_changed {
            Tensor::Other("a view with its negative or conjugate bit set")
        } else {
            view
        };

        Ok(self.added(tensor))
    }
}

/// A non-negative integer.
pub(super) fn size(value: Value<'_>) -> Outcome<usize> {
    match value {
        Value::Int(size) => usize::try_from(size).or_else(|_| damaged(format!("a size is {size}"))),
        other => damaged(format!("a size is a value of type {}", other.kind())),
    }
}

/// A name made safe for an error message: no control characters, at most 60 characters.
fn shortened(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(60).collect()
}
