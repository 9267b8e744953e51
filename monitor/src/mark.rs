//! Marks: what a training loop tells of where it is, so that numbers can be laid beside steps and epochs.
//!
//! Everything of a mark is bounded, as it travels with every snapshot after it. So is what waits to be taken in: only the
//! newest of each tree counts at a tick, so however often one is posted, it costs the loop and a recording one for each tick.

use crate::{
    ids::{ProcessId, ProcessKey, Tgid},
    inbox::{Inbox, Refused},
    posted,
    time::BootTime,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Trees whose marks may wait for a tick; who posts one more is told so.
pub const WAITING: usize = 64;

/// Where a training loop is. In what was posted, none leaves a part as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mark {
    /// Its step, or batch.
    pub step: Option<u64>,
    /// Its epoch.
    pub epoch: Option<u64>,
    /// Whatever else it tells.
    pub labels: Option<BTreeMap<String, String>>,
}

/// What was posted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Posted {
    /// The mark.
    pub mark: Mark,
    /// Any process of the tree that it is of; none for the tree of whoever posts it.
    pub pid: Option<Tgid>,
}

/// A mark on its way to the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// When it was posted.
    pub time: BootTime,
    /// A process of the tree that it is of; none where the kernel did not tell who posted it.
    pub by: Option<ProcessId>,
    /// The mark.
    pub mark: Mark,
}

/// Marks that wait for the next tick, the newest of each tree.
#[derive(Debug, Default)]
pub struct Marks(Inbox<Waiting>);

/// A mark, with the tree it is of, or the process where the tree is not known yet.
type Waiting = (Option<ProcessKey>, Told);

impl Marks {
    /// Leaves a mark. One of the same tree that still waits is part of it: what it leaves out stays as that had it.
    ///
    /// # Errors
    /// There is no room, or the agent ends.
    pub fn post(&self, tree: Option<ProcessKey>, mut told: Told) -> Result<(), Refused> {
        self.0.leave(|waiting| {
            if let Some(place) = waiting.iter().position(|(of, _)| *of == tree) {
                let (_, before) = waiting.remove(place);
                told.mark = told.mark.after(Some(&before.mark));
            } else if waiting.len() >= WAITING {
                return Err(Refused::Full);
            }
            waiting.push((tree, told));
            Ok(())
        })
    }

    /// All that wait, in the order in which they came.
    pub fn take(&self) -> Vec<Told> {
        self.0.take().into_iter().map(|(_, told)| told).collect()
    }

    /// From here on nothing is taken.
    pub fn close(&self) {
        self.0.close();
    }
}

impl Posted {
    /// From a JSON object with at least one of `step`, `epoch` and `labels`, and perhaps `pid`; null is as if it were not
    /// there.
    ///
    /// # Errors
    /// One sentence that names the field at fault and what it takes.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let (mut mark, mut pid) = (Mark::default(), None);
        for (name, value) in posted::fields(body, "{\"step\": 10, \"epoch\": 1}")? {
            match name.as_str() {
                "step" => mark.step = Some(posted::number(&name, &value)?),
                "epoch" => mark.epoch = Some(posted::number(&name, &value)?),
                "labels" => mark.labels = Some(posted::labels(value)?),
                "pid" => pid = Some(posted::process(&value)?),
                _ => return Err(format!("there is no field {name:?}: a mark has step, epoch, labels and pid")),
            }
        }
        if mark == Mark::default() {
            return Err("the mark is empty: give step, epoch or labels".to_owned());
        }
        Ok(Self { mark, pid })
    }
}

impl Mark {
    /// This mark, with what it leaves out as it was.
    #[must_use]
    pub fn after(&self, before: Option<&Self>) -> Self {
        let before = before.cloned().unwrap_or_default();
        Self {
            step: self.step.or(before.step),
            epoch: self.epoch.or(before.epoch),
            labels: self.labels.clone().or(before.labels),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusal(body: &str) -> String {
        Posted::parse(body.as_bytes()).unwrap_err()
    }

    fn key(pid: u32) -> Option<ProcessKey> {
        Some(ProcessKey { tgid: Tgid(pid), start_tick: 0 })
    }

    fn told(step: Option<u64>, epoch: Option<u64>) -> Told {
        Told { time: BootTime(0), by: None, mark: Mark { step, epoch, labels: None } }
    }

    #[test]
    fn a_mark_is_read_whole_or_in_part() {
        let whole = Posted::parse(br#"{"step": 7, "epoch": 2, "labels": {"run": "a"}}"#).unwrap().mark;
        let labels = Some([("run".to_owned(), "a".to_owned())].into());
        assert_eq!(whole, Mark { step: Some(7), epoch: Some(2), labels });
        let step = Posted::parse(br#"{"step": 8, "epoch": null, "pid": null}"#).unwrap().mark;
        assert_eq!(step, Mark { step: Some(8), ..Mark::default() });
        assert_eq!(step.after(Some(&whole)), Mark { step: Some(8), ..whole.clone() });
        assert_eq!(step.after(None), step);
    }

    #[test]
    fn refusals_name_the_field() {
        assert!(refusal("{").starts_with("the body is not JSON: "));
        assert!(refusal("[1]").starts_with("the body is no object"));
        assert!(refusal("{}").starts_with("the mark is empty"));
        assert_eq!(refusal(r#"{"step": -1}"#), "step takes a whole number from 0, not -1");
        assert_eq!(refusal(r#"{"epoch": "2"}"#), "epoch takes a whole number from 0, not \"2\"");
        assert_eq!(refusal(r#"{"loss": 0.5}"#), "there is no field \"loss\": a mark has step, epoch, labels and pid");
        assert_eq!(refusal(r#"{"step": 1, "pid": 0}"#), "pid takes the number of a process, not 0");
        assert!(refusal(r#"{"pid": 7}"#).starts_with("the mark is empty"));
        assert!(refusal(r#"{"labels": ["a"]}"#).starts_with("labels takes an object"));
        assert!(refusal(r#"{"labels": {"loss": 1}}"#).starts_with("labels.loss takes a text"));
        assert!(refusal(r#"{"labels": {"a": "b\nc"}}"#).starts_with("labels.a takes a text"));
        assert!(refusal(r#"{"labels": {"": "b"}}"#).starts_with("labels takes names"));
    }

    #[test]
    fn of_each_tree_the_newest_waits_with_what_it_left_out() {
        let inbox = Marks::default();
        for (tree, step, epoch) in [(1, Some(1), Some(7)), (2, Some(5), None), (1, Some(2), None)] {
            inbox.post(key(tree), told(step, epoch)).unwrap();
        }
        assert_eq!(inbox.take(), [told(Some(5), None), told(Some(2), Some(7))]);
        assert_eq!(inbox.take(), []);
    }

    #[test]
    fn what_waits_is_bounded_and_ends_with_the_agent() {
        let inbox = Marks::default();
        for tree in 0..WAITING {
            inbox.post(key(tree as u32), told(Some(1), None)).unwrap();
        }
        assert_eq!(inbox.post(key(WAITING as u32), told(Some(1), None)), Err(Refused::Full));
        inbox.post(key(0), told(Some(2), None)).unwrap();
        inbox.close();
        assert_eq!(inbox.post(key(0), told(Some(3), None)), Err(Refused::Closed));
        assert_eq!(inbox.take().len(), WAITING);
    }

    proptest! {
        #[test]
        fn no_body_is_a_panic(body: Vec<u8>) {
            let _ = Posted::parse(&body);
        }
    }
}
