//! Who advises: keeps histories, asks a policy about each, and remembers what was said, so that nobody is told to change twice in
//! half an hour.

use super::{
    Current, Sizes,
    guardrails::{Guardrails, Recommendation},
    histories::{Histories, Page},
    observed::Observed,
    past::Past,
    policy::{Policy, Settings},
    proposal::{Proposals, Wish, Wishes, is_worth_it},
};
use crate::{
    config,
    detect::{self, Findings, Subject},
    model::snapshot::Snapshot,
    pattern,
    time::BootTime,
    units::parse_bytes,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::SystemTime,
};

/// The window that is there to be responsive, in seconds.
const SHORT_SECONDS: f64 = 900.0;
/// What changed is told every so many intervals.
const TOLD_EVERY: u32 = 5;

/// What one container, service or process tree should get.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Advice {
    /// As tables call it.
    pub subject: Arc<str>,
    /// What it has; none where neither is known.
    pub current: Option<Current>,
    /// What it used.
    pub observed: Observed,
    /// By the policy's formulas alone.
    pub raw: Sizes,
    /// Rounded up and clamped.
    pub recommended: Sizes,
    /// What counts, and by whose wish.
    pub effective: Effective,
    /// Whether a change is worth it.
    pub proposed: bool,
    /// Why, in one line.
    pub rationale: String,
}

/// What counts of all wishes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effective {
    /// The request.
    pub request: Wished,
    /// The limit.
    pub limit: Wished,
}

/// A size, and whose wish it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wished {
    /// How much.
    pub bytes: u64,
    /// Who wishes it.
    pub source: Wish,
}

/// What everybody should get, by one policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recommendations {
    /// As of this moment.
    pub time_ns: BootTime,
    /// Which.
    pub policy: Policy,
    /// In order of name.
    pub recommendations: Vec<Advice>,
    /// Intervals of subjects that found no room.
    pub left_out: usize,
}

/// Sizes that people wish, by patterns for names of subjects.
#[derive(Clone, Debug, Default, PartialEq)]
struct Named(Vec<(String, Sizes)>);

/// What is settled about advice.
#[derive(Clone, Debug)]
pub struct Terms {
    enabled: bool,
    policy: Policy,
    short_seconds: f64,
    long_seconds: f64,
    guardrails: Guardrails,
    overrides: Named,
    enforced: Named,
    template: Option<Sizes>,
}

/// Who advises. Shared by the loop, which tells it what happens, and those who ask it.
#[derive(Debug)]
pub struct Advisor {
    terms: Terms,
    histories: Mutex<Histories>,
    said: Mutex<Said>,
    /// Intervals since changes were told.
    untold: AtomicU32,
}

/// What was said last of whom.
#[derive(Debug, Default)]
struct Said {
    proposals: Proposals,
    last: HashMap<Arc<str>, (Sizes, Sizes, String)>,
}

/// Whether all settings of advice make sense.
///
/// # Errors
/// One does not.
pub fn check(config: &config::Advice) -> Result<(), config::Error> {
    Terms::of(config).map(drop)
}

/// Reads sizes as people write them: REQUEST:LIMIT, such as 256Mi:512Mi.
pub fn parse_sizes(text: &str) -> Option<Sizes> {
    let (request, limit) = text.split_once(':')?;
    let sizes = Sizes { request_bytes: parse_bytes(request).ok()?, limit_bytes: parse_bytes(limit).ok()? };
    (sizes.request_bytes <= sizes.limit_bytes).then_some(sizes)
}

/// Reads whose sizes they are: SUBJECT=REQUEST:LIMIT.
pub fn parse_named(text: &str) -> Option<(String, Sizes)> {
    let (name, sizes) = text.rsplit_once('=')?;
    (!name.is_empty()).then_some(())?;
    Some((name.to_owned(), parse_sizes(sizes)?))
}

