//! How the prompt tokens of a pass are shared between the prompts that are being computed.

/// The tokens that each prompt gets in a pass of at most `budget` prompt tokens. `rests` are the
/// tokens that each has left, the prompt that came first at the front.
///
/// The first gets at least half, so that it ends however many others come; what is left goes to the
/// shortest first, so that none waits for one that is much longer.
pub(super) fn shares(rests: &[usize], budget: usize) -> Vec<usize> {
    let mut shares = vec![0; rests.len()];
    let Some(first) = rests.first() else {
        return shares;
    };

    shares[0] = budget.div_ceil(2).min(*first);
    let mut left = budget - shares[0];
    let mut order: Vec<usize> = (0..rests.len()).collect();
    order.sort_by_key(|place| rests[*place]);
    for place in order {
        let more = (rests[place] - shares[place]).min(left);
        shares[place] += more;
        left -= more;
    }

    shares
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn the_first_gets_half_and_the_shortest_what_they_need() {
        assert!(shares(&[], 512).is_empty());
        assert_eq!(shares(&[9000], 512), [512]);
        assert_eq!(shares(&[9000, 5], 512), [507, 5]);
        assert_eq!(shares(&[9000, 8000, 200, 30], 512), [256, 26, 200, 30]);
        assert_eq!(shares(&[10, 8000, 200], 512), [10, 302, 200]);
        assert_eq!(shares(&[300, 300, 300], 512), [300, 212, 0]);
        assert_eq!(shares(&[7, 1, 1], 1), [1, 0, 0]);
        assert_eq!(shares(&[7, 4, 4], 3), [2, 1, 0]);
        assert_eq!(shares(&[usize::MAX, usize::MAX], 8), [8, 0]);
        assert_eq!(shares(&[usize::MAX, 9], 8), [4, 4]);
    }
}
