//! PyTorch's `repr` of a module tree, byte for byte (`torch.nn.Module.__repr__`,
//! `ModuleList.__repr__`).

use super::Node;
use std::fmt;

impl fmt::Display for Node {
    /// What `print(model)` prints, without the final newline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl Node {
    fn text(&self) -> String {
        if self.children.is_empty() {
            return format!("{}({})", self.class, self.arguments);
        }

        let mut lines = vec![format!("{}(", self.class)];
        let mut index = 0;
        while index < self.children.len() {
            let child = &self.children[index].1;
            // Comparing nodes is cheaper than rendering 36 equal blocks and comparing their text.
            let run = if self.collapses {
                run_length(&self.children[index..])
            } else {
                1
            };

            let first = &self.children[index].0;
            let last = &self.children[index + run - 1].0;
            let label = match run {
                1 => format!("({first}): "),
                _ => format!("({first}-{last}): {run} x "),
            };

            lines.push(indent(&format!("{label}{}", child.text())));
            index += run;
        }

        lines.push(")".into());
        lines.join("\n")
    }
}

/// How many of the children, from the first on, print the same.
fn run_length(children: &[(String, Node)]) -> usize {
    let Some((_, first)) = children.first() else {
        return 0;
    };

    children
        .iter()
        .take_while(|(_, node)| prints_like(node, first))
        .count()
}

fn prints_like(a: &Node, b: &Node) -> bool {
    a.class == b.class
        && a.arguments == b.arguments
        && a.children.len() == b.children.len()
        && a.children
            .iter()
            .zip(&b.children)
            .all(|((n, x), (m, y))| n == m && prints_like(x, y))
}

fn indent(text: &str) -> String {
    text.lines()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(features: usize) -> Node {
        Node::container("Block").with_child(
            "fc",
            Node::leaf("Linear", format!("in_features={features}")),
        )
    }

    #[test]
    fn equal_neighbours_are_printed_once_as_in_module_list() {
        let list = Node::list([block(1), block(1), block(2), block(1)]);
        assert_eq!(
            list.to_string(),
            "ModuleList(\n  (0-1): 2 x Block(\n    (fc): Linear(in_features=1)\n  )\n  (2): Block(\n    \
             (fc): Linear(in_features=2)\n  )\n  (3): Block(\n    (fc): Linear(in_features=1)\n  )\n)"
        );
    }

    #[test]
    fn only_lists_collapse() {
        let both = Node::container("Pair")
            .with_child("0", block(1))
            .with_child("1", block(1));
        assert_eq!(both.to_string().matches("Block(").count(), 2);
    }

    #[test]
    fn an_empty_list_is_a_pair_of_brackets() {
        assert_eq!(Node::list([]).to_string(), "ModuleList()");
    }
}
