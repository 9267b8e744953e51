//! What is told of made-up machines, when, and how often.

use super::*;
use crate::{
    config::Config,
    gpu::{Gpu, GpuMemory, GpuProcess},
    ids::{CgroupId, DeviceId, ProcessKey, Tgid},
    model::{
        snapshot::{Cgroup, Tree, TreeIo},
        usage::{CgroupUsage, HostUsage, Stalls, TreeUsage},
    },
    reading::{CgroupReading, HostMemory, HostReading, MemoryReading},
    serve::fixtures,
};

const SECOND: u64 = 1_000_000_000;
/// No rule here goes by the time of day.
const NOON: SystemTime = SystemTime::UNIX_EPOCH;

/// A machine that goes on, second by second.
struct Machine {
    alerts: Alerts,
    second: u64,
    told: Vec<Arc<Alert>>,
}

impl Machine {
    fn new(change: impl Fn(&mut Config)) -> Self {
        let mut config = Config::default();
        change(&mut config);
        Self { alerts: Alerts::new(config.thresholds, config.alerts), second: 0, told: Vec::new() }
    }

    /// So many seconds like this one. What is told in them.
    fn go(&mut self, seconds: u64, snapshot: &Snapshot) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..seconds {
            self.second += 1;
            let (time, number) = (BootTime(self.second * SECOND), self.second);
            let snapshot = Snapshot { time, number, tick: Duration::from_secs(1), ..snapshot.clone() };
            let (standing, news) = self.alerts.take(&snapshot, &Findings::default(), NOON);
            assert_eq!(standing.time, time);
            lines.extend(news.iter().map(|alert| {
                format!("{} {} {}: {}", self.second, alert.state.name(), alert.severity.name(), alert.summary)
            }));
            self.told.extend(news);
        }
        lines
    }
}

/// Nothing that could be told.
fn calm() -> Snapshot {
    Snapshot { gpus: Vec::new(), processes: Vec::new(), ..fixtures::snapshot() }
}

fn used(share: f64) -> Snapshot {
    let (total_bytes, available_bytes) = (1000, 1000 - (share * 1000.0).round() as u64);
    let memory = HostMemory { total_bytes, available_bytes, ..HostMemory::default() };
    let reading = HostReading { memory: Some(memory), ..HostReading::default() };
    Snapshot { host_usage: Some(Arc::new(HostUsage { reading, ..HostUsage::default() })), ..calm() }
}

fn waiting(io: f64) -> Snapshot {
    let stalls = Stalls { io: Some(io), ..Stalls::default() };
    Snapshot { host_usage: Some(Arc::new(HostUsage { stalls, ..HostUsage::default() })), ..calm() }
}

fn io(tree: u32, device: u32, ops: f64, wait: f64) -> TreeIo {
    let tree = ProcessKey { tgid: Tgid(tree), start_tick: u64::from(tree) * 100 };
    TreeIo { tree, device: DeviceId(device), ops, bytes: ops * 4096.0, wait }
}

#[test]
fn what_holds_is_told_once_becomes_worse_and_is_taken_back() {
    let mut machine = Machine::new(|_| ());
    assert_eq!(machine.go(20, &used(0.79)), [""; 0]);
    let warning = "30 firing warning: High memory usage: 85.0% (threshold: 80%)";
    assert_eq!(machine.go(60, &used(0.85)), [warning]);
    let worse = machine.go(60, &used(0.95));
    assert_eq!(worse.len(), 1, "{worse:?}");
    assert!(
        worse[0].contains("firing critical: High memory usage") && worse[0].ends_with("(threshold: 90%)"),
        "{worse:?}"
    );
    assert_eq!(machine.go(60, &used(0.85)), [""; 0], "what was critical is told until it is over");
    let over = machine.go(60, &used(0.5));
    assert_eq!(over.len(), 1, "{over:?}");
    assert!(over[0].contains("resolved critical"), "{over:?}");
}

#[test]
fn what_comes_and_goes_is_told_by_its_mean_over_the_hold_time() {
    let mut machine = Machine::new(|_| ());
    for _ in 0..30 {
        // Half of the time all of it, which is more than 30 %.
        machine.go(1, &waiting(0.0));
        machine.go(1, &waiting(1.0));
    }
    assert_eq!(machine.told.len(), 1, "{:?}", machine.told);
    assert!((0.4..0.6).contains(&machine.told[0].value.unwrap()), "{:?}", machine.told[0]);
    let mut machine = Machine::new(|_| ());
    for _ in 0..30 {
        machine.go(4, &waiting(0.0));
        machine.go(1, &waiting(1.0));
    }
    assert_eq!(machine.told, [], "20 % of the time");
}

