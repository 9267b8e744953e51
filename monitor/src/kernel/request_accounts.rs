//! User space's half of the accounts of `requests`: it hands them out, reads them, and closes them.

use super::{attach::LoadError, map, syscall, table::Table};
use aya::{Ebpf, maps::MapData};
use monitor_common::{
    Owner,
    requests::{Account, Totals},
};
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
};
use zerocopy::IntoBytes;

/// Accounts, and what finds them.
pub struct RequestAccounts {
    table: Table<Account>,
    keys: MapData,
    free: MapData,
    /// Those that were found in use, with their numbers and uses.
    open: HashMap<Owner, (u32, u32)>,
}

impl RequestAccounts {
    /// Gives the kernel all that there is room for, but for the first, which is for what cannot be attributed. To be done
    /// before any program runs.
    pub fn hand_out(object: &Ebpf) -> Result<(), LoadError> {
        let map = |name| object.map(name).and_then(map::data_of).ok_or(LoadError::Missing(name));
        let (table, free) = (map("ACCOUNTS")?.fd().as_fd(), map("FREE")?.fd().as_fd());
        (1..syscall::max_entries(table)?).try_for_each(|number| hand(free, number))?;
        Ok(())
    }

    /// Takes over the maps of an attached source.
    pub fn new(table: MapData, keys: MapData, free: MapData) -> io::Result<Self> {
        let length = syscall::max_entries(table.fd().as_fd())?;
        Ok(Self { table: Table::new(table, length as usize)?, keys, free, open: HashMap::new() })
    }

    /// Every account that counted something.
    pub fn read(&mut self) -> Vec<(Owner, Totals)> {
        let mut read = Vec::new();
        for (number, account) in self.table.entries().enumerate() {
            // SAFETY: an account of the table. Its owner was written before anything was counted, and that is what is read
            // first.
            let (totals, account) = unsafe { (totals(account), account.read_volatile()) };
            if totals != Totals::default() {
                self.open.insert(account.owner, (number as u32, account.usage));
                read.push((account.owner, totals));
            }
        }
        read
    }

    /// Closes accounts: their next use will be another one.
    pub fn close(&mut self, owners: &[Owner]) -> io::Result<()> {
        // First, so that they are found no more. Whoever knows one by its number is of a process that has gone.
        syscall::delete_batch(self.keys.fd().as_fd(), owners.as_bytes(), size_of::<Owner>())?;
        for (number, usage) in owners.iter().filter_map(|owner| self.open.remove(owner)) {
            let next = Account { usage: usage.wrapping_add(1), ..Account::default() };
            syscall::update(self.table.as_fd(), number.as_bytes(), next.as_bytes())?;
            hand(self.free.fd().as_fd(), number)?;
        }
        Ok(())
    }
}

/// What an account has counted. What ends a turn is read before what begins it, so that none is missed that has ended.
///
/// # Safety
/// `account` must be in memory that the kernel's programs write.
unsafe fn totals(account: *const Account) -> Totals {
    let counter = |field: *const u64| {
        // SAFETY: a field of the table, aligned for it, which the kernel writes as a whole.
        unsafe { AtomicU64::from_ptr(field.cast_mut()) }.load(Ordering::Acquire)
    };
    // SAFETY: the caller's account; fields are only pointed to.
    unsafe {
        let totals = &raw const (*account).totals;
        Totals {
            answered: counter(&raw const (*totals).answered),
            unanswered: counter(&raw const (*totals).unanswered),
            begun: counter(&raw const (*totals).begun),
            connections: counter(&raw const (*totals).connections),
            received_bytes: counter(&raw const (*totals).received_bytes),
            sent_bytes: counter(&raw const (*totals).sent_bytes),
            peak: counter(&raw const (*totals).peak),
        }
    }
}

fn hand(free: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    syscall::push(free, number.as_bytes())
}
