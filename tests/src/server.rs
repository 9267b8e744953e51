//! Real servers that tests watch: gunicorn with workers, nginx, Redis, PostgreSQL, stress-ng. Debian has all of them:
//! `apt-get install --no-install-recommends gunicorn python3-uvicorn nginx redis-server redis-tools postgresql stress-ng`.

use crate::{agent::send_signal, cgroup::Cgroup};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// A running server. It is asked to end when it is dropped, and takes its workers with it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    signal: i32,
    /// What it writes, and where it listens.
    directory: TempDir,
}

/// An application that answers every request alike.
const APPLICATION: &str = "\
async def application(scope, receive, send):
    if scope['type'] == 'http':
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})
        await send({'type': 'http.response.body', 'body': b'ok'})
";

/// The same, for workers that serve one request at a time.
const WSGI_APPLICATION: &str = "\
def application(environ, start_response):
    start_response('200 OK', [('content-length', '2')])
    return [b'ok']
";

/// What nginx answers.
pub const NGINX_BODY: &str = "served\n";

impl Server {
    /// gunicorn with uvicorn workers, behind a Unix socket.
    ///
    /// # Errors
    /// It is not installed.
    pub fn gunicorn(workers: u32) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("served.py"), APPLICATION)?;
        let mut command = Command::new("/usr/bin/gunicorn");
        let workers = workers.to_string();
        command.args([
            "--worker-class",
            "uvicorn.workers.UvicornWorker",
            "--workers",
            &workers,
            "--bind",
            "unix:socket",
            // A client that stands still for a while finds its connection again.
            "--keep-alive",
            "60",
        ]);
        command.arg("served:application").current_dir(directory.path());
        Self::start(command, libc::SIGTERM, directory).context("gunicorn: apt-get install gunicorn python3-uvicorn")
    }

    /// uvicorn with workers of its own, which it starts anew by multiprocessing, behind a Unix socket.
    ///
    /// # Errors
    /// It is not installed.
    pub fn uvicorn(workers: u32) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("served.py"), APPLICATION)?;
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-m", "uvicorn", "--workers", &workers.to_string(), "--uds", "socket", "served:application"]);
        command.current_dir(directory.path());
        Self::start(command, libc::SIGTERM, directory).context("uvicorn: apt-get install python3-uvicorn")
    }

    /// gunicorn whose workers each load so many bytes when they begin; with `--preload` among the flags the master does, before
    /// it forks them.
    ///
    /// # Errors
    /// It is not installed.
    pub fn gunicorn_loading(workers: u32, bytes: u64, flags: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("loading.py"), format!("data = bytes([1]) * {bytes}\n{WSGI_APPLICATION}"))?;
        let mut command = Command::new("/usr/bin/gunicorn");
        command.args(["--workers", &workers.to_string(), "--bind", "unix:socket"]).args(flags);
        command.arg("loading:application").current_dir(directory.path());
        Self::start(command, libc::SIGTERM, directory).context("gunicorn: apt-get install gunicorn")
    }

    /// A Python server behind the Unix socket `socket`, a thread for each request, which holds so many bytes for the
    /// milliseconds that are its path.
    ///
    /// # Errors
    /// Python is not installed.
    pub fn holding(bytes: u64) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("holding.py"), include_str!("holding.py"))?;
        let mut command = Command::new("python3");
        command.args(["holding.py", &bytes.to_string()]).current_dir(directory.path());
        Self::start(command, libc::SIGTERM, directory).context("python3: apt-get install python3")
    }

    /// A Python server behind the Unix socket `socket` whose memory goes as `kind` says in `leaky.py`.
    ///
    /// # Errors
    /// Python is not installed.
    pub fn leaky(kind: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("leaky.py"), include_str!("leaky.py"))?;
        let mut command = Command::new("python3");
        command.args(["leaky.py", kind]).current_dir(directory.path());
        Self::start(command, libc::SIGTERM, directory).context("python3: apt-get install python3")
    }

    /// nginx with workers, at a loopback port and a Unix socket, with a small file and a log of what it answered.
    ///
    /// # Errors
    /// It is not installed.
    pub fn nginx(workers: u32, port: u16) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().display();
        fs::write(directory.path().join("index.html"), NGINX_BODY)?;
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary: String = temporary.map(|what| format!("{what}_temp_path {path}/{what}; ")).concat();
        let settings = format!(
            "worker_processes {workers}; daemon off; pid {path}/pid; error_log {path}/errors; events {{}}\n\
             http {{ access_log {path}/log; keepalive_requests 1000000; {temporary}\n\
             server {{ listen 127.0.0.1:{port}; listen unix:{path}/socket; root {path}; }} }}"
        );
        fs::write(directory.path().join("settings"), settings)?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let mut command = Command::new("/usr/sbin/nginx");
        command.args(["-e", "/dev/null", "-c"]).arg(directory.path().join("settings"));
        Self::start(command, libc::SIGTERM, directory).context("nginx: apt-get install nginx")
    }

    /// Redis, at a loopback port and a Unix socket.
    ///
    /// # Errors
    /// It is not installed.
    pub fn redis(port: u16) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new("/usr/bin/redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--unixsocket", "socket", "--port"]).arg(port.to_string());
        command.current_dir(directory.path());
        Self::start(command, libc::SIGTERM, directory).context("Redis: apt-get install redis-server")
    }

    /// PostgreSQL with a new cluster, behind a Unix socket.
    ///
    /// # Errors
    /// It is not installed.
    pub fn postgresql() -> Result<Self> {
        let programs = newest_postgresql().context("PostgreSQL: apt-get install postgresql")?;
        let directory = tempfile::tempdir()?;
        let (user, group) = user_named("postgres")?;
        chown(directory.path(), Some(user), Some(group))?;
        let data = directory.path().join("data");
        let command = |program: &str| {
            let mut command = Command::new(programs.join(program));
            command.uid(user).gid(group).current_dir("/").stdout(Stdio::null());
            command
        };
        let made = command("initdb").args(["--no-sync", "--auth", "trust", "--pgdata"]).arg(&data).status()?;
        ensure!(made.success(), "initdb ended with {:?}", made.code().or(made.signal()));
        let mut server = command("postgres");
        server.arg("-D").arg(&data).args(["-c", "listen_addresses=", "-c", "shared_buffers=64MB", "-c"]);
        server.arg(format!("unix_socket_directories={}", directory.path().display()));
        Self::start(server, libc::SIGINT, directory)
    }

    /// stress-ng with these flags, all of it in a cgroup.
    ///
    /// # Errors
    /// It is not installed.
    pub fn stress(group: &Cgroup, flags: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec stress-ng --quiet --temp-path . \"$@\""]);
        command.arg(group.directory().join("cgroup.procs")).args(flags).current_dir(directory.path());
        Self::start(command, libc::SIGTERM, directory).context("stress-ng: apt-get install stress-ng")
    }

    fn start(mut command: Command, signal: i32, directory: TempDir) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self { child, signal, directory })
    }

    /// Pid of the process that was started, whose children the others are.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        send_signal(self.pid(), signal)
    }

    /// Where it listens.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = send_signal(self.child.id(), self.signal);
        let _ = self.child.wait();
    }
}

/// Debian keeps the programs of each version in a directory of its own.
fn newest_postgresql() -> Result<PathBuf> {
    let version = |directory: &PathBuf| directory.file_name()?.to_str()?.parse::<u32>().ok();
    let versions = fs::read_dir("/usr/lib/postgresql")?.flatten().map(|entry| entry.path());
    let newest = versions.filter(|directory| directory.join("bin/initdb").exists()).max_by_key(version);
    Ok(newest.context("no version is installed")?.join("bin"))
}

/// Numbers of a user and its group.
fn user_named(name: &str) -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.split(':').next() == Some(name));
    let fields: Vec<&str> = line.with_context(|| format!("no user {name}"))?.split(':').collect();
    Ok((fields[2].parse()?, fields[3].parse()?))
}
