//! What this host offers, which rung of each source's ladder holds, and why the better ones do not.

use crate::{
    collect::gpu,
    config::{self, Config, SourceConfig},
    coverage::{Coverage, Loss, SourceCoverage, State},
    gpu::GpuStanding,
    kernel::{
        attach::{Loader, Settings},
        plan::{self, Wish},
        self_check::{self, SelfCheckError},
        support::{self, Facts, Presence, Support},
    },
    privileges,
    source::Source,
};
use anyhow::bail;
use serde::Serialize;
use std::fmt::Write;

/// Facts, and what came of the plan made from them.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What the host offers.
    pub facts: Facts,
    /// What became of each source.
    pub sources: Coverage,
    /// How GPUs stand, where they were looked at: the agent's snapshots tell it anew each time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuStanding>,
}

/// Probes this host and attaches every source for a moment: only a try tells. Nothing is left attached.
pub fn examine(config: &Config) -> anyhow::Result<Report> {
    check(config)?;
    let (support, settings) = (examine_fields(config)?, settings(config));
    let loader = Loader::new(&support, &settings);
    let sources = Source::ALL.map(|source| {
        let plan = plan::plan(source, &support.facts, &wish(config, source));
        let outcome = loader.attach(&plan);
        let (rung, missing) =
            outcome.attached.map_or((None, Vec::new()), |attached| (Some(attached.rung), attached.missing));
        let state = match rung {
            Some(_) => State::Live,
            None if plan.disabled => State::Disabled,
            None => State::Unavailable,
        };
        SourceCoverage {
            source,
            state,
            rung: rung.map(|rung| rung.name),
            missing,
            refused: outcome.refused,
            too_old: plan.too_old,
            cannot_tell: rung.map_or(&[], |rung| rung.cannot_tell),
            caveats: rung.map_or(&[], |rung| rung.caveats),
            error_bytes: None,
            seen_total: 0,
            lost_total: 0,
            lost: Loss::default(),
        }
    });
    Ok(Report { facts: support.facts.clone(), sources: Coverage(sources.to_vec()), gpu: Some(gpu::examine(config)) })
}

/// Probes this host, and has field offsets proven by a program that reads this very process with them. An error where
/// the rights for that, and so for everything else, are missing.
pub fn examine_fields(config: &Config) -> anyhow::Result<Support> {
    let mut support = support::probe();
    support.facts.lacking_capabilities = privileges::lacking(config.drop_capabilities);
    let missing = support.facts.missing_capabilities.join(", ");
    if !missing.is_empty() {
        bail!("not enough rights: {missing} missing; run it as root, as with sudo");
    }
    if support.facts.fields_missing.is_some() {
        return Ok(support);
    }
    let settings = settings(config);
    let direct = support.facts.has_typed_helpers();
    match self_check::check(&Loader::new(&support, &settings), direct) {
        Ok(()) => support.facts.entry_registers = Presence::Yes,
        Err(error @ (SelfCheckError::Mismatch { .. } | SelfCheckError::PidNamespace | SelfCheckError::Proc(_))) => {
            support.facts.fields_missing = Some(error.to_string())
        }
        Err(SelfCheckError::Registers) => support.facts.entry_registers = Presence::No,
        // What keeps the check from running will be told again, by the sources, if it matters to them.
        Err(error) => log::warn!("field offsets could not be checked: {error}"),
    }
    Ok(support)
}

/// What the configuration wants of a source.
pub fn wish(config: &Config, source: Source) -> Wish<'_> {
    let source = config.source(source);
    Wish { disabled: !source.enabled, rung: source.rung.as_deref() }
}

/// Refuses a configuration that asks for a rung no source has.
pub fn check(config: &Config) -> Result<(), config::Error> {
    for source in Source::ALL {
        let Some(wanted) = &config.source(source).rung else { continue };
        let names: Vec<_> = plan::ladder(source).iter().map(|rung| rung.name).collect();
        if !names.contains(&wanted.as_str()) {
            let known = names.join(", ");
            return Err(config::Error::Conflict(format!("{source}.rung = {wanted:?} is refused: it takes {known}")));
        }
    }
    Ok(())
}

/// What the configuration tells the kernel programs.
pub fn settings(config: &Config) -> Settings {
    let of_sources = |setting: fn(&SourceConfig) -> Option<u32>| {
        Source::ALL.into_iter().filter_map(|source| Some((source, setting(config.source(source))?))).collect()
    };
    Settings {
        large_call_bytes: config.large_call_bytes,
        slow_io_ns: u64::try_from(config.slow_io.as_nanos()).unwrap_or(u64::MAX),
        log_level: config.kernel_log as u8,
        rings: of_sources(|source| source.ring_bytes),
        owners: of_sources(|source| source.owners),
    }
}

