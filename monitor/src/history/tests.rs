//! A made-up life of a small machine, recorded and replayed: the same snapshots, whatever chapter they are reached from,
//! and no panic, whatever became of the file.

use super::{At, Error, Identity, Limits, Origin, Recorder, Recording};
use crate::{
    coverage::{Coverage, Loss, Refusal, SourceCoverage, State},
    ids::{CgroupId, DeviceId, ProcessId, Tgid},
    mark::Mark,
    model::{Model, Retention, snapshot::Snapshot},
    reading::Resident,
    sample::{Counters, Found, FoundProcess, Moment, Sample, What},
    source::Source,
    time::BootTime,
};
use monitor_common::{
    Owner, address_space,
    block_io::{self, Bucket, Series, latency, operation},
    histogram, requests, resident,
};
use proptest::prelude::*;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

const SECOND: u64 = 1_000_000_000;
const LIMITS: Limits = Limits { max_bytes: 1 << 20, keep: Duration::from_secs(3600) };

/// A machine that has a new process each second; each lives for three, faults, maps and writes.
struct Machine {
    model: Model,
    recorder: Recorder,
    snapshots: Vec<String>,
}

impl Machine {
    fn start(path: &Path, limits: Limits) -> Self {
        let retention = Retention { keep: Duration::from_secs(5), limit: 2 };
        let mut model = Model::new(BootTime(0), retention, "v2", Vec::new());
        let cgroups = [(1, "/"), (2, "/a")].map(|(id, path)| (CgroupId(id), path.into())).to_vec();
        let init = FoundProcess {
            id: ProcessId { tgid: Tgid(1), start_ns: 0 },
            parent: None,
            command: "init".into(),
            command_line: "/sbin/init".into(),
            cgroup_path: Some("/".into()),
            cgroup: CgroupId::default(),
            running: true,
        };
        let devices = vec![(DeviceId(254 << 20), "vda".to_owned())];
        let found = Found { cgroups, processes: vec![init], devices, ..Found::default() };
        model.take(&Sample { found, ..Sample::default() });
        let recorder = Recorder::start(path, limits, origin()).unwrap();
        Self { model, recorder, snapshots: Vec::new() }
    }

    fn run(mut self, seconds: u64, chapter_every: u64) -> Vec<String> {
        for second in 1..=seconds {
            if second % chapter_every == 0 {
                self.recorder.status().want_checkpoint();
            }
            self.recorder.begin_chapter_if_due(&self.model);
            self.take(Sample { moments: moments(second), time: BootTime(second * SECOND), ..Sample::default() });
            let mark = Some(Mark { step: Some(second), ..Mark::default() });
            // Of a tree, of one that is not there any more, or of nobody.
            let marked = [Some(owner(second)), Some(owner(1)), None][second as usize % 3];
            let marked = marked.map(|owner| ProcessId::from(&owner));
            self.take(Sample { time: BootTime(second * SECOND), mark, marked, ..Sample::default() });
            let counters = Some(counters(second));
            let coverage = Arc::new(coverage(second));
            let sample = Sample { time: BootTime(second * SECOND), counters, coverage, ..Sample::default() };
            let sample = self.take(sample);
            self.recorder.snapshot(sample.time);
            self.snapshots.push(text(&self.model.snapshot(&sample)));
            self.wait(second);
        }
        self.recorder.finish();
        self.snapshots
    }

    fn take(&mut self, sample: Sample) -> Arc<Sample> {
        let sample = Arc::new(sample);
        self.recorder.sample(&sample);
        let harvest = self.model.take(&sample).harvest;
        self.model.forget(&harvest);
        self.recorder.forgot(harvest);
        sample
    }

