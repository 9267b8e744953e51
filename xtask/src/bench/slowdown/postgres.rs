//! pgbench against a private PostgreSQL cluster: transactions that wait for the disk, over a Unix socket.

use super::{
    background::Background,
    workload::{Workload, require_program},
};
use crate::process;
use anyhow::{Context, Result};
use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

const SCALE: &str = "10";
const CLIENTS: &str = "4";
/// For each client; some three seconds of work.
const TRANSACTIONS: &str = "3000";
const DATABASE: &str = "postgres";

pub(crate) fn prepare(directory: &Path) -> Result<Workload> {
    let cluster = Cluster::locate(directory)?;
    let data = directory.join("cluster");
    cluster.make_directory(&data)?;
    let mut init = cluster.command("initdb");
    process::run_unseen(init.args(["--no-sync", "--auth", "trust", "--username", DATABASE, "--pgdata"]).arg(&data))?;

    let mut start = cluster.command("postgres");
    start.arg("-D").arg(&data).args(["-c", "listen_addresses=", "-c"]);
    start.arg(format!("unix_socket_directories={}", cluster.directory.display()));
    // Fast shutdown: clients are cut off, nothing is waited for.
    let server = Background::start(&mut start, libc::SIGINT, || cluster.answers())?;

    process::run_unseen(cluster.client("pgbench").args(["--initialize", "--quiet", "--scale", SCALE, DATABASE]))?;
    let mut benchmark = cluster.client("pgbench");
    benchmark.args(["--no-vacuum", "--client", CLIENTS, "--jobs", "2", "--transactions", TRANSACTIONS, DATABASE]);
    Ok(Workload::with_server(benchmark, server))
}

/// PostgreSQL's programs, the user they run as, and the directory of their socket.
struct Cluster {
    programs: PathBuf,
    user: User,
    directory: PathBuf,
}

struct User {
    id: u32,
    group: u32,
}

impl Cluster {
    fn locate(directory: &Path) -> Result<Self> {
        let programs = programs()?;
        Ok(Self { programs, user: User::of_the_server()?, directory: directory.join("socket") })
    }

    /// The servers refuse to run as root and want their directory to be their own.
    fn make_directory(&self, data: &Path) -> Result<()> {
        for directory in [data, &self.directory] {
            fs::create_dir(directory).with_context(|| format!("cannot make {}", directory.display()))?;
            let (user, group) = (Some(self.user.id), Some(self.user.group));
            chown(directory, user, group).with_context(|| format!("cannot give away {}", directory.display()))?;
        }
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.uid(self.user.id).gid(self.user.group).current_dir("/");
        command
    }

    fn client(&self, program: &str) -> Command {
        let mut command = self.command(program);
        command.arg("--host").arg(&self.directory).args(["--username", DATABASE]);
        command
    }

    fn answers(&self) -> bool {
        let status = self.client("pg_isready").arg("--quiet").status();
        status.is_ok_and(|status| status.success())
    }
}

impl User {
    /// The user that Debian's packages make for the server.
    fn of_the_server() -> Result<Self> {
        let users = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        Self::named("postgres", &users).context("there is no user postgres, which the server could run as")
    }

    fn named(name: &str, users: &str) -> Option<Self> {
        let mut fields = users.lines().map(|line| line.split(':')).find_map(|mut fields| {
            let is_wanted = fields.next()? == name;
            is_wanted.then_some(fields)
        })?;
        let id = fields.nth(1)?.parse().ok()?;
        Some(Self { id, group: fields.next()?.parse().ok()? })
    }
}

/// Debian keeps the server's programs of each version in a directory of its own; the newest is taken.
fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let directories = versions.map(|version| version.path().join("bin"));
    let newest = directories
        .filter(|directory| process::is_executable(&directory.join("initdb")))
        .max_by_key(|directory| version(directory));
    match newest {
        Some(directory) => Ok(directory),
        None => Ok(require_program("initdb", "postgresql")?.parent().unwrap_or(Path::new("/")).to_owned()),
    }
}

fn version(directory: &Path) -> Option<u32> {
    directory.parent()?.file_name()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_whole_name() {
        let users =
            "root:x:0:0:root:/root:/bin/bash\npostgres2:x:7:8::/:/bin/sh\npostgres:x:115:121:,,,:/var:/bin/bash\n";
        let user = User::named("postgres", users).unwrap();
        assert_eq!((user.id, user.group), (115, 121));
        assert!(User::named("redis", users).is_none());
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let directories = ["/usr/lib/postgresql/9/bin", "/usr/lib/postgresql/15/bin"].map(PathBuf::from);
        assert_eq!(directories.iter().max_by_key(|directory| version(directory)), Some(&directories[1]));
    }
}
