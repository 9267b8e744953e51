//! What working sets were, interval by interval: of each container, service and process tree, for as long as is kept.
//!
//! Each interval has its peak and its mean, two bytes each: on a scale of logarithms whose steps are a twenty-third of a per cent,
//! which keeps their order. So two hundred containers for two weeks of minutes are 16 MiB. Times are those of the wall clock, as a
//! history outlives the agent and the machine's boots.

use super::past::{Interval, Kill};
use crate::{
    detect::{self, Key, Point},
    model::snapshot::Snapshot,
    units,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// So many are kept at most.
const MOST: usize = 512;
/// Process trees smaller than this are not worth advice.
const LEAST_TREE_BYTES: u64 = 16 << 20;
/// Of each the last so many kills.
const MOST_KILLS: usize = 32;
/// A page: steps of the scale begin there.
const PAGE: f64 = units::PAGE as f64;
/// Steps of the scale to each doubling: all of 2⁵² bytes in 16 bits.
const STEPS: f64 = 1600.0;

/// What is kept.
#[derive(Debug)]
pub struct Histories {
    interval_seconds: u64,
    keep: usize,
    all: BTreeMap<Arc<str>, History>,
    open: HashMap<Key, Open>,
    /// The interval that goes on, by its number since 1970.
    number: Option<u64>,
    /// The snapshot that was taken in last.
    snapshot: u64,
    left_out: usize,
}

/// One subject's.
#[derive(Clone, Debug, Default, PartialEq)]
struct History {
    /// Number of the first interval since 1970.
    first: u64,
    values: VecDeque<Value>,
    kills: VecDeque<Kill>,
}

/// Peak and mean of an interval, on the scale; both 0 where nothing is known.
type Value = (u16, u16);

/// What is gathered of a subject until the interval is over.
#[derive(Debug)]
struct Open {
    label: Arc<str>,
    peak_bytes: u64,
    /// Bytes times seconds.
    sum: f64,
    seconds: f64,
    oom_kills_total: Option<u64>,
    killed: Option<u64>,
    snapshot: u64,
}

/// One interval of all who were there: what is written down. Its parts are in the order of `names`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// When it ended, in seconds since 1970.
    pub end_seconds: u64,
    /// Whose values these are; none where they are those of the page before.
    pub names: Option<Vec<Arc<str>>>,
    /// The largest working sets.
    peaks: Vec<u16>,
    /// Their means.
    means: Vec<u16>,
    /// Who was killed for want of memory, by its place, and what was in use.
    kills: Vec<(u32, u64)>,
}

#[cfg(test)]
impl Page {
    /// Without kills.
    pub(crate) fn of(end_seconds: u64, names: Vec<Arc<str>>, peaks: Vec<u16>, means: Vec<u16>) -> Self {
        Self { end_seconds, names: Some(names), peaks, means, kills: Vec::new() }
    }
}

/// A size on the scale, 1 at least.
fn scaled(bytes: u64) -> u16 {
    1 + ((1.0 + bytes as f64 / PAGE).log2() * STEPS).round().clamp(0.0, f64::from(u16::MAX - 1)) as u16
}

/// The size at a step of the scale; none at 0.
fn unscaled(step: u16) -> Option<u64> {
    let doublings = f64::from(step.checked_sub(1)?) / STEPS;
    Some(((doublings.exp2() - 1.0) * PAGE).round() as u64)
}

impl Histories {
    /// Nothing yet: of intervals that long, for so long.
    pub fn new(interval: Duration, keep: Duration) -> Self {
        let interval_seconds = interval.as_secs().max(1);
        let keep = (keep.as_secs() / interval_seconds).max(1) as usize;
        let (all, open) = (BTreeMap::new(), HashMap::new());
        Self { interval_seconds, keep, all, open, number: None, snapshot: 0, left_out: 0 }
    }

