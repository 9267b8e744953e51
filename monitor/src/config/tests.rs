//! The layers together: what wins, what is refused, what is shown.

use super::{Assignment, Config, Effective, Error, Layers, keys};
use crate::source::Source;
use proptest::prelude::*;
use std::{collections::HashSet, io::Write as _, path::PathBuf, time::Duration};

/// Loads from a file's text, variables and `--set` flags.
fn load(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> (Result<Effective, Error>, PathBuf) {
    let mut written = tempfile::NamedTempFile::new().unwrap();
    written.write_all(file.as_bytes()).unwrap();
    let path = written.path().to_owned();
    let environment = variables.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    let flags = flags.iter().map(|text| Assignment::parse(text).unwrap()).collect();
    (Effective::load(Layers { file: Some(path.clone()), environment, flags, ..Layers::default() }), path)
}

fn config(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> Config {
    load(file, variables, flags).0.unwrap().config
}

/// The message of a refusal, with the file's path as FILE.
fn refusal(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> String {
    let (result, path) = load(file, variables, flags);
    result.err().unwrap().to_string().replace(&path.display().to_string(), "FILE")
}

#[test]
fn nothing_set_gives_the_defaults() {
    assert_eq!(config("", &[], &[]), Config::default());
}

#[test]
fn each_layer_overrides_those_before() {
    let file = "tick = \"2s\"\n[exited]\nlimit = 1_000\n[block_io]\nenabled = false\nslow = \"1s\"";
    let variables = [("MONITOR_EXITED_LIMIT", "20"), ("MONITOR_BLOCK_IO_SLOW", "2s"), ("PATH", "/bin")];
    let config = config(file, &variables, &["block_io.slow=3s"]);
    assert_eq!(config.tick, Duration::from_secs(2));
    assert_eq!(config.exited.limit, 20);
    assert_eq!(config.slow_io, Duration::from_secs(3));
    assert!(!config.source(Source::BlockIo).enabled);
    assert!(config.source(Source::PageFault).enabled);
}

#[test]
fn every_kind_of_value_is_read() {
    let file = "socket = \"/tmp/m\"\nsocket_group = \"wheel\"\nconsole = false\nkernel_log = \"debug\"
        address_space = { rung = \"fentry\", ring_bytes = \"8KiB\", large_call = 4096 }\nlifecycle.ring_bytes = 16384";
    let config = config(file, &[], &[]);
    assert_eq!(config.socket, PathBuf::from("/tmp/m"));
    assert_eq!(config.socket_group.as_deref(), Some("wheel"));
    assert!(!config.console);
    assert_eq!(config.kernel_log, log::LevelFilter::Debug);
    assert_eq!(config.source(Source::AddressSpace).rung.as_deref(), Some("fentry"));
    assert_eq!(config.source(Source::AddressSpace).ring_bytes, Some(8192));
    assert_eq!(config.large_call_bytes, 4096);
    assert_eq!(config.source(Source::Lifecycle).ring_bytes, Some(16384));
    assert_eq!(config.source(Source::PageFault).ring_bytes, None);
}

#[test]
fn unknown_names_are_refused_with_the_nearest_one() {
    assert_eq!(refusal("\ntik = \"1s\"", &[], &[]), "FILE:2: there is no setting \"tik\"; did you mean \"tick\"?");
    assert_eq!(
        refusal("[exited]\nkeep = \"1s\"\nlimits = 3", &[], &[]),
        "FILE:3: there is no setting \"exited.limits\"; did you mean \"exited.limit\"?"
    );
    assert_eq!(
        refusal("[weather]\nenabled = true", &[], &[]),
        "FILE:1: there is no setting \"weather\"; `monitor config` lists them"
    );
    assert_eq!(
        refusal("", &[("MONITOR_BLOCKIO_SLOW", "1s")], &[]),
        "MONITOR_BLOCKIO_SLOW: there is no setting \"MONITOR_BLOCKIO_SLOW\"; did you mean \"MONITOR_BLOCK_IO_SLOW\"?"
    );
    assert_eq!(
        refusal("", &[], &["page_fault.ring_bytes=4096"]),
        "--set: there is no setting \"page_fault.ring_bytes\"; `monitor config` lists them"
    );
}

#[test]
fn bad_values_are_refused_with_what_is_allowed() {
    let cases = [
        ("tick = \"5\"", "FILE:1: tick = \"5\" is refused: it takes a duration from 100ms to 1h, such as \"500ms\""),
        ("tick = 5", "FILE:1: tick = \"5\" is refused: it takes a duration from 100ms to 1h, such as \"500ms\""),
        ("tick = \"2h\"", "FILE:1: tick = \"2h\" is refused: it takes a duration from 100ms to 1h, such as \"500ms\""),
        ("console = \"yes\"", "FILE:1: console = \"yes\" is refused: it takes true or false"),
        ("socket = \"\"", "FILE:1: socket = \"\" is refused: it takes a path"),
        ("exited.limit = 1.5", "FILE:1: exited.limit = \"1.5\" is refused: it takes a number from 0 to 100000"),
        ("socket = [1]", "FILE:1: socket = \"[…]\" is refused: it takes a path"),
        ("tick = {}", "FILE:1: tick = \"{…}\" is refused: it takes a duration from 100ms to 1h, such as \"500ms\""),
        ("socket = true", "FILE:1: socket = \"true\" is refused: it takes a path"),
        ("socket = 07:32:00", "FILE:1: socket = \"07:32:00\" is refused: it takes a path"),
        (
            "log_interval = -1",
            "FILE:1: log_interval = \"-1\" is refused: it takes a number from 0 to 1000000, or \"auto\"",
        ),
        (
            "log_interval = \"often\"",
            "FILE:1: log_interval = \"often\" is refused: it takes a number from 0 to 1000000, or \"auto\"",
        ),
        (
            "gpu_util_threshold = 50",
            "FILE:1: gpu_util_threshold = \"50\" is refused: it takes a ratio from 0 to 1, such as 0.5",
        ),
        (
            "memory_threshold = nan",
            "FILE:1: memory_threshold = \"nan\" is refused: it takes a ratio from 0 to 1, such as 0.5",
        ),
        (
            "io_wait_threshold = true",
            "FILE:1: io_wait_threshold = \"true\" is refused: it takes a ratio from 0 to 1, such as 0.5",
        ),
        (
            "gpu_temp_threshold = 80.5",
            "FILE:1: gpu_temp_threshold = \"80.5\" is refused: it takes a number from 0 to 200",
        ),
        ("alert_memory_pressure = 1", "FILE:1: alert_memory_pressure = \"1\" is refused: it takes true or false"),
        (
            "csv.max_age = \"2y\"",
            "FILE:1: csv.max_age = \"2y\" is refused: it takes a duration from 0s to 30days, such as \"500ms\"",
        ),
        (
            "kernel_log = \"loud\"",
            "FILE:1: kernel_log = \"loud\" is refused: it takes off, error, warn, info, debug or trace",
        ),
    ];
    for (file, message) in cases {
        assert_eq!(refusal(file, &[], &[]), message);
    }
    let allowed = "it takes a power of two from 4KiB to 16MiB, such as \"64KiB\"";
    for size in ["5000", "2KiB", "32MiB", "8EiB", "big"] {
        let message = refusal("", &[("MONITOR_BLOCK_IO_RING_BYTES", size)], &[]);
        assert_eq!(
            message,
            format!("MONITOR_BLOCK_IO_RING_BYTES: block_io.ring_bytes = {size:?} is refused: {allowed}")
        );
    }
    assert_eq!(
        refusal("", &[], &["address_space.large_call=2TiB"]),
        "--set: address_space.large_call = \"2TiB\" is refused: \
         it takes a size from 0B to 1TiB, such as \"1MiB\""
    );
}

#[test]
fn a_file_that_is_not_toml_names_the_line() {
    assert!(refusal("tick = \"1s\"\nsocket = ", &[], &[]).starts_with("FILE:2: "));
    assert!(refusal("tick = \"1s\"\ntick = \"2s\"", &[], &[]).starts_with("FILE:2: "));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let layers = Layers { file: Some("/no/such.toml".into()), ..Layers::default() };
    let error = anyhow::Error::from(Effective::load(layers).err().unwrap());
    assert!(format!("{error:#}").starts_with("cannot read the configuration file /no/such.toml: No such file"));
}

#[test]
fn measuring_windows_may_not_overlap() {
    let message = refusal("[cost]\nevery = \"10s\"", &[("MONITOR_COST_WINDOW", "10s")], &[]);
    assert_eq!(
        message,
        "cost.window = \"10s\" (MONITOR_COST_WINDOW) must be shorter than cost.every = \"10s\" (FILE:2); \
         every = \"0s\" switches measuring off"
    );
    assert_eq!(config("", &[], &["cost.every=0s"]).cost.every, Duration::ZERO);
}

#[test]
fn the_two_sockets_may_not_be_one() {
    let message = refusal("workload_socket = \"/tmp//m.sock\"", &[], &["socket=/tmp/m.sock"]);
    let told = "workload_socket = \"/tmp//m.sock\" (FILE:1) must be another path than socket = \"/tmp/m.sock\" (--set)";
    assert_eq!(message, told);
    let other = config("", &[("MONITOR_WORKLOAD_SOCKET", "/tmp/w.sock")], &[]);
    assert_eq!(other.workload_socket.as_deref(), Some("/tmp/w.sock"));
    assert_eq!(config("workload_socket = \"\"", &[], &[]).workload_socket, None);
}

#[test]
fn a_csv_file_must_have_room_for_more_than_a_row() {
    let message = refusal("[csv]\nmax_age = \"2s\"", &[("MONITOR_TICK", "2s")], &[]);
    assert_eq!(
        message,
        "csv.max_age = \"2s\" (FILE:2) must be longer than tick = \"2s\" (MONITOR_TICK); \"0s\" lets files be of any age"
    );
    assert_eq!(config("", &[], &["csv.max_age=1h"]).csv.max_age, Duration::from_secs(3600));
    assert_eq!(config("", &[], &["csv.max_age=0s", "tick=1h"]).csv.max_age, Duration::ZERO);
}

#[test]
fn the_training_documents_settings_have_its_names_and_defaults() {
    let document = "log_interval = 10\ngpu_monitoring = true\ncpu_monitoring = true\nio_monitoring = true
        alert_gpu_underutilization = true\nalert_memory_pressure = true\nalert_io_bottleneck = true
        gpu_util_threshold = 0.5\nmemory_threshold = 0.9\nio_wait_threshold = 0.3
        export_timeseries = true\ntimeseries_path = \"resource_logs\"";
    let defaults = Config::default();
    let told = config(document, &[], &[]);
    assert_eq!(told.thresholds, defaults.thresholds);
    assert_eq!((told.log_interval, told.export_timeseries), (Some(10), true));
    assert_eq!(Config { log_interval: None, export_timeseries: false, ..told }, defaults);
}

#[test]
fn ratios_and_ticks_are_read_from_every_layer() {
    let file = "gpu_util_threshold = 1\nmemory_threshold = 0.07\nio_wait_threshold = \"0.25\"\nlog_interval = 0";
    let Config { thresholds, log_interval, .. } = config(file, &[("MONITOR_GPU_TEMP_THRESHOLD", "90")], &[]);
    assert_eq!((thresholds.gpu_util, thresholds.memory, thresholds.io_wait), (1.0, 0.07, 0.25));
    assert_eq!((thresholds.gpu_temp, log_interval), (90, Some(0)));
    assert_eq!(config(file, &[], &["log_interval=auto"]).log_interval, None);
    let zero = config("memory_threshold = -0.0", &[], &[]).thresholds.memory;
    assert!(zero == 0.0 && zero.is_sign_positive());
}

#[test]
fn the_file_may_come_from_a_variable_and_the_projects_own_variables_pass() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"tick = \"3s\"").unwrap();
    let environment = vec![
        ("MONITOR_CONFIG".into(), file.path().into()),
        ("MONITOR_BIN".into(), "x".into()),
        ("MONITOR_OBJECTS".into(), "y".into()),
    ];
    let layers = Layers { environment, ..Layers::default() };
    assert_eq!(Effective::load(layers).unwrap().config.tick, Duration::from_secs(3));
}

#[test]
fn a_set_flag_needs_a_value() {
    let error = Assignment::parse("tick").unwrap_err().to_string();
    assert_eq!(error, "--set tick: it takes key=value, such as --set block_io.slow=20ms");
}

#[test]
fn names_and_variables_are_unique() {
    let keys = keys();
    let paths: HashSet<_> = keys.iter().map(|key| key.path()).collect();
    let variables: HashSet<_> = keys.iter().map(|key| key.variable()).collect();
    assert_eq!((paths.len(), variables.len()), (keys.len(), keys.len()));
}

#[test]
fn what_is_shown_is_a_file_that_gives_the_same() {
    let flags = [
        "socket_group=wheel",
        "block_io.rung=tp_btf",
        "exited.limit=7",
        "console=false",
        "tick=1500ms",
        "log_interval=3",
        "memory_threshold=1",
        "io_wait_threshold=0.07",
    ];
    let (effective, _) = load("", &[("MONITOR_COST_EVERY", "2m")], &flags);
    let effective = effective.unwrap();
    let shown = effective.to_toml();
    assert_eq!(config(&shown, &[], &[]), effective.config);
    let tick = shown.lines().find(|line| line.starts_with("tick")).unwrap();
    assert!(tick.starts_with("tick = \"1s 500ms\" ") && tick.ends_with(" # --set: time from one snapshot to the next"));
    assert!(shown.contains("[cost]\nwindow = \"1s\""));
}

#[test]
fn json_has_values_origins_and_variables() {
    let (effective, _) = load("", &[("MONITOR_EXITED_LIMIT", "5")], &[]);
    let json = effective.unwrap().to_json();
    assert_eq!(json["exited"]["limit"]["value"], 5);
    assert_eq!(json["exited"]["limit"]["origin"], "MONITOR_EXITED_LIMIT");
    assert_eq!(json["console"]["value"], true);
    assert_eq!((&json["log_interval"]["value"], &json["memory_threshold"]["value"]), (&"auto".into(), &0.9.into()));
    assert_eq!(json["block_io"]["ring_bytes"]["value"], "64KiB");
    assert_eq!(json["block_io"]["slow"]["variable"], "MONITOR_BLOCK_IO_SLOW");
}

#[test]
fn a_documents_variables_set_its_detector_and_ours_win() {
    let drum = [
        ("DRUM_MEMORY_LEAK_THRESHOLD_MB", "12.5"),
        ("DRUM_MEMORY_LEAK_SAMPLE_WINDOW", "40"),
        ("DRUM_MEMORY_LEAK_ENABLED", "False"),
        ("DRUM_OTHER", "is somebody else's"),
    ];
    let regression = config("", &drum, &[]).regression;
    assert_eq!((regression.enabled, regression.window, regression.threshold_mb_per_1k), (false, 40, 12.5));
    let both = [drum[0], ("MONITOR_DETECTORS_REGRESSION_THRESHOLD_MB_PER_1K", "7")];
    let file = "[detectors.regression]\nthreshold_mb_per_1k = 3\nwindow = 50";
    let regression = config(file, &both, &[]).regression;
    assert_eq!((regression.window, regression.threshold_mb_per_1k), (50, 7.0));
    assert_eq!(
        refusal("", &[("DRUM_MEMORY_LEAK_THRESHOLD_MB", "much")], &[]),
        "DRUM_MEMORY_LEAK_THRESHOLD_MB: detectors.regression.threshold_mb_per_1k = \"much\" is refused: it takes a number from 0 to \
         1000000, such as 2.5"
    );
}

#[test]
fn a_documents_variables_are_told() {
    let (effective, _) = load("", &[], &["detectors.regression.threshold_mb_per_1k=0.5"]);
    let effective = effective.unwrap();
    let json = effective.to_json();
    let threshold = &json["detectors"]["regression"]["threshold_mb_per_1k"];
    assert_eq!(
        (&threshold["value"], &threshold["other_variable"]),
        (&0.5.into(), &"DRUM_MEMORY_LEAK_THRESHOLD_MB".into())
    );
    let shown = effective.to_toml();
    assert!(
        shown.contains("[detectors.regression]\n") && shown.contains("; also by DRUM_MEMORY_LEAK_ENABLED\n"),
        "{shown}"
    );
    assert_eq!(config(&shown, &[], &[]), effective.config);
}

proptest! {
    #[test]
    fn no_file_is_a_panic_and_no_refusal_is_two_lines(text: String) {
        if let Err(error) = load(&text, &[], &[]).0 {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }
}
