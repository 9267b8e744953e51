//! Line coverage from the profiles that instrumented test processes left behind, without LLVM's tools: what
//! `cargo xtask test` prints at its end.
//!
//! A line counts when code begins on it or runs through it, and is covered when any of that code ran; llvm-cov counts the
//! same way. Test modules inside the sources are left out: they would only praise themselves. They are found by their
//! layout, which rustfmt fixes.

use anyhow::{Context, Result, bail};
use clap::Parser;
use llvm_profparser::{CoverageMapping, CoverageResult, merge_profiles};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Prints line coverage; fails below the minimum.
#[derive(Parser)]
struct Arguments {
    /// Directory of the .profraw files
    #[arg(long)]
    profiles: PathBuf,
    /// Directories of sources to report on
    #[arg(long, required = true)]
    sources: Vec<PathBuf>,
    /// Least total line coverage, in per cent
    #[arg(long)]
    minimum: Option<f64>,
    /// The instrumented executables that wrote the profiles
    #[arg(required = true)]
    executables: Vec<PathBuf>,
}

/// How many of the least covered files are named.
const FILES_NAMED: usize = 5;

fn main() -> ExitCode {
    match report(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn report(arguments: &Arguments) -> Result<()> {
    let files = measure(arguments)?;
    let mut total = Lines::default();
    println!("{:<44}{:>8}{:>9}", "line coverage (tests left out)", "lines", "covered");
    for directory in &arguments.sources {
        let lines = files.iter().filter(|(file, _)| file.starts_with(directory)).map(|(_, lines)| *lines).sum();
        print_row(&directory.display().to_string(), lines);
        total = total + lines;
    }
    print_row("total", total);
    print_least_covered(files);
    match arguments.minimum {
        Some(minimum) if total.percent() < minimum => {
            bail!("line coverage is {:.1} %, below the minimum of {minimum} %", total.percent())
        }
        _ => Ok(()),
    }
}

fn print_row(name: &str, lines: Lines) {
    println!("{name:<44}{:>8}{:>9}{:>8.1} %", lines.all, lines.covered, lines.percent());
}

fn print_least_covered(mut files: Vec<(PathBuf, Lines)>) {
    files.retain(|(_, lines)| lines.covered < lines.all);
    files.sort_by(|(_, left), (_, right)| left.percent().total_cmp(&right.percent()));
    if !files.is_empty() {
        println!("least covered files");
    }
    for (file, lines) in files.iter().take(FILES_NAMED) {
        print_row(&format!("  {}", file.display()), *lines);
    }
}

/// Lines that hold code, and those of them that ran.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
struct Lines {
    all: usize,
    covered: usize,
}

impl Lines {
    fn percent(self) -> f64 {
        if self.all == 0 { 100.0 } else { 100.0 * self.covered as f64 / self.all as f64 }
    }
}

impl std::ops::Add for Lines {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { all: self.all + other.all, covered: self.covered + other.covered }
    }
}

impl std::iter::Sum for Lines {
    fn sum<I: Iterator<Item = Self>>(lines: I) -> Self {
        lines.fold(Self::default(), std::ops::Add::add)
    }
}

/// The coverage of every source file below the reported directories, by its path from the current directory.
fn measure(arguments: &Arguments) -> Result<Vec<(PathBuf, Lines)>> {
    let root = std::env::current_dir().context("the current directory")?;
    let directories: Vec<_> = arguments.sources.iter().map(|directory| root.join(directory)).collect();
    let is_reported = |file: &Path| directories.iter().any(|directory| file.starts_with(directory));

    let profiles = profile_files(&arguments.profiles)?;
    let profile = merge_profiles(&profiles).context("cannot read the coverage profiles")?;
    let mapping = CoverageMapping::new(&arguments.executables, &profile, false).context("read the executables")?;
    let report = mapping
        .generate_subreport(|files| files.iter().any(|file| is_reported(file)))
        .context("cannot read the coverage maps in the executables")?;

    let test_files = test_only_files(report.files.keys().filter(|file| is_reported(file)))?;
    let mut files = Vec::new();
    for (file, result) in report.files.iter().filter(|(file, _)| is_reported(file) && !test_files.contains(*file)) {
        let tests = TestCode::find(&read(file)?);
        let counts = line_counts(regions(result));
        let name = file.strip_prefix(&root).unwrap_or(file).to_owned();
        files.push((name, count(&counts, &tests)));
    }
    if files.is_empty() {
        bail!("the executables hold no coverage map of {}", arguments.sources[0].display());
    }
    Ok(files)
}

fn profile_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("cannot list the coverage profiles in {}", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let is_profile = entry.path().extension().is_some_and(|extension| extension == "profraw");
        // A process that was killed leaves an empty file.
        if is_profile && entry.metadata().with_context(unreadable)?.len() > 0 {
            files.push(entry.path());
        }
    }
    if files.is_empty() {
        bail!("no coverage profiles in {}: no instrumented process ended by itself", directory.display());
    }
    Ok(files)
}

/// A stretch of code with its own counter.
#[derive(Clone, Copy)]
struct Region {
    /// Line and column of its first character.
    start: (usize, usize),
    /// Line and column after its last character.
    end: (usize, usize),
    runs: usize,
}

