//! Reading: one file per source, kernel and polled alike. Everything read here goes into a `Sample`, raw.

pub mod address_space;
pub mod block_io;
pub mod cgroup;
mod cgroup_files;
pub mod cgroup_stat;
pub mod container;
pub mod cost;
#[cfg(feature = "cri")]
pub mod cri;
pub mod descriptors;
mod files;
pub mod gpu;
pub mod host;
pub mod lifecycle;
#[cfg(test)]
mod log_lines;
pub mod node;
pub mod page_fault;
mod pressure;
mod probe;
pub mod process;
mod process_files;
mod process_queue;
pub mod process_stat;
mod refresh;
pub mod requests;
pub mod resident;

use crate::{
    coverage::{Coverage, Refusal, State},
    kernel::{
        attach::{Attached, Loader, Outcome},
        plan::{self, Wish},
        support::Facts,
    },
    sample::{Counters, Harvest, Moment},
    source::Source,
};
use address_space::AddressSpace;
use block_io::BlockIo;
use page_fault::PageFault;
use probe::Probe;
use requests::Requests;
use resident::Resident;
use std::{io, task::Poll};

/// All sources that could be attached, and why the others could not.
pub struct Collector {
    /// In the order of [`Source::ALL`], the lifecycle first.
    probes: Vec<Probe>,
    page_fault: Option<PageFault>,
    address_space: Option<AddressSpace>,
    block_io: Option<BlockIo>,
    requests: Option<Requests>,
    resident: Option<Resident>,
    map_bytes: u64,
}

