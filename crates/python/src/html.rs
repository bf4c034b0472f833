//! A module tree for notebooks: nested `<details>` that open and close.

/// The tree as HTML, from PyTorch's text of it, with `footer` in its last line.
pub(crate) fn of_tree(text: &str, footer: &str) -> String {
    let mut html = String::from(
        "<div style=\"font-family:monospace;line-height:1.4\"><style>.llm-int8 details,.llm-int8 div{margin-left:1.5em}\
         .llm-int8 summary{cursor:pointer}</style><div class=\"llm-int8\" style=\"margin:0\">",
    );
    let mut depth = 0;
    for line in text.lines() {
        let line = line.trim_start();
        if line == ")" {
            html.push_str("</details>");
        } else if let Some(opened) = line.strip_suffix('(') {
            // The model and its first two levels are open.
            let open = if depth < 2 { " open" } else { "" };
            depth += 1;
            html.push_str(&format!(
                "<details{open}><summary>{}</summary>",
                escaped(opened)
            ));
            continue;
        } else {
            html.push_str(&format!("<div>{}</div>", escaped(line)));
            continue;
        }
        depth -= 1;
    }
    html.push_str(&format!(
        "</div><div style=\"opacity:.7\">{}</div></div>",
        escaped(footer)
    ));
    html
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
