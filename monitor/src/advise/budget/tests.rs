//! Budgets of made-up servers, worked out by hand.

use super::*;
use crate::{
    coverage::{Coverage, SourceCoverage, State},
    detect::Findings,
    ids::ProcessId,
    model::{
        totals::Requests,
        usage::{CgroupUsage, ProcessUsage, TreeUsage},
    },
    reading::{CgroupReading, MemoryReading, ProcessReading, Resident, Shares},
    serve::fixtures,
    time::BootTime,
};
use monitor_common::requests;

const MIB: u64 = 1 << 20;
const PATH: &str = "/apps/a";
const ROOT: u32 = 10;

/// A process of the tree of process 10, its memory in mebibytes.
struct Made {
    pid: u32,
    parent: u32,
    command_line: &'static str,
    unique: u64,
    proportional: u64,
    anon: u64,
    resident: u64,
    /// What of its anonymous memory came after it was split.
    since: u64,
    /// When it was split, in seconds since boot; each process began at the second of its pid.
    split_at: u64,
    /// In flight, served, and the most in flight.
    requests: Option<(u64, u64, u64)>,
}

const MASTER: Made = Made {
    pid: ROOT,
    parent: 1,
    command_line: "gunicorn app:app",
    unique: 6,
    proportional: 10,
    anon: 8,
    resident: 20,
    since: 0,
    split_at: 90,
    requests: None,
};
/// Of its memory 4 are a third of what it shares with the master and one other.
const WORKER: Made = Made { pid: 11, parent: ROOT, unique: 40, proportional: 44, anon: 44, resident: 52, ..MASTER };

fn process(made: &Made) -> Arc<Process> {
    let snapshot = fixtures::snapshot();
    let mut process = (*snapshot.processes[0]).clone();
    let id = |pid| ProcessId { tgid: Tgid(pid), start_ns: u64::from(pid) * 1_000_000_000 };
    (process.id, process.parent, process.tree) = (id(made.pid), Some(Tgid(made.parent)), id(ROOT));
    made.command_line.clone_into(&mut process.command_line);
    let split = |mebibytes: u64| (mebibytes - made.since) * MIB;
    let shares = || Shares { unique_bytes: split(made.unique), proportional_bytes: split(made.proportional) };
    let file_bytes = (made.resident - made.anon) * MIB;
    let resident = Resident { anon_bytes: made.anon * MIB, file_bytes, ..Resident::default() };
    process.usage = Some(Arc::new(ProcessUsage {
        shares_time: Some(BootTime(made.split_at * 1_000_000_000)),
        shares_anon_bytes: Some((made.anon - made.since) * MIB),
        reading: ProcessReading {
            shares: (made.proportional > 0).then(shares),
            resident: Some(resident),
            ..ProcessReading::default()
        },
        ..ProcessUsage::default()
    }));
    process.subject.totals.requests = made.requests.map(requests_of);
    Arc::new(process)
}

fn requests_of((in_flight, answered, peak): (u64, u64, u64)) -> Box<Requests> {
    let begun = answered + in_flight;
    Box::new(Requests::of(requests::Totals { begun, answered, peak, ..requests::Totals::default() }))
}

/// A machine with that tree below a limit of 512 MiB, of which all of the cgroup have in use what `used` says.
fn machine(made: &[Made], used: u64) -> Snapshot {
    let mut snapshot = fixtures::snapshot_with_memory();
    let mut processes: Vec<_> = made.iter().map(process).collect();
    processes.extend(snapshot.processes.drain(2..));
    snapshot.processes = processes;
    let tree = Arc::make_mut(&mut snapshot.trees[0]);
    tree.running = made.len() as u32;
    made[0].command_line.clone_into(&mut tree.command_line);
    tree.usage = Some(TreeUsage::default());
    let all: Vec<_> = made.iter().filter_map(|made| made.requests).collect();
    let sum = |of: fn(&(u64, u64, u64)) -> u64| all.iter().map(of).sum();
    tree.subject.totals.requests =
        (!all.is_empty()).then(|| requests_of((sum(|one| one.0), sum(|one| one.1), sum(|one| one.2))));
    let memory = MemoryReading {
        current_bytes: used * MIB,
        inactive_file_bytes: Some(0),
        limit_bytes: Some(512 * MIB),
        ..MemoryReading::default()
    };
    let limit = Some(Limit { bytes: 512 * MIB, source: Some(PATH.into()) });
    let reading = CgroupReading { memory: Some(memory), ..CgroupReading::default() };
    let usage = CgroupUsage { reading, limit, ..CgroupUsage::default() };
    if let Some(cgroup) = snapshot.cgroups.iter_mut().find(|cgroup| &*cgroup.path == PATH) {
        Arc::make_mut(cgroup).usage = Some(Arc::new(usage));
    }
    snapshot
}

