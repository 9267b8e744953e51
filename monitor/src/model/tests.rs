//! The model as a whole: samples in, snapshots out.

mod containers;
mod marks;
mod requests;
mod resident;
mod trees;

use super::*;
use crate::{
    coverage::State,
    gpu::{Gpu, GpuProcess, GpuReading},
    ids::{ProcessKey, Tgid},
    reading::{self, ProcessReading},
    sample::{FoundContainer, FoundProcess},
};
use monitor_common::{
    block_io::{self, Bucket, Series, latency, operation},
    histogram, page_fault,
};
use snapshot::{Process, ProcessState};
use std::sync::Arc;

const SECOND: u64 = 1_000_000_000;
const RETENTION: Retention = Retention { keep: Duration::from_secs(60), limit: 3 };

/// A model with the cgroups / (1), /a (2) and /a/b (3), and init.
fn model() -> Model {
    let mut model = Model::new(BootTime(0), RETENTION, "v2", Vec::new());
    let cgroups = [(1, "/"), (2, "/a"), (3, "/a/b")].map(|(id, path)| (CgroupId(id), path.into())).to_vec();
    let init = FoundProcess {
        id: ProcessId { tgid: Tgid(1), start_ns: 0 },
        parent: None,
        command: "init".into(),
        command_line: "/sbin/init".into(),
        cgroup_path: Some("/".into()),
        cgroup: CgroupId::default(),
        running: true,
    };
    model.take(&Sample { found: Found { cgroups, processes: vec![init], ..Found::default() }, ..Sample::default() });
    model
}

fn owner(tgid: u32, cgroup: u64) -> Owner {
    Owner { cgroup, start_ns: u64::from(tgid) * SECOND, tgid, reserved: 0 }
}

fn moment(time: u64, what: What) -> Moment {
    Moment { time: BootTime(time), what }
}

fn fork(time: u64, parent: &Owner, child: Owner) -> Moment {
    let parent = ProcessId::from(parent);
    moment(time, What::Fork { child, parent, command: *b"sh\0\0\0\0\0\0\0\0\0\0\0\0\0\0" })
}

fn exit(time: u64, owner: Owner, wait_status: u32) -> Moment {
    moment(time, What::Exit { owner, wait_status, command: [0; 16] })
}

fn moments(time: u64, moments: Vec<Moment>) -> Sample {
    Sample { time: BootTime(time), moments, ..Sample::default() }
}

fn faults(time: u64, owners: &[(Owner, u64)]) -> Sample {
    let counts = |n| std::array::from_fn(|kind| if kind == page_fault::WRITE { n } else { 0 });
    let page_faults = owners.iter().map(|&(owner, n)| (owner, counts(n))).collect();
    let counters = Some(Counters { page_faults, ..Counters::default() });
    Sample { time: BootTime(time), counters, ..Sample::default() }
}

fn snapshot(model: &mut Model, time: u64) -> Snapshot {
    model.snapshot(&Sample { time: BootTime(time), ..Sample::default() })
}

fn find(snapshot: &Snapshot, tgid: u32) -> &Process {
    snapshot.processes.iter().find(|process| process.id.tgid == Tgid(tgid)).expect("the process")
}

fn cgroup_faults(snapshot: &Snapshot) -> Vec<(&str, u64)> {
    snapshot.cgroups.iter().map(|cgroup| (&*cgroup.path, cgroup.subject.totals.user_faults())).collect()
}

#[test]
fn a_process_that_moves_is_charged_in_both_cgroups() {
    let mut model = model();
    let (before, after) = (owner(10, 2), owner(10, 3));
    model.take(&moments(SECOND, vec![fork(SECOND, &owner(1, 1), before)]));
    model.take(&faults(SECOND, &[(before, 100)]));
    model.take(&moments(2 * SECOND, vec![moment(2 * SECOND, What::Moved(after))]));
    model.take(&faults(2 * SECOND, &[(before, 100), (after, 200)]));
    let snapshot = snapshot(&mut model, 3 * SECOND);
    assert_eq!(find(&snapshot, 10).subject.totals.user_faults(), 300);
    assert_eq!(find(&snapshot, 10).cgroup_path.as_deref(), Some("/a/b"));
    assert_eq!(cgroup_faults(&snapshot), [("/", 300), ("/a", 300), ("/a/b", 200)]);
    assert_eq!(snapshot.host.totals.user_faults(), 300);
}

