//! Containers by their names, against what the runtimes say of them.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use tests::{
    Agent, Cgroup, Machine, Workload,
    clock::{PATIENCE, wait_until},
    expect, json,
};

const ID: &str = "0f3c7a1be5d24c6890ab12cd34ef56ab78901234567890abcdefabcdefabcd01";
const POD_UID: &str = "6f1d3c2e-0b7a-4f5e-9c1d-2a3b4c5d6e7f";

/// The container of a process, when something is known under `field`.
fn container_with(agent: &Agent, pid: u32, field: &str) -> Result<Value> {
    wait_until(&format!("the {field} of process {pid}'s container"), PATIENCE, || {
        let mut processes = agent.processes_with(pid)?;
        let container = processes.pop().map(|mut process| process["container"].take()).unwrap_or_default();
        Ok((!container[field].is_null()).then_some(container))
    })
}

/// The rule of the tree with this root.
#[cfg(not(feature = "vm"))]
fn rule_of(agent: &Agent, root: u32) -> Result<Option<String>> {
    let answer = agent.get("/v1/trees?limit=100000")?;
    let tree = json::list(&answer, "trees")?.iter().find(|tree| tree["pid"] == root);
    Ok(tree.with_context(|| format!("no tree of {root}"))?["rule"].as_str().map(str::to_owned))
}

/// Pids of the processes that run in a container; those of a runtime that prepared it have gone.
fn pids_in(agent: &Agent, container: &str) -> Result<Vec<u64>> {
    let answer = agent.get(&format!("/v1/processes?container={container}"))?;
    let running = json::list(&answer, "processes")?.iter().filter(|process| process["state"] == "running");
    running.map(|process| json::count(process, "pid")).collect()
}

#[test]
fn the_kubelets_link_names_a_container_and_all_in_it() -> Result<()> {
    let _machine = Machine::claim()?;
    let logs = tempfile::tempdir()?;
    let agent = Agent::start(&["--set", &format!("containers.logs={}", logs.path().display())])?;
    let top = Cgroup::new("kubepods")?;
    let pod = top.child(&format!("pod{POD_UID}"))?;
    let container = pod.child(ID)?;
    let inner = container.child("inner")?;
    let workload = Workload::start()?;
    inner.add(workload.pid())?;
    let mut expected = json!({
        "id": ID, "runtime": null, "name": null, "pod": null, "namespace": null, "pod_uid": POD_UID, "image": null,
    });
    expect::exactly("before the link", container_with(&agent, workload.pid(), "id")?, expected.clone())?;

    // The log itself need not be there: only the link's name tells.
    symlink("nowhere", logs.path().join(format!("web-7d9f-x2x_shop_nginx-{ID}.log")))?;
    let named = container_with(&agent, workload.pid(), "name")?;
    for (field, value) in [("name", "nginx"), ("pod", "web-7d9f-x2x"), ("namespace", "shop")] {
        expected[field] = value.into();
    }
    expect::exactly("after the link", &named, &expected)?;
    for (path, value) in [(&container, &expected), (&inner, &expected), (&pod, &Value::Null)] {
        let told = agent.cgroup(&path.path())?.with_context(|| format!("{} is not listed", path.path()))?;
        expect::exactly(&path.path(), &told["container"], value)?;
    }
    let tree = agent.get("/v1/trees?limit=100000")?;
    let tree = json::list(&tree, "trees")?.iter().find(|tree| tree["pid"] == workload.pid()).cloned();
    expect::exactly("its tree", &tree.context("no tree of the workload")?["container"], &expected)?;
    for asked in ["nginx", ID, &ID[..12]] {
        expect::exactly(asked, pids_in(&agent, asked)?, vec![u64::from(workload.pid())])?;
    }
    let cgroups = agent.get("/v1/cgroups?container=nginx")?;
    expect::exactly("cgroups in it", json::count(&cgroups, "total")?, 2)?;
    let test = agent.process(std::process::id())?;
    expect::exactly("the test itself", &test["container"], &Value::Null)?;
    agent.stop()
}

#[cfg(not(feature = "vm"))]
mod real {
    use super::*;
    use tests::{Podman, Runc};

    #[test]
    fn podmans_containers_have_their_names() -> Result<()> {
        let _machine = Machine::claim()?;
        let podman = Podman::new("podman")?;
        podman.start("before")?;
        let agent = Agent::start(&[
            "--set",
            &format!("containers.storage={}", podman.storage().display()),
            "--set",
            &format!("containers.storage_run={}", podman.storage_run().display()),
        ])?;
        podman.start("after")?;
        // Those that prepared them have gone.
        agent.settle()?;
        for name in ["before", "after"] {
            let pid: u32 = podman.inspect(name, "{{.State.Pid}}")?.parse()?;
            let container = container_with(&agent, pid, "name")?;
            let id = podman.inspect(name, "{{.Id}}")?;
            expect::exactly("name", json::text(&container, "name")?, &podman.inspect(name, "{{.Name}}")?)?;
            expect::exactly("id", json::text(&container, "id")?, &id)?;
            expect::exactly("runtime", json::text(&container, "runtime")?, "podman")?;
            for asked in [name, &id[..12]] {
                expect::exactly(asked, pids_in(&agent, asked)?, vec![u64::from(pid)])?;
            }
            expect::exactly("rule of its tree", rule_of(&agent, pid)?, Some("container".to_owned()))?;
            let monitor: u32 = podman.inspect(name, "{{.State.ConmonPid}}")?.parse()?;
            expect::exactly("its monitor", &agent.process(monitor)?["container"], &Value::Null)?;
        }
        agent.stop()
    }

