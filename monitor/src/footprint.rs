//! The agent's own memory: what it may have, and how it gives back what only its start takes.

use std::{ptr, slice};

/// One arena for all threads: the agent's are mostly idle, and arenas only grow.
pub fn keep_small() {
    // SAFETY: sets a parameter of the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Kernels before 5.11 charge maps to a limit on locked memory, which is small by default.
pub fn lift_lock_limit() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a valid limit. Where it is refused, newer kernels do not need it and older ones say so at the first map.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}

/// Returns what loading took, above all the kernel's types: tens of megabytes that are not needed again; and the pages of code that
/// only the start ran, megabytes as well. Code that goes on running is mapped again as it is met, from the page cache.
pub fn give_back() {
    // SAFETY: gives free pages back, touches nothing in use.
    unsafe { libc::malloc_trim(0) };
    // SAFETY: the function has the type that is called, and keeps nothing of what it is handed.
    unsafe { libc::dl_iterate_phdr(Some(give_back_code), ptr::null_mut()) };
}

/// Unmaps the pages of an object's executable segments. Ends after the first one: the program itself.
unsafe extern "C" fn give_back_code(info: *mut libc::dl_phdr_info, _: usize, _: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the caller hands over what is valid for the call, headers and all.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr, slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    // SAFETY: reads a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(1) as u64;
    let is_code = |header: &&libc::Elf64_Phdr| {
        header.p_type == libc::PT_LOAD && header.p_flags & (libc::PF_X | libc::PF_W) == libc::PF_X
    };
    for header in headers.iter().filter(is_code) {
        let start = (base + header.p_vaddr).next_multiple_of(page);
        let end = (base + header.p_vaddr + header.p_memsz) / page * page;
        let length = end.saturating_sub(start) as usize;
        // SAFETY: code that nobody can write is what is in the file, and comes from there again.
        unsafe { libc::madvise(ptr::with_exposed_provenance_mut(start as usize), length, libc::MADV_DONTNEED) };
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, fs, process::Command};

    fn mapped_code() -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let program = fs::read_link("/proc/self/exe").unwrap().to_string_lossy().into_owned();
        let mut is_code = false;
        let mut sum = 0;
        for line in smaps.lines() {
            if line.contains('-') && line.contains(" r") {
                is_code = line.contains(" r-xp ") && line.ends_with(&program);
            }
            if let Some(rest) = line.strip_prefix("Rss:").filter(|_| is_code) {
                sum += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
            }
        }
        sum
    }

    #[test]
    fn code_that_only_the_start_ran_is_given_back_and_what_is_met_again_still_runs() {
        /// Set in a process of its own, where no other test maps code meanwhile.
        const ALONE: &str = "MONITOR_TEST_ALONE";
        if env::var_os(ALONE).is_none() {
            let name = "footprint::tests::code_that_only_the_start_ran_is_given_back_and_what_is_met_again_still_runs";
            let mut again = Command::new(env::current_exe().unwrap());
            let output = again.args(["--exact", name, "--test-threads=1"]).env(ALONE, "1").output().unwrap();
            let words = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && words.contains("1 passed"), "{words}");
            return;
        }
        let before = mapped_code();
        give_back();
        let after = mapped_code();
        assert!(after > 0 && after * 10 < before * 9, "{before} KiB of code before, {after} after");
    }
}