#[test]
fn rates_are_over_the_tick_and_fall_back_to_zero() {
    let mut model = model();
    let process = owner(10, 2);
    model.take(&moments(0, vec![fork(0, &owner(1, 1), process)]));
    model.take(&faults(0, &[(process, 1000)]));
    let first = snapshot(&mut model, SECOND);
    assert_eq!(first.host.rates.page_faults, 0.0, "what was before the first tick is no rate");
    model.take(&faults(2 * SECOND, &[(process, 1500)]));
    let second = snapshot(&mut model, 3 * SECOND);
    for rates in [second.host.rates, find(&second, 10).subject.rates, second.trees[1].subject.rates] {
        assert_eq!(rates.page_faults, 250.0);
    }
    model.take(&faults(4 * SECOND, &[(process, 1500)]));
    let third = snapshot(&mut model, 4 * SECOND);
    assert_eq!(find(&third, 10).subject.rates.page_faults, 0.0);
    assert_eq!(find(&second, 10).subject.rates.page_faults, 250.0, "readers keep what they hold");
}

#[test]
fn exited_processes_stay_for_a_while_and_are_folded_away_then() {
    let mut model = model();
    let all: Vec<_> = (10..15).map(|tgid| owner(tgid, 2)).collect();
    model.take(&moments(SECOND, all.iter().map(|process| fork(SECOND, &owner(1, 1), *process)).collect()));
    let counts: Vec<_> = all.iter().map(|process| (*process, 7)).collect();
    model.take(&moments(2 * SECOND, all.iter().map(|process| exit(2 * SECOND, *process, 0x0300)).collect()));
    assert_eq!(model.awaiting_harvest().0, 5);
    assert_eq!(snapshot(&mut model, 2 * SECOND).folded_processes_total, 0, "none goes before its counters were taken");

    let taken = model.take(&faults(3 * SECOND, &counts));
    assert_eq!(taken.harvest.page_faults, all);
    assert_eq!(model.awaiting_harvest().0, 0);
    let kept = snapshot(&mut model, 4 * SECOND);
    assert_eq!(kept.folded_processes_total, 2, "only three are to stay");
    assert_eq!(find(&kept, 14).subject.totals.user_faults(), 7);
    assert!(matches!(find(&kept, 14).state, ProcessState::Exited { wait_status: Some(0x0300), oom_killed: false, .. }));

    let last = snapshot(&mut model, 63 * SECOND);
    assert_eq!((last.folded_processes_total, last.processes.len()), (5, 1));
    assert_eq!(last.host.totals.user_faults(), 35);
    assert_eq!(cgroup_faults(&last), [("/", 35), ("/a", 35)]);
    assert_eq!(last.trees.len(), 1, "a tree goes with its last process");
}

#[test]
fn exited_processes_are_folded_away_between_two_snapshots_too() {
    let mut model = model();
    for second in 1..200 {
        let process = owner(10 + second as u32, 2);
        let life = vec![fork(second * SECOND, &owner(1, 1), process), exit(second * SECOND, process, 0)];
        model.take(&moments(second * SECOND, life));
        model.take(&faults(second * SECOND + SECOND / 2, &[(process, 1)]));
    }
    assert_eq!(model.processes.folded_total(), 196, "only three are to stay");
    let all = snapshot(&mut model, 200 * SECOND);
    assert_eq!((all.processes.len(), all.host.totals.user_faults()), (4, 199));
}

#[test]
fn an_end_that_several_threads_tell_of_is_one() {
    let mut model = model();
    let process = owner(10, 2);
    model.take(&moments(SECOND, vec![fork(SECOND, &owner(1, 1), process)]));
    let end = || exit(2 * SECOND, process, 0x0300);
    let told = model.take(&moments(2 * SECOND, vec![end(), end()]));
    assert_eq!((told.events.len(), model.take(&moments(2 * SECOND, vec![end()])).events.len()), (1, 0));
    // What the sweep had found gone is told when its record comes.
    let other = owner(11, 2);
    model.take(&moments(3 * SECOND, vec![fork(3 * SECOND, &owner(1, 1), other)]));
    let found = Found { gone: vec![ProcessId::from(&other)], ..Found::default() };
    model.take(&Sample { time: BootTime(4 * SECOND), found, ..Sample::default() });
    assert_eq!(model.take(&moments(4 * SECOND, vec![exit(4 * SECOND, other, 0)])).events.len(), 1);
}

