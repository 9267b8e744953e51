//! Memory budgets as JSON. They are drawn up when they are asked for.

use super::{caller, problem::Problem};
use crate::{advise::budget::Budget, ids::Tgid, picture::Picture, time::BootTime};
use axum::http::StatusCode;
use serde::Serialize;

/// The budgets of servers' trees, or of one.
#[derive(Serialize)]
pub(super) struct BudgetsView {
    time_ns: BootTime,
    /// Servers that have none, as there are too many.
    left_out: usize,
    budgets: Vec<Budget>,
}

impl BudgetsView {
    /// Of all trees that are watched, or of the one that a process belongs to.
    pub(super) fn of(picture: &Picture, pid: Option<Tgid>) -> Result<Self, Problem> {
        let Picture { snapshot, findings, loads, .. } = picture;
        let budgets = match pid {
            None => Budget::all(snapshot, loads, findings),
            Some(pid) => {
                let tree = caller::running(snapshot, pid)?.tree;
                let gone = || Problem::new(StatusCode::NOT_FOUND, format!("process {pid} is of no tree any more"));
                vec![Budget::one(snapshot, tree.key(), loads, findings).ok_or_else(gone)?]
            }
        };
        Ok(Self { time_ns: snapshot.time, left_out: loads.left_out, budgets })
    }
}
