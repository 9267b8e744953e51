//! Source `requests`: its map. What is known of each socket stays in the kernel, with the socket.

use crate::kernel::{attach::Attached, attach::LoadError, map::HashMap};
use monitor_common::{Owner, requests::Totals};
use std::io;

/// Its map.
pub struct Requests {
    totals: HashMap<Owner, Totals>,
}

impl Requests {
    /// Opens the map of an attached source.
    pub fn open(attached: &mut Attached) -> Result<Self, LoadError> {
        let totals = HashMap::shared(attached.take_map("REQUESTS")?);
        totals.insert_zero(&Owner::UNATTRIBUTED)?;
        Ok(Self { totals })
    }

    /// Totals of every owner in the map.
    pub fn read(&mut self) -> io::Result<Vec<(Owner, Totals)>> {
        self.totals.read()
    }

    /// Deletes harvested owners.
    pub fn forget(&self, owners: &[Owner]) -> io::Result<()> {
        self.totals.delete(owners)
    }
}
