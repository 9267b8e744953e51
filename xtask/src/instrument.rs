//! The compiler as `cargo xtask test` calls it: cargo is told to start this program in rustc's place, which hands on to
//! rustc and adds coverage instrumentation to the crates whose coverage is measured. The workloads of the integration
//! tests stay as they are: an instrumented workload would fault and write on its own account.

use crate::process;
use std::{
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

/// A crate whose line coverage is measured.
pub(crate) struct MeasuredCrate {
    /// As rustc knows it.
    pub(crate) crate_name: &'static str,
    /// Its sources, from the workspace's root.
    pub(crate) sources: &'static str,
}

/// The crates whose line coverage is measured.
pub(crate) const MEASURED_CRATES: [MeasuredCrate; 2] = [
    MeasuredCrate { crate_name: "monitor", sources: "monitor/src" },
    MeasuredCrate { crate_name: "monitor_common", sources: "monitor-common/src" },
];

const REQUEST: &str = "XTASK_INSTRUMENT";

/// Makes this cargo command compile the measured crates with instrumentation, and their processes write profiles into
/// `profiles`.
pub(crate) fn request(command: &mut Command, xtask: &Path, profiles: &Path) {
    command.env(REQUEST, "1").env("RUSTC_WORKSPACE_WRAPPER", xtask).envs(profile_variable(profiles));
}

/// The variable that tells an instrumented process where to write its profile: one file per process and binary.
pub(crate) fn profile_variable(profiles: &Path) -> Option<(String, String)> {
    let pattern = profiles.join("%p-%m.profraw").into_os_string().into_string().ok()?;
    Some(("LLVM_PROFILE_FILE".to_owned(), pattern))
}

/// Whether cargo started this program in rustc's place.
pub(crate) fn is_requested() -> bool {
    std::env::var_os(REQUEST).is_some()
        && std::env::args_os().nth(1).is_some_and(|first| Path::new(&first).file_stem() == Some(OsStr::new("rustc")))
}

/// Becomes rustc. Returns only when that failed.
pub(crate) fn run_compiler() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Some((compiler, arguments)) = words.split_first() else {
        return ExitCode::FAILURE;
    };
    let mut command = Command::new(compiler);
    command.args(arguments);
    if is_measured(arguments) {
        command.arg("-Cinstrument-coverage");
    }
    let error = command.exec();
    eprintln!("error: cannot start {}: {error}", compiler.display());
    ExitCode::FAILURE
}

fn is_measured(arguments: &[OsString]) -> bool {
    arguments
        .windows(2)
        .any(|pair| pair[0] == "--crate-name" && MEASURED_CRATES.iter().any(|measured| pair[1] == measured.crate_name))
}

/// A cargo command whose measured crates are instrumented, building into its own target directory.
pub(crate) fn cargo(target: &Path, profiles: &Path) -> std::io::Result<Command> {
    let mut command = process::cargo();
    request(&mut command, &std::env::current_exe()?, profiles);
    command.env("CARGO_TARGET_DIR", target);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn only_the_measured_crates_are_instrumented() {
        assert!(is_measured(&arguments("--crate-name monitor --edition=2024 src/main.rs")));
        assert!(is_measured(&arguments("--edition=2024 --crate-name monitor_common --test")));
        assert!(!is_measured(&arguments("--crate-name workload --extern monitor_common")));
        assert!(!is_measured(&arguments("-vV")));
    }
}
