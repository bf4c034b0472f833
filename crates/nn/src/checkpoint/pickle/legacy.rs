//! Files of PyTorch before 1.6 (and of `_use_new_zipfile_serialization=False`): five pickles in a
//! row, then the storages, each preceded by its length (`torch/serialization.py`, `_legacy_load`).
//! The pickles are: magic number, protocol version, system information, the object, and the keys of
//! the storages in order.

use super::archive::Range;
use super::heap::{Heap, Value};
use super::machine::{Machine, Outcome};
use super::{LONGEST_PICKLE, Parsed, Refusal, Scalar};
use std::collections::HashMap;

/// The pickled magic number `0x1950a86a20f9469cfc6c`, without the PROTO and STOP opcodes.
const MAGIC: &[u8] = &[
    0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19,
];

/// Whether a file begins with the magic number.
pub(super) fn is_legacy(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x80) && bytes.get(2..).is_some_and(|rest| rest.starts_with(MAGIC))
}

/// Parses a file.
pub(super) fn read(bytes: &[u8]) -> Outcome<Parsed<'_>> {
    let mut at = 0;
    let mut next = || -> Outcome<(Value<'_>, Heap<'_>)> {
        let rest = &bytes[at.min(bytes.len())..];
        let (value, heap, length) = Machine::run(&rest[..rest.len().min(LONGEST_PICKLE)])?;
        at += length;
        Ok((value, heap))
    };

    let (_magic, _) = next()?;
    match next()?.0 {
        Value::Int(1001) => {}
        _ => {
            return Err(Refusal::Unsupported(
                "it was written by a version of torch older than 0.2".into(),
            ));
        }
    }

    check_system(next()?)?;
    let (top, heap) = next()?;
    let (keys, keys_heap) = next()?;

    let sizes: HashMap<&str, usize> = heap
        .storages
        .iter()
        .filter_map(|storage| Some((storage.key, element_size(storage.scalar)?)))
        .collect();
    let mut ranges = HashMap::new();
    for key in keys_heap.items(keys).unwrap_or_default() {
        let Value::Text(key) = key else { continue };
        let range = sizes
            .get(key)
            .and_then(|size| storage_at(bytes, at, *size))
            .ok_or_else(|| {
                Refusal::Damaged(format!(
                    "it ends before the end of its storage `{key}`: it is truncated"
                ))
            })?;

        ranges.insert(*key, range);
        at = range.1;
    }

    let ranges = super::ranges(&heap, |storage| ranges.get(storage.key).copied());
    Ok((top, heap, ranges))
}

/// The storage whose length (u64, in elements of `size` bytes) is at `at`; `None` if it is not
/// within the file.
fn storage_at(bytes: &[u8], at: usize, size: usize) -> Option<Range> {
    let length = u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
    let start = at + 8;
    let end = usize::try_from(length)
        .ok()?
        .checked_mul(size)?
        .checked_add(start)?;
    (end <= bytes.len()).then_some((start, end))
}

/// Rejects big-endian files. The system information is
/// `{"protocol_version": 1001, "little_endian": True, "type_sizes": …}`.
fn check_system((value, heap): (Value<'_>, Heap<'_>)) -> Outcome<()> {
    let Value::Dictionary(number) = value else {
        return Ok(());
    };
    let is_big = |(key, value): &(Value<'_>, Value<'_>)| {
        matches!(
            (key, value),
            (Value::Text("little_endian"), Value::Bool(false))
        )
    };

    if heap.dictionaries[number].iter().any(is_big) {
        return Err(Refusal::Unsupported(
            "it was written by a big-endian machine".into(),
        ));
    }

    Ok(())
}

/// Bytes of an element; `None` if that is unknown.
fn element_size(scalar: Scalar) -> Option<usize> {
    Some(match scalar {
        Scalar::Known(dtype) => dtype.bitsize() / 8,
        Scalar::Bytes => 1,
        Scalar::Other("complex128") => 16,
        Scalar::Other("qint8" | "quint8") => 1,
        Scalar::Other("qint32") => 4,
        Scalar::Other(_) => return None,
    })
}