fn budget_of(snapshot: &Snapshot, load: Option<&Load>, findings: &Findings) -> Budget {
    let processes: Vec<&Process> =
        snapshot.running().iter().map(|process| &**process).filter(|one| one.tree.tgid == Tgid(ROOT)).collect();
    Budget::of(snapshot, &snapshot.trees[0], &processes, load, findings)
}

fn budget(made: &[Made], used: u64) -> Budget {
    budget_of(&machine(made, used), None, &Findings::default())
}

fn mib(bytes: Option<u64>) -> Option<u64> {
    bytes.map(|bytes| bytes / MIB)
}

/// Requests that hold 8 MiB each.
fn held() -> Load {
    let wave = [0, 3, 1, 5, 2, 4, 0, 4, 3, 1, 2, 0];
    Load::of((0..120).map(|tick| wave[tick / 3 % 12]).map(|x| (0, x, (100 + 8 * u64::from(x)) * MIB)))
}

/// The tree leaks one MiB with each request, or half and twice of that.
fn leak(low: f64, high: f64) -> Findings {
    let leak = fixtures::findings().findings.iter().find(|one| one.detector == LEAK).cloned().unwrap();
    let scale = 1000.0 * MIB as f64;
    let bytes_per_1000_requests = Some(Estimate { value: scale, low: low * scale, high: high * scale });
    Findings { findings: vec![Arc::new(Finding { bytes_per_1000_requests, ..(*leak).clone() })], ..Findings::default() }
}

#[test]
fn a_server_at_rest_is_baseline_and_workers() {
    let budget = budget(&[MASTER, WORKER, Made { pid: 12, unique: 44, proportional: 48, ..WORKER }], 120);
    assert_eq!((budget.tree, budget.workers, budget.command.as_str()), (Tgid(ROOT), 2, "gunicorn app:app"));
    // 6 of the master, and three thirds of what all share: 10 + 44 + 48 less 40 + 44.
    assert_eq!(mib(budget.baseline_bytes), Some(18));
    // Of two the larger; it shares 52 - 40, the other 52 - 44.
    assert_eq!((mib(budget.worker.private_bytes), mib(budget.worker.shared_bytes)), (Some(44), Some(12)));
    assert_eq!((mib(budget.limit_bytes), budget.limit_source.as_deref()), (Some(512), Some(PATH)));
    // 120 are in use, of which 102 are the tree's.
    assert_eq!(mib(budget.others_bytes), Some(18));
    assert_eq!((mib(budget.one_more_worker_bytes), budget.margin_bytes), (Some(44), Some((512 - 18 - 18 - 88) << 20)));
    assert_eq!(budget.most_workers, Some((512 - 36) / 44));
    assert_eq!(
        (budget.concurrent_requests_peak, budget.per_request, budget.most_threads_per_worker),
        (Some(0), None, None)
    );
    // Both have at least 40, which they have loaded: the master has 8 MiB of anonymous memory.
    assert_eq!((mib(budget.preload_saves_bytes), budget.max_requests), (Some(40), None));
    assert_eq!(budget.remarks.len(), 1, "{:?}", budget.remarks);
    assert!(budget.remarks[0].contains("it has served none"));
}