    /// Until so many snapshots are written, so that none is lost.
    fn wait(&self, snapshots: u64) {
        let patience = Instant::now() + Duration::from_secs(20);
        while self.recorder.status().told().snapshots_total < snapshots {
            assert!(Instant::now() < patience, "{:?}", self.recorder.status());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn origin() -> Origin {
    Origin {
        agent: Identity { version: "7.8.9".into(), pid: 42 },
        host: "here".to_owned(),
        kernel_release: "6.18.0".to_owned(),
        boot_id: "b".to_owned(),
        tick: Duration::from_secs(1),
        doctor: "{}".to_owned(),
    }
}

fn text(snapshot: &Snapshot) -> String {
    format!("{snapshot:?}")
}

fn owner(second: u64) -> Owner {
    Owner { tgid: 100 + second as u32, cgroup: 2, start_ns: second * SECOND, reserved: 0 }
}

fn moments(second: u64) -> Vec<Moment> {
    let time = BootTime(second * SECOND);
    let parent = ProcessId { tgid: Tgid(1), start_ns: 0 };
    let mut all = vec![
        What::Fork { child: owner(second), parent, command: *b"worker\0\0\0\0\0\0\0\0\0\0" },
        What::Exec {
            owner: owner(second),
            command: [b'x'; 16],
            arguments: bytes::Bytes::from_static(b"x\0-v\0"),
            cut: second.is_multiple_of(2),
        },
        What::CgroupMade(CgroupId(10 + second), format!("/a/{second}").into()),
        What::AddressSpace(address_space::Call { owner: owner(second), bytes: -4096, ..Default::default() }),
        What::BlockIo(block_io::Completion { owner: owner(second), device: 254 << 20, ..Default::default() }),
    ];
    if second > 3 {
        let resident = second.is_multiple_of(2).then(|| Resident { anon_bytes: second << 20, ..Resident::default() });
        all.push(What::OomVictim { owner: owner(second - 3), command: [0; 16], resident });
        all.push(What::Exit { owner: owner(second - 3), wait_status: 9, command: [0; 16] });
        all.push(What::CgroupRemoved(CgroupId(7 + second), format!("/a/{}", second - 3).into()));
    }
    all.into_iter().map(|what| Moment { time, what }).collect()
}

/// Of those that live, of the one that has gone a second ago and is harvested now, and of one that was harvested and is back:
/// what it counts is new.
fn counters(second: u64) -> Counters {
    let counts = |born: &u64| born + 4 >= second || born + 6 == second;
    let owners: Vec<_> = (1..=second).filter(counts).map(owner).collect();
    let age = |owner: &Owner| second - owner.start_ns / SECOND + 1;
    let key =
        |owner: &Owner| block_io::Key { owner: *owner, device: 254 << 20, operation: operation::WRITE, reserved: 0 };
    let series = |owner: &Owner| Bucket::series_of(Series::new(owner.tgid, 0));
    let io = |owner: &Owner| block_io::Totals {
        series: series(owner),
        count: age(owner),
        bytes: 4096 * age(owner),
        errors: 0,
        wait_ns: 333_333 * age(owner),
    };
    let bucket = |owner: &Owner| Bucket::new(series(owner), latency::DEVICE_AND_TOTAL, histogram::bucket(333_333));
    let mapped = |owner: &Owner| address_space::Totals { mmap_file_calls: age(owner), ..Default::default() };
    let turns =
        |owner: &Owner| requests::Totals { begun: 2 * age(owner), answered: age(owner), peak: 3, ..Default::default() };
    let pages = |owner: &Owner| resident::Pages { space: 1, pages: [-1, age(owner) as i64, 0, 3] };
    Counters {
        page_faults: owners.iter().map(|owner| (*owner, [3 * age(owner), 0, 7, 0, 0, 0, 0, 0, 0, 1])).collect(),
        address_spaces: owners.iter().map(|owner| (*owner, mapped(owner))).collect(),
        block_io: owners.iter().map(|owner| (key(owner), io(owner))).collect(),
        block_latencies: owners.iter().map(|owner| (bucket(owner), age(owner))).collect(),
        requests: owners.iter().map(|owner| (*owner, turns(owner))).collect(),
        resident: owners.iter().map(|owner| (Owner { cgroup: 0, ..*owner }, pages(owner))).collect(),
    }
}

fn coverage(second: u64) -> Coverage {
    Coverage(vec![SourceCoverage {
        source: Source::BlockIo,
        state: State::Live,
        rung: Some("block_io_start"),
        refused: vec![Refusal { rung: "better", reason: "not here".to_owned() }],
        too_old: false,
        missing: Vec::new(),
        cannot_tell: &["read_latency"],
        caveats: &[],
        error_bytes: Some(4096),
        seen_total: second,
        lost_total: 0,
        lost: Loss::default(),
    }])
}

/// A snapshot by its place from the end, and how many events it was told with.
fn replayed(recording: &Recording, from_end: usize) -> (String, usize) {
    let half = Duration::from_millis(500);
    let at = At::BeforeEnd(Duration::from_secs(from_end as u64).saturating_sub(half));
    let recorded = recording.replay(at, true).unwrap();
    assert_eq!(recorded.origin.agent, origin().agent);
    let quick = recording.replay(at, false).unwrap();
    assert_eq!(text(&quick.picture.snapshot), text(&recorded.picture.snapshot));
    (text(&recorded.picture.snapshot), recorded.events.recent().len())
}

#[test]
fn every_snapshot_is_replayed_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    for (path, chapter_every) in [("one.rec", 1000), ("two.rec", 4), ("directory/", 5)] {
        let path = directory.path().join(path);
        let snapshots = Machine::start(&path, LIMITS).run(14, chapter_every);
        let recording = Recording::open(&path).unwrap();
        assert!(recording.remarks().is_empty(), "{:?}", recording.remarks());
        for (place, snapshot) in snapshots.iter().enumerate() {
            let (again, events) = replayed(&recording, snapshots.len() - 1 - place);
            assert_eq!(again, *snapshot, "{path:?}, snapshot {place}");
            assert_eq!(events, (1..=place + 1).map(|second| moments(second as u64).len()).sum::<usize>());
        }
    }
}

#[test]
fn a_directory_that_lost_its_oldest_still_tells_the_newest() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { max_bytes: 40_000, ..LIMITS };
    let snapshots = Machine::start(directory.path(), limits).run(40, 1);
    let bytes: u64 = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= limits.max_bytes, "{bytes}");
    let recording = Recording::open(directory.path()).unwrap();
    for from_end in [0, 1, 3] {
        assert_eq!(replayed(&recording, from_end).0, snapshots[39 - from_end]);
    }
    let error = recording.replay(At::BeforeEnd(Duration::from_secs(39)), false).unwrap_err();
    assert!(matches!(error, Error::TooEarly { .. }), "{error}");
}

