//! Snapshots, shown on a console as its form wants them.

use super::every;
use crate::{
    model::snapshot::Snapshot,
    output::console::{Console, Form, Ticks},
    picture::Picture,
};
use std::sync::Arc;
use tokio::{sync::watch, time::Interval};

/// Shows snapshots until the end, or until nobody reads any more.
pub(super) async fn show(
    mut console: Console,
    mut pictures: watch::Receiver<Arc<Picture>>,
    mut ending: watch::Receiver<bool>,
) {
    let mut open = true;
    let mut pace = match console.form() {
        Form::Table(interval) => Pace::Time(every(interval)),
        Form::Blocks(ticks) => Pace::Ticks(ticks),
    };
    while open {
        tokio::select! {
            _ = ending.wait_for(|end| *end) => return,
            next = pace.next(&mut pictures) => {
                let Some(snapshot) = next else { return };
                open = tokio::task::block_in_place(|| console.show(&snapshot)).is_ok();
            }
        }
    }
}

/// When the console shows the next snapshot.
enum Pace {
    /// By the clock, whatever the ticks.
    Time(Interval),
    /// By the ticks, whatever time they take.
    Ticks(Ticks),
}

impl Pace {
    /// The next one to show; none when there will be no more.
    async fn next(&mut self, pictures: &mut watch::Receiver<Arc<Picture>>) -> Option<Arc<Snapshot>> {
        match self {
            Self::Time(interval) => {
                interval.tick().await;
                Some(Arc::clone(&pictures.borrow().snapshot))
            }
            Self::Ticks(ticks) => loop {
                pictures.changed().await.ok()?;
                let snapshot = Arc::clone(&pictures.borrow_and_update().snapshot);
                if ticks.is_due(snapshot.number) {
                    return Some(snapshot);
                }
            },
        }
    }
}