#[test]
fn a_process_that_has_just_exited_is_not_harvested_yet() {
    let mut model = model();
    let process = owner(10, 2);
    model.take(&moments(SECOND, vec![fork(SECOND, &owner(1, 1), process), exit(2 * SECOND, process, 0)]));
    assert!(model.take(&faults(2 * SECOND + 1, &[(process, 1)])).harvest.page_faults.is_empty());
    let harvest = model.take(&faults(3 * SECOND, &[(process, 3)])).harvest;
    assert_eq!(harvest.page_faults, [process]);
    model.forget(&harvest);
    // What comes after all starts from zero in the kernel, too.
    model.take(&faults(4 * SECOND, &[(process, 2)]));
    assert_eq!(find(&snapshot(&mut model, 5 * SECOND), 10).subject.totals.user_faults(), 5);
}

#[test]
fn what_a_process_left_in_a_removed_cgroup_is_harvested_though_it_runs() {
    let mut model = model();
    let (before, after) = (owner(10, 3), owner(10, 2));
    model.take(&moments(SECOND, vec![fork(SECOND, &owner(1, 1), before)]));
    model.take(&moments(2 * SECOND, vec![moment(2 * SECOND, What::Moved(after))]));
    let both = [(before, 100), (after, 200)];
    assert!(model.take(&faults(2 * SECOND, &both)).harvest.page_faults.is_empty());
    let removed = What::CgroupRemoved(CgroupId(3), "/a/b".into());
    model.take(&moments(3 * SECOND, vec![moment(3 * SECOND, removed)]));
    let harvest = model.take(&faults(3 * SECOND, &both)).harvest;
    assert_eq!(harvest.page_faults, [before]);
    model.forget(&harvest);
    model.take(&faults(4 * SECOND, &[(after, 201)]));
    let snapshot = snapshot(&mut model, 5 * SECOND);
    assert_eq!(find(&snapshot, 10).subject.totals.user_faults(), 301);
    assert_eq!(cgroup_faults(&snapshot), [("/", 301), ("/a", 301), ("/a/b", 100)]);
}

#[test]
fn a_reused_pid_is_another_process() {
    let mut model = model();
    let (first, second) = (owner(10, 2), Owner { start_ns: 50 * SECOND, ..owner(10, 2) });
    model.take(&moments(SECOND, vec![fork(SECOND, &owner(1, 1), first), exit(2 * SECOND, first, 9)]));
    model.take(&moments(50 * SECOND, vec![fork(50 * SECOND, &owner(1, 1), second)]));
    model.take(&faults(51 * SECOND, &[(first, 5), (second, 6)]));
    let snapshot = snapshot(&mut model, 51 * SECOND);
    let both: Vec<_> = snapshot
        .processes
        .iter()
        .filter(|process| process.id.tgid == Tgid(10))
        .map(|process| (process.state == ProcessState::Running, process.subject.totals.user_faults()))
        .collect();
    assert_eq!(both, [(true, 6), (false, 5)]);
}

#[test]
fn an_exec_renames_and_a_kill_for_want_of_memory_is_remembered() {
    let mut model = model();
    let process = owner(10, 2);
    let exec = What::Exec {
        owner: process,
        command: *b"python3\0\0\0\0\0\0\0\0\0",
        arguments: bytes::Bytes::from_static(b"python3\0train.py\0"),
        cut: true,
    };
    let resident = Some(reading::Resident { anon_bytes: 64 << 20, file_bytes: 4096, ..Default::default() });
    let doomed = What::OomVictim { owner: process, command: [0; 16], resident };
    let taken = model.take(&moments(
        SECOND,
        vec![
            fork(SECOND, &owner(1, 1), process),
            moment(SECOND, exec),
            moment(SECOND, doomed),
            exit(SECOND, process, 9),
        ],
    ));
    let events: Vec<_> = taken.events.iter().map(|event| serde_json::to_value(event).unwrap()).collect();
    let names: Vec<_> = events.iter().map(|event| event["event"].clone()).collect();
    assert_eq!(names, ["fork", "exec", "oom_victim", "exit"]);
    assert_eq!(
        (&events[2]["resident"]["anon_bytes"], &events[2]["resident"]["swap_bytes"]),
        (&(64 << 20).into(), &0.into())
    );
    let snapshot = snapshot(&mut model, SECOND);
    let process = find(&snapshot, 10);
    assert_eq!((&*process.command, &*process.command_line), ("python3", "python3 train.py…"));
    assert!(matches!(process.state, ProcessState::Exited { oom_killed: true, wait_status: Some(9), .. }));
    assert_eq!(process.resident_when_killed, resident);
}

