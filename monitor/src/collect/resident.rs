//! Source `resident`: its map, and how far off its numbers may be.

use crate::{
    kernel::{attach::Attached, attach::LoadError, map::HashMap, support::Facts},
    units::PAGE,
};
use monitor_common::{Owner, resident::Pages};
use std::io;

/// Its map.
pub struct Resident {
    pages: HashMap<Owner, Pages>,
}

impl Resident {
    /// Opens the map of an attached source.
    pub fn open(attached: &mut Attached) -> Result<Self, LoadError> {
        Ok(Self { pages: HashMap::shared(attached.take_map("RESIDENT")?) })
    }

    /// Pages of every process in the map.
    pub fn read(&mut self) -> io::Result<Vec<(Owner, Pages)>> {
        self.pages.read()
    }

    /// Deletes processes that have gone.
    pub fn forget(&self, owners: &[Owner]) -> io::Result<()> {
        self.pages.delete(owners)
    }
}

/// How far off the bytes of one process and kind may be: what all CPUs have not yet added to the whole. Before Linux 6.2 threads
/// have it, what came of up to 64 faults each, and nobody says how many there are.
pub fn error_bytes(facts: &Facts) -> Option<u64> {
    // As percpu_counter_batch (lib/percpu_counter.c).
    let cpus = facts.online_cpus as u64;
    facts.rss.is_some_and(|rss| rss.by_cpu).then_some((2 * cpus).max(32) * cpus * PAGE)
}
