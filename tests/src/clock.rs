//! Time: the boot clock, in which the agent dates its answers, and waiting with a deadline.

use anyhow::{Result, bail};
use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

/// How long a test waits for what must come. Generous: a busy machine is no reason to fail.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How many times longer than on a real processor things take: an emulated one, in the virtual machines of
/// `cargo xtask vm`, needs its time.
pub fn slowness() -> u32 {
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if words.split_whitespace().any(|word| word == "vmtest=1") { 20 } else { 1 }
}

/// So much work for a test whose proof does not depend on how much: a fifth where an emulated processor does it.
pub fn amount(whole: u64) -> u64 {
    if slowness() > 1 { whole / 5 } else { whole }
}

/// Nanoseconds since boot, suspend included.
pub fn boot_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec the kernel may write; the clock exists on every supported kernel.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Asks every 20 ms until there is an answer, for at most `patience`.
///
/// # Errors
/// What `ask` fails with, or that `what` did not come in time.
pub fn wait_until<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited {patience:?} in vain: {what}");
        }
        sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_the_answer() {
        let mut asked = 0;
        let answer = wait_until("the third question", PATIENCE, || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(answer.unwrap(), 3);
    }

    #[test]
    fn waiting_in_vain_names_what_did_not_come() {
        let error = wait_until("a miracle", Duration::ZERO, || Ok(None::<()>)).unwrap_err();
        assert!(error.to_string().contains("a miracle"), "{error}");
    }

    #[test]
    fn the_boot_clock_goes_on() {
        let before = boot_ns();
        assert!(before > 0 && boot_ns() >= before);
    }
}
