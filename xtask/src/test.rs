//! `cargo xtask test`: every check and test, one after the other, each told apart in a closing summary; then line
//! coverage. A failed step does not stop the ones after it.

use crate::{
    instrument::{self, MEASURED_CRATES},
    process, workspace,
};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// Run every check and test, then report line coverage; fails below 75 %
///
/// Formatting, clippy, rustdoc, dependencies (where cargo-deny is installed), unit tests, and the integration tests, which
/// start the agent on this machine's kernel. Tests run as root: through sudo, where needed. Coverage is that of
/// monitor and monitor-common; test code and xtask are left out.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only the tests whose name contains one of these; coverage is then shown, but has no minimum
    #[arg(last = true)]
    filters: Vec<String>,
}

/// Least total line coverage, in per cent.
const LEAST_COVERAGE: &str = "75";

const XTASK_WITH_COVERAGE: [&str; 2] = ["--features", "xtask/coverage"];

/// What is not built by default as well.
const WITH_ALL: [&str; 2] = ["--features", "monitor/cri,tests/cri,xtask/backtest,xtask/coverage"];

/// The agent under test can do all that it can be built for.
const AGENT_WITH_ALL: [&str; 2] = ["--features", "monitor/cri,tests/cri"];

/// Builds it, and the programs that its tests start.
const BUILD_AGENT: [&str; 6] = ["build", "--bins", "--package", "monitor", "--package", "tests"];

/// The packages with unit tests, for cargo.
const UNIT_TESTS: [&str; 8] = [
    "--package",
    "monitor",
    "--package",
    "monitor-common",
    "--package",
    "xtask",
    "--features",
    "monitor/cri,xtask/backtest,xtask/coverage",
];

/// The integration tests, one by one.
const INTEGRATION_TESTS: [&str; 6] = ["--package", "tests", "--features", "tests/cri", "--", "--test-threads=1"];

/// Runs every step and fails when one of them failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    workspace::require_supported_machine()?;
    let mut summary = Summary::default();
    summary.step("format", check_format);
    summary.step("clippy", check_clippy);
    summary.step("documentation", check_documentation);
    summary.step("dependencies", check_dependencies);
    let mut tests = InstrumentedTests::prepare()?;
    summary.step("build", || tests.build());
    summary.step("unit tests", || tests.run_unit_tests(&options.filters));
    summary.step("integration tests", || tests.run_integration_tests(&options.filters));
    let least_coverage = options.filters.is_empty().then_some(LEAST_COVERAGE);
    summary.step("line coverage", || tests.report_coverage(least_coverage));
    summary.close()
}

/// Runs the integration tests of an agent that loads its kernel objects from this directory.
pub(crate) fn run_oracle_tests(objects: &Path) -> Result<()> {
    process::run(process::cargo().args(BUILD_AGENT).args(AGENT_WITH_ALL))?;
    let objects = objects.to_str().context("the target directory's name is not text")?;
    run_as_root(process::cargo(), &[("MONITOR_OBJECTS".to_owned(), objects.to_owned())], &INTEGRATION_TESTS, &[])
}

/// How one step ended, unless it failed.
enum Outcome {
    Passed,
    NotRun(String),
}

#[derive(Default)]
struct Summary {
    lines: Vec<String>,
    failures: usize,
}

impl Summary {
    fn step(&mut self, name: &str, step: impl FnOnce() -> Result<Outcome>) {
        println!("\n==> {name}");
        let begun = Instant::now();
        let outcome = step();
        let took = format!("{name} ({} s)", begun.elapsed().as_secs());
        let line = match outcome {
            Ok(Outcome::Passed) => format!("ok       {took}"),
            Ok(Outcome::NotRun(reason)) => format!("not run  {name}: {reason}"),
            Err(error) => {
                self.failures += 1;
                format!("FAILED   {took}: {error:#}")
            }
        };
        println!("{line}");
        self.lines.push(line);
    }

    fn close(self) -> Result<()> {
        println!("\n==> summary\n{}", self.lines.join("\n"));
        match self.failures {
            0 => Ok(()),
            1 => bail!("one step failed"),
            failures => bail!("{failures} steps failed"),
        }
    }
}

fn check_format() -> Result<Outcome> {
    process::run(process::cargo().args(["fmt", "--all", "--check"]))?;
    Ok(Outcome::Passed)
}

fn check_clippy() -> Result<Outcome> {
    let mut command = process::cargo();
    command.args(["clippy", "--all-targets"]).args(WITH_ALL).args(["--", "--deny", "warnings"]);
    process::run(&mut command)?;
    // The agent as it is built by default.
    process::run(process::cargo().args(["clippy", "--package", "monitor", "--", "--deny", "warnings"]))?;
    Ok(Outcome::Passed)
}

fn check_documentation() -> Result<Outcome> {
    process::run(process::cargo().args(["doc", "--no-deps"]).args(WITH_ALL).env("RUSTDOCFLAGS", "--deny warnings"))?;
    Ok(Outcome::Passed)
}