#[test]
fn what_is_over_is_not_told_anew_before_the_cool_down_has_passed() {
    let mut machine = Machine::new(|_| ());
    machine.go(20, &waiting(0.9));
    machine.go(20, &waiting(0.0));
    assert_eq!(machine.told.len(), 2);
    let quiet = machine.go(250, &waiting(0.9));
    assert_eq!(quiet, [""; 0]);
    assert_eq!(machine.go(60, &waiting(0.9)).len(), 1, "it has gone on meanwhile");
}

#[test]
fn thresholds_that_are_absurd_fire_at_once_where_nothing_must_hold() {
    let mut machine = Machine::new(|config| {
        config.alerts.hold = Duration::ZERO;
        config.thresholds.memory = 0.1;
        config.thresholds.io_wait = 0.01;
    });
    let mut both = used(0.5);
    Arc::make_mut(both.host_usage.as_mut().unwrap()).stalls.io = Some(0.02);
    let told = machine.go(1, &both);
    assert_eq!(
        told,
        [
            "1 firing warning: I/O bottleneck: 2.0% wait time (threshold: 1%)",
            "1 firing critical: High memory usage: 50.0% (threshold: 10%)",
        ]
    );
}

#[test]
fn each_is_switched_off_and_silenced_by_its_name() {
    let mut machine = Machine::new(|config| config.thresholds.alert_io_bottleneck = false);
    assert_eq!(machine.go(30, &waiting(0.9)), [""; 0]);
    let mut machine = Machine::new(|config| config.alerts.enabled = false);
    assert_eq!(machine.go(30, &waiting(0.9)), [""; 0]);
    for (pattern, silenced) in [("io_*:the machine", true), ("the mach?ne", true), ("memory_*:*", false)] {
        let mut machine = Machine::new(|config| config.alerts.silence = vec![pattern.to_owned()]);
        machine.go(30, &waiting(0.9));
        assert_eq!(machine.told.iter().map(|alert| alert.silenced).collect::<Vec<_>>(), [silenced], "{pattern}");
    }
}

#[test]
fn the_device_who_waits_and_who_fills_it_are_named_and_nobody_beside_them() {
    let mut snapshot = waiting(0.9);
    Arc::make_mut(&mut snapshot.trees[1]).command_line = "/usr/bin/fio job".to_owned();
    // 20 fills the disk on which 10 waits; 30 is on another one.
    let other =
        Tree { root: crate::ids::ProcessId { tgid: Tgid(30), start_ns: 30 * SECOND }, ..(*snapshot.trees[0]).clone() };
    snapshot.trees.push(Arc::new(other));
    let slow = 259 << 20 | 3;
    snapshot.io = vec![io(10, slow, 20.0, 1.0), io(20, slow, 600.0, 31.0), io(30, 7, 5000.0, 0.2)];
    let mut machine = Machine::new(|_| ());
    let told = machine.go(60, &snapshot);
    let of_host: Vec<_> = machine.told.iter().filter(|alert| alert.subject == Subject::Host).collect();
    let Evidence::Io(evidence) = &of_host[0].evidence else { panic!("{told:?}") };
    assert_eq!(evidence.device.as_deref(), Some("nvme0n1"));
    assert_eq!(evidence.noisy.as_ref().unwrap().name.tree, Tgid(20));
    let waiting: Vec<_> = evidence.waiting.iter().map(|tree| tree.name.tree.0).collect();
    assert_eq!(waiting, [20, 10]);
    let of_trees: Vec<_> = machine.told.iter().filter(|alert| alert.subject != Subject::Host).collect();
    assert_eq!(of_trees.len(), 2, "{told:?}");
    let victim = of_trees.iter().find(|alert| alert.summary.contains("(10)")).unwrap();
    let Evidence::Io(evidence) = &victim.evidence else { panic!("{victim:?}") };
    assert!((0.045..0.055).contains(&evidence.latency_seconds.unwrap()), "{evidence:?}");
    assert_eq!(evidence.noisy.as_ref().unwrap().name.tree, Tgid(20), "{victim:?}");
    assert!(victim.summary.contains("fio job (20) fills its queue: 97% of what is in flight"), "{}", victim.summary);
    assert!(!told.iter().any(|line| line.contains("(30)")), "{told:?}");
}

#[test]
fn where_the_kernel_tells_of_a_cgroup_its_trees_are_not_told_of_once_more() {
    let mut snapshot = fixtures::snapshot_with_container();
    (snapshot.gpus, snapshot.processes) = (Vec::new(), Vec::new());
    let tree = Arc::make_mut(&mut snapshot.trees[1]);
    tree.cgroup_path = Some(snapshot.cgroups.last().unwrap().path.clone());
    let cgroup = Arc::make_mut(snapshot.cgroups.last_mut().unwrap());
    let stalls = Stalls { io: Some(0.8), ..Stalls::default() };
    cgroup.usage = Some(Arc::new(CgroupUsage { stalls, ..CgroupUsage::default() }));
    snapshot.io = vec![io(20, 259 << 20 | 3, 20.0, 1.0)];
    let mut machine = Machine::new(|_| ());
    let told = machine.go(60, &snapshot);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("I/O bottleneck: container shop/web-0/nginx: 80.0% wait time"), "{told:?}");
    assert!(told[0].contains("for nvme0n1, 50 ms a request"), "{told:?}");
}

