//! What is in memory: the latest counts, their changes, and sums over trees.

use super::*;
use monitor_common::resident::{ANON, FILE, Pages};
use snapshot::Resident;

fn pages(time: u64, owners: &[(Owner, i64)]) -> Sample {
    let pages = |&(owner, anon): &(Owner, i64)| {
        (Owner { cgroup: 0, ..owner }, Pages { space: 1, pages: std::array::from_fn(|kind| [-3, anon, 0, 0][kind]) })
    };
    let counters = Some(Counters { resident: owners.iter().map(pages).collect(), ..Counters::default() });
    Sample { time: BootTime(time), counters, ..Sample::default() }
}

fn anon(resident: Option<Resident>) -> Option<(u64, u64)> {
    resident.map(|resident| (resident.bytes[ANON] / PAGE, resident.processes))
}

#[test]
fn the_latest_counts_stand_and_their_changes_have_signs() {
    let mut model = model();
    let (parent, child) = (owner(10, 2), owner(11, 2));
    model.take(&moments(0, vec![fork(0, &owner(1, 1), parent), fork(0, &parent, child)]));
    model.take(&pages(0, &[(parent, 100), (child, 10)]));
    snapshot(&mut model, SECOND);
    model.take(&pages(2 * SECOND, &[(parent, 40), (child, 30)]));
    let second = snapshot(&mut model, 3 * SECOND);
    assert_eq!(anon(find(&second, 10).subject.resident), Some((40, 1)));
    assert_eq!(find(&second, 10).subject.resident.unwrap().bytes[FILE], 0, "less than none is none");
    assert_eq!(find(&second, 10).subject.rates.resident[ANON], -60.0 / 2.0 * PAGE as f64);
    assert_eq!(find(&second, 11).subject.rates.resident[ANON], 20.0 / 2.0 * PAGE as f64);
    let tree = &second.trees[1];
    assert_eq!((anon(tree.subject.resident), tree.subject.rates.resident[ANON]), (Some((70, 2)), -20.0 * PAGE as f64));

    model.take(&moments(4 * SECOND, vec![exit(4 * SECOND, child, 0)]));
    let harvest = model.take(&pages(5 * SECOND, &[(child, 30)])).harvest;
    assert_eq!(harvest.resident, [Owner { cgroup: 0, ..child }]);
    let third = snapshot(&mut model, 5 * SECOND);
    assert_eq!(anon(find(&third, 11).subject.resident), None);
    assert_eq!(anon(third.trees[1].subject.resident), Some((40, 1)));
    assert_eq!(third.trees[1].subject.rates.resident[ANON], -15.0 * PAGE as f64);
}

#[test]
fn what_was_there_before_the_agent_is_no_change() {
    let mut model = Model::new(BootTime(60 * SECOND), RETENTION, "v2", Vec::new());
    let old = owner(10, 2);
    model.take(&moments(61 * SECOND, vec![fork(61 * SECOND, &owner(1, 1), old)]));
    snapshot(&mut model, 61 * SECOND);
    model.take(&pages(62 * SECOND, &[(old, 100)]));
    let first = snapshot(&mut model, 62 * SECOND);
    assert_eq!(anon(find(&first, 10).subject.resident), Some((100, 1)));
    assert_eq!(find(&first, 10).subject.rates.resident[ANON], 0.0);
}

#[test]
fn what_proc_says_stands_until_the_kernel_tells_something_new() {
    let mut model = model();
    let owner = owner(10, 2);
    let id = ProcessId::from(&owner);
    model.take(&moments(0, vec![fork(0, &super::owner(1, 1), owner)]));
    let read = |time: u64, pages: u64| {
        let resident = Some(reading::Resident { anon_bytes: pages * PAGE, ..reading::Resident::default() });
        let processes = vec![(id, ProcessReading { resident, ..ProcessReading::default() })];
        Sample { time: BootTime(time), readings: Readings { processes, ..Readings::default() }, ..Sample::default() }
    };
    model.take(&read(SECOND, 90));
    assert_eq!(anon(find(&snapshot(&mut model, SECOND), 10).subject.resident), None, "nothing was counted");
    model.take(&pages(2 * SECOND, &[(owner, 100)]));
    model.take(&read(2 * SECOND, 104));
    assert_eq!(anon(find(&snapshot(&mut model, 2 * SECOND), 10).subject.resident), Some((104, 1)));
    model.take(&pages(3 * SECOND, &[(owner, 100)]));
    let third = snapshot(&mut model, 3 * SECOND);
    assert_eq!(anon(find(&third, 10).subject.resident), Some((104, 1)), "what is told again is nothing new");
    assert_eq!(find(&third, 10).subject.rates.resident[ANON], 0.0);
    model.take(&pages(4 * SECOND, &[(owner, 110)]));
    assert_eq!(anon(find(&snapshot(&mut model, 4 * SECOND), 10).subject.resident), Some((110, 1)));
}

#[test]
fn who_was_evicted_before_the_end_is_forgotten_all_the_same() {
    let mut model = model();
    let owner = owner(10, 2);
    model.take(&moments(0, vec![fork(0, &super::owner(1, 1), owner)]));
    model.take(&pages(SECOND, &[(owner, 100)]));
    model.take(&moments(2 * SECOND, vec![exit(2 * SECOND, owner, 0)]));
    let harvest = model.take(&pages(3 * SECOND, &[])).harvest;
    assert_eq!(harvest.resident, [Owner { cgroup: 0, ..owner }]);
    model.forget(&harvest);
    assert_eq!(model.take(&pages(4 * SECOND, &[])).harvest.resident, []);
}
