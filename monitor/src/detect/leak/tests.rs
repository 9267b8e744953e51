//! Made-up lives of subjects, and what is said of them.

use super::{Both, Leak, LeakReport, Point, Reason, Verdict};

const MIB: f64 = (1 << 20) as f64;
const HOUR: f64 = 3600.0;

/// Noise that is the same each time, -1 to 1.
fn noise(x: f64) -> f64 {
    ((x * 12.9898).sin() * 43_758.545_3).fract()
}

/// A life of so many hours, a point every `tick` seconds; memory in MiB by the time in seconds.
fn life(hours: f64, tick: f64, memory: impl Fn(f64) -> f64) -> LeakReport {
    live(&mut Leak::default(), hours, tick, |time| Point {
        working_set_bytes: (memory(time) * MIB) as u64,
        ..Point::default()
    })
}

/// The same, with ten requests a second.
fn served(hours: f64, tick: f64, memory: impl Fn(f64) -> f64) -> LeakReport {
    live(&mut Leak::default(), hours, tick, |time| Point {
        working_set_bytes: (memory(time) * MIB) as u64,
        requests_total: Some((time * 10.0) as u64),
        ..Point::default()
    })
}

fn live(leak: &mut Leak, hours: f64, tick: f64, point: impl Fn(f64) -> Point) -> LeakReport {
    for i in 0..(hours * HOUR / tick) as u32 {
        let time = f64::from(i) * tick;
        leak.push(&Point { time_seconds: time, ..point(time) });
    }
    leak.report()
}

#[test]
fn a_slow_leak_under_noise_is_one() {
    let report = life(6.0, 5.0, |time| 200.0 + time / HOUR * 10.0 + noise(time) * 3.0);
    assert_eq!(report.verdict, Verdict::Leak, "{report:?}");
    let growth = report.bytes_per_hour.unwrap();
    assert!(growth.low <= 10.0 * MIB && 10.0 * MIB <= growth.high, "{growth:?}");
    assert!(report.bytes_per_1000_requests.is_none());
}

#[test]
fn twenty_samples_and_five_hundred_requests_suffice() {
    let leaking = |seconds: f64, rate: f64| {
        live(&mut Leak::default(), seconds / HOUR, 1.0, |time| Point {
            working_set_bytes: ((100.0 + time) * MIB) as u64,
            requests_total: Some((time * rate) as u64),
            ..Point::default()
        })
    };
    assert_eq!(leaking(19.0, 100.0).verdict, Verdict::Insufficient);
    assert_eq!(leaking(40.0, 10.0).verdict, Verdict::Insufficient, "400 requests are too few");
    assert_eq!(leaking(24.0, 100.0).verdict, Verdict::Leak);
    assert_eq!(leaking(60.0, 10.0).verdict, Verdict::Leak);
}

/// Four hours are long enough for a leak, whatever was served meanwhile.
#[test]
fn of_too_few_requests_nothing_is_said_per_request() {
    let per_request = |rate: f64| {
        let report = live(&mut Leak::default(), 4.0, 5.0, |time| Point {
            working_set_bytes: ((100.0 + time / 60.0) * MIB) as u64,
            requests_total: Some((time * rate) as u64),
            ..Point::default()
        });
        (report.verdict, report.bytes_per_hour.is_some(), report.bytes_per_1000_requests.is_some())
    };
    assert_eq!(per_request(0.006), (Verdict::Leak, true, false));
    assert_eq!(per_request(0.01), (Verdict::Leak, true, true));
}

/// A server that keeps 3 KiB a request, and 20 MiB an hour besides, with requests that come and go.
#[test]
fn what_grows_with_requests_and_what_with_time_are_told_apart() {
    let both = |requests: fn(f64) -> f64| {
        let report = live(&mut Leak::default(), 4.0, 2.0, |time| Point {
            working_set_bytes: (200.0 * MIB + 3072.0 * requests(time) + time / HOUR * 20.0 * MIB + noise(time) * MIB)
                as u64,
            requests_total: Some(requests(time) as u64),
            ..Point::default()
        });
        assert_eq!(report.verdict, Verdict::Leak, "{report:?}");
        report.both
    };
    let told = both(|time| 10.0 * time + 6000.0 * (time / 700.0).sin() + 9000.0 * (time / 2000.0).cos());
    let Both { bytes_per_1000_requests: requests, bytes_per_hour: time } = told.unwrap();
    assert!((requests.value / 3_072_000.0 - 1.0).abs() < 0.05, "{requests:?}");
    assert!((time.value / (20.0 * MIB) - 1.0).abs() < 0.05, "{time:?}");
    for (estimate, truth) in [(requests, 3_072_000.0), (time, 20.0 * MIB)] {
        assert!(estimate.low <= truth && truth <= estimate.high, "{estimate:?}");
    }
    assert_eq!(both(|time| 10.0 * time), None, "they go together");
}

