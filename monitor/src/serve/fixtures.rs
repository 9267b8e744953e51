//! A small machine, made up, for tests of what is shown: every source but `address_space` counts.

use crate::{
    advise::{advisor::Advisor, budget::Budgets},
    alert::{
        Alerts, Standing,
        oom::{BlackBox, Stories},
    },
    config::Config,
    cost::{Cost, ProgramCost},
    coverage::{Coverage, Loss, Refusal, SourceCoverage, State},
    detect::{Findings, Watch},
    gpu::{Gpu, GpuMemory, GpuProcess, GpuStanding, MigInstance},
    ids::{CgroupId, DeviceId, ProcessId, Tgid},
    model::{
        container::Container,
        snapshot::{BlockDevice, Cgroup, Process, ProcessState, Snapshot, Subject, Tree},
        totals::{BlockIo, Histogram, Operation, Rates, Totals},
        usage::{CgroupUsage, HostUsage, Limit, Peak, TreeUsage},
    },
    picture::Picture,
    reading::{CgroupReading, HostMemory, HostReading, MemoryReading},
    sample::Runtime,
    source::Source,
    time::BootTime,
};
use monitor_common::{address_space, page_fault};
use std::{
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

const SECOND: u64 = 1_000_000_000;

/// Two trees that run, and one process that was killed.
pub(crate) fn snapshot() -> Snapshot {
    Snapshot {
        time: BootTime(100 * SECOND),
        number: 72,
        tick: Duration::from_secs(1),
        since: BootTime(28 * SECOND),
        mark: None,
        hierarchy: "v2",
        host: subject(7, 605.0, Some(150)),
        host_usage: None,
        processes: vec![
            process(10, 10, "python3", Some("/apps/a"), subject(3, 100.0, Some(100))),
            process(11, 10, "worker", Some("/apps/a"), subject(2, 5.0, None)),
            process(20, 20, "fio", Some("/apps/b"), subject(1, 500.0, Some(200))),
            Arc::new(killed()),
        ],
        trees: vec![
            tree(10, "python3", "python3 train.py --epochs 3", subject(5, 105.0, Some(100))),
            tree(20, "fio", "", subject(1, 500.0, Some(200))),
        ],
        cgroups: vec![
            cgroup(1, "/", subject(7, 605.0, Some(150))),
            cgroup(2, "/apps", subject(6, 605.0, Some(150))),
            cgroup(0, "/apps/a", subject(5, 105.0, Some(100))),
        ],
        block_devices: vec![Arc::new(BlockDevice {
            id: DeviceId(259 << 20 | 3),
            name: "nvme0n1".to_owned(),
            subject: subject(0, 0.0, Some(150)),
        })],
        io: Vec::new(),
        gpus: vec![Arc::new(gpu())],
        gpu: GpuStanding { state: State::Live, reason: None, failing: false },
        folded_processes_total: 4,
        coverage: Arc::new(coverage()),
        cost: Arc::new(cost()),
    }
}

/// All of that machine, though its parts are not of one moment.
pub(crate) fn picture(snapshot: Snapshot) -> Picture {
    let advisor = Arc::new(Advisor::new(&Config::default().advice).unwrap());
    let loads = Budgets::default().take(&snapshot);
    let (findings, alerts, stories) = (findings(), alerts(), stories());
    Picture { snapshot: Arc::new(snapshot), findings, alerts, stories, advisor, loads }
}

/// What is claimed after eleven minutes in which the first tree grew by a mebibyte a second.
pub(crate) fn findings() -> Arc<Findings> {
    static FINDINGS: LazyLock<Arc<Findings>> = LazyLock::new(|| {
        let (mut watch, mut findings) = (Watch::default(), Arc::default());
        for step in 0..=66 {
            findings = watch.take(&grown(10 * step, 64 + 10 * step), &[]);
        }
        findings
    });
    Arc::clone(&FINDINGS)
}

/// What is told of that machine where half of its memory is a warning.
pub(crate) fn alerts() -> Arc<Standing> {
    let mut config = Config::default();
    (config.thresholds.memory_warning, config.alerts.hold) = (0.3, Duration::ZERO);
    Alerts::new(config.thresholds, config.alerts)
        .take(&snapshot_with_memory(), &Findings::default(), SystemTime::UNIX_EPOCH)
        .0
}

/// Why a process of that machine was killed.
pub(crate) fn stories() -> Stories {
    let mut black_box = BlackBox::default();
    black_box.take(&snapshot_with_memory());
    black_box.take(&snapshot_with_memory());
    black_box.stories()
}

/// The machine after so many seconds, with so many mebibytes in the first tree.
pub(crate) fn grown(second: u64, mebibytes: u64) -> Snapshot {
    let snapshot = snapshot();
    let resident_bytes = Some(mebibytes << 20);
    let usage = TreeUsage { resident_bytes, anon_bytes: resident_bytes, swap_bytes: Some(0), ..TreeUsage::default() };
    let tree = Tree { usage: Some(usage), cgroup_path: Some("/apps/a".into()), ..(*snapshot.trees[0]).clone() };
    Snapshot {
        time: BootTime(snapshot.time.0 + second * SECOND),
        number: snapshot.number + second,
        trees: vec![Arc::new(tree), Arc::clone(&snapshot.trees[1])],
        ..snapshot
    }
}

fn subject(faults: u64, faults_per_second: f64, latency: Option<u16>) -> Subject {
    let mut page_fault = page_fault::Counts::default();
    page_fault[page_fault::WRITE] = faults;
    page_fault[page_fault::USER_KINDS + page_fault::READ + page_fault::PRESENT] = 1;
    let block_io = latency.map(|bucket| Box::new(block_io(bucket)));
    let io_wait = if block_io.is_some() { 0.25 } else { 0.0 };
    let rates = Rates {
        page_faults: faults_per_second,
        mapped_bytes: 4096.0 * faults_per_second,
        read_bytes: if block_io.is_some() { 8192.0 } else { 0.0 },
        io_wait,
        ..Rates::default()
    };
    let address_space = address_space::Totals { mmap_file_calls: 1, ..Default::default() };
    Subject { totals: Totals { page_fault, address_space, block_io, requests: None }, rates, ..Subject::default() }
}

fn block_io(bucket: u16) -> BlockIo {
    let mut io = BlockIo::default();
    io.operations[0] = Operation { count: 2, bytes: 8192, errors: 1, wait_ns: SECOND + SECOND / 2 };
    io.read_latency = Histogram::default();
    io.read_latency.add(bucket, 2);
    io
}

fn process(pid: u32, tree: u32, command: &str, cgroup: Option<&str>, subject: Subject) -> Arc<Process> {
    Arc::new(Process {
        id: id(pid),
        parent: Some(Tgid(1)),
        command: command.to_owned(),
        command_line: format!("{command} --pid {pid}"),
        cgroup: CgroupId(u64::from(pid) + 1000),
        cgroup_path: cgroup.map(Arc::from),
        container: None,
        tree: id(tree),
        state: ProcessState::Running,
        subject,
        usage: None,
        cpu_before_ns: 0,
        resident_when_killed: None,
    })
}

fn killed() -> Process {
    let process = process(30, 30, "hog", None, subject(1, 0.0, None));
    Process {
        parent: None,
        cgroup: CgroupId(0),
        state: ProcessState::Exited { time: BootTime(99 * SECOND), wait_status: Some(9), oom_killed: true },
        ..(*process).clone()
    }
}

fn tree(pid: u32, command: &str, command_line: &str, subject: Subject) -> Arc<Tree> {
    Arc::new(Tree {
        root: id(pid),
        command: command.to_owned(),
        command_line: command_line.to_owned(),
        cgroup: CgroupId(3),
        cgroup_path: Some("/apps/a".into()),
        container: None,
        running: 2,
        exited_total: 1,
        rule: None,
        mark: None,
        subject,
        usage: None,
        cpu_gone_ns: None,
    })
}

fn cgroup(id: u64, path: &str, subject: Subject) -> Arc<Cgroup> {
    let (id, path) = (CgroupId(id), path.into());
    Arc::new(Cgroup { id, path, container: None, removed: false, running: 3, subject, usage: None })
}

/// The same machine with a pod's container: process 20 is in it, and the last cgroup is its.
pub(crate) fn snapshot_with_container() -> Snapshot {
    let container = Arc::new(Container {
        id: CONTAINER_ID.into(),
        runtime: Some(Runtime::Containerd),
        name: Some("nginx".to_owned()),
        pod: Some("web-0".to_owned()),
        namespace: Some("shop".to_owned()),
        pod_uid: Some("6f1d3c2e-0b7a-4f5e-9c1d-2a3b4c5d6e7f".to_owned()),
        image: None,
    });
    let path: Arc<str> = format!("/kubepods.slice/cri-containerd-{CONTAINER_ID}.scope").into();
    let mut snapshot = snapshot();
    let process = Arc::make_mut(&mut snapshot.processes[2]);
    (process.cgroup_path, process.container) = (Some(path.clone()), Some(container.clone()));
    let tree = Arc::make_mut(&mut snapshot.trees[1]);
    (tree.cgroup_path, tree.container) = (Some(path.clone()), Some(container.clone()));
    let cgroup = cgroup(9, &path, subject(1, 500.0, Some(200)));
    snapshot.cgroups.push(Arc::new(Cgroup { container: Some(container), ..(*cgroup).clone() }));
    snapshot
}

/// The same machine, where memory is polled: that of `/apps/a`, and all of it.
pub(crate) fn snapshot_with_memory() -> Snapshot {
    let mut snapshot = snapshot();
    let memory = MemoryReading { current_bytes: 3 << 20, ..MemoryReading::default() };
    let usage = CgroupUsage {
        reading: CgroupReading { memory: Some(memory), ..CgroupReading::default() },
        limit: Some(Limit { bytes: 8 << 20, source: None }),
        peak: Some(Peak { bytes: 5 << 20, by_kernel: true }),
        ..CgroupUsage::default()
    };
    // In order of path, it is the last.
    if let Some(cgroup) = snapshot.cgroups.last_mut() {
        Arc::make_mut(cgroup).usage = Some(Arc::new(usage));
    }
    let memory = HostMemory { total_bytes: 64 << 20, available_bytes: 44 << 20, ..HostMemory::default() };
    let reading = HostReading { memory: Some(memory), ..HostReading::default() };
    snapshot.host_usage = Some(Arc::new(HostUsage { reading, ..HostUsage::default() }));
    snapshot
}

/// The id of that container.
pub(crate) const CONTAINER_ID: &str = "0f3c7a1be5d24c6890ab12cd34ef56ab78901234567890abcdefabcdefabcd01";

fn id(pid: u32) -> ProcessId {
    ProcessId { tgid: Tgid(pid), start_ns: u64::from(pid) * SECOND }
}

/// Without power and throttling, which it does not tell; one instance.
fn gpu() -> Gpu {
    let processes = Some(vec![GpuProcess { pid: Tgid(10), memory_bytes: Some(6 << 30) }]);
    let instance = MigInstance {
        index: 0,
        uuid: Some("MIG-1".to_owned()),
        profile: Some("1g.10gb".to_owned()),
        memory: GpuMemory { used_bytes: Some(6 << 30), total_bytes: Some(8 << 30) },
        processes: processes.clone(),
    };
    Gpu {
        time: BootTime(99 * SECOND),
        uuid: Some("GPU-1".to_owned()),
        name: Some("NVIDIA H100".to_owned()),
        utilization_ratio: Some(0.37),
        memory: GpuMemory { used_bytes: Some(20 << 30), total_bytes: Some(80 << 30) },
        temperature_celsius: Some(55),
        sm_clock_hertz: Some(1_980_000_000),
        mig: Some(vec![instance]),
        processes,
        ..Gpu::default()
    }
}

fn coverage() -> Coverage {
    let live = |source, rung| SourceCoverage {
        source,
        state: State::Live,
        rung: Some(rung),
        missing: Vec::new(),
        cannot_tell: &[],
        caveats: &[],
        refused: Vec::new(),
        too_old: false,
        error_bytes: (source == Source::Resident).then_some(256 << 10),
        seen_total: 17,
        lost_total: 0,
        lost: Loss::default(),
    };
    let refused = vec![Refusal { rung: "fentry", reason: "this kernel has no BTF".to_owned() }];
    Coverage(vec![
        SourceCoverage {
            lost_total: 3,
            lost: Loss { ring_full: 3, ..Loss::default() },
            ..live(Source::Lifecycle, "tp_btf")
        },
        live(Source::PageFault, "tp_btf"),
        SourceCoverage { state: State::Unavailable, rung: None, refused, ..live(Source::AddressSpace, "") },
        live(Source::BlockIo, "tp_btf"),
        live(Source::Requests, "tp_btf"),
        live(Source::Resident, "tp_btf"),
    ])
}

fn cost() -> Cost {
    let program = |name: &str, measured_runs, measured_seconds| ProgramCost {
        name: name.to_owned(),
        measured_runs,
        measured_seconds,
    };
    Cost {
        cpu_seconds_total: 0.36,
        cpu_ratio: Some(0.005),
        resident_bytes: 6 << 20,
        map_bytes: 4 << 20,
        programs: vec![program("page_fault_user", 1000, 0.000_05), program("block_io_issue", 0, 0.0)],
    }
}