fn limited(working_set: u64, stalls: Stalls) -> Snapshot {
    let mut snapshot = calm();
    let memory = MemoryReading {
        limit_bytes: Some(1000),
        current_bytes: working_set + 100,
        inactive_file_bytes: Some(100),
        ..MemoryReading::default()
    };
    let reading = CgroupReading { memory: Some(memory), ..CgroupReading::default() };
    let usage = CgroupUsage { reading, stalls, ..CgroupUsage::default() };
    let path = "/system.slice/db.service".into();
    let cgroup = Cgroup { id: CgroupId(77), path, usage: Some(Arc::new(usage)), ..(*snapshot.cgroups[0]).clone() };
    snapshot.cgroups.push(Arc::new(cgroup));
    let usage = Some(TreeUsage { resident_bytes: Some(800), ..TreeUsage::default() });
    let path = Some("/system.slice/db.service".into());
    snapshot.trees[0] = Arc::new(Tree { usage, cgroup_path: path, ..(*snapshot.trees[0]).clone() });
    snapshot
}

#[test]
fn the_working_set_is_held_against_the_limit_and_the_largest_tree_is_named() {
    let mut machine = Machine::new(|_| ());
    let told = machine.go(20, &limited(920, Stalls::default()));
    let expected = "10 firing critical: High memory usage: cgroup /system.slice/db.service: 92.0% (threshold: 90%) of its \
                    limit of 1000 B; largest: python3 train.py --epochs 3 (10) with 800 B";
    assert_eq!(told, [expected]);
    let mut machine = Machine::new(|_| ());
    assert_eq!(machine.go(20, &limited(790, Stalls::default())), [""; 0]);
}

#[test]
fn a_storm_of_major_faults_is_one_where_memory_is_waited_for() {
    let storm = |memory| Stalls { major_faults: Some(900.0), memory: Some(memory), ..Stalls::default() };
    let mut machine = Machine::new(|_| ());
    assert_eq!(machine.go(20, &limited(100, storm(0.01))), [""; 0], "a program that begins reads its files");
    let mut machine = Machine::new(|_| ());
    let told = machine.go(20, &limited(100, storm(0.3)));
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("Memory is short: cgroup /system.slice/db.service: 30.0% of the time"), "{told:?}");
    assert!(told[1].contains("900 faults a second wait for a disk (threshold: 100)"), "{told:?}");
}

fn gpu(utilization: f64) -> Gpu {
    Gpu {
        uuid: Some("GPU-7".to_owned()),
        utilization_ratio: Some(utilization),
        processes: Some(vec![GpuProcess { pid: Tgid(10), memory_bytes: Some(5) }]),
        ..Gpu::default()
    }
}

fn with_gpu(gpu: Gpu) -> Snapshot {
    Snapshot { gpus: vec![Arc::new(gpu)], processes: fixtures::snapshot().processes[..1].to_vec(), ..calm() }
}

#[test]
fn an_idle_gpu_is_explained_by_what_its_holder_waits_for() {
    let of_disk = || Snapshot { io: vec![io(10, 7, 20.0, 0.9)], ..with_gpu(gpu(0.1)) };
    let mut working = with_gpu(gpu(0.1));
    let usage = Some(TreeUsage { cpu_per_second: Some(3.0), ..TreeUsage::default() });
    working.trees[0] = Arc::new(Tree { usage, ..(*working.trees[0]).clone() });
    let mut short = with_gpu(gpu(0.1));
    let stalls = Stalls { memory: Some(0.7), ..Stalls::default() };
    short.host_usage = Some(Arc::new(HostUsage { stalls, ..HostUsage::default() }));
    let cases = [
        (of_disk(), Cause::BlockIo, "python3 train.py --epochs 3 (10) waits for disks 90% of its idle time"),
        (working, Cause::Cpu, "is at work on 3.0 CPUs meanwhile"),
        (short, Cause::Memory, "waits for the machine's memory 70% of its idle time"),
        (with_gpu(gpu(0.1)), Cause::NothingToDo, "gives it nothing to do"),
    ];
    for (snapshot, cause, words) in cases {
        let mut machine = Machine::new(|_| ());
        machine.go(59, &snapshot);
        let of_gpu = |alert: &&Arc<Alert>| alert.rule == Rule::GpuUnderutilization;
        assert_eq!(machine.told.iter().filter(of_gpu).count(), 0, "it must hold for a minute");
        machine.go(1, &snapshot);
        let alert = machine.told.iter().find(of_gpu).unwrap();
        assert!(alert.summary.starts_with("GPU 0 underutilized: 10.0% (threshold: 50%): "), "{}", alert.summary);
        assert!(alert.summary.ends_with(words), "{}", alert.summary);
        let Evidence::Gpu(evidence) = &alert.evidence else { panic!("{alert:?}") };
        assert_eq!(evidence.cause, Some(cause));
    }
    let mut machine = Machine::new(|_| ());
    let idle = Gpu { processes: Some(Vec::new()), ..gpu(0.0) };
    assert_eq!(machine.go(120, &with_gpu(idle)), [""; 0], "nobody wants it");
    // Half of the time all of its work is above 50 % with the rest.
    for second in 0..120 {
        machine.go(1, &with_gpu(gpu(if second % 2 == 0 { 1.0 } else { 0.2 })));
    }
    assert_eq!(machine.told, []);
}

