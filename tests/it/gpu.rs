//! GPUs, through a library that the agent loads as it would NVIDIA's: what its script says is the truth.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tests::{
    Agent, Cgroup, LoopDevice, Machine, Workload,
    agent::run_with,
    clock::{PATIENCE, wait_until},
    expect, json, proc,
};

const GIB: u64 = 1 << 30;
/// `NVML_ERROR_DRIVER_NOT_LOADED`.
const DRIVER_NOT_LOADED: u32 = 9;
/// `NVML_ERROR_GPU_IS_LOST`.
const GPU_IS_LOST: u32 = 15;
/// `NVML_ERROR_UNKNOWN`.
const UNKNOWN: u32 = 999;

/// The stand-in and its script.
struct Driver {
    library: PathBuf,
    script: PathBuf,
    _directory: TempDir,
}

impl Driver {
    fn new(script: &Value) -> Result<Self> {
        let test = std::env::current_exe()?;
        let library = test.with_file_name("libnvml_standin.so");
        ensure!(library.exists(), "no {}: it is built with these tests", library.display());
        let directory = tempfile::tempdir()?;
        let driver = Self { library, script: directory.path().join("script.json"), _directory: directory };
        driver.says(script)?;
        Ok(driver)
    }

    /// Changes the script, all at once.
    fn says(&self, script: &Value) -> Result<()> {
        let next = self.script.with_extension("next");
        fs::write(&next, script.to_string())?;
        Ok(fs::rename(next, &self.script)?)
    }

    /// An agent that loads it, reads GPUs every 100 ms, and tries again after half a second.
    fn agent(&self, flags: &[&str]) -> Result<Agent> {
        let library = format!("gpu.library={}", self.library.display());
        let own = ["--set", &library, "--set", "gpu.interval=100ms", "--set", "gpu.retry=500ms"];
        let script = self.script.to_str().context("a path that is no text")?;
        Agent::start_with(&[&own, flags].concat(), &[(nvml_standin::SCRIPT, script)])
    }

    /// As [`Self::agent`], once it has its first reading.
    fn live_agent(&self) -> Result<Agent> {
        let agent = self.agent(&[])?;
        standing(&agent, "live")?;
        Ok(agent)
    }
}

/// One that tells everything.
fn h200() -> Value {
    json!({
        "nvmlDeviceGetUUID": "GPU-5f6c0b4e-0000-1111-2222-333344445555",
        "nvmlDeviceGetName": "NVIDIA H200",
        "nvmlDeviceGetUtilizationRates": [87, 31],
        "nvmlDeviceGetMemoryInfo_v2": [150_754_820_096_u64, 37_688_705_024_u64],
        "nvmlDeviceGetTemperature": 61,
        "nvmlDeviceGetPowerUsage": 512_345,
        "nvmlDeviceGetEnforcedPowerLimit": 700_000,
        "nvmlDeviceGetClockInfo": [1980, 1970, 3201],
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4 | 0x40,
        "nvmlDeviceGetMigMode": 0,
        "nvmlDeviceGetComputeRunningProcesses_v3": [],
        "nvmlDeviceGetGraphicsRunningProcesses_v3": [],
    })
}

fn with(mut gpu: Value, answers: Value) -> Value {
    for (function, answer) in answers.as_object().into_iter().flatten() {
        gpu[function] = answer.clone();
    }
    gpu
}

fn driver_of(gpus: &[Value]) -> Value {
    json!({ "nvmlSystemGetDriverVersion": "580.82.07", "gpus": gpus })
}

/// Waits until GPUs stand so.
fn standing(agent: &Agent, state: &str) -> Result<Value> {
    gpus_when(agent, &format!("GPUs to be {state}"), |answer| answer["state"] == state)
}

/// Waits until the answer fits.
fn gpus_when(agent: &Agent, what: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
    wait_until(what, PATIENCE, || Ok(Some(agent.get("/v1/gpus")?).filter(&fits)))
}

/// The thread that asks the driver, by its name in /proc.
fn has_thread(agent: &Agent) -> Result<bool> {
    Ok(proc::of_threads(agent.pid(), "comm")?.iter().any(|name| name.trim() == "gpu"))
}

