//! Recommendations as a manifest's status has them: the auto-tuning document's form.

use crate::advise::{MEBIBYTE, advisor::Advice, guardrails::quantity};
use std::fmt::Write as _;

/// All of them. As in the document, `recommended` is what the formulas give, and the rationale tells what that is rounded to.
pub(super) fn status(all: &[Advice]) -> String {
    if all.is_empty() {
        return "containers: []\n".to_owned();
    }
    let mut text = "containers:\n".to_owned();
    for Advice { subject, current, observed, raw, rationale, .. } in all {
        let _ = writeln!(text, "- name: {}", scalar(subject));
        if let Some(current) = current {
            text += "  current:\n";
            for (name, bytes) in [("request", current.request_bytes), ("limit", current.limit_bytes)] {
                if let Some(bytes) = bytes {
                    let _ = writeln!(text, "    {name}: {}", quantity(bytes));
                }
            }
        }
        let _ = write!(
            text,
            "  observed:\n    ws_avg: {}\n    ws_p95: {}\n    ws_max: {}\n    window: {}\n  recommended:\n    request: {}\n    limit: {}\n  \
             rationale: {}\n",
            whole(observed.ws_avg_bytes),
            whole(observed.ws_p95_bytes),
            whole(observed.ws_max_bytes),
            window(observed.window_seconds),
            whole(raw.request_bytes),
            whole(raw.limit_bytes),
            quoted(rationale),
        );
    }
    text
}

/// In whole mebibytes, rounded up.
fn whole(bytes: u64) -> String {
    format!("{}Mi", bytes.div_ceil(MEBIBYTE))
}

/// In the largest unit that loses nothing, to the minute: "6h".
fn window(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    match minutes {
        0 => format!("{seconds:.0}s"),
        minutes if minutes.is_multiple_of(24 * 60) => format!("{}d", minutes / (24 * 60)),
        minutes if minutes.is_multiple_of(60) => format!("{}h", minutes / 60),
        minutes => format!("{minutes}m"),
    }
}

/// A name: as it is where YAML takes nothing else for it, else in quotes.
fn scalar(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let begins_well = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let is_word =
        ["true", "false", "yes", "no", "on", "off", "null", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
    if begins_well && !is_word && text.chars().all(is_plain) { text.to_owned() } else { quoted(text) }
}

/// In YAML's double quotes, whose escapes those of JSON are, too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_something_to_yaml_are_quoted() {
        let cases = [
            ("function", "function"),
            ("shop/web-1", "shop/web-1"),
            ("container shop/web", "\"container shop/web\""),
            ("no", "\"no\""),
            ("1e3", "\"1e3\""),
            ("a: b", "\"a: b\""),
            ("", "\"\""),
        ];
        for (name, written) in cases {
            assert_eq!(scalar(name), written);
        }
    }

    #[test]
    fn windows_are_in_their_largest_unit() {
        let told = [21_600.0, 21_540.0, 900.0, 86_400.0, 20.0].map(window);
        assert_eq!(told, ["6h", "359m", "15m", "1d", "20s"]);
    }
}
