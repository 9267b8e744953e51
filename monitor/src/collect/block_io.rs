//! Source `block_io`: its cells, and names of devices.

use crate::{
    ids::DeviceId,
    kernel::{attach::Attached, attach::LoadError, map::HashMap},
};
use monitor_common::block_io::{Cell, CellKey};
use std::{fs, io};

/// Its map.
pub struct BlockIo {
    cells: HashMap<CellKey, Cell>,
}

impl BlockIo {
    /// Opens the map of an attached source.
    pub fn open(attached: &mut Attached) -> Result<Self, LoadError> {
        Ok(Self { cells: HashMap::shared(attached.take_map("CELLS")?) })
    }

    /// All cells.
    pub fn read(&mut self) -> io::Result<Vec<(CellKey, Cell)>> {
        self.cells.read()
    }

    /// Deletes harvested cells.
    pub fn forget(&self, keys: &[CellKey]) -> io::Result<()> {
        self.cells.delete(keys)
    }
}

/// Name of a block device in /sys/block; its number where it has none any more.
pub fn device_name(id: DeviceId) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{id}")).ok();
    let name = link.and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
    name.unwrap_or_else(|| id.to_string())
}
