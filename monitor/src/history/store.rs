//! The files of a recording, or of a history: one file that stops at its limit, or a directory of segments, the oldest of which go.
//!
//! Whatever is written is appended by whole frames. Files are for their owner alone: command lines may hold secrets.

use super::{Error, frame::Kind, moment};
use crate::units::show_bytes;
use std::{
    collections::VecDeque,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of all files together, in bytes.
    pub max_bytes: u64,
    /// In a directory, what is older goes. A file has no use for it.
    pub keep: Duration,
}

/// A directory is made of at least so many segments, so that little of it goes at once.
const SEGMENTS: u32 = 16;
/// The largest segment.
const SEGMENT_BYTES_MOST: u64 = 16 << 20;

/// Where frames go.
#[derive(Debug)]
pub(super) struct Store {
    kind: Kind,
    place: Place,
    limits: Limits,
    /// None before the first chapter, and after an error.
    current: Option<Segment>,
    /// The closed segments of a directory, oldest first.
    past: VecDeque<Past>,
}

#[derive(Debug)]
enum Place {
    File(PathBuf),
    Directory(PathBuf),
}

/// The file that is being written.
#[derive(Debug)]
struct Segment {
    path: PathBuf,
    file: File,
    began: SystemTime,
    bytes: u64,
    is_synced: bool,
}

/// A closed segment.
#[derive(Debug)]
struct Past {
    path: PathBuf,
    began: SystemTime,
    bytes: u64,
}

/// Whether a path means a directory: it is one, or says so by a slash at its end.
fn is_directory(path: &Path) -> bool {
    path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// The files of that kind, oldest first: segments of a directory, or the file itself.
pub(super) fn files(kind: Kind, path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    Ok(segments(kind, path)?.into_iter().map(|(_, path)| path).collect())
}

fn segments(kind: Kind, directory: &Path) -> io::Result<Vec<(SystemTime, PathBuf)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let began = name.filter(|_| path.extension().is_some_and(|e| e == kind.extension)).and_then(moment::parse_name);
        segments.extend(began.map(|began| (began, path)));
    }
    segments.sort();
    Ok(segments)
}