#[test]
fn who_comes_later_shares_what_was_read_before() {
    // What they share, 12, was a half of each of the two, and is a third of each of the three.
    let early = |made: Made| Made { proportional: made.unique + 6, split_at: 11, ..made };
    let before = budget(&[early(MASTER), early(WORKER)], 120);
    let after = budget(&[early(MASTER), early(WORKER), Made { pid: 12, ..WORKER }], 120);
    assert_eq!([mib(before.baseline_bytes), mib(after.baseline_bytes)], [Some(18); 2]);
}

#[test]
fn requests_are_no_part_of_a_worker_and_count_at_their_peak() {
    let busy = |pid, in_flight: u64, peak| {
        let held = 8 * in_flight;
        let (unique, proportional, anon) = (40 + held, 44 + held, 44 + held);
        let requests = Some((in_flight, 100, peak));
        Made { pid, unique, proportional, anon, resident: anon + 8, since: held / 2, requests, ..WORKER }
    };
    let snapshot = machine(&[MASTER, busy(11, 2, 3), busy(12, 1, 2)], 128);
    let budget = budget_of(&snapshot, Some(&held()), &Findings::default());
    let request = budget.per_request.unwrap();
    assert_eq!((request.value_bytes + 1024) / MIB, 8);
    assert!(request.low_bytes < 8 * MIB && request.high_bytes > 8 * MIB && request.high_bytes < 9 * MIB);
    let near = |bytes: Option<u64>, mebibytes: u64| bytes.unwrap().abs_diff(mebibytes * MIB) < MIB / 16;
    assert!(near(budget.worker.private_bytes, 40), "{budget:?}");
    assert_eq!(mib(budget.baseline_bytes), Some(18));
    assert_eq!((budget.concurrent_requests_peak, budget.worker.requests_peak), (Some(5), Some(3)));
    assert_eq!(budget.one_more_worker_bytes, budget.worker.private_bytes.map(|rest| rest + 3 * request.high_bytes));
    // 128 in use, 122 of them the tree's.
    let left = (512 - 18 - 6) * MIB;
    let each = budget.worker.private_bytes.unwrap();
    assert_eq!(budget.most_workers, Some(left / (each + 3 * request.high_bytes)));
    assert_eq!(budget.most_threads_per_worker, Some((left / 2 - each) / request.high_bytes));
    assert!(near(budget.preload_saves_bytes, 40), "{budget:?}");
    assert_eq!(budget.remarks, [""; 0]);
}

#[test]
fn a_server_without_workers_has_its_requests_in_no_baseline() {
    let alone =
        Made { unique: 34, proportional: 36, anon: 30, resident: 44, since: 8, requests: Some((3, 9, 4)), ..MASTER };
    let budget = budget_of(&machine(&[alone], 40), Some(&held()), &Findings::default());
    let request = budget.per_request.unwrap().high_bytes;
    assert_eq!((budget.workers, mib(budget.baseline_bytes.map(|bytes| bytes + MIB / 16))), (0, Some(36 - 24)));
    assert_eq!(budget.worker, Worker { requests_peak: Some(4), ..Worker::default() });
    assert_eq!((budget.one_more_worker_bytes, budget.most_workers), (None, None));
    assert_eq!(budget.most_threads_per_worker, Some((508 * MIB - budget.baseline_bytes.unwrap()) / request));
    assert!(budget.remarks.iter().any(|remark| remark.contains("no workers")));
}

#[test]
fn helpers_and_what_workers_start_are_where_they_belong() {
    let helper = Made { pid: 13, unique: 1, proportional: 2, command_line: "resource_tracker", ..WORKER };
    let below = Made { pid: 14, parent: 12, unique: 10, proportional: 11, ..WORKER };
    let budget = budget(&[MASTER, WORKER, Made { pid: 12, ..WORKER }, helper, below], 120);
    assert_eq!((budget.workers, mib(budget.worker.private_bytes)), (2, Some(50)));
    // 10 + 44 + 44 + 2 + 11 less 40 + 50.
    assert_eq!(mib(budget.baseline_bytes), Some(21));
    assert!(budget.remarks.iter().any(|remark| remark.starts_with("one more process is too small")));
}

