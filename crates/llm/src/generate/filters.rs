//! Sampling filters: top-p, min-p, locally typical, epsilon and eta sampling, in transformers'
//! order. Each works on the distribution that the previous one left, and keeps at least one token.

use super::GenerationConfig;

/// A token and its unnormalised probability.
type Weighted = (u32, f64);

/// The tokens to sample from with their unnormalised probabilities, most likely first. `tokens` are
/// the tokens that top-k left, with their logits, in the same order. Nothing is kept if no logit is
/// finite.
pub(super) fn kept(tokens: &[(u32, f32)], config: &GenerationConfig) -> Vec<Weighted> {
    let largest = tokens.first().map_or(0.0, |(_, logit)| f64::from(*logit));
    let weight = |logit: f32| ((f64::from(logit) - largest) / config.temperature).exp();
    let mut tokens: Vec<Weighted> = tokens
        .iter()
        .map(|(id, logit)| (*id, weight(*logit)))
        .collect();
    tokens.retain(|(_, weight)| *weight > 0.0);

    top_p(&mut tokens, config.top_p);
    // The most likely token has weight 1.
    tokens.retain(|(_, weight)| *weight >= config.min_p);
    if config.typical_p < 1.0 {
        typical(&mut tokens, config.typical_p);
    }

    cut_off(&mut tokens, config.epsilon_cutoff);
    if config.eta_cutoff > 0.0 {
        let eta = config.eta_cutoff.sqrt() * (-entropy(&tokens)).exp();
        cut_off(&mut tokens, eta.min(config.eta_cutoff));
    }

    tokens
}

fn total(tokens: &[Weighted]) -> f64 {
    tokens.iter().map(|(_, weight)| weight).sum()
}

/// Shannon entropy, in nats.
fn entropy(tokens: &[Weighted]) -> f64 {
    let total = total(tokens);
    -tokens
        .iter()
        .map(|(_, weight)| weight / total * (weight / total).ln())
        .sum::<f64>()
}

/// Keeps the most likely tokens whose probabilities add up to `p`.
fn top_p(tokens: &mut Vec<Weighted>, p: f64) {
    let total = total(tokens);
    let mut sum = 0.0;
    let within = tokens.iter().take_while(|(_, weight)| {
        let before = sum;
        sum += weight / total;
        before < p
    });
    let count = within.count().max(1);
    let Some(last) = tokens.get(count - 1).map(|(_, weight)| *weight) else {
        return;
    };

    // Ties are ordered by id here, but torch.sort puts the last one first.
    let first = tokens
        .iter()
        .take_while(|(_, weight)| *weight > last)
        .count();
    tokens.retain(|(_, weight)| *weight >= last);
    tokens.drain(first..first + tokens.len() - count);
}

/// Keeps the tokens whose information is nearest to the entropy, until their probabilities add up
/// to `mass`, and those that tie with the last of them.
fn typical(tokens: &mut Vec<Weighted>, mass: f64) {
    let total = total(tokens);
    let entropy = entropy(tokens);
    let distance = |weight: f64| (-(weight / total).ln() - entropy).abs();
    let mut nearest: Vec<(f64, f64)> = tokens
        .iter()
        .map(|(_, weight)| (distance(*weight), weight / total))
        .collect();
    nearest.sort_by(|a, b| a.0.total_cmp(&b.0));

    let mut sum = 0.0;
    let below = nearest.iter().take_while(|(_, probability)| {
        sum += probability;
        sum < mass
    });
    let last = below.count().min(nearest.len().saturating_sub(1));
    let farthest = nearest.get(last).map_or(0.0, |(distance, _)| *distance);
    tokens.retain(|(_, weight)| distance(*weight) <= farthest);
}

/// Keeps tokens with at least the probability `least`, and always the most likely ones.
fn cut_off(tokens: &mut Vec<Weighted>, least: f64) {
    let total = total(tokens);
    let largest = tokens.first().map_or(0.0, |(_, weight)| *weight);
    tokens.retain(|(_, weight)| weight / total >= least || *weight >= largest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GenerationConfig {
        GenerationConfig {
            do_sample: true,
            ..GenerationConfig::default()
        }
    }

    fn ids(probabilities: &[f32], config: &GenerationConfig) -> Vec<u32> {
        let tokens: Vec<(u32, f32)> = (0..).zip(probabilities.iter().map(|p| p.ln())).collect();
        kept(&tokens, config)
            .into_iter()
            .map(|(id, _)| id)
            .collect()
    }

    #[test]
    fn each_filter_keeps_the_right_tokens() {
        let halves = [0.5, 0.25, 0.125, 0.125];
        let kept = |set: fn(&mut GenerationConfig)| {
            let mut config = config();
            set(&mut config);
            ids(&halves, &config)
        };

        assert_eq!(kept(|_| ()), [0, 1, 2, 3]);
        assert_eq!(kept(|config| config.top_p = 0.5), [0]);
        assert_eq!(kept(|config| config.top_p = 0.6), [0, 1]);
        assert_eq!(kept(|config| config.top_p = 0.0), [0]);
        assert_eq!(kept(|config| config.min_p = 0.3), [0, 1]);
        assert_eq!(kept(|config| config.epsilon_cutoff = 0.2), [0, 1]);
        assert_eq!(kept(|config| config.epsilon_cutoff = 0.9), [0]);
        // The entropy is 1.75 bits: 2 bits are nearest, then 1 bit, then 3.
        assert_eq!(kept(|config| config.typical_p = 0.2), [1]);
        assert_eq!(kept(|config| config.typical_p = 0.7), [0, 1]);
        // exp(-1.75 ln 2) · √0.5 = 0.21
        assert_eq!(kept(|config| config.eta_cutoff = 0.5), [0, 1]);
    }

    #[test]
    fn a_filter_works_on_what_the_previous_one_left() {
        let halves = [0.5, 0.25, 0.125, 0.125];
        // Two thirds and a third are left.
        let both = GenerationConfig {
            top_p: 0.6,
            epsilon_cutoff: 0.34,
            ..config()
        };
        assert_eq!(ids(&halves, &both), [0]);
        let both = GenerationConfig {
            top_p: 0.6,
            epsilon_cutoff: 0.33,
            ..config()
        };
        assert_eq!(ids(&halves, &both), [0, 1]);
    }

    #[test]
    fn impossible_tokens_are_not_kept() {
        assert_eq!(ids(&[0.5, 0.5, 0.0], &config()), [0, 1]);
        assert!(kept(&[(0, f32::NEG_INFINITY)], &config()).is_empty());
        assert!(kept(&[], &config()).is_empty());
    }
}
