//! Asking the agent, as whoever this process is. Allocates: not for what is measured.

use crate::{
    handshake::{Arguments, Report},
    system,
};
use anyhow::{Context, Result, ensure};
use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};
use tests::http::{self, Answer};

/// `workload get SOCKET TARGET` and `workload post SOCKET TARGET BODY`: prints the status, the kind of answer and the body, or
/// fails as connect(2) did.
pub(crate) fn once(socket: &str, target: &str, body: Option<&str>) -> Result<()> {
    let answer = answer(socket, target, body)?;
    println!("{} {}\n{}", answer.status, kind(&answer), answer.body);
    std::io::stdout().flush().context("cannot print")
}

/// `ask SOCKET TARGET [BODY]`: gets, or posts a body, which has no blanks in it. Tells the status, the kind of answer and the
/// body.
pub(crate) fn ask(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let (socket, target) = (arguments.word("socket")?, arguments.word("target")?);
    let answer = answer(socket, target, arguments.word("body").ok())?;
    report.number("status", answer.status.into());
    report.text("kind", kind(&answer));
    report.text("body", &answer.body);
    Ok(())
}

/// `ask-in-namespace SOCKET TARGET`: a child that is process 1 of a pid namespace of its own gets. Tells its pid outside, and
/// what it printed.
pub(crate) fn ask_in_namespace(arguments: &mut Arguments<'_>, report: &mut Report) -> Result<()> {
    let (socket, target) = (arguments.word("socket")?, arguments.word("target")?);
    // SAFETY: takes a number; only children made later are affected.
    system::check(unsafe { libc::unshare(libc::CLONE_NEWPID) }, "unshare of the pid namespace")?;
    let program = std::env::current_exe().context("cannot tell what this program is")?;
    let child = Command::new(program)
        .args(["get", socket, target])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot spawn")?;
    report.number("pid", child.id().into());
    let output = child.wait_with_output().context("cannot wait")?;
    ensure!(output.status.success(), "the child ended with {}", output.status);
    report.text("printed", &String::from_utf8_lossy(&output.stdout));
    Ok(())
}

fn answer(socket: &str, target: &str, body: Option<&str>) -> Result<Answer> {
    match body {
        Some(body) => http::post(Path::new(socket), target, body),
        None => http::get(Path::new(socket), target),
    }
}

fn kind(answer: &Answer) -> &str {
    answer.headers.get("content-type").map_or("", String::as_str)
}
