//! Source `page_fault`: the hash map and the slots in front of it, joined so that no fault is missed or counted twice.

use crate::kernel::{
    attach::{Attached, LoadError},
    map::HashMap,
    slots::Slots,
    table::Table,
};
use monitor_common::{
    Owner,
    page_fault::{Counts, KINDS, USER_KINDS},
};
use std::{io, ops::Range};

/// Its maps.
pub struct PageFault {
    totals: HashMap<Owner, Counts>,
    user: Slots,
    kernel: Slots,
}

const USER: Range<usize> = 0..USER_KINDS;
const KERNEL: Range<usize> = USER_KINDS..KINDS;

impl PageFault {
    /// Opens the maps of an attached source.
    pub fn open(attached: &mut Attached, cpus: usize) -> Result<Self, LoadError> {
        let totals = HashMap::per_cpu(attached.take_map("PAGE_FAULTS")?, cpus);
        totals.insert_zero(&Owner::UNATTRIBUTED)?;
        Ok(Self {
            totals,
            user: Slots(Table::new(attached.take_map("USER_SLOTS")?, cpus)?),
            kernel: Slots(Table::new(attached.take_map("KERNEL_SLOTS")?, cpus)?),
        })
    }

    /// Counts of every owner in the map, over all CPUs.
    ///
    /// The slots are copied first, the map is read second, and the larger of the two counts: what is folded into the map
    /// in between is in both, and what a slot holds beyond the map is only there. A slot's owner that is no longer in the
    /// map was harvested; its slot is a leftover.
    pub fn read(&mut self) -> io::Result<Vec<(Owner, Counts)>> {
        let (user, kernel) = (self.user.read(), self.kernel.read());
        let mut read = Vec::new();
        self.totals.for_each(|owner, cpus| {
            let mut sum = [0; KINDS];
            for (cpu, stored) in cpus.iter().enumerate() {
                let mut counts = *stored;
                for (slots, kinds) in [(&user, USER), (&kernel, KERNEL)] {
                    if let Some((slot_owner, slot)) = &slots[cpu]
                        && slot_owner == owner
                    {
                        for (count, slot) in counts[kinds].iter_mut().zip(slot) {
                            *count = (*count).max(*slot);
                        }
                    }
                }
                sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            }
            read.push((*owner, sum));
        })?;
        Ok(read)
    }

    /// Deletes harvested owners.
    pub fn forget(&self, owners: &[Owner]) -> io::Result<()> {
        self.totals.delete(owners)
    }
}
