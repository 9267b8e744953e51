//! The accounts that requests are charged to: opened at the first request of a key, found by their number from then on.

use crate::{ACCOUNTS, FREE, KEYS, NoRoom};
use aya_ebpf::bindings::BPF_NOEXIST;
use monitor_common::block_io::{Account, Key, Series};

/// The account of a series; none where it was closed, or there is no series.
#[inline(always)]
pub(crate) fn of(series: Series) -> Option<*mut Account> {
    // SAFETY: a value of the map.
    ACCOUNTS.get_ptr_mut(series.account()).filter(|&account| unsafe { (*account).usage } == series.usage())
}

/// The series of a key, whose account is opened when there is none.
#[inline(always)]
pub(crate) fn open(key: &Key) -> Series {
    number(key)
        // SAFETY: a value of the map.
        .and_then(|number| ACCOUNTS.get_ptr(number).map(|account| Series::new(number, unsafe { (*account).usage })))
        .unwrap_or_else(|| {
            crate::lose_room(NoRoom::Owner);
            Series::of_nobody(key.operation)
        })
}

#[inline(always)]
fn number(key: &Key) -> Option<u32> {
    let find = || {
        KEYS.get_ptr(key).map(|number| {
            // SAFETY: a value of the map.
            unsafe { *number }
        })
    };
    find().or_else(|| {
        let number = FREE.pop().ok()??;
        let account = ACCOUNTS.get_ptr_mut(number)?;
        // SAFETY: a value of the map, which is nobody else's until it is found by its key.
        unsafe {
            (*account).owner = key.owner;
            (*account).device = key.device;
            (*account).operation = key.operation;
        }
        if KEYS.insert(key, number, u64::from(BPF_NOEXIST)).is_ok() {
            return Some(number);
        }
        // Another CPU was first.
        let _ = FREE.push(number, 0);
        find()
    })
}