#[test]
fn latencies_of_all_kinds_reach_process_cgroup_and_device() {
    let mut model = model();
    let (process, device) = (owner(10, 2), DeviceId(254 << 20));
    let key = block_io::Key { owner: process, device: device.0, operation: operation::READ, reserved: 0 };
    let series = Bucket::series_of(Series::new(77, 5));
    let totals = block_io::Totals { series, count: 3, bytes: 12288, errors: 1, wait_ns: 3_000_000 };
    let at = |kind, ns| Bucket::new(series, kind, histogram::bucket(ns));
    let counters = Counters {
        block_io: vec![(key, totals)],
        block_latencies: vec![
            (at(latency::QUEUE, 5_000), 3),
            (at(latency::DEVICE_AND_TOTAL, 1_000_000), 2),
            (at(latency::DEVICE, 900_000), 1),
            (at(latency::TOTAL, 4_000_000), 1),
        ],
        ..Counters::default()
    };
    let mut sample = Sample { time: BootTime(SECOND), counters: Some(counters), ..Sample::default() };
    let unknown = model.unknown(&sample);
    assert_eq!((unknown.processes.len(), unknown.cgroups.len(), &unknown.devices[..]), (1, 0, &[device][..]));
    sample.found.devices.push((device, "vda".into()));
    sample.moments.push(fork(SECOND, &owner(1, 1), process));
    model.take(&sample);
    let snapshot = snapshot(&mut model, 2 * SECOND);
    let cgroup = &snapshot.cgroups[1].subject;
    for subject in [&find(&snapshot, 10).subject, cgroup, &snapshot.block_devices[0].subject, &snapshot.host] {
        let io = subject.totals.block_io.as_deref().expect("block I/O");
        assert_eq!((io.count(), io.errors(), io.wait_ns()), (3, 1, 3_000_000));
        assert_eq!((io.read_latency.count(), io.device_latency.count(), io.queue_latency.count()), (3, 3, 3));
        assert_eq!(histogram::bucket(io.read_latency.quantile_ns(0.99).unwrap()), histogram::bucket(4_000_000));
        assert_eq!(histogram::bucket(io.device_latency.quantile_ns(0.1).unwrap()), histogram::bucket(900_000));
    }
    assert_eq!(snapshot.block_devices[0].name, "vda");
}

#[test]
fn what_nobody_was_told_of_is_found_or_at_least_numbered() {
    let mut model = model();
    let mut sample = faults(SECOND, &[(owner(77, 99), 4), (Owner::UNATTRIBUTED, 3)]);
    let unknown = model.unknown(&sample);
    assert_eq!(unknown.processes, [(ProcessId::from(&owner(77, 99)), CgroupId(99))]);
    assert_eq!(unknown.cgroups, [CgroupId(99)]);
    sample.found.processes.push(FoundProcess {
        id: unknown.processes[0].0,
        parent: None,
        command: String::new(),
        command_line: String::new(),
        cgroup_path: None,
        cgroup: CgroupId::default(),
        running: false,
    });
    model.take(&sample);
    let snapshot = snapshot(&mut model, 2 * SECOND);
    assert_eq!(find(&snapshot, 77).subject.totals.user_faults(), 4);
    assert_eq!(snapshot.host.totals.user_faults(), 7, "what belongs to nobody still counts for the host");
}