#[test]
fn a_file_that_another_run_continues_tells_of_both() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.rec");
    let first = Machine::start(&path, LIMITS).run(3, 1000);
    let before = fs::metadata(&path).unwrap().len();
    let second = Machine::start(&path, LIMITS).run(5, 1000);
    assert_eq!(replayed(&Recording::open(&path).unwrap(), 0).0, second[4]);
    fs::File::options().write(true).open(&path).unwrap().set_len(before).unwrap();
    assert_eq!(replayed(&Recording::open(&path).unwrap(), 0).0, first[2]);
}

#[test]
fn damage_is_told_and_reaches_to_the_next_chapter() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.rec");
    let snapshots = Machine::start(&path, LIMITS).run(9, 3);
    let mut bytes = fs::read(&path).unwrap();
    let title = super::frame::RECORDING.title().len();
    let (frames, _) = super::frame::scan(&bytes[title..]);
    // The frame of the fifth snapshot, in the second chapter (3, 4, 5).
    let (place, _) = frames.iter().filter(|(_, head)| head.time_ns().is_some()).nth(3).unwrap();
    bytes[title + place + 50] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let recording = Recording::open(&path).unwrap();
    assert_eq!(recording.remarks().len(), 2, "{:?}", recording.remarks());
    assert!(
        recording.remarks()[0].contains(&format!("damaged at byte {}", title + place)),
        "{:?}",
        recording.remarks()
    );
    assert!(recording.remarks()[1].contains("1 whole frames build on a damaged one"), "{:?}", recording.remarks());
    assert_eq!(replayed(&recording, 0).0, snapshots[8]);
    assert_eq!(replayed(&recording, 4).0, snapshots[2], "the last one before the damage");
}