    /// Takes in a snapshot. The interval before, where it began another.
    pub fn take(&mut self, snapshot: &Snapshot, wall: SystemTime) -> Option<Page> {
        let seconds = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let number = seconds / self.interval_seconds;
        let ended = self.number.filter(|last| *last < number).map(|last| self.close(last));
        // A clock that was set back goes on with the interval that it is in again.
        self.number = Some(number);
        self.snapshot = snapshot.number;
        let tick = snapshot.tick.as_secs_f64();
        let open = &mut self.open;
        detect::each_subject(snapshot, |key, point, subject| match open.get_mut(&key) {
            Some(open) => open.take(&point, tick, snapshot.number),
            None if matches!(key, Key::Tree(_)) && point.working_set_bytes < LEAST_TREE_BYTES => {}
            None => {
                let mut new = Open::of(subject().label().into(), point.oom_kills_total);
                new.take(&point, tick, snapshot.number);
                open.insert(key, new);
            }
        });
        ended
    }

    /// Ends an interval: whoever was seen in it has a value of it.
    fn close(&mut self, number: u64) -> Page {
        let end_seconds = (number + 1) * self.interval_seconds;
        let mut values: BTreeMap<Arc<str>, (Value, Option<u64>)> = BTreeMap::new();
        for open in self.open.values_mut().filter(|open| open.seconds > 0.0 || open.peak_bytes > 0) {
            let (value, killed) = open.end();
            // Two may have the same name: containers that follow each other within an interval.
            let (known, known_kill) = values.entry(Arc::clone(&open.label)).or_default();
            *known = (known.0.max(value.0), known.1.max(value.1));
            *known_kill = killed.or(*known_kill);
        }
        let last = self.snapshot;
        self.open.retain(|_, open| open.snapshot == last);
        let mut page = Page { end_seconds, ..Page::default() };
        let mut names = Vec::with_capacity(values.len());
        for (place, (name, ((peak, mean), killed))) in values.into_iter().enumerate() {
            names.push(name);
            page.peaks.push(peak);
            page.means.push(mean);
            page.kills.extend(killed.map(|bytes| (place as u32, bytes)));
        }
        page.names = Some(names);
        self.put(&page, &[]);
        page
    }

    /// Takes in a page: one that was written down, whatever its interval was. `names` are those of the page before.
    pub fn put(&mut self, page: &Page, names: &[Arc<str>]) {
        let names = page.names.as_deref().unwrap_or(names);
        let number = (page.end_seconds.saturating_sub(1)) / self.interval_seconds;
        self.forget(number);
        for ((name, peak), mean) in names.iter().zip(&page.peaks).zip(&page.means) {
            if !self.all.contains_key(name) && !self.make_room(number) {
                self.left_out += 1;
                continue;
            }
            let history =
                self.all.entry(Arc::clone(name)).or_insert_with(|| History { first: number, ..History::default() });
            history.put(number, (*peak, *mean), self.keep);
        }
        for (place, bytes) in &page.kills {
            let history = names.get(*place as usize).and_then(|name| self.all.get_mut(name));
            if let Some(history) = history {
                if history.kills.len() >= MOST_KILLS {
                    history.kills.pop_front();
                }
                history.kills.push_back(Kill { time_seconds: page.end_seconds as f64, bytes: *bytes });
            }
        }
    }

    /// Forgets who has no interval any more that is to be kept.
    fn forget(&mut self, number: u64) {
        let oldest = (number + 1).saturating_sub(self.keep as u64);
        self.all.retain(|_, history| history.end() > oldest);
    }

    /// Whether there is room for one more: who has gone for longest makes it.
    fn make_room(&mut self, number: u64) -> bool {
        if self.all.len() < MOST {
            return true;
        }
        let gone =
            self.all.iter().filter(|(_, history)| history.end() < number).min_by_key(|(_, history)| history.end());
        let Some(name) = gone.map(|(name, _)| Arc::clone(name)) else { return false };
        self.all.remove(&name).is_some()
    }

    /// Everybody who has a history, in order of name.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.all.keys()
    }

    /// What is known of one, within a 23rd of a per cent.
    pub fn past(&self, name: &str) -> (Vec<Interval>, Vec<Kill>) {
        let Some(history) = self.all.get(name) else { return (Vec::new(), Vec::new()) };
        let seconds = self.interval_seconds as f64;
        let intervals = history.values.iter().enumerate().filter_map(|(place, (peak, mean))| {
            let end_seconds = (history.first + place as u64 + 1) as f64 * seconds;
            Some(Interval { end_seconds, seconds, peak_bytes: unscaled(*peak)?, mean_bytes: unscaled(*mean)? })
        });
        (intervals.collect(), history.kills.iter().copied().collect())
    }

    /// Values that found no room.
    pub const fn left_out(&self) -> usize {
        self.left_out
    }
}

