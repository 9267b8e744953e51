//! Marks of training loops, by tree.

use super::*;

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
    assert_eq!(model.unknown(&unknown).processes, [(ProcessId::from(&owner(50, 2)), CgroupId::default())]);
    let found = FoundProcess {
        id: ProcessId::from(&owner(50, 2)),
        parent: Some(Tgid(1)),
        command: "train".into(),
        command_line: "train".into(),
        cgroup_path: Some("/a".into()),
        cgroup: CgroupId::default(),
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
