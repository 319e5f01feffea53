//! The page: a template, and its data as JSON in it.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::escape;

const TEMPLATE: &str = include_str!("page/report.html");
const STYLE: &str = include_str!("page/report.css");
/// In the order in which they run.
const SCRIPTS: [&str; 7] = [
    include_str!("page/tools.js"),
    include_str!("page/formula.js"),
    include_str!("page/charts.js"),
    include_str!("page/sources.js"),
    include_str!("page/tokens.js"),
    include_str!("page/heatmap.js"),
    include_str!("page/main.js"),
];

/// Returns the page with its data. It asks for nothing from anywhere, and runs no script but its own: that has a nonce
/// which the data decide, so no text among them can contain it.
pub fn page(data: &impl Serialize) -> Result<String> {
    let data = in_script(&serde_json::to_string(data)?);
    let nonce = blake3::hash(data.as_bytes()).to_hex();
    let nonce = nonce.get(..32).unwrap_or_default();
    let script = SCRIPTS.concat();
    let mut page = String::with_capacity(data.len() + TEMPLATE.len() + STYLE.len() + script.len());
    let mut rest = TEMPLATE;
    for (mark, content) in [
        ("{{nonce}}", nonce),
        ("{{nonce}}", nonce),
        ("{{nonce}}", nonce),
        ("{{style}}", STYLE),
        ("{{data}}", &data),
        ("{{nonce}}", nonce),
        ("{{script}}", &script),
    ] {
        let (before, after) = rest
            .split_once(mark)
            .with_context(|| format!("the template of the page has no {mark} in its place"))?;
        page.push_str(before);
        page.push_str(content);
        rest = after;
    }
    page.push_str(rest);
    Ok(page)
}

/// Returns JSON that means the same, without what could end a script or begin a comment or a tag in HTML.
fn in_script(json: &str) -> String {
    let json = escape::json(json);
    let mut out = String::with_capacity(json.len() + 64);
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_among_the_data_leaves_its_place() {
        let hostile = [
            "</script><script>alert(1)</script>",
            "<!--<script>",
            "]]>&lt;",
            "{{script}}{{nonce}}",
            "\u{2028}\u{2029}\u{202e}\u{1b}[2J\0",
        ];
        let page = page(&hostile).unwrap();
        let (_, rest) = page.split_once("id=\"data\">").unwrap();
        let (data, _) = rest.split_once("</script>").unwrap();
        assert_eq!(serde_json::from_str::<Vec<String>>(data).unwrap(), hostile);
        assert!(!data.contains(['<', '>', '&', '\u{2028}', '\u{202e}', '\u{1b}', '\0']));
        assert_eq!(page.matches("<script").count(), 2);
        assert_eq!(page.matches("<!--").count(), 0);
    }

    #[test]
    fn the_page_asks_for_nothing_from_anywhere() {
        let page = page(&0).unwrap();
        assert!(page.contains("default-src 'none'"));
        for address in ["http:", "https:", "//cdn", "@import", "url("] {
            let found = page.matches(address).count();
            // The namespace of SVG is a name, not an address that is asked.
            let names = match address {
                "http:" => page.matches("http://www.w3.org/2000/svg").count(),
                _ => 0,
            };
            assert_eq!(found, names, "{address}");
        }
    }
}
