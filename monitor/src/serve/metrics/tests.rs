//! Whole texts, read back by other code than that which wrote them.

use super::{super::fixtures, Format, Teller, exposition};
use crate::{
    alert::{Rule, SinkStatus},
    coverage::State,
    ids::CgroupId,
    model::{
        snapshot::{Cgroup, Snapshot, Tree},
        usage::{CgroupUsage, HostUsage, TreeUsage},
    },
    reading::{CgroupReading, DiskReading, HostReading, MemoryReading},
};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

const TELLER: Teller<'static> = Teller {
    version: "1.2.3",
    is_healthy: false,
    uptime: Duration::from_secs(72),
    age: Duration::from_millis(250),
    sinks: &[],
};

/// A sample as a reader has it.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: Vec<(String, String)>,
    pub(super) value: String,
}

/// The samples of a text, by the grammar of OpenMetrics.
pub(super) fn parse(text: &str) -> Vec<Sample> {
    text.split('\n').filter(|line| !line.is_empty() && !line.starts_with('#')).map(sample).collect()
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    while rest.starts_with(['{', ',']) {
        let (label, after) = rest[1..].split_once("=\"").unwrap();
        let (mut value, mut letters) = (String::new(), after.char_indices());
        let end = loop {
            match letters.next().unwrap() {
                (at, '"') => break at,
                (_, '\\') => value.push(match letters.next().unwrap().1 {
                    'n' => '\n',
                    letter => letter,
                }),
                (_, letter) => value.push(letter),
            }
        };
        labels.push((label.to_owned(), value));
        rest = &after[end + 1..];
    }
    let value = rest.trim_start_matches('}').strip_prefix(' ').unwrap();
    Sample { name: name.to_owned(), labels, value: value.to_owned() }
}

fn samples(snapshot: &Snapshot, top: usize) -> Vec<Sample> {
    parse(&exposition(&fixtures::picture(snapshot.clone()), TELLER, top, Format::OpenMetrics))
}

/// The value of the sample with this name and, among its labels, this one's value.
fn value(samples: &[Sample], name: &str, label: &str) -> Option<f64> {
    let mut found =
        samples.iter().filter(|s| s.name == name && (label.is_empty() || s.labels.iter().any(|l| l.1 == label)));
    let value = found.next()?.value.parse().unwrap();
    assert!(found.next().is_none(), "{name} {label} is there twice");
    Some(value)
}

fn cgroup(path: &str, memory: Option<u64>, cpus: f64) -> Arc<Cgroup> {
    let memory = memory.map(|current_bytes| MemoryReading { current_bytes, ..MemoryReading::default() });
    let usage = CgroupUsage {
        reading: CgroupReading { memory, ..CgroupReading::default() },
        cpu_per_second: Some(cpus),
        ..CgroupUsage::default()
    };
    Arc::new(Cgroup {
        id: CgroupId(7),
        path: path.into(),
        container: None,
        removed: false,
        running: 1,
        subject: fixtures::snapshot().host,
        usage: Some(Arc::new(usage)),
    })
}

/// Ten services of 10 to 100 bytes in a slice of 600, beside a scope of 5; the root does not tell, as on cgroup v2.
fn with_services() -> Snapshot {
    let mut snapshot = fixtures::snapshot();
    snapshot.cgroups = vec![cgroup("/", None, 5.0), cgroup("/s", Some(600), 1.5), cgroup("/x", Some(5), 0.5)];
    snapshot.cgroups.extend((1..=10).map(|n| cgroup(&format!("/s/{n}"), Some(10 * n), 0.0)));
    snapshot
}

#[test]
fn the_few_and_the_others_sum_to_the_whole() {
    let snapshot = with_services();
    let told = samples(&snapshot, 3);
    let memory: HashMap<_, f64> = told
        .iter()
        .filter(|s| s.name == "monitor_cgroup_memory_bytes")
        .map(|s| (s.labels[0].1.as_str(), s.value.parse().unwrap()))
        .collect();
    assert_eq!(memory, HashMap::from([("/s/10", 100.0), ("/s/9", 90.0), ("/s/8", 80.0), ("_other", 335.0)]));
    assert_eq!(value(&told, "monitor_cgroup_cpus_used", "_other"), Some(5.0));
    assert_eq!(value(&told, "monitor_left_out", "cgroup"), Some(8.0));
    assert_eq!(value(&told, "monitor_cgroup_memory_limit_bytes", "_other"), None, "limits do not add up");
}

#[test]
fn what_is_charged_to_none_of_the_few_is_among_the_others() {
    let told = samples(&with_services(), 11);
    assert_eq!(value(&told, "monitor_left_out", "cgroup"), Some(0.0));
    assert_eq!(value(&told, "monitor_cgroup_memory_bytes", "_other"), Some(50.0), "to /s itself");
    assert_eq!(value(&told, "monitor_cgroup_cpus_used", "_other"), Some(4.5), "to / and /s themselves");
}