fn regions(result: &CoverageResult) -> impl Iterator<Item = Region> {
    result.hits.iter().map(|(place, runs)| Region {
        start: (place.line_start, place.column_start),
        end: (place.line_end, place.column_end),
        runs: *runs,
    })
}

/// How often each line ran: the most of the regions that begin on it and of the innermost region that runs into it.
fn line_counts(regions: impl Iterator<Item = Region>) -> BTreeMap<usize, usize> {
    let regions: Vec<Region> = regions.collect();
    let lines: BTreeSet<usize> = regions.iter().flat_map(|region| region.start.0..=region.end.0).collect();
    let count = |line: usize| {
        let beginning = regions.iter().filter(|region| region.start.0 == line).map(|region| region.runs).max();
        let running_in = regions
            .iter()
            .filter(|region| region.start.0 < line && region.end >= (line, 1))
            .max_by_key(|region| (region.start, Reverse(region.end)))
            .map(|region| region.runs);
        beginning.max(running_in).unwrap_or(0)
    };
    lines.into_iter().map(|line| (line, count(line))).collect()
}

fn count(counts: &BTreeMap<usize, usize>, tests: &TestCode) -> Lines {
    let mut lines = Lines::default();
    for (_, runs) in counts.iter().filter(|(line, _)| !tests.lines.contains(line)) {
        lines.all += 1;
        lines.covered += usize::from(*runs > 0);
    }
    lines
}

/// What of a source file is compiled for tests only.
#[derive(Default)]
struct TestCode {
    /// Numbers of its lines, from 1.
    lines: BTreeSet<usize>,
    /// Modules that live in files of their own.
    modules: Vec<String>,
}

impl TestCode {
    /// Finds the items under `#[cfg(test)]`: each ends with its own line's `;`, or with the brace at its indentation.
    fn find(source: &str) -> Self {
        let mut found = Self::default();
        let mut lines = source.lines().zip(1..);
        while let Some((text, number)) = lines.next() {
            if text.trim() != "#[cfg(test)]" {
                continue;
            }
            let closing = format!("{}}}", &text[..text.len() - text.trim_start().len()]);
            found.lines.insert(number);
            for (text, number) in lines.by_ref() {
                found.lines.insert(number);
                if let Some(module) = text.trim().strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
                    found.modules.push(module.to_owned());
                }
                if text == closing || (text.ends_with(';') && text.len() - text.trim_start().len() < closing.len()) {
                    break;
                }
            }
        }
        found
    }
}

/// The files of modules that are declared for tests only.
fn test_only_files<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for file in files {
        let stem = file.file_stem().unwrap_or_default();
        let beside = file.parent().unwrap_or(Path::new(""));
        let directory = if stem == "mod" || stem == "lib" || stem == "main" { beside } else { &beside.join(stem) };
        for module in TestCode::find(&read(file)?).modules {
            found.insert(directory.join(&module).with_extension("rs"));
            found.insert(directory.join(&module).join("mod.rs"));
        }
    }
    Ok(found)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: (usize, usize), end: (usize, usize), runs: usize) -> Region {
        Region { start, end, runs }
    }

    #[test]
    fn a_line_has_the_count_of_the_innermost_code_that_reaches_it() {
        let function = region((1, 1), (6, 2), 3);
        let branch_not_taken = region((3, 12), (5, 6), 0);
        let counts = line_counts([function, branch_not_taken].into_iter());
        assert_eq!(counts, BTreeMap::from([(1, 3), (2, 3), (3, 3), (4, 0), (5, 0), (6, 3)]));
    }

    #[test]
    fn code_that_begins_on_a_line_can_only_raise_its_count() {
        let counts = line_counts([region((1, 1), (3, 2), 1), region((2, 5), (2, 9), 7)].into_iter());
        assert_eq!(counts[&2], 7);
        let counts = line_counts([region((1, 1), (3, 2), 1), region((2, 5), (2, 9), 0)].into_iter());
        assert_eq!(counts[&2], 1);
    }

    #[test]
    fn test_items_are_found_with_their_braces_and_module_files() {
        let source = "fn kept() {}\n\
                      #[cfg(test)]\n\
                      mod fixtures;\n\
                      fn kept_too() {}\n\
                      #[cfg(test)]\n\
                      mod tests {\n    fn inner() {\n        let x = 1;\n    }\n}\n\
                      fn kept_last() {}\n";
        let tests = TestCode::find(source);
        assert_eq!(tests.lines, (2..=3).chain(5..=10).collect());
        assert_eq!(tests.modules, ["fixtures"]);
    }

    #[test]
    fn an_indented_test_item_ends_at_its_own_brace() {
        let source = "impl X {\n    #[cfg(test)]\n    fn only_here() {\n        body();\n    }\n    fn kept() {}\n}\n";
        assert_eq!(TestCode::find(source).lines, (2..=5).collect());
    }

    #[test]
    fn counting_leaves_test_lines_out() {
        let counts = BTreeMap::from([(1, 1), (2, 0), (3, 9)]);
        let tests = TestCode { lines: BTreeSet::from([3]), modules: Vec::new() };
        let lines = count(&counts, &tests);
        assert_eq!(lines, Lines { all: 2, covered: 1 });
        assert!((lines.percent() - 50.0).abs() < f64::EPSILON);
    }
}
