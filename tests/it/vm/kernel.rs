//! Every capability that kernels.toml lists is there and used, and every other one is absent.

use super::expected::{self, Expected, SOURCES};
use anyhow::{Context, Result, ensure};
use monitor::kernel::signature::SIGNATURES;
use serde_json::json;
use std::{
    fs,
    io::{Read, Write},
};
use tests::{
    Agent, Cgroup, Machine, Workload, agent,
    clock::{PATIENCE, wait_until},
    expect, json,
};
use toml::{Table, Value};

fn doctor(flags: &[&str]) -> Result<serde_json::Value> {
    let output = agent::run(&[&["doctor", "--json"], flags].concat())?;
    ensure!(output.status.success(), "doctor: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn source<'a>(report: &'a serde_json::Value, name: &str) -> Result<&'a serde_json::Value> {
    let sources = json::list(report, "sources")?;
    sources.iter().find(|source| source["source"] == name).with_context(|| format!("no source {name}"))
}

/// The names of a source's rungs, best first, which the agent tells whoever asks for another one.
fn ladder(source: &str) -> Result<Vec<String>> {
    let output = agent::run(&["doctor", "--set", &format!("{source}.rung=no_such_rung")])?;
    let words = String::from_utf8(output.stderr)?;
    let names = words.trim().rsplit_once("it takes ").with_context(|| format!("no rungs named: {words}"))?.1;
    Ok(names.split(", ").map(str::to_owned).collect())
}

#[test]
fn every_source_takes_the_best_rung_that_this_kernel_is_known_to_hold() -> Result<()> {
    let _machine = Machine::claim()?;
    let (expected, report) = (Expected::here()?, doctor(&[])?);
    let known: Vec<_> = json::list(&report, "sources")?.iter().filter_map(|told| told["source"].as_str()).collect();
    ensure!(known.iter().all(|name| SOURCES.contains(name)), "the matrix does not know each of {known:?}");
    let mut taken = serde_json::Map::new();
    for name in SOURCES {
        let told = source(&report, name)?;
        let Some(&best) = expected.rungs(name)?.first() else {
            expect::exactly(&format!("{name}: {told}"), json::text(told, "state")?, "unavailable")?;
            expect::exactly(&format!("{name} is too young for this kernel"), &told["too_old"], &json!(true))?;
            taken.insert(name.to_owned(), "–".into());
            continue;
        };
        let rung = json::text(told, "rung").with_context(|| format!("{name}: {told}"))?;
        expect::exactly(name, rung, best)?;
        expect::exactly(&format!("{name} does without"), &told["missing"], &json!([]))?;
        taken.insert(name.to_owned(), rung.into());
    }
    // For the table that the matrix makes. The console may be in the middle of a line.
    let line = format!("\n@vm {}\n", json!({ "rungs": taken }));
    fs::write("/dev/console", line).context("cannot write to the console")
}

#[test]
fn every_rung_holds_where_it_is_known_to_and_is_refused_with_a_reason_elsewhere() -> Result<()> {
    let _machine = Machine::claim()?;
    let expected = Expected::here()?;
    for name in SOURCES {
        let hold = expected.rungs(name)?;
        let ladder = ladder(name)?;
        ensure!(hold.iter().all(|rung| ladder.iter().any(|known| known == rung)), "{name} has only {ladder:?}");
        for rung in &ladder {
            // The other sources keep the report from being one of failure.
            let report = doctor(&["--set", &format!("{name}.rung={rung}")])?;
            let told = source(&report, name)?;
            if hold.contains(&rung.as_str()) {
                expect::exactly(&format!("{name} by {rung}: {told}"), &told["rung"], &json!(rung))?;
            } else {
                expect::exactly(&format!("{name} by {rung}"), json::text(told, "state")?, "unavailable")?;
                let refused = json::list(told, "refused")?.iter().find(|refusal| refusal["rung"] == **rung);
                let reason = json::text(refused.context("no reason")?, "reason")?;
                ensure!(
                    reason.contains("this kernel"),
                    "{name} by {rung} is refused for no reason of the kernel's: {reason}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn every_function_and_tracepoint_has_the_arguments_that_the_programs_know() -> Result<()> {
    let _machine = Machine::claim()?;
    let report = doctor(&[])?;
    expect::exactly("changed hooks", json::at(&report, "facts.changed")?, &json!({}))?;
    let expected = Expected::here()?;
    expect::exactly("arguments that differ", json::at(&report, "facts.arguments")?, &expected.arguments()?)?;
    for helper in ["task_helper", "registers_helper"] {
        let presence = if expected.has(helper)? { "yes" } else { "no" };
        expect::exactly(helper, json::text(&report, &format!("facts.{helper}"))?, presence)?;
    }
    Ok(())
}

#[test]
fn every_known_signature_is_that_of_some_kernel_of_the_matrix() -> Result<()> {
    let all = expected::all()?;
    for signature in SIGNATURES {
        let rows = SIGNATURES.iter().filter(|other| other.name == signature.name).count();
        let arguments = signature.arguments.join(", ");
        let has = |kernel: &Table| kernel["arguments"].get(signature.name).and_then(Value::as_str) == Some(&arguments);
        let found = all.values().filter_map(Value::as_table).any(has);
        ensure!(rows == 1 || found, "no kernel has {}({arguments})", signature.name);
    }
    Ok(())
}

#[test]
fn the_peak_of_a_cgroup_is_what_this_kernel_can_tell() -> Result<()> {
    const HELD: u64 = 8 << 20;
    let _machine = Machine::claim()?;
    let expected = Expected::here()?;
    let agent = Agent::start(&[])?;
    let cgroup = Cgroup::new("files")?;
    let directory = cgroup.hierarchy().root.join(cgroup.path().trim_start_matches('/'));
    let peak = fs::OpenOptions::new().read(true).write(true).open(directory.join("memory.peak"));
    let found = match peak {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "absent",
        Err(error) => return Err(error.into()),
        Ok(mut file) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            ensure!(text.trim().parse::<u64>().is_ok(), "memory.peak says {text:?}");
            if file.write(b"reset\n").is_ok() { "reset_per_open_file" } else { "read_only" }
        }
    };
    expect::exactly("memory.peak", found, expected.text("memory_peak")?)?;
    // And the agent tells by what it knows.
    let source = if found == "absent" { "observed" } else { "memory.peak" };
    let mut workload = Workload::start()?;
    cgroup.add(workload.pid())?;
    workload.run(&format!("hold {HELD}"))?;
    let told = wait_until("its peak", PATIENCE, || {
        let told = agent.cgroup(&cgroup.path())?;
        Ok(told.filter(|told| told["memory"]["peak_bytes"].as_u64().is_some_and(|peak| peak >= HELD)))
    })?;
    expect::exactly("known by", json::text(&told, "memory.peak_source")?, source)?;
    agent.stop()
}
