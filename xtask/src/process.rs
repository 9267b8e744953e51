//! Starting other programs: the cargo that started us, commands whose failure is an error that names them, root rights
//! through sudo, signals.

use anyhow::{Context, Result, bail};
use std::{
    ffi::OsStr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// Of a longer command only so much is shown.
const SHOWN_CHARACTERS: usize = 80;

/// The cargo that started this program, in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::workspace::root());
    // What it told this program of itself. Build scripts that look at it (ring's) would have minutes of work done anew each time
    // one builds by hand and then by this program.
    let about_xtask = |name: &OsStr| {
        let name = name.as_encoded_bytes();
        [&b"CARGO_PKG_"[..], b"CARGO_MANIFEST_", b"CARGO_BIN_"].iter().any(|prefix| name.starts_with(prefix))
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| about_xtask(name)) {
        command.env_remove(name);
    }
    command
}

/// Runs a command whose output the user sees. Any end but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    require_success(command, status)
}

/// Runs a command and returns what it wrote to standard output. Its errors go to the user.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let bytes = output_bytes(command)?;
    String::from_utf8(bytes).with_context(|| format!("`{}` wrote something else than text", shown(command)))
}

/// As [`output`], whatever it wrote.
pub(crate) fn output_bytes(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| cannot_start(command))?;
    require_success(command, output.status)?;
    Ok(output.stdout)
}

/// Runs a command unseen. What it wrote is shown only when it fails.
pub(crate) fn run_unseen(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        eprint!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    require_success(command, output.status)
}

/// The first executable file of this name in PATH.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| is_executable(file))
}

/// Whether a path names a file that may be executed.
pub(crate) fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Whether this process has root's rights.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The words to put before a command that needs root: none for root itself, else sudo with these variables handed on,
/// because sudo keeps no environment.
pub(crate) fn root_prefix(variables: &[(String, String)]) -> Result<Vec<String>> {
    if is_root() {
        return Ok(Vec::new());
    }
    if find_program("sudo").is_none() {
        bail!("loading kernel programs needs root, and there is no sudo here: run the same command as root");
    }
    let assignments = variables.iter().map(|(name, value)| format!("{name}={value}"));
    Ok(["sudo", "env"].into_iter().map(str::to_owned).chain(assignments).collect())
}

/// Sends a signal to a child that has not been waited for, so its pid is still its own.
pub(crate) fn signal(child: &Child, signal: i32) -> Result<()> {
    let pid = i32::try_from(child.id()).context("a pid beyond 31 bits")?;
    // SAFETY: kill touches no memory of ours.
    if unsafe { libc::kill(pid, signal) } != 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("signal {signal} to process {pid}"));
    }
    Ok(())
}

/// Waits for a child to end; none when it has not by the deadline.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().context("wait for a child process")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn require_success(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("`{}` ended with {status}", shown(command))
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", command.get_program().display())
}

/// A command as a user would type it: the program's own name and its arguments, the last of many left out.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words: Vec<_> = std::iter::once(name).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    let line = words.join(" ");
    match line.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_named_without_its_directory() {
        let error = run(Command::new("/bin/sh").args(["-c", "exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "`sh -c exit 3` ended with exit status: 3");
    }

    #[test]
    fn a_long_command_is_cut() {
        let line = shown(Command::new("/bin/echo").args(["ä"; 100]));
        assert!(line.starts_with("echo ä ä") && line.ends_with('…') && line.chars().count() == SHOWN_CHARACTERS + 1);
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("/nonexistent/tool")).unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot start `/nonexistent/tool`: No such file"), "{error:#}");
    }

    #[test]
    fn programs_are_found_by_name_and_directories_are_not_programs() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-program-has-this-name").is_none());
        assert!(!is_executable(Path::new("/usr/bin")));
    }

    #[test]
    fn a_child_that_outlives_the_limit_is_told_apart_from_one_that_ends() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(wait(&mut child, Duration::from_millis(20)).unwrap().is_none());
        signal(&child, libc::SIGTERM).unwrap();
        let status = wait(&mut child, Duration::from_secs(10)).unwrap();
        assert!(status.is_some_and(|status| !status.success()));
    }
}
