//! Reading a recording: finds a moment, and drives a model there from the checkpoint before it.

use super::{
    At, Entry, Error, Identity, Origin,
    counters::Books,
    frame::{self, Chain, Head, RECORDING},
    moment, store,
};
use crate::{
    config::Config,
    event::Event,
    event_log::EventLog,
    ids::ProcessKey,
    model::{Model, snapshot::Snapshot},
    picture::{Judges, Picture},
    sample::Sample,
};
use std::{
    fs::File,
    io::{self, Read as _},
    mem,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Events that are kept of a recording: the last ones before the moment.
const EVENTS: usize = 100_000;

/// A recording that has been looked through.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    files: Vec<(PathBuf, File)>,
    frames: Vec<Frame>,
    remarks: Vec<String>,
}

/// Where a frame is.
#[derive(Clone, Copy, Debug)]
struct Frame {
    file: usize,
    offset: u64,
    head: Head,
}

/// What a recording tells of one moment.
#[derive(Debug)]
pub struct Recorded {
    /// Who recorded.
    pub origin: Origin,
    /// The snapshot, and what is concluded from those that were played, by the thresholds that nobody has set.
    pub picture: Arc<Picture>,
    /// What happened until then.
    pub events: Arc<EventLog>,
}

impl Recorded {
    /// The agent that recorded.
    pub fn agent(&self) -> &Identity {
        &self.origin.agent
    }
}