fn has_loaded(agent: &Agent, library: &str) -> Result<bool> {
    Ok(fs::read_to_string(format!("/proc/{}/maps", agent.pid()))?.contains(library))
}

#[test]
fn two_gpus_are_told_as_the_driver_tells_them() -> Result<()> {
    let _machine = Machine::claim()?;
    let second = json!({
        "nvmlDeviceGetUUID": "GPU-2",
        "nvmlDeviceGetName": "NVIDIA T4",
        "nvmlDeviceGetUtilizationRates": [0, 0],
        "nvmlDeviceGetMemoryInfo_v2": [16 * GIB, 0],
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0,
        "nvmlDeviceGetComputeRunningProcesses_v3": [],
    });
    let driver = Driver::new(&driver_of(&[h200(), second]))?;
    let agent = driver.live_agent()?;
    let answer = agent.get("/v1/gpus")?;
    expect::exactly("total", json::count(&answer, "total")?, 2)?;
    let mut gpus = json::list(&answer, "gpus")?.clone();
    for gpu in &mut gpus {
        let age = json::number(gpu, "age_seconds")?;
        ensure!((0.0..5.0).contains(&age), "a reading of {age} s ago");
        gpu.as_object_mut().context("no object")?.remove("age_seconds");
    }
    let first = json!({
        "index": 0, "uuid": "GPU-5f6c0b4e-0000-1111-2222-333344445555", "name": "NVIDIA H200", "failure": null,
        "utilization_ratio": 0.87, "memory_utilization_ratio": 0.31, "memory_used_bytes": 37_688_705_024_u64,
        "memory_total_bytes": 150_754_820_096_u64, "memory_ratio": 0.25, "temperature_celsius": 61, "power_watts": 512.345,
        "power_limit_watts": 700.0, "graphics_clock_hertz": 1_980_000_000_u64, "sm_clock_hertz": 1_970_000_000_u64,
        "memory_clock_hertz": 3_201_000_000_u64, "throttle_reasons": ["sw_power_cap", "hw_thermal_slowdown"], "mig": null,
        "processes": [],
    });
    ensure!((gpus[0]["memory_ratio"].as_f64().context("no ratio")? - 0.25).abs() < 1e-3, "{}", gpus[0]["memory_ratio"]);
    gpus[0]["memory_ratio"] = json!(0.25);
    expect::exactly("the first", &gpus[0], &first)?;
    // Zero where it is zero, null where the driver does not tell.
    let second = json!({
        "index": 1, "uuid": "GPU-2", "name": "NVIDIA T4", "failure": null, "utilization_ratio": 0.0,
        "memory_utilization_ratio": 0.0, "memory_used_bytes": 0, "memory_total_bytes": 16 * GIB, "memory_ratio": 0.0,
        "temperature_celsius": null, "power_watts": null, "power_limit_watts": null, "graphics_clock_hertz": null,
        "sm_clock_hertz": null, "memory_clock_hertz": null, "throttle_reasons": [], "mig": null, "processes": [],
    });
    expect::exactly("the second", &gpus[1], &second)?;
    expect::exactly("GPUs of the snapshot", json::list(&agent.get("/v1/snapshot")?, "gpus")?.len(), 2)?;
    for path in ["/v1/health", "/v1/doctor"] {
        // A reading that is late has a reason.
        let live =
            || Ok((*json::at(&agent.get(path)?, "gpu")? == json!({"state": "live", "reason": null})).then_some(()));
        wait_until(path, PATIENCE, live)?;
    }
    agent.stop()
}

