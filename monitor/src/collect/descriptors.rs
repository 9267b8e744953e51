//! File descriptors: how many there may be, how many of them are kept open from tick to tick, and what to do for want of them.
//!
//! A process has one table of descriptors. So whatever lacks one, wherever, is counted here in one place, and [`Want`] tells
//! of it once.

use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Files kept open from tick to tick at most: more are of no use, and each costs the kernel some 4 KiB.
const KEPT_MAX: u64 = 12_800;
/// A want is over when none was met for this long.
const OVER_AFTER: Duration = Duration::from_secs(30);
/// Descriptors that attaching kernel programs must leave to what comes after it: the socket and its clients, and reading.
const RESERVED: usize = 24;

/// Wants met so far.
static MET: AtomicU64 = AtomicU64::new(0);

/// Raises the limit on open files as far as it goes, or as is of use.
pub fn raise_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid place for the answer, and then the same limit with another soft part.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return;
        }
        limit.rlim_cur = limit.rlim_max.min(limit.rlim_cur.max(2 * KEPT_MAX));
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
            log::debug!("the limit on open files stays: {}", io::Error::last_os_error());
        }
    }
}

/// How many files may be open.
fn limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid place for the answer.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result == 0 { limit.rlim_cur } else { 0 }
}

/// How many are open; the most that is likely where that cannot be told.
fn open_now() -> u64 {
    const LIKELY: u64 = 256;
    // The directory itself is open while it is read.
    fs::read_dir("/proc/self/fd").map_or(LIKELY, |entries| (entries.count() as u64).saturating_sub(1))
}

/// Descriptors that are held back, so that what follows cannot take them all. Dropped when it has.
#[derive(Debug)]
pub struct Reserve {
    _held: Vec<fs::File>,
}

impl Reserve {
    /// Takes them, or as many as there are.
    pub fn take() -> Self {
        let hold = || fs::File::open("/dev/null").inspect_err(note).ok();
        Self { _held: std::iter::repeat_with(hold).take(RESERVED).flatten().collect() }
    }
}

/// Whether an error is for want of descriptors, of this process's (EMFILE) or of the system's (ENFILE): what was to be read may
/// be there all the same. It is counted.
pub fn is_want(error: &io::Error) -> bool {
    let is_want = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    if is_want {
        MET.fetch_add(1, Ordering::Relaxed);
    }
    is_want
}

/// Counts a want, if the error is for one, for who cannot read something and says nothing more of it.
pub fn note(error: &io::Error) {
    is_want(error);
}

/// Whether an error says that what was to be read has gone: its file is no longer there (ENOENT), or was opened before and has
/// nothing behind it any more (ESRCH in /proc, ENODEV in cgroupfs). No other error says so.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENODEV))
}

/// Why something cannot be told; the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Absent {
    /// It is not there any more.
    Gone,
    /// Nobody knows whether it is there, as without permission.
    Untold,
    /// Nobody knows for want of a descriptor: it may be told later.
    Want,
}

impl From<io::Error> for Absent {
    fn from(error: io::Error) -> Self {
        if is_want(&error) {
            Self::Want
        } else if is_gone(&error) {
            Self::Gone
        } else {
            Self::Untold
        }
    }
}

/// Tells of a want once when it is met, and once when it is over.
#[derive(Debug)]
pub struct Want {
    met: u64,
    /// When it was last met; none while there is none.
    last: Option<Instant>,
}

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Met,
    Over,
}

impl Default for Want {
    /// What was met before is not told.
    fn default() -> Self {
        Self { met: MET.load(Ordering::Relaxed), last: None }
    }
}

impl Want {
    /// Looks whether there is something to tell, and tells it.
    pub fn tell(&mut self, now: Instant) {
        match self.look(MET.load(Ordering::Relaxed), now) {
            Some(News::Met) => log::warn!(
                "no file descriptor is left ({} may be open by RLIMIT_NOFILE; or the system's fs.file-max is reached): what \
                 cannot be read keeps its last values, and clients wait",
                limit()
            ),
            Some(News::Over) => log::info!("file descriptors are to be had again"),
            None => {}
        }
    }

