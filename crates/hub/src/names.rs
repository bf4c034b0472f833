//! Suggestions for mistyped model names.

/// Popular models, only for suggestions.
const WELL_KNOWN: [&str; 24] = [
    "gpt2",
    "gpt2-medium",
    "gpt2-large",
    "gpt2-xl",
    "distilgpt2",
    "openai-community/gpt2",
    "openai-community/gpt2-medium",
    "openai-community/gpt2-large",
    "openai-community/gpt2-xl",
    "EleutherAI/pythia-160m",
    "EleutherAI/pythia-1.4b",
    "EleutherAI/gpt-neo-1.3B",
    "facebook/opt-125m",
    "facebook/opt-1.3b",
    "bigscience/bloom-560m",
    "bigcode/gpt_bigcode-santacoder",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "meta-llama/Llama-3.2-1B",
    "mistralai/Mistral-7B-v0.1",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen3-0.6B",
    "microsoft/phi-2",
    "HuggingFaceTB/SmolLM2-135M",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
];

/// `; did you mean a or b?` with up to three similar names; empty if none is similar.
pub(crate) fn hint(name: &str, cached: &[String]) -> String {
    let candidates = cached.iter().map(String::as_str).chain(WELL_KNOWN);
    let mut near: Vec<(usize, &str)> = candidates
        .filter(|candidate| *candidate != name)
        .map(|candidate| {
            (
                distance(&name.to_lowercase(), &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, _)| *distance <= (name.len() / 4).max(2))
        .collect();

    near.sort_unstable();
    near.dedup();
    let names: Vec<&str> = near.iter().take(3).map(|(_, name)| *name).collect();

    if names.is_empty() {
        String::new()
    } else {
        format!("; did you mean {}?", names.join(" or "))
    }
}

/// Number of edits from one name to the other. Swapping two adjacent letters is one edit
/// (Damerau-Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    rows[0] = (0..=b.len()).collect();

    for i in 1..=a.len() {
        rows[i][0] = i;
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            rows[i][j] = changed.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                rows[i][j] = rows[i][j].min(rows[i - 2][j - 2] + 1);
            }
        }
    }

    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_lead_to_suggestions() {
        assert!(
            hint("gpt2-lrage", &[]).starts_with("; did you mean gpt2-large"),
            "{}",
            hint("gpt2-lrage", &[])
        );
        assert_eq!(
            hint("my/modle", &["my/model".into()]),
            "; did you mean my/model?"
        );
        assert_eq!(hint("something-else-entirely", &[]), "");
    }
}
