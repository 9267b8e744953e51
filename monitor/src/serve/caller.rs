//! Whom a caller may ask and post for: on the agent's own socket any process, on the workloads' socket those of its own tree.
//! Which tree that is, snapshots tell.

use super::{
    access::{Caller, Scope},
    problem::Problem,
    routes::Shared,
};
use crate::{
    ids::{ProcessId, Tgid},
    model::snapshot::{Process, ProcessState, Snapshot},
};
use axum::http::StatusCode;
use std::sync::Arc;
use tokio::time::timeout;

/// The running process that a caller asks about, in the snapshot to be told from: the one it names, else itself.
pub(super) async fn asked(
    shared: &Shared,
    caller: Option<Caller>,
    pid: Option<Tgid>,
) -> Result<(Arc<Snapshot>, Arc<Process>), Problem> {
    let scope = caller.map_or(Scope::Node, |caller| caller.scope);
    if let (Some(pid), Scope::Node) = (pid, scope) {
        let snapshot = shared.snapshot();
        let process = Arc::clone(running(&snapshot, pid)?);
        return Ok((snapshot, process));
    }
    let own = caller.and_then(|caller| caller.process);
    let own = own.ok_or_else(|| Problem::query("who asks is not known here: give ?pid="))?;
    let (snapshot, own) = itself(shared, own).await?;
    let Some(pid) = pid else { return Ok((snapshot, own)) };
    // Whether there is such a process is not told either.
    let of_its_tree = snapshot.running_with(pid).filter(|process| process.tree == own.tree).map(Arc::clone);
    let process = of_its_tree.ok_or_else(|| foreign(shared, pid))?;
    Ok((snapshot, process))
}

/// A process of the tree that a mark is of: one that the mark names, else that of whoever posts it; none where nobody knows.
pub(super) fn marked(
    snapshot: &Snapshot,
    caller: Option<Caller>,
    pid: Option<Tgid>,
) -> Result<Option<ProcessId>, Problem> {
    match (pid, caller) {
        (Some(_), Some(Caller { scope: Scope::OwnTree, .. })) => {
            let detail = "a mark that is posted here is of the tree of who posts it: leave pid out";
            Err(Problem::new(StatusCode::FORBIDDEN, detail))
        }
        (Some(pid), _) => Ok(Some(running(snapshot, pid)?.id)),
        (None, caller) => {
            let own = caller.and_then(|caller| caller.process);
            own.and_then(|id| snapshot.process(id.key())).map_or(Ok(()), |process| refuse_ended(process))?;
            Ok(own)
        }
    }
}

/// The caller's own process, in the first snapshot that has it: one that began after the last tick waits for the next.
async fn itself(shared: &Shared, id: ProcessId) -> Result<(Arc<Snapshot>, Arc<Process>), Problem> {
    let mut pictures = shared.pictures.clone();
    let known = pictures.wait_for(|picture| picture.snapshot.process(id.key()).is_some());
    let snapshot =
        timeout(shared.patience, known).await.ok().and_then(Result::ok).map(|picture| Arc::clone(&picture.snapshot));
    let found = snapshot.and_then(|snapshot| Some((Arc::clone(snapshot.process(id.key())?), snapshot)));
    let (process, snapshot) = found.ok_or_else(|| {
        let detail = format!("process {}, which asks, is in no snapshot yet: ask again after the next tick", id.tgid);
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    })?;
    refuse_ended(&process)?;
    Ok((snapshot, process))
}

/// A connection outlives the process that made it, where others have it, too.
fn refuse_ended(process: &Process) -> Result<(), Problem> {
    if process.state == ProcessState::Running {
        return Ok(());
    }
    let detail = format!("process {}, which connected, has ended: connect from one that runs", process.id.tgid);
    Err(Problem::new(StatusCode::FORBIDDEN, detail))
}

/// The running process with that pid.
pub(super) fn running(snapshot: &Snapshot, pid: Tgid) -> Result<&Arc<Process>, Problem> {
    snapshot.running_with(pid).ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, format!("no process {pid} runs, or it began after the last tick"))
    })
}

fn foreign(shared: &Shared, pid: Tgid) -> Problem {
    let socket = shared.socket.display();
    let detail = format!("process {pid} is not of the tree of who asks: leave pid out, or ask {socket}, as root");
    Problem::new(StatusCode::FORBIDDEN, detail)
}

#[cfg(test)]
mod tests {
    use super::{super::fixtures, *};

    fn caller(pid: u32, scope: Scope) -> Option<Caller> {
        let snapshot = fixtures::snapshot();
        let process = snapshot.processes.iter().find(|process| process.id.tgid == Tgid(pid)).map(|process| process.id);
        Some(Caller { process, scope })
    }

    fn detail<T>(result: Result<T, Problem>) -> String {
        result.err().map(|problem| problem.json()).unwrap_or_default()
    }

    #[test]
    fn a_mark_is_of_who_posts_it_or_of_whom_root_names() {
        let snapshot = fixtures::snapshot();
        let pid_of =
            |caller, pid: Option<u32>| marked(&snapshot, caller, pid.map(Tgid)).map(|id| id.map(|id| id.tgid.0));
        assert_eq!(pid_of(caller(11, Scope::OwnTree), None), Ok(Some(11)));
        assert_eq!(pid_of(caller(11, Scope::Node), Some(20)), Ok(Some(20)));
        assert_eq!(pid_of(None, None), Ok(None));
        assert!(detail(pid_of(caller(11, Scope::OwnTree), Some(11))).contains("leave pid out"));
        assert!(detail(pid_of(caller(11, Scope::Node), Some(30))).contains("no process 30 runs"));
        assert!(detail(pid_of(caller(30, Scope::OwnTree), None)).contains("has ended"));
    }

    #[test]
    fn who_is_in_no_snapshot_yet_may_post() {
        let process = Some(ProcessId { tgid: Tgid(99), start_ns: 7 });
        let posted = marked(&fixtures::snapshot(), Some(Caller { process, scope: Scope::OwnTree }), None);
        assert_eq!(posted, Ok(process));
    }
}