#[test]
fn one_that_was_gone_when_it_was_looked_up_is_in_the_cgroup_it_was_mentioned_with() {
    let path = |cgroup_path: Option<&str>, running| {
        let mut model = model();
        let found = FoundProcess {
            id: ProcessId::from(&owner(77, 3)),
            parent: None,
            command: String::new(),
            command_line: String::new(),
            cgroup_path: cgroup_path.map(str::to_owned),
            cgroup: CgroupId(3),
            running,
        };
        let found = Found { processes: vec![found], ..Found::default() };
        model.take(&Sample { found, ..faults(SECOND, &[(owner(77, 3), 4)]) });
        find(&snapshot(&mut model, SECOND), 77).cgroup_path.clone()
    };
    assert_eq!(path(None, false).as_deref(), Some("/a/b"));
    assert_eq!(path(Some("/"), false).as_deref(), Some("/a/b"), "/proc has what has exited in the root");
    assert_eq!(path(Some("/a"), true).as_deref(), Some("/a"), "it may have moved since");
    assert_eq!(path(None, true).as_deref(), Some("/a/b"));
}

#[test]
fn what_went_without_a_record_is_swept_up() {
    let mut model = model();
    let process = owner(10, 3);
    model.take(&moments(SECOND, vec![fork(SECOND, &owner(1, 1), process)]));
    assert_eq!(model.running().count(), 2);
    let found = Found { gone: vec![ProcessId::from(&process)], gone_cgroups: vec![CgroupId(3)], ..Found::default() };
    model.take(&Sample { time: BootTime(2 * SECOND), found, ..Sample::default() });
    assert_eq!(model.running().map(ProcessId::key).collect::<Vec<_>>(), [ProcessKey { tgid: Tgid(1), start_tick: 0 }]);
    let snapshot = snapshot(&mut model, 3 * SECOND);
    assert!(matches!(find(&snapshot, 10).state, ProcessState::Exited { wait_status: None, .. }));
    assert_eq!(model.present_cgroups().count(), 2);
}

#[test]
fn who_polls_is_told_who_came_went_and_moved() {
    let mut model = model();
    let (process, other) = (owner(10, 2), owner(11, 2));
    model.take(&moments(SECOND, vec![fork(1, &owner(1, 1), process), fork(2, &owner(1, 1), other)]));
    let changes = |model: &mut Model, time| {
        let told: Vec<_> = model.process_changes().map(|c| (c.id.tgid.0, c.cgroup.0, c.runs, c.moved)).collect();
        snapshot(model, time);
        told
    };
    assert_eq!(changes(&mut model, SECOND), [(1, 1, true, false), (10, 2, true, false), (11, 2, true, false)]);
    assert_eq!(changes(&mut model, 2 * SECOND), []);
    model.take(&faults(3 * SECOND, &[(process, 1)]));
    model.take(&moments(3 * SECOND, vec![exit(3 * SECOND, other, 0)]));
    assert_eq!(changes(&mut model, 3 * SECOND), [(10, 2, true, true), (11, 2, false, false)]);
    model.take(&moments(4 * SECOND, vec![moment(4 * SECOND, What::Moved(owner(10, 3)))]));
    assert_eq!(changes(&mut model, 4 * SECOND), [(10, 3, true, false)]);
}

#[test]
fn one_that_could_not_be_looked_up_gets_its_names_later() {
    let mut model = model();
    let process = owner(10, 3);
    let mut found = FoundProcess {
        id: ProcessId::from(&process),
        parent: None,
        command: String::new(),
        command_line: String::new(),
        cgroup_path: None,
        cgroup: CgroupId::default(),
        running: true,
    };
    let take = |model: &mut Model, found: &FoundProcess, time| {
        let found = Found { processes: vec![found.clone()], ..Found::default() };
        model.take(&Sample { time: BootTime(time), found, ..Sample::default() });
    };
    take(&mut model, &found, SECOND);
    assert_eq!(find(&snapshot(&mut model, SECOND), 10).state, ProcessState::Running, "nobody knows that it has gone");
    (found.command, found.command_line, found.parent) = ("sh".into(), "sh -c x".into(), Some(Tgid(1)));
    found.cgroup_path = Some("/a/b".into());
    take(&mut model, &found, 2 * SECOND);
    let snapshot = snapshot(&mut model, 2 * SECOND);
    let process = find(&snapshot, 10);
    assert_eq!((&*process.command_line, process.cgroup_path.as_deref()), ("sh -c x", Some("/a/b")));
    assert_eq!(snapshot.trees.last().map(|tree| (&*tree.command, tree.running)), Some(("sh", 1)));
    let running: Vec<_> = snapshot.cgroups.iter().map(|cgroup| (&*cgroup.path, cgroup.running)).collect();
    assert_eq!(running, [("/", 2), ("/a", 1), ("/a/b", 1)]);
}