#[test]
fn many_samples_in_a_few_seconds_are_not_enough() {
    let leaking = |seconds: f64| {
        live(&mut Leak::default(), seconds / HOUR, 0.1, |time| Point {
            working_set_bytes: ((100.0 + 10.0 * time) * MIB) as u64,
            requests_total: Some((time * 200.0) as u64),
            ..Point::default()
        })
    };
    let report = leaking(8.0);
    assert_eq!((report.verdict, report.reason), (Verdict::Insufficient, Reason::TooLittleData));
    assert_eq!(leaking(20.0).verdict, Verdict::Leak);
}

#[test]
fn without_requests_ten_minutes_are_needed() {
    assert_eq!(life(599.0 / HOUR, 1.0, |time| 100.0 + time).verdict, Verdict::Insufficient);
    assert_eq!(life(700.0 / HOUR, 1.0, |time| 100.0 + time).verdict, Verdict::Leak);
}

#[test]
fn memory_that_stays_is_stable() {
    let report = served(2.0, 5.0, |time| 500.0 + noise(time) * 20.0);
    assert_eq!((report.verdict, report.reason), (Verdict::Stable, Reason::NoGrowth), "{report:?}");
    assert!(report.confidence > 0.9);
}

#[test]
fn a_warm_up_is_stable_once_it_is_over() {
    let report = served(3.0, 5.0, |time| 100.0 + 400.0 * (1.0 - (-time / 900.0).exp()) + noise(time));
    assert_eq!(report.verdict, Verdict::Stable, "{report:?}");
}

#[test]
fn a_leak_after_a_warm_up_is_found() {
    let report = served(3.0, 5.0, |time| 100.0 + 400.0 * (1.0 - (-time / 300.0).exp()) + time / HOUR * 30.0);
    assert_eq!(report.verdict, Verdict::Leak, "{report:?}");
}

#[test]
fn logarithmic_growth_slows_down() {
    let report = served(6.0, 5.0, |time| 100.0 + 60.0 * (1.0 + time / 60.0).ln() + noise(time));
    assert_eq!((report.verdict, report.reason), (Verdict::Growing, Reason::SlowingDown), "{report:?}");
}

#[test]
fn a_collectors_sawtooth_is_stable_and_a_leak_under_it_is_found() {
    let tooth = |time: f64| 300.0 * (time / 420.0).fract();
    assert_ne!(served(5.0, 5.0, |time| 200.0 + tooth(time)).verdict, Verdict::Leak);
    let report = served(12.0, 5.0, |time| 200.0 + tooth(time) + time / HOUR * 40.0);
    assert_eq!(report.verdict, Verdict::Leak, "{report:?}");
}

#[test]
fn one_large_allocation_is_no_leak() {
    for at in [0.3, 0.6, 0.8, 0.95] {
        let report = served(3.0, 5.0, |time| if time > at * 3.0 * HOUR { 700.0 } else { 200.0 } + noise(time));
        assert_ne!(report.verdict, Verdict::Leak, "at {at}: {report:?}");
    }
}

#[test]
fn memory_that_goes_with_the_load_is_stable() {
    // Requests a second rise from 10 to 110 in three hours.
    let requests = |time: f64| 10.0 * time + time * time / 216.0;
    let report = live(&mut Leak::default(), 3.0, 5.0, |time| Point {
        working_set_bytes: ((200.0 + 3.0 * (10.0 + time / 108.0) + noise(time)) * MIB) as u64,
        requests_total: Some(requests(time) as u64),
        ..Point::default()
    });
    assert_eq!(report.verdict, Verdict::Stable, "{report:?}");
}

#[test]
fn page_cache_alone_is_growing_at_most() {
    let report = live(&mut Leak::default(), 2.0, 5.0, |time| Point {
        working_set_bytes: ((300.0 + time / 10.0) * MIB) as u64,
        anon_bytes: Some((200.0 * MIB) as u64),
        ..Point::default()
    });
    assert_eq!((report.verdict, report.reason), (Verdict::Growing, Reason::WorkingSetOnly), "{report:?}");
}

