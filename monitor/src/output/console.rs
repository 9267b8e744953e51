//! What `monitor run` writes to standard output: the live table, or a block of resources every so many ticks.
//!
//! The table tells which trees and cgroups fault, map memory and wait for disk right now. On a terminal it is drawn over itself;
//! anywhere else table follows table, so that a log keeps all of them. `super::resources` has the block.

use super::{resources, text::fit};
use crate::{
    config::{Config, Thresholds},
    coverage::{SourceCoverage, State},
    model::{
        snapshot::{Cgroup, Snapshot, Subject},
        totals::Rates,
    },
    source::Source,
    units::{human_bytes, human_count, human_duration, human_seconds},
};
use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    time::{Duration, SystemTime},
};

/// Width where there is no terminal.
const PLAIN_WIDTH: usize = 120;
/// Rows of each table where there is room.
const ROWS: usize = 5;
/// Tables of which it consists.
const TABLES: usize = 4;
/// Lines of the live table that are no table's rows: one at the head, a gap and a title for each table, a gap and two at the foot.
const OTHER_LINES: usize = 1 + 2 * TABLES + 3;

/// Ticks from one block to the next where nothing else is set: what the training document logs batches by.
const LOG_INTERVAL: u32 = 10;

/// What is shown, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The live table, this often.
    Table(Duration),
    /// A block of resources and alerts every so many ticks.
    Blocks(Ticks),
}

/// Every so many ticks, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    every: u32,
    next: u64,
}

/// Shows snapshots on standard output.
#[derive(Debug)]
pub struct Console {
    form: Form,
    thresholds: Thresholds,
    terminal: bool,
    colour: bool,
    hint: String,
    drawn: bool,
}

impl Console {
    /// The consoles of an agent, one for each form.
    pub fn all(config: &Config) -> Vec<Self> {
        let terminal = io::stdout().is_terminal();
        let console = |form| Self {
            form,
            thresholds: config.thresholds,
            terminal,
            colour: terminal && super::wants_colour(),
            hint: hint(&config.socket),
            drawn: false,
        };
        Form::all(config.log_interval, config.console_interval, terminal).into_iter().map(console).collect()
    }

    /// What it shows, and when.
    pub const fn form(&self) -> Form {
        self.form
    }

    /// Says where the socket is and how to ask it. An error says that nobody reads.
    pub fn welcome(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "monitor {} answers at its socket: {}", env!("CARGO_PKG_VERSION"), self.hint)?;
        out.flush()
    }

    /// Shows a snapshot. An error, as of a closed pipe, says that nobody reads any more.
    pub fn show(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let size = if self.terminal { terminal_size::terminal_size() } else { None };
        let (width, height) = size.map_or((PLAIN_WIDTH, None), |(w, h)| (usize::from(w.0), Some(usize::from(h.0))));
        let frame = match self.form {
            Form::Blocks(_) => format!("\n{}", resources::render(snapshot, &self.thresholds)),
            Form::Table(_) if self.terminal => self.redrawn(snapshot, width, height),
            Form::Table(_) => appended(snapshot, width),
        };
        let mut out = io::stdout().lock();
        out.write_all(frame.as_bytes())?;
        out.flush()
    }

    /// What draws the table over the one before.
    fn redrawn(&mut self, snapshot: &Snapshot, width: usize, height: Option<usize>) -> String {
        let mut lines = block(snapshot, width, height.map(|height| height.saturating_sub(1)), ROWS);
        lines.push(Line::plain(fit(&self.hint, width)));
        let mut frame = String::new();
        if !self.drawn {
            // Pushes what was said at the start into the scroll-back instead of overwriting it.
            frame.push_str(&"\n".repeat(height.unwrap_or(0)));
            self.drawn = true;
        }
        frame.push_str("\x1b[H");
        // No line end after the last line: on a full screen it would scroll.
        let lines: Vec<_> = lines.iter().map(|line| line.drawn(self.colour)).collect();
        frame.push_str(&lines.join("\n"));
        frame.push_str("\x1b[J");
        frame
    }
}

