//! Requests that programs count themselves, for those whose requests the kernel cannot tell apart: pipelined ones, HTTP/2,
//! jobs from a queue.
//!
//! Every count that is taken counts; what there is no room for is refused, so that who posts it knows. What waits is bounded, of
//! each process too, so that none keeps out another's.

use crate::{
    ids::{ProcessId, Tgid},
    inbox::{Inbox, Refused},
    posted,
    time::BootTime,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// So many wait at most.
const WAITING: usize = 1024;
/// So many with labels of one process do.
const WAITING_EACH: usize = 64;
/// Requests in one post at most.
const COUNT_MAX: u64 = 1_000_000_000;

/// Requests that a process served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// When it was posted.
    pub time: BootTime,
    /// Who served them.
    pub by: ProcessId,
    /// How many.
    pub count: u64,
    /// Whatever else was told of them.
    pub labels: BTreeMap<String, String>,
}

/// What was posted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Posted {
    /// How many requests.
    pub count: u64,
    /// Who served them; none for whoever posts it.
    pub pid: Option<Tgid>,
    /// Such as the request's id.
    pub labels: BTreeMap<String, String>,
}

impl Posted {
    /// From a JSON object with `count`, and perhaps `pid` and `labels`; null is as if it were not there.
    ///
    /// # Errors
    /// One sentence that names the field at fault and what it takes.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let mut this = Self::default();
        for (name, value) in posted::fields(body, "{\"count\": 1}")? {
            match name.as_str() {
                "count" => this.count = posted::number(&name, &value)?,
                "pid" => this.pid = Some(posted::process(&value)?),
                "labels" => this.labels = posted::labels(value)?,
                _ => return Err(format!("there is no field {name:?}: requests have count, pid and labels")),
            }
        }
        match this.count {
            0 => Err("count is missing or 0: give how many requests were served since the last post".to_owned()),
            1..=COUNT_MAX => Ok(this),
            more => Err(format!("count takes at most {COUNT_MAX} requests, not {more}")),
        }
    }
}

/// Tallies that wait for the agent's loop.
#[derive(Debug, Default)]
pub struct Tallies(Inbox<Tally>);

impl Tallies {
    /// Leaves a tally. Without labels it is added to another one of its process.
    ///
    /// # Errors
    /// There is no room, or the agent ends.
    pub fn post(&self, tally: Tally) -> Result<(), Refused> {
        self.0.leave(|waiting| {
            let is_like = |other: &&mut Tally| other.by == tally.by && other.labels.is_empty();
            if tally.labels.is_empty()
                && let Some(other) = waiting.iter_mut().find(is_like)
            {
                other.count = other.count.saturating_add(tally.count);
                return Ok(());
            }
            let of_process = waiting.iter().filter(|other| other.by == tally.by).count();
            if waiting.len() >= WAITING || of_process >= WAITING_EACH {
                return Err(Refused::Full);
            }
            waiting.push(tally);
            Ok(())
        })
    }

    /// All that wait, in the order in which they came.
    pub fn take(&self) -> Vec<Tally> {
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
    use proptest::prelude::*;

    fn refusal(body: &str) -> String {
        Posted::parse(body.as_bytes()).unwrap_err()
    }

    fn tally(pid: u32, count: u64, label: &str) -> Tally {
        let by = ProcessId { tgid: Tgid(pid), start_ns: 1 };
        let labels = (!label.is_empty()).then(|| ("id".to_owned(), label.to_owned())).into_iter().collect();
        Tally { time: BootTime(0), by, count, labels }
    }

    #[test]
    fn a_count_is_read_with_whom_it_is_of_and_labels() {
        let posted = Posted::parse(br#"{"count": 3, "pid": 7, "labels": {"id": "a"}}"#).unwrap();
        let labels = [("id".to_owned(), "a".to_owned())].into();
        assert_eq!(posted, Posted { count: 3, pid: Some(Tgid(7)), labels });
        assert_eq!(Posted::parse(br#"{"count": 1, "pid": null}"#).unwrap(), Posted { count: 1, ..Posted::default() });
    }

    #[test]
    fn refusals_name_the_field() {
        assert!(refusal("{}").starts_with("count is missing or 0"));
        assert!(refusal(r#"{"count": 0}"#).starts_with("count is missing or 0"));
        assert_eq!(refusal(r#"{"count": -1}"#), "count takes a whole number from 0, not -1");
        assert_eq!(refusal(r#"{"count": 1000000001}"#), "count takes at most 1000000000 requests, not 1000000001");
        assert_eq!(
            refusal(r#"{"count": 1, "user": "a"}"#),
            "there is no field \"user\": requests have count, pid and labels"
        );
        assert!(refusal(r#"{"count": 1, "labels": {"a": 1}}"#).starts_with("labels.a takes a text"));
    }

    #[test]
    fn what_has_no_labels_is_added_up_and_what_has_some_is_kept_apart() {
        let inbox = Tallies::default();
        for posted in [tally(1, 2, ""), tally(2, 5, ""), tally(1, 3, "a"), tally(1, 4, "")] {
            inbox.post(posted).unwrap();
        }
        assert_eq!(inbox.take(), [tally(1, 6, ""), tally(2, 5, ""), tally(1, 3, "a")]);
        assert_eq!(inbox.take(), []);
    }

    #[test]
    fn what_waits_is_bounded_of_each_process_and_in_all_and_ends_with_the_agent() {
        let inbox = Tallies::default();
        assert!((0..WAITING_EACH).all(|_| inbox.post(tally(1, 1, "a")).is_ok()));
        assert_eq!(inbox.post(tally(1, 1, "a")), Err(Refused::Full));
        assert!((WAITING_EACH..WAITING).all(|pid| inbox.post(tally(pid as u32 + 2, 1, "")).is_ok()));
        assert_eq!(inbox.post(tally(0, 1, "")), Err(Refused::Full));
        inbox.post(tally(WAITING as u32, 7, "")).unwrap();
        inbox.close();
        assert_eq!(inbox.post(tally(WAITING as u32, 7, "")), Err(Refused::Closed));
        assert_eq!(inbox.take().iter().map(|tally| tally.count).sum::<u64>(), WAITING as u64 + 7);
    }

    proptest! {
        #[test]
        fn no_body_is_a_panic(body: Vec<u8>) {
            let _ = Posted::parse(&body);
        }
    }
}
