//! Prompt-lookup decoding (Saxena 2023): the drafts are the tokens that followed the last
//! occurrence of the sequence's last few tokens.

/// Length of the suffix that is looked up: the longest is tried first.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;

/// Up to `most` tokens that may follow `seen`. If the match runs into the end of `seen`, the drafts
/// repeat the cycle.
pub(super) fn draft(seen: &[u32], most: usize) -> Vec<u32> {
    let mut drafts = Vec::new();
    if most == 0 {
        return drafts;
    }

    let found = (SHORTEST..=LONGEST.min(seen.len().saturating_sub(1)))
        .rev()
        .find_map(|length| {
            let suffix = &seen[seen.len() - length..];
            let before = &seen[..seen.len() - 1];
            before
                .windows(length)
                .rposition(|window| window == suffix)
                .map(|place| place + length)
        });
    if let Some(first) = found {
        for i in first..first + most {
            drafts.push(
                seen.get(i)
                    .copied()
                    .unwrap_or_else(|| drafts[i - seen.len()]),
            );
        }
    }

    drafts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_what_followed_the_last_match() {
        assert_eq!(draft(&[1, 2, 3, 4, 5, 1, 2, 3], 2), [4, 5]);
        assert_eq!(
            draft(&[1, 2, 3, 9, 2, 3, 7, 2, 3], 1),
            [7],
            "the last match counts"
        );

        assert_eq!(
            draft(&[8, 2, 3, 9, 5, 2, 3, 7, 8, 2, 3], 1),
            [9],
            "the longest suffix counts first"
        );

        assert!(draft(&[1, 2, 3, 4], 3).is_empty(), "nothing repeats");
        assert!(draft(&[1, 2, 3, 1, 2], 0).is_empty());
        assert!(
            draft(&[], 3).is_empty() && draft(&[1], 3).is_empty() && draft(&[1, 1], 3).is_empty()
        );
    }

    #[test]
    fn a_cycle_continues() {
        assert_eq!(draft(&[5, 5, 5], 4), [5, 5, 5, 5]);
        assert_eq!(draft(&[9, 1, 2, 1, 2], 5), [1, 2, 1, 2, 1]);
    }
}
