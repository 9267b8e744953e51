//! Names of containers: asked for, found, given up.

use super::*;

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
