//! The corpus: generated lives of subjects, each with what is true of it. A series is a function of its name alone.
//!
//! Families say in a line what they are; every series of a family draws its own numbers. Memory is in MiB inside.

use std::f64::consts::TAU;

/// Series of each family.
const SERIES: u32 = 12;
const MIB: f64 = 1024.0 * 1024.0;
const MINUTE: f64 = 60.0;
const HOUR: f64 = 3600.0;
const DAY: f64 = 24.0 * HOUR;

/// One subject's life.
pub(crate) struct Series {
    /// Family and number.
    pub(crate) name: String,
    /// Whether a real program lived it.
    pub(crate) is_recorded: bool,
    /// When its leak begins; none where it has none.
    pub(crate) leak_begins: Option<f64>,
    /// What was seen of it.
    pub(crate) rows: Vec<Row>,
}

/// What is seen at one moment. Sizes are bytes.
pub(crate) struct Row {
    pub(crate) time: f64,
    pub(crate) working_set: f64,
    pub(crate) anon: Option<f64>,
    pub(crate) requests: Option<f64>,
    pub(crate) oom_kills: Option<u64>,
}

impl Series {
    /// Whether it is of the half that is only counted at the end. By a hash of its name.
    pub(crate) fn is_kept(&self) -> bool {
        is_kept(&self.name)
    }

    /// How long it is, in days.
    pub(crate) fn days(&self) -> f64 {
        self.rows.last().map_or(0.0, |row| row.time) / DAY
    }
}

/// What a family makes of its numbers: a life, to be watched.
struct Life {
    seconds: f64,
    tick: f64,
    leak_begins: Option<f64>,
    /// Noise of the memory, as a share of it.
    noise: f64,
    /// Requests a second at a time; none where they are not counted.
    rate: Option<Box<dyn Fn(f64) -> f64>>,
    /// Memory in MiB by time, requests in all, and requests a second.
    anon: Box<dyn Fn(f64, f64, f64) -> f64>,
    /// Page cache in MiB by time; none where anonymous memory is not told apart.
    cache: Option<Box<dyn Fn(f64) -> f64>>,
    /// From one restart to the next: time and counters begin anew.
    restart: Option<f64>,
}