    fn look(&mut self, met: u64, now: Instant) -> Option<News> {
        if met != self.met {
            self.met = met;
            return self.last.replace(now).is_none().then_some(News::Met);
        }
        let is_over = self.last.is_some_and(|last| now.duration_since(last) >= OVER_AFTER);
        if is_over {
            self.last = None;
        }
        is_over.then_some(News::Over)
    }
}

/// Places for files that are kept open from tick to tick, shared by all who keep some.
#[derive(Clone, Debug)]
pub struct Budget(Arc<AtomicUsize>);

/// Some of its places, given back on drop.
#[derive(Debug)]
pub struct Places {
    budget: Budget,
    count: usize,
}

impl Budget {
    /// With so many places.
    pub fn new(places: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(places)))
    }

    /// Half of what the limit leaves beside what is open by now, so that clients, recordings and reading itself have the other
    /// half. Says so once where that makes polling dearer.
    pub fn of_process() -> Self {
        /// Enough for the processes and cgroups that are busy at once on most nodes.
        const AMPLE: u64 = 1024;
        let (limit, open) = (limit(), open_now());
        let places = (limit.saturating_sub(open) / 2).min(KEPT_MAX);
        if places < AMPLE {
            log::warn!(
                "only {limit} files may be open (RLIMIT_NOFILE, the hard limit) and {open} are: {places} are kept open for polling, \
                 which costs more for all others; allow {} by LimitNOFILE= of the unit or `ulimit -Hn`",
                2 * KEPT_MAX
            );
        }
        Self::new(usize::try_from(places).unwrap_or(usize::MAX))
    }

    /// Takes places, all or none.
    pub fn take(&self, count: usize) -> Option<Places> {
        let less = |left: usize| left.checked_sub(count);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok()?;
        Some(Places { budget: self.clone(), count })
    }

    /// Places that are not taken.
    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Places {
    /// Gives back all but so many.
    pub fn keep(&mut self, count: usize) {
        let spare = self.count.saturating_sub(count);
        self.count -= spare;
        self.budget.0.fetch_add(spare, Ordering::Relaxed);
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back_and_never_more_than_there_were() {
        let budget = Budget::new(4);
        let mut three = budget.take(3).unwrap();
        assert!(budget.take(2).is_none());
        three.keep(2);
        let two = budget.take(2).unwrap();
        assert_eq!(budget.left(), 0);
        drop((three, two));
        assert_eq!(budget.left(), 4);
    }

    #[test]
    fn a_want_is_told_once_and_once_when_it_is_over() {
        let (start, mut want) = (Instant::now(), Want { met: 0, last: None });
        let second = |n| start + Duration::from_secs(n);
        assert_eq!(want.look(0, start), None);
        assert_eq!(want.look(7, second(1)), Some(News::Met));
        assert_eq!(want.look(7, second(2)), None);
        assert_eq!(want.look(9, second(20)), None, "it goes on");
        assert_eq!(want.look(9, second(49)), None, "not over for long enough");
        assert_eq!(want.look(9, second(50)), Some(News::Over));
        assert_eq!(want.look(9, second(90)), None);
        assert_eq!(want.look(10, second(91)), Some(News::Met));
    }

    #[test]
    fn no_descriptor_is_not_gone() {
        let error = io::Error::from_raw_os_error;
        for number in [libc::EMFILE, libc::ENFILE] {
            assert!(is_want(&error(number)) && !is_gone(&error(number)));
            assert_eq!(Absent::from(error(number)), Absent::Want);
        }
        for number in [libc::ENOENT, libc::ESRCH, libc::ENODEV] {
            assert_eq!(Absent::from(error(number)), Absent::Gone);
        }
        for number in [libc::EACCES, libc::ENOMEM, libc::EIO] {
            assert_eq!(Absent::from(error(number)), Absent::Untold);
        }
    }
}