impl Named {
    fn of(key: &str, texts: &[String]) -> Result<Self, config::Error> {
        let one = |text: &String| {
            parse_named(text).ok_or_else(|| {
                config::Error::Conflict(format!(
                    "{key}: {text:?} is refused: it takes SUBJECT=REQUEST:LIMIT, such as shop/*=256Mi:512Mi, the limit not below the \
                     request"
                ))
            })
        };
        texts.iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    /// The first that fits.
    fn find(&self, subject: &str) -> Option<Sizes> {
        // People know a container by its name alone.
        let short = subject.split_once(' ').map_or(subject, |(_, name)| name);
        let fits = |(name, _): &&(String, Sizes)| pattern::fits(subject, name) || pattern::fits(short, name);
        self.0.iter().find(fits).map(|(_, sizes)| *sizes)
    }
}

impl Terms {
    /// By the configuration.
    ///
    /// # Errors
    /// A setting makes no sense.
    pub fn of(config: &config::Advice) -> Result<Self, config::Error> {
        let policy = Policy::named(&config.policy).ok_or_else(|| {
            let known = Policy::ALL.map(Policy::name).join(", ");
            config::Error::Conflict(format!("advice.policy = {:?} is refused: it takes {known}", config.policy))
        })?;
        let range = |least: (&str, u64), most: (&str, u64)| {
            let (low, high) = (least.1, most.1);
            if low > high {
                return Err(config::Error::Conflict(format!(
                    "{} is above {}: raise the one or lower the other",
                    least.0, most.0
                )));
            }
            Ok(low..=high)
        };
        let template = config.template.as_deref().map(|text| {
            parse_sizes(text).ok_or_else(|| {
                config::Error::Conflict(format!(
                    "advice.template = {text:?} is refused: it takes REQUEST:LIMIT, such as 128Mi:256Mi, the limit not below the request"
                ))
            })
        });
        Ok(Self {
            enabled: config.enabled,
            policy,
            short_seconds: SHORT_SECONDS,
            long_seconds: config.window.as_secs_f64(),
            guardrails: Guardrails {
                request: range(("advice.request_min", config.request_min), ("advice.request_max", config.request_max))?,
                limit: range(("advice.limit_min", config.limit_min), ("advice.limit_max", config.limit_max))?,
            },
            overrides: Named::of("advice.overrides", &config.overrides)?,
            enforced: Named::of("advice.enforced", &config.enforced)?,
            template: template.transpose()?,
        })
    }

    /// The same, where all of a past is the one window that there is.
    pub fn of_whole_pasts(self) -> Self {
        Self { short_seconds: f64::INFINITY, long_seconds: f64::INFINITY, ..self }
    }

    /// The policy that it goes by unasked.
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// What a policy goes by for a subject that has these sizes, where it has any.
    pub fn settings(&self, subject: &str, current: Option<Current>) -> Settings {
        let current = current.and_then(|current| {
            Some(Sizes { request_bytes: current.request_bytes?, limit_bytes: current.limit_bytes? })
        });
        Settings {
            guardrails: self.guardrails.clone(),
            short_seconds: self.short_seconds,
            long_seconds: self.long_seconds,
            current: current.or_else(|| self.enforced.find(subject)),
            template: self.template.or(current),
        }
    }

    /// What a subject with that past should get; nothing where nothing is known of it. `said` is what it was told to get before: what
    /// policies go by where it is not known what it has.
    pub fn advice(
        &self,
        policy: Policy,
        subject: &Arc<str>,
        past: &Past<'_>,
        current: Option<Current>,
        said: Option<Sizes>,
    ) -> Option<Advice> {
        let settings = self.settings(subject, current);
        let settings = Settings { current: settings.current.or(said), ..settings };
        let Recommendation { raw, recommended, rationale } = policy.recommend(past, &settings)?;
        let observed = Observed::of_past(past, self.long_seconds)?;
        Some(self.told(subject, observed, (raw, recommended, rationale), current))
    }

    fn told(
        &self,
        subject: &Arc<str>,
        observed: Observed,
        (raw, recommended, rationale): (Sizes, Sizes, String),
        current: Option<Current>,
    ) -> Advice {
        let effective = self.effective(subject, recommended);
        let subject = Arc::clone(subject);
        let proposed = effective.is_proposed(current.unwrap_or_default(), recommended);
        Advice { subject, current, observed, raw, recommended, effective, proposed, rationale }
    }

