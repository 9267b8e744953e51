//! A file with a line of JSON for each alert, and for its end.

use super::{Notice, Sink, worker::Failure};
use std::{fs::OpenOptions, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf};

/// Adds lines to a file, which is opened for each: it may be moved away meanwhile.
pub(super) struct JsonLines {
    path: PathBuf,
}

impl JsonLines {
    pub(super) fn new(path: &str) -> Self {
        Self { path: PathBuf::from(path) }
    }
}

impl Sink for JsonLines {
    fn name(&self) -> &'static str {
        "json_lines"
    }

    fn send(&mut self, notice: &Notice) -> Result<(), Failure> {
        let mut line = notice.json().to_string();
        line.push('\n');
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path);
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .map_err(|error| Failure::later(format!("{}: {error}", self.path.display())))
    }
}
