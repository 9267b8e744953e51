//! Source `block_io`: its maps, and names of devices.

use crate::{
    ids::DeviceId,
    kernel::{attach::Attached, attach::LoadError, map::HashMap},
};
use monitor_common::{
    Owner,
    block_io::{Bucket, Key, Totals, operation},
};
use std::{fs, io};

/// Its maps.
pub struct BlockIo {
    totals: HashMap<Key, Totals>,
    latencies: HashMap<Bucket, u64>,
}

impl BlockIo {
    /// Opens the maps of an attached source.
    pub fn open(attached: &mut Attached) -> Result<Self, LoadError> {
        let totals = HashMap::shared(attached.take_map("TOTALS")?);
        for operation in operation::READ..=operation::OTHER {
            totals.insert_zero(&Key { owner: Owner::UNATTRIBUTED, device: 0, operation, reserved: 0 })?;
        }
        Ok(Self { totals, latencies: HashMap::shared(attached.take_map("LATENCIES")?) })
    }

    /// Totals of every key. Read after [`Self::read_latencies`], so that every series there is has its key.
    pub fn read(&mut self) -> io::Result<Vec<(Key, Totals)>> {
        self.totals.read()
    }

    /// Used buckets of all latencies.
    pub fn read_latencies(&mut self) -> io::Result<Vec<(Bucket, u64)>> {
        self.latencies.read()
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
