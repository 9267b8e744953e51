//! What is told of made-up kills.

use super::*;
use crate::{
    ids::ProcessId,
    model::{
        snapshot::Resident,
        usage::{CgroupUsage, Peak},
    },
    reading::{self, CgroupReading, MemoryReading},
    serve::fixtures,
};

const SECOND: u64 = 1_000_000_000;
const MIB: u64 = 1 << 20;

fn process(pid: u32, mib: u64, path: &str) -> Arc<Process> {
    let mut process = (*fixtures::snapshot().processes[2]).clone();
    process.id = ProcessId { tgid: Tgid(pid), start_ns: u64::from(pid) * SECOND };
    process.command = format!("p{pid}");
    process.cgroup = CgroupId(5);
    process.cgroup_path = Some(path.into());
    let mut bytes = [0; monitor_common::resident::KINDS];
    bytes[monitor_common::resident::ANON] = mib * MIB;
    process.subject = crate::model::snapshot::Subject {
        resident: Some(Resident { bytes, processes: 1 }),
        ..crate::model::snapshot::Subject::default()
    };
    Arc::new(process)
}

fn killed(process: &Arc<Process>, second: u64) -> Arc<Process> {
    let mut process = (**process).clone();
    let time = BootTime(second * SECOND);
    process.state = ProcessState::Exited { time, wait_status: Some(9), oom_killed: true };
    process.subject.resident = None;
    Arc::new(process)
}

fn cgroup(id: u64, path: &str, limit_mib: Option<u64>, current_mib: u64, oom: u64) -> Arc<Cgroup> {
    let memory = MemoryReading {
        limit_bytes: limit_mib.map(|mib| mib * MIB),
        current_bytes: current_mib * MIB,
        events: MemoryEvents { oom: Some(oom), ..MemoryEvents::default() },
        ..MemoryReading::default()
    };
    let reading = CgroupReading { memory: Some(memory), ..CgroupReading::default() };
    let peak = Some(Peak { bytes: current_mib * MIB, by_kernel: true });
    let usage = Some(Arc::new(CgroupUsage { reading, peak, ..CgroupUsage::default() }));
    let cgroup = (*fixtures::snapshot().cgroups[0]).clone();
    Arc::new(Cgroup { id: CgroupId(id), path: path.into(), usage, ..cgroup })
}

/// What is told after a kill, a tick later.
fn after(black_box: &mut BlackBox, snapshot: &Snapshot) -> Vec<Arc<Story>> {
    assert_eq!(black_box.take(snapshot), [], "nothing is told in the same tick");
    black_box.take(&Snapshot { time: BootTime(snapshot.time.0 + SECOND / 5), ..snapshot.clone() })
}

/// The pod's limit is 100 MiB, the container's own 400 MiB: it is the pod's that counts.
fn at(second: u64, processes: Vec<Arc<Process>>, current_mib: u64, oom: u64) -> Snapshot {
    let cgroups = vec![
        cgroup(1, "/", None, 500, oom),
        cgroup(4, "/pod", Some(100), current_mib, oom),
        cgroup(5, "/pod/main", Some(400), current_mib, 0),
    ];
    Snapshot { time: BootTime(second * SECOND), since: BootTime(0), processes, cgroups, ..fixtures::snapshot() }
}

/// Ten minutes in which process 900 stays as it is and process 901 grows, a mebibyte every ten seconds.
fn ten_minutes(black_box: &mut BlackBox) {
    for step in 0..=60 {
        let processes = vec![process(900, 60, "/pod/main"), process(901, 10 + step / 2, "/pod/main")];
        assert_eq!(black_box.take(&at(1000 + 10 * step, processes, 70 + step / 2, 0)), []);
    }
}

#[test]
fn who_grew_is_told_apart_from_whom_it_hit() {
    let mut black_box = BlackBox::default();
    ten_minutes(&mut black_box);
    let processes = vec![process(901, 40, "/pod/main"), killed(&process(900, 60, "/pod/main"), 1609)];
    let snapshot = at(1608, processes, 100, 1);
    let news = after(&mut black_box, &snapshot);
    assert_eq!(news.len(), 1);
    let story = &*news[0];
    assert_eq!(
        story.summary,
        "the kernel killed p900 (900): /pod was at its limit of 100.0 MiB; p901 (901) had grown by 30.0 MiB"
    );
    assert_eq!((story.culprit_was_killed, story.limit.known_by), (false, KnownBy::Counter));
    assert_eq!((story.limit.cgroup.as_deref(), story.points_of.as_deref()), (Some("/pod"), Some("/pod")));
    let victim = &story.victims[0];
    assert_eq!((victim.first_bytes, victim.last_bytes, victim.grown_bytes), (60 * MIB, Some(60 * MIB), 0));
    assert_eq!(story.points.len(), POINTS + 1, "ten minutes, and the last moment");
    let span = story.points[60].time_ns.since(story.points[0].time_ns);
    assert!((597..=600).contains(&span.as_secs()), "{span:?}");
    assert_eq!((story.points[0].current_bytes, story.points[60].current_bytes), (70 * MIB, 100 * MIB));
    assert_eq!(black_box.take(&snapshot), [], "it has been told");
    assert_eq!(black_box.stories().len(), 1);
}