    /// What counts: a person's wish, what was enforced, what is recommended, and what it was made with, in this order.
    fn effective(&self, subject: &str, recommended: Sizes) -> Effective {
        let (overridden, enforced) = (self.overrides.find(subject), self.enforced.find(subject));
        let of = |pick: fn(&Sizes) -> u64| {
            let wishes = Wishes {
                overridden: overridden.as_ref().map(pick),
                enforced: enforced.as_ref().map(pick),
                recommended: Some(pick(&recommended)),
                template: self.template.as_ref().map(pick),
            };
            let (bytes, source) = wishes.effective().unwrap_or((pick(&recommended), Wish::Recommended));
            Wished { bytes, source }
        };
        Effective { request: of(|sizes| sizes.request_bytes), limit: of(|sizes| sizes.limit_bytes) }
    }
}

impl Advisor {
    /// Nothing known yet.
    ///
    /// # Errors
    /// A setting makes no sense.
    pub fn new(config: &config::Advice) -> Result<Self, config::Error> {
        let histories = Mutex::new(Histories::new(config.interval, config.window));
        Ok(Self { terms: Terms::of(config)?, histories, said: Mutex::default(), untold: AtomicU32::new(0) })
    }

    /// The policy that it goes by unasked.
    pub const fn policy(&self) -> Policy {
        self.terms.policy
    }

    /// Takes in a page that was written down, with the names of the one before.
    pub fn remember(&self, page: &Page, names: &[Arc<str>]) {
        lock(&self.histories).put(page, names);
    }

    /// Takes in a snapshot, of that time of the wall clock. The interval that ended with it.
    pub fn take(&self, snapshot: &Snapshot, wall: SystemTime) -> Option<Page> {
        let page = self.terms.enabled.then(|| lock(&self.histories).take(snapshot, wall)).flatten()?;
        self.untold.fetch_add(1, Relaxed);
        Some(page)
    }

    /// Whether it is time to tell what changed; says so once.
    pub fn is_due(&self) -> bool {
        // The first interval is told of at once.
        let is_first = lock(&self.said).last.is_empty();
        let untold = self.untold.load(Relaxed);
        let is_due = untold >= TOLD_EVERY || is_first && untold > 0;
        if is_due {
            self.untold.store(0, Relaxed);
        }
        is_due
    }

    /// What everybody should get, by the policy that is asked for. By its own, what was said less than half an hour ago stands.
    pub fn advise(&self, policy: Policy, snapshot: &Snapshot, findings: &Findings) -> Recommendations {
        self.work(policy, snapshot, findings, None)
    }

    /// What changed, by its own policy: that stands for half an hour from now.
    pub fn changes(&self, snapshot: &Snapshot, findings: &Findings) -> Vec<Advice> {
        let mut changes = Vec::new();
        self.work(self.terms.policy, snapshot, findings, Some(&mut changes));
        changes
    }

