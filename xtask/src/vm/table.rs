//! The README's table of kernels and rungs, which the matrix makes and checks.

use crate::workspace;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{collections::BTreeMap, fs};

const BEGIN: &str = "<!-- kernels and rungs: written by `cargo xtask vm --readme` -->";
const END: &str = "<!-- end -->";
/// Columns, in the order in which they are read.
const SOURCES: [&str; 6] = ["page_fault", "address_space", "block_io", "lifecycle", "requests", "resident"];

/// One kernel's line: its name, its series, and the rung of every source.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) kernel: &'static str,
    /// As the guest reported it.
    pub(crate) release: String,
    rungs: Vec<String>,
}

impl Row {
    /// From what a test told.
    pub(crate) fn new(kernel: &'static str, release: &str, rungs: &Value) -> Option<Self> {
        let rung = |source: &str| rungs[source].as_str().map(str::to_owned);
        let rungs = SOURCES.iter().map(|source| rung(source)).collect::<Option<_>>()?;
        Some(Self { kernel, release: release.to_owned(), rungs })
    }

    fn line(&self) -> String {
        let series: Vec<&str> = self.release.splitn(3, '.').take(2).collect();
        let kernel = if self.kernel == "newest" { format!("{} (newest)", series.join(".")) } else { series.join(".") };
        let cells: Vec<String> = self.rungs.iter().map(|rung| format!("`{rung}`")).collect();
        format!("| {kernel} | {} |", cells.join(" | "))
    }
}

/// The table of these kernels.
fn render(rows: &[Row]) -> String {
    let heads: Vec<String> = SOURCES.iter().map(|source| format!("`{source}`")).collect();
    let mut text = format!("{BEGIN}\n\n| Linux | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(SOURCES.len()));
    for row in rows {
        text += &row.line();
        text.push('\n');
    }
    text + "\n" + END
}

/// Writes the table into the README. All kernels must have been run.
pub(crate) fn write(rows: &[Row], kernels: usize) -> Result<()> {
    if rows.len() != kernels {
        bail!("the README's table takes all {kernels} kernels, and {} told their rungs", rows.len());
    }
    let path = workspace::root().join("README.md");
    let text = fs::read_to_string(&path).context("cannot read README.md")?;
    fs::write(&path, replaced(&text, rows)?).context("cannot write README.md")
}

fn replaced(text: &str, rows: &[Row]) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).context("README.md has no place for the table of kernels")?;
    let (_, after) = rest.split_once(END).context("README.md does not say where the table of kernels ends")?;
    Ok(format!("{before}{}{after}", render(rows)))
}

/// Whether the README says the same of these kernels.
pub(crate) fn check(rows: &[Row]) -> Result<()> {
    let text = fs::read_to_string(workspace::root().join("README.md")).context("cannot read README.md")?;
    let unsaid = unsaid(&text, rows);
    if unsaid.is_empty() {
        return Ok(());
    }
    bail!("README.md does not say\n{}\n`cargo xtask vm --readme` mends it", unsaid.join("\n"))
}

/// The lines that a text lacks. The newest kernel's number changes by itself, its rungs must not.
fn unsaid(text: &str, rows: &[Row]) -> Vec<String> {
    let said = |line: &str| {
        let cells = line.trim_matches('|').split_once('|').map(|(kernel, cells)| (kernel.contains("newest"), cells));
        text.lines().any(|known| {
            let same_cells = known.trim_matches('|').split_once('|').map(|(k, cells)| (k.contains("newest"), cells));
            known == line || (cells.is_some_and(|(newest, _)| newest) && cells == same_cells)
        })
    };
    rows.iter().map(Row::line).filter(|line| !said(line)).collect()
}

/// One row a kernel, in the kernels' order.
pub(crate) fn rows<'a>(
    told: impl Iterator<Item = (&'static str, &'a str, &'a Value)>,
    order: &[&'static str],
) -> Vec<Row> {
    let found: BTreeMap<&str, Row> = told
        .filter_map(|(kernel, release, value)| Some((kernel, Row::new(kernel, release, value.get("rungs")?)?)))
        .collect();
    order.iter().filter_map(|kernel| found.get(kernel).cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(kernel: &'static str, release: &str, page_fault: &str) -> Row {
        let rungs = json!({
            "page_fault": page_fault, "address_space": "a", "block_io": "b", "lifecycle": "l", "requests": "r",
            "resident": "s",
        });
        Row::new(kernel, release, &rungs).unwrap()
    }

    #[test]
    fn what_was_written_is_what_is_checked() {
        let rows = [row("6.1", "6.1.0-56-cloud-amd64", "tp_btf"), row("newest", "7.2.13+deb14", "tp_btf")];
        let text = replaced(&format!("head\n{BEGIN}\nold\n{END}\ntail"), &rows).unwrap();
        assert!(
            text.contains("| 6.1 | `tp_btf` | `a` | `b` | `l` | `r` | `s` |\n| 7.2 (newest) |")
                && text.ends_with("tail"),
            "{text}"
        );
        assert_eq!(unsaid(&text, &rows), [""; 0]);
        assert_eq!(unsaid(&text, &[row("newest", "7.4.1", "tp_btf")]), [""; 0]);
        assert_eq!(unsaid(&text, &[row("newest", "7.4.1", "other")]).len(), 1);
        assert_eq!(unsaid(&text, &[row("6.1", "6.1.0", "other")]).len(), 1);
    }

    #[test]
    fn a_source_without_a_rung_makes_no_row() {
        assert_eq!(Row::new("6.1", "6.1.0", &json!({ "page_fault": "tp_btf" })), None);
    }
}
