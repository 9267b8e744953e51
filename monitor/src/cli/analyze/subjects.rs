//! The subjects that are judged, in the order in which they appear.

use crate::detect::{Judge, Judgement, Point, Settings};
use std::collections::HashMap;

/// All subjects. Each is some 12 KiB at most, however long it is.
pub(super) struct Subjects {
    settings: Settings,
    places: HashMap<String, usize>,
    all: Vec<Subject>,
    /// Points that were not later than the one before.
    pub(super) left_out: u64,
}

struct Subject {
    name: String,
    judge: Judge,
    last_seconds: f64,
    /// Whether its times are those of a calendar.
    calendar: bool,
}

impl Subjects {
    /// None yet.
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, places: HashMap::new(), all: Vec::new(), left_out: 0 }
    }

    /// Takes a point of a subject.
    pub(super) fn push(&mut self, name: &str, point: &Point, calendar: bool) {
        let place = match self.places.get(name) {
            Some(place) => *place,
            None => {
                let judge = Judge::new(self.settings);
                self.all.push(Subject { name: name.to_owned(), judge, last_seconds: f64::NEG_INFINITY, calendar });
                self.places.insert(name.to_owned(), self.all.len() - 1);
                self.all.len() - 1
            }
        };
        let subject = &mut self.all[place];
        if point.time_seconds <= subject.last_seconds {
            self.left_out += 1;
            return;
        }
        subject.last_seconds = point.time_seconds;
        subject.judge.push(point);
    }

    /// How all stand: name, judgement, and whether times are those of a calendar.
    pub(super) fn judged(&mut self) -> impl Iterator<Item = (&str, Judgement, bool)> {
        self.all.iter_mut().map(|subject| (&*subject.name, subject.judge.judgement(), subject.calendar))
    }
}
