//! A look at the header of a GGUF file before candle reads it. candle divides by the alignment that
//! the file names, and makes a value of 32 bytes of every byte in a list.

/// Values in the metadata, those in lists included. A tokenizer of 256,000 pieces has a million.
const MOST_VALUES: u64 = 1 << 23;

/// The deepest nesting of lists; candle's own limit is 64.
const DEEPEST: usize = 64;

/// The name of the key whose value tensors are aligned to.
const ALIGNMENT: &[u8] = b"general.alignment";

/// The unread rest of a header.
struct Header<'a> {
    rest: &'a [u8],
    /// Version 1 has lengths of 4 bytes, later ones of 8.
    has_short_lengths: bool,
    values: u64,
}

/// Why a file may not be read; `None` if it may be. A header that is cut off or unknown is left to
/// candle, which names the fault.
pub(super) fn fault(bytes: &[u8]) -> Option<String> {
    let version = u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?);
    let mut header = Header {
        rest: bytes.get(8..)?,
        has_short_lengths: version == 1,
        values: 0,
    };
    header.length()?;
    let keys = header.length()?;

    for _ in 0..keys {
        let length = header.length()?;
        let key = header.take(length)?;
        let kind = header.kind()?;
        let value = header.rest;
        header.skip(kind, 0)?;
        if header.values > MOST_VALUES {
            return Some(format!(
                "its metadata has more than {MOST_VALUES} values, so it is no language model"
            ));
        }

        // Strings may end in zeros, which candle removes.
        let end = key
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |end| end + 1);
        let read = &value[..value.len() - header.rest.len()];
        if &key[..end] == ALIGNMENT && size(kind).is_some() && read.iter().all(|byte| *byte == 0) {
            return Some("it aligns its tensors to multiples of 0 (`general.alignment`)".into());
        }
    }

    None
}

/// Bytes of a value of a type that is neither a string (8) nor a list (9).
fn size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl<'a> Header<'a> {
    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(count).ok()?)?;
        self.rest = rest;
        Some(taken)
    }

    fn kind(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.take(4)?.first_chunk()?))
    }

    fn length(&mut self) -> Option<u64> {
        if self.has_short_lengths {
            return self.kind().map(u64::from);
        }
        Some(u64::from_le_bytes(*self.take(8)?.first_chunk()?))
    }

    /// Skips a value and counts it; `None` where the file ends, and for an unknown type.
    fn skip(&mut self, kind: u32, depth: usize) -> Option<()> {
        self.values += 1;
        if let Some(size) = size(kind) {
            return self.take(size).map(drop);
        }
        if kind == 8 {
            let length = self.length()?;
            return self.take(length).map(drop);
        }
        if kind != 9 || depth >= DEEPEST {
            return None;
        }

        let kind = self.kind()?;
        let count = self.length()?;
        if let Some(size) = size(kind) {
            self.values = self.values.saturating_add(count);
            return self.take(count.checked_mul(size)?).map(drop);
        }
        for _ in 0..count {
            self.skip(kind, depth + 1)?;
            if self.values > MOST_VALUES {
                return Some(());
            }
        }

        Some(())
    }
}
