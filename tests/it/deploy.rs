//! The files of `deploy/`: what systemd's own analysis says of the unit, and that the DaemonSet gives the agent what it
//! needs. systemd-analyze(1) comes with systemd, so not in the virtual machines.

use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tests::{Agent, Machine, agent, expect};
use yaml_rust2::{Yaml, YamlLoader};

/// How much the service is exposed at most, in tenths, as systemd counts: 30 of its 100 were measured, for each of
/// which the unit has a reason.
const EXPOSURE_AT_MOST: &str = "30";

fn deploy(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// The unit in a directory of its own, with a program that is there.
fn unit_for_analysis(directory: &Path) -> Result<PathBuf> {
    let (unit, program) = (deploy("monitor.service")?, agent::binary()?);
    let installed = "ExecStart=/usr/local/bin/monitor";
    ensure!(unit.contains(installed), "the unit does not start the installed program");
    let path = directory.join("monitor.service");
    fs::write(&path, unit.replace(installed, &format!("ExecStart={}", fs::canonicalize(program)?.display())))?;
    Ok(path)
}

fn analyse(arguments: &[&str], unit: &Path) -> Result<String> {
    let output = Command::new("systemd-analyze").args(arguments).arg(unit).output();
    let output = output.context("cannot start systemd-analyze: install the package systemd")?;
    let words = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "systemd-analyze {arguments:?}:\n{words}");
    Ok(words)
}

/// The settings of that name in the unit.
fn settings<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

/// The DaemonSet among the documents.
fn daemon_set() -> Result<Yaml> {
    let documents = YamlLoader::load_from_str(&deploy("daemonset.yaml")?)?;
    documents.into_iter().find(|document| document["kind"].as_str() == Some("DaemonSet")).context("no DaemonSet")
}

fn texts(list: &Yaml) -> Result<Vec<&str>> {
    list.as_vec().context("not a list")?.iter().map(|text| text.as_str().context("not a text")).collect()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let unit = unit_for_analysis(directory.path())?;
    expect::exactly("complaints", analyse(&["verify", "--man=no"], &unit)?.trim(), "")?;
    analyse(&["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE_AT_MOST], &unit).map(|_| ())
}

#[test]
fn the_unit_gives_the_five_capabilities_and_awaits_what_the_agent_says() -> Result<()> {
    let unit = deploy("monitor.service")?;
    let mut given: Vec<_> = settings(&unit, "CapabilityBoundingSet").join(" ").split(' ').map(str::to_owned).collect();
    given.sort();
    let five = ["CAP_BPF", "CAP_DAC_READ_SEARCH", "CAP_PERFMON", "CAP_SYSLOG", "CAP_SYS_PTRACE"];
    expect::exactly("capabilities", given, five.map(str::to_owned).to_vec())?;
    expect::exactly("type", settings(&unit, "Type"), vec!["notify"])?;
    expect::exactly("watchdogs", settings(&unit, "WatchdogSec").len(), 1)?;
    let start = settings(&unit, "ExecStart").join(" ");
    let arguments: Vec<_> = start.split(' ').skip(1).collect();
    expect::exactly("arguments", arguments, vec!["run", "--quiet"])
}

#[test]
fn the_daemon_set_gives_the_agent_what_it_needs() -> Result<()> {
    let set = daemon_set()?;
    let (template, labels) = (&set["spec"]["template"], &set["spec"]["selector"]["matchLabels"]);
    expect::exactly("labels", &template["metadata"]["labels"], labels)?;
    let pod = &template["spec"];
    expect::exactly("the node's pids", pod["hostPID"].as_bool(), Some(true))?;
    expect::exactly("variables for services", pod["enableServiceLinks"].as_bool(), Some(false))?;
    let container = &pod["containers"][0];
    expect::exactly("the node's cgroups", container["securityContext"]["privileged"].as_bool(), Some(true))?;

    let volumes = pod["volumes"].as_vec().context("no volumes")?;
    let mounts = container["volumeMounts"].as_vec().context("no mounts")?;
    for mount in mounts {
        ensure!(volumes.iter().any(|volume| volume["name"] == mount["name"]), "no volume for {mount:?}");
    }
    for path in ["/sys/fs/cgroup", "/run/monitor", "/var/log/containers", "/var/log/pods"] {
        let mount = mounts.iter().find(|mount| mount["mountPath"].as_str() == Some(path));
        let name = &mount.with_context(|| format!("{path} is not mounted"))?["name"];
        let volume = volumes.iter().find(|volume| volume["name"] == *name).context("no volume")?;
        expect::exactly("path on the node", volume["hostPath"]["path"].as_str(), Some(path))?;
    }
    Ok(())
}

#[test]
fn the_agent_takes_the_daemon_sets_settings_and_answers_its_probes() -> Result<()> {
    let _machine = Machine::claim()?;
    let set = daemon_set()?;
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let variables = container["env"].as_vec().context("no variables")?;
    let settings: Vec<_> = variables
        .iter()
        .filter_map(|variable| Some((variable["name"].as_str()?, variable["value"].as_str()?)))
        .filter(|(name, _)| name.starts_with("MONITOR_"))
        .collect();
    ensure!(!settings.is_empty(), "it sets nothing: nothing was tried");
    let output = agent::run_with(&["config"], &settings)?;
    ensure!(output.status.success(), "{settings:?}: {}", String::from_utf8_lossy(&output.stderr));
    expect::exactly("arguments", texts(&container["args"])?, vec!["run", "--quiet"])?;

    let agent = Agent::start(&[])?;
    let socket = agent.socket().to_string_lossy().into_owned();
    let mut probes = Vec::new();
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let command = texts(&container[probe]["exec"]["command"]).with_context(|| probe.to_owned())?;
        let [program, arguments @ ..] = &command[..] else { bail!("{probe} runs nothing") };
        let entry = format!("ENTRYPOINT [\"{program}\"]");
        ensure!(deploy("Containerfile")?.contains(&entry), "{probe} runs {program}, which the image does not have");
        let arguments = [arguments, &["--socket", &socket]].concat();
        let output = agent::run(&arguments)?;
        ensure!(output.status.success(), "{probe}: {}", String::from_utf8_lossy(&output.stderr));
        probes.push(arguments.into_iter().map(str::to_owned).collect::<Vec<_>>());
    }
    agent.stop()?;
    for probe in probes {
        let probe: Vec<_> = probe.iter().map(String::as_str).collect();
        ensure!(!agent::run(&probe)?.status.success(), "{probe:?} succeeds without an agent");
    }
    Ok(())
}