impl Store {
    /// Sees that the place can be written. A file that is there must be one of this kind and format: it is continued.
    pub(super) fn open(kind: Kind, path: &Path, limits: Limits) -> Result<Self, Error> {
        let mut store = if is_directory(path) {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| failed(path, e))?;
            let past = segments(kind, path).map_err(|e| failed(path, e))?.into_iter().filter_map(|(began, path)| {
                let bytes = fs::metadata(&path).ok()?.len();
                Some(Past { path, began, bytes })
            });
            Self { kind, place: Place::Directory(path.to_owned()), limits, current: None, past: past.collect() }
        } else {
            Self { kind, place: Place::File(path.to_owned()), limits, current: None, past: VecDeque::new() }
        };
        store.begin_segment()?;
        Ok(store)
    }

    /// Begins the next segment where one is due.
    pub(super) fn begin_chapter(&mut self) -> Result<(), Error> {
        if self.current.is_some() && !self.is_segment_over() { Ok(()) } else { self.begin_segment() }
    }

    /// Whether a new chapter should begin a new segment.
    pub(super) fn is_segment_over(&self) -> bool {
        let Place::Directory(_) = self.place else { return false };
        self.current.as_ref().is_some_and(|segment| {
            segment.bytes >= (self.limits.max_bytes / u64::from(SEGMENTS)).min(SEGMENT_BYTES_MOST)
                || segment.began.elapsed().is_ok_and(|age| age >= self.limits.keep / SEGMENTS)
        })
    }

    /// Writes one frame: all of it, or none.
    pub(super) fn append(&mut self, frame: &[u8]) -> Result<(), Error> {
        self.make_room(frame.len() as u64)?;
        let Some(segment) = &mut self.current else { return Ok(()) };
        segment.is_synced = false;
        if let Err(error) = segment.file.write_all(frame) {
            // The part that was written is of no use; where it cannot be cut off, readers skip it.
            let _ = segment.file.set_len(segment.bytes);
            return Err(failed(&segment.path, error));
        }
        segment.bytes += frame.len() as u64;
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        let Some(segment) = self.current.as_mut().filter(|segment| !segment.is_synced) else { return Ok(()) };
        segment.is_synced = true;
        segment.file.sync_data().map_err(|error| failed(&segment.path, error))
    }

    /// Ends the segment, whose disk refuses.
    pub(super) fn give_up(&mut self) {
        if let Some(Segment { path, began, bytes, .. }) = self.current.take() {
            self.past.push_back(Past { path, began, bytes });
        }
    }

    /// An error of this recording.
    pub(super) fn error(&self, source: io::Error) -> Error {
        let (Place::File(path) | Place::Directory(path)) = &self.place;
        failed(path, source)
    }

    fn begin_segment(&mut self) -> Result<(), Error> {
        self.sync()?;
        self.give_up();
        let segment = match &self.place {
            Place::File(path) => {
                self.past.clear();
                continued(self.kind, path)?
            }
            Place::Directory(directory) => {
                // Names are in order even where the wall clock is set back.
                let after = self.past.back().map(|past| past.began + Duration::from_millis(1));
                let began = after.map_or_else(SystemTime::now, |after| after.max(SystemTime::now()));
                {
                    let name = format!("{}.{}", moment::name(began), self.kind.extension);
                    made(self.kind, &directory.join(name), began)?
                }
            }
        };
        self.current = Some(segment);
        self.forget_old();
        Ok(())
    }

    /// Deletes the segments that end before what is to be kept.
    fn forget_old(&mut self) {
        let began: Vec<_> = self.past.iter().skip(1).map(|past| past.began).collect();
        let is_old = |end: &SystemTime| end.elapsed().is_ok_and(|age| age > self.limits.keep);
        for _ in 0..began.iter().take_while(|end| is_old(end)).count() {
            self.forget_oldest();
        }
    }

    fn make_room(&mut self, bytes: u64) -> Result<(), Error> {
        let Some(segment) = &self.current else { return Ok(()) };
        let needed = segment.bytes + bytes;
        let full = (needed > self.limits.max_bytes)
            .then(|| Error::Full { path: segment.path.clone(), limit: show_bytes(self.limits.max_bytes) });
        while self.past.iter().map(|past| past.bytes).sum::<u64>() + needed > self.limits.max_bytes
            && self.forget_oldest()
        {}
        full.map_or(Ok(()), Err)
    }

    fn forget_oldest(&mut self) -> bool {
        let Some(oldest) = self.past.pop_front() else { return false };
        if let Err(error) = fs::remove_file(&oldest.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("cannot delete the old segment {}: {error}", oldest.path.display());
        }
        true
    }
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::Write { path: path.to_owned(), source }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o600);
    options
}

/// A new segment.
fn made(kind: Kind, path: &Path, began: SystemTime) -> Result<Segment, Error> {
    let file = options().create_new(true).open(path).map_err(|error| failed(path, error))?;
    titled(kind, Segment { path: path.to_owned(), file, began, bytes: 0, is_synced: false })
}

/// The one file: a new one, or a recording that goes on with a new chapter.
fn continued(kind: Kind, path: &Path) -> Result<Segment, Error> {
    let file = options().create(true).read(true).open(path).map_err(|error| failed(path, error))?;
    let bytes = file.metadata().map_err(|error| failed(path, error))?.len();
    let segment = Segment { path: path.to_owned(), file, began: SystemTime::now(), bytes, is_synced: false };
    if bytes == 0 {
        return titled(kind, segment);
    }
    let mut head = Vec::new();
    (&segment.file).take(256).read_to_end(&mut head).map_err(|error| failed(path, error))?;
    match kind.parse_title(&head) {
        Some((format, ..)) if format == kind.format => Ok(segment),
        Some((format, version, _)) => Err(Error::Format { path: path.to_owned(), format, version, kind }),
        None => Err(Error::Foreign { path: path.to_owned(), kind }),
    }
}