#[test]
fn a_gpu_that_is_full_hot_slowed_down_or_lost_is_told() {
    let memory = GpuMemory { used_bytes: Some(95 << 30), total_bytes: Some(100 << 30) };
    let bad = Gpu {
        memory,
        temperature_celsius: Some(85),
        throttle_reasons: Some(vec!["gpu_idle", "hw_slowdown"]),
        ..gpu(0.9)
    };
    let mut machine = Machine::new(|_| ());
    let told = machine.go(10, &with_gpu(bad.clone()));
    assert_eq!(
        told,
        [
            "10 firing warning: GPU 0 memory nearly full: 95.0% (threshold: 90%) of 100.0 GiB, most of it held by \
             python3 train.py --epochs 3 (10)",
            "10 firing warning: GPU 0 temperature high: 85°C (threshold: 80°C)",
            "10 firing warning: GPU 0 slowed down 100% of the time: hw_slowdown",
        ]
    );
    let lost = Gpu { failure: Some("fell off the bus".to_owned()), ..Gpu { uuid: bad.uuid, ..Gpu::default() } };
    let told = machine.go(1, &with_gpu(lost));
    assert!(told.contains(&"11 firing critical: GPU 0 lost: fell off the bus".to_owned()), "{told:?}");
    let idle = Gpu { throttle_reasons: Some(vec!["gpu_idle"]), ..gpu(0.9) };
    assert_eq!(Machine::new(|_| ()).go(20, &with_gpu(idle)), [""; 0], "an idle one slows down by itself");
}

#[test]
fn whom_the_kernel_killed_is_told_and_over_when_nobody_is_told_of_it_any_more() {
    let mut machine = Machine::new(|_| ());
    let killed = Snapshot { gpus: Vec::new(), ..fixtures::snapshot() };
    let told = machine.go(5, &killed);
    assert_eq!(told, ["1 firing critical: OOM kill: the kernel killed hog (30) for want of memory"]);
    let over = machine.go(5, &calm());
    assert_eq!(over.len(), 1);
    assert!(over[0].starts_with("6 resolved"), "{over:?}");
}

#[test]
fn a_detectors_claim_is_told_as_long_as_it_is_made() {
    let (mut alerts, findings) = (Machine::new(|_| ()).alerts, fixtures::findings());
    let at = |number| Snapshot { number, time: BootTime(number * SECOND), ..calm() };
    let (_, news) = alerts.take(&at(1), &findings, NOON);
    let told: Vec<_> = news.iter().map(|alert| (alert.rule, alert.state, alert.severity)).collect();
    assert_eq!(told, [(Rule::Leak, State::Firing, Severity::Warning)]);
    assert!(news[0].summary.contains("python3 train.py --epochs 3 (10) leaks 3.5 GiB per hour"), "{}", news[0].summary);
    assert_eq!(alerts.take(&at(2), &findings, NOON).1, []);
    let (standing, news) = alerts.take(&at(3), &Findings::default(), NOON);
    assert_eq!((news.len(), news[0].state), (1, State::Resolved));
    assert_eq!(standing.alerts, news);
}

#[test]
fn what_there_is_no_room_for_is_counted() {
    let mut snapshot = calm();
    let crowd = (0..MOST as u32 + 3).map(|number| {
        let failure = Some("lost".to_owned());
        Arc::new(Gpu { index: number, failure, ..Gpu::default() })
    });
    snapshot.gpus = crowd.collect();
    let mut alerts = Machine::new(|_| ()).alerts;
    let (standing, _) = alerts.take(&snapshot, &Findings::default(), NOON);
    assert_eq!((standing.alerts.len(), standing.left_out), (MOST, 3));
}