impl Form {
    /// Blocks would be lost under a table that is redrawn, but not between tables that follow each other.
    fn all(log_interval: Option<u32>, console_interval: Duration, terminal: bool) -> Vec<Self> {
        match log_interval {
            Some(0) => vec![Self::Table(console_interval)],
            None if terminal => vec![Self::Table(console_interval)],
            None => vec![Self::Table(console_interval), Self::Blocks(Ticks::new(LOG_INTERVAL))],
            Some(every) => vec![Self::Blocks(Ticks::new(every))],
        }
    }
}

impl Ticks {
    /// The first is tick number `every`: number 0 has no rates. Zero is as one.
    const fn new(every: u32) -> Self {
        let every = if every == 0 { 1 } else { every };
        Self { every, next: every as u64 }
    }

    /// Whether the tick of this number is due. Where numbers were missed it is the first one after them, and the next is due as if
    /// none had been.
    pub fn is_due(&mut self, number: u64) -> bool {
        let (every, due) = (u64::from(self.every), number >= self.next);
        if due {
            self.next = number - number % every + every;
        }
        due
    }
}

/// The live table as plain text: at most `width` columns and `height` lines, with the `top` rows of each table.
pub fn render(snapshot: &Snapshot, width: usize, height: Option<usize>, top: usize) -> String {
    block(snapshot, width, height, top).into_iter().map(|line| line.text + "\n").collect()
}

/// What appends the table to a log.
fn appended(snapshot: &Snapshot, width: usize) -> String {
    let time = humantime::format_rfc3339_seconds(SystemTime::now());
    format!("\n{time}\n{}", render(snapshot, width, None, ROWS))
}

/// How to ask for more.
fn hint(socket: &Path) -> String {
    format!("curl --unix-socket {} http://localhost/v1/trees", socket.display())
}

/// A line of the table.
struct Line {
    title: bool,
    text: String,
}

impl Line {
    const fn plain(text: String) -> Self {
        Self { title: false, text }
    }

    /// The line with what clears the rest of the terminal's line.
    fn drawn(&self, colour: bool) -> String {
        let Self { title, text } = self;
        if *title && colour { format!("\x1b[1m{text}\x1b[0m\x1b[K") } else { format!("{text}\x1b[K") }
    }
}

fn block(snapshot: &Snapshot, width: usize, height: Option<usize>, top: usize) -> Vec<Line> {
    let room = height.map_or(usize::MAX, |height| height.saturating_sub(OTHER_LINES) / TABLES);
    let rows = top.min(room);
    let mut lines = vec![Line { title: true, text: fit(&head(snapshot), width) }];
    for table in &TABLE {
        lines.push(Line::plain(String::new()));
        lines.extend(table.lines(snapshot, width, rows));
    }
    lines.push(Line::plain(String::new()));
    lines.push(Line::plain(fit(&sources(snapshot), width)));
    lines.push(Line::plain(fit(&cost(snapshot), width)));
    lines.truncate(height.unwrap_or(usize::MAX));
    lines
}

/// The whole machine in one line.
fn head(snapshot: &Snapshot) -> String {
    let (rates, up) = (&snapshot.host.rates, human_duration(snapshot.time.since(snapshot.since)));
    let value = |quantity: &Quantity| {
        if snapshot.coverage.is_live(quantity.source) { (quantity.show)(rates) } else { UNKNOWN.to_owned() }
    };
    format!(
        "monitor {}  up {up}  faults {}/s  mapped {}/s  read {}/s  written {}/s  disk wait {}/s",
        env!("CARGO_PKG_VERSION"),
        value(&FAULTS),
        value(&MAPPED),
        value(&READ),
        value(&WRITTEN),
        value(&DISK_WAIT),
    )
}

/// Stands where a source does not count.
const UNKNOWN: &str = "-";

