//! What people read: on a terminal, and in a spreadsheet or notebook.

pub mod console;
pub mod json;
mod resources;
mod text;
pub mod timeseries;

pub(crate) use text::{fit, harmless};

/// Whether the user has not asked for output without colours (<https://no-color.org>).
pub(crate) fn wants_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
