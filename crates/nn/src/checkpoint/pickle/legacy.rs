//! Files of PyTorch before 1.6 (and of `_use_new_zipfile_serialization=False`): five pickles one
//! after the other, then the storages, each with its length before it (`torch/serialization.py`,
//! `_legacy_load`).

use super::archive::Range;
use super::heap::{Heap, Value};
use super::machine::{Machine, Outcome};
use super::{LONGEST_PICKLE, Refusal, Scalar};
use std::collections::HashMap;

/// The pickle of `0x1950a86a20f9469cfc6c`, protocol and end left out.
const MAGIC: &[u8] = &[
    0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19,
];

/// Whether a file begins as these do.
pub(super) fn is_legacy(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x80) && bytes.get(2..).is_some_and(|rest| rest.starts_with(MAGIC))
}

/// The object of the file, and where each of its storages lies.
pub(super) fn read(bytes: &[u8]) -> Outcome<(Value<'_>, Heap<'_>, Vec<Option<Range>>)> {
    let mut place = 0;
    let mut next = || -> Outcome<(Value<'_>, Heap<'_>)> {
        let rest = &bytes[place.min(bytes.len())..];
        let (value, heap, length) = Machine::run(&rest[..rest.len().min(LONGEST_PICKLE)])?;
        place += length;
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
        let length = bytes
            .get(place..)
            .and_then(|rest| rest.first_chunk())
            .map(|first| u64::from_le_bytes(*first));
        let end = || -> Option<usize> {
            let size = usize::try_from(length?)
                .ok()?
                .checked_mul(*sizes.get(key)?)?;
            (place + 8)
                .checked_add(size)
                .filter(|end| *end <= bytes.len())
        };
        let Some(end) = end() else {
            return Err(Refusal::Damaged(format!(
                "it ends before the end of its storage `{key}`: it is truncated"
            )));
        };
        ranges.insert(*key, (place + 8, end));
        place = end;
    }
    let ranges = super::ranges(&heap, |storage| ranges.get(storage.key).copied());
    Ok((top, heap, ranges))
}

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
    match heap.dictionaries[number].iter().any(is_big) {
        true => Err(Refusal::Unsupported(
            "it was written by a big-endian machine".into(),
        )),
        false => Ok(()),
    }
}

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