#[test]
fn instances_of_a_gpu_in_mig_mode_are_told() -> Result<()> {
    let _machine = Machine::claim()?;
    let workload = Workload::start()?;
    let instance = |uuid: &str, slices: u32, mib: u64, processes: Value| {
        json!({
            "nvmlDeviceGetUUID": uuid,
            "nvmlDeviceGetMemoryInfo_v2": [mib << 20, 1 << 30],
            "nvmlDeviceGetAttributes_v2": [slices, slices, mib],
            "nvmlDeviceGetComputeRunningProcesses_v3": processes,
        })
    };
    let rows = json!([[workload.pid(), GIB, 1, 0], [workload.pid(), 3 * GIB, 2, 0]]);
    let a100 = json!({
        "nvmlDeviceGetUUID": "GPU-1",
        "nvmlDeviceGetName": "NVIDIA A100-SXM4-40GB",
        "nvmlDeviceGetMemoryInfo_v2": [42_505_273_344_u64, 5 * GIB],
        "nvmlDeviceGetMigMode": 1,
        "nvmlDeviceGetMaxMigDeviceCount": 7,
        "nvmlDeviceGetComputeRunningProcesses_v3": rows,
        "mig": [
            instance("MIG-a", 1, 4864, json!([rows[0]])),
            null,
            instance("MIG-b", 3, 19_968, json!([rows[1]])),
        ],
    });
    let driver = Driver::new(&driver_of(&[a100]))?;
    let agent = driver.live_agent()?;
    let gpus = agent.get("/v1/gpus")?;
    let told = json::list(&gpus["gpus"][0], "mig.instances")?;
    expect::exactly("instances", told.len(), 2)?;
    for (instance, index, uuid, profile, mib, held) in
        [(&told[0], 0, "MIG-a", "1g.5gb", 4864, GIB), (&told[1], 2, "MIG-b", "3g.20gb", 19_968, 3 * GIB)]
    {
        expect::exactly("its place", json::count(instance, "index")?, index)?;
        expect::exactly("its uuid", json::text(instance, "uuid")?, uuid)?;
        expect::exactly("its parent", json::text(instance, "parent_uuid")?, "GPU-1")?;
        expect::exactly("its profile", json::text(instance, "profile")?, profile)?;
        expect::exactly("its memory", json::count(instance, "memory_total_bytes")?, mib << 20)?;
        expect::exactly("its use", json::count(instance, "memory_used_bytes")?, GIB)?;
        let processes = json!([{"pid": workload.pid(), "memory_bytes": held}]);
        expect::exactly("its processes", json::at(instance, "processes")?, &processes)?;
    }
    expect::exactly("utilisation, which MIG mode has none of", &gpus["gpus"][0]["utilization_ratio"], &Value::Null)?;
    let process = agent.process(workload.pid())?;
    expect::exactly("of both instances", json::count(&process, "gpu_memory_bytes")?, 4 * GIB)?;
    agent.stop()
}

#[test]
fn memory_on_gpus_is_charged_to_process_tree_and_cgroup() -> Result<()> {
    let _machine = Machine::claim()?;
    let (mut workload, lone) = (Workload::start()?, Workload::start()?);
    let parent = Cgroup::new("gpu")?;
    let child = parent.child("trainer")?;
    child.add(workload.pid())?;
    let pids = workload.run("children 1")?;
    let worker = u32::try_from(json::list(&pids, "pids")?[0][0].as_u64().context("no pid")?)?;
    // It computes and draws on the first, and computes on the second, beside a process that nobody knows.
    let held = |function: &str, rows: Value| with(h200(), json!({ function: rows }));
    let first = with(
        held("nvmlDeviceGetComputeRunningProcesses_v3", json!([[workload.pid(), 10 * GIB], [lone.pid(), u64::MAX]])),
        json!({ "nvmlDeviceGetGraphicsRunningProcesses_v3": [[workload.pid(), 10 * GIB]] }),
    );
    let second = held(
        "nvmlDeviceGetComputeRunningProcesses_v3",
        json!([[workload.pid(), 2 * GIB], [worker, 5 * GIB], [u32::MAX, GIB]]),
    );
    let driver = Driver::new(&driver_of(&[first, second]))?;
    let agent = driver.live_agent()?;
    agent.settle()?;
    let memory = |value: &Value| json::count(value, "gpu_memory_bytes");
    let process = agent.process(workload.pid())?;
    expect::exactly("the process", memory(&process)?, 12 * GIB)?;
    expect::exactly("its child", memory(&agent.process(worker)?)?, 5 * GIB)?;
    expect::exactly(
        "one that the driver tells nothing of",
        &agent.process(lone.pid())?["gpu_memory_bytes"],
        &Value::Null,
    )?;
    let root = json::count(&process, "tree")?;
    let trees = agent.get("/v1/trees?sort=gpu_memory_bytes&limit=1")?;
    expect::exactly("the tree that holds most", json::count(&trees["trees"][0], "pid")?, root)?;
    expect::exactly("its memory", memory(&trees["trees"][0])?, 17 * GIB)?;
    for cgroup in [&parent, &child] {
        let told = agent.cgroup(&cgroup.path())?.with_context(|| format!("{} is not listed", cgroup.path()))?;
        expect::exactly(&cgroup.path(), memory(&told)?, 17 * GIB)?;
    }
    let gpus = agent.get("/v1/gpus")?;
    let mut rows =
        [json!({"pid": workload.pid(), "memory_bytes": 10 * GIB}), json!({"pid": lone.pid(), "memory_bytes": null})];
    rows.sort_by_key(|row| row["pid"].as_u64());
    expect::exactly("who is on the first", json::list(&gpus["gpus"][0], "processes")?.as_slice(), rows.as_slice())?;

    driver.says(&driver_of(&[h200(), h200()]))?;
    wait_until("the memory to be given back", PATIENCE, || {
        Ok(agent.process(workload.pid())?["gpu_memory_bytes"].is_null().then_some(()))
    })?;
    workload.run("release")?;
    drop(workload);
    agent.stop()
}

