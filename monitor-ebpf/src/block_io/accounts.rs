//! The accounts that requests are charged to: opened at the first request of a key, found by their number from then on.

use crate::{
    ACCOUNTS, FREE, KEYS,
    losses::{NoRoom, lose_room},
};
use aya_ebpf::bindings::BPF_NOEXIST;
use monitor_common::block_io::{Account, Key, Series};

/// The account of a series; none where it was closed, or there is no series.
#[inline(always)]
pub(crate) fn of(series: Series) -> Option<*mut Account> {
    // SAFETY: a value of the map.
    ACCOUNTS.get_ptr_mut(series.account()).filter(|&account| unsafe { (*account).usage } == series.usage())
}

/// The series of a key; none where its account is not open.
#[inline(always)]
pub(crate) fn find(key: &Key) -> Series {
    // SAFETY: a value of the map.
    KEYS.get_ptr(key).map_or(Series::NONE, |series| unsafe { *series })
}

/// The series of a key, whose account is opened when there is none.
#[inline(always)]
pub(crate) fn open(key: &Key) -> Series {
    let found = find(key);
    if found != Series::NONE {
        return found;
    }
    open_new(key).unwrap_or_else(|| {
        lose_room(NoRoom::Owner);
        Series::of_nobody(key.operation)
    })
}

#[inline(always)]
fn open_new(key: &Key) -> Option<Series> {
    let number = FREE.pop().ok()??;
    let account = ACCOUNTS.get_ptr_mut(number)?;
    // SAFETY: a value of the map, which is nobody else's until it is found by its key.
    let series = unsafe {
        (*account).owner = key.owner;
        (*account).device = key.device;
        (*account).operation = key.operation;
        Series::new(number, (*account).usage)
    };
    if KEYS.insert(key, series, u64::from(BPF_NOEXIST)).is_ok() {
        return Some(series);
    }
    // Another CPU was first.
    let _ = FREE.push(number, 0);
    Some(find(key)).filter(|found| *found != Series::NONE)
}
