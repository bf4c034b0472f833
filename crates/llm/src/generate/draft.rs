//! Prompt-lookup drafts (Saxena 2023): what followed the last few tokens the last time they came.

/// The longest and the shortest end of the text that is looked for.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;

/// Up to `most` tokens that may follow `seen`. A text that repeats itself is continued around the
/// circle.
pub(super) fn draft(seen: &[u32], most: usize) -> Vec<u32> {
    let mut drafts = Vec::new();
    if most == 0 {
        return drafts;
    }

    let found = (SHORTEST..=LONGEST.min(seen.len().saturating_sub(1)))
        .rev()
        .find_map(|length| {
            let (before, end) = (&seen[..seen.len() - 1], &seen[seen.len() - length..]);
            before
                .windows(length)
                .rposition(|window| window == end)
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
    fn what_followed_last_time_is_drafted() {
        assert_eq!(draft(&[1, 2, 3, 4, 5, 1, 2, 3], 2), [4, 5]);
        assert_eq!(
            draft(&[1, 2, 3, 9, 2, 3, 7, 2, 3], 1),
            [7],
            "the last time counts"
        );

        assert_eq!(
            draft(&[8, 2, 3, 9, 5, 2, 3, 7, 8, 2, 3], 1),
            [9],
            "the longest end counts first"
        );

        assert!(draft(&[1, 2, 3, 4], 3).is_empty(), "nothing came twice");
        assert!(draft(&[1, 2, 3, 1, 2], 0).is_empty());
        assert!(
            draft(&[], 3).is_empty() && draft(&[1], 3).is_empty() && draft(&[1, 1], 3).is_empty()
        );
    }

    #[test]
    fn a_circle_goes_on() {
        assert_eq!(draft(&[5, 5, 5], 4), [5, 5, 5, 5]);
        assert_eq!(draft(&[9, 1, 2, 1, 2], 5), [1, 2, 1, 2, 1]);
    }
}
