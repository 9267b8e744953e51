//! Source `block_io`: its maps, and names of devices.

use crate::{
    ids::DeviceId,
    kernel::{
        accounts::Accounts,
        attach::{Attached, LoadError},
        map::HashMap,
    },
};
use monitor_common::block_io::{Bucket, Key, Totals};
use std::{fs, io};

/// Its maps.
pub struct BlockIo {
    accounts: Accounts,
    latencies: HashMap<Bucket, u64>,
}

impl BlockIo {
    /// Opens the maps of an attached source.
    pub fn open(attached: &mut Attached) -> Result<Self, LoadError> {
        let [accounts, keys, free] = ["ACCOUNTS", "KEYS", "FREE"].map(|name| attached.take_map(name));
        Ok(Self {
            accounts: Accounts::new(accounts?, keys?, free?)?,
            latencies: HashMap::shared(attached.take_map("LATENCIES")?),
        })
    }

    /// Totals of every key. Read after [`Self::read_latencies`], so that every series there is has its key.
    pub fn read(&mut self) -> Vec<(Key, Totals)> {
        self.accounts.read()
    }

    /// Used buckets of all latencies.
    pub fn read_latencies(&mut self) -> io::Result<Vec<(Bucket, u64)>> {
        self.latencies.read()
    }

    /// Deletes harvested keys and their latencies. What stays, because it has counted more meanwhile, is taken out of them.
    pub fn forget(&mut self, keys: &mut Vec<Key>, latencies: &mut Vec<Bucket>) -> io::Result<()> {
        let kept = self.accounts.close(keys)?;
        latencies.retain(|bucket| !kept.contains(&bucket.series()));
        self.latencies.delete(latencies)
    }
}

/// Name of a block device in /sys/block; its number where it has none any more.
pub fn device_name(id: DeviceId) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{id}")).ok();
    let name = link.and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
    name.unwrap_or_else(|| id.to_string())
}
