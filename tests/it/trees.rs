//! Which processes form trees: by patterns, by titles that are set later, with the descendants that were there before.

use anyhow::{Context, Result};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Write as _},
    process::{Child, Command, Stdio},
};
use tests::{
    Agent, Machine,
    clock::{PATIENCE, wait_until},
    expect, json,
};

/// A server in Perl, which writes the title it is told over its arguments. It has two workers, one of which has been left by
/// its parent. Ends, with all of them, when dropped.
struct Server {
    child: Child,
}

impl Server {
    const PROGRAM: &str = r#"
        $| = 1;
        sub worker { if (!fork) { $_[0]->(); exit } }
        pipe(my $end, my $open);
        my $wait = sub { close $open; sysread $end, my $byte, 1 };
        worker($wait);
        worker(sub { worker($wait); });
        wait;
        print "ready\n";
        # Who does nothing else is not looked at again.
        my @held;
        while (<STDIN>) { chomp; $0 = $_; push @held, "x" x 1_000_000; print "$0\n" }
    "#;

    fn start(arguments: &[&str]) -> Result<Self> {
        let mut perl = Command::new("perl");
        perl.args(["-e", Self::PROGRAM]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = perl.spawn().context("these tests need perl: install perl-base")?;
        let mut server = Self { child };
        expect::exactly("its first word", server.word()?.as_str(), "ready")?;
        Ok(server)
    }

    fn set_title(&mut self, title: &str) -> Result<()> {
        writeln!(self.child.stdin.as_mut().context("no input")?, "{title}")?;
        expect::exactly("title", self.word()?.as_str(), title)
    }

    fn word(&mut self) -> Result<String> {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().context("no output")?).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if let Err(error) = self.child.wait() {
            eprintln!("the server does not end: {error}");
        }
    }
}

/// The tree with this root that fits.
fn tree_when(agent: &Agent, root: u32, what: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
    let look = || {
        let answer = agent.get("/v1/trees?limit=100000")?;
        Ok(json::list(&answer, "trees")?.iter().find(|tree| tree["pid"] == root).filter(|tree| fits(tree)).cloned())
    };
    wait_until(what, PATIENCE, look)
        .with_context(|| format!("{}", agent.get("/v1/trees?limit=100000").unwrap_or_default()))
}

#[test]
fn a_title_makes_a_tree_of_the_server_and_the_workers_it_has() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&[])?;
    let mut server = Server::start(&["some", "arguments", "to", "write", "over"])?;
    let pid = server.child.id();
    agent.settle()?;
    expect::exactly("before", agent.process(pid)?["tree"] == pid, false)?;
    server.set_title("postgres: checkpointer")?;
    let tree = tree_when(&agent, pid, "the tree of that title", |tree| tree["rule"] == "postgres")?;
    expect::exactly("its name", json::text(&tree, "command_line")?, "postgres: checkpointer")?;
    let tree = tree_when(&agent, pid, "its workers", |tree| tree["workers"] == 2)?;
    expect::exactly("rule", json::text(&tree, "rule")?, "postgres")?;
    server.set_title("postgres: writer")?;
    tree_when(&agent, pid, "the next title", |tree| tree["command_line"] == "postgres: writer")?;
    drop(server);
    agent.stop()
}

#[test]
fn an_entry_point_is_found_behind_what_an_exec_record_tells() -> Result<()> {
    let _machine = Machine::claim()?;
    let agent = Agent::start(&["--set", "trees.entry_points=perl *--serve=test-?*"])?;
    let long = "x".repeat(200);
    let arguments = [&long, "--serve=test-", &long, "--serve=test-1"];
    let server = Server::start(&arguments)?;
    let other = Server::start(&arguments[..2])?;
    let tree = tree_when(&agent, server.child.id(), "the entry point", |tree| tree["rule"] == "entry_point")?;
    expect::exactly("workers", json::count(&tree, "workers")?, 2)?;
    expect::exactly("another", agent.process(other.child.id())?["tree"] == other.child.id(), false)?;
    drop((server, other));
    agent.stop()
}