#[test]
fn going_through_it_shows_every_snapshot_in_its_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.rec");
    let snapshots = Machine::start(&path, LIMITS).run(7, 3);
    assert!(Recording::is_at(&path).unwrap() && Recording::is_at(directory.path()).unwrap());
    let mut seen = Vec::new();
    let recording = Recording::open(&path).unwrap();
    recording.for_each_snapshot(|time_ns, snapshot| seen.push((time_ns, text(snapshot)))).unwrap();
    assert!(seen.is_sorted_by_key(|(time_ns, _)| *time_ns));
    assert_eq!(seen.into_iter().map(|(_, snapshot)| snapshot).collect::<Vec<_>>(), snapshots);
    fs::write(&path, "timestamp,subject\n").unwrap();
    assert!(!Recording::is_at(&path).unwrap());
}

/// A recording as bytes, with its snapshots.
static RECORDED: LazyLock<(Vec<u8>, Vec<String>)> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.rec");
    let snapshots = Machine::start(&path, LIMITS).run(6, 3);
    (fs::read(&path).unwrap(), snapshots)
});

/// Opens some bytes as a recording, and replays it to its end.
fn played(bytes: &[u8]) -> Result<String, Error> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.rec");
    fs::write(&path, bytes).unwrap();
    Ok(text(&Recording::open(&path)?.replay(At::End, true)?.picture.snapshot))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn wherever_it_is_cut_it_ends_with_a_whole_snapshot(cut: prop::sample::Index) {
        let (bytes, snapshots) = &*RECORDED;
        match played(&bytes[..cut.index(bytes.len())]) {
            Ok(snapshot) => prop_assert!(snapshots.contains(&snapshot)),
            Err(error) => prop_assert!(matches!(error, Error::Empty { .. } | Error::Foreign { .. }), "{}", error),
        }
    }

    #[test]
    fn whatever_is_damaged_what_is_told_was_so(places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        let (bytes, snapshots) = &*RECORDED;
        let mut bytes = bytes.clone();
        for (place, byte) in places {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(snapshot) = played(&bytes) {
            prop_assert!(snapshots.contains(&snapshot));
        }
    }

    #[test]
    fn no_bytes_behind_a_title_are_a_panic(tail: Vec<u8>) {
        let _ = played(&[super::frame::RECORDING.title().as_bytes(), &tail].concat());
        let _ = played(&tail);
    }
}

#[test]
fn another_format_is_refused_by_the_name_of_its_writer() {
    let error = played(b"monitor recording 2, written by monitor 3.1.4\n\0\0\0").unwrap_err().to_string();
    assert!(error.ends_with("which knows format 1: use monitor 3.1.4") && error.contains("in format 2"), "{error}");
}

/// A recording of format 1, made by `Machine::run(6, 3)`. What is added to samples or to the model's state needs
/// `#[serde(default)]` to keep it readable. While no release has written format 1, BLESS=1 makes it anew instead.
#[test]
fn recordings_of_this_format_stay_readable() {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/history/format-1.rec"));
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &RECORDED.0).unwrap();
    }
    let recording = Recording::open(&path).unwrap();
    let recorded = recording.replay(At::End, true).unwrap();
    let snapshot = &recorded.picture.snapshot;
    assert_eq!((snapshot.time, &*recorded.origin.agent.version), (BootTime(6 * SECOND), "7.8.9"));
    assert_eq!(snapshot.host.totals.user_faults(), (1..=6).map(|age| 3 * age.min(5) + 7).sum::<u64>());
    let names: Vec<_> = snapshot.processes.iter().map(|process| (process.id.tgid.0, &*process.command_line)).collect();
    assert_eq!(names[..3], [(1, "/sbin/init"), (104, "x -v…"), (105, "x -v")]);
    assert_eq!(snapshot.block_devices[0].name, "vda");
    assert_eq!(recorded.events.recent().len(), (1..=6).map(|second| moments(second).len()).sum::<usize>());
}
