//! Time inside the agent is the boot clock, in nanoseconds; wall time only appears where people read it.

use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};

/// A moment of the boot clock (`CLOCK_BOOTTIME`), which counts from boot and goes on through suspend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(pub u64);

impl BootTime {
    /// The moment of the call.
    pub fn now() -> Self {
        Self(clock_ns(libc::CLOCK_BOOTTIME))
    }

    /// The wall clock's time at that moment, past or to come, by what both clocks show now.
    pub fn wall(self) -> SystemTime {
        let (now, wall) = (Self::now(), SystemTime::now());
        wall - now.since(self) + self.since(now)
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What the calling thread has had of the processors so far: without what it waited for them, or for locks.
pub fn thread_cpu_time() -> Duration {
    Duration::from_nanos(clock_ns(libc::CLOCK_THREAD_CPUTIME_ID))
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec for the kernel to write; the clock ids are constants every supported kernel knows.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{hint::black_box, thread::sleep, time::Instant};

    #[test]
    fn waiting_takes_nothing_of_a_processor_and_work_does() {
        let pause = Duration::from_millis(100);
        let start = thread_cpu_time();
        sleep(pause);
        assert!(thread_cpu_time() - start < pause / 2);
        let (begin, start) = (Instant::now(), thread_cpu_time());
        while thread_cpu_time() - start < pause / 10 {
            black_box(begin.elapsed());
        }
        assert!(begin.elapsed() >= pause / 10, "no thread has more than one processor");
    }
}
