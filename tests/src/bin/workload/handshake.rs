//! Commands in, reports out, through buffers that were touched at start: no allocation, no fault, no mapping in between.

use anyhow::{Context, Result, bail, ensure};
use std::{
    fmt::{self, Display, Write},
    str::{FromStr, SplitAsciiWhitespace},
};

/// Bytes of a command, and of all reports but long lists.
const LINE_BYTES: usize = 16 << 10;

/// Lines from standard input.
pub(crate) struct Commands {
    buffer: Vec<u8>,
}

impl Commands {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![b' '; LINE_BYTES] }
    }

    /// The next one; none at the end of input. The other side sends one only after the last was answered.
    pub(crate) fn next(&mut self) -> Result<Option<&str>> {
        let mut used = 0;
        while !self.buffer[..used].ends_with(b"\n") {
            ensure!(used < self.buffer.len(), "a command of more than {LINE_BYTES} bytes");
            // SAFETY: reads into the part of the buffer that the pointer and the length describe.
            let got = unsafe { libc::read(0, self.buffer[used..].as_mut_ptr().cast(), self.buffer.len() - used) };
            match usize::try_from(got) {
                Ok(0) => return Ok(None),
                Ok(got) => used += got,
                Err(_) => return Err(std::io::Error::last_os_error()).context("cannot read commands"),
            }
        }
        std::str::from_utf8(&self.buffer[..used]).map(Some).context("a command that is not text")
    }
}

/// The words of a command.
pub(crate) struct Arguments<'a>(SplitAsciiWhitespace<'a>);

impl<'a> Arguments<'a> {
    pub(crate) fn of(line: &'a str) -> Self {
        Self(line.split_ascii_whitespace())
    }

    /// The next word.
    pub(crate) fn word(&mut self, name: &str) -> Result<&'a str> {
        self.0.next().with_context(|| format!("{name} is missing"))
    }

    /// The next word, as a number or whatever else is wanted.
    pub(crate) fn value<T: FromStr>(&mut self, name: &str) -> Result<T> {
        let word = self.word(name)?;
        match word.parse() {
            Ok(value) => Ok(value),
            Err(_) => bail!("{name} cannot be {word}"),
        }
    }
}

/// One line of JSON, an object.
pub(crate) struct Report {
    text: String,
}

impl Report {
    pub(crate) fn new() -> Self {
        let mut text = " ".repeat(LINE_BYTES);
        text.clear();
        text.push('{');
        Self { text }
    }

    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.text.push('{');
    }

    /// Adds a number.
    pub(crate) fn number(&mut self, name: &str, value: u64) {
        self.field(name, value);
    }

    /// Adds a text. Allocates: not for what is measured.
    pub(crate) fn text(&mut self, name: &str, value: &str) {
        self.field(name, serde_json::Value::from(value));
    }

    /// Adds a list of lists of numbers. Grows the buffer where it is long.
    pub(crate) fn rows<const N: usize>(&mut self, name: &str, rows: &[[u64; N]]) {
        self.field(name, Rows(rows));
    }

    fn field(&mut self, name: &str, value: impl Display) {
        let comma = if self.text.len() > 1 { "," } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(self.text, "{comma}\"{name}\":{value}");
    }

    /// Sends what was added.
    pub(crate) fn send(&mut self) -> Result<()> {
        self.text.push_str("}\n");
        let mut left = self.text.as_bytes();
        while !left.is_empty() {
            // SAFETY: writes from the part of the buffer that the pointer and the length describe.
            let sent = unsafe { libc::write(1, left.as_ptr().cast(), left.len()) };
            match usize::try_from(sent) {
                Ok(sent) => left = &left[sent..],
                Err(_) => return Err(std::io::Error::last_os_error()).context("cannot report"),
            }
        }
        Ok(())
    }
}

struct Rows<'a, const N: usize>(&'a [[u64; N]]);

impl<const N: usize> Display for Rows<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('[')?;
        for (i, row) in self.0.iter().enumerate() {
            write!(f, "{}{row:?}", if i > 0 { "," } else { "" })?;
        }
        f.write_char(']')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_json() {
        let mut report = Report::new();
        report.number("a", 1);
        report.text("b", "say \"x\"");
        report.rows("c", &[[1, 2], [3, 4]]);
        report.rows::<1>("d", &[]);
        report.text.push('}');
        let value: serde_json::Value = serde_json::from_str(&report.text).unwrap();
        assert_eq!(value, serde_json::json!({"a": 1, "b": "say \"x\"", "c": [[1, 2], [3, 4]], "d": []}));
    }

    #[test]
    fn arguments_are_named_when_missing_or_wrong() {
        let mut arguments = Arguments::of("faults 7 x\n");
        assert_eq!(arguments.word("command").unwrap(), "faults");
        assert_eq!(arguments.value::<u64>("pages").unwrap(), 7);
        assert!(arguments.value::<u64>("pages").unwrap_err().to_string().contains("pages"));
        assert!(arguments.word("rest").unwrap_err().to_string().contains("rest"));
    }
}