impl History {
    /// Number of the interval after the last.
    fn end(&self) -> u64 {
        self.first + self.values.len() as u64
    }

    fn put(&mut self, number: u64, value: Value, keep: usize) {
        let place = number.saturating_sub(self.first) as usize;
        if number < self.first {
            // The clock was set back further than all that is known.
            return;
        }
        if place >= self.values.len() + keep {
            self.values.clear();
            self.first = number;
        }
        while self.end() <= number {
            if self.values.len() >= keep {
                self.values.pop_front();
                self.first += 1;
            }
            // By parts of what is kept at most, lest one doubles what it needs.
            if self.values.len() == self.values.capacity() {
                self.values.reserve_exact((keep - self.values.len()).min(256));
            }
            self.values.push_back((0, 0));
        }
        let place = (number - self.first) as usize;
        let known = &mut self.values[place];
        *known = (known.0.max(value.0), known.1.max(value.1));
    }
}

impl Open {
    const fn of(label: Arc<str>, oom_kills_total: Option<u64>) -> Self {
        Self { label, peak_bytes: 0, sum: 0.0, seconds: 0.0, oom_kills_total, killed: None, snapshot: 0 }
    }

    fn take(&mut self, point: &Point, tick: f64, snapshot: u64) {
        self.snapshot = snapshot;
        self.peak_bytes = self.peak_bytes.max(point.peak_bytes.unwrap_or_default()).max(point.working_set_bytes);
        self.sum += point.working_set_bytes as f64 * tick;
        self.seconds += tick;
        if point.oom_kills_total.zip(self.oom_kills_total).is_some_and(|(now, before)| now > before) {
            self.killed = Some(point.limit_bytes.unwrap_or(self.peak_bytes));
        }
        self.oom_kills_total = point.oom_kills_total;
    }

