//! The development commands of monitor: a table of contents. Each command has a file of its name; `process` and
//! `workspace` serve them all.

mod backtest;
mod bench;
mod ebpf;
mod instrument;
mod process;
mod run;
mod scorecard;
mod test;
mod vm;
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
  cargo xtask run                         what faults, maps memory and waits for disk here, now
  cargo xtask run -- --for 30s            the same for half a minute
  cargo xtask test                        every check and test, and line coverage
  cargo xtask test -- page_fault          of the tests, only those with page_fault in their name
  cargo xtask ebpf                        rebuild the kernel programs in monitor-ebpf/objects
  cargo xtask ebpf --check                prove that those are what the sources build to
  cargo xtask vm --kernels 5.10,newest    the integration tests on those kernels, in virtual machines
  cargo xtask vm shell 6.1                a shell on that kernel
  cargo xtask scorecard                   how well leaks are told from innocent growth
  cargo xtask backtest                    what each policy of advice would have cost
  cargo xtask bench slowdown --rounds 40  what a database or a compiler loses to the agent";

#[derive(Subcommand)]
enum Command {
    Run(run::Options),
    Test(test::Options),
    Ebpf(ebpf::Options),
    Vm(vm::Options),
    Scorecard(scorecard::Options),
    Backtest(backtest::Options),
    /// Measure what the agent costs; each benchmark fails when a limit is broken
    #[command(subcommand)]
    Bench(bench::Benchmark),
    /// One process of the crowd around a measured agent
    #[command(hide = true)]
    Sleeper,
    /// The processes of one cgroup around a measured agent
    #[command(hide = true)]
    Household(bench::Household),
}

fn main() -> ExitCode {
    if instrument::is_requested() {
        return instrument::run_compiler();
    }
    let outcome = match Arguments::parse().command {
        Command::Run(options) => run::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Ebpf(options) => ebpf::run(&options),
        Command::Vm(options) => vm::run(&options),
        Command::Scorecard(options) => scorecard::run(&options),
        Command::Backtest(options) => backtest::run(&options),
        Command::Bench(benchmark) => bench::run(&benchmark),
        Command::Sleeper => bench::sleep_and_work(),
        Command::Household(household) => bench::live(&household),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
