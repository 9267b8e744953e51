//! The log, in the form of the training document.

use super::{Notice, Sink, worker::Failure};
use crate::{alert::State, detect::Severity};

/// Tells alerts in the log.
pub(super) struct Log;

impl Sink for Log {
    fn name(&self) -> &'static str {
        "log"
    }

    fn send(&mut self, notice: &Notice) -> Result<(), Failure> {
        let level = match (notice.alert.state, notice.alert.severity) {
            (State::Resolved, _) => log::Level::Info,
            (State::Firing, Severity::Critical) => log::Level::Error,
            (State::Firing, _) => log::Level::Warn,
        };
        log::log!(level, "{}", notice.line());
        Ok(())
    }
}
