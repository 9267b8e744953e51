//! Marks of a training loop: posted, carried by the snapshots that follow, recorded, and a CSV file for each epoch.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{fs, path::Path};
use tests::{
    Agent, Machine, agent,
    clock::{PATIENCE, wait_until},
    expect, http, json,
};

const MARKS: &str = "/v1/marks";

fn mark(agent: &Agent, mark: &Value) -> Result<()> {
    let answer = http::post(agent.socket(), MARKS, &mark.to_string())?;
    expect::exactly("status", answer.status, 202)
}

/// The steps in a file's first column.
fn steps(file: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text.lines().skip(1).filter_map(|line| Some(line.split_once(',')?.0.to_owned())).collect())
}

#[test]
fn marks_are_in_snapshots_recordings_and_csv() -> Result<()> {
    let _machine = Machine::claim()?;
    let directory = tempfile::tempdir()?;
    let (logs, record) = (directory.path().join("logs"), directory.path().join("a.rec"));
    let agent = Agent::start(&["--csv", &logs.to_string_lossy(), "--record", &record.to_string_lossy()])?;
    agent.settle()?;
    expect::exactly("before any mark", json::at(&agent.get("/v1/snapshot")?, "mark")?, &Value::Null)?;
    for (posted, told) in [
        (
            json!({"step": 1000, "epoch": 1, "labels": {"run": "a"}}),
            json!({"step": 1000, "epoch": 1, "labels": {"run": "a"}}),
        ),
        (json!({"step": 1010}), json!({"step": 1010, "epoch": 1, "labels": {"run": "a"}})),
        (json!({"step": 2000, "epoch": 2}), json!({"step": 2000, "epoch": 2, "labels": {"run": "a"}})),
    ] {
        mark(&agent, &posted)?;
        agent.settle()?;
        expect::exactly("the mark", json::at(&agent.get("/v1/snapshot")?, "mark")?, &told)?;
        // A row of it.
        agent.settle()?;
    }
    agent.stop()?;

    let (first, second) = (steps(&logs.join("epoch_1.csv"))?, steps(&logs.join("epoch_2.csv"))?);
    println!("steps of epoch 1: {first:?}, of epoch 2: {second:?}");
    ensure!(first.iter().all(|step| step == "1000" || step == "1010"), "{first:?}");
    ensure!(first.first().is_some_and(|s| s == "1000") && first.last().is_some_and(|s| s == "1010"), "{first:?}");
    ensure!(!second.is_empty() && second.iter().all(|step| step == "2000"), "{second:?}");
    ensure!(!steps(&logs.join("epoch_0.csv"))?.is_empty(), "nothing from before the first mark");
    let output = agent::run(&["query", "--from", &record.to_string_lossy(), "/v1/snapshot"])?;
    let recorded: Value = serde_json::from_slice(&output.stdout)?;
    let told = json!({"step": 2000, "epoch": 2, "labels": {"run": "a"}});
    expect::exactly("the mark recorded", json::at(&recorded, "mark")?, &told)
}

#[test]
fn bad_marks_change_nothing() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let labels: serde_json::Map<_, _> = (0..33).map(|n| (format!("l{n}"), "x".into())).collect();
    for (body, status, words) in [
        (json!({"step": -3}).to_string(), 400, "step takes"),
        (json!({"epoch": 1.5}).to_string(), 400, "epoch takes"),
        (json!({"labels": labels}).to_string(), 400, "labels takes at most 32"),
        (json!({"labels": {"a": "x".repeat(257)}}).to_string(), 400, "labels.a takes"),
        (json!({"batch": 1}).to_string(), 400, "batch"),
        (format!("{{\"step\": 1{}}}", " ".repeat(16 << 10)), 413, "16384 bytes"),
    ] {
        let answer = http::post(agent.socket(), MARKS, &body)?;
        expect::exactly(words, answer.status, status)?;
        let problem: Value = serde_json::from_str(&answer.body)?;
        ensure!(json::text(&problem, "detail")?.contains(words), "{problem}");
    }
    let answer = http::get(agent.socket(), MARKS)?;
    expect::exactly("GET", (answer.status, answer.headers.get("allow").map(String::as_str)), (405, Some("POST")))?;
    agent.settle()?;
    expect::exactly("the mark", json::at(&agent.get("/v1/snapshot")?, "mark")?, &Value::Null)?;
    agent.stop()
}

#[test]
fn a_flood_of_marks_ends_with_the_last() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    for step in 0..500 {
        mark(&agent, &json!({ "step": step }))?;
    }
    wait_until("the last mark", PATIENCE, || {
        Ok((agent.get("/v1/snapshot")?["mark"]["step"] == json!(499)).then_some(()))
    })?;
    agent.stop()
}