/// Something that is shown per second.
struct Quantity {
    /// Over its column.
    title: &'static str,
    source: Source,
    read: fn(&Rates) -> f64,
    show: fn(&Rates) -> String,
    /// Terminals narrower than this do without its column.
    from_width: usize,
}

static FAULTS: Quantity = Quantity {
    title: "FAULTS/s",
    source: Source::PageFault,
    read: |r| r.page_faults,
    show: |r| human_count(r.page_faults),
    from_width: 0,
};
static MAPPED: Quantity = Quantity {
    title: "MAPPED/s",
    source: Source::AddressSpace,
    read: |r| r.mapped_bytes,
    show: |r| human_bytes(r.mapped_bytes),
    from_width: 0,
};
static READ: Quantity = Quantity {
    title: "READ/s",
    source: Source::BlockIo,
    read: |r| r.read_bytes,
    show: |r| human_bytes(r.read_bytes),
    from_width: 100,
};
static WRITTEN: Quantity = Quantity {
    title: "WRITTEN/s",
    source: Source::BlockIo,
    read: |r| r.write_bytes,
    show: |r| human_bytes(r.write_bytes),
    from_width: 100,
};
static DISK_WAIT: Quantity = Quantity {
    title: "DISK WAIT/s",
    source: Source::BlockIo,
    read: |r| r.io_wait,
    show: |r| human_seconds(r.io_wait),
    from_width: 0,
};

/// The columns of every table, after the process id or the number of processes and before the name.
static COLUMNS: [&Quantity; 5] = [&FAULTS, &MAPPED, &READ, &WRITTEN, &DISK_WAIT];
/// Width of a quantity's column: "1023.9 MiB" and a gap.
const COLUMN_WIDTH: usize = 12;
/// Width of the first column.
const FIRST_WIDTH: usize = 9;

/// The top of one list by one quantity.
struct Table {
    title: &'static str,
    first: &'static str,
    by: &'static Quantity,
    rows: fn(&Snapshot) -> Vec<Row<'_>>,
}

struct Row<'a> {
    /// Shown in the first column.
    first: u32,
    name: Cow<'a, str>,
    subject: &'a Subject,
}

static TABLE: [Table; TABLES] = [
    Table { title: "TREES by page faults", first: "PID", by: &FAULTS, rows: trees },
    Table { title: "TREES by memory mapped", first: "PID", by: &MAPPED, rows: trees },
    Table { title: "TREES by disk wait", first: "PID", by: &DISK_WAIT, rows: trees },
    Table { title: "CGROUPS by page faults", first: "PROCESSES", by: &FAULTS, rows: cgroups },
];

fn trees(snapshot: &Snapshot) -> Vec<Row<'_>> {
    let row = |tree| {
        let &crate::model::snapshot::Tree { root, ref command, ref command_line, ref subject, .. } = tree;
        let name = if command_line.is_empty() { command } else { command_line };
        Row { first: root.tgid.0, name: name.into(), subject }
    };
    snapshot.trees.iter().map(|tree| row(&**tree)).collect()
}

/// All but the root, which is the head's line again. Those of containers begin with the container's name, which says more
/// than the path.
fn cgroups<'a>(snapshot: &'a Snapshot) -> Vec<Row<'a>> {
    let below = snapshot.cgroups.iter().filter(|cgroup| &*cgroup.path != "/");
    let name = |cgroup: &'a Cgroup| match &cgroup.container {
        Some(container) => format!("{}  {}", container.label(), cgroup.path).into(),
        None => Cow::from(&*cgroup.path),
    };
    below.map(|cgroup| Row { first: cgroup.running, name: name(cgroup), subject: &cgroup.subject }).collect()
}

