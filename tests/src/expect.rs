//! Comparing with an oracle, with errors that show both sides.

use anyhow::{Result, ensure};
use std::fmt::Debug;

/// Both are the same.
///
/// # Errors
/// They are not.
pub fn exactly<T: PartialEq + Debug>(what: &str, told: T, true_value: T) -> Result<()> {
    ensure!(told == true_value, "{what}: the agent tells {told:?}, the truth is {true_value:?}");
    Ok(())
}

/// They differ by at most a thousandth of the truth.
///
/// # Errors
/// They differ by more, or nothing was compared: the truth is 0.
pub fn within_a_thousandth(what: &str, told: u64, true_value: u64) -> Result<()> {
    ensure!(true_value > 0, "{what}: nothing to compare with");
    ensure!(
        told.abs_diff(true_value) * 1000 <= true_value,
        "{what}: the agent tells {told}, the truth is {true_value}: more than 0.1 % apart"
    );
    Ok(())
}

/// One lies between two others, both included.
///
/// # Errors
/// It does not.
pub fn between(what: &str, least: u64, told: u64, most: u64) -> Result<()> {
    ensure!(least <= told && told <= most, "{what}: {told} is not between {least} and {most}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousandth_is_the_limit() {
        assert!(within_a_thousandth("x", 1001, 1000).is_ok());
        assert!(within_a_thousandth("x", 999, 1000).is_ok());
        assert!(within_a_thousandth("x", 1002, 1000).is_err());
        assert!(within_a_thousandth("x", 0, 0).is_err());
    }

    #[test]
    fn errors_show_both_sides() {
        let error = exactly("calls", 3, 4).unwrap_err().to_string();
        assert!(error.contains("calls") && error.contains('3') && error.contains('4'), "{error}");
        assert!(between("x", 1, 2, 3).is_ok() && between("x", 1, 4, 3).is_err() && between("x", 1, 0, 3).is_err());
    }
}
