//! Samples as a table with a header. A line that cannot be read ends it all: what is left out unseen would bend a verdict.

use super::Take;
use crate::detect::Point;
use anyhow::Context as _;
use csv::ByteRecord;
use jiff::Timestamp;
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// A file that is no table of samples.
#[derive(Debug, thiserror::Error)]
#[error("{}:{line}: {message}", path.display())]
pub(in crate::cli) struct Malformed {
    path: PathBuf,
    /// From 1.
    line: u64,
    message: String,
}

/// Where each column is.
struct Columns {
    timestamp: usize,
    subject: usize,
    working_set_bytes: usize,
    anon_bytes: Option<usize>,
    limit_bytes: Option<usize>,
    requests_total: Option<usize>,
    oom_kills_total: Option<usize>,
}

/// Reads a table.
pub(super) fn read(path: &Path, take: Take<'_>) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).buffer_capacity(1 << 18).from_reader(file);
    let malformed = |line, message| Malformed { path: path.to_owned(), line, message };
    let columns = Columns::of(reader.byte_headers().map_err(|error| failed(path, error))?);
    let columns = columns.map_err(|message| malformed(1, message))?;
    let mut record = ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(|error| failed(path, error))? {
        let line = record.position().map_or(0, csv::Position::line);
        let (name, point, calendar) = columns.read(&record).map_err(|message| malformed(line, message))?;
        take(name, &point, calendar);
    }
    Ok(())
}

/// A time of a calendar for people, to the millisecond.
pub(in crate::cli) fn show_time(seconds: f64) -> String {
    let time = Timestamp::from_nanosecond((seconds * 1e9) as i128).unwrap_or_default();
    if seconds.fract() == 0.0 { time.to_string() } else { format!("{time:.3}") }
}

fn failed(path: &Path, error: csv::Error) -> anyhow::Error {
    let line = error.position().map_or(1, csv::Position::line);
    let message = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("it has {len} fields, where the header has {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => "it is not UTF-8".to_owned(),
        _ => return anyhow::Error::new(error).context(format!("cannot read {}", path.display())),
    };
    Malformed { path: path.to_owned(), line, message }.into()
}

impl Columns {
    fn of(header: &ByteRecord) -> Result<Self, String> {
        let find = |name: &str| header.iter().position(|field| field == name.as_bytes());
        let need = |name: &str| {
            find(name).ok_or_else(|| {
                format!("the header has no {name}: it takes timestamp, subject and working_set_bytes, or a recording")
            })
        };
        Ok(Self {
            timestamp: need("timestamp")?,
            subject: need("subject")?,
            working_set_bytes: need("working_set_bytes")?,
            anon_bytes: find("anon_bytes"),
            limit_bytes: find("limit_bytes"),
            requests_total: find("requests_total"),
            oom_kills_total: find("oom_kills_total"),
        })
    }

    /// The subject, its point, and whether its time is one of a calendar.
    fn read<'a>(&self, record: &'a ByteRecord) -> Result<(&'a str, Point, bool), String> {
        let field = |place: usize, name: &str| {
            let bytes = record.get(place).unwrap_or_default();
            str::from_utf8(bytes).map_err(|_| format!("{name} is not UTF-8"))
        };
        let number = |place: Option<usize>, name: &str| match place.map(|place| field(place, name)).transpose()? {
            None | Some("") => Ok(None),
            Some(text) => {
                number(text).map(Some).ok_or_else(|| format!("{name} is {text:?}: it takes a number from 0 on"))
            }
        };
        let name = field(self.subject, "subject")?;
        if name.is_empty() {
            return Err("subject is empty".to_owned());
        }
        let (time_seconds, calendar) = time(field(self.timestamp, "timestamp")?)?;
        let working_set_bytes =
            number(Some(self.working_set_bytes), "working_set_bytes")?.ok_or("working_set_bytes is empty")?;
        let point = Point {
            time_seconds,
            working_set_bytes,
            anon_bytes: number(self.anon_bytes, "anon_bytes")?,
            limit_bytes: number(self.limit_bytes, "limit_bytes")?,
            requests_total: number(self.requests_total, "requests_total")?,
            oom_kills_total: number(self.oom_kills_total, "oom_kills_total")?,
            ..Point::default()
        };
        Ok((name, point, calendar))
    }
}

