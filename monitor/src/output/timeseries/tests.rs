//! Rows and files together, read back by the crate that is made for it.

use super::*;
use crate::{
    gpu::{Gpu, GpuMemory},
    mark::Mark,
    model::{snapshot::Tree, usage::TreeUsage},
    serve::fixtures,
};
use std::{collections::HashMap, fs};

/// What the training document's file begins with.
const BEGIN: &str = "step,timestamp,gpu_0_util,gpu_0_memory_pct,cpu_percent,memory_percent,io_read_rate_mbps,";

fn gpu(index: u32) -> Arc<Gpu> {
    let memory = GpuMemory { used_bytes: Some(8 << 30), total_bytes: Some(16 << 30) };
    Arc::new(Gpu { index, utilization_ratio: Some(0.853), memory, temperature_celsius: Some(72), ..Gpu::default() })
}

fn with_gpus(gpus: &[u32]) -> Snapshot {
    Snapshot { gpus: gpus.iter().map(|index| gpu(*index)).collect(), ..fixtures::snapshot() }
}

fn writer(directory: &Path) -> Writer {
    Writer::new(directory.to_owned(), Csv { max_bytes: 1 << 20, max_age: Duration::ZERO })
}

impl Writer {
    /// Takes a snapshot of now.
    fn take_now(&mut self, snapshot: &Snapshot) {
        self.take(snapshot, SystemTime::now());
    }
}

/// Rows of a file by column.
fn rows(directory: &Path, name: &str) -> Vec<HashMap<String, String>> {
    let mut reader = csv::Reader::from_path(directory.join(name)).unwrap();
    reader.deserialize().collect::<Result<_, _>>().unwrap()
}

#[test]
fn columns_begin_as_promised_and_what_is_not_known_is_empty() {
    let directory = tempfile::tempdir().unwrap();
    writer(directory.path()).take_now(&with_gpus(&[]));
    let text = fs::read_to_string(directory.path().join("epoch_0.csv")).unwrap();
    assert!(text.starts_with(BEGIN), "{text}");
    let row = &rows(directory.path(), "epoch_0.csv")[0];
    assert_eq!((&*row["step"], &*row["gpu_0_util"], &*row["gpu_0_temp_c"]), ("72", "", ""));
    assert_eq!((&*row["cpu_percent"], &*row["memory_percent"], &*row["busiest_tree"]), ("", "", ""));
    assert_eq!(row["page_faults_per_second"], "605");
}

#[test]
fn a_gpu_more_begins_a_new_file_and_one_that_goes_leaves_empty_cells() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path());
    for gpus in [&[0][..], &[0, 1], &[]] {
        writer.take_now(&with_gpus(gpus));
    }
    let first = rows(directory.path(), "epoch_0.1.csv");
    assert_eq!((first.len(), first[0].contains_key("gpu_1_util")), (1, false));
    let then = rows(directory.path(), "epoch_0.csv");
    let cells = |column: &str| then.iter().map(|row| row[column].clone()).collect::<Vec<_>>();
    assert_eq!(cells("gpu_0_util"), ["85.3", ""]);
    assert_eq!(cells("gpu_1_memory_pct"), ["50", ""]);
    assert_eq!(cells("gpu_1_memory_used_mb"), ["8192", ""]);
    assert_eq!(cells("gpu_1_temp_c"), ["72", ""]);
}

#[test]
fn names_are_no_formulas_and_no_lines() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path());
    let names = ["=cmd|' /C calc'!A0", "+1", "-1", "@x", "\t=x", "a,\"b\"\n1,2"];
    for name in names {
        let usage = Some(TreeUsage { cpu_per_second: Some(1.5), ..TreeUsage::default() });
        let snapshot = fixtures::snapshot();
        let tree = Tree { command: name.to_owned(), usage, ..(*snapshot.trees[0]).clone() };
        writer.take_now(&Snapshot { trees: vec![Arc::new(tree)], ..snapshot });
    }
    let rows = rows(directory.path(), "epoch_0.csv");
    let told: Vec<_> = rows.iter().map(|row| row["busiest_tree"].as_str()).collect();
    assert_eq!(told, ["'=cmd|' /C calc'!A0", "'+1", "'-1", "'@x", "' =x", "a,\"b\" 1,2"]);
    assert_eq!(rows[0]["busiest_tree_cpu_percent"], "150");
    let lines = fs::read_to_string(directory.path().join("epoch_0.csv")).unwrap().lines().count();
    assert_eq!(lines, 1 + names.len());
}