    #[test]
    fn a_container_of_runc_in_a_pods_cgroup_has_the_kubelets_names() -> Result<()> {
        let _machine = Machine::claim()?;
        let logs = tempfile::tempdir()?;
        symlink("nowhere", logs.path().join(format!("web-0_shop_nginx-{ID}.log")))?;
        let agent = Agent::start(&["--set", &format!("containers.logs={}", logs.path().display())])?;
        let runc = Runc::start(ID, &format!("burstable/pod{POD_UID}"))?;
        // Those that prepared it have gone.
        agent.settle()?;
        let container = container_with(&agent, runc.pid()?, "name")?;
        for (field, value) in [("id", ID), ("pod_uid", POD_UID), ("name", "nginx"), ("pod", "web-0")] {
            expect::exactly(field, json::text(&container, field)?, value)?;
        }
        expect::exactly("in it", pids_in(&agent, "nginx")?, vec![u64::from(runc.pid()?)])?;
        expect::exactly("rule of its tree", rule_of(&agent, runc.pid()?)?, Some("container".to_owned()))?;
        agent.stop()
    }
}

#[cfg(feature = "cri")]
mod cri {
    use super::*;
    use anyhow::ensure;
    use std::path::Path;
    use tests::{
        Containerd,
        containerd::{IMAGE, Pod, Running},
    };

    const POD: Pod = Pod { name: "web-0", namespace: "shop", uid: POD_UID };
    const OTHER_UID: &str = "0a9b8c7d-0b7a-4f5e-9c1d-2a3b4c5d6e7f";

    /// What is to be known of a pod's containers, as who kept their names told it.
    fn check_names(agent: &Agent, containerd: &Containerd, running: &Running, runtime: &Value) -> Result<()> {
        let of_pod = json!({
            "id": running.pod, "runtime": runtime, "name": null, "pod": "web-0", "namespace": "shop", "pod_uid": POD_UID,
            "image": null,
        });
        let mut of_container = of_pod.clone();
        for (field, value) in [("id", &*running.container), ("name", "nginx"), ("image", IMAGE)] {
            of_container[field] = value.into();
        }
        for (id, known, expected) in [(&running.pod, "pod", of_pod), (&running.container, "image", of_container)] {
            let told = container_with(agent, containerd.pid_of(id)?, known)?;
            expect::exactly(id, &told, &expected)?;
        }
        Ok(())
    }

    fn agent(containerd: Option<&Containerd>, bundles: &Path, logs: &Path) -> Result<Agent> {
        let socket = containerd.map(|containerd| containerd.socket().display().to_string()).unwrap_or_default();
        let settings = [
            format!("containers.logs={}", logs.display()),
            format!("containers.containerd={}", bundles.display()),
            format!("containers.cri={socket}"),
        ];
        let settings: Vec<_> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        Agent::start(&[&["--tick", "100ms"][..], &settings].concat())
    }

    #[test]
    fn a_runtime_tells_what_no_file_tells_and_while_it_hangs_nobody_waits() -> Result<()> {
        let _machine = Machine::claim()?;
        let mut containerd = Containerd::start()?;
        let running = containerd.run(POD, "nginx")?;
        let (nowhere, logs) = (tempfile::tempdir()?, tempfile::tempdir()?);
        // Its bundles tell the same, and who runs them.
        let by_files = agent(None, &containerd.bundles(), nowhere.path())?;
        check_names(&by_files, &containerd, &running, &"containerd".into())?;
        by_files.stop()?;

        // A link tells of one of them all but the image.
        symlink("nowhere", logs.path().join(format!("web-0_shop_nginx-{}.log", running.container)))?;
        containerd.signal(libc::SIGSTOP)?;
        let agent = agent(Some(&containerd), nowhere.path(), logs.path())?;
        let mut times = Vec::new();
        wait_until("that it hangs to be said", PATIENCE, || {
            times.push(json::count(&agent.get("/v1/health")?, "time_ns")?);
            Ok(agent.words().contains("no answer within 2s").then_some(()))
        })?;
        times.dedup();
        ensure!(times.len() > 3, "{} ticks in these two seconds", times.len());
        containerd.signal(libc::SIGCONT)?;
        check_names(&agent, &containerd, &running, &Value::Null)?;
        ensure!(agent.words().contains("answers again"), "{}", agent.words());
        let later = containerd.run(Pod { name: "web-1", uid: OTHER_UID, ..POD }, "redis")?;
        let told = container_with(&agent, containerd.pid_of(&later.container)?, "pod")?;
        expect::exactly("one that began later", [&told["name"], &told["pod"]], [&json!("redis"), &json!("web-1")])?;
        agent.stop()
    }
}
