//! Source `block_io`: its maps, and names of devices.

use crate::{
    ids::DeviceId,
    kernel::{attach::Attached, attach::LoadError, map::HashMap},
};
use monitor_common::{
    Owner,
    block_io::{Bucket, Key, Request, Totals, operation},
};
use std::{fs, io};

/// Its maps.
pub struct BlockIo {
    totals: HashMap<Key, Totals>,
    latencies: HashMap<Bucket, u64>,
    requests: HashMap<u64, Request>,
    /// How often its maps had been full when room was last made.
    full: u64,
}

impl BlockIo {
    /// Opens the maps of an attached source.
    pub fn open(attached: &mut Attached) -> Result<Self, LoadError> {
        let totals = HashMap::shared(attached.take_map("TOTALS")?);
        for operation in operation::READ..=operation::OTHER {
            totals.insert_zero(&Key { owner: Owner::UNATTRIBUTED, device: 0, operation, reserved: 0 })?;
        }
        Ok(Self {
            totals,
            latencies: HashMap::shared(attached.take_map("LATENCIES")?),
            requests: HashMap::shared(attached.take_map("REQUESTS")?),
            full: 0,
        })
    }

    /// Totals of every key. Read after [`Self::read_latencies`], so that every series there is has its key.
    pub fn read(&mut self) -> io::Result<Vec<(Key, Totals)>> {
        self.totals.read()
    }

    /// Used buckets of all latencies.
    pub fn read_latencies(&mut self) -> io::Result<Vec<(Bucket, u64)>> {
        self.latencies.read()
    }

    /// Deletes the entries of requests that are not in flight, if some map has been full since this was last done: drivers
    /// use their requests again, but may have more of them than the map has room for, and devices come and go.
    pub fn make_room(&mut self, full: u64) -> io::Result<()> {
        if full == self.full {
            return Ok(());
        }
        self.full = full;
        let requests = self.requests.read()?;
        let idle = requests.iter().filter(|(_, request)| request.submitted_ns == 0).map(|(key, _)| *key);
        self.requests.delete(&idle.collect::<Vec<_>>())
    }

    /// Deletes harvested keys and their latencies.
    pub fn forget(&self, keys: &[Key], latencies: &[Bucket]) -> io::Result<()> {
        self.totals.delete(keys)?;
        self.latencies.delete(latencies)
    }
}

/// Name of a block device in /sys/block; its number where it has none any more.
pub fn device_name(id: DeviceId) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{id}")).ok();
    let name = link.and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
    name.unwrap_or_else(|| id.to_string())
}