impl Table {
    fn lines(&self, snapshot: &Snapshot, width: usize, top: usize) -> Vec<Line> {
        let columns: Vec<_> = COLUMNS.iter().filter(|column| width >= column.from_width).collect();
        let mut title = format!("{:>FIRST_WIDTH$}", self.first);
        for column in &columns {
            title += &format!("{:>COLUMN_WIDTH$}", column.title);
        }
        let mut lines = vec![Line { title: true, text: fit(&format!("{title}  {}", self.title), width) }];
        let rows = self.top(snapshot, top);
        if rows.is_empty() && top > 0 {
            let live = snapshot.coverage.is_live(self.by.source);
            let why = if live { "none".to_owned() } else { format!("not known: {} does not count", self.by.source) };
            lines.push(Line::plain(fit(&format!("{why:>FIRST_WIDTH$}"), width)));
        }
        for Row { first, name, subject } in rows {
            let mut text = format!("{first:>FIRST_WIDTH$}");
            for column in &columns {
                let live = snapshot.coverage.is_live(column.source);
                let value = if live { (column.show)(&subject.rates) } else { UNKNOWN.to_owned() };
                text += &format!("{value:>COLUMN_WIDTH$}");
            }
            lines.push(Line::plain(fit(&format!("{text}  {name}"), width)));
        }
        lines
    }

    /// The rows with most of the quantity, and none without any.
    fn top<'a>(&self, snapshot: &'a Snapshot, top: usize) -> Vec<Row<'a>> {
        let value = |row: &Row<'_>| (self.by.read)(&row.subject.rates);
        let mut rows = if snapshot.coverage.is_live(self.by.source) { (self.rows)(snapshot) } else { Vec::new() };
        rows.retain(|row| value(row) > 0.0);
        rows.sort_by(|a, b| value(b).total_cmp(&value(a)));
        rows.truncate(top);
        rows
    }
}

/// Each source in a few words, those first that lack something: the end of the line may not fit.
fn sources(snapshot: &Snapshot) -> String {
    let mut sources: Vec<_> = snapshot.coverage.0.iter().collect();
    sources.sort_by_key(|source| source.state == State::Live && source.lost_total == 0);
    let sources: Vec<_> = sources.into_iter().map(source).collect();
    format!("sources  {}", sources.join(" · "))
}

fn source(source: &SourceCoverage) -> String {
    let name = source.source;
    match source.state {
        State::Live if source.lost_total > 0 => format!("{name} has lost {}", source.lost_total),
        State::Live => format!("{name} by {}", source.rung.unwrap_or_default()),
        State::Unavailable => format!("{name} UNAVAILABLE (see monitor doctor)"),
        State::Disabled => format!("{name} switched off"),
    }
}

fn cost(snapshot: &Snapshot) -> String {
    let cost = &snapshot.cost;
    let cpu = cost.cpu_ratio.map_or_else(|| UNKNOWN.to_owned(), |ratio| format!("{:.2}", 100.0 * ratio));
    let (resident, maps) = (human_bytes(cost.resident_bytes as f64), human_bytes(cost.map_bytes as f64));
    format!("agent    {cpu} % of one CPU, {resident} resident, {maps} of maps")
}

#[cfg(test)]
mod tests {
    use super::{super::text::columns, *};
    use crate::serve::fixtures;
    use std::sync::Arc;