#[test]
fn a_leak_asks_for_restarts_that_keep_it_below_the_limit() {
    let served = |pid| Made { pid, requests: Some((0, 20, 1)), ..WORKER };
    let snapshot = machine(&[MASTER, served(11), served(12)], 120);
    let budget = budget_of(&snapshot, None, &leak(0.5, 2.0));
    // Each has leaked 10 MiB at least, so that one begins with 30; 22 are others', 18 the baseline. Of what is left each may leak
    // half, at 2 MiB a request: 103 requests, or 98 with a jitter of 4.
    assert_eq!(budget.max_requests, Some(MaxRequests { requests: 98, jitter: 4 }));
    assert_eq!(mib(budget.preload_saves_bytes), Some(30), "what has leaked was not loaded");
    let none = budget_of(&snapshot, None, &leak(-0.5, 2.0));
    assert!(none.max_requests.is_none() && none.remarks.iter().any(|remark| remark.contains("not by requests")));
    let full = budget_of(&machine(&[MASTER, served(11), served(12)], 600), None, &leak(0.5, 2.0));
    assert!(full.max_requests.is_none() && full.remarks.iter().any(|remark| remark.contains("does not fit either")));
}

#[test]
fn a_containers_leak_is_its_trees_unless_they_have_one_of_their_own() {
    let mut found = leak(0.5, 2.0);
    let claim = |path: &str| {
        Arc::new(Finding {
            subject: Subject::Cgroup { id: crate::ids::CgroupId(1), path: path.into(), container: None },
            ..(*leak(0.5, 2.0).findings[0]).clone()
        })
    };
    let snapshot = machine(&[MASTER, WORKER], 120);
    let is_of = |found: &Findings| leak_of(found, &snapshot.trees[0]).map(|finding| finding.subject.name());
    found.findings.insert(0, claim("/apps"));
    assert_eq!(is_of(&found).as_deref(), Some("python3 train.py --epochs 3 (10)"));
    found.findings.pop();
    assert_eq!(is_of(&found).as_deref(), Some("cgroup /apps"));
    found.findings = vec![claim("/app"), claim("/apps/a/b")];
    assert_eq!(is_of(&found), None);
}

#[test]
fn what_is_not_known_is_none_and_said() {
    let unread = |made| Made { proportional: 0, ..made };
    let told = budget(&[unread(MASTER), unread(WORKER)], 120);
    assert_eq!(
        (told.baseline_bytes, told.worker.private_bytes, told.margin_bytes, told.most_workers),
        (None, None, None, None)
    );
    assert!(told.remarks.iter().any(|remark| remark == "of 2 of 2 processes it is not known yet what they share"));
    let some = budget(&[MASTER, WORKER, unread(Made { pid: 12, ..WORKER })], 120);
    assert_eq!((some.workers, mib(some.worker.private_bytes), mib(some.baseline_bytes)), (2, Some(40), Some(14)));
    assert!(some.remarks.iter().any(|remark| remark.starts_with("of 1 of 3 processes")));
    assert_eq!(some.preload_saves_bytes, None);
}

#[test]
fn preloading_saves_nothing_where_it_cannot_be() {
    let reason = |made: &[Made]| {
        let budget = budget(made, 120);
        assert_eq!(budget.preload_saves_bytes, None);
        budget.remarks.last().cloned().unwrap_or_default()
    };
    assert!(reason(&[MASTER, WORKER]).contains("takes two workers"));
    let spawned = |pid| Made { pid, command_line: "python3 -c from multiprocessing.spawn", ..WORKER };
    assert!(reason(&[MASTER, spawned(11), spawned(12)]).contains("programs of their own"));
    let titled = |pid| Made { pid, command_line: "gunicorn: worker [app]", ..WORKER };
    let master = Made { command_line: "gunicorn: master [app]", ..MASTER };
    assert_eq!(mib(budget(&[master, titled(11), titled(12)], 120).preload_saves_bytes), Some(40));
    // It has loaded all before the fork, and the workers have written to it.
    let master = Made { anon: 44, resident: 60, ..MASTER };
    assert!(reason(&[master, WORKER, Made { pid: 12, ..WORKER }]).contains("next to nothing"));
}

