//! The service manager, where there is one: it is told when the agent is ready, that it lives, and when it ends
//! (sd_notify(3)). Without NOTIFY_SOCKET in the environment nothing is said.

use sd_notify::NotifyState;
use std::time::Duration;

/// How often to say [`alive`]: twice in the time that the service manager waits for it; none where it does not.
pub fn alive_every() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|period| !period.is_zero())
}

/// The socket answers.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// The event loop goes round.
pub fn alive() {
    tell(NotifyState::Watchdog);
}

/// The agent ends by its own will.
pub fn ending() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    // Nobody but the service manager misses it, and that has its own way of saying so: a time-out.
    if let Err(error) = sd_notify::notify(&[state]) {
        log::warn!("the service manager could not be told: {error}; is its socket, NOTIFY_SOCKET, still there?");
    }
}