impl Report {
    /// Whether no source could be attached although some were wanted.
    pub fn serves_nothing(&self) -> bool {
        let mut wanted = self.sources.0.iter().filter(|source| source.state != State::Disabled).peekable();
        wanted.peek().is_some() && wanted.all(|source| source.state == State::Unavailable)
    }

    /// The report as a table for people, not wider than `width` where words allow.
    pub fn render(&self, width: usize) -> String {
        let facts = &self.facts;
        let mut text = String::new();
        let mut row = |left: &str, middle: &str, right: &str| {
            let indent = 37;
            let mut line = format!("{left:<16} {middle:<20}");
            for word in right.split(' ') {
                if line.chars().count() + 1 + word.chars().count() > width.max(60) && line.len() > indent {
                    let _ = writeln!(text, "{}", line.trim_end());
                    line = " ".repeat(indent);
                }
                line.push(' ');
                line.push_str(word);
            }
            let _ = writeln!(text, "{}", line.trim_end());
        };
        row("FACT", "", "");
        row("kernel", &facts.kernel_release, facts.architecture);
        row(
            "types (BTF)",
            answer(facts.btf),
            facts.fields_missing.as_deref().unwrap_or("field offsets found and checked"),
        );
        let tracefs = facts.tracefs.as_ref();
        row("tracefs", if tracefs.is_ok() { "yes" } else { "no" }, tracefs.err().map_or("", String::as_str));
        let pressure = facts.pressure.as_ref();
        row("pressure (PSI)", if pressure.is_ok() { "yes" } else { "no" }, pressure.err().map_or("", String::as_str));
        let mount = facts.cgroup.mount().map(|mount| mount.display().to_string());
        row("cgroups charged", facts.cgroup.name(), mount.as_deref().unwrap_or("not mounted: cgroups have no names"));
        row("possible CPUs", &facts.possible_cpus.to_string(), "");
        let missing = facts.missing_capabilities.join(", ");
        row("capabilities", if missing.is_empty() { "enough" } else { "missing" }, &missing);
        for lacking in &facts.lacking_capabilities {
            row("", "without", &format!("{}: {}", lacking.capability, lacking.effect));
        }
        if let Some(GpuStanding { state, reason, .. }) = &self.gpu {
            row("GPUs", name_of(*state), reason.as_deref().unwrap_or_default());
        }
        row("", "", "");
        row("SOURCE", "RUNG", "REFUSED");
        for source in &self.sources.0 {
            let standing = match (source.state, source.rung) {
                (State::Live, Some(rung)) => rung,
                (State::Disabled, _) => "disabled",
                _ => "unavailable",
            };
            let refused = source.refused.iter().map(|r| format!("{}: {}", r.rung, r.reason));
            let missing = source.missing.iter().map(|m| format!("without {}: {}", m.program, m.reason));
            let caveats = source.caveats.iter().map(|caveat| format!("note: {caveat}"));
            row(source.source.name(), standing, &refused.chain(missing).chain(caveats).collect::<Vec<_>>().join("; "));
        }
        text
    }
}

const fn name_of(state: State) -> &'static str {
    match state {
        State::Live => "live",
        State::Unavailable => "unavailable",
        State::Disabled => "disabled",
    }
}

fn answer(presence: Presence) -> &'static str {
    match presence {
        Presence::Yes => "yes",
        Presence::No => "no",
        Presence::CouldNotTell => "could not tell",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::Refusal;

    fn report(states: &[State]) -> Report {
        let sources = states.iter().map(|&state| SourceCoverage {
            source: Source::BlockIo,
            state,
            rung: (state == State::Live).then_some("tp_btf"),
            missing: Vec::new(),
            too_old: false,
            refused: vec![Refusal { rung: "fexit", reason: "a long story ".repeat(12) }],
            cannot_tell: &[],
            caveats: &["it is only a test"],
            error_bytes: None,
            seen_total: 0,
            lost_total: 0,
            lost: Loss::default(),
        });
        Report { facts: Facts::default(), sources: Coverage(sources.collect()), gpu: None }
    }

    #[test]
    fn a_kernel_serves_nothing_when_no_wanted_source_can_be_attached() {
        assert!(report(&[State::Unavailable, State::Disabled]).serves_nothing());
        assert!(!report(&[State::Unavailable, State::Live]).serves_nothing());
        assert!(!report(&[State::Disabled]).serves_nothing());
    }

    #[test]
    fn the_table_tells_why_and_keeps_to_the_width() {
        let text = report(&[State::Live, State::Unavailable]).render(80);
        assert!(text.contains("block_io         tp_btf               fexit: a long story"), "{text}");
        assert!(text.contains("unavailable") && text.contains("note: it is only a test"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}
