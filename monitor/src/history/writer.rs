//! The thread that writes a recording: entries into frames, frames into files, and what to do when the disk refuses.

use super::{Checkpoint, Entry, Error, Origin, Status, counters::Books, frame::Chain, store::Store};
use crate::{
    model::Model,
    sample::{Harvest, Sample},
};
use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

/// What is written is made durable this often; a crash of the machine costs as much. (One of the agent costs nothing.)
const SYNC_EVERY: Duration = Duration::from_secs(5);
/// Entries between two snapshots are written when there are so many bytes of them.
const FRAME_BYTES: usize = 64 << 10;
/// Or when they are this old.
const FRAME_AGE: Duration = Duration::from_secs(1);
/// A chapter is at least this long, and its frames several times as large as its checkpoint, so that checkpoints cost little.
const CHAPTER_AGE: Duration = Duration::from_secs(5 * 60);
/// How many times.
const CHAPTER_FRAMES: u64 = 4;
/// But it is no longer than this, so that a reader need not go further back.
const CHAPTER_AGE_MOST: Duration = Duration::from_secs(30 * 60);
/// After an error the disk is tried again this often.
const RETRY_EVERY: Duration = Duration::from_secs(30);

/// What the loop hands over.
pub(super) enum Message {
    Checkpoint { model: Box<Model>, time_ns: u64 },
    Sample(Arc<Sample>),
    Forgotten(Harvest),
    Snapshot { time_ns: u64 },
}

/// Writes until the loop has nothing more to say.
pub(super) struct Writer {
    store: Store,
    origin: Origin,
    status: Arc<Status>,
    phase: Phase,
    synced: Instant,
}

enum Phase {
    /// The next checkpoint begins a chapter.
    Ready,
    Writing(Box<Chapter>),
    /// The disk refused, and will be tried again then, if ever.
    Stopped(Option<Instant>),
}

/// The chapter that is being written.
struct Chapter {
    chain: Chain,
    books: Books,
    /// Entries not yet in a frame.
    plain: Vec<u8>,
    began: Instant,
    written: Instant,
    checkpoint_bytes: u64,
    later_bytes: u64,
    /// Whether a checkpoint was asked for, to begin the next one.
    is_ending: bool,
}

impl Chapter {
    fn new(time_ns: u64) -> Self {
        let now = Instant::now();
        Self {
            chain: Chain::new(time_ns),
            books: Books::default(),
            plain: Vec::new(),
            began: now,
            written: now,
            checkpoint_bytes: 0,
            later_bytes: 0,
            is_ending: false,
        }
    }

    fn is_long(&self) -> bool {
        let age = self.began.elapsed();
        age >= CHAPTER_AGE_MOST || age >= CHAPTER_AGE && self.later_bytes >= CHAPTER_FRAMES * self.checkpoint_bytes
    }
}

impl Writer {
    pub(super) fn new(store: Store, origin: Origin, status: Arc<Status>) -> Self {
        Self { store, origin, status, phase: Phase::Ready, synced: Instant::now() }
    }

    /// Writes messages until their sender has gone.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let done = match messages.recv_timeout(SYNC_EVERY) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => Ok(()),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Err(error) = done.and_then(|()| self.look_after()) {
                self.stop(error);
            }
        }
        if let Err(error) = self.write_frame(None).and_then(|()| self.store.sync()) {
            self.stop(error);
        }
    }

    fn take(&mut self, message: Message) -> Result<(), Error> {
        if let Message::Checkpoint { model, time_ns } = message {
            return if matches!(self.phase, Phase::Stopped(_)) { Ok(()) } else { self.begin_chapter(*model, time_ns) };
        }
        let Phase::Writing(chapter) = &mut self.phase else {
            if matches!(message, Message::Sample(_)) {
                self.status.lost_sample();
            }
            return Ok(());
        };
        match message {
            Message::Checkpoint { .. } => Ok(()),
            Message::Sample(sample) => {
                let counters = sample.counters.as_ref().map(|counters| chapter.books.write(counters));
                self.add(&Entry::Sample { sample, counters })
            }
            Message::Forgotten(harvest) => {
                chapter.books.forget(&harvest);
                self.add(&Entry::Forgotten(harvest))
            }
            Message::Snapshot { time_ns } => {
                self.add(&Entry::Snapshot)?;
                self.write_frame(Some(time_ns))
            }
        }
    }

    fn begin_chapter(&mut self, model: Model, time_ns: u64) -> Result<(), Error> {
        self.write_frame(None)?;
        self.store.begin_chapter()?;
        self.phase = Phase::Writing(Box::new(Chapter::new(time_ns)));
        let checkpoint = Checkpoint { origin: self.origin.clone(), model };
        self.add(&Entry::Checkpoint(Box::new(checkpoint)))?;
        self.write_frame(None)?;
        if let Phase::Writing(chapter) = &mut self.phase {
            chapter.checkpoint_bytes = std::mem::take(&mut chapter.later_bytes);
        }
        if self.status.set_stopped(None).is_some() {
            log::info!("recording goes on");
        }
        Ok(())
    }

    fn add(&mut self, entry: &Entry) -> Result<(), Error> {
        let Phase::Writing(chapter) = &mut self.phase else { return Ok(()) };
        if let Err(error) = rmp_serde::encode::write_named(&mut chapter.plain, entry) {
            return Err(self.store.error(io::Error::other(error)));
        }
        let is_due = chapter.plain.len() >= FRAME_BYTES || chapter.written.elapsed() >= FRAME_AGE;
        // A snapshot ends its frame, and its caller does.
        if is_due && !matches!(entry, Entry::Snapshot) { self.write_frame(None) } else { Ok(()) }
    }

    /// Writes what has come together as a frame.
    fn write_frame(&mut self, snapshot_time_ns: Option<u64>) -> Result<(), Error> {
        let Phase::Writing(chapter) = &mut self.phase else { return Ok(()) };
        if chapter.plain.is_empty() {
            return Ok(());
        }
        let frame = chapter.chain.pack(&chapter.plain, snapshot_time_ns);
        chapter.plain.clear();
        chapter.written = Instant::now();
        chapter.later_bytes += frame.len() as u64;
        self.store.append(&frame)?;
        self.status.wrote(frame.len(), u64::from(snapshot_time_ns.is_some()));
        Ok(())
    }

    /// What time brings: the next chapter, another try, durability.
    fn look_after(&mut self) -> Result<(), Error> {
        match &mut self.phase {
            Phase::Writing(chapter) if !chapter.is_ending && (chapter.is_long() || self.store.is_segment_over()) => {
                chapter.is_ending = true;
                self.status.want_checkpoint();
            }
            Phase::Stopped(Some(retry_at)) if Instant::now() >= *retry_at => {
                self.phase = Phase::Ready;
                self.status.want_checkpoint();
            }
            _ => {}
        }
        if self.synced.elapsed() >= SYNC_EVERY {
            self.synced = Instant::now();
            self.store.sync()?;
        }
        Ok(())
    }

    /// Gives up the chapter, says so once, and tries again later, unless nothing can come of that.
    fn stop(&mut self, error: Error) {
        let retry_at = (!matches!(error, Error::Full { .. })).then(|| Instant::now() + RETRY_EVERY);
        self.phase = Phase::Stopped(retry_at);
        self.store.give_up();
        let reason = format!("{:#}", anyhow::Error::new(error));
        if self.status.set_stopped(Some(reason.clone())).is_none() {
            log::error!("recording has stopped: {reason}");
        }
    }
}
