//! The command line: what it refuses, how it says so, and what `doctor` and `config` tell.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Output},
};
use tests::{Machine, agent, expect, json};

/// An error of one line that holds what it is about, with this exit code.
fn refused(output: &Output, code: i32, about: &str) -> Result<()> {
    let words = String::from_utf8_lossy(&output.stderr);
    expect::exactly("exit code", output.status.code(), Some(code)).with_context(|| words.clone().into_owned())?;
    ensure!(words.contains(about), "the error does not speak of {about}: {words}");
    ensure!(words.trim_end().lines().count() == 1, "more than one line: {words}");
    Ok(())
}

#[test]
fn settings_that_are_unknown_or_wrong_are_refused_by_name() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("monitor.toml");
    fs::write(&file, "tick = \"1s\"\n[address_space]\nlarge_cal = \"1MiB\"\n")?;
    let file = file.to_string_lossy();
    refused(&agent::run(&["config", "--config", &file])?, 2, "large_cal")?;
    refused(&agent::run(&["config", "--set", "page_fault.colour=red"])?, 2, "page_fault.colour")?;
    refused(&agent::run(&["config", "--tick", "1 parsec"])?, 2, "1 parsec")?;
    refused(&agent::run(&["config", "--tick", "1ms"])?, 2, "1ms")?;
    refused(&agent::run(&["config", "--set", "lifecycle.ring_bytes=5000"])?, 2, "lifecycle.ring_bytes")?;
    refused(&agent::run_with(&["config"], &[("MONITOR_COLOUR", "red")])?, 2, "MONITOR_COLOUR")?;
    refused(&agent::run(&["config", "--config", "/nowhere/monitor.toml"])?, 2, "/nowhere/monitor.toml")
}

#[test]
fn later_layers_of_the_configuration_win() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("monitor.toml");
    fs::write(&file, "tick = \"2s\"\n[address_space]\nlarge_call = \"2MiB\"\n[block_io]\nslow = \"20ms\"\n")?;
    let file = file.to_string_lossy();
    let variables = [("MONITOR_ADDRESS_SPACE_LARGE_CALL", "3MiB"), ("MONITOR_TICK", "3s")];
    let output = agent::run_with(&["config", "--config", &file, "--tick", "4s"], &variables)?;
    let told = String::from_utf8(output.stdout)?;
    for setting in ["tick = \"4s\"", "large_call = \"3MiB\"", "slow = \"20ms\""] {
        let found = told.lines().any(|line| line.trim().starts_with(setting));
        ensure!(found, "no {setting} in:\n{told}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[test]
fn a_socket_that_cannot_be_made_is_an_error_of_one_line() -> Result<()> {
    let _machine = Machine::claim()?;
    let output = agent::run(&["run", "--quiet", "--for", "3s", "--socket", "/proc/monitor.sock"])?;
    refused(&output, 1, "/proc/monitor.sock")
}

#[test]
fn without_rights_it_says_which_are_missing() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o777)).tempdir()?;
    let program = directory.path().join("monitor");
    fs::copy(agent::binary()?, &program)?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    let socket = directory.path().join("monitor.sock");
    let mut command = Command::new(&program);
    command.args(["run", "--quiet", "--for", "3s", "--socket"]).arg(socket).uid(65534).gid(65534).current_dir("/");
    let output = command.output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    expect::exactly(&words, output.status.code(), Some(1))?;
    ensure!(words.contains("root") || words.contains("CAP_"), "it does not say which rights: {words}");
    ensure!(words.trim_end().lines().count() == 1, "more than one line: {words}");
    Ok(())
}

#[test]
fn doctor_tells_facts_and_plan() -> Result<()> {
    let _machine = Machine::claim()?;
    let output = agent::run(&["doctor"])?;
    expect::exactly("exit code", output.status.code(), Some(0))?;
    let table = String::from_utf8(output.stdout)?;
    let output = agent::run(&["doctor", "--json"])?;
    expect::exactly("exit code", output.status.code(), Some(0))?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(report.is_object(), "no report: {report}");
    for source in ["page_fault", "address_space", "block_io", "lifecycle", "requests", "resident"] {
        ensure!(table.contains(source), "the table does not name {source}:\n{table}");
        ensure!(report.to_string().contains(source), "the report does not name {source}: {report}");
    }
    Ok(())
}

#[test]
fn help_teaches_every_command() -> Result<()> {
    let output = agent::run(&["--help"])?;
    expect::exactly("exit code", output.status.code(), Some(0))?;
    let help = String::from_utf8(output.stdout)?;
    for command in ["run", "record", "query", "findings", "analyze", "exec", "doctor", "config"] {
        ensure!(help.contains(command), "--help does not name {command}:\n{help}");
        let output = agent::run(&[command, "--help"])?;
        ensure!(output.status.success() && !output.stdout.is_empty(), "{command} --help says nothing");
    }
    let version = agent::run(&["--version"])?;
    ensure!(String::from_utf8_lossy(&version.stdout).starts_with("monitor "), "--version names no program");
    expect::exactly("exit code of nonsense", agent::run(&["dance"])?.status.code(), Some(2))
}

/// Two minutes of a server: ten requests a second, and so many bytes more in each.
fn samples(subject: &str, more: u64) -> String {
    let sample = |second: u64| format!("{second},{subject},{},{}\n", (100 << 20) + second * more, second * 10);
    (0..120).map(sample).collect()
}

#[test]
fn analyze_ends_with_4_only_where_there_is_what_it_should_fail_on() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let header = "timestamp,subject,working_set_bytes,requests_total\n";
    let write = |name: &str, lines: &str| -> Result<String> {
        let path = directory.path().join(name);
        fs::write(&path, format!("{header}{lines}"))?;
        Ok(path.to_string_lossy().into_owned())
    };
    let leaks = write("leaks.csv", &(samples("stays", 0) + &samples("leaks", 1 << 20)))?;
    let stays = write("stays.csv", &samples("stays", 0))?;
    for (arguments, code, verdict) in [
        (&["--fail-on", "leak", &leaks][..], 4, "leak"),
        (&["--fail-on", "growing", &leaks], 4, "leak"),
        (&["--fail-on", "leak", &stays, &leaks], 4, "leak"),
        (&["--fail-on", "growing", &stays], 0, "stable"),
        (&[&leaks], 0, "leak"),
    ] {
        let output = agent::run(&[&["analyze", "--json"], arguments].concat())?;
        expect::exactly(&format!("exit code of {arguments:?}"), output.status.code(), Some(code))?;
        let told: Value = serde_json::from_slice(&output.stdout)?;
        let told = json::list(&told, "subjects")?.last().context("no subject")?;
        expect::exactly("verdict", json::text(told, "verdict")?, verdict)?;
    }
    let malformed = write("malformed.csv", &format!("{}120,leaks,many,1200\n", samples("leaks", 1 << 20)))?;
    let output = agent::run(&["analyze", "--fail-on", "leak", &malformed])?;
    refused(&output, 2, &format!("{malformed}:122: working_set_bytes"))?;
    ensure!(output.stdout.is_empty(), "it tells of half a file");
    refused(&agent::run(&["analyze", "/nowhere/soak.csv"])?, 1, "/nowhere/soak.csv")
}

#[test]
fn json_of_the_configuration_names_every_source() -> Result<()> {
    let output = agent::run(&["config", "--json"])?;
    expect::exactly("exit code", output.status.code(), Some(0))?;
    let config: Value = serde_json::from_slice(&output.stdout)?;
    for source in ["page_fault", "address_space", "block_io", "lifecycle", "requests", "resident"] {
        json::at(&config, source)?;
    }
    Ok(())
}
