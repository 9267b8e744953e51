//! Trees: where they begin, who is in them, and what they keep.

use super::*;

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

#[test]
fn what_the_agent_starts_begins_a_tree_of_its_own() {
    let mut model = model().of_agent(Tgid(20));
    let [shell, agent, command, child] = [10, 20, 30, 40].map(|tgid| owner(tgid, 2));
    let life = [(&owner(1, 1), shell), (&shell, agent), (&agent, command), (&command, child)];
    model.take(&moments(SECOND, life.map(|(parent, child)| fork(SECOND, parent, child)).to_vec()));
    assert_eq!(trees(&snapshot(&mut model, SECOND)), [(1, None, 1), (10, None, 2), (30, None, 2)]);
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
fn what_an_entry_point_starts_is_part_of_it_though_a_rule_fits_that_too() {
    let mut model = Model::new(BootTime(0), RETENTION, "v2", vec!["drum".to_owned()]);
    let cgroups = [(1, "/"), (2, "/a")].map(|(id, path)| (CgroupId(id), path.into())).to_vec();
    model.take(&Sample { found: Found { cgroups, ..Found::default() }, ..Sample::default() });
    let [shell, entry, server, worker] = [10, 20, 30, 40].map(|tgid| owner(tgid, 2));
    let life = [
        fork(10 * SECOND, &owner(1, 1), shell),
        fork(20 * SECOND, &shell, entry),
        exec(21 * SECOND, entry, b"python3\0/usr/bin/drum\0server\0"),
        fork(30 * SECOND, &entry, server),
        exec(31 * SECOND, server, b"gunicorn\0app:app\0"),
        fork(40 * SECOND, &server, worker),
    ];
    model.take(&moments(40 * SECOND, life.to_vec()));
    assert_eq!(trees(&snapshot(&mut model, 40 * SECOND)), [(10, None, 1), (20, Some("entry_point"), 3)]);
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
