//! The `monitor` command as a user types it: what it prints, where, and with which exit code. Nothing here needs rights
//! or the kernel.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

fn monitor(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_monitor"));
    command.args(arguments).stdin(Stdio::null()).env_remove("RUST_LOG");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MONITOR_") {
            command.env_remove(name);
        }
    }
    command
}

/// Exit code, standard output, standard error.
fn outcome(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn help_teaches_by_examples() {
    for command in ["run", "record", "query", "config"] {
        let (code, out, _) = outcome(&mut monitor(&[command, "--help"]));
        assert_eq!(code, Some(0));
        assert!(out.contains("Examples:"), "{command}: {out}");
    }
    let (_, out, _) = outcome(&mut monitor(&["--help"]));
    assert!(out.contains("Exit codes:"), "{out}");
}

#[test]
fn config_prints_what_holds_and_reads_it_back() {
    let (code, shown, _) = outcome(monitor(&["config", "--tick", "2s"]).env("MONITOR_EXITED_LIMIT", "7"));
    assert_eq!(code, Some(0));
    assert!(shown.contains("tick = \"2s\"") && shown.contains("# MONITOR_EXITED_LIMIT: "), "{shown}");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(shown.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let (code, json, _) = outcome(&mut monitor(&["config", "--json", "--quiet", "--config", path]));
    assert_eq!(code, Some(0));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["tick"]["value"], "2s");
    assert_eq!(json["exited"]["limit"]["value"], 7);
    assert_eq!(json["console"]["origin"], "--quiet");
    assert!(json["tick"]["origin"].as_str().unwrap().starts_with(path));
}

#[test]
fn a_wrong_configuration_is_one_line_and_code_2() {
    let cases: [(&[&str], &str); 4] = [
        (&["run", "--tick", "5"], "monitor: --tick: tick = \"5\" is refused: it takes a duration from 100ms to 1h"),
        (&["run", "--set", "tick"], "monitor: --set tick: it takes key=value"),
        (
            &["config", "--config", "/no/such.toml"],
            "monitor: cannot read the configuration file /no/such.toml: No such",
        ),
        (&["doctor", "--set", "block_io.slwo=1s"], "did you mean \"block_io.slow\"?"),
    ];
    for (arguments, message) in cases {
        let (code, out, error) = outcome(&mut monitor(arguments));
        assert_eq!((code, out.as_str(), error.lines().count()), (Some(2), "", 1), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
    let (code, _, error) = outcome(monitor(&["query", "/"]).env("MONITOR_TIKC", "1s"));
    assert_eq!(code, Some(2));
    assert!(error.contains("did you mean \"MONITOR_TICK\"?"), "{error}");
}

#[test]
fn wrong_usage_is_code_2() {
    for arguments in [&["walk"][..], &["run", "--for", "5"], &["query", "v1/trees"], &[]] {
        assert_eq!(outcome(&mut monitor(arguments)).0, Some(2), "{arguments:?}");
    }
}

#[test]
fn a_path_that_is_taken_is_one_line_and_code_1() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (code, _, error) = outcome(&mut monitor(&["run", "--socket", file.path().to_str().unwrap()]));
    assert_eq!((code, error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("exists and is not a socket: remove it"), "{error}");
}

#[test]
fn a_query_without_an_agent_names_the_socket_and_the_remedy() {
    let (code, out, error) = outcome(&mut monitor(&["query", "/v1/health", "--socket", "/no/such.sock"]));
    assert_eq!((code, out.as_str(), error.lines().count()), (Some(1), "", 1), "{error}");
    assert!(error.contains("no agent answers at /no/such.sock: start it with `sudo monitor run`"), "{error}");
}
