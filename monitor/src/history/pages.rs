//! Histories of working sets on disk: a page for each interval, in a directory of segments.

use super::{
    Error, Limits,
    frame::{self, Chain, HISTORY},
    store::{self, Store},
};
use crate::advise::histories::Page;
use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread,
    time::{Duration, SystemTime},
};

/// Pages that may wait for the disk. What finds no room is told in the log.
const QUEUE: usize = 16;
/// Pages of a chapter: damage reaches no further than its end.
const CHAPTER: u32 = 64;
/// How long the thread may take to write the rest.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Hands pages to a thread that writes them.
#[derive(Debug)]
pub struct Pages {
    queue: SyncSender<Page>,
    ended: Receiver<()>,
}

impl Pages {
    /// Opens the directory, or makes it, and starts the thread.
    ///
    /// # Errors
    /// It cannot be written, or there is no thread to be had.
    pub fn start(directory: &Path, limits: Limits) -> Result<Self, Error> {
        let mut writer = Writer::open(directory, limits)?;
        let (queue, pages) = mpsc::sync_channel::<Page>(QUEUE);
        let (ending, ended) = mpsc::channel();
        let work = move || {
            for page in pages {
                if let Err(error) = writer.write(page) {
                    log::warn!("advice.directory: {:#}; the next interval tries again", anyhow::Error::new(error));
                }
            }
            drop(ending);
        };
        let thread = thread::Builder::new().name("history".to_owned()).spawn(work);
        thread.map_err(|source| Error::Write { path: directory.to_owned(), source })?;
        Ok(Self { queue, ended })
    }

    /// Hands a page on. Never waits.
    pub fn hand(&self, page: Page) {
        if self.queue.try_send(page).is_err() {
            log::warn!("advice.directory: the disk is too slow: an interval is not written");
        }
    }

    /// Lets what waits be written, for a moment.
    pub fn finish(self) {
        drop(self.queue);
        if self.ended.recv_timeout(ENDS_WITHIN) == Err(RecvTimeoutError::Timeout) {
            log::warn!("advice.directory: the last interval is not written: the disk does not answer");
        }
    }
}

/// Whether a directory holds histories.
pub fn is_history(directory: &Path) -> bool {
    directory.is_dir() && store::files(HISTORY, directory).is_ok_and(|files| !files.is_empty())
}

/// Reads all pages of a directory, the oldest first, each with the names of the page before. What of it could not be read, a line
/// each.
///
/// # Errors
/// A file cannot be read, or was written in another format.
pub fn read(directory: &Path, mut take: impl FnMut(&Page, &[Arc<str>])) -> Result<Vec<String>, Error> {
    let failed = |path: &Path, source| Error::Read { path: path.to_owned(), source };
    let files = match store::files(HISTORY, directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        files => files.map_err(|error| failed(directory, error))?,
    };
    let mut all_remarks = Vec::new();
    for path in files {
        let bytes = match fs::read(&path) {
            // It was the oldest, and somebody who writes there made room.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            bytes => bytes.map_err(|error| failed(&path, error))?,
        };
        if bytes.is_empty() {
            continue;
        }
        let (frames, remarks) = frame::look_through(HISTORY, &path, &bytes)?;
        all_remarks.extend(remarks);
        let (mut chain, mut names, mut before) = (Chain::default(), Vec::new(), None);
        for (at, head) in frames {
            // What builds on a damaged one cannot be unpacked.
            if !head.is_checkpoint() && !before.is_some_and(|before| head.follows(&before)) {
                before = None;
                continue;
            }
            before = Some(head);
            let plain = chain.unpack(&bytes[at..at + head.frame_bytes()]);
            let page: Option<Page> = plain.and_then(|plain| rmp_serde::from_slice(&plain).ok());
            let page =
                page.ok_or_else(|| Error::Content { path: path.clone(), reason: "a page is torn".to_owned() })?;
            take(&page, &names);
            if let Some(new) = page.names {
                names = new;
            }
        }
    }
    Ok(all_remarks)
}

/// Writes pages.
#[derive(Debug)]
struct Writer {
    store: Store,
    /// None where the next page begins a chapter.
    chain: Option<Chain>,
    /// Pages since it began.
    pages: u32,
    names: Vec<Arc<str>>,
}

impl Writer {
    fn open(directory: &Path, limits: Limits) -> Result<Self, Error> {
        // A path alone may be that of a file to come.
        fs::create_dir_all(directory).map_err(|source| Error::Write { path: directory.to_owned(), source })?;
        Ok(Self { store: Store::open(HISTORY, directory, limits)?, chain: None, pages: 0, names: Vec::new() })
    }

    fn write(&mut self, page: Page) -> Result<(), Error> {
        let written = self.try_write(page);
        if written.is_err() {
            self.store.give_up();
            self.chain = None;
        }
        written
    }