#[test]
fn sentinels_and_refusals_are_null() -> Result<()> {
    let _machine = Machine::claim()?;
    let strange = json!({
        "nvmlDeviceGetUUID": "GPU-1",
        "nvmlDeviceGetName": { "error": UNKNOWN },
        "nvmlDeviceGetUtilizationRates": [u32::MAX, 101],
        "nvmlDeviceGetMemoryInfo_v2": [16 * GIB, u64::MAX],
        "nvmlDeviceGetTemperature": u32::MAX - 17,
        "nvmlDeviceGetPowerUsage": u32::MAX,
        "nvmlDeviceGetEnforcedPowerLimit": { "error": UNKNOWN },
        "nvmlDeviceGetClockInfo": [u32::MAX, 1500, u32::MAX],
        "nvmlDeviceGetComputeRunningProcesses_v3": { "error": 4 },
    });
    let driver = Driver::new(&driver_of(&[strange]))?;
    let agent = driver.live_agent()?;
    let answer = agent.get("/v1/gpus")?;
    let gpu = answer["gpus"][0].as_object().context("no GPU")?;
    let known: Vec<&str> = gpu.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name.as_str()).collect();
    let mut expected = ["age_seconds", "index", "memory_total_bytes", "sm_clock_hertz", "uuid"];
    expected.sort_unstable();
    expect::exactly("what is known", known.as_slice(), expected.as_slice())?;
    agent.stop()
}

#[test]
fn a_driver_that_is_lost_comes_back() -> Result<()> {
    let _machine = Machine::claim()?;
    let workload = Workload::start()?;
    let rows = json!({ "nvmlDeviceGetComputeRunningProcesses_v3": [[workload.pid(), GIB]] });
    let well = driver_of(&[with(h200(), rows)]);
    let driver = Driver::new(&well)?;
    let agent = driver.live_agent()?;
    agent.settle()?;
    expect::exactly("before", json::count(&agent.process(workload.pid())?, "gpu_memory_bytes")?, GIB)?;

    driver.says(&json!({
        "nvmlInit_v2": { "error": DRIVER_NOT_LOADED },
        "nvmlDeviceGetCount_v2": { "error": UNKNOWN },
        "gpus": [],
    }))?;
    let lost = standing(&agent, "unavailable")?;
    expect::exactly("GPUs", json::list(&lost, "gpus")?.len(), 0)?;
    wait_until("the library to be refused", PATIENCE, || {
        Ok(json::text(&agent.get("/v1/gpus")?, "reason")?.contains("NVIDIA driver is not loaded").then_some(()))
    })?;
    expect::exactly("meanwhile", &agent.process(workload.pid())?["gpu_memory_bytes"], &Value::Null)?;
    let health = agent.get("/v1/health")?;
    expect::exactly("health", json::text(&health, "status")?, "degraded")?;
    let told = json::list(&health, "reasons")?.iter().any(|r| r.as_str().is_some_and(|r| r.starts_with("gpu: ")));
    ensure!(told, "no reason of the GPUs' in {health}");
    // Several tries, one word.
    sleep(Duration::from_secs(2));
    expect::exactly("times it said so", agent.words().matches("gpu: lost").count(), 1)?;

    driver.says(&well)?;
    let back = standing(&agent, "live")?;
    expect::exactly("GPUs", json::list(&back, "gpus")?.len(), 1)?;
    agent.settle()?;
    expect::exactly("after", json::count(&agent.process(workload.pid())?, "gpu_memory_bytes")?, GIB)?;
    expect::exactly("times it said so", agent.words().matches("gpu: GPUs read: 1").count(), 2)?;
    agent.stop()
}

