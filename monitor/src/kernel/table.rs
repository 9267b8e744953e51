//! Arrays that are read where the kernel's programs write them: in shared memory, without a system call.

use aya::maps::MapData;
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr::NonNull,
};

/// An array of `T`, mapped read-only. The kernel writes it all the time, so it is reached by pointers only.
pub struct Table<T> {
    /// Keeps the map alive.
    map: MapData,
    memory: NonNull<T>,
    length: usize,
}

// SAFETY: the mapping is shared memory that only the kernel writes; any thread may read it.
unsafe impl<T: Send> Send for Table<T> {}

impl<T> Table<T> {
    /// Maps an array of `length` entries.
    pub fn new(map: MapData, length: usize) -> io::Result<Self> {
        let (bytes, fd) = (length * size_of::<T>(), map.fd().as_fd().as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { map, memory, length })
    }

    /// Its entries, each to be read with care: whatever is not written as a whole may be torn.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = *const T> {
        // SAFETY: within the mapping, which lives as long as `self`.
        (0..self.length).map(|index| unsafe { self.memory.add(index) }.as_ptr().cast_const())
    }
}

impl<T> AsFd for Table<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`, which nothing else refers to.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.length * size_of::<T>()) };
    }
}
