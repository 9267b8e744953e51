//! Reading the page-fault slots where the programs write them: in memory shared with the kernel, without a system call.

use aya::maps::MapData;
use monitor_common::{
    Owner,
    page_fault::{Slot, USER_KINDS},
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, fence},
};

/// One slot a CPU, mapped read-only.
pub struct Slots {
    /// Keeps the map alive.
    _map: MapData,
    memory: NonNull<Slot>,
    cpus: usize,
}

// SAFETY: the mapping is shared memory that only the kernel writes; any thread may read it.
unsafe impl Send for Slots {}

/// How often a slot is looked at again while its owner is being changed. A change takes less than a microsecond, unless
/// the hypervisor takes the CPU away in the middle of it.
const TRIES: usize = 10_000;

impl Slots {
    /// Maps the slots of `cpus` CPUs.
    pub fn new(map: MapData, cpus: usize) -> io::Result<Self> {
        let length = cpus * size_of::<Slot>();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe {
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, map.fd().as_fd().as_raw_fd(), 0)
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { _map: map, memory, cpus })
    }

    /// Every CPU's owner and counts, each consistent in itself; none for a slot that never stood still.
    pub fn read(&self) -> Vec<Option<(Owner, [u64; USER_KINDS])>> {
        (0..self.cpus).map(|cpu| self.slot(cpu)).collect()
    }

    fn slot(&self, cpu: usize) -> Option<(Owner, [u64; USER_KINDS])> {
        // SAFETY: within the mapping, which lives as long as `self`.
        let slot = unsafe { self.memory.add(cpu) }.as_ptr();
        // SAFETY: the field is aligned for it, and the kernel writes it as a whole.
        let sequence = unsafe { AtomicU64::from_ptr(&raw mut (*slot).sequence) };
        for attempt in 0..TRIES {
            let before = sequence.load(Ordering::Acquire);
            if before % 2 == 0 {
                // SAFETY: as above. The copy may be torn; the sequence tells.
                let (owner, counts) = unsafe {
                    ((&raw const (*slot).owner).read_volatile(), (&raw const (*slot).counts).read_volatile())
                };
                fence(Ordering::Acquire);
                if sequence.load(Ordering::Relaxed) == before {
                    return Some((owner, counts));
                }
            }
            if attempt % 100 == 99 {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        None
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`, which nothing else refers to.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.cpus * size_of::<Slot>()) };
    }
}