#[test]
fn a_container_is_one_whatever_is_in_it() {
    let mut snapshot = fixtures::snapshot_with_container();
    let pod = snapshot.cgroups.last().unwrap().clone();
    let inner = format!("{}/inner", pod.path);
    snapshot.cgroups.push(Arc::new(Cgroup { path: inner.as_str().into(), ..(*pod).clone() }));
    let told = samples(&snapshot, 20);
    assert_eq!(value(&told, "monitor_cgroup_processes", &pod.path), Some(3.0));
    assert_eq!(value(&told, "monitor_cgroup_processes", &inner), None);
    let info = told.iter().find(|s| s.name == "monitor_cgroup_info" && s.labels[0].1 == *pod.path).unwrap();
    let labels: HashMap<_, _> = info.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let name = |name| labels.get(name).copied();
    assert_eq!((name("container"), name("pod"), name("namespace")), (Some("nginx"), Some("web-0"), Some("shop")));
    assert_eq!((name("container_id"), name("image")), (Some(fixtures::CONTAINER_ID), None));
}

#[test]
fn names_come_back_whatever_is_in_them_and_no_sample_is_told_twice() {
    let mut snapshot = with_services();
    let path = "/a \"b\"\\\nc/ü,{}";
    snapshot.cgroups.push(cgroup(path, Some(7000), 0.0));
    let tree = (*snapshot.trees[0]).clone();
    // Its pid was used again while its children lived on.
    snapshot.trees.push(Arc::new(Tree { command: "x\"\n\\".to_owned(), ..tree }));
    let told = samples(&snapshot, 20);
    assert_eq!(value(&told, "monitor_cgroup_memory_bytes", path), Some(7000.0));
    let mut seen = HashSet::new();
    for sample in &told {
        assert!(seen.insert(format!("{}{:?}", sample.name, sample.labels)), "twice: {sample:?}");
    }
}

#[test]
fn the_number_of_series_is_bounded() {
    let mut snapshot = fixtures::snapshot();
    snapshot.cgroups = (0..3000).map(|n| cgroup(&format!("/{n}"), Some(n), 0.0)).collect();
    let tree = (*snapshot.trees[0]).clone();
    snapshot.trees = (0..3000)
        .map(|n| {
            let mut tree = tree.clone();
            tree.root.tgid.0 = n;
            tree.usage = Some(TreeUsage { resident_bytes: Some(100), ..TreeUsage::default() });
            Arc::new(tree)
        })
        .collect();
    let disks = (0..3000).map(|n| DiskReading { name: format!("d{n}"), ..DiskReading::default() }).collect();
    let reading = HostReading { disks, ..HostReading::default() };
    snapshot.host_usage = Some(Arc::new(HostUsage { reading, ..HostUsage::default() }));
    let told = samples(&snapshot, 5);
    assert!(told.len() < 400, "{} series", told.len());
    assert_eq!(value(&told, "monitor_tree_resident_bytes", "_other"), Some(299_500.0));
    assert_eq!(value(&told, "monitor_left_out", "disk"), Some(2995.0));
}

#[test]
fn what_is_not_known_has_no_sample() {
    let mut snapshot = fixtures::snapshot();
    let told = samples(&snapshot, 20);
    let has = |told: &[Sample], begin: &str| told.iter().any(|sample| sample.name.starts_with(begin));
    assert!(!has(&told, "monitor_host_memory"), "nothing is polled");
    assert!(!has(&told, "monitor_cgroup_memory"));
    assert!(!has(&told, "monitor_host_address_space_calls"), "its source does not count");
    assert!(!has(&told, "monitor_gpu_power_watts"), "this GPU does not tell");
    assert_eq!(value(&told, "monitor_gpu_utilization_ratio", ""), Some(0.37));
    assert_eq!(value(&told, "monitor_host_page_faults_total", "user"), Some(7.0));
    snapshot.tick = Duration::ZERO;
    assert!(!has(&samples(&snapshot, 20), "monitor_cgroup_page_faults_per_second"), "no rate before the second tick");
    let mut coverage = (*snapshot.coverage).clone();
    coverage.0.iter_mut().for_each(|source| source.state = State::Disabled);
    snapshot.coverage = Arc::new(coverage);
    let told = samples(&snapshot, 20);
    assert!(
        !has(&told, "monitor_host_page_faults") && !has(&told, "monitor_block") && !has(&told, "monitor_source_lost")
    );
}

#[test]
fn alerts_are_counted_by_rule_and_what_became_of_them_by_sink() {
    let sinks = [Arc::new(SinkStatus::of("log")), Arc::new(SinkStatus::of("webhook"))];
    sinks[1].dropped.store(3, Relaxed);
    let picture = fixtures::picture(fixtures::snapshot());
    let samples = parse(&exposition(&picture, Teller { sinks: &sinks, ..TELLER }, 20, Format::OpenMetrics));
    let value = |name: &str, labels: &[(&str, &str)]| {
        let fits = |sample: &&Sample| {
            let has =
                |(label, value): &(&str, &str)| sample.labels.iter().any(|(l, v)| (&**l, &**v) == (*label, *value));
            sample.name == name && labels.iter().all(has)
        };
        samples.iter().find(fits).map(|sample| sample.value.as_str())
    };
    assert_eq!(value("monitor_alerts", &[("rule", "memory_pressure"), ("severity", "warning")]), Some("1"));
    assert_eq!(value("monitor_alerts", &[("rule", "thrashing"), ("severity", "critical")]), Some("0"));
    assert_eq!(samples.iter().filter(|sample| sample.name == "monitor_alerts").count(), 2 * Rule::ALL.len());
    assert_eq!(value("monitor_alert_sink_dropped_total", &[("sink", "webhook")]), Some("3"));
    assert_eq!(value("monitor_alert_sink_sent_total", &[("sink", "log")]), Some("0"));
}
