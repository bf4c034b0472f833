//! JSON values by grammar.

use crate::Choices;
use serde_json::{Map, Value};

/// A value of any type, up to three levels deep; a text may be one of `words`.
pub fn value(from: &mut Choices<'_>, words: &[&str]) -> Value {
    nested(from, words, 3)
}

fn nested(from: &mut Choices<'_>, words: &[&str], levels: usize) -> Value {
    match from.below(12) {
        0 => Value::Null,
        1 => from.flag().into(),
        2 | 3 => from.number().into(),
        4 => (-(from.number() as i64 & i64::MAX)).into(),
        5 | 6 => float(from),
        7 if !words.is_empty() => from.one(words).into(),
        7 | 8 => from.text().into(),
        9 | 10 if levels > 0 => {
            let count = from.below(5);
            (0..count)
                .map(|_| nested(from, words, levels - 1))
                .collect()
        }
        11 if levels > 0 => {
            let count = from.below(4);
            let pairs = (0..count).map(|_| (from.text(), nested(from, words, levels - 1)));
            pairs.collect::<Map<_, _>>().into()
        }
        _ => Value::from(from.byte()),
    }
}

/// A number; JSON has no NaN, so that is a large one.
fn float(from: &mut Choices<'_>) -> Value {
    let number = from.float();
    Value::from(if number.is_finite() { number } else { 1e308 })
}

/// Changes a document: some of its keys, anywhere in it, get other values, are removed or doubled.
pub fn change(document: &mut Value, from: &mut Choices<'_>, keys: &[&str], words: &[&str]) {
    while !from.is_empty() {
        let mut place = &mut *document;
        for _ in 0..from.below(5) {
            let number = usize::from(from.byte());
            let count = match &*place {
                Value::Object(map) => map.len(),
                Value::Array(items) => items.len(),
                _ => 0,
            };
            if count == 0 {
                break;
            }
            let inner = match place {
                Value::Object(map) => map.values_mut().nth(number % count),
                Value::Array(items) => items.get_mut(number % count),
                _ => None,
            };
            match inner {
                Some(inner) => place = inner,
                None => return,
            }
        }
        match place {
            Value::Object(map) => change_object(map, from, keys, words),
            Value::Array(items) => match from.below(3) {
                0 => items.push(value(from, words)),
                1 => drop(items.pop()),
                _ => {
                    let copy = items.clone();
                    items.extend(copy.into_iter().take(16));
                }
            },
            other => *other = value(from, words),
        }
    }
}

fn change_object(
    map: &mut Map<String, Value>,
    from: &mut Choices<'_>,
    keys: &[&str],
    words: &[&str],
) {
    let own = |map: &Map<String, Value>, from: &mut Choices<'_>| {
        let number = from.byte() as usize % map.len().max(1);
        map.keys().nth(number).cloned().unwrap_or_default()
    };
    match from.below(4) {
        0 => {
            let key = own(map, from);
            map.shift_remove(&key);
        }
        1 => {
            let key = own(map, from);
            map.insert(key, value(from, words));
        }
        _ if keys.is_empty() => {}
        _ => {
            let key = keys[usize::from(from.short()) % keys.len()];
            map.insert(key.to_owned(), value(from, words));
        }
    }
}
