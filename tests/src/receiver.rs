//! Those whom alerts are told: a server that keeps what is posted to it and answers as it is told to, and a mail server, which
//! is Debian's package `python3-aiosmtpd`.

use crate::{
    agent::end,
    clock::{PATIENCE, wait_until},
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};
use tempfile::TempDir;

/// What somebody posted, and the status that it was answered with.
#[derive(Clone, Debug, PartialEq)]
pub struct Post {
    /// Path of the request.
    pub target: String,
    /// Its body.
    pub body: Value,
    /// Of the answer.
    pub status: u16,
}

/// A server that keeps what is posted to it. It ends when it is dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    status: AtomicU16,
    ended: AtomicBool,
    posts: Mutex<Vec<Post>>,
}

impl Receiver {
    /// Starts one that answers with this status.
    ///
    /// # Errors
    /// There is no port.
    pub fn start(status: u16) -> Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), status)
    }

    /// As [`Receiver::start`], at a given address.
    ///
    /// # Errors
    /// Somebody else listens there.
    pub fn start_at(address: SocketAddr, status: u16) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
        let (status, ended, posts) = (AtomicU16::new(status), AtomicBool::new(false), Mutex::default());
        let shared = Arc::new(Shared { status, ended, posts });
        let (address, serving) = (listener.local_addr()?, Arc::clone(&shared));
        let thread = thread::spawn(move || {
            for connection in listener.incoming() {
                if serving.ended.load(Relaxed) {
                    return;
                }
                if let Err(error) = connection.map_err(Into::into).and_then(|connection| serving.serve(connection)) {
                    eprintln!("the receiver was not told: {error:#}");
                }
            }
        });
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers with this status from now on.
    pub fn answer_with(&self, status: u16) {
        self.shared.status.store(status, Relaxed);
    }

    /// What was posted so far.
    pub fn posts(&self) -> Vec<Post> {
        self.shared.posts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bodies of what was taken: posted, and answered with 200.
    pub fn taken(&self) -> Vec<Value> {
        self.posts().into_iter().filter(|post| post.status == 200).map(|post| post.body).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.ended.store(true, Relaxed);
        // So that it looks.
        let woken = TcpStream::connect(self.address).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken)
            && thread.join().is_err()
        {
            eprintln!("the receiver panicked");
        }
    }
}

impl Shared {
    /// One request a connection.
    fn serve(&self, connection: TcpStream) -> Result<()> {
        connection.set_read_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(&connection);
        let mut request = String::new();
        reader.read_line(&mut request)?;
        let target = match request.split(' ').collect::<Vec<_>>()[..] {
            ["POST", target, _] => target.to_owned(),
            _ => bail!("not a POST: {request:?}"),
        };
        let mut length = None;
        loop {
            let mut header = String::new();
            ensure!(reader.read_line(&mut header)? > 0, "the connection ended within the head");
            let Some((name, value)) = header.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse()?);
            }
        }
        let mut body = vec![0; length.context("no length of the body")?];
        reader.read_exact(&mut body)?;
        let (body, status) = (serde_json::from_slice(&body)?, self.status.load(Relaxed));
        self.posts.lock().unwrap_or_else(PoisonError::into_inner).push(Post { target, body, status });
        write!(&connection, "HTTP/1.1 {status} as told\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        Ok(())
    }
}

/// A real mail server, which takes mail for everybody but `nobody`. Killed on drop.
#[derive(Debug)]
pub struct MailServer {
    child: Child,
    address: SocketAddr,
    directory: TempDir,
}

impl MailServer {
    /// Starts one, and waits until it listens.
    ///
    /// # Errors
    /// It is not installed.
    pub fn start() -> Result<Self> {
        let (address, directory) = (free_address()?, tempfile::tempdir()?);
        fs::write(directory.path().join("mail.py"), include_str!("mail.py"))?;
        // Debian's own Python has it, whichever is the first to be found.
        let child = Command::new("/usr/bin/python3")
            .args(["/usr/bin/aiosmtpd", "-n", "-l", &address.to_string(), "-c", "mail.Told"])
            .env("PYTHONPATH", directory.path())
            .stdin(Stdio::null())
            .stdout(File::create(directory.path().join("mails"))?)
            .stderr(File::create(directory.path().join("errors"))?)
            .spawn()
            .context("cannot start aiosmtpd: install Debian's package python3-aiosmtpd")?;
        let mut server = Self { child, address, directory };
        wait_until("the mail server to listen", PATIENCE, || {
            let ended = server.child.try_wait()?;
            let words = || fs::read_to_string(server.directory.path().join("errors")).unwrap_or_default();
            ensure!(ended.is_none(), "aiosmtpd ended (install Debian's package python3-aiosmtpd):\n{}", words());
            Ok(TcpStream::connect(server.address).ok())
        })?;
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Mails so far: who they are from and to, their subjects and their bodies.
    ///
    /// # Errors
    /// What the server wrote is not understood.
    pub fn mails(&self) -> Result<Vec<Value>> {
        lines(&self.directory.path().join("mails"))
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Lines of JSON in a file that somebody adds to; there are none while there is no file.
///
/// # Errors
/// A line that has ended is no JSON.
pub fn lines(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))).collect()
}

/// A loopback address that nobody listens at. Nobody else takes it so soon: the kernel goes through all free ports first.
///
/// # Errors
/// There is none.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_posted_is_kept_with_its_answer() {
        let receiver = Receiver::start(503).unwrap();
        let mut connection = TcpStream::connect(receiver.address()).unwrap();
        connection.write_all(b"POST /x HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        let post = Post { target: "/x".into(), body: Value::Array(Vec::new()), status: 503 };
        assert_eq!((receiver.posts(), receiver.taken()), (vec![post], Vec::new()));
    }
}
