//! Frames: how entries lie in a file. Each is compressed against the 64 KiB before it in its chapter, and checked.
//!
//! A file begins with a line of text that tells the format and who wrote it; frames follow. Whatever the bytes, reading
//! them finds the whole frames and says what lies between.

use super::Error;
use std::{ops::Range, path::Path};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

/// What files hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// What it is called, in files' first lines and for people.
    pub(super) name: &'static str,
    /// The format this program writes and reads. Fields may be added to what entries hold (with `#[serde(default)]`) without
    /// changing it; whatever else a reader of this format would stumble over makes a new one.
    pub(super) format: u32,
    /// How names of files in a directory end.
    pub(super) extension: &'static str,
}

/// Samples of an agent.
pub(super) const RECORDING: Kind = Kind { name: "recording", format: 1, extension: "monitor" };
/// Working sets.
pub(super) const HISTORY: Kind = Kind { name: "history", format: 1, extension: "history" };

/// Begins every frame. Not a text in any encoding, so that no name can look like it.
const SYNC: [u8; 8] = [0xf7, b'm', b'r', 0xf1, 0xc3, b'f', b'r', 0x8d];
/// LZ4's matches reach no further back.
const WINDOW_BYTES: usize = 64 << 10;
/// The longest first line.
pub(super) const TITLE_BYTES: usize = 128;
/// LZ4 never makes less than 1/255 of anything.
const LZ4_MOST: u64 = 256;

/// The head of a frame; its packed bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Head {
    sync: [u8; 8],
    /// CRC-32 (IEEE) of the rest of the head and the packed bytes.
    checksum: U32,
    /// Place in its chapter, from 0: the checkpoint's frame.
    sequence: U32,
    /// Which chapter: the wall time at which it began, in nanoseconds since 1970.
    chapter: U64,
    packed_bytes: U32,
    plain_bytes: U32,
    /// Wall time of the snapshot that ends it, in nanoseconds since 1970; 0 where it ends with none.
    time_ns: U64,
}

const _: () = assert!(size_of::<Head>() == 40);

impl Head {
    /// Whether a chapter begins with it.
    pub(super) fn is_checkpoint(&self) -> bool {
        self.sequence == 0
    }

    /// Whether it comes right after another one.
    pub(super) fn follows(&self, before: &Self) -> bool {
        self.chapter == before.chapter && self.sequence == before.sequence.get().wrapping_add(1)
    }

    pub(super) fn time_ns(&self) -> Option<u64> {
        Some(self.time_ns.get()).filter(|time| *time != 0)
    }

    /// Length of the frame, head and all.
    pub(super) fn frame_bytes(&self) -> usize {
        size_of::<Self>() + self.packed_bytes.get() as usize
    }

    fn checksum_of(&self, packed: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.as_bytes()[12..]);
        hasher.update(packed);
        hasher.finalize()
    }
}

impl Kind {
    /// The first line of a file.
    pub(super) fn title(self) -> String {
        format!("monitor {} {}, written by monitor {}\n", self.name, self.format, env!("CARGO_PKG_VERSION"))
    }

    /// Format, writer's version and length of a file's first line; none where it is something else.
    pub(super) fn parse_title(self, bytes: &[u8]) -> Option<(u32, String, usize)> {
        let line = bytes[..bytes.len().min(TITLE_BYTES)].split_inclusive(|&byte| byte == b'\n').next()?;
        let text = str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
        let (format, version) = text
            .strip_prefix("monitor ")?
            .strip_prefix(self.name)?
            .strip_prefix(' ')?
            .split_once(", written by monitor ")?;
        Some((format.parse().ok()?, version.to_owned(), line.len()))
    }
}

/// The way of one chapter's plain bytes into frames, and out of them.
#[derive(Debug, Default)]
pub(super) struct Chain {
    chapter: u64,
    sequence: u32,
    window: Vec<u8>,
}

impl Chain {
    /// Of a chapter that begins at a wall time.
    pub(super) fn new(chapter: u64) -> Self {
        Self { chapter, ..Self::default() }
    }

    /// The next frame.
    pub(super) fn pack(&mut self, plain: &[u8], time_ns: Option<u64>) -> Vec<u8> {
        let packed = lz4_flex::block::compress_with_dict(plain, &self.window);
        let mut head = Head {
            sync: SYNC,
            checksum: U32::ZERO,
            sequence: self.sequence.into(),
            chapter: self.chapter.into(),
            packed_bytes: (packed.len() as u32).into(),
            plain_bytes: (plain.len() as u32).into(),
            time_ns: time_ns.unwrap_or_default().into(),
        };
        head.checksum = head.checksum_of(&packed).into();
        self.advance(plain);
        [head.as_bytes(), &packed].concat()
    }

    /// What the next frame holds; none where its bytes are no packed ones.
    pub(super) fn unpack(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let (head, packed) = Head::read_from_prefix(frame).ok()?;
        if head.is_checkpoint() {
            *self = Self::default();
        }
        let plain_bytes = head.plain_bytes.get();
        if u64::from(plain_bytes) > LZ4_MOST * (packed.len() as u64 + 1) {
            return None;
        }
        let plain = lz4_flex::block::decompress_with_dict(packed, plain_bytes as usize, &self.window).ok()?;
        self.advance(&plain);
        Some(plain)
    }

    fn advance(&mut self, plain: &[u8]) {
        self.sequence += 1;
        let new = &plain[plain.len().saturating_sub(WINDOW_BYTES)..];
        let old = self.window.len().saturating_sub(WINDOW_BYTES - new.len());
        self.window.drain(..old);
        self.window.extend_from_slice(new);
    }
}

/// Frames, each with its place.
pub(super) type Found = Vec<(usize, Head)>;

