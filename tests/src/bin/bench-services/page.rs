//! The report as one page, with nothing beside it.

use std::fmt::Write as _;

use anyhow::Result;

use crate::{charts::Picture, report::Report};

const HEAD: &str = "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width\">
<title>Requests through Services</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #282828; }
svg { max-width: 100%; height: auto; margin: 1rem 0; }
pre { font-size: 12px; overflow-x: auto; background: #f6f6f6; padding: 1rem; }
</style>
";

/// The page, with these pictures in it.
pub(crate) fn html(report: &Report, pictures: &[Picture]) -> Result<String> {
    let mut page = HEAD.to_owned();
    writeln!(page, "<h1>Requests through Services</h1>\n<p>{}</p>", escaped(&report.conditions()))?;
    for picture in pictures {
        writeln!(page, "{}", picture.chart.svg()?)?;
    }
    writeln!(page, "<h2>All figures</h2>\n<pre>{}</pre>\n</html>", escaped(&report.text()))?;
    Ok(page)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escaped("a <b> & c"), "a &lt;b&gt; &amp; c");
    }
}
