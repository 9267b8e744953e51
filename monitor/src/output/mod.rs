//! What people read on a terminal.

pub mod console;
pub mod json;
mod text;