#[test]
fn a_leak_that_has_ended_is_stable_again_and_its_end_is_told() {
    let mut leak = Leak::default();
    let point = |time: f64| Point {
        working_set_bytes: ((200.0 + time.min(HOUR) / 10.0) * MIB) as u64,
        requests_total: Some((time * 10.0) as u64),
        ..Point::default()
    };
    let report = live(&mut leak, 1.0, 5.0, point);
    assert_eq!(report.verdict, Verdict::Leak);
    let report = live_on(&mut leak, HOUR, 3.0 * HOUR, point);
    assert_eq!((report.verdict, report.leaks_total), (Verdict::Stable, 1), "{report:?}");
    assert!(report.since > HOUR);
}

fn live_on(leak: &mut Leak, from: f64, to: f64, point: impl Fn(f64) -> Point) -> LeakReport {
    for i in 0..((to - from) / 5.0) as u32 {
        let time = from + f64::from(i) * 5.0;
        leak.push(&Point { time_seconds: time, ..point(time) });
    }
    leak.report()
}

#[test]
fn a_leak_survives_a_restart() {
    let mut leak = Leak::default();
    // It leaks 360 MiB an hour and is restarted each hour.
    let point = |time: f64| Point {
        working_set_bytes: ((200.0 + (time % HOUR) / 10.0) * MIB) as u64,
        requests_total: Some(((time % HOUR) * 10.0) as u64),
        ..Point::default()
    };
    live(&mut leak, 1.0, 5.0, point);
    let report = live_on(&mut leak, HOUR, HOUR + 60.0, point);
    assert_eq!((report.verdict, report.reason, report.restarts_total), (Verdict::Leak, Reason::BeforeRestart, 1));
    let report = live_on(&mut leak, HOUR + 60.0, 1.9 * HOUR, point);
    assert_eq!((report.verdict, report.reason, report.leaks_total), (Verdict::Leak, Reason::Steady, 1), "{report:?}");
}

#[test]
fn a_restart_that_cures_a_leak_is_believed_in_time() {
    let mut leak = Leak::default();
    let point = |time: f64| Point {
        working_set_bytes: if time < HOUR { ((200.0 + time / 10.0) * MIB) as u64 } else { (200.0 * MIB) as u64 },
        requests_total: Some(((time % HOUR) * 10.0) as u64),
        ..Point::default()
    };
    live(&mut leak, 1.0, 5.0, point);
    let report = live_on(&mut leak, HOUR, 1.9 * HOUR, point);
    assert_eq!(report.verdict, Verdict::Stable, "{report:?}");
}

#[test]
fn an_oom_kill_is_a_restart_too() {
    let mut leak = Leak::default();
    let point = |time: f64| Point {
        working_set_bytes: ((200.0 + (time % HOUR) / 10.0) * MIB) as u64,
        oom_kills_total: Some((time / HOUR) as u64),
        ..Point::default()
    };
    let report = live(&mut leak, 1.5, 5.0, point);
    assert_eq!((report.verdict, report.restarts_total), (Verdict::Leak, 1), "{report:?}");
}

/// What it costs; run by `cargo test --release -p monitor detect::leak -- --nocapture`.
#[test]
fn a_day_at_one_second_is_cheap_and_small() {
    let mut leak = Leak::default();
    let (mut slowest, begin) = (std::time::Duration::ZERO, std::time::Instant::now());
    for second in 0..86_400u32 {
        let time = f64::from(second);
        let at = std::time::Instant::now();
        leak.push(&Point {
            time_seconds: time,
            working_set_bytes: ((200.0 + time / 100.0 + noise(time)) * MIB) as u64,
            requests_total: Some(u64::from(second) * 10),
            ..Point::default()
        });
        slowest = slowest.max(at.elapsed());
    }
    let mean = begin.elapsed() / 86_400;
    let bytes = size_of::<Leak>() + leak.levels.iter().map(super::Level::heap_bytes).sum::<usize>();
    println!("a point costs {mean:?} on average and {slowest:?} at most; a subject is {bytes} bytes");
    assert!(bytes <= 16 << 10, "{bytes}");
    assert_eq!(leak.report().verdict, Verdict::Leak);
}
