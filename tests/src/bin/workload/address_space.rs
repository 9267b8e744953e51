//! Calls of mmap, munmap, mremap and brk, a known number with known sizes. The reports carry the agent's names.

use crate::{
    handshake::{Arguments, Report},
    processes,
    system::{self, PAGE},
};
use anyhow::{Context, Result, ensure};
use std::{
    fs::File,
    os::fd::{AsRawFd, RawFd},
};

/// An end of the heap, or an address, where nothing can be: above all of user space.
const BEYOND: usize = 0x7fff_ffff_f000;
/// Never mapped: the page after the one at zero.
const UNMAPPED: usize = PAGE;

/// `maps COUNT BYTES`: that many times everything once that succeeds, with sizes that need not be whole pages.
pub(crate) fn maps(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let count: u64 = arguments.value("count")?;
    let bytes: usize = arguments.value("bytes")?;
    let file = File::open("/proc/self/exe")?;
    for _ in 0..count {
        map_and_unmap(bytes, file.as_raw_fd())?;
        grow_and_shrink_heap(whole_pages(bytes))?;
    }
    let (small, grown) = (whole_pages(bytes) as u64, whole_pages(2 * bytes) as u64 - whole_pages(bytes) as u64);
    for (name, value) in [
        ("mmap_calls_total", 2 * count),
        ("mmap_anonymous_calls_total", count),
        ("mmap_file_calls_total", count),
        ("mapped_bytes_total", 2 * count * small),
        ("mapped_anonymous_bytes_total", count * small),
        ("mapped_file_bytes_total", count * small),
        ("munmap_calls_total", 2 * count),
        ("unmapped_bytes_total", 2 * count * small),
        ("mremap_calls_total", 2 * count),
        ("mremap_grown_bytes_total", count * grown),
        ("mremap_shrunk_bytes_total", count * grown),
        ("brk_calls_total", 3 * count),
        ("heap_grown_bytes_total", count * small),
        ("heap_shrunk_bytes_total", count * small),
        ("failed_calls_total", 0),
    ] {
        report.number(name, value);
    }
    Ok(())
}

/// Anonymous memory and a file; the memory grows to twice its size and shrinks again; both go.
fn map_and_unmap(bytes: usize, file: RawFd) -> Result<()> {
    let memory = map_anonymous(bytes)?;
    let mapped_file = map_file(bytes, file)?;
    let larger = system::mremap(memory, bytes, 2 * bytes).context("mremap to more")?;
    let smaller = system::mremap(larger, 2 * bytes, bytes).context("mremap to less")?;
    system::munmap(smaller, bytes).context("munmap of memory")?;
    system::munmap(mapped_file, bytes).context("munmap of a file")
}

fn map_anonymous(bytes: usize) -> Result<usize> {
    system::mmap(bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
        .context("mmap of memory")
}

fn map_file(bytes: usize, file: RawFd) -> Result<usize> {
    system::mmap(bytes, libc::PROT_READ, libc::MAP_PRIVATE, file).context("mmap of a file")
}

/// Three calls: where the heap ends, more, and back.
fn grow_and_shrink_heap(bytes: usize) -> Result<usize> {
    let end = system::brk(0);
    ensure!(system::brk(end + bytes) == end + bytes, "brk does not grow by {bytes}");
    ensure!(system::brk(end) == end, "brk does not shrink by {bytes}");
    Ok(end)
}

/// `large BYTES`: each call that can be large, once; tells where.
pub(crate) fn large(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let bytes: usize = arguments.value("bytes")?;
    let file = File::open("/proc/self/exe")?;
    let memory = map_anonymous(bytes)?;
    let mapped_file = map_file(bytes, file.as_raw_fd())?;
    let moved = system::mremap(memory, bytes, 2 * bytes)?;
    system::munmap(moved, 2 * bytes)?;
    system::munmap(mapped_file, bytes)?;
    let heap = grow_and_shrink_heap(bytes)?;
    for (name, address) in
        [("mmap_anonymous", memory), ("mmap_file", mapped_file), ("mremap", moved), ("munmap", moved), ("brk", heap)]
    {
        report.number(name, address as u64);
    }
    Ok(())
}

/// `heaps BYTES`: the heap grows by so many bytes and shrinks again; of a child of fork by twice as many, which stay; and by
/// three times as many, by a child of vfork, which this process takes back. Tells the children's pids.
pub(crate) fn heaps(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let bytes: usize = arguments.value("bytes")?;
    let grow = |times: usize| {
        let end = system::brk(0) + times * bytes;
        i32::from(system::brk(end) != end)
    };
    let end = grow_and_shrink_heap(bytes)?;
    let forked = processes::run_child(|| grow(2))?;
    let sharing = processes::run_sharing_child(|| grow(3))?;
    ensure!(system::brk(0) == end + 3 * bytes, "the child did not move the heap that it shares");
    ensure!(system::brk(end) == end, "brk does not shrink what the child grew");
    report.number("forked", forked as u64);
    report.number("sharing", sharing as u64);
    Ok(())
}

/// `failures COUNT`: that many times each of the four calls so that it fails.
pub(crate) fn failures(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let count: u64 = arguments.value("count")?;
    let end = system::brk(0);
    for _ in 0..count {
        system::refused(map_nothing(), "mmap of nothing")?;
        system::refused(system::munmap(UNMAPPED + 1, PAGE), "munmap across pages")?;
        system::refused(system::mremap(UNMAPPED, PAGE, 2 * PAGE), "mremap of nothing")?;
        ensure!(system::brk(BEYOND) == end, "brk to {BEYOND:#x} was to fail and did not");
    }
    for (name, value) in [
        ("mmap_anonymous_calls_total", count),
        ("mmap_file_calls_total", 0),
        ("mapped_bytes_total", 0),
        ("munmap_calls_total", count),
        ("unmapped_bytes_total", 0),
        ("mremap_calls_total", count),
        ("mremap_grown_bytes_total", 0),
        ("mremap_shrunk_bytes_total", 0),
        ("brk_calls_total", count + 1),
        ("heap_grown_bytes_total", 0),
        ("heap_shrunk_bytes_total", 0),
        ("failed_calls_total", 4 * count),
    ] {
        report.number(name, value);
    }
    Ok(())
}

fn map_nothing() -> std::io::Result<usize> {
    system::mmap(0, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
}

fn whole_pages(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE)
}

/// `compatible COUNT`: calls the kernel as 32-bit programs do, which 64-bit ones can, too: brk, mmap2, munmap and mremap by their
/// 32-bit numbers, and calls whose 32-bit numbers are those of mmap, munmap and brk for 64-bit programs. Tells how many of each.
pub(crate) fn compatible(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    /// System-call numbers (arch/x86/entry/syscalls/syscall_32.tbl): brk, mmap2, munmap, mremap, link, execve, chdir.
    const CALLS: [u64; 7] = [45, 192, 91, 163, 9, 11, 12];
    let count: u64 = arguments.value("count")?;
    for number in CALLS {
        for _ in 0..count {
            // With no arguments, brk tells where the heap ends, and the others fail with EINVAL or EFAULT.
            ensure!(call_as_32_bit(number) != 0, "call {number} was not made");
        }
    }
    report.number("calls", count);
    Ok(())
}

fn call_as_32_bit(number: u64) -> u64 {
    let result: u64;
    // SAFETY: the calls above change nothing. LLVM keeps rbx to itself, so it is saved by hand; the kernel clobbers r8 to r11.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "xor ebx, ebx",
            "int 0x80",
            "pop rbx",
            inlateout("rax") number => result,
            in("rcx") 0, in("rdx") 0, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result
}