#[test]
fn one_lost_gpu_takes_no_other_with_it() -> Result<()> {
    let _machine = Machine::claim()?;
    let other = with(h200(), json!({ "nvmlDeviceGetUUID": "GPU-2" }));
    let driver = Driver::new(&driver_of(&[h200(), other.clone()]))?;
    let agent = driver.live_agent()?;
    let dead = with(other.clone(), json!({ "nvmlDeviceGetHandleByIndex_v2": { "error": GPU_IS_LOST } }));
    driver.says(&driver_of(&[h200(), dead.clone()]))?;
    let answer = gpus_when(&agent, "GPU 1 to be lost", |answer| !answer["gpus"][1]["failure"].is_null())?;
    expect::exactly("its name", json::text(&answer["gpus"][1], "uuid")?, "GPU-2")?;
    expect::exactly("its utilisation", &answer["gpus"][1]["utilization_ratio"], &Value::Null)?;
    expect::exactly("the other's", json::number(&answer["gpus"][0], "utilization_ratio")?, 0.87)?;
    gpus_when(&agent, "the reason", |answer| answer["reason"].as_str().is_some_and(|r| r.starts_with("GPU 1: ")))?;
    // The driver is asked afresh some times meanwhile, and the GPU does not tell its name any more, whether it is still found or not.
    let functions = ["nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo_v2"];
    let mute = functions
        .into_iter()
        .fold(other.clone(), |gpu, function| with(gpu, json!({ function: { "error": GPU_IS_LOST } })));
    for lost in [dead, mute] {
        driver.says(&driver_of(&[h200(), lost]))?;
        sleep(Duration::from_secs(2));
        let answer = agent.get("/v1/gpus")?;
        ensure!(!answer["gpus"][1]["failure"].is_null(), "{answer}");
        expect::exactly("its name", json::text(&answer["gpus"][1], "uuid")?, "GPU-2")?;
    }
    expect::exactly("times it said so", agent.words().matches("gpu: GPU 1 does not answer").count(), 1)?;
    expect::exactly("the other", standing(&agent, "live")?["gpus"][0]["failure"].clone(), Value::Null)?;

    driver.says(&driver_of(&[h200(), other]))?;
    gpus_when(&agent, "GPU 1 to be back", |answer| answer["gpus"][1]["utilization_ratio"] == 0.87)?;
    agent.stop()
}