const CONTAINER: &str = "0f3c7a1be5d24c6890ab12cd34ef56ab78901234567890abcdefabcdefabcd01";
const POD: &str = "6f1d3c2e-0b7a-4f5e-9c1d-2a3b4c5d6e7f";

/// A sample in which GPUs, one a row, hold memory for processes.
fn gpus(time: u64, rows: &[&[(u32, Option<u64>)]]) -> Sample {
    let process = |&(pid, memory_bytes): &(u32, Option<u64>)| GpuProcess { pid: Tgid(pid), memory_bytes };
    let gpu = |row: &&[(u32, Option<u64>)]| {
        Arc::new(Gpu { processes: Some(row.iter().map(process).collect()), ..Gpu::default() })
    };
    let gpus = rows.iter().map(gpu).collect();
    let reading = GpuReading::Live { time: BootTime(time), every: Duration::from_secs(1), gpus };
    Sample { time: BootTime(time), gpus: Some(Arc::new(reading)), ..Sample::default() }
}

/// GPU memory of two processes, of the tree of the first, and of the cgroups in order of path.
fn gpu_memory(snapshot: &Snapshot) -> (Option<u64>, Option<u64>, Option<u64>, Vec<Option<u64>>) {
    let of = |tgid| find(snapshot, tgid).subject.gpu_memory_bytes;
    let tree = snapshot.trees.iter().find(|tree| tree.root.tgid == Tgid(10)).unwrap();
    let cgroups = snapshot.cgroups.iter().map(|cgroup| cgroup.subject.gpu_memory_bytes).collect();
    (of(10), of(11), tree.subject.gpu_memory_bytes, cgroups)
}

#[test]
fn gpu_memory_is_joined_to_processes_trees_and_cgroups_and_goes_with_them() {
    let mut model = model();
    let (parent, child) = (owner(10, 3), owner(11, 3));
    model.take(&moments(1, vec![fork(1, &owner(1, 1), parent), fork(2, &parent, child)]));
    model.take(&gpus(SECOND, &[&[(10, Some(5)), (99, Some(1))], &[(10, Some(2)), (11, Some(30))]]));
    let first = snapshot(&mut model, SECOND);
    assert_eq!(gpu_memory(&first), (Some(7), Some(30), Some(37), vec![Some(37); 3]));
    assert_eq!((first.gpus.len(), first.gpu.state), (2, State::Live));
    assert_eq!(find(&first, 1).subject.gpu_memory_bytes, None, "init holds none");

    // A part that the driver does not tell makes the sums unknown.
    model.take(&gpus(2 * SECOND, &[&[(10, Some(5))], &[(11, None)]]));
    assert_eq!(gpu_memory(&snapshot(&mut model, 2 * SECOND)), (Some(5), None, None, vec![None; 3]));

    // A moved process takes its memory along.
    model.take(&moments(3 * SECOND, vec![moment(3 * SECOND, What::Moved(owner(10, 2)))]));
    model.take(&gpus(3 * SECOND, &[&[(10, Some(5)), (11, Some(4))]]));
    assert_eq!(
        gpu_memory(&snapshot(&mut model, 3 * SECOND)),
        (Some(5), Some(4), Some(9), vec![Some(9), Some(9), Some(4)])
    );

    model.take(&moments(4 * SECOND, vec![exit(4 * SECOND, child, 0)]));
    assert_eq!(gpu_memory(&snapshot(&mut model, 4 * SECOND)), (Some(5), None, Some(5), vec![Some(5); 2]));

    let lost = Arc::new(GpuReading::Unavailable { reason: "lost".to_owned() });
    model.take(&Sample { time: BootTime(5 * SECOND), gpus: Some(lost), ..Sample::default() });
    let last = snapshot(&mut model, 5 * SECOND);
    assert_eq!(gpu_memory(&last), (None, None, None, vec![None; 2]));
    assert!(last.gpus.is_empty() && last.gpu.failing, "{:?}", last.gpu);
}
