//! The system calls of the workloads, each with its result as the kernel gives it, and memory that unmaps itself.

use anyhow::{Context, Result, bail};
use std::{ffi::c_int, io, ptr};

/// Bytes of a page on x86-64.
pub(crate) const PAGE: usize = 4096;

/// Private memory, or a mapped file; unmapped on drop.
pub(crate) struct Mapping {
    pub(crate) start: *mut u8,
    pub(crate) bytes: usize,
}

impl Mapping {
    /// Anonymous memory in small pages, none of them present yet.
    pub(crate) fn anonymous(bytes: usize) -> Result<Self> {
        let start = mmap(bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
            .context("cannot map anonymous memory")?;
        let mapping = Self { start: start as *mut u8, bytes };
        mapping.advise(libc::MADV_NOHUGEPAGE)?;
        Ok(mapping)
    }

    /// madvise(2) on all of it.
    pub(crate) fn advise(&self, advice: c_int) -> Result<()> {
        // SAFETY: the range is this mapping's own; the advices used keep it mapped.
        check(unsafe { libc::madvise(self.start.cast(), self.bytes, advice) }, "madvise")
    }

    /// Address behind its last byte.
    pub(crate) fn end(&self) -> *mut u8 {
        self.start.wrapping_add(self.bytes)
    }

    pub(crate) fn pages(&self) -> usize {
        self.bytes / PAGE
    }

    /// Reads the first byte of a page.
    pub(crate) fn read(&self, page: usize) -> u8 {
        assert!(page < self.pages(), "page {page} of {}", self.pages());
        // SAFETY: the page lies within the mapping, which is readable.
        unsafe { ptr::read_volatile(self.start.add(page * PAGE)) }
    }

    /// Writes the first byte of a page.
    pub(crate) fn write(&self, page: usize) {
        assert!(page < self.pages(), "page {page} of {}", self.pages());
        // SAFETY: the page lies within the mapping, which is writable where this is called.
        unsafe { ptr::write_volatile(self.start.add(page * PAGE), 1) }
    }

    /// All of it, for calls that read or fill a buffer.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is readable and writable, lives as long as the borrow, and any bytes are valid.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if munmap(self.start as usize, self.bytes).is_err() {
            eprintln!("cannot unmap {} bytes", self.bytes);
        }
    }
}

// SAFETY: the mapping is plain memory; the threads that share one touch different pages, by volatile access.
unsafe impl Sync for Mapping {}

/// mmap(2) at an address of the kernel's choice.
pub(crate) fn mmap(bytes: usize, protection: c_int, flags: c_int, file: c_int) -> io::Result<usize> {
    // SAFETY: without MAP_FIXED nothing that is in use can be replaced.
    let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, file, 0) };
    if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(start as usize) }
}

/// munmap(2) of what the caller has mapped by [`mmap`] and refers to no more.
pub(crate) fn munmap(start: usize, bytes: usize) -> io::Result<()> {
    // SAFETY: the caller's own mapping, or an address at which the kernel must refuse.
    result(unsafe { libc::munmap(start as *mut libc::c_void, bytes) })
}

/// mremap(2), which may move what the caller has mapped by [`mmap`].
pub(crate) fn mremap(start: usize, bytes: usize, new_bytes: usize) -> io::Result<usize> {
    // SAFETY: the caller's own mapping, or an address at which the kernel must refuse.
    let moved = unsafe { libc::mremap(start as *mut libc::c_void, bytes, new_bytes, libc::MREMAP_MAYMOVE) };
    if moved == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(moved as usize) }
}

/// brk(2) as the kernel has it: the end of the heap after the call, which is the old one where it failed.
pub(crate) fn brk(end: usize) -> usize {
    // SAFETY: the callers only grow the heap and shrink it again by as much, without allocating in between.
    let end = unsafe { libc::syscall(libc::SYS_brk, end) };
    end as usize
}

/// `pin PROCESSOR`: keeps this process on one processor; where there are not so many, they are counted round.
pub(crate) fn pin(processor: usize) -> Result<()> {
    let processor = processor % std::thread::available_parallelism().map_or(1, usize::from);
    // SAFETY: an all-zero set is valid and empty; CPU_SET checks its bounds.
    let outcome = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    check(outcome, "sched_setaffinity")
}

/// Gives the processor to the next one who wants it.
pub(crate) fn give_way() {
    // SAFETY: takes nothing and touches no memory.
    unsafe { libc::sched_yield() };
}

/// An error that names the call.
pub(crate) fn check(outcome: c_int, call: &str) -> Result<()> {
    result(outcome).with_context(|| format!("{call} failed"))
}

/// An error unless `outcome` is one.
pub(crate) fn refused<T>(outcome: io::Result<T>, call: &str) -> Result<()> {
    match outcome {
        Err(_) => Ok(()),
        Ok(_) => bail!("{call} was to fail and did not"),
    }
}

fn result(outcome: c_int) -> io::Result<()> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