/// Licences, sources and bans depend on this tree alone. Advisories change with the day and need the network, so
/// `cargo deny check advisories` is a command of its own.
fn check_dependencies() -> Result<Outcome> {
    if process::find_program("cargo-deny").is_none() {
        return Ok(Outcome::NotRun(
            "cargo-deny is missing; `cargo install --locked cargo-deny` installs it".to_owned(),
        ));
    }
    process::run(process::cargo().args(["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]))?;
    Ok(Outcome::Passed)
}

/// The tests, built with coverage instrumentation into a target directory of their own.
struct InstrumentedTests {
    target: PathBuf,
    profiles: PathBuf,
    /// The unit tests of the measured crates, once they are built.
    executables: Vec<PathBuf>,
}

impl InstrumentedTests {
    /// Makes room for new profiles and forgets the old ones. The agent may run with fewer rights than we have, so
    /// anybody may write there.
    fn prepare() -> Result<Self> {
        let target = workspace::target_directory()?.join("coverage");
        let profiles = target.join("profiles");
        let unusable = || format!("cannot make an empty directory {}", profiles.display());
        if profiles.exists() {
            fs::remove_dir_all(&profiles).with_context(unusable)?;
        }
        fs::create_dir_all(&profiles).with_context(unusable)?;
        fs::set_permissions(&profiles, fs::Permissions::from_mode(0o777)).with_context(unusable)?;
        Ok(Self { target, profiles, executables: Vec::new() })
    }

    fn agent(&self) -> PathBuf {
        self.target.join("debug/monitor")
    }

    fn cargo(&self) -> Result<Command> {
        instrument::cargo(&self.target, &self.profiles).context("the path of xtask itself")
    }

    fn build(&mut self) -> Result<Outcome> {
        process::run(self.cargo()?.args(BUILD_AGENT).args(AGENT_WITH_ALL))?;
        let mut command = self.cargo()?;
        command.args(["test", "--no-run", "--message-format", "json-render-diagnostics"]).args(UNIT_TESTS);
        let messages = process::output(&mut command)?;
        self.executables = messages.lines().filter_map(measured_executable).collect();
        Ok(Outcome::Passed)
    }

    /// As root, too: some attach programs, and give files away.
    fn run_unit_tests(&self, filters: &[String]) -> Result<Outcome> {
        let variables: Vec<_> = instrument::profile_variable(&self.profiles).into_iter().collect();
        run_as_root(self.cargo()?, &variables, &[&UNIT_TESTS[..], &["--"]].concat(), filters)?;
        Ok(Outcome::Passed)
    }

    fn run_integration_tests(&self, filters: &[String]) -> Result<Outcome> {
        let agent =
            self.agent().into_os_string().into_string().ok().context("a target directory whose name is text")?;
        let mut variables = vec![("MONITOR_BIN".to_owned(), agent)];
        variables.extend(instrument::profile_variable(&self.profiles));
        run_as_root(self.cargo()?, &variables, &INTEGRATION_TESTS, filters)?;
        Ok(Outcome::Passed)
    }

    fn report_coverage(&self, minimum: Option<&str>) -> Result<Outcome> {
        let mut command = process::cargo();
        command.args(["run", "--quiet", "--package", "xtask", "--bin", "coverage"]).args(XTASK_WITH_COVERAGE);
        command.arg("--").arg("--profiles").arg(&self.profiles);
        for measured in MEASURED_CRATES {
            command.args(["--sources", measured.sources]);
        }
        if let Some(minimum) = minimum {
            command.args(["--minimum", minimum]);
        }
        process::run(command.arg(self.agent()).args(&self.executables))?;
        Ok(Outcome::Passed)
    }
}

/// The executable that a line of cargo's JSON messages tells of, when it is of a measured crate.
fn measured_executable(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let executable = message["executable"].as_str()?;
    let source = Path::new(message["target"]["src_path"].as_str()?);
    let is_measured =
        MEASURED_CRATES.iter().any(|measured| source.starts_with(workspace::root().join(measured.sources)));
    is_measured.then(|| PathBuf::from(executable))
}

/// Runs tests with these variables, as root: through sudo, where needed.
fn run_as_root(
    mut cargo: Command,
    variables: &[(String, String)],
    arguments: &[&str],
    filters: &[String],
) -> Result<()> {
    let prefix = process::root_prefix(variables)?;
    if !prefix.is_empty() {
        let runner = serde_json::to_string(&prefix).context("the words of the sudo command")?;
        cargo.args(["--config", &format!("target.'cfg(unix)'.runner = {runner}")]);
    }
    cargo.envs(variables.iter().cloned());
    process::run(cargo.args(["test", "--no-fail-fast"]).args(arguments).args(filters))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(source: &str, executable: &str) -> String {
        let source = workspace::root().join(source);
        format!(r#"{{"target":{{"src_path":"{}"}},"executable":{executable}}}"#, source.display())
    }

    #[test]
    fn executables_of_measured_crates_are_picked_from_cargos_messages() {
        let library = message("monitor/src/lib.rs", r#""/target/debug/deps/monitor-1""#);
        assert_eq!(measured_executable(&library), Some(PathBuf::from("/target/debug/deps/monitor-1")));
        assert_eq!(measured_executable(&message("monitor/src/lib.rs", "null")), None);
        assert_eq!(measured_executable(&message("xtask/src/main.rs", r#""/target/debug/deps/xtask-1""#)), None);
        assert_eq!(measured_executable("not json"), None);
    }

    #[test]
    fn a_summary_with_a_failed_step_is_an_error_and_a_step_not_run_is_not() {
        let mut summary = Summary::default();
        summary.step("first", || Ok(Outcome::Passed));
        summary.step("second", || Ok(Outcome::NotRun("its tool is missing".to_owned())));
        assert_eq!(summary.lines, ["ok       first (0 s)", "not run  second: its tool is missing"]);
        summary.step("third", || bail!("broken"));
        assert_eq!(summary.lines[2], "FAILED   third (0 s): broken");
        assert_eq!(summary.close().unwrap_err().to_string(), "one step failed");
    }
}
