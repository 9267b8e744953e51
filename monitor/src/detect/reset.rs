//! Wishes that what was seen of a process tree be forgotten, such as after a model was loaded anew.

use crate::{
    ids::ProcessKey,
    inbox::{Inbox, Refused},
};

/// So many wait for a tick at most.
const WAITING: usize = 64;

/// Trees that wait for the next tick.
#[derive(Debug, Default)]
pub struct Resets(Inbox<ProcessKey>);

impl Resets {
    /// Leaves a wish, unless it waits already.
    ///
    /// # Errors
    /// There is no room, or the agent ends.
    pub fn post(&self, tree: ProcessKey) -> Result<(), Refused> {
        self.0.leave(|waiting| {
            if waiting.contains(&tree) {
                return Ok(());
            }
            if waiting.len() >= WAITING {
                return Err(Refused::Full);
            }
            waiting.push(tree);
            Ok(())
        })
    }

    /// All that wait.
    pub fn take(&self) -> Vec<ProcessKey> {
        self.0.take()
    }

    /// From here on nothing is taken.
    pub fn close(&self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Tgid;

    #[test]
    fn a_wish_waits_once_and_there_is_an_end_of_room() {
        let resets = Resets::default();
        let key = |tgid| ProcessKey { tgid: Tgid(tgid), start_tick: 0 };
        assert!((0..WAITING as u32).all(|tgid| resets.post(key(tgid)).is_ok()));
        assert_eq!((resets.post(key(0)), resets.post(key(WAITING as u32))), (Ok(()), Err(Refused::Full)));
        assert_eq!((resets.take().len(), resets.take().len()), (WAITING, 0));
    }
}