type Family = (&'static str, fn(&mut Random) -> Life);

/// All families: leaks first.
const FAMILIES: [Family; 34] = [
    ("leak-slow", leak_slow),
    ("leak-small", leak_small),
    ("leak-fast", leak_fast),
    ("leak-steps", leak_steps),
    ("leak-daily-load", leak_daily_load),
    ("leak-late", leak_late),
    ("leak-under-sawtooth", leak_under_sawtooth),
    ("leak-restarts", leak_restarts),
    ("leak-after-warm-up", leak_after_warm_up),
    ("leak-noisy", leak_noisy),
    ("leak-without-requests", leak_without_requests),
    ("leak-bursts", leak_bursts),
    ("leak-load-ramp", leak_load_ramp),
    ("leak-beside-cache", leak_beside_cache),
    ("leak-and-load-memory", leak_and_load_memory),
    ("flat", flat),
    ("warm-up", warm_up),
    ("cache-fill", cache_fill),
    ("cache-fill-linear", cache_fill_linear),
    ("sawtooth", sawtooth),
    ("sawtooth-nested", sawtooth_nested),
    ("batch", batch),
    ("cron", cron),
    ("daily-load", daily_load),
    ("daily-without-requests", daily_without_requests),
    ("page-cache", page_cache),
    ("copy-on-write", copy_on_write),
    ("load-ramp", load_ramp),
    ("load-steps", load_steps),
    ("logarithmic", logarithmic),
    ("wandering", wandering),
    ("large-allocations", large_allocations),
    ("restarts-with-warm-up", restarts_with_warm_up),
    ("spikes", spikes),
];

/// Every series of every family.
pub(crate) fn all() -> impl Iterator<Item = Series> {
    FAMILIES.into_iter().flat_map(|(family, make)| (0..SERIES).map(move |number| series(family, make, number)))
}

/// Lives of a week or two, for what looks at sizes and not at leaks.
#[allow(dead_code, reason = "the scorecard has no use for them, the backtest has")]
pub(crate) fn long() -> impl Iterator<Item = Series> {
    const FAMILIES: [Family; 3] = [("deploys", deploys), ("weeks", weeks), ("rare-spikes", rare_spikes)];
    FAMILIES.into_iter().flat_map(|(family, make)| (0..SERIES).map(move |number| series(family, make, number)))
}

fn series(family: &str, make: fn(&mut Random) -> Life, number: u32) -> Series {
    let name = format!("{family}-{number:02}");
    let mut random = Random(hash(&name));
    let life = make(&mut random);
    let rows = watch(&life, &mut random);
    Series { name, is_recorded: false, leak_begins: life.leak_begins, rows }
}

/// A life as it is seen tick by tick, with noise of which half lasts for some ticks.
fn watch(life: &Life, random: &mut Random) -> Vec<Row> {
    let (mut requests, mut lasting, mut rows) = (0.0, 0.0, Vec::new());
    for i in 0..(life.seconds / life.tick) as u32 {
        let time = f64::from(i) * life.tick;
        let age = life.restart.map_or(time, |period| time % period);
        if age < life.tick {
            requests = 0.0;
        }
        let rate = life.rate.as_ref().map(|rate| rate(time));
        if let Some(rate) = rate {
            requests += random.count(rate * life.tick);
        }
        lasting = 0.9 * lasting + 0.3 * random.normal();
        let anon = (life.anon)(age, requests, rate.unwrap_or_default());
        let anon = (anon * (1.0 + life.noise * (random.normal() + lasting) / 2.0)).max(1.0) * MIB;
        let cache = life.cache.as_ref().map(|cache| cache(time) * MIB);
        rows.push(Row {
            time,
            working_set: anon + cache.unwrap_or_default(),
            anon: cache.map(|_| anon),
            requests: rate.map(|_| requests),
            oom_kills: life.restart.map(|period| (time / period) as u64),
        });
    }
    rows
}

/// Five to six hours of a server that holds some memory and serves some requests, and leaks nothing.
fn server(random: &mut Random) -> Life {
    let (base, rate) = (random.among(100.0, 2000.0), random.among(5.0, 50.0));
    Life {
        seconds: random.evenly(5.0, 6.0) * HOUR,
        tick: 5.0,
        leak_begins: None,
        noise: random.among(0.001, 0.01),
        rate: Some(Box::new(move |_| rate)),
        anon: Box::new(move |_, _, _| base),
        cache: None,
        restart: None,
    }
}

/// By the hour, unnoticed for a day.
fn leak_slow(random: &mut Random) -> Life {
    let (base, hourly) = (random.among(200.0, 1000.0), random.among(0.004, 0.03));
    let anon = Box::new(move |time: f64, _, _| base * (1.0 + hourly * time / HOUR));
    Life { seconds: DAY, tick: 20.0, leak_begins: Some(0.0), rate: None, anon, ..server(random) }
}

/// Some KiB with each request.
fn leak_small(random: &mut Random) -> Life {
    let (base, kib) = (random.among(100.0, 500.0), random.among(1.0, 8.0));
    let anon = Box::new(move |_, requests, _| base + kib * requests / 1024.0);
    Life { seconds: 12.0 * HOUR, tick: 10.0, leak_begins: Some(0.0), anon, ..server(random) }
}

/// Tens to hundreds of KiB with each request.
fn leak_fast(random: &mut Random) -> Life {
    let (base, kib) = (random.among(100.0, 500.0), random.among(50.0, 300.0));
    let anon = Box::new(move |_, requests, _| base + kib * requests / 1024.0);
    Life { seconds: random.evenly(20.0, 60.0) * MINUTE, tick: 1.0, leak_begins: Some(0.0), anon, ..server(random) }
}

/// A piece every 10 to 30 minutes.
fn leak_steps(random: &mut Random) -> Life {
    let (base, every, piece) =
        (random.among(100.0, 500.0), random.evenly(10.0, 30.0) * MINUTE, random.among(5.0, 30.0));
    let anon = Box::new(move |time: f64, _, _| base + piece * (time / every).floor());
    Life {
        seconds: DAY,
        tick: 20.0,
        leak_begins: Some(0.0),
        noise: random.among(0.0005, 0.005),
        anon,
        ..server(random)
    }
}

/// With each request, where requests come by day.
fn leak_daily_load(random: &mut Random) -> Life {
    let (base, kib, rate) = (random.among(100.0, 500.0), random.among(1.0, 8.0), daily_rate(random));
    let anon = Box::new(move |_, requests, _| base + kib * requests / 1024.0);
    Life { seconds: 1.5 * DAY, tick: 30.0, leak_begins: Some(0.0), rate: Some(rate), anon, ..server(random) }
}

/// Hours after the beginning.
fn leak_late(random: &mut Random) -> Life {
    let (base, begin, hourly) = (random.among(200.0, 1000.0), random.evenly(4.0, 12.0) * HOUR, random.among(0.02, 0.3));
    let anon = Box::new(move |time: f64, _, _| base * (1.0 + hourly * (time - begin).max(0.0) / HOUR));
    Life { seconds: DAY, tick: 20.0, leak_begins: Some(begin), anon, ..server(random) }
}

/// Beneath what a collector frees every few minutes.
fn leak_under_sawtooth(random: &mut Random) -> Life {
    let (base, tooth, hourly) = (random.among(100.0, 500.0), tooth(random, 3.0, 15.0), random.among(20.0, 80.0));
    let anon = Box::new(move |time: f64, _, _| base + tooth(time) + hourly * time / HOUR);
    Life { seconds: DAY, tick: 20.0, leak_begins: Some(0.0), anon, ..server(random) }
}

/// With each request, until the limit kills it, again and again.
fn leak_restarts(random: &mut Random) -> Life {
    let (base, hourly) = (random.among(100.0, 500.0), random.among(100.0, 500.0));
    let restart = Some(random.evenly(1.0, 3.0) * HOUR);
    let anon = Box::new(move |age: f64, _, _| base + hourly * age / HOUR);
    Life { seconds: 12.0 * HOUR, tick: 10.0, leak_begins: Some(0.0), restart, anon, ..server(random) }
}

/// Beside a warm-up that is far larger at first.
fn leak_after_warm_up(random: &mut Random) -> Life {
    let (base, warm, slowness, hourly) =
        (random.among(100.0, 300.0), random.among(100.0, 600.0), random.among(60.0, 600.0), random.among(10.0, 60.0));
    let anon = Box::new(move |time: f64, _, _| base + saturating(time, warm, slowness) + hourly * time / HOUR);
    Life { seconds: 12.0 * HOUR, tick: 10.0, leak_begins: Some(0.0), anon, ..server(random) }
}

/// Under noise of several percent.
fn leak_noisy(random: &mut Random) -> Life {
    let (base, hourly) = (random.among(200.0, 1000.0), random.among(0.03, 0.1));
    let anon = Box::new(move |time: f64, _, _| base * (1.0 + hourly * time / HOUR));
    let noise = random.among(0.03, 0.1);
    Life { seconds: DAY, tick: 20.0, leak_begins: Some(0.0), noise, anon, ..server(random) }
}

/// Of something that serves no requests that anybody counts.
fn leak_without_requests(random: &mut Random) -> Life {
    let (base, hourly) = (random.among(50.0, 500.0), random.among(30.0, 300.0));
    let anon = Box::new(move |time: f64, _, _| base + hourly * time / HOUR);
    Life { rate: None, leak_begins: Some(0.0), anon, ..server(random) }
}

/// With requests that come in bursts.
fn leak_bursts(random: &mut Random) -> Life {
    let (base, kib, every) = (random.among(100.0, 500.0), random.among(4.0, 30.0), random.evenly(5.0, 20.0) * MINUTE);
    let rate =
        Some(Box::new(move |time: f64| if time % every < every / 5.0 { 60.0 } else { 0.2 }) as Box<dyn Fn(f64) -> f64>);
    let anon = Box::new(move |_, requests, _| base + kib * requests / 1024.0);
    Life { seconds: 12.0 * HOUR, tick: 10.0, leak_begins: Some(0.0), rate, anon, ..server(random) }
}

/// With each request, and ever more of them.
fn leak_load_ramp(random: &mut Random) -> Life {
    let (base, kib, rate) = (random.among(100.0, 500.0), random.among(4.0, 30.0), ramp(random, 6.0 * HOUR));
    let anon = Box::new(move |_, requests, _| base + kib * requests / 1024.0);
    Life { seconds: 6.0 * HOUR, leak_begins: Some(0.0), rate: Some(rate), anon, ..server(random) }
}

/// Anonymous memory, beside page cache that comes and goes.
fn leak_beside_cache(random: &mut Random) -> Life {
    let (base, hourly, cache) = (random.among(100.0, 500.0), random.among(10.0, 60.0), tooth(random, 20.0, 60.0));
    let anon = Box::new(move |time: f64, _, _| base + hourly * time / HOUR);
    Life { seconds: 12.0 * HOUR, tick: 10.0, leak_begins: Some(0.0), cache: Some(cache), anon, ..server(random) }
}

/// By the hour, beside memory that goes with the load of the day.
fn leak_and_load_memory(random: &mut Random) -> Life {
    let (base, each, hourly, rate) =
        (random.among(200.0, 500.0), random.among(1.0, 5.0), random.among(5.0, 30.0), daily_rate(random));
    let anon = Box::new(move |time: f64, _, rate| base + each * rate + hourly * time / HOUR);
    Life { seconds: 2.0 * DAY, tick: 30.0, leak_begins: Some(0.0), rate: Some(rate), anon, ..server(random) }
}

/// Nothing but noise.
fn flat(random: &mut Random) -> Life {
    let noise = random.among(0.001, 0.1);
    Life { seconds: DAY, tick: 20.0, noise, ..server(random) }
}

/// What a server needs once, within minutes to an hour.
fn warm_up(random: &mut Random) -> Life {
    let (base, warm, slowness) =
        (random.among(50.0, 300.0), random.among(50.0, 1000.0), random.among(2.0, 30.0) * MINUTE);
    Life { anon: Box::new(move |time, _, _| base + saturating(time, warm, slowness)), ..server(random) }
}

/// A cache that fills as requests miss it.
fn cache_fill(random: &mut Random) -> Life {
    let (base, most, slowness) = (random.among(50.0, 300.0), random.among(100.0, 2000.0), random.among(5e3, 5e4));
    let anon = Box::new(move |_, requests, _| base + saturating(requests, most, slowness));
    Life { seconds: 12.0 * HOUR, tick: 10.0, anon, ..server(random) }
}

/// A cache that grows evenly up to its limit.
fn cache_fill_linear(random: &mut Random) -> Life {
    let (base, most, full) = (random.among(50.0, 300.0), random.among(100.0, 2000.0), random.evenly(0.5, 3.0) * HOUR);
    let anon = Box::new(move |time: f64, _, _| base + most * (time / full).min(1.0));
    Life { seconds: 12.0 * HOUR, tick: 10.0, anon, ..server(random) }
}

/// A collector frees every few minutes.
fn sawtooth(random: &mut Random) -> Life {
    let (base, tooth) = (random.among(100.0, 500.0), tooth(random, 2.0, 40.0));
    let anon = Box::new(move |time: f64, _, _| base + tooth(time));
    Life { seconds: 12.0 * HOUR, tick: 10.0, anon, ..server(random) }
}

/// A collector frees a part every few minutes, and the rest every hour or so.
fn sawtooth_nested(random: &mut Random) -> Life {
    let (base, small, large) = (random.among(100.0, 500.0), tooth(random, 2.0, 10.0), tooth(random, 40.0, 150.0));
    let anon = Box::new(move |time: f64, _, _| base + small(time) + large(time));
    Life { seconds: DAY, tick: 20.0, anon, ..server(random) }
}

/// A job that takes memory for a while, every hour or so.
fn batch(random: &mut Random) -> Life {
    let (base, most, every, share) = (
        random.among(100.0, 500.0),
        random.among(100.0, 1000.0),
        random.evenly(0.7, 3.0) * HOUR,
        random.evenly(0.1, 0.6),
    );
    let anon = Box::new(move |time: f64, _, _| {
        let phase = (time / every + 0.6).fract();
        base + if phase < share { most * (phase / share * 1.5).min(1.0) } else { 0.0 }
    });
    Life { seconds: DAY, tick: 20.0, rate: None, anon, ..server(random) }
}

/// Short jobs of several schedules.
fn cron(random: &mut Random) -> Life {
    let base = random.among(100.0, 500.0);
    let jobs = [5.0, 15.0, 60.0].map(|every| (every * MINUTE, random.among(10.0, 300.0), random.evenly(0.03, 0.2)));
    let anon = Box::new(move |time: f64, _, _| {
        base + jobs
            .iter()
            .map(|(every, most, share)| if (time / every).fract() < *share { *most } else { 0.0 })
            .sum::<f64>()
    });
    Life { seconds: DAY, tick: 20.0, rate: None, anon, ..server(random) }
}

/// Memory goes with the requests of the day.
fn daily_load(random: &mut Random) -> Life {
    let (base, each, rate) = (random.among(100.0, 500.0), random.among(2.0, 20.0), daily_rate(random));
    let anon = Box::new(move |_, _, rate| base + each * rate);
    Life { seconds: 2.0 * DAY, tick: 30.0, rate: Some(rate), anon, ..server(random) }
}

/// The same, where nobody counts requests.
fn daily_without_requests(random: &mut Random) -> Life {
    let (base, each, rate) = (random.among(100.0, 500.0), random.among(2.0, 20.0), daily_rate(random));
    let anon = Box::new(move |time: f64, _, _| base + each * rate(time));
    Life { seconds: random.evenly(2.0, 3.0) * DAY, tick: 60.0, rate: None, anon, ..server(random) }
}

/// Files that are read and stay cached.
fn page_cache(random: &mut Random) -> Life {
    let hourly = random.among(20.0, 500.0);
    Life { cache: Some(Box::new(move |time| 50.0 + hourly * time / HOUR)), ..server(random) }
}

/// A child that shares pages until they are written, every half hour or so.
fn copy_on_write(random: &mut Random) -> Life {
    let (base, every) = (random.among(200.0, 1000.0), random.evenly(20.0, 90.0) * MINUTE);
    let anon = Box::new(move |time: f64, _, _| {
        let age = time % every;
        base + if age < 0.7 * every { saturating(age, 0.6 * base, 0.3 * every) } else { 0.0 }
    });
    Life { seconds: 12.0 * HOUR, tick: 10.0, anon, ..server(random) }
}

/// Memory goes with requests that become ever more.
fn load_ramp(random: &mut Random) -> Life {
    let (base, each, rate) = (random.among(100.0, 500.0), random.among(1.0, 10.0), ramp(random, 6.0 * HOUR));
    let anon = Box::new(move |_, _, rate| base + each * rate);
    Life { seconds: 6.0 * HOUR, rate: Some(rate), anon, ..server(random) }
}

/// Memory goes with requests that become more in steps.
fn load_steps(random: &mut Random) -> Life {
    let (base, each, every, step) =
        (random.among(100.0, 500.0), random.among(1.0, 10.0), random.evenly(0.5, 2.0) * HOUR, random.among(3.0, 10.0));
    let rate = Some(Box::new(move |time: f64| 10.0 + step * (time / every).floor()) as Box<dyn Fn(f64) -> f64>);
    let anon = Box::new(move |_, _, rate| base + each * rate);
    Life { seconds: 12.0 * HOUR, tick: 10.0, rate, anon, ..server(random) }
}

/// Interned names, fragmented heaps: ever slower.
fn logarithmic(random: &mut Random) -> Life {
    let (base, each, unit) = (random.among(100.0, 500.0), random.among(10.0, 100.0), random.among(10.0, 300.0));
    let anon = Box::new(move |time: f64, _, _| base + each * (1.0 + time / unit).ln());
    Life { seconds: 12.0 * HOUR, tick: 10.0, anon, ..server(random) }
}

/// Up and down by slow waves of no common period.
fn wandering(random: &mut Random) -> Life {
    let base = random.among(200.0, 1000.0);
    let waves = [0.37, 1.1, 2.9].map(|hours| {
        let period = hours * HOUR * random.evenly(0.7, 1.4);
        (period, random.evenly(0.0, TAU), random.among(0.01, 0.1) * base)
    });
    let anon = Box::new(move |time: f64, _, _| {
        base + waves.iter().map(|(period, phase, height)| height * (time / period * TAU + phase).sin()).sum::<f64>()
    });
    Life { seconds: DAY, tick: 20.0, anon, ..server(random) }
}

/// Models that are loaded, at one to three moments.
fn large_allocations(random: &mut Random) -> Life {
    let base = random.among(100.0, 500.0);
    let count = random.evenly(1.0, 3.99) as usize;
    let moments: Vec<_> = (0..count).map(|_| (random.evenly(0.0, 12.0) * HOUR, random.among(50.0, 1000.0))).collect();
    let anon = Box::new(move |time: f64, _, _| {
        base + moments.iter().filter(|(at, _)| time >= *at).map(|(_, size)| size).sum::<f64>()
    });
    Life { seconds: 12.0 * HOUR, tick: 10.0, anon, ..server(random) }
}

/// Deployed anew every few hours, and warming up each time.
fn restarts_with_warm_up(random: &mut Random) -> Life {
    let (base, warm, slowness) =
        (random.among(50.0, 300.0), random.among(50.0, 500.0), random.among(1.0, 8.0) * MINUTE);
    let restart = Some(random.evenly(1.0, 4.0) * HOUR);
    let anon = Box::new(move |age, _, _| base + saturating(age, warm, slowness));
    Life { seconds: 12.0 * HOUR, tick: 10.0, restart, anon, ..server(random) }
}

/// A large answer now and then.
fn spikes(random: &mut Random) -> Life {
    let (base, most, every) = (random.among(100.0, 500.0), random.among(50.0, 500.0), random.among(100.0, 3000.0));
    let anon = Box::new(move |time: f64, _, _| {
        let spike = hash(&format!("{}", (time / every) as u64)) % 100;
        base + if time % every < 30.0 { most * spike as f64 / 100.0 } else { 0.0 }
    });
    Life { seconds: 12.0 * HOUR, tick: 10.0, anon, ..server(random) }
}

/// A new version every few days, each of which needs more or less than the one before, and warms up.
fn deploys(random: &mut Random) -> Life {
    let (every, slowness) = (random.evenly(1.0, 4.0) * DAY, random.among(2.0, 20.0) * MINUTE);
    let (each, rate) = (random.among(1.0, 10.0), daily_rate(random));
    let mut base = random.among(100.0, 800.0);
    let versions: Vec<_> = (0..16)
        .map(|_| {
            base = (base * random.among(0.6, 1.7)).clamp(50.0, 2000.0);
            base
        })
        .collect();
    let anon = Box::new(move |time: f64, _, _| {
        let (version, age) = ((time / every) as usize, time % every);
        versions[version.min(15)] * (1.0 - 0.5 * (-age / slowness).exp()) + each * rate(time)
    });
    Life { seconds: 14.0 * DAY, tick: 60.0, rate: None, anon, ..server(random) }
}

/// Days, of which two in seven are quiet.
fn weeks(random: &mut Random) -> Life {
    let (base, each, quiet, rate) =
        (random.among(100.0, 800.0), random.among(2.0, 20.0), random.evenly(0.1, 0.6), daily_rate(random));
    let anon = Box::new(move |time: f64, _, _| {
        let share = if (time / DAY) as u64 % 7 < 5 { 1.0 } else { quiet };
        base + each * share * rate(time)
    });
    Life { seconds: 14.0 * DAY, tick: 60.0, rate: None, anon, ..server(random) }
}

/// Large jobs at any time, some a day, of sizes that are spread as exponentials are.
fn rare_spikes(random: &mut Random) -> Life {
    let (base, mean) = (random.among(100.0, 800.0), random.among(20.0, 400.0));
    let count = random.evenly(10.0, 60.0) as usize;
    let jobs: Vec<_> = (0..count)
        .map(|_| {
            let begin = random.evenly(0.0, 10.0) * DAY;
            (begin, begin + random.among(1.0, 30.0) * MINUTE, -mean * random.evenly(1e-9, 1.0).ln())
        })
        .collect();
    let anon = Box::new(move |time: f64, _, _| {
        base + jobs.iter().filter(|(begin, end, _)| (*begin..*end).contains(&time)).map(|(.., size)| size).sum::<f64>()
    });
    Life { seconds: 10.0 * DAY, tick: 60.0, rate: None, anon, ..server(random) }
}

/// From nothing towards `most`.
fn saturating(x: f64, most: f64, slowness: f64) -> f64 {
    most * (1.0 - (-x / slowness).exp())
}

/// A sawtooth of some period in minutes.
fn tooth(random: &mut Random, from: f64, to: f64) -> Box<dyn Fn(f64) -> f64> {
    let (period, height, phase) = (random.among(from, to) * MINUTE, random.among(50.0, 400.0), random.evenly(0.0, 1.0));
    Box::new(move |time| height * (time / period + phase).fract())
}

/// Requests a second that rise and fall with the day, beginning at any hour.
fn daily_rate(random: &mut Random) -> Box<dyn Fn(f64) -> f64> {
    let (mean, phase, share) = (random.among(10.0, 40.0), random.evenly(0.0, TAU), random.evenly(0.4, 0.9));
    Box::new(move |time| mean * (1.0 + share * (time / DAY * TAU + phase).sin()))
}

/// Requests a second that rise evenly to several times what they were.
fn ramp(random: &mut Random, seconds: f64) -> Box<dyn Fn(f64) -> f64> {
    let (begin, times) = (random.among(5.0, 20.0), random.evenly(2.0, 8.0));
    Box::new(move |time| begin * (1.0 + (times - 1.0) * time / seconds))
}

/// SplitMix64: numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn evenly(&mut self, from: f64, to: f64) -> f64 {
        from + (to - from) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Each octave as likely as any other.
    fn among(&mut self, from: f64, to: f64) -> f64 {
        self.evenly(from.ln(), to.ln()).exp()
    }

    /// Box and Muller's.
    fn normal(&mut self) -> f64 {
        (-2.0 * self.evenly(f64::MIN_POSITIVE, 1.0).ln()).sqrt() * (self.evenly(0.0, TAU)).cos()
    }

    /// How many come where so many are expected: Poisson's distribution, nearly.
    fn count(&mut self, expected: f64) -> f64 {
        (expected + expected.sqrt() * self.normal()).round().max(0.0)
    }
}

