//! The development commands of monitor: a table of contents. Each command has a file of its name; `process` and
//! `workspace` serve them all.

mod bench;
mod ebpf;
mod instrument;
mod process;
mod run;
mod test;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Development commands of monitor: run it, prove it, rebuild its kernel programs, measure what it costs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask run                        build the agent, start it, show what faults, maps and waits now
  cargo xtask run -- --for 30s           the same for half a minute; flags after `--` are the agent's
  cargo xtask test                       every check and test, and line coverage
  cargo xtask test -- page_fault         the checks, and only the tests with page_fault in their name
  cargo xtask ebpf                       rebuild monitor-ebpf/objects from source
  cargo xtask ebpf --check               prove that monitor-ebpf/objects is what the sources build to
  cargo xtask bench slowdown --rounds 20 what redis, PostgreSQL, Python and a compiler lose to the agent";

#[derive(Subcommand)]
enum Command {
    /// Build the agent in release mode and start it, through sudo when not root
    Run(run::Options),
    /// Run every check and test, then report line coverage; fails below 75 %
    Test(test::Options),
    /// Rebuild the compiled kernel programs in monitor-ebpf/objects, or check them
    Ebpf(ebpf::Options),
    /// Measure what the agent costs; each benchmark fails when its limit is broken
    #[command(subcommand)]
    Bench(bench::Benchmark),
    /// A process of the `bench agent` crowd
    #[command(hide = true)]
    Sleeper,
}

fn main() -> ExitCode {
    if instrument::is_requested() {
        return instrument::run_compiler();
    }
    let outcome = match Arguments::parse().command {
        Command::Run(options) => run::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Ebpf(options) => ebpf::run(&options),
        Command::Bench(benchmark) => bench::run(&benchmark),
        Command::Sleeper => bench::sleep_and_work(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
