//! Reads opcodes' arguments from the bytes of a pickle. They are borrowed, never copied.

use super::heap::Value;
use super::machine::{Outcome, damaged};

/// The unread rest of a pickle.
#[derive(Debug)]
pub(super) struct Tape<'a> {
    rest: &'a [u8],
}

impl<'a> Tape<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Number of unread bytes.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: usize) -> Outcome<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return damaged(format!("it ends within {count} bytes that it announces"));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn byte(&mut self) -> Outcome<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u32(&mut self) -> Outcome<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A line, without its newline.
    pub(super) fn line(&mut self) -> Outcome<&'a str> {
        let Some(length) = self.rest.iter().position(|byte| *byte == b'\n') else {
            return damaged("a line does not end");
        };
        let line = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(line).or_else(|_| damaged("a line is not UTF-8"))
    }

    fn long_length(&mut self) -> Outcome<usize> {
        usize::try_from(u64::from_le_bytes(self.array()?))
            .or_else(|_| damaged("a length is too large"))
    }

    /// The value that an opcode pushes if it is a number, a string, bytes or a constant; `None` for
    /// all other opcodes.
    pub(super) fn literal(&mut self, opcode: u8) -> Outcome<Option<Value<'a>>> {
        let value = match opcode {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'K' => Value::Int(i64::from(self.byte()?)),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.array()?))),
            0x8a => {
                let length = self.byte()?;
                self.long(usize::from(length))?
            }
            0x8b => {
                let length = self.u32()? as usize;
                self.long(length)?
            }
            b'G' => {
                self.take(8)?;
                Value::Other("float")
            }
            0x8c => {
                let length = self.byte()?;
                self.text(usize::from(length))?
            }
            b'X' => {
                let length = self.u32()? as usize;
                self.text(length)?
            }
            0x8d => {
                let length = self.long_length()?;
                self.text(length)?
            }
            // Python 2's `str`.
            b'U' => {
                let length = self.byte()?;
                self.text(usize::from(length))?
            }
            b'T' => {
                let length = self.u32()? as usize;
                self.text(length)?
            }
            b'C' => {
                let length = self.byte()?;
                self.bytes(usize::from(length))?
            }
            b'B' => {
                let length = self.u32()? as usize;
                self.bytes(length)?
            }
            0x8e | 0x96 => {
                let length = self.long_length()?;
                self.bytes(length)?
            }
            _ => return Ok(None),
        };

        Ok(Some(value))
    }

    fn bytes(&mut self, length: usize) -> Outcome<Value<'a>> {
        self.take(length)?;
        Ok(Value::Other("bytes"))
    }

    /// A string. One that is not UTF-8 (pickle allows lone surrogates) cannot name a tensor.
    fn text(&mut self, length: usize) -> Outcome<Value<'a>> {
        Ok(std::str::from_utf8(self.take(length)?).map_or(Value::Other("str"), Value::Text))
    }

    /// A little-endian integer in two's complement.
    fn long(&mut self, length: usize) -> Outcome<Value<'a>> {
        let bytes = self.take(length)?;
        if length > 8 {
            return Ok(Value::Other("int"));
        }

        let sign = if bytes.last().is_some_and(|last| last & 0x80 != 0) {
            0xff
        } else {
            0
        };

        let mut wide = [sign; 8];
        wide[..length].copy_from_slice(bytes);

        Ok(Value::Int(i64::from_le_bytes(wide)))
    }
}
