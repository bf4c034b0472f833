//! What layers are called apart from the number of their block.

use llm_int8::nn::module::ModulePath;

/// The number of the block that a layer is in, and its path inside of the block; for a layer
/// outside of blocks, its whole path.
pub(super) fn split(path: &ModulePath) -> (Option<usize>, &str) {
    let mut rest = path.as_str();
    while let Some((name, after)) = rest.split_once('.') {
        if let Ok(block) = name.parse() {
            return (Some(block), after);
        }
        rest = after;
    }
    (None, path.as_str())
}

/// [`split`] of layers that share an input: `self_attn.q_proj, k_proj, v_proj`.
pub(super) fn shared(paths: &[ModulePath]) -> (Option<usize>, String) {
    let Some((block, first)) = paths.first().map(split) else {
        return (None, String::new());
    };
    let parent = |name: &str| {
        name.rsplit_once('.')
            .map_or(0, |(parent, _)| parent.len() + 1)
    };
    let common = &first[..parent(first)];

    let mut text = first.to_owned();
    for path in &paths[1..] {
        let name = split(path).1;
        text.push_str(", ");
        text.push_str(name.strip_prefix(common).unwrap_or(name));
    }
    (block, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_the_block_is_left_out() {
        let path = |text: &str| ModulePath::from(text);
        assert_eq!(
            split(&path("model.layers.12.mlp.up_proj")),
            (Some(12), "mlp.up_proj")
        );
        assert_eq!(split(&path("lm_head")), (None, "lm_head"));

        let layers = ["q_proj", "k_proj"].map(|name| path(&format!("h.0.attn.{name}")));
        assert_eq!(shared(&layers), (Some(0), "attn.q_proj, k_proj".into()));
        let layers = [path("h.1.attn.query"), path("h.1.mlp.up")];
        assert_eq!(shared(&layers), (Some(1), "attn.query, mlp.up".into()));
        assert_eq!(shared(&[]), (None, String::new()));
    }
}
