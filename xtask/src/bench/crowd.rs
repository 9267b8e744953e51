//! Many processes that mostly sleep, as on an ordinary node: this program again, each wakes a few times a second, maps and
//! touches a little memory, and gives it back.

use anyhow::{Context, Result};
use std::{
    hint::black_box,
    process::{Child, Command, Stdio},
    time::Duration,
};

pub(super) const PAUSE: Duration = Duration::from_millis(250);
/// Beyond the size from which the allocator maps memory apart, so that each round is an mmap and an munmap.
const MAPPED_BYTES: usize = 256 << 10;
const PAGE_BYTES: usize = 4096;
const PAGES_TOUCHED: usize = 16;

/// The processes. Killed when dropped.
pub(crate) struct Crowd {
    children: Vec<Child>,
}

impl Crowd {
    pub(crate) fn start(processes: usize) -> Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        let mut crowd = Self { children: Vec::with_capacity(processes) };
        for _ in 0..processes {
            let child = Command::new(&program).arg("sleeper").stdin(Stdio::null()).spawn();
            crowd.children.push(child.context("cannot start a process of the crowd")?);
        }
        Ok(crowd)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Fails only where it has ended already.
            let _ = child.kill();
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

/// What one process of the crowd does until it is killed, or whoever started it is gone.
pub(crate) fn sleep_and_work() -> Result<()> {
    let parent = std::os::unix::process::parent_id();
    while std::os::unix::process::parent_id() == parent {
        work();
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// One round: memory is mapped, touched and given back.
pub(super) fn work() {
    let mut memory = vec![0_u8; MAPPED_BYTES];
    for page in memory.chunks_mut(PAGE_BYTES).take(PAGES_TOUCHED) {
        page[0] = 1;
    }
    black_box(&memory);
}