fn titled(kind: Kind, mut segment: Segment) -> Result<Segment, Error> {
    let title = kind.title();
    segment.file.write_all(title.as_bytes()).map_err(|error| failed(&segment.path, error))?;
    segment.bytes = title.len() as u64;
    Ok(segment)
}

#[cfg(test)]
mod tests {
    use super::{super::frame::RECORDING, *};
    use std::os::unix::fs::PermissionsExt as _;

    const LIMITS: Limits = Limits { max_bytes: 16_000, keep: Duration::from_secs(3600) };

    #[test]
    fn a_directory_keeps_the_newest_within_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("notes.txt"), "mine").unwrap();
        let mut store = Store::open(RECORDING, directory.path(), LIMITS).unwrap();
        for _ in 0..100 {
            store.begin_chapter().unwrap();
            store.append(&[1; 1000]).unwrap();
        }
        let sizes: Vec<_> =
            files(RECORDING, directory.path()).unwrap().iter().map(|path| fs::metadata(path).unwrap().len()).collect();
        assert!(sizes.iter().sum::<u64>() <= LIMITS.max_bytes && sizes.len() >= 14, "{sizes:?}");
        assert!(directory.path().join("notes.txt").exists(), "what is no segment is not ours to delete");
        let mode = fs::metadata(&files(RECORDING, directory.path()).unwrap()[0]).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_older_than_wanted_goes_and_what_reaches_into_it_stays() {
        let directory = tempfile::tempdir().unwrap();
        let hours = |hours: u64| SystemTime::now() - Duration::from_secs(hours * 3600);
        for began in [hours(30), hours(20), hours(2), hours(0)] {
            fs::write(directory.path().join(format!("{}.monitor", moment::name(began))), "x").unwrap();
        }
        drop(
            Store::open(RECORDING, directory.path(), Limits { keep: Duration::from_secs(3 * 3600), ..LIMITS }).unwrap(),
        );
        assert_eq!(files(RECORDING, directory.path()).unwrap().len(), 4, "20 h, 2 h, now and the new one");
    }

    #[test]
    fn a_file_is_continued_until_it_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.rec");
        for _ in 0..3 {
            let mut store = Store::open(RECORDING, &path, LIMITS).unwrap();
            store.append(&[1; 4000]).unwrap();
        }
        let mut store = Store::open(RECORDING, &path, LIMITS).unwrap();
        assert!(matches!(store.append(&[1; 4000]), Err(Error::Full { .. })));
        assert_eq!(fs::metadata(&path).unwrap().len(), 12_000 + RECORDING.title().len() as u64);
    }

    #[test]
    fn somebody_elses_file_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("diary");
        fs::write(&path, "dear diary").unwrap();
        assert!(matches!(Store::open(RECORDING, &path, LIMITS), Err(Error::Foreign { .. })));
        fs::write(&path, "monitor recording 99, written by monitor 9.9\n").unwrap();
        let error = Store::open(RECORDING, &path, LIMITS).unwrap_err().to_string();
        assert!(error.contains("written by monitor 9.9 in format 99"), "{error}");
    }

    #[test]
    fn a_disk_that_is_full_is_an_error_and_can_be_tried_again() {
        let mut store = Store::open(RECORDING, Path::new("/dev/full"), LIMITS);
        assert!(matches!(store, Err(Error::Write { .. })));
        let directory = tempfile::tempdir().unwrap();
        store = Store::open(RECORDING, directory.path(), LIMITS);
        let mut store = store.unwrap();
        store.give_up();
        store.begin_chapter().unwrap();
        store.append(b"x").unwrap();
        assert_eq!(files(RECORDING, directory.path()).unwrap().len(), 2);
    }
}
