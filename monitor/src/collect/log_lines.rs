//! What is logged while something is done, for tests that want silence.

use log::{Level, Log, Metadata, Record};
use std::{cell::RefCell, sync::Once};

thread_local! {
    /// Lines of this thread: tests run side by side.
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Keeper;

impl Log for Keeper {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            LINES.with_borrow_mut(|lines| lines.push(record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

/// Lines of the level info and above that this thread logs while `act` is done.
pub(super) fn during(act: impl FnOnce()) -> Vec<String> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_boxed_logger(Box::new(Keeper)).expect("no other logger in the unit tests");
        log::set_max_level(log::LevelFilter::Info);
    });
    LINES.with_borrow_mut(Vec::clear);
    act();
    LINES.take()
}

#[test]
fn lines_are_kept() {
    assert_eq!(during(|| log::warn!("a line")), ["a line"]);
    assert!(during(|| {}).is_empty());
}