/// The whole frames of a file, each with its place, and what is to be said of what lies between them.
pub(super) fn look_through(kind: Kind, path: &Path, bytes: &[u8]) -> Result<(Found, Vec<String>), Error> {
    let title = match kind.parse_title(bytes) {
        Some((format, _, title)) if format == kind.format => title,
        Some((format, version, _)) => return Err(Error::Format { path: path.to_owned(), format, version, kind }),
        None => return Err(Error::Foreign { path: path.to_owned(), kind }),
    };
    let (frames, damaged) = scan(&bytes[title..]);
    let name = path.display();
    let remarks = damaged.into_iter().map(|range| {
        let (start, length) = (title + range.start, range.len());
        if title + range.end == bytes.len() {
            format!("{name} ends with a torn frame, which is left out ({length} bytes)")
        } else {
            format!("{name} is damaged at byte {start}: {length} bytes are skipped, to the next whole frame")
        }
    });
    Ok((frames.into_iter().map(|(at, head)| (title + at, head)).collect(), remarks.collect()))
}

/// The whole frames among some bytes, each with its place, and what lies between them.
pub(super) fn scan(bytes: &[u8]) -> (Vec<(usize, Head)>, Vec<Range<usize>>) {
    let (mut frames, mut damaged) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < bytes.len() {
        if let Some(head) = whole_frame(&bytes[at..]) {
            frames.push((at, head));
            at += head.frame_bytes();
        } else {
            let next = bytes[at + 1..].windows(SYNC.len()).position(|window| window == SYNC);
            let end = next.map_or(bytes.len(), |next| at + 1 + next);
            extend(&mut damaged, at..end);
            at = end;
        }
    }
    (frames, damaged)
}

/// The head of the frame that some bytes begin with, if they hold all of it as it was written.
fn whole_frame(bytes: &[u8]) -> Option<Head> {
    let (head, rest) = Head::read_from_prefix(bytes).ok()?;
    let packed = rest.get(..head.packed_bytes.get() as usize)?;
    (head.sync == SYNC && head.checksum_of(packed) == head.checksum.get()).then_some(head)
}

fn extend(ranges: &mut Vec<Range<usize>>, range: Range<usize>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn places(frames: &[(usize, Head)]) -> Vec<usize> {
        frames.iter().map(|(at, _)| *at).collect()
    }

    #[test]
    fn a_title_tells_format_and_writer() {
        let title = RECORDING.title();
        let own = env!("CARGO_PKG_VERSION").to_owned();
        assert_eq!(
            RECORDING.parse_title(format!("{title}rest").as_bytes()),
            Some((RECORDING.format, own, title.len()))
        );
        for other in
            ["", "monitor", "monitor recording x, written by monitor 1\n", "monitor recording 1, written by monitor 1"]
        {
            assert_eq!(RECORDING.parse_title(other.as_bytes()), None, "{other}");
        }
        assert_eq!(HISTORY.parse_title(title.as_bytes()), None);
    }

    #[test]
    fn a_repeated_frame_is_small() {
        let mut chain = Chain::default();
        let plain: Vec<u8> = (0..5000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let (first, second) = (chain.pack(&plain, None), chain.pack(&plain, None));
        assert!(second.len() * 10 < first.len(), "{} {}", first.len(), second.len());
    }

    proptest! {
        #[test]
        fn frames_read_back_in_their_order(plains in prop::collection::vec(prop::collection::vec(0u8..4, 0..3000), 0..6)) {
            let (mut writer, mut reader) = (Chain::default(), Chain::default());
            let frames: Vec<_> = plains.iter().map(|plain| writer.pack(plain, Some(7))).collect();
            let bytes = frames.concat();
            let (found, damaged) = scan(&bytes);
            prop_assert!(damaged.is_empty());
            let read: Vec<_> =
                found.iter().map(|(at, head)| reader.unpack(&bytes[*at..at + head.frame_bytes()]).unwrap()).collect();
            prop_assert_eq!(read, plains);
        }

        #[test]
        fn damage_costs_the_frames_it_touches_and_no_others(
            lengths in prop::collection::vec(0usize..200, 1..6), at: prop::sample::Index, byte in 1u8..
        ) {
            let mut chain = Chain::default();
            let mut bytes: Vec<u8> = lengths.iter().flat_map(|length| chain.pack(&vec![9; *length], None)).collect();
            let before = places(&scan(&bytes).0);
            let at = at.index(bytes.len());
            bytes[at] ^= byte;
            let hit = before.iter().rposition(|place| *place <= at).unwrap();
            let (frames, damaged) = scan(&bytes);
            let left: Vec<_> = before.iter().enumerate().filter(|(i, _)| *i != hit).map(|(_, place)| *place).collect();
            prop_assert_eq!(places(&frames), left);
            prop_assert_eq!(damaged.len(), 1);
        }

        #[test]
        fn a_torn_end_costs_the_last_frame(lengths in prop::collection::vec(0usize..200, 1..6), cut: prop::sample::Index) {
            let mut chain = Chain::default();
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| chain.pack(&vec![9; *length], None)).collect();
            let all = places(&scan(&bytes).0);
            let cut = cut.index(bytes.len());
            let whole = all.iter().skip(1).chain([&bytes.len()]).filter(|end| **end <= cut).count();
            prop_assert_eq!(places(&scan(&bytes[..cut]).0), &all[..whole]);
        }

        #[test]
        fn no_bytes_are_a_panic(bytes: Vec<u8>) {
            let framed = [Chain::default().pack(b"x", None), SYNC.to_vec(), bytes].concat();
            prop_assert_eq!(scan(&framed).0.len(), 1);
            let _ = Chain::default().unpack(&framed);
            let _ = RECORDING.parse_title(&framed);
        }
    }
}