    fn try_write(&mut self, mut page: Page) -> Result<(), Error> {
        if self.pages >= CHAPTER || self.store.is_segment_over() {
            self.chain = None;
        }
        if self.chain.is_none() {
            self.store.begin_chapter()?;
            self.names.clear();
            self.pages = 0;
        }
        if page.names.as_ref() == Some(&self.names) {
            page.names = None;
        } else if let Some(names) = &page.names {
            self.names.clone_from(names);
        }
        let plain = rmp_serde::to_vec(&page).map_err(|error| self.store.error(io::Error::other(error)))?;
        let wall_ns = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let chain = self.chain.get_or_insert_with(|| Chain::new(wall_ns()));
        let frame = chain.pack(&plain, Some(page.end_seconds * 1_000_000_000));
        self.store.append(&frame)?;
        self.pages += 1;
        self.store.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advise::histories::Histories;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const LIMITS: Limits = Limits { max_bytes: 64 << 20, keep: Duration::from_secs(14 * 24 * 3600) };

    fn page(number: u64, names: &[Arc<str>], noise: &mut u64) -> Page {
        let mut value = || {
            *noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            20_000 + (*noise >> 52) as u16 % 1000
        };
        let values: Vec<_> = names.iter().map(|_| value()).collect();
        Page::of((number + 1) * 60, names.to_vec(), values.clone(), values)
    }

    fn names(count: usize) -> Vec<Arc<str>> {
        (0..count).map(|number| Arc::from(format!("container shop/pod-{number}-7d9f/web"))).collect()
    }

    fn ends(directory: &Path) -> (Vec<u64>, Vec<String>) {
        let mut ends = Vec::new();
        let remarks = read(directory, |page, _| ends.push(page.end_seconds / 60)).unwrap();
        (ends, remarks)
    }

    #[test]
    fn pages_come_back_with_their_names_also_where_these_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/on/the/way");
        let mut written = Histories::new(Duration::from_secs(60), DAY);
        let mut noise = 1;
        for (number, count) in [(0, 3), (1, 3), (2, 5), (3, 2), (4, 2)] {
            if number == 0 || number == 3 {
                assert!(!is_history(&path) || number == 3);
            }
            let mut writer = Writer::open(&path, LIMITS).unwrap();
            let page = page(number, &names(count), &mut noise);
            written.put(&page, &[]);
            writer.write(page).unwrap();
        }
        let mut back = Histories::new(Duration::from_secs(60), DAY);
        assert_eq!(read(&path, |page, names| back.put(page, names)).unwrap(), [""; 0]);
        assert!(is_history(&path));
        for name in names(5) {
            assert_eq!(back.past(&name), written.past(&name));
        }
    }

    #[test]
    fn one_that_is_killed_while_it_writes_loses_the_last_interval_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let mut noise = 1;
        let mut writer = Writer::open(directory.path(), LIMITS).unwrap();
        (0..10).for_each(|number| writer.write(page(number, &names(20), &mut noise)).unwrap());
        let file = store::files(HISTORY, directory.path()).unwrap().remove(0);
        let whole = fs::read(&file).unwrap();
        let nine = {
            let (frames, _) = frame::look_through(HISTORY, &file, &whole).unwrap();
            frames[9].0
        };
        for cut in [nine, nine + 1, nine + 50, whole.len() - 1] {
            fs::write(&file, &whole[..cut]).unwrap();
            let (read, remarks) = ends(directory.path());
            assert_eq!(read, (1..=9).collect::<Vec<_>>());
            assert_eq!(remarks.len(), usize::from(cut > nine), "{remarks:?}");
        }
        // The next one goes on behind it.
        let mut writer = Writer::open(directory.path(), LIMITS).unwrap();
        writer.write(page(10, &names(20), &mut noise)).unwrap();
        assert_eq!(ends(directory.path()).0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]);
    }

    #[test]
    fn damage_in_the_middle_costs_what_builds_on_it_and_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut noise = 1;
        let mut writer = Writer::open(directory.path(), LIMITS).unwrap();
        (0..70).for_each(|number| writer.write(page(number, &names(20), &mut noise)).unwrap());
        let file = store::files(HISTORY, directory.path()).unwrap().remove(0);
        let mut bytes = fs::read(&file).unwrap();
        let fifth = frame::look_through(HISTORY, &file, &bytes).unwrap().0[5].0;
        bytes[fifth + 60] ^= 1;
        fs::write(&file, bytes).unwrap();
        let (read, remarks) = ends(directory.path());
        let left = (1..=5).chain(u64::from(CHAPTER) + 1..=70);
        assert_eq!((read, remarks.len()), (left.collect::<Vec<_>>(), 1));
    }

    #[test]
    fn two_weeks_of_two_hundred_containers_fit_in_64_mebibytes_and_no_more_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (names, mut noise) = (names(200), 1);
        let mut writer = Writer::open(directory.path(), LIMITS).unwrap();
        // A tenth of two weeks: each page is as large as the other.
        (0..2016).for_each(|number| writer.write(page(number, &names, &mut noise)).unwrap());
        let files = store::files(HISTORY, directory.path()).unwrap();
        let bytes: u64 = files.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert!(10 * bytes <= LIMITS.max_bytes, "{bytes} bytes for a tenth");
    }
}
