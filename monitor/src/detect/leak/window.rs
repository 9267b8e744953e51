//! Up to 24 hours of one subject in 10 KiB: five rings of blocks, each six times coarser than the one before. Adding a point costs
//! the same however much there is.

use std::collections::VecDeque;

/// Length of a block, by level, in seconds.
const PERIODS: [f64; LEVELS] = [1.0, 6.0, 37.5, 225.0, 1350.0];
/// Rings.
pub(super) const LEVELS: usize = 5;
/// Blocks in a ring: those of the coarsest are 24 hours.
const BLOCKS: usize = 64;
/// Blocks up to this length are short, in seconds.
const SHORT: f64 = 60.0;
/// A window is not looked at more often.
const SECONDS_BETWEEN: f64 = 8.0;

/// The lowest point of a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Block {
    /// When it was.
    pub(super) time: f64,
    /// Requests until then; zero where nobody counts them.
    pub(super) requests: f64,
    /// The memory that is judged.
    pub(super) bytes: f64,
    /// The least working set of the same stretch.
    pub(super) working_set: f64,
}

/// A ring of blocks of one length. Blocks are there only for stretches that had points.
#[derive(Clone, Debug)]
pub(super) struct Level {
    period: f64,
    open: Option<Block>,
    slot: f64,
    blocks: VecDeque<Block>,
    /// Blocks that were added since somebody looked.
    fresh: usize,
}

/// All rings, the finest first.
pub(super) fn levels() -> [Level; LEVELS] {
    PERIODS.map(|period| Level { period, open: None, slot: 0.0, blocks: VecDeque::new(), fresh: 0 })
}

impl Level {
    /// Takes a point; whether a block was completed by it.
    pub(super) fn push(&mut self, point: Block) {
        let slot = (point.time / self.period).floor();
        match &mut self.open {
            Some(open) if slot == self.slot => {
                let working_set = open.working_set.min(point.working_set);
                if point.bytes < open.bytes {
                    *open = point;
                }
                open.working_set = working_set;
            }
            open => {
                if let Some(done) = open.replace(point) {
                    if self.blocks.len() == BLOCKS {
                        self.blocks.pop_front();
                    }
                    self.blocks.push_back(done);
                    self.fresh += 1;
                }
                self.slot = slot;
            }
        }
    }

    /// Whether enough is new to look again: a block, and of short ones a sixteenth of what there is, and some seconds of them.
    pub(super) fn is_due(&self) -> bool {
        let enough = if self.period < SHORT { 1 + self.blocks.len() / 16 } else { 1 };
        self.fresh >= enough && self.fresh as f64 * self.period >= SECONDS_BETWEEN
    }

    /// Whether anything is new.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh > 0
    }

    /// The blocks that are complete, the oldest first, to be looked at.
    pub(super) fn look(&mut self) -> &[Block] {
        self.fresh = 0;
        self.blocks.make_contiguous()
    }
}

#[cfg(test)]
impl Level {
    /// What it holds beside itself.
    pub(super) fn heap_bytes(&self) -> usize {
        self.blocks.capacity() * size_of::<Block>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(time: f64, bytes: f64) -> Block {
        Block { time, requests: time * 10.0, bytes, working_set: bytes * 2.0 }
    }

    #[test]
    fn a_block_is_the_lowest_point_of_its_stretch() {
        let mut levels = levels();
        let bytes = [9.0, 7.0, 8.0, 3.0, 4.0, 5.0, 6.0];
        bytes.iter().enumerate().for_each(|(i, bytes)| levels[1].push(point(i as f64, *bytes)));
        assert_eq!(levels[1].look(), [point(3.0, 3.0)], "the second block is not complete yet");
    }

    #[test]
    fn a_day_is_kept_and_no_more() {
        let mut levels = levels();
        for second in 0..30 * 3600 {
            levels.iter_mut().for_each(|level| level.push(point(f64::from(second), 1.0)));
        }
        let spans = levels.map(|mut level| {
            let blocks = level.look();
            (blocks.len(), blocks[blocks.len() - 1].time - blocks[0].time)
        });
        assert_eq!(spans.map(|(count, _)| count), [64; LEVELS]);
        assert_eq!((spans[0].1, spans[4].1), (63.0, 63.0 * 1350.0));
    }
}
