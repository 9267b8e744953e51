//! The block of `monitor run`: which trees and cgroups fault, map memory and wait for disk right now.
//!
//! On a terminal it is drawn over itself; anywhere else block follows block, so that a log keeps all of them.

use super::text::{columns, fit};
use crate::{
    coverage::{Coverage, SourceCoverage, State},
    model::{
        snapshot::{Cgroup, Snapshot, Subject, Tree},
        totals::Rates,
    },
    source::Source,
    units::{human_bytes, human_count, human_duration},
};
use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

/// Width where there is no terminal.
const PLAIN_WIDTH: usize = 120;
/// Rows of each table where there is room.
const ROWS: usize = 5;
/// Lines of a block that are no table's rows: two at the head, a title and a gap for each of four tables, two at the foot.
const OTHER_LINES: usize = 2 + 4 * 2 + 2;

/// Shows snapshots on standard output.
#[derive(Debug)]
pub struct Console {
    terminal: bool,
    colour: bool,
    /// How to ask for more.
    hint: String,
    drawn: bool,
}

impl Console {
    /// A console for an agent whose socket is there.
    pub fn new(socket: &Path) -> Self {
        let terminal = io::stdout().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { terminal, colour, hint: hint(socket), drawn: false }
    }

    /// Says where the socket is and how to ask it. Errors are those of standard output.
    pub fn welcome(&self, socket: &Path) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "monitor {}: socket {}", env!("CARGO_PKG_VERSION"), socket.display())?;
        writeln!(out, "ask it: {}", self.hint)?;
        out.flush()
    }

    /// Shows a snapshot. An error, as of a closed pipe, says that nobody reads any more.
    pub fn show(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let size = self.terminal.then(terminal_size::terminal_size).flatten();
        let (width, height) = size.map_or((PLAIN_WIDTH, None), |(w, h)| (usize::from(w.0), Some(usize::from(h.0))));
        let block = render(snapshot, width, height.map(|height| height.saturating_sub(2)), ROWS);
        let mut out = io::stdout().lock();
        out.write_all(self.frame(&block, width, height).as_bytes())?;
        out.flush()
    }

    /// A block with what places it on the terminal, or after the block before.
    fn frame(&mut self, block: &str, width: usize, height: Option<usize>) -> String {
        if !self.terminal {
            return format!("\n{block}");
        }
        let mut frame = String::new();
        if !self.drawn {
            // Pushes what was said at the start into the scroll-back instead of overwriting it.
            frame.push_str(&"\n".repeat(height.unwrap_or(0)));
            self.drawn = true;
        }
        frame.push_str("\x1b[H");
        for line in block.lines().chain(["", &fit(&self.hint, width)]) {
            let bold = self.colour && line.ends_with(TITLE_END);
            let _ = if bold { write!(frame, "\x1b[1m{line}\x1b[0m") } else { write!(frame, "{line}") };
            frame.push_str("\x1b[K\r\n");
        }
        // No line end after the last line: on a full screen it would scroll.
        frame.truncate(frame.len() - 2);
        frame.push_str("\x1b[J");
        frame
    }
}
