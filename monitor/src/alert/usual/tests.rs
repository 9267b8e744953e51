//! Weeks of made-up machines: what is told of them, how soon, and how often wrongly.

use super::*;
use crate::{
    model::usage::{CpuShares, HostUsage},
    time::BootTime,
};

const DAY: u64 = 24 * 3600;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Noise that can be repeated: as if drawn from a normal distribution.
struct Noise(u64);

impl Noise {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

/// A machine with 16 processors, minute by minute, from midnight on.
struct Machine {
    alerts: super::super::Alerts,
    minute: u64,
    /// Noise that remembers the last half an hour, as load does.
    noise: (Noise, f64),
    told: Vec<(u64, String)>,
}

impl Machine {
    fn new(learned: Option<Learned>) -> Self {
        let mut config = crate::config::Config::default();
        config.thresholds.alert_deviation = true;
        let mut alerts = super::super::Alerts::new(config.thresholds, config.alerts);
        alerts.remember(learned.unwrap_or_default());
        Self { alerts, minute: 0, noise: (Noise(7), 0.0), told: Vec::new() }
    }

    /// A minute in which so many processors were in use.
    fn minute(&mut self, cpus: f64) {
        self.minute += 1;
        let shares = CpuShares { user: cpus / 16.0, ..CpuShares::default() };
        let usage = HostUsage { cpu: Some(shares), cpus: vec![(0, None); 16], ..HostUsage::default() };
        let snapshot = Snapshot {
            time: BootTime(self.minute * 60_000_000_000),
            number: self.minute,
            tick: Duration::from_secs(60),
            host_usage: Some(Arc::new(usage)),
            ..Snapshot::default()
        };
        let (_, news) = self.alerts.take(&snapshot, &detect::Findings::default(), at(self.minute * 60));
        self.told.extend(news.iter().map(|alert| (self.minute, format!("{} {}", alert.state.name(), alert.summary))));
    }

    /// Busy by day, quiet by night, with noise of a tenth, and so much on top.
    fn days(&mut self, days: f64, more: f64) {
        for _ in 0..(days * 1440.0) as u64 {
            let (noise, last) = &mut self.noise;
            let kept = (-1.0_f64 / 30.0).exp();
            *last = *last * kept + noise.normal() * (1.0 - kept * kept).sqrt();
            let (last, phase) = (*last, (self.minute % 1440) as f64 / 1440.0 * std::f64::consts::TAU);
            let usual = 5.0 - 3.0 * phase.cos();
            self.minute((usual * (1.0 + 0.1 * last) + more).max(0.0));
        }
    }
}

#[test]
fn days_like_any_other_are_told_of_by_nobody() {
    let mut machine = Machine::new(None);
    machine.days(28.0, 0.0);
    assert_eq!(machine.told, []);
}

#[test]
fn the_level_of_noon_is_told_of_at_night_and_not_at_noon() {
    let mut machine = Machine::new(None);
    machine.days(7.0, 0.0);
    // Two in the morning: 2.4 processors are usual. Six more make what is usual at noon.
    machine.days(2.0 / 24.0, 0.0);
    machine.days(1.0 / 24.0, 6.0);
    let (first, text) = &machine.told[0];
    let late = first - (7 * 1440 + 120);
    assert!((15..=25).contains(&late), "told after {late} minutes");
    assert!(text.starts_with("firing Unusual: CPUs in use: 8."), "{text}");
    assert!(text.contains("at this time of day usually 2."), "{text}");
    machine.days(9.0 / 24.0, 0.0);
    assert_eq!(machine.told.len(), 2, "{:?}", machine.told);
    assert!(machine.told[1].1.starts_with("resolved"), "{:?}", machine.told[1]);
}

#[test]
fn what_is_far_away_for_a_moment_is_not_told_of() {
    let mut machine = Machine::new(None);
    machine.days(5.0, 0.0);
    for _ in 0..20 {
        machine.days(1.0 / 24.0, 0.0);
        machine.days(5.0 / 1440.0, 8.0);
    }
    assert_eq!(machine.told, []);
}

#[test]
fn what_stays_is_usual_after_a_day_or_two_and_an_outage_is_not() {
    let mut machine = Machine::new(None);
    machine.days(7.0, 0.0);
    machine.days(3.0, 6.0);
    let over = machine.told.iter().find(|(_, text)| text.starts_with("resolved")).map(|(minute, _)| *minute);
    let days = (over.unwrap() - 7 * 1440) as f64 / 1440.0;
    assert!((0.3..=2.0).contains(&days), "usual after {days} days: {:?}", machine.told);

    let mut machine = Machine::new(None);
    machine.days(7.0, 0.0);
    machine.days(0.25, 6.0);
    let before = machine.told.len();
    machine.days(0.75, 0.0);
    machine.days(0.25, 6.0);
    let again = machine.told[before..].iter().any(|(_, text)| text.starts_with("firing"));
    assert!(again, "the second night like the first is told as well: {:?}", machine.told);
}

#[test]
fn nothing_is_told_before_it_was_seen_on_enough_days_and_what_was_learned_is_kept() {
    let mut machine = Machine::new(None);
    machine.days(2.0, 0.0);
    machine.days(0.5, 8.0);
    assert_eq!(machine.told, [], "two days are too few");

    let mut machine = Machine::new(None);
    machine.days(4.0, 0.0);
    let kept = rmp_serde::to_vec(&machine.alerts.learned().unwrap()).unwrap();
    let learned: Learned = rmp_serde::from_slice(&kept).unwrap();
    let mut machine = Machine::new(Some(learned));
    machine.minute = 4 * 1440;
    machine.days(0.1, 6.0);
    assert_eq!(machine.told.len(), 1, "it goes on where it was: {:?}", machine.told);

    let other = Learned { version: VERSION + 1, ..machine.alerts.learned().unwrap() };
    let mut machine = Machine::new(Some(other));
    machine.days(0.1, 6.0);
    assert_eq!(machine.told, [], "what another version wrote is not understood");
}

#[test]
fn who_is_too_many_is_left_out_and_who_has_gone_for_two_weeks_makes_room() {
    let mut usual = Usual::new(3, 6.0, Learned::default());
    let means = [Some(1.0); Metric::ALL.len()];
    for number in 0..MOST + 10 {
        usual.end_minute(&number.to_string(), means, at(60));
    }
    assert_eq!(usual.learned.subjects.len(), MOST);
    usual.end_minute("late", means, at(16 * DAY));
    assert_eq!(usual.learned.subjects.len(), 1);
}
