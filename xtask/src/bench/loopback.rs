//! One thread that is both ends of TCP connections, timed by the processor time that it takes: what else runs on the machine, or
//! beside it on the same processors, is hardly in it.

use anyhow::{Context, Result, bail};
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

/// As many as redis-benchmark has.
const CONNECTIONS: usize = 50;
/// About what a GET and its answer take.
const REQUEST: [u8; 40] = [b'q'; 40];
const ANSWER: [u8; 20] = [b'a'; 20];

/// Connections, and their ends that were accepted.
pub(super) struct Loopback {
    connections: Vec<(TcpStream, TcpStream)>,
}

impl Loopback {
    /// Connects. Programs that count accepted connections know those that are accepted while they are attached.
    pub(super) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
        let address = listener.local_addr().context("the address of the listener")?;
        let connect = || {
            let client = TcpStream::connect(address)?;
            let (server, _) = listener.accept()?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            std::io::Result::Ok((client, server))
        };
        let connections = (0..CONNECTIONS).map(|_| connect()).collect::<Result<_, _>>().context("cannot connect")?;
        Ok(Self { connections })
    }

    /// Nanoseconds of processor time of one request and its answer, over a while.
    pub(super) fn nanoseconds_each(&mut self, window: Duration) -> Result<f64> {
        let (begun, before, mut done) = (Instant::now(), thread_ns()?, 0);
        while begun.elapsed() < window {
            for (client, server) in &mut self.connections {
                turn(client, server).context("a turn over loopback")?;
                done += 1;
            }
        }
        Ok((thread_ns()? - before) as f64 / f64::from(done))
    }
}

/// A request and its answer.
fn turn(client: &mut TcpStream, server: &mut TcpStream) -> std::io::Result<()> {
    let (mut request, mut answer) = (REQUEST, ANSWER);
    client.write_all(&REQUEST)?;
    server.read_exact(&mut request)?;
    server.write_all(&ANSWER)?;
    client.read_exact(&mut answer)
}

/// Processor time of this thread, in nanoseconds.
fn thread_ns() -> Result<u64> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that the kernel may write.
    if unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) } != 0 {
        bail!("no clock of this thread's processor time");
    }
    Ok(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}
