//! Lives of real programs, as `tests/corpus/record.py` recorded them: no detector was tuned on them.

use super::corpus::{Row, Series};
use crate::workspace;
use anyhow::{Context as _, Result, ensure};
use std::{fs, path::Path};

/// What the recorder writes, in this order.
const HEADER: &str = "timestamp,subject,working_set_bytes,anon_bytes,requests_total,oom_kills_total";

/// Every recorded series, by name.
pub(super) fn all() -> Result<Vec<Series>> {
    of(&workspace::root().join("tests/corpus"))
}

/// Those that were recorded for their sizes, by name.
#[allow(dead_code, reason = "the scorecard has no use for them, the backtest has")]
pub(super) fn histories() -> Result<Vec<Series>> {
    of(&workspace::root().join("tests/corpus/histories"))
}

fn of(directory: &Path) -> Result<Vec<Series>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let mut files: Vec<_> = paths.into_iter().filter(|path| path.extension().is_some_and(|end| end == "csv")).collect();
    files.sort();
    files.iter().map(|path| read(path).with_context(|| format!("{}", path.display()))).collect()
}

/// `NAME.leak.csv` leaks from its beginning on, `NAME.innocent.csv` does not.
fn read(path: &Path) -> Result<Series> {
    let name = path.file_name().and_then(|name| name.to_str()).context("the name is no text")?;
    let (name, leaks) = match name.strip_suffix(".leak.csv") {
        Some(name) => (name, true),
        None => (name.strip_suffix(".innocent.csv").context("the name says neither leak nor innocent")?, false),
    };
    let text = fs::read_to_string(path)?;
    let mut lines = text.lines();
    ensure!(lines.next() == Some(HEADER), "it has other columns than {HEADER}");
    let mut rows = lines.map(row).collect::<Result<Vec<_>>>()?;
    let begin = rows.first().map_or(0.0, |row| row.time);
    rows.iter_mut().for_each(|row| row.time -= begin);
    Ok(Series { name: format!("recorded-{name}"), is_recorded: true, leak_begins: leaks.then_some(0.0), rows })
}

fn row(line: &str) -> Result<Row> {
    let fields: Vec<_> = line.split(',').collect();
    let number = |place: usize| {
        let field = *fields.get(place).with_context(|| format!("{line:?} is cut"))?;
        (!field.is_empty())
            .then(|| field.parse::<f64>().with_context(|| format!("{line:?} has no numbers")))
            .transpose()
    };
    let known = |place| number(place)?.with_context(|| format!("{line:?} lacks a number"));
    Ok(Row {
        time: known(0)?,
        working_set: known(2)?,
        anon: number(3)?,
        requests: number(4)?,
        oom_kills: number(5)?.map(|kills| kills as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_twenty_of_both_kinds_and_each_is_long_enough_to_be_judged() {
        let all = all().unwrap();
        let leaks = all.iter().filter(|series| series.leak_begins.is_some()).count();
        assert!(all.len() >= 20 && leaks >= 8 && all.len() - leaks >= 8, "{} of {} leak", leaks, all.len());
        for series in &all {
            let end = series.rows.last().unwrap().time;
            assert!(end >= 600.0 && series.rows.len() >= 500, "{}: {} rows, {end} s", series.name, series.rows.len());
        }
    }
}