    fn work(
        &self,
        policy: Policy,
        snapshot: &Snapshot,
        findings: &Findings,
        mut changes: Option<&mut Vec<Advice>>,
    ) -> Recommendations {
        let (names, left_out) = {
            let histories = lock(&self.histories);
            (histories.names().cloned().collect::<Vec<_>>(), histories.left_out())
        };
        let (limits, leaks) = (limits(snapshot), leaks(findings));
        let now = snapshot.time;
        let mut recommendations = Vec::new();
        for name in names {
            // Held for one subject at a time: the loop must not wait.
            let (intervals, kills) = lock(&self.histories).past(&name);
            let leak = leaks.get(&*name).map(String::as_str);
            let past = Past { intervals: &intervals, kills: &kills, leak };
            let limit_bytes = limits.get(&*name).copied();
            let current = limit_bytes.map(|limit| Current { request_bytes: None, limit_bytes: Some(limit) });
            let is_own = policy == self.terms.policy;
            let before = lock(&self.said).last.get(&name).filter(|_| is_own).map(|(_, recommended, _)| *recommended);
            let Some(mut advice) = self.terms.advice(policy, &name, &past, current, before) else { continue };
            let mut is_new = false;
            if is_own {
                let mut said = lock(&self.said);
                is_new = changes.is_some() && said.proposals.propose(&name, before, advice.recommended, now);
                if is_new {
                    let new = (advice.raw, advice.recommended, advice.rationale.clone());
                    said.last.insert(Arc::clone(&name), new);
                } else if let Some(last) = said.last.get(&name) {
                    advice = self.terms.told(&name, advice.observed, last.clone(), current);
                }
            }
            if let Some(changes) = changes.as_mut().filter(|_| is_new) {
                changes.push(advice.clone());
            }
            recommendations.push(advice);
        }
        if changes.is_some() {
            let mut said = lock(&self.said);
            said.proposals.forget(now);
            said.last.retain(|name, _| recommendations.iter().any(|advice| advice.subject == *name));
        }
        Recommendations { time_ns: now, policy, recommendations, left_out }
    }
}

impl Advice {
    /// Somebody knows better what it has.
    pub fn set_current(&mut self, current: Current) {
        self.proposed = self.effective.is_proposed(current, self.recommended);
        self.current = Some(current);
    }
}

impl Effective {
    /// Whether a change is worth it, and nobody's wish goes before it.
    fn is_proposed(&self, current: Current, recommended: Sizes) -> bool {
        [self.request, self.limit].iter().all(|wished| wished.source == Wish::Recommended)
            && current.is_worth_changing(recommended)
    }
}

impl Current {
    /// Whether going from what is known of it to these is worth a change.
    pub fn is_worth_changing(&self, to: Sizes) -> bool {
        let Self { request_bytes, limit_bytes } = *self;
        if request_bytes.or(limit_bytes).is_none() {
            return true;
        }
        // What is not known does not speak for a change.
        let from = Sizes {
            request_bytes: request_bytes.unwrap_or(to.request_bytes),
            limit_bytes: limit_bytes.unwrap_or(to.limit_bytes),
        };
        is_worth_it(Some(from), to)
    }
}

/// Limits that containers and services have of their own, by name.
fn limits(snapshot: &Snapshot) -> HashMap<String, u64> {
    let own = |cgroup: &crate::model::snapshot::Cgroup| cgroup.usage.as_ref()?.reading.memory.as_ref()?.limit_bytes;
    let limits = detect::subject_cgroups(snapshot)
        .filter_map(|cgroup| Some((detect::cgroup_subject(cgroup).label(), own(cgroup)?)));
    limits.collect()
}

/// What the detector says of who leaks, by name.
fn leaks(findings: &Findings) -> HashMap<String, String> {
    let leaks = findings.findings.iter().filter(|finding| finding.detector == "leak");
    leaks.map(|finding| (Subject::label(&finding.subject), finding.summary.clone())).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{super::MEBIBYTE, *};
    use crate::serve::fixtures;
    use std::time::Duration;

    const TREE: &str = "tree ";

    /// An advisor that has seen the fixture's first tree for so many minutes, at so many mebibytes.
    fn advisor(change: impl Fn(&mut config::Advice)) -> Advisor {
        let mut config = config::Config::default().advice;
        change(&mut config);
        Advisor::new(&config).unwrap()
    }

    /// A minute passes, in which the tree has so many mebibytes.
    fn minute(advisor: &Advisor, number: u64, mebibytes: u64) -> Snapshot {
        let tick = Duration::from_secs(60);
        let snapshot = Snapshot { tick, ..fixtures::grown(60 * number, mebibytes) };
        advisor.take(&snapshot, SystemTime::UNIX_EPOCH + Duration::from_secs(60 * number));
        snapshot
    }

    fn sizes(request: u64, limit: u64) -> Sizes {
        Sizes { request_bytes: request * MEBIBYTE, limit_bytes: limit * MEBIBYTE }
    }

    fn of(all: &Recommendations) -> &Advice {
        assert_eq!(all.recommendations.len(), 1, "{all:?}");
        &all.recommendations[0]
    }

    #[test]
    fn what_was_said_stands_for_half_an_hour_and_changes_are_told() {
        let advisor = advisor(|_| ());
        let nobody = Findings::default();
        let mut told = Vec::new();
        for number in 0..90 {
            let snapshot = minute(&advisor, number, if number < 20 { 100 } else { 400 });
            if advisor.is_due() {
                told.extend(advisor.changes(&snapshot, &nobody).into_iter().map(|new| (number, new.recommended)));
            }
            let says = advisor.advise(Policy::Rules, &snapshot, &nobody);
            if let Some((_, last)) = told.last() {
                assert_eq!(of(&says).recommended, *last, "minute {number}");
            }
        }
        // The first minute that has ended; then as the mean grows, and each for half an hour at least.
        let minutes: Vec<_> = told.iter().map(|(number, _)| *number).collect();
        assert!(minutes.len() == 3 && minutes[0] == 1, "{told:?}");
        assert!(minutes.windows(2).all(|pair| (30..36).contains(&(pair[1] - pair[0]))), "{told:?}");
        assert_eq!(told[0].1, sizes(160, 240));
        assert!(told[2].1.request_bytes > told[1].1.request_bytes, "{told:?}");
    }

    #[test]
    fn another_policy_is_asked_without_being_followed() {
        let advisor = advisor(|_| ());
        let snapshot = (0..40).map(|number| minute(&advisor, number, 100)).last().unwrap();
        let krr = advisor.advise(Policy::Krr, &snapshot, &Findings::default());
        assert_eq!((krr.policy, of(&krr).recommended), (Policy::Krr, sizes(128, 128)));
        assert!(of(&krr).proposed, "nothing is known of what it has");
    }

    #[test]
    fn by_peaks_one_that_leaks_gets_no_more_than_it_was_told_before() {
        let advisor = advisor(|config| config.policy = "peaks".to_owned());
        let nobody = Findings::default();
        let snapshot = (0..20).map(|number| minute(&advisor, number, 100)).last().unwrap();
        let first = advisor.changes(&snapshot, &nobody)[0].recommended;
        let name = advisor.advise(Policy::Peaks, &snapshot, &nobody).recommendations[0].subject.clone();
        let leaks = fixtures::findings();
        let known =
            leaks.findings.iter().any(|finding| finding.detector == "leak" && *finding.subject.label() == *name);
        assert!(known, "the fixture's tree leaks");
        let grown = (20..90).map(|number| minute(&advisor, number, 80 + number)).last().unwrap();
        let kept = advisor.changes(&grown, &leaks);
        assert_eq!(kept, [], "it is told to leak, and gets no more");
        let told = advisor.advise(Policy::Peaks, &grown, &leaks);
        assert_eq!(of(&told).recommended, first);
        assert!(advisor.changes(&grown, &nobody)[0].recommended.limit_bytes > first.limit_bytes, "else it would");
    }

    #[test]
    fn a_wish_goes_before_advice_and_what_is_enforced_too() {
        let wishes = |overrides: &[&str], enforced: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            let advisor = advisor(|config| {
                (config.overrides, config.enforced) = (texts(overrides), texts(enforced));
                config.template = Some("1Gi:2Gi".to_owned());
            });
            let snapshot = (0..3).map(|number| minute(&advisor, number, 100)).last().unwrap();
            let all = advisor.advise(Policy::Rules, &snapshot, &Findings::default());
            let Advice { effective, proposed, recommended, .. } = of(&all).clone();
            assert_eq!(recommended, sizes(160, 240), "advice is told whatever goes before it");
            (effective.request.bytes / MEBIBYTE, effective.limit.source, proposed)
        };
        let name = format!("{TREE}*");
        let (own, other) = (format!("{name}=96Mi:1Gi"), format!("{name}=256Mi:512Mi"));
        assert_eq!(wishes(&[&own], &[&other]), (96, Wish::Override, false));
        assert_eq!(wishes(&["somebody=96Mi:1Gi"], &[&other]), (256, Wish::Enforced, false));
        assert_eq!(wishes(&[], &[]), (160, Wish::Recommended, true));
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_with_what_they_take() {
        let refused = |change: fn(&mut config::Advice)| {
            let mut config = config::Config::default().advice;
            change(&mut config);
            check(&config).unwrap_err().to_string()
        };
        let unknown = refused(|config| config.policy = "best".to_owned());
        assert_eq!(unknown, "advice.policy = \"best\" is refused: it takes rules, vpa, krr, peaks");
        let named = refused(|config| config.overrides = vec!["web=512Mi:256Mi".to_owned()]);
        assert!(named.starts_with("advice.overrides: \"web=512Mi:256Mi\" is refused: it takes SUBJECT="), "{named}");
        let template = refused(|config| config.template = Some("much".to_owned()));
        assert!(template.starts_with("advice.template = \"much\" is refused"), "{template}");
        let range = refused(|config| config.request_min = 8 << 30);
        assert!(range.starts_with("advice.request_min is above advice.request_max"), "{range}");
    }

    #[test]
    fn a_change_is_worth_it_by_what_is_known() {
        let of = |request, limit| Current { request_bytes: request, limit_bytes: limit };
        let to = sizes(160, 240);
        assert!(of(None, None).is_worth_changing(to));
        assert!(!of(None, Some(256 * MEBIBYTE)).is_worth_changing(to));
        assert!(of(None, Some(512 * MEBIBYTE)).is_worth_changing(to));
        assert!(of(Some(64 * MEBIBYTE), Some(240 * MEBIBYTE)).is_worth_changing(to));
    }
}