#[test]
fn without_the_source_requests_are_not_zero() {
    let mut snapshot = machine(&[MASTER, WORKER], 120);
    let without = |coverage: &SourceCoverage| SourceCoverage { state: State::Unavailable, ..coverage.clone() };
    snapshot.coverage = Arc::new(Coverage(snapshot.coverage.0.iter().map(without).collect()));
    let budget = budget_of(&snapshot, None, &Findings::default());
    assert_eq!((budget.concurrent_requests_peak, budget.worker.requests_peak), (None, None));
    assert!(budget.remarks[0].contains("requests are not counted"));
    snapshot.cgroups.clear();
    let budget = budget_of(&snapshot, None, &Findings::default());
    assert_eq!((mib(budget.limit_bytes), budget.limit_source.as_deref()), (Some(64), Some(HOST)));
    snapshot.host_usage = None;
    let budget = budget_of(&snapshot, None, &Findings::default());
    assert_eq!((budget.limit_bytes, budget.limit_source, budget.margin_bytes), (None, None, None));
}

/// A server that serves `in_flight` requests in the tick, with so much memory.
fn serving(number: u64, in_flight: u64, mebibytes: u64) -> Snapshot {
    let mut snapshot = fixtures::grown(number, mebibytes);
    Arc::make_mut(&mut snapshot.trees[0]).subject.totals.requests = Some(requests_of((in_flight, 5, 1)));
    snapshot
}

#[test]
fn points_are_kept_of_servers_where_something_moves() {
    let mut budgets = Budgets::default();
    let count =
        |loads: &Loads, snapshot: &Snapshot| loads.of(snapshot.trees[0].root.key()).map(|load| load.points().count());
    let mut take = |in_flight, mebibytes, processes| {
        let mut snapshot = serving(1, in_flight, mebibytes);
        Arc::make_mut(&mut snapshot.trees[0]).exited_total = processes;
        count(&budgets.take(&snapshot), &snapshot)
    };
    assert_eq!(take(0, 7, 1), None, "too small");
    assert_eq!([take(0, 8, 1), take(0, 8, 1), take(1, 8, 1), take(1, 9, 1)], [Some(1), Some(1), Some(2), Some(3)]);
    assert_eq!(take(1, 7, 1), Some(4), "it was large enough before");
    assert_eq!([take(1, 7, 2), take(1, 7, 2)], [Some(5), Some(5)], "others have other memory");
    for tick in 0..300 {
        take(tick, 9, 2);
    }
    assert_eq!(take(0, 9, 2), Some(240), "no more are kept");
    let loads = budgets.take(&fixtures::grown(2, 64));
    assert_eq!((loads.of(fixtures::grown(2, 64).trees[0].root.key()).is_some(), loads.left_out), (true, 0));
    let nobody = Snapshot { trees: Vec::new(), ..fixtures::snapshot() };
    assert!(budgets.take(&nobody).of(fixtures::grown(2, 64).trees[0].root.key()).is_none());
}

#[test]
fn there_is_room_for_64_servers_and_the_first_keep_theirs() {
    let crowd = |first: u32| {
        let snapshot = serving(1, 1, 64);
        let tree = |pid| {
            let mut tree = (*snapshot.trees[0]).clone();
            tree.root = ProcessId { tgid: Tgid(pid), start_ns: 0 };
            Arc::new(tree)
        };
        Snapshot { trees: (first..first + 70).map(tree).collect(), ..snapshot }
    };
    let key = |pid| ProcessId { tgid: Tgid(pid), start_ns: 0 }.key();
    let mut budgets = Budgets::default();
    let loads = budgets.take(&crowd(100));
    assert_eq!((loads.left_out, loads.of(key(163)).is_some(), loads.of(key(164)).is_some()), (6, true, false));
    let loads = budgets.take(&crowd(95));
    assert_eq!((loads.left_out, loads.of(key(95)).is_some(), loads.of(key(163)).is_some()), (6, false, true));
}