/// A whole number, also one that is written with a fraction.
fn number(text: &str) -> Option<u64> {
    let fraction =
        || text.parse().ok().filter(|number: &f64| (0.0..1.8e19).contains(number)).map(|number| number as u64);
    text.parse().ok().or_else(fraction)
}

/// Seconds, and whether they are those of a calendar.
fn time(text: &str) -> Result<(f64, bool), String> {
    if let Some(seconds) = text.parse().ok().filter(|seconds: &f64| seconds.is_finite()) {
        return Ok((seconds, false));
    }
    let time: Timestamp = text
        .parse()
        .map_err(|_| format!("timestamp is {text:?}: it takes seconds, or a time such as 2026-11-21T14:30:00Z"))?;
    Ok((time.as_nanosecond() as f64 / 1e9, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    const HEADER: &str = "timestamp,subject,working_set_bytes,requests_total";

    /// What is wrong with a table, with its path as FILE.
    fn refusal(text: impl AsRef<[u8]>) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.csv");
        fs::write(&path, text).unwrap();
        let error = read(&path, &mut |_, _, _| ()).err()?;
        assert_eq!(crate::cli::exit_code(&error), 2, "{error:#}");
        Some(format!("{error:#}").replace(&path.display().to_string(), "FILE"))
    }

    #[test]
    fn a_malformed_line_is_named_by_file_and_number() {
        let cases = [
            ("1,a,2,3\n2,a,x,3", "FILE:3: working_set_bytes is \"x\": it takes a number from 0 on"),
            ("1,a,-2,3", "FILE:2: working_set_bytes is \"-2\": it takes a number from 0 on"),
            ("1,a,,3", "FILE:2: working_set_bytes is empty"),
            ("1,,2,3", "FILE:2: subject is empty"),
            ("1,a,2", "FILE:2: it has 3 fields, where the header has 4"),
            (
                "1,a,2,3\nnoon,a,2,3",
                "FILE:3: timestamp is \"noon\": it takes seconds, or a time such as 2026-11-21T14:30:00Z",
            ),
            ("NaN,a,2,3", "FILE:2: timestamp is \"NaN\": it takes seconds, or a time such as 2026-11-21T14:30:00Z"),
        ];
        for (lines, message) in cases {
            assert_eq!(refusal(format!("{HEADER}\n{lines}\n")).as_deref(), Some(message));
        }
    }

    #[test]
    fn a_header_must_have_what_is_needed() {
        let message = refusal("timestamp,subject\n1,a\n").unwrap();
        assert!(message.starts_with("FILE:1: the header has no working_set_bytes"), "{message}");
        assert!(refusal("").unwrap().starts_with("FILE:1: the header has no timestamp"));
    }

    #[test]
    fn optional_fields_may_be_empty_and_other_columns_are_left_alone() {
        assert_eq!(refusal(format!("{HEADER},note\n1,a,2,,hello\n2.5,\"b, c\",2e6,7,\n")), None);
    }

    #[test]
    fn times_are_seconds_or_those_of_a_calendar() {
        assert_eq!(time("1795271400.5"), Ok((1_795_271_400.5, false)));
        assert_eq!(time("2026-11-21T15:30:00+01:00"), Ok((1_795_271_400.0, true)));
        assert_eq!(show_time(1_795_271_400.0), "2026-11-21T14:30:00Z");
    }

    proptest! {
        #[test]
        fn whatever_a_file_holds_it_is_no_panic_and_one_line(bytes: Vec<u8>) {
            for text in [bytes.clone(), [HEADER.as_bytes(), b"\n", &bytes].concat()] {
                if let Some(message) = refusal(&text) {
                    prop_assert_eq!(message.lines().count(), 1);
                }
            }
        }
    }
}
