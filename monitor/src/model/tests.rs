//! The model as a whole: samples in, snapshots out.

use super::*;
use crate::{
    coverage::State,
    gpu::{Gpu, GpuProcess, GpuReading},
    ids::{ProcessKey, Tgid},
    reading::ProcessReading,
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

fn mark(time: u64, by: Option<Owner>, step: Option<u64>, epoch: Option<u64>) -> Sample {
    let marked = by.map(|owner| ProcessId::from(&owner));
    Sample { time: BootTime(time), mark: Some(Mark { step, epoch, labels: None }), marked, ..Sample::default() }
}

/// Step and epoch of a snapshot's mark, and of those of its trees.
type Steps = (Option<u64>, Option<u64>);
fn marks(snapshot: &Snapshot) -> (Option<Steps>, Vec<(u32, Steps)>) {
    let steps = |mark: &Arc<Mark>| (mark.step, mark.epoch);
    let of_trees = snapshot.trees.iter().filter_map(|tree| Some((tree.root.tgid.0, steps(tree.mark.as_ref()?))));
    (snapshot.mark.as_ref().map(steps), of_trees.collect())
}

#[test]
fn each_tree_has_its_own_mark_until_it_is_forgotten_and_the_last_of_all_stays() {
    let mut model = model();
    let (a, worker, b) = (owner(10, 2), owner(11, 2), owner(20, 3));
    model.take(&moments(
        SECOND,
        vec![fork(SECOND, &owner(1, 1), a), fork(SECOND, &a, worker), fork(SECOND, &owner(1, 1), b)],
    ));
    for (by, step, epoch) in [(a, Some(100), Some(1)), (b, Some(7), None), (worker, Some(101), None)] {
        model.take(&mark(SECOND, Some(by), step, epoch));
    }
    let of_trees = vec![(10, (Some(101), Some(1))), (20, (Some(7), None))];
    let first = snapshot(&mut model, 2 * SECOND);
    assert_eq!(marks(&first), (Some((Some(101), Some(1))), of_trees));
    model.take(&mark(2 * SECOND, Some(b), Some(8), None));
    let ended = [a, worker].map(|owner| exit(2 * SECOND, owner, 0)).to_vec();
    model.take(&moments(2 * SECOND, ended));
    model.take(&faults(3 * SECOND, &[]));
    let last = Some((Some(8), None));
    assert_eq!(marks(&snapshot(&mut model, 3 * SECOND)).1.len(), 2, "ended, not forgotten");
    model.take(&faults(4 * SECOND, &[]));
    assert_eq!(marks(&snapshot(&mut model, 70 * SECOND)), (last, vec![(20, (Some(8), None))]));
    let b = vec![exit(70 * SECOND, b, 0)];
    model.take(&moments(70 * SECOND, b));
    model.take(&faults(71 * SECOND, &[]));
    snapshot(&mut model, 71 * SECOND);
    assert_eq!(marks(&snapshot(&mut model, 140 * SECOND)), (last, vec![]));
}

#[test]
fn a_mark_of_nobody_goes_on_from_the_last_and_one_of_an_unknown_process_has_it_looked_up() {
    let mut model = model();
    model.take(&mark(SECOND, None, Some(1), Some(2)));
    model.take(&mark(SECOND, None, Some(3), None));
    assert_eq!(marks(&snapshot(&mut model, SECOND)), (Some((Some(3), Some(2))), vec![]));
    let unknown = mark(2 * SECOND, Some(owner(50, 2)), Some(9), None);
    assert_eq!(model.unknown(&unknown).processes, [ProcessId::from(&owner(50, 2))]);
    let found = FoundProcess {
        id: ProcessId::from(&owner(50, 2)),
        parent: Some(Tgid(1)),
        command: "train".into(),
        command_line: "train".into(),
        cgroup_path: Some("/a".into()),
        running: true,
    };
    model.take(&Sample { found: Found { processes: vec![found], ..Found::default() }, ..unknown });
    assert_eq!(marks(&snapshot(&mut model, 2 * SECOND)), (Some((Some(9), None)), vec![(50, (Some(9), None))]));
}

#[test]
fn trees_with_marks_are_bounded() {
    let mut model = model();
    let all: Vec<_> = (0..1030).map(|n| owner(100 + n, 2)).collect();
    model.take(&moments(SECOND, all.iter().map(|child| fork(SECOND, &owner(1, 1), *child)).collect()));
    for (step, owner) in all.iter().enumerate() {
        model.take(&mark(SECOND, Some(*owner), Some(step as u64), None));
    }
    model.take(&mark(SECOND, Some(all[0]), Some(5000), None));
    model.take(&mark(SECOND, Some(all[1029]), Some(6000), None));
    let (last, of_trees) = marks(&snapshot(&mut model, SECOND));
    assert_eq!((last, of_trees.len()), (Some((Some(6000), None)), 1024));
    assert_eq!(of_trees[0], (100, (Some(5000), None)), "one that has a mark may change it");
}

#[test]
fn a_tree_holds_descendants_in_its_cgroup_also_after_they_went() {
    let mut model = model();
    let (shell, worker, container) = (owner(10, 2), owner(11, 2), owner(12, 3));
    model.take(&moments(
        SECOND,
        vec![fork(SECOND, &owner(1, 1), shell), fork(SECOND, &shell, worker), fork(SECOND, &worker, container)],
    ));
    model.take(&faults(SECOND, &[(shell, 1), (worker, 10), (container, 100)]));
    model.take(&moments(2 * SECOND, vec![exit(2 * SECOND, worker, 0)]));
    let snapshot = snapshot(&mut model, 3 * SECOND);
    let trees: Vec<_> = snapshot
        .trees
        .iter()
        .map(|tree| (tree.root.tgid.0, tree.running, tree.exited_total, tree.subject.totals.user_faults()))
        .collect();
    assert_eq!(trees, [(1, 1, 0, 0), (10, 1, 1, 11), (12, 1, 0, 100)]);
    let running: Vec<_> = snapshot.cgroups.iter().map(|cgroup| (&*cgroup.path, cgroup.running)).collect();
    assert_eq!(running, [("/", 3), ("/a", 2), ("/a/b", 1)]);
}

fn exec(time: u64, owner: Owner, arguments: &'static [u8]) -> Moment {
    let arguments = bytes::Bytes::from_static(arguments);
    moment(time, What::Exec { owner, command: *b"sh\0\0\0\0\0\0\0\0\0\0\0\0\0\0", arguments, cut: false })
}

/// Root, rule and running processes of each tree in which any runs.
fn trees(snapshot: &Snapshot) -> Vec<(u32, Option<&str>, u32)> {
    let running = snapshot.trees.iter().filter(|tree| tree.running > 0);
    running.map(|tree| (tree.root.tgid.0, tree.rule, tree.running)).collect()
}

#[test]
fn descendants_follow_a_process_that_begins_a_tree() {
    let mut model = model();
    // A shell with a server to be, whose worker has a worker, and with something else.
    let [shell, server, worker, gone, inner, other] = [10, 20, 30, 40, 50, 60].map(|tgid| owner(tgid, 2));
    let life = [
        fork(10 * SECOND, &owner(1, 1), shell),
        fork(20 * SECOND, &shell, server),
        fork(30 * SECOND, &server, worker),
        fork(40 * SECOND, &server, gone),
        fork(50 * SECOND, &gone, inner),
        fork(60 * SECOND, &shell, other),
        exit(61 * SECOND, gone, 0),
    ];
    model.take(&moments(61 * SECOND, life.to_vec()));
    model.take(&faults(61 * SECOND, &[(worker, 7)]));
    assert_eq!(trees(&snapshot(&mut model, 61 * SECOND)), [(1, None, 1), (10, None, 5)]);
    model.take(&moments(62 * SECOND, vec![exec(62 * SECOND, server, b"gunicorn\0app\0")]));
    let after = snapshot(&mut model, 62 * SECOND);
    assert_eq!(trees(&after), [(1, None, 1), (10, None, 2), (20, Some("gunicorn"), 3)]);
    let tree_of = |tgid| find(&after, tgid).tree.tgid.0;
    assert_eq!([10, 20, 30, 50, 60].map(tree_of), [10, 20, 20, 20, 10]);
    // What was counted before stays where it was, and what ended does.
    assert_eq!(tree_of(40), 10);
    model.take(&faults(63 * SECOND, &[(worker, 10)]));
    let faults = |tree: usize| snapshot(&mut model.clone(), 63 * SECOND).trees[tree].subject.totals.user_faults();
    assert_eq!((faults(1), faults(2)), (7, 3));
}

#[test]
fn who_follows_the_root_to_another_cgroup_stays_in_its_tree() {
    let mut model = model();
    let [shell, server, worker] = [10, 20, 30].map(|tgid| owner(tgid, 2));
    let life =
        [fork(10 * SECOND, &owner(1, 1), shell), fork(20 * SECOND, &shell, server), fork(30 * SECOND, &server, worker)];
    model.take(&moments(30 * SECOND, life.to_vec()));
    let moved = |model: &mut Model, tgid| {
        model.take(&moments(31 * SECOND, vec![moment(31 * SECOND, What::Moved(owner(tgid, 3)))]));
        trees(&snapshot(model, 31 * SECOND)).iter().map(|&(root, _, running)| (root, running)).collect::<Vec<_>>()
    };
    assert_eq!(moved(&mut model, 20), [(1, 1), (10, 1), (20, 2)]);
    assert_eq!(moved(&mut model, 30), [(1, 1), (10, 1), (20, 2)]);
    assert_eq!(moved(&mut model, 10), [(1, 1), (10, 1), (20, 2)]);
}

#[test]
fn a_pid_that_is_used_again_is_nobodys_parent_before() {
    let mut model = model();
    let [shell, first, worker] = [10, 20, 30].map(|tgid| owner(tgid, 2));
    let again = Owner { start_ns: 40 * SECOND, ..first };
    let life = [
        fork(10 * SECOND, &owner(1, 1), shell),
        fork(20 * SECOND, &shell, first),
        fork(30 * SECOND, &first, worker),
        exit(31 * SECOND, first, 0),
        fork(40 * SECOND, &shell, again),
        exec(41 * SECOND, again, b"nginx: master\0"),
    ];
    model.take(&moments(41 * SECOND, life.to_vec()));
    let told = snapshot(&mut model, 41 * SECOND);
    assert_eq!(trees(&told), [(1, None, 1), (10, None, 2), (20, Some("nginx"), 1)]);
}

#[test]
fn containers_and_units_begin_with_their_oldest_tree() {
    let mut model = Model::new(BootTime(0), RETENTION, "v2", Vec::new());
    let container = format!("/docker/{}", "5".repeat(64));
    let cgroups = [(1, "/"), (2, "/system.slice"), (3, "/system.slice/a.service"), (4, &*container)];
    let cgroups = cgroups.map(|(id, path)| (CgroupId(id), path.into())).to_vec();
    model.take(&Sample { found: Found { cgroups, ..Found::default() }, ..Sample::default() });
    let init = owner(1, 1);
    // As runc has it: two processes come and go before the one that stays.
    let [stage, contained, entered] = [owner(10, 4), owner(11, 4), owner(12, 4)];
    let [main, other, known] = [owner(20, 3), owner(21, 3), owner(22, 3)];
    let life = [
        fork(10 * SECOND, &init, stage),
        fork(11 * SECOND, &init, contained),
        exit(12 * SECOND, stage, 0),
        fork(12 * SECOND, &init, entered),
        fork(20 * SECOND, &init, main),
        fork(21 * SECOND, &init, other),
        fork(22 * SECOND, &init, known),
        exec(22 * SECOND, known, b"postgres\0"),
        // A new program in the same place.
        exec(22 * SECOND, contained, b"sleep\0inf\0"),
        fork(23 * SECOND, &contained, owner(13, 4)),
    ];
    model.take(&moments(23 * SECOND, life.to_vec()));
    let told = snapshot(&mut model, 23 * SECOND);
    let expected =
        [(11, Some("container"), 2), (12, None, 1), (20, Some("unit"), 1), (21, None, 1), (22, Some("postgres"), 1)];
    assert_eq!(trees(&told), expected);
    // The next in line.
    model.take(&moments(24 * SECOND, vec![exit(24 * SECOND, main, 0)]));
    assert_eq!(trees(&snapshot(&mut model, 24 * SECOND))[2..], [(21, Some("unit"), 1), (22, Some("postgres"), 1)]);
    // A program's rule goes before that of the place.
    model.take(&moments(25 * SECOND, vec![exec(25 * SECOND, contained, b"nginx\0")]));
    assert_eq!(trees(&snapshot(&mut model, 25 * SECOND))[..2], [(11, Some("nginx"), 2), (12, None, 1)]);
}

/// What /proc tells of a process's command line.
fn title(time: u64, owner: &Owner, line: &str) -> Sample {
    let reading = ProcessReading { command_line: Some(line.to_owned()), ..ProcessReading::default() };
    let readings = Readings { processes: vec![(ProcessId::from(owner), reading)], ..Readings::default() };
    Sample { time: BootTime(time), readings, ..Sample::default() }
}

#[test]
fn a_title_set_later_names_the_process_and_may_begin_a_tree() {
    let mut model = model();
    let [shell, server, worker] = [10, 20, 30].map(|tgid| owner(tgid, 2));
    let life =
        [fork(10 * SECOND, &owner(1, 1), shell), fork(20 * SECOND, &shell, server), fork(30 * SECOND, &server, worker)];
    model.take(&moments(30 * SECOND, life.to_vec()));
    model.take(&title(31 * SECOND, &server, "postgres: main"));
    model.take(&title(31 * SECOND, &worker, "postgres: checkpointer"));
    let told = snapshot(&mut model, 31 * SECOND);
    assert_eq!(trees(&told), [(1, None, 1), (10, None, 1), (20, Some("postgres"), 2)]);
    assert_eq!(find(&told, 30).command_line, "postgres: checkpointer");
    assert_eq!(told.trees[2].command_line, "postgres: main");
    // It is kept apart from what is polled, and a title that says nothing of the program does not take its rule away.
    assert!(find(&told, 30).usage.as_ref().unwrap().reading.command_line.is_none());
    model.take(&title(32 * SECOND, &server, "my database"));
    let told = snapshot(&mut model, 32 * SECOND);
    assert_eq!((told.trees[2].rule, &*told.trees[2].command_line), (Some("postgres"), "my database"));
    // A new program does.
    model.take(&moments(33 * SECOND, vec![exec(33 * SECOND, server, b"sleep\0inf\0")]));
    assert_eq!(snapshot(&mut model, 33 * SECOND).trees[2].rule, None);
}

#[test]
fn a_record_that_was_cut_does_not_shorten_what_proc_told() {
    let mut model = Model::new(BootTime(0), RETENTION, "v2", vec!["*--serve".to_owned()]);
    let server = owner(10, 2);
    model.take(&moments(10 * SECOND, vec![fork(10 * SECOND, &owner(1, 1), server)]));
    let exec = |arguments: &'static [u8]| {
        let arguments = bytes::Bytes::from_static(arguments);
        moment(11 * SECOND, What::Exec { owner: server, command: [0; 16], arguments, cut: true })
    };
    model.take(&title(11 * SECOND, &server, "java -Dvery.long=é --serve"));
    // The record's end is in the middle of a letter.
    model.take(&moments(11 * SECOND, vec![exec(b"java\0-Dvery.long=\xc3")]));
    let told = snapshot(&mut model, 11 * SECOND);
    assert_eq!((&*told.trees[0].command_line, told.trees[0].rule), ("java -Dvery.long=é --serve", Some("entry_point")));
    model.take(&moments(12 * SECOND, vec![exec(b"java\0-Dother=")]));
    let told = snapshot(&mut model, 12 * SECOND);
    assert_eq!((&*told.trees[0].command_line, told.trees[0].rule), ("java -Dother=…", None));
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
    let doomed = What::OomVictim { owner: process, command: [0; 16] };
    let taken = model.take(&moments(
        SECOND,
        vec![
            fork(SECOND, &owner(1, 1), process),
            moment(SECOND, exec),
            moment(SECOND, doomed),
            exit(SECOND, process, 9),
        ],
    ));
    let names: Vec<_> =
        taken.events.iter().map(|event| serde_json::to_value(event).unwrap()["event"].clone()).collect();
    assert_eq!(names, ["fork", "exec", "oom_victim", "exit"]);
    let snapshot = snapshot(&mut model, SECOND);
    let process = find(&snapshot, 10);
    assert_eq!((&*process.command, &*process.command_line), ("python3", "python3 train.py…"));
    assert!(matches!(process.state, ProcessState::Exited { oom_killed: true, wait_status: Some(9), .. }));
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
    assert_eq!(unknown.processes, [ProcessId::from(&owner(77, 99))]);
    assert_eq!(unknown.cgroups, [CgroupId(99)]);
    sample.found.processes.push(FoundProcess {
        id: unknown.processes[0],
        parent: None,
        command: String::new(),
        command_line: String::new(),
        cgroup_path: None,
        running: false,
    });
    model.take(&sample);
    let snapshot = snapshot(&mut model, 2 * SECOND);
    assert_eq!(find(&snapshot, 77).subject.totals.user_faults(), 4);
    assert_eq!(snapshot.host.totals.user_faults(), 7, "what belongs to nobody still counts for the host");
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

/// A sample in which processes have used so much CPU time.
fn cpu_times(time: u64, used: &[(Owner, u64)]) -> Sample {
    let reading = |&(owner, cpu_ns): &(Owner, u64)| {
        (ProcessId::from(&owner), ProcessReading { cpu_ns: Some(cpu_ns), ..ProcessReading::default() })
    };
    let readings = Readings { processes: used.iter().map(reading).collect(), ..Readings::default() };
    Sample { time: BootTime(time), readings, ..Sample::default() }
}

#[test]
fn a_trees_cpu_time_does_not_fall_when_its_processes_exit_or_leave() {
    let mut model = model();
    let (root, worker, leaver) = (owner(10, 2), owner(11, 2), owner(12, 2));
    let forks = vec![fork(1, &owner(1, 1), root), fork(2, &root, worker), fork(3, &root, leaver)];
    model.take(&moments(SECOND, forks));
    let mut times = |sample: Sample, moment_of: Option<Moment>| {
        let time = sample.time.0;
        model.take(&moments(time, moment_of.into_iter().collect()));
        model.take(&sample);
        let trees = snapshot(&mut model, time).trees;
        let of = |tgid| trees.iter().find(|tree| tree.root.tgid == Tgid(tgid)).and_then(|tree| tree.usage?.cpu_ns);
        (of(10), of(12))
    };
    assert_eq!(times(cpu_times(SECOND, &[(root, 1), (worker, 20), (leaver, 300)]), None), (Some(321), None));
    let exits = Some(exit(2 * SECOND, worker, 0));
    assert_eq!(times(cpu_times(2 * SECOND, &[(root, 2)]), exits), (Some(322), None));
    let leaves = Some(moment(3 * SECOND, What::Moved(Owner { cgroup: 3, ..leaver })));
    assert_eq!(times(cpu_times(3 * SECOND, &[(leaver, 700)]), leaves), (Some(322), Some(400)));
    let exits = Some(exit(4 * SECOND, root, 0));
    assert_eq!(times(cpu_times(4 * SECOND, &[(leaver, 800)]), exits), (Some(322), Some(500)));
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

fn found_container(name: Option<&str>) -> FoundContainer {
    let name = name.map(str::to_owned);
    let pod = name.as_ref().map(|_| "web-0".to_owned());
    FoundContainer { id: CONTAINER.into(), name, pod, ..FoundContainer::default() }
}

fn containers(time: u64, found: FoundContainer) -> Sample {
    Sample { time: BootTime(time), found: Found { containers: vec![found], ..Found::default() }, ..Sample::default() }
}

fn due(model: &Model, time: u64) -> usize {
    model.unknown(&Sample { time: BootTime(time), ..Sample::default() }).containers.len()
}

/// A model with a pod's container (4), a cgroup below it (5), and a process in the latter (20) with a child (21).
fn model_with_container() -> Model {
    let mut model = model();
    let path = format!("/kubepods/pod{POD}/{CONTAINER}");
    let made = |id, path: &str| moment(SECOND, What::CgroupMade(CgroupId(id), path.into()));
    let (process, child) = (owner(20, 5), owner(21, 5));
    model.take(&moments(
        SECOND,
        vec![
            made(4, &path),
            made(5, &format!("{path}/inner")),
            fork(SECOND, &owner(1, 1), process),
            fork(SECOND, &process, child),
        ],
    ));
    model
}

#[test]
fn a_container_and_all_in_it_have_its_name_when_it_is_found() {
    let mut model = model_with_container();
    let before = snapshot(&mut model, 2 * SECOND);
    let container = find(&before, 20).container.as_deref().expect("the path tells of the container");
    assert_eq!((&*container.id, container.pod_uid.as_deref(), &container.name), (CONTAINER, Some(POD), &None));
    assert!(before.processes[0].container.is_none(), "init is in none");

    model.take(&containers(3 * SECOND, found_container(Some("nginx"))));
    let after = snapshot(&mut model, 4 * SECOND);
    let of_tree = after.trees.iter().find(|tree| tree.root.tgid == Tgid(20)).and_then(|tree| tree.container.as_ref());
    let of_cgroup = after.cgroups.iter().find(|cgroup| cgroup.id == CgroupId(4)).and_then(|c| c.container.as_ref());
    let of_processes = [20, 21].map(|pid| find(&after, pid).container.as_ref());
    for container in [of_tree, of_cgroup].into_iter().chain(of_processes) {
        let container = container.expect("in the container");
        assert_eq!((container.name.as_deref(), container.pod.as_deref()), (Some("nginx"), Some("web-0")));
    }
    assert_eq!(find(&before, 20).container.as_deref().unwrap().name, None, "readers keep what they hold");

    model.take(&moments(5 * SECOND, vec![fork(5 * SECOND, &owner(20, 5), owner(22, 5))]));
    let later = snapshot(&mut model, 6 * SECOND);
    assert_eq!(find(&later, 22).container.as_deref().unwrap().name.as_deref(), Some("nginx"));
}

#[test]
fn a_name_is_looked_for_until_it_is_found() {
    let mut model = model_with_container();
    assert_eq!(due(&model, SECOND), 1, "at once, and once for the container and what is below it");
    model.take(&containers(SECOND, found_container(None)));
    assert_eq!((due(&model, SECOND * 3 / 2), due(&model, 2 * SECOND)), (0, 1));
    model.take(&containers(2 * SECOND, found_container(Some("nginx"))));
    assert_eq!(due(&model, 1000 * SECOND), 0);
}

#[test]
fn a_name_that_nobody_knows_is_looked_for_six_times() {
    let mut model = model_with_container();
    let mut tries = Vec::new();
    for second in 1..100 {
        if due(&model, second * SECOND) == 1 {
            tries.push(second);
            model.take(&containers(second * SECOND, found_container(None)));
        }
    }
    assert_eq!(tries, [1, 2, 4, 8, 16, 32]);
}

#[test]
fn a_container_that_has_gone_is_not_looked_for() {
    let mut model = model_with_container();
    model.take(&moments(2 * SECOND, vec![moment(2 * SECOND, What::CgroupRemoved(CgroupId(4), "".into()))]));
    assert_eq!(due(&model, 3 * SECOND), 0);
}

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