#[test]
fn a_driver_that_hangs_delays_nothing() -> Result<()> {
    const HANGS: Duration = Duration::from_secs(120);
    let _machine = Machine::claim()?;
    let well = driver_of(&[h200()]);
    let driver = Driver::new(&well)?;
    let agent = driver.live_agent()?;
    let mut hanging = well.clone();
    hanging["delay_ms"] = json!({ "nvmlDeviceGetPowerUsage": HANGS.as_millis() as u64 });
    driver.says(&hanging)?;
    let is_late = |answer: &Value| answer["reason"].as_str().is_some_and(|reason| reason.contains("has not answered"));
    gpus_when(&agent, "the driver to hang", is_late)?;

    let (mut times, mut oldest) = (Vec::new(), 0.0_f64);
    let begin = Instant::now();
    wait_until("readings of two seconds ago, and snapshots", PATIENCE, || {
        let answer = agent.get("/v1/gpus")?;
        times.push(json::count(&answer, "time_ns")?);
        times.dedup();
        oldest = oldest.max(json::number(&answer["gpus"][0], "age_seconds")?);
        expect::exactly("what is told meanwhile", json::number(&answer["gpus"][0], "utilization_ratio")?, 0.87)?;
        ensure!(is_late(&answer), "{}", answer["reason"]);
        Ok((oldest > 2.0 && times.len() >= 10).then_some(()))
    })?;
    let snapshots = times.len();
    println!("while it hung: {snapshots} snapshots in {:?}, readings up to {oldest} s old", begin.elapsed());
    expect::exactly("times it said so", agent.words().matches("gpu: the driver has not answered").count(), 1)?;

    driver.says(&well)?;
    let is_fresh = |answer: &Value| answer["reason"].is_null() && answer["gpus"][0]["age_seconds"].as_f64() < Some(1.0);
    gpus_when(&agent, "a fresh reading", is_fresh)?;
    // Nor does one that hangs keep the agent from ending.
    driver.says(&hanging)?;
    gpus_when(&agent, "the driver to hang again", is_late)?;
    agent.stop()
}

#[test]
fn a_host_without_the_library_is_told_once_and_costs_no_thread() -> Result<()> {
    let _machine = Machine::claim()?;
    let flags = ["--set", "gpu.library=/nowhere/libnvidia-ml.so.1", "--set", "gpu.retry=200ms"];
    let agent = Agent::start(&flags)?;
    let answer = gpus_when(&agent, "the library to be missed", |answer| {
        answer["reason"].as_str().is_some_and(|reason| reason.contains("/nowhere/libnvidia-ml.so.1"))
    })?;
    expect::exactly("state", json::text(&answer, "state")?, "unavailable")?;
    expect::exactly("GPUs", json::list(&answer, "gpus")?.len(), 0)?;
    sleep(Duration::from_secs(2));
    expect::exactly("times it said so", agent.words().matches("gpu: ").count(), 1)?;
    let reasons = agent.get("/v1/health")?["reasons"].to_string();
    ensure!(!reasons.contains("gpu"), "a host without GPUs is in good health: {reasons}");
    agent.stop()?;

    // With the time between two tries that is the default, there is no thread in between.
    let agent = Agent::start(&flags[..2])?;
    agent.settle()?;
    wait_until("the thread to end", PATIENCE, || Ok((!has_thread(&agent)?).then_some(())))?;
    agent.settle()?;
    ensure!(!has_thread(&agent)?, "a thread for GPUs that are not there");
    agent.stop()
}

#[test]
fn gpus_that_are_switched_off_cost_nothing() -> Result<()> {
    let _machine = Machine::claim()?;
    let driver = Driver::new(&driver_of(&[h200()]))?;
    let live = driver.live_agent()?;
    ensure!(
        has_loaded(&live, "libnvml_standin.so")? && has_thread(&live)?,
        "what is looked for is not there if it is on"
    );
    live.stop()?;

    let agent = driver.agent(&["--set", "gpu_monitoring=false"])?;
    agent.settle()?;
    ensure!(!has_loaded(&agent, "libnvml_standin.so")?, "the library is loaded");
    ensure!(!has_thread(&agent)?, "there is a thread");
    let answer = agent.get("/v1/gpus")?;
    expect::exactly("state", json::text(&answer, "state")?, "disabled")?;
    ensure!(!agent.words().contains("gpu"), "{}", agent.words());
    agent.stop()
}