#[test]
fn a_mark_tells_step_and_epoch_and_an_epoch_has_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path());
    let labels = Some([("run".to_owned(), "=a".to_owned())].into());
    for (step, epoch) in [(7, 1), (8, 2), (9, 1)] {
        let mark = Mark { step: Some(step), epoch: Some(epoch), labels: labels.clone() };
        writer.take_now(&Snapshot { mark: Some(Arc::new(mark)), ..fixtures::snapshot() });
    }
    let steps = |name| rows(directory.path(), name).iter().map(|row| row["step"].clone()).collect::<Vec<_>>();
    assert_eq!((steps("epoch_1.csv"), steps("epoch_2.csv")), (vec!["7".into(), "9".into()], vec!["8".into()]));
    let row = &rows(directory.path(), "epoch_2.csv")[0];
    assert_eq!((&*row["epoch"], &*row["labels"]), ("2", "{\"run\":\"=a\"}"));
}

#[test]
fn a_large_file_is_put_aside() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(directory.path().to_owned(), Csv { max_bytes: 2000, max_age: Duration::ZERO });
    (0..40).for_each(|number| writer.take_now(&Snapshot { number, ..fixtures::snapshot() }));
    let names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort_by_key(|name| (name.len(), name.clone()));
    names.rotate_left(1);
    assert!(names.len() > 2, "{names:?}");
    let sizes = names.iter().map(|name| fs::metadata(directory.path().join(name)).unwrap().len());
    assert!(sizes.max() <= Some(2000));
    let steps = names.iter().flat_map(|name| rows(directory.path(), name)).map(|row| row["step"].clone());
    assert_eq!(steps.collect::<Vec<_>>(), (0..40).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[test]
fn an_old_file_is_put_aside_also_one_of_another_agent() {
    const HOUR: Duration = Duration::from_secs(3600);
    let directory = tempfile::tempdir().unwrap();
    let hourly = || Writer::new(directory.path().to_owned(), Csv { max_bytes: 1 << 20, max_age: HOUR });
    let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_271_400);
    let take = |writer: &mut Writer, number, after: Duration| {
        writer.take(&Snapshot { number, ..fixtures::snapshot() }, begin + after);
    };
    let mut first = hourly();
    take(&mut first, 0, Duration::ZERO);
    take(&mut first, 1, HOUR - Duration::from_millis(1));
    drop(first);
    // The file's age is that of its first row, whoever wrote it.
    let mut second = hourly();
    take(&mut second, 2, HOUR);
    take(&mut second, 3, 2 * HOUR - Duration::from_secs(1));
    // A clock that was set back is no reason for a new one.
    second.take(&Snapshot { number: 4, ..fixtures::snapshot() }, begin - HOUR);
    take(&mut second, 5, 30 * HOUR);
    let steps = |name| rows(directory.path(), name).iter().map(|row| row["step"].clone()).collect::<Vec<_>>();
    assert_eq!(
        (steps("epoch_0.1.csv"), steps("epoch_0.2.csv")),
        (vec!["0".into(), "1".into()], vec!["2".into(), "3".into(), "4".into()])
    );
    assert_eq!(steps("epoch_0.csv"), ["5"]);
    assert_eq!(rows(directory.path(), "epoch_0.csv")[0]["timestamp"], "2026-11-22T20:30:00.000Z");
}

#[test]
fn without_a_limit_of_age_no_file_is_old() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path());
    for years in 0..3 {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(years * 365 * 24 * 3600);
        writer.take(&fixtures::snapshot(), time);
    }
    assert_eq!(rows(directory.path(), "epoch_0.csv").len(), 3);
}

#[test]
fn a_deleted_file_or_directory_comes_again() {
    let directory = tempfile::tempdir().unwrap();
    let logs = directory.path().join("logs");
    let mut writer = writer(&logs);
    writer.take_now(&fixtures::snapshot());
    fs::remove_dir_all(&logs).unwrap();
    writer.take_now(&fixtures::snapshot());
    assert_eq!((rows(&logs, "epoch_0.csv").len(), writer.left_out), (1, 0));
}

#[test]
fn a_row_that_cannot_be_written_is_left_out_and_the_next_is_tried() {
    let directory = tempfile::tempdir().unwrap();
    let logs = directory.path().join("logs");
    fs::write(&logs, "in the way").unwrap();
    let mut writer = writer(&logs);
    (0..3).for_each(|_| writer.take_now(&fixtures::snapshot()));
    assert_eq!(writer.left_out, 3);
    fs::remove_file(&logs).unwrap();
    writer.take_now(&fixtures::snapshot());
    assert_eq!((rows(&logs, "epoch_0.csv").len(), writer.left_out), (1, 0));
}

#[test]
fn a_full_queue_leaves_rows_out_and_does_not_wait() {
    let (rows, queue) = mpsc::sync_channel(1);
    let mut timeseries = TimeSeries { rows, ended: mpsc::channel().1, directory: PathBuf::new(), left_out: 0 };
    let snapshot = Arc::new(fixtures::snapshot());
    (0..3).for_each(|_| timeseries.take(&snapshot));
    assert_eq!(timeseries.left_out, 2);
    assert!(queue.recv().is_ok());
    timeseries.take(&snapshot);
    assert_eq!(timeseries.left_out, 0);
}