fn is_kept(name: &str) -> bool {
    hash(&format!("{name} is kept")).is_multiple_of(2)
}

/// FNV-1a, whose last letters move too little of it, mixed once more.
fn hash(text: &str) -> u64 {
    let hash =
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    Random(hash).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_the_same_each_time_and_long_enough() {
        let twice = [0, 0].map(|number| series("leak-small", leak_small, number));
        let [one, two] = twice.map(|series| series.rows.iter().map(|row| row.working_set).collect::<Vec<_>>());
        assert_eq!(one, two);
        assert!(one.len() > 1000);
    }

    #[test]
    fn there_are_more_than_three_hundred_and_about_half_is_kept() {
        let names: Vec<_> =
            FAMILIES.iter().flat_map(|(family, _)| (0..SERIES).map(move |n| format!("{family}-{n:02}"))).collect();
        let kept = names.iter().filter(|name| is_kept(name)).count();
        assert!(
            names.len() >= 300 && kept * 5 > names.len() * 2 && kept * 5 < names.len() * 3,
            "{kept} of {}",
            names.len()
        );
    }

    #[test]
    fn a_restart_begins_the_counters_anew() {
        let life = series("leak-restarts", leak_restarts, 3);
        let falls = life.rows.windows(2).filter(|pair| pair[1].requests < pair[0].requests).count();
        assert!(falls >= 3, "{falls}");
    }
}