    #[test]
    fn it_shows_who_faults_maps_and_waits() {
        let text = render(&fixtures::snapshot(), 110, None, 5);
        let expected = "\
monitor 0.1.0  up 1m 12s  faults 605/s  mapped -/s  read 8.0 KiB/s  written 0 B/s  disk wait 250 ms/s

      PID    FAULTS/s    MAPPED/s      READ/s   WRITTEN/s DISK WAIT/s  TREES by page faults
       20         500           -     8.0 KiB         0 B      250 ms  fio
       10         105           -     8.0 KiB         0 B      250 ms  python3 train.py --epochs 3

      PID    FAULTS/s    MAPPED/s      READ/s   WRITTEN/s DISK WAIT/s  TREES by memory mapped
not known: address_space does not count

      PID    FAULTS/s    MAPPED/s      READ/s   WRITTEN/s DISK WAIT/s  TREES by disk wait
       10         105           -     8.0 KiB         0 B      250 ms  python3 train.py --epochs 3
       20         500           -     8.0 KiB         0 B      250 ms  fio

PROCESSES    FAULTS/s    MAPPED/s      READ/s   WRITTEN/s DISK WAIT/s  CGROUPS by page faults
        3         605           -     8.0 KiB         0 B      250 ms  /apps
        3         105           -     8.0 KiB         0 B      250 ms  /apps/a

sources  lifecycle has lost 3 · address_space UNAVAILABLE (see monitor doctor) · page_fault by tp_btf · block…
agent    0.50 % of one CPU, 6.0 MiB resident, 4.0 MiB of maps
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_containers_cgroup_begins_with_its_name() {
        let text = render(&fixtures::snapshot_with_container(), 110, None, 5);
        assert!(text.contains("  shop/web-0/nginx  /kubepods.slice/cri-"), "{text}");
    }

    #[test]
    fn it_keeps_to_any_terminal() {
        let mut snapshot = fixtures::snapshot();
        let mut tree = (*snapshot.trees[0]).clone();
        tree.command_line = format!("evil\x1b[2J\n{}", "long 名 ".repeat(50));
        snapshot.trees[0] = Arc::new(tree);
        for width in [1, 20, 60, 80, 100, 200] {
            for height in [1, 10, 15, 24, 60] {
                let text = render(&snapshot, width, Some(height), 5);
                assert!(text.lines().count() <= height, "{width}x{height}");
                assert!(text.lines().all(|line| columns(line) <= width), "{width}x{height}");
                assert!(!text.contains('\x1b'));
            }
        }
    }

    #[test]
    fn a_terminal_is_drawn_over_and_never_scrolled() {
        let mut console = Console {
            form: Form::Table(Duration::from_secs(2)),
            thresholds: Config::default().thresholds,
            terminal: true,
            colour: true,
            hint: hint(Path::new("/run/m.sock")),
            drawn: false,
        };
        let first = console.redrawn(&fixtures::snapshot(), 100, Some(24));
        assert!(first.starts_with(&"\n".repeat(24)) && first.contains("\x1b[1mmonitor"), "{first:?}");
        let second = console.redrawn(&fixtures::snapshot(), 100, Some(24));
        assert!(second.starts_with("\x1b[H") && second.ends_with("/v1/trees\x1b[K\x1b[J"), "{second:?}");
        assert!(second.matches('\n').count() < 24);
    }

    #[test]
    fn elsewhere_a_table_begins_with_the_time() {
        let text = appended(&fixtures::snapshot(), 100);
        assert!(text.lines().nth(1).unwrap().ends_with('Z'), "{text}");
    }

    #[test]
    fn a_terminal_has_the_table_and_a_log_has_both_unless_one_is_asked_for() {
        let interval = Duration::from_secs(2);
        let forms = |log_interval, terminal| Form::all(log_interval, interval, terminal);
        let table = Form::Table(interval);
        let blocks = |every| Form::Blocks(Ticks { every, next: every.into() });
        assert_eq!((forms(None, true), forms(None, false)), (vec![table], vec![table, blocks(10)]));
        assert_eq!((forms(Some(0), true), forms(Some(0), false)), (vec![table], vec![table]));
        assert_eq!((forms(Some(3), true), forms(Some(3), false)), (vec![blocks(3)], vec![blocks(3)]));
    }

    #[test]
    fn every_so_many_ticks_one_is_due_also_where_some_are_missed() {
        let due = |every, numbers: &[u64]| {
            let mut ticks = Ticks::new(every);
            numbers.iter().copied().filter(|number| ticks.is_due(*number)).collect::<Vec<_>>()
        };
        assert_eq!(due(3, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), [3, 6, 9]);
        assert_eq!(due(3, &[0, 2, 4, 5, 6, 8, 20, 21]), [4, 6, 20, 21]);
        assert_eq!(due(1, &[0, 1, 2]), [1, 2]);
    }
}