impl Recording {
    /// Whether there is a recording, or a directory that may hold some.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_at(path: &Path) -> io::Result<bool> {
        if path.is_dir() {
            return Ok(true);
        }
        let mut beginning = Vec::new();
        File::open(path)?.take(frame::TITLE_BYTES as u64).read_to_end(&mut beginning)?;
        Ok(RECORDING.parse_title(&beginning).is_some())
    }

    /// Looks through a file, or all segments of a directory.
    ///
    /// # Errors
    /// It cannot be read, or is no recording that this program knows.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut this = Self { path: path.to_owned(), files: Vec::new(), frames: Vec::new(), remarks: Vec::new() };
        let files = store::files(RECORDING, path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        for file in files {
            match this.look_through(&file) {
                // A segment may be deleted between the listing and its opening: it was the oldest.
                Err(Error::Read { source, .. }) if file != path && source.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        Ok(this)
    }

    /// What could not be read, a line each.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Goes to a moment. Events are those since the checkpoint before it, and detectors saw as much; or with `whole` all that the
    /// recording has until then, at most the last 100,000 events, which takes longer.
    ///
    /// # Errors
    /// There is no snapshot so early, or what is written is not understood.
    pub fn replay(&self, at: At, whole: bool) -> Result<Recorded, Error> {
        let end = moment::find(at, self.frames.iter().map(|frame| &frame.head)).ok_or_else(|| self.nothing_there())?;
        let chapter = || self.frames[..end].iter().rposition(|frame| frame.head.is_checkpoint());
        let start = if whole { 0 } else { chapter().unwrap_or_default() };
        let mut player = Player::new()?;
        self.play(&self.frames[start..=end], &mut player, |_, _| ())?;
        player.recorded().ok_or_else(|| self.nothing_there())
    }

    /// Goes through all snapshots from the beginning on, each with its wall time in nanoseconds since 1970.
    ///
    /// # Errors
    /// It cannot be read, or what is written is not understood.
    pub fn for_each_snapshot(&self, mut look: impl FnMut(u64, &Snapshot)) -> Result<(), Error> {
        self.play(&self.frames, &mut Player::new()?, |player, time_ns| {
            if let (Some(time_ns), Some(picture)) = (time_ns, player.picture.take()) {
                look(time_ns, &picture.snapshot);
            }
        })
    }

    /// Plays frames, and after each lets somebody look, with the time of the snapshot that the frame ends with.
    fn play(
        &self,
        frames: &[Frame],
        player: &mut Player,
        mut after: impl FnMut(&mut Player, Option<u64>),
    ) -> Result<(), Error> {
        let mut bytes = Vec::new();
        for frame in frames {
            let (path, file) = &self.files[frame.file];
            bytes.resize(frame.head.frame_bytes(), 0);
            let read = file.read_exact_at(&mut bytes, frame.offset);
            read.map_err(|source| Error::Read { path: path.clone(), source })?;
            if let Some(time_ns) = frame.head.time_ns() {
                player.wall = SystemTime::UNIX_EPOCH + Duration::from_nanos(time_ns);
            }
            player.play(&bytes).map_err(|reason| Error::Content { path: path.clone(), reason })?;
            after(player, frame.head.time_ns());
        }
        Ok(())
    }

    fn look_through(&mut self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let (found, remarks) = frame::look_through(RECORDING, path, &bytes)?;
        self.remarks.extend(remarks);
        let found = found.into_iter().map(|(at, head)| (at as u64, head));
        let name = path.display();
        let left_out = self.add_chains(found);
        if left_out > 0 {
            self.remarks.push(format!("{name}: {left_out} whole frames build on a damaged one and are left out"));
        }
        self.files.push((path.to_owned(), file));
        Ok(())
    }

    /// Adds the frames that have all before them in their chapter, and counts the others.
    fn add_chains(&mut self, found: impl Iterator<Item = (u64, Head)>) -> usize {
        let (mut before, mut left_out) = (None, 0);
        for (offset, head) in found {
            if head.is_checkpoint() || before.is_some_and(|before| head.follows(&before)) {
                self.frames.push(Frame { file: self.files.len(), offset, head });
                before = Some(head);
            } else {
                left_out += 1;
            }
        }
        left_out
    }

    fn nothing_there(&self) -> Error {
        let path = self.path.clone();
        let mut times = self.frames.iter().filter_map(|frame| frame.head.time_ns());
        match (times.next(), times.next_back()) {
            (None, _) => Error::Empty { path },
            (Some(begin), end) => {
                let (begin, end) = (moment::show(begin), moment::show(end.unwrap_or(begin)));
                Error::TooEarly { path, begin, end }
            }
        }
    }
}

/// A model that is driven by entries.
struct Player {
    /// When the snapshot was taken that ends the frame.
    wall: SystemTime,
    chain: Chain,
    books: Books,
    stage: Option<(Origin, Model)>,
    last: Arc<Sample>,
    resets: Vec<ProcessKey>,
    judges: Judges,
    picture: Option<Picture>,
    events: EventLog,
}

impl Player {
    fn new() -> Result<Self, Error> {
        Ok(Self {
            wall: SystemTime::UNIX_EPOCH,
            chain: Chain::default(),
            books: Books::default(),
            stage: None,
            last: Arc::default(),
            resets: Vec::new(),
            judges: Judges::new(&Config::default())?,
            picture: None,
            events: EventLog::new(EVENTS),
        })
    }

    /// Plays one frame. An error says what is not understood.
    fn play(&mut self, frame: &[u8]) -> Result<(), String> {
        let plain = self.chain.unpack(frame).ok_or("a frame that cannot be unpacked")?;
        let mut rest = &plain[..];
        while !rest.is_empty() {
            let entry = rmp_serde::from_read(&mut rest).map_err(|error| error.to_string())?;
            self.perform(entry)?;
        }
        Ok(())
    }

    fn perform(&mut self, entry: Entry) -> Result<(), String> {
        if let Entry::Checkpoint(checkpoint) = entry {
            self.books = Books::default();
            self.stage = Some((checkpoint.origin, checkpoint.model));
            return Ok(());
        }
        let Some((_, model)) = &mut self.stage else { return Err("a chapter without a checkpoint".to_owned()) };
        match entry {
            Entry::Checkpoint(_) => {}
            Entry::Sample { sample, counters } => {
                let mut sample = Arc::unwrap_or_clone(sample);
                if let Some(changes) = counters {
                    sample.counters = Some(self.books.read(&changes).ok_or("counters that fit nothing")?);
                }
                // What could be harvested is of no interest: what was is an entry of its own.
                model.take(&sample).events.into_iter().for_each(|event: Event| self.events.push(event));
                self.resets.append(&mut sample.resets.clone());
                self.last = Arc::new(sample);
            }
            Entry::Forgotten(harvest) => {
                self.books.forget(&harvest);
                model.forget(&harvest);
            }
            Entry::Snapshot => {
                let snapshot = Arc::new(model.snapshot(&self.last));
                let (picture, _) = self.judges.take(snapshot, self.wall, &mem::take(&mut self.resets));
                self.picture = Some(picture);
            }
        }
        Ok(())
    }

    fn recorded(self) -> Option<Recorded> {
        let ((origin, _), picture) = (self.stage?, self.picture?);
        Some(Recorded { origin, picture: Arc::new(picture), events: Arc::new(self.events) })
    }
}