impl Collector {
    /// Attaches every source by the best rung that holds. Must be called inside the runtime that will wait for the rings.
    pub fn attach<'a>(loader: &Loader<'_>, wish: impl Fn(Source) -> Wish<'a>) -> Self {
        let facts = &loader.support().facts;
        let mut this = Self {
            probes: Vec::new(),
            page_fault: None,
            address_space: None,
            block_io: None,
            requests: None,
            resident: None,
            map_bytes: 0,
        };
        for source in Source::ALL {
            let plan = plan::plan(source, facts, &wish(source));
            let Outcome { attached, mut refused } = loader.attach(&plan);
            let probe = match attached {
                Some(attached) => {
                    let rung = attached.rung.name;
                    this.open(attached, facts, &refused).unwrap_or_else(|error| {
                        refused.push(Refusal { rung, reason: format!("{error:#}") });
                        Probe::unavailable(source, refused)
                    })
                }
                None if plan.disabled => Probe::disabled(source),
                None if plan.too_old => Probe::too_old(source, refused),
                None => Probe::unavailable(source, refused),
            };
            this.probes.push(probe);
        }
        this
    }

    /// Opens the maps and the ring of a source that was attached.
    fn open(&mut self, mut attached: Attached, facts: &Facts, refused: &[Refusal]) -> anyhow::Result<Probe> {
        let map_bytes: u64 = attached.object.maps().map(|(_, map)| probe::map_bytes(map)).sum();
        let source = attached.source;
        let (mut page_fault, mut address_space, mut block_io) = (None, None, None);
        let (mut requests, mut resident) = (None, None);
        match source {
            Source::PageFault => page_fault = Some(PageFault::open(&mut attached, facts.possible_cpus)?),
            Source::AddressSpace => address_space = Some(AddressSpace::open(&mut attached)?),
            Source::BlockIo => block_io = Some(BlockIo::open(&mut attached)?),
            Source::Requests => requests = Some(Requests::open(&mut attached)?),
            Source::Resident => resident = Some(Resident::open(&mut attached)?),
            Source::Lifecycle => {}
        }
        let error_bytes = if source == Source::Resident { resident::error_bytes(facts) } else { None };
        let mut probe = Probe::live(attached, refused.to_vec())?;
        probe.error_bytes = error_bytes;
        // Only now, so that nothing is read of a source that is not live.
        self.page_fault = page_fault.or(self.page_fault.take());
        self.address_space = address_space.or(self.address_space.take());
        self.block_io = block_io.or(self.block_io.take());
        self.requests = requests.or(self.requests.take());
        self.resident = resident.or(self.resident.take());
        self.map_bytes += map_bytes;
        Ok(probe)
    }

    /// Empties the rings. Moments come in order of time. That of the lifecycle is the last, so that whoever another one
    /// mentions has its birth told with it.
    pub fn moments(&mut self) -> Vec<Moment> {
        let mut moments = Vec::new();
        for probe in self.probes.iter_mut().rev() {
            probe.drain(&mut moments);
        }
        moments.sort_by_key(|moment| moment.time);
        moments
    }

    /// Reads the counters. A source that cannot be read now says so in the log and is missing from the sample.
    pub fn counters(&mut self) -> Counters {
        fn or_empty<T>(source: Source, read: Option<io::Result<Vec<T>>>) -> Vec<T> {
            match read {
                Some(Ok(read)) => read,
                Some(Err(error)) => {
                    log::warn!("{source}: reading its counters: {error}");
                    Vec::new()
                }
                None => Vec::new(),
            }
        }
        Counters {
            page_faults: or_empty(Source::PageFault, self.page_fault.as_mut().map(PageFault::read)),
            address_spaces: or_empty(Source::AddressSpace, self.address_space.as_mut().map(AddressSpace::read)),
            block_latencies: or_empty(Source::BlockIo, self.block_io.as_mut().map(BlockIo::read_latencies)),
            block_io: self.block_io.as_mut().map(BlockIo::read).unwrap_or_default(),
            requests: self.requests.as_mut().map(Requests::read).unwrap_or_default(),
            resident: or_empty(Source::Resident, self.resident.as_mut().map(Resident::read)),
        }
    }

    /// Lets the kernel forget what has been taken in. On an error it may have forgotten some of it.
    pub fn forget(&mut self, harvest: &mut Harvest) -> io::Result<()> {
        let forgotten = [
            self.page_fault.as_ref().map(|source| source.forget(&harvest.page_faults)),
            self.address_space.as_ref().map(|source| source.forget(&harvest.address_spaces)),
            self.block_io.as_mut().map(|source| source.forget(&mut harvest.block_io, &mut harvest.block_latencies)),
            self.requests.as_mut().map(|source| source.forget(&harvest.requests)),
            self.resident.as_ref().map(|source| source.forget(&harvest.resident)),
        ];
        forgotten.into_iter().flatten().collect()
    }

    /// What is live, and what was lost so far.
    pub fn coverage(&self) -> Coverage {
        Coverage(self.probes.iter().map(Probe::coverage).collect())
    }

    /// What a source has lost so far, of whatever cause; none where it is not live.
    pub fn lost(&self, source: Source) -> Option<u64> {
        let probe = self.probes.iter().find(|probe| probe.source == source && probe.state == State::Live)?;
        Some(probe.coverage().lost_total)
    }

    /// Returns when some ring is filling up.
    pub async fn filling(&self) {
        std::future::poll_fn(|context| {
            let rings = self.probes.iter().filter_map(|probe| probe.ring.as_ref());
            // All are polled, so that all wake this task.
            match rings.filter(|ring| ring.poll_filling(context).is_ready()).count() {
                0 => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })
        .await;
    }

    /// Passes on the kernel programs' own diagnostics.
    pub fn flush_logs(&mut self) {
        self.probes.iter_mut().for_each(Probe::flush_log);
    }

    /// Kernel memory of all maps and rings, in bytes.
    pub fn map_bytes(&self) -> u64 {
        self.map_bytes
    }

    /// All attached programs.
    pub fn programs(&self) -> impl Iterator<Item = &crate::kernel::program::LoadedProgram> {
        self.probes.iter().flat_map(|probe| &probe.programs)
    }
}
