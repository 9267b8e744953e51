//! A process that does exactly what it is told, counts it by itself, and does nothing else meanwhile.
//!
//! `workload serve` reads one command a line and answers each with one line of JSON; between them it sleeps in read(2).
//! Commands and answers go through buffers made at start, so the handshake neither allocates nor faults. More ways to start
//! it, for processes that are not to stay: `workload exit CODE [MARK]`, `workload get SOCKET TARGET` and `workload post SOCKET
//! TARGET BODY`.

mod address_space;
mod ask;
mod block_io;
mod handshake;
mod page_fault;
mod processes;
mod resident;
mod system;

use anyhow::{Result, bail};
use handshake::{Arguments, Commands, Report};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["serve", ..] => serve().map(|()| 0),
        ["exit", code, ..] => processes::short_life(code),
        ["get", socket, target] => ask::once(socket, target, None).map(|()| 0),
        ["post", socket, target, body] => ask::once(socket, target, Some(body)).map(|()| 0),
        _ => {
            let ways = "serve | exit CODE [MARK] | get SOCKET TARGET | post SOCKET TARGET BODY";
            Err(anyhow::anyhow!("usage: workload {ways}"))
        }
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("workload: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    let mut commands = Commands::new();
    let mut report = Report::new();
    report.send()?;
    while let Some(line) = commands.next()? {
        report.clear();
        if let Err(error) = obey(line, &mut report) {
            report.clear();
            report.text("error", &format!("{error:#}"));
        }
        report.send()?;
    }
    Ok(())
}

fn obey(line: &str, report: &mut Report) -> Result<()> {
    let mut arguments = Arguments::of(line);
    match arguments.word("command")? {
        "faults" => page_fault::faults(&mut arguments, report),
        "storm" => page_fault::storm(&mut arguments, report),
        "hold" => page_fault::hold(&mut arguments, report),
        "allocate" => page_fault::allocate(&mut arguments, report),
        "maps" => address_space::maps(&mut arguments, report),
        "large" => address_space::large(&mut arguments, report),
        "compatible" => address_space::compatible(&mut arguments, report),
        "heaps" => address_space::heaps(&mut arguments, report),
        "failures" => address_space::failures(&mut arguments, report),
        "direct" => block_io::direct(&mut arguments, report),
        "batch" => block_io::batch(&mut arguments, report),
        "interleaved" => block_io::interleaved(&mut arguments, report),
        "buffered" => block_io::buffered(&mut arguments, report),
        "durable" => block_io::durable(&mut arguments, report),
        "dirty" => block_io::dirty(&mut arguments, report),
        "flush" => block_io::flush(&mut arguments, report),
        "discard" => block_io::discard(&mut arguments, report),
        "spawn" => processes::spawn(&mut arguments, report),
        "forks" => processes::forks(&mut arguments, report),
        "children" => processes::children(&mut arguments, report),
        "release" => processes::release(&mut arguments, report),
        "churn" => processes::churn(&mut arguments, report),
        "vanish" => processes::vanish(&mut arguments, report),
        "reuse-pid" => processes::reuse_pid(&mut arguments, report),
        "in-namespace" => processes::in_namespace(&mut arguments, report),
        "keep" => resident::keep(&mut arguments, report),
        "give-back" => resident::give_back(&mut arguments, report),
        "pin" => system::pin(arguments.value("processor")?),
        "spin" => processes::spin(&mut arguments),
        "exec" => processes::exec(&mut arguments),
        "exit" => processes::exit(&mut arguments),
        "ask" => ask::ask(&mut arguments, report),
        "ask-in-namespace" => ask::ask_in_namespace(&mut arguments, report),
        other => bail!("no command {other}"),
    }
}