#[test]
fn the_doctor_tells_how_gpus_stand() -> Result<()> {
    let _machine = Machine::claim()?;
    let driver = Driver::new(&driver_of(&[h200()]))?;
    let text = |path: &PathBuf| path.to_str().map(str::to_owned).context("a path that is no text");
    let (library, script) = (text(&driver.library)?, text(&driver.script)?);
    let doctor = |library: &str| -> Result<Value> {
        let variables = [("MONITOR_GPU_LIBRARY", library), (nvml_standin::SCRIPT, &script)];
        let output = run_with(&["doctor", "--json"], &variables)?;
        Ok(serde_json::from_slice::<Value>(&output.stdout)?["gpu"].clone())
    };
    expect::exactly("with a driver", doctor(&library)?, json!({"state": "live", "reason": null}))?;
    let without = doctor("/nowhere/nvml.so")?;
    expect::exactly("without", json::text(&without, "state")?, "unavailable")?;
    ensure!(json::text(&without, "reason")?.contains("install their driver or set gpu.library"), "{without}");
    Ok(())
}

/// An alert of this rule, if it fires.
fn firing(agent: &Agent, rule: &str) -> Result<Option<Value>> {
    let answer = agent.get("/v1/alerts")?;
    let fits = |alert: &&Value| alert["rule"] == rule && alert["state"] == "firing";
    Ok(json::list(&answer, "alerts")?.iter().find(fits).cloned())
}

#[test]
fn an_idle_gpu_whose_holder_loads_data_from_a_slow_disk_is_explained_by_that() -> Result<()> {
    let _machine = Machine::claim()?;
    let (device, cgroup) = (LoopDevice::new(64 << 20)?, Cgroup::new("trainer")?);
    // Below the device, each of its requests waits for its turn.
    let slow = Cgroup::slow_reads("slow", &device.go_to_disk()?, 20)?;
    let mut trainer = Workload::start()?;
    for cgroup in [&cgroup, &slow] {
        cgroup.add(trainer.pid())?;
    }
    let held = json!({
        "nvmlDeviceGetUtilizationRates": [12, 3],
        "nvmlDeviceGetComputeRunningProcesses_v3": [[trainer.pid(), 37 * GIB]],
    });
    let driver = Driver::new(&driver_of(&[with(h200(), held)]))?;
    let agent = driver.agent(&["--set", "alerts.gpu_hold=3s", "--set", "alerts.hold=1s"])?;
    standing(&agent, "live")?;
    // Each of these requests takes a twentieth of a second; its end is that of the test. It does nothing else, and what was in the
    // seconds before, or while the machine stood still, counts less and less.
    trainer.send(&format!("direct read {} 8000 4096", device.path().display()))?;
    let mut last = Value::Null;
    let told = wait_until("the alert, and that it waits most of its time", PATIENCE, || {
        let Some(told) = firing(&agent, "gpu_underutilization")? else { return Ok(None) };
        last = told.clone();
        let waits = json::number(&told, "evidence.gpu.causes.block_io")?;
        Ok((waits > 0.9).then_some(told))
    });
    let told = told.with_context(|| last.to_string())?;
    let evidence = json::at(&told, "evidence.gpu")?;
    expect::exactly("the cause", json::text(evidence, "cause")?, "block_io")?;
    expect::exactly("who holds it", json::count(evidence, "holder.tree")?, u64::from(trainer.pid()))?;
    let summary = json::text(&told, "summary")?;
    ensure!(summary.starts_with("GPU 0 underutilized: 12.0% (threshold: 50%)"), "{summary}");
    ensure!(summary.contains("waits for disks"), "{summary}");
    // It throttles, by the script.
    let slowed = wait_until("the throttling", PATIENCE, || firing(&agent, "gpu_throttling"))?;
    ensure!(json::text(&slowed, "summary")?.contains("sw_power_cap"), "{slowed}");
    drop(trainer);
    let over = wait_until("the alert's end", PATIENCE, || {
        driver.says(&driver_of(&[h200()]))?;
        let answer = agent.get("/v1/alerts")?;
        let fits = |alert: &&Value| alert["rule"] == "gpu_underutilization" && alert["state"] == "resolved";
        Ok(json::list(&answer, "alerts")?.iter().find(fits).cloned())
    })?;
    ensure!(json::count(&over, "resolved_ns")? > json::count(&over, "fired_ns")?, "{over}");
    agent.stop()
}
