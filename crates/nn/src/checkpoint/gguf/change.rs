//! The changes llama.cpp's converter makes to tensors, and how they are undone.

/// How to undo llama.cpp's change to a tensor, so that it is as in the original checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufChange {
    /// The tensor is stored unchanged.
    None,
    /// The rows of query and key weights are permuted: RoPE of llama.cpp rotates neighbours where
    /// transformers rotates halves. The inverse permutation is applied.
    Unpermute {
        /// Number of heads that the rows belong to.
        heads: usize,
    },
    /// The tensor is transposed (GPT-2's `Conv1D`).
    Transpose,
    /// llama.cpp added 1 to the weight (Gemma's norms); 1 is subtracted.
    MinusOne,
}

/// Undoes llama.cpp's change. `shape` is the shape in the original checkpoint.
pub(super) fn changed(mut values: Vec<f32>, shape: &[usize], change: GgufChange) -> Vec<f32> {
    match change {
        GgufChange::None => values,
        GgufChange::MinusOne => {
            values.iter_mut().for_each(|x| *x -= 1.0);
            values
        }
        GgufChange::Transpose => {
            let &[rows, columns] = shape else {
                return values;
            };
            // In the file it is [columns, rows].
            let value = |i: usize| values[i % columns * rows + i / columns];
            (0..rows * columns).map(value).collect()
        }
        GgufChange::Unpermute { heads } => {
            let rows = shape.first().copied().unwrap_or(0);
            let width = values.len().checked_div(rows).unwrap_or(0);
            let half = rows / heads / 2;

            // Within a head, llama.cpp stores row `half · pair + i` at `2 · i + pair`.
            let stored = |row: usize| {
                let head = row / (2 * half);
                let within = row % (2 * half);
                head * 2 * half + within % half * 2 + within / half
            };

            (0..rows)
                .flat_map(|row| &values[stored(row) * width..][..width])
                .copied()
                .collect()
        }
    }
}

/// Whether each head gets the same, even number of rows.
pub(super) fn rows_divide_among(heads: usize, shape: &[usize]) -> bool {
    heads > 0
        && shape
            .first()
            .is_some_and(|rows| rows.is_multiple_of(2 * heads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpermuting_undoes_the_permutation_of_llama_cpp() {
        // One head of six rows: llama.cpp writes rows 0 3 1 4 2 5.
        let stored = vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0];
        let values = changed(stored, &[6, 1], GgufChange::Unpermute { heads: 1 });
        assert_eq!(values, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn transposing_and_subtracting() {
        let values = changed(
            vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            &[3, 2],
            GgufChange::Transpose,
        );
        assert_eq!(values, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(changed(vec![1.5], &[1], GgufChange::MinusOne), [0.5]);
    }
}
