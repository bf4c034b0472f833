//! The report as a page that stands alone.

use anyhow::Context;
use serde_json::Value;

const TEMPLATE: &str = include_str!("../../report/outliers.html");
const STYLE: &str = include_str!("../../report/outliers.css");
const SCRIPT: &str = include_str!("../../report/outliers.js");

/// The page. Whatever the strings of the object hold, they are text in it: `<` is escaped, so that
/// nothing in them ends the script element that carries the data or begins a comment there.
pub(super) fn html(object: &Value) -> anyhow::Result<String> {
    let data = object.to_string().replace('<', "\\u003c");
    let mut page = String::new();
    let mut rest = TEMPLATE;
    for (place, text) in [
        ("STYLE_SHEET", STYLE),
        ("REPORT_DATA", &data),
        ("PAGE_SCRIPT", SCRIPT),
    ] {
        let (before, after) = rest
            .split_once(place)
            .with_context(|| format!("the template has no {place}"))?;
        page.push_str(before);
        page.push_str(text);
        rest = after;
    }
    page.push_str(rest);
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_in_the_data_is_markup() {
        let name =
            "</script><!--<script>alert(1)</script>\u{1b}[31m\u{2028}REPORT_DATA PAGE_SCRIPT";
        let object = json!({ "model": name });
        let html = html(&object).unwrap();
        let (_, data) = html
            .split_once("type=\"application/json\" id=\"data\">")
            .unwrap();
        let (data, script) = data.split_once("</script>").unwrap();
        assert!(!data.contains('<') && !data.contains('\u{1b}'));
        assert_eq!(serde_json::from_str::<Value>(data).unwrap(), object);
        assert!(script.contains(SCRIPT) && html.contains(STYLE));
    }

    #[test]
    fn the_page_makes_no_markup_of_strings_and_loads_nothing() {
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "fetch(",
        ] {
            assert!(!SCRIPT.contains(word), "{word}");
        }
        for part in [TEMPLATE, STYLE, SCRIPT] {
            let outside = part.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !outside.contains("//www")
                    && !outside.contains("https:")
                    && !outside.contains("url(")
            );
        }
    }
}