#[test]
fn who_grew_and_was_killed_is_one() {
    let mut black_box = BlackBox::default();
    ten_minutes(&mut black_box);
    // What the kernel said when it chose it is newer than any look.
    let mut victim = killed(&process(901, 40, "/pod/main"), 1609);
    let resident =
        reading::Resident { anon_bytes: 43 * MIB, file_bytes: MIB, swap_bytes: 9 * MIB, ..Default::default() };
    Arc::make_mut(&mut victim).resident_when_killed = Some(resident);
    let processes = vec![process(900, 60, "/pod/main"), victim];
    let story = after(&mut black_box, &at(1608, processes, 100, 1)).remove(0);
    assert!(story.culprit_was_killed, "{story:?}");
    assert_eq!(story.victims[0].last_bytes, Some(44 * MIB));
    assert!(story.summary.ends_with("; it had grown by 34.0 MiB"), "{}", story.summary);
}

#[test]
fn one_that_lived_too_shortly_to_be_looked_at_is_known_by_its_faults() {
    let mut black_box = BlackBox::default();
    ten_minutes(&mut black_box);
    let mut young = (*process(1609, 0, "/pod/main")).clone();
    young.subject.totals.page_fault[0] = 30 * MIB / 4096;
    let processes = vec![process(900, 60, "/pod/main"), killed(&Arc::new(young), 1609)];
    let story = after(&mut black_box, &at(1608, processes, 100, 1)).remove(0);
    assert_eq!(story.culprit.as_ref().map(|culprit| (culprit.pid.0, culprit.grown_bytes)), Some((1609, 30 * MIB)));
}

#[test]
fn a_cgroup_that_has_gone_is_told_by_what_was_known_and_by_its_tightest_limit() {
    let mut black_box = BlackBox::default();
    ten_minutes(&mut black_box);
    let mut snapshot = at(1608, vec![killed(&process(901, 40, "/pod/main"), 1609)], 90, 0);
    for cgroup in &mut snapshot.cgroups[1..] {
        Arc::make_mut(cgroup).removed = true;
    }
    let story = after(&mut black_box, &snapshot).remove(0);
    assert!(story.cgroup_removed);
    assert_eq!((story.limit.cgroup.as_deref(), story.limit.known_by), (Some("/pod"), KnownBy::TightestLimit));
    assert_eq!(story.points.len(), POINTS + 1);
    // Long after all of it has been forgotten.
    let later = at(9999, Vec::new(), 0, 0);
    black_box.take(&Snapshot { cgroups: Vec::new(), ..later });
    assert_eq!(*black_box.stories()[0], *story);
}

#[test]
fn without_a_limit_it_was_the_machines_memory() {
    let mut black_box = BlackBox::default();
    let mut snapshot = fixtures::snapshot_with_memory();
    snapshot.cgroups.clear();
    let story = after(&mut black_box, &snapshot).remove(0);
    assert_eq!((story.limit.known_by, story.limit.bytes), (KnownBy::NoLimit, Some(64 * MIB)));
    assert_eq!(
        story.summary,
        "the kernel killed hog (30): the machine's memory was used up; fio (20) had grown by 3.9 MiB"
    );
}

#[test]
fn what_is_kept_is_bounded() {
    let mut black_box = BlackBox::default();
    for round in 0..100_u64 {
        let processes = (0..MOST_PROCESSES as u32 + 50).map(|pid| process(1000 + pid, 20, "/pod/main")).collect();
        black_box.take(&at(100_000 + 10 * round, processes, 50, 0));
    }
    assert_eq!((black_box.processes.len(), black_box.cgroups.len()), (MOST_PROCESSES, 2));
    assert!(black_box.processes.values().all(|points| points.len() == POINTS));
    for kill in 0..MOST_STORIES as u32 + 5 {
        let killed = killed(&process(5000 + kill, 20, "/pod/main"), 200_000);
        black_box.take(&at(200_000 + u64::from(kill), vec![killed], 100, u64::from(kill)));
    }
    assert_eq!(black_box.stories().len(), MOST_STORIES);
}
