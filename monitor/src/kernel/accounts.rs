//! User space's half of the accounts of `block_io`: it hands them out, reads them, and closes them.

use super::{attach::LoadError, map, syscall, table::Table};
use aya::{Ebpf, maps::MapData};
use monitor_common::{
    Owner,
    block_io::{Account, Bucket, Key, MOST_ACCOUNTS, Series, Totals, operation},
};
use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
};
use zerocopy::IntoBytes;

/// Accounts, and what finds them.
pub struct Accounts {
    table: Table<Account>,
    keys: MapData,
    free: MapData,
    /// Those that were found in use, with what they had counted by then.
    open: HashMap<Key, Totals>,
}

impl Accounts {
    /// Gives the kernel all that there is room for, some for what cannot be attributed. To be done before any program runs.
    pub fn hand_out(object: &Ebpf) -> Result<(), LoadError> {
        let map = |name| object.map(name).and_then(map::data_of).ok_or(LoadError::Missing(name));
        let (table, free) = (map("ACCOUNTS")?.fd().as_fd(), map("FREE")?.fd().as_fd());
        for operation in 0..operation::COUNT as u16 {
            set(table, Series::of_nobody(operation), &Account { operation, ..Account::default() })?;
        }
        (operation::COUNT as u32..syscall::max_entries(table)?.min(MOST_ACCOUNTS))
            .try_for_each(|number| hand(free, number))?;
        Ok(())
    }

    /// Takes over the maps of an attached source.
    pub fn new(table: MapData, keys: MapData, free: MapData) -> io::Result<Self> {
        let length = syscall::max_entries(table.fd().as_fd())?;
        Ok(Self { table: Table::new(table, length as usize)?, keys, free, open: HashMap::new() })
    }

    /// Every account that counted something.
    pub fn read(&mut self) -> Vec<(Key, Totals)> {
        let mut read = Vec::new();
        for (number, account) in self.table.entries().enumerate() {
            // SAFETY: an account of the table. Its key was written before anything was counted, and that is what is read first.
            let (totals, key, usage) = unsafe {
                let totals = totals(account);
                if totals == Totals::default() {
                    continue;
                }
                let account = account.read_volatile();
                (totals, account.key(), account.usage)
            };
            let series = Series::new(number as u32, usage);
            // What was still added to an account that was being closed, and is nobody's.
            if key.owner == Owner::UNATTRIBUTED && !series.is_nobodys() {
                continue;
            }
            let totals = Totals { series: Bucket::series_of(series), ..totals };
            self.open.insert(key, totals);
            read.push((key, totals));
        }
        read
    }

    /// Closes accounts: their next use will be another one. Those that have counted something since they were read stay open,
    /// and are taken out of `keys`: a request that was in flight when its process ended has come back. Tells their series, as
    /// they stand in buckets.
    pub fn close(&mut self, keys: &mut Vec<Key>) -> io::Result<HashSet<u64>> {
        let Self { table, open, .. } = self;
        let mut kept = HashSet::new();
        keys.retain(|key| {
            let Some(read) = open.get(key) else { return true };
            let account = table.entries().nth(Bucket(read.series).whole_series().account() as usize);
            // SAFETY: an account of the table.
            let stays = account.is_some_and(|account| unsafe { totals(account) } != Totals { series: 0, ..*read });
            if stays {
                kept.insert(read.series);
            }
            !stays
        });
        // First, so that nothing new is charged to them but by requests in flight.
        syscall::delete_batch(self.keys.fd().as_fd(), keys.as_bytes(), size_of::<Key>())?;
        for read in keys.iter().filter_map(|key| self.open.remove(key)) {
            let next = Bucket(read.series).whole_series().next();
            set(self.table.as_fd(), next, &Account { usage: next.usage(), ..Account::default() })?;
            hand(self.free.fd().as_fd(), next.account())?;
        }
        Ok(kept)
    }
}

/// What an account has counted, without its series.
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
        Totals {
            series: 0,
            count: counter(&raw const (*account).count),
            bytes: counter(&raw const (*account).bytes),
            errors: counter(&raw const (*account).errors),
            wait_ns: counter(&raw const (*account).wait_ns),
        }
    }
}

fn set(table: BorrowedFd<'_>, series: Series, account: &Account) -> io::Result<()> {
    syscall::update(table, series.account().as_bytes(), account.as_bytes())
}

fn hand(free: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    syscall::push(free, number.as_bytes())
}