    /// The interval's value, and who was killed in it; the next begins.
    fn end(&mut self) -> (Value, Option<u64>) {
        let mean = if self.seconds > 0.0 { (self.sum / self.seconds) as u64 } else { self.peak_bytes };
        let value = (scaled(self.peak_bytes), scaled(mean.min(self.peak_bytes)));
        (self.peak_bytes, self.sum, self.seconds) = (0, 0.0, 0.0);
        (value, self.killed.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::fixtures;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// The fixture's tree at a second, with so many mebibytes.
    fn grown(second: u64, mebibytes: u64) -> Snapshot {
        Snapshot { tick: Duration::from_secs(10), ..fixtures::grown(second, mebibytes) }
    }

    fn page(number: u64, names: &[&str], mebibytes: u64) -> Page {
        let value = vec![scaled(mebibytes << 20); names.len()];
        let names = Some(names.iter().map(|name| Arc::from(*name)).collect());
        Page { end_seconds: (number + 1) * 60, names, peaks: value.clone(), means: value, kills: Vec::new() }
    }

    #[test]
    fn an_interval_has_the_largest_working_set_and_the_mean_over_time() {
        let mut histories = Histories::new(MINUTE, DAY);
        for (step, mebibytes) in [100, 200, 300, 100, 100, 100].into_iter().enumerate() {
            assert_eq!(histories.take(&grown(10 * step as u64, mebibytes), at(600 + 10 * step as u64)), None);
        }
        let page = histories.take(&grown(60, 64), at(660)).unwrap();
        assert_eq!((page.end_seconds, page.names.as_ref().unwrap().len()), (660, 1));
        let name = histories.names().next().unwrap().clone();
        let (intervals, kills) = histories.past(&name);
        assert_eq!((intervals.len(), kills.len()), (1, 0));
        let Interval { end_seconds, seconds, peak_bytes, mean_bytes } = intervals[0];
        assert_eq!((end_seconds, seconds), (660.0, 60.0));
        let near = |bytes: u64, mebibytes: f64| (bytes as f64 / f64::from(1 << 20) / mebibytes - 1.0).abs() < 5e-4;
        assert!(near(peak_bytes, 300.0) && near(mean_bytes, 150.0), "{peak_bytes} {mean_bytes}");
    }

    #[test]
    fn what_was_written_down_is_known_again_and_who_is_missing_meanwhile_has_gaps() {
        let mut histories = Histories::new(MINUTE, DAY);
        histories.put(&page(10, &["a", "b"], 100), &[]);
        histories.put(&page(11, &["a"], 100), &[]);
        let names: Vec<Arc<str>> = vec!["a".into(), "b".into()];
        histories.put(&Page { names: None, kills: vec![(1, 7)], ..page(12, &["a", "b"], 50) }, &names);
        let ends =
            |name: &str| histories.past(name).0.iter().map(|one| one.end_seconds as u64 / 60).collect::<Vec<_>>();
        assert_eq!((ends("a"), ends("b")), (vec![11, 12, 13], vec![11, 13]));
        assert_eq!(histories.past("b").1, [Kill { time_seconds: 780.0, bytes: 7 }]);
    }

    #[test]
    fn what_is_older_than_is_kept_goes_and_who_has_nothing_else_with_it() {
        let mut histories = Histories::new(MINUTE, 10 * MINUTE);
        histories.put(&page(0, &["gone"], 1), &[]);
        (0..25).for_each(|number| histories.put(&page(number, &["here"], number), &[]));
        assert_eq!(histories.names().map(|name| &**name).collect::<Vec<_>>(), ["here"]);
        let ends: Vec<_> = histories.past("here").0.iter().map(|one| one.end_seconds as u64 / 60).collect();
        assert_eq!(ends, (16..=25).collect::<Vec<_>>());
        histories.put(&page(500, &["here"], 1), &[]);
        assert_eq!(histories.past("here").0.len(), 1, "and after a long time nothing is left");
        histories.put(&page(3, &["here"], 1), &[]);
        assert_eq!(histories.past("here").0.len(), 1, "nor comes back, where the clock is set back");
    }

    #[test]
    fn who_is_too_many_takes_the_place_of_who_has_gone_for_longest() {
        let mut histories = Histories::new(MINUTE, DAY);
        let names: Vec<String> = (0..MOST).map(|number| number.to_string()).collect();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        histories.put(&page(0, &all, 1), &[]);
        histories.put(&page(1, &all[1..], 1), &[]);
        histories.put(&page(2, &all[1..], 1), &[]);
        histories.put(&page(2, &["late", "later"], 1), &[]);
        let has = |name: &str| histories.names().any(|known| &**known == name);
        assert!(has("late") && !has("0") && !has("later"));
        assert_eq!(histories.left_out(), 1);
    }

    #[test]
    fn two_weeks_of_two_hundred_containers_fit_in_32_mebibytes() {
        let mut histories = Histories::new(MINUTE, 14 * DAY);
        let names: Vec<String> = (0..200).map(|number| format!("container shop/pod-{number}/web")).collect();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        (0..20_200).for_each(|number| histories.put(&page(number, &all, number % 512), &[]));
        let room = histories.all.values().map(|history| history.values.capacity() * size_of::<Value>()).sum::<usize>();
        assert!((200 * 20_160 * 4..=20 << 20).contains(&room), "{room} bytes");
    }

    proptest! {
        #[test]
        fn the_scale_keeps_order_and_a_23rd_of_a_per_cent(a in 0..1u64 << 52, b in 0..1u64 << 52) {
            prop_assert!(a > b || scaled(a) <= scaled(b));
            let back = unscaled(scaled(a)).unwrap();
            let error = back.abs_diff(a) as f64;
            prop_assert!(error <= 1.0 || error / (a as f64 + PAGE) < 2.5e-4, "{a} {back}");
        }

        #[test]
        fn whatever_the_clock_does_there_are_no_more_than_are_kept(numbers in prop::collection::vec(0u64..200, 1..80)) {
            let mut histories = Histories::new(MINUTE, 20 * MINUTE);
            for number in numbers {
                histories.put(&page(number, &["a"], number), &[]);
                let (intervals, _) = histories.past("a");
                prop_assert!(intervals.len() <= 20);
                prop_assert!(intervals.windows(2).all(|pair| pair[0].end_seconds < pair[1].end_seconds));
            }
        }
    }
}
