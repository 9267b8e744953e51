//! What all kernel sources have: programs, a ring, health, diagnostics, and their standing.

use crate::{
    coverage::{Loss, MissingProgram, Refusal, SourceCoverage, State},
    decode,
    kernel::{attach::Attached, map, plan::Rung, program::LoadedProgram, ring::Ring, self_check::Plain},
    sample::Moment,
    source::Source,
};
use aya::maps::{Map, MapData, PerCpuArray};
use aya_log::EbpfLogger;
use bytes::Bytes;
use monitor_common::Health;
use std::{os::fd::AsFd, panic::AssertUnwindSafe};

/// One source, attached or not.
pub(super) struct Probe {
    pub(super) source: Source,
    pub(super) state: State,
    pub(super) refused: Vec<Refusal>,
    too_old: bool,
    pub(super) error_bytes: Option<u64>,
    missing: Vec<MissingProgram>,
    pub(super) programs: Vec<LoadedProgram>,
    pub(super) ring: Option<Ring>,
    rung: Option<&'static Rung>,
    health: Option<PerCpuArray<MapData, Plain<Health>>>,
    log: Option<EbpfLogger<&'static dyn log::Log>>,
    records: Records,
    /// Keeps programs and links alive.
    _attached: Option<Attached>,
}

impl Probe {
    pub(super) fn live(mut attached: Attached, refused: Vec<Refusal>) -> anyhow::Result<Self> {
        let source = attached.source;
        let health = PerCpuArray::try_from(Map::PerCpuArray(attached.take_map("HEALTH")?))?;
        let ring = match attached.take_map("MOMENTS") {
            Ok(ring) => Some(Ring::new(ring)?),
            Err(_) => None,
        };
        Ok(Self {
            state: State::Live,
            rung: Some(attached.rung),
            programs: std::mem::take(&mut attached.programs),
            missing: std::mem::take(&mut attached.missing),
            ring,
            health: Some(health),
            // An object without a single diagnostic has no ring for them.
            log: EbpfLogger::init(&mut attached.object).ok(),
            _attached: Some(attached),
            ..Self::unavailable(source, refused)
        })
    }

    pub(super) fn disabled(source: Source) -> Self {
        Self { state: State::Disabled, ..Self::unavailable(source, Vec::new()) }
    }

    /// The kernel is older than any that has the source.
    pub(super) fn too_old(source: Source, refused: Vec<Refusal>) -> Self {
        Self { too_old: true, ..Self::unavailable(source, refused) }
    }

    pub(super) fn unavailable(source: Source, refused: Vec<Refusal>) -> Self {
        Self {
            source,
            state: State::Unavailable,
            refused,
            too_old: false,
            error_bytes: None,
            missing: Vec::new(),
            programs: Vec::new(),
            ring: None,
            rung: None,
            health: None,
            log: None,
            records: Records::default(),
            _attached: None,
        }
    }

    /// Empties the ring.
    pub(super) fn drain(&mut self, moments: &mut Vec<Moment>) {
        let Some(ring) = &mut self.ring else { return };
        ring.drain(|record| moments.extend(self.records.decode(self.source, &record)));
    }

    /// Passes on diagnostics. aya-log panics on records it does not understand; that must not end the agent.
    pub(super) fn flush_log(&mut self) {
        if let Some(log) = &mut self.log
            && std::panic::catch_unwind(AssertUnwindSafe(|| log.flush())).is_err()
        {
            log::warn!("{}: a diagnostic of its programs could not be read; no more of them are shown", self.source);
            self.log = None;
        }
    }

    pub(super) fn coverage(&self) -> SourceCoverage {
        let lost = self.lost();
        SourceCoverage {
            source: self.source,
            state: self.state,
            rung: self.rung.map(|rung| rung.name),
            refused: self.refused.clone(),
            too_old: self.too_old,
            missing: self.missing.clone(),
            cannot_tell: self.rung.map_or(&[], |rung| rung.cannot_tell),
            caveats: self.rung.map_or(&[], |rung| rung.caveats),
            error_bytes: self.error_bytes,
            seen_total: self.records.seen,
            lost_total: lost.total(),
            lost,
        }
    }

    /// What each CPU lost.
    fn health(&self) -> impl Iterator<Item = Health> {
        let cpus = self.health.as_ref().and_then(|health| health.get(&0, 0).ok());
        cpus.into_iter().flat_map(|cpus| cpus.iter().map(|Plain(health)| *health).collect::<Vec<_>>())
    }

    fn lost(&self) -> Loss {
        let statistics = self.programs.iter().filter_map(|program| program.statistics().ok());
        lost(self.health(), statistics.map(|statistics| statistics.skipped_runs), &self.records)
    }
}

/// Records of a source's ring.
#[derive(Default)]
struct Records {
    seen: u64,
    undecodable: u64,
}

impl Records {
    fn decode(&mut self, source: Source, record: &Bytes) -> Option<Moment> {
        let moment = decode::moment(source, record);
        *(if moment.is_some() { &mut self.seen } else { &mut self.undecodable }) += 1;
        moment
    }
}

/// All that a source lost: what its programs say of each CPU, the runs of each that the kernel skipped, and what could not be read.
fn lost(cpus: impl Iterator<Item = Health>, skipped_runs: impl Iterator<Item = u64>, records: &Records) -> Loss {
    let mut lost = Loss { undecodable: records.undecodable, ..Loss::default() };
    for health in cpus {
        lost.ring_full += health.ring_full;
        lost.map_full += health.map_full;
        lost.unmatched += health.unmatched;
        lost.skipped_runs += health.nested;
    }
    lost.skipped_runs += skipped_runs.sum::<u64>();
    lost
}

/// Kernel memory of a map, in bytes; 0 where the kernel does not say.
pub(super) fn map_bytes(map: &Map) -> u64 {
    map::data_of(map).map_or(0, |data| map::memory_bytes(data.fd().as_fd()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use monitor_common::{
        Header,
        lifecycle::{Exit, kind},
    };
    use zerocopy::IntoBytes;

    #[test]
    fn what_cannot_be_decoded_is_counted_apart_from_what_was_seen() {
        let exit = Exit { header: Header { time_ns: 7, kind: kind::EXIT, reserved: 0 }, ..Exit::default() };
        let whole = Bytes::copy_from_slice(exit.as_bytes());
        let mut records = Records::default();
        assert!(records.decode(Source::Lifecycle, &whole).is_some());
        assert!(records.decode(Source::Lifecycle, &whole.slice(1..)).is_none());
        assert!(records.decode(Source::BlockIo, &whole).is_none());
        assert_eq!((records.seen, records.undecodable), (1, 2));
    }

    #[test]
    fn every_cause_of_loss_is_counted_over_all_processors_and_programs() {
        let cpus = [
            Health { ring_full: 1, map_full: 10, unmatched: 100, nested: 1000 },
            Health { ring_full: 2, map_full: 20, unmatched: 200, nested: 2000 },
        ];
        let lost = lost(cpus.into_iter(), [30_000, 40_000].into_iter(), &Records { seen: 5, undecodable: 7 });
        let expected = Loss { ring_full: 3, map_full: 30, unmatched: 300, skipped_runs: 73_000, undecodable: 7 };
        assert_eq!(lost, expected);
        assert_eq!(lost.total(), 73_340);
    }
}
