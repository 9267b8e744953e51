//! HTTP/1.1 over a Unix socket or TCP, as far as the tests need it: one GET a connection, bodies of known length, chunked, or
//! until the end. Written here so that the agent's server is judged by other code than its own.

use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// How long an answer may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The body, decoded.
    pub body: String,
}

/// An answer whose body is still coming.
#[derive(Debug)]
pub struct Response<R> {
    /// Status code.
    pub status: u16,
    /// Headers by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The body, decoded as it is read.
    pub body: BufReader<Body<R>>,
}

/// A body without its framing.
#[derive(Debug)]
pub struct Body<R> {
    reader: R,
    framing: Framing,
}

#[derive(Debug)]
enum Framing {
    Length(u64),
    /// Bytes left of this chunk; none before its size line was read.
    Chunked(Option<u64>),
    ToEnd,
    Ended,
}

/// Asks and reads the whole answer.
///
/// # Errors
/// A connection refused or broken, or an answer that is not HTTP/1.1 or not UTF-8.
pub fn get(socket: &Path, target: &str) -> Result<Answer> {
    request(socket, "GET", target)
}

/// Asks by another method, without a body, and reads the whole answer.
///
/// # Errors
/// As [`get`].
pub fn request(socket: &Path, method: &str, target: &str) -> Result<Answer> {
    whole(open(socket, method, target)?, target)
}

/// Asks over TCP, with these headers, and reads the whole answer.
///
/// # Errors
/// As [`get`].
pub fn get_tcp(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    let mut connection = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    connection.set_read_timeout(Some(SILENCE))?;
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(connection, "GET {target} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n")?;
    whole(parse(BufReader::new(connection)).with_context(|| format!("no answer to GET {target}"))?, target)
}

fn whole<R: BufRead>(mut response: Response<R>, target: &str) -> Result<Answer> {
    let mut body = String::new();
    response.body.read_to_string(&mut body).with_context(|| format!("cannot read the body of {target}"))?;
    Ok(Answer { status: response.status, headers: response.headers, body })
}

/// Posts a body and reads the whole answer.
///
/// # Errors
/// As [`get`].
pub fn post(socket: &Path, target: &str, body: &str) -> Result<Answer> {
    let mut connection =
        UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    connection.set_read_timeout(Some(SILENCE))?;
    let length = body.len();
    write!(
        connection,
        "POST {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut response = parse(BufReader::new(connection)).with_context(|| format!("no answer to POST {target}"))?;
    let mut body = String::new();
    response.body.read_to_string(&mut body).with_context(|| format!("cannot read the body of {target}"))?;
    Ok(Answer { status: response.status, headers: response.headers, body })
}

/// Asks and gives the body as it comes.
///
/// # Errors
/// As [`get`].
pub fn stream(socket: &Path, target: &str) -> Result<Response<BufReader<UnixStream>>> {
    open(socket, "GET", target)
}

fn open(socket: &Path, method: &str, target: &str) -> Result<Response<BufReader<UnixStream>>> {
    let mut connection =
        UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    connection.set_read_timeout(Some(SILENCE))?;
    write!(connection, "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    parse(BufReader::new(connection)).with_context(|| format!("no answer to {method} {target}"))
}

fn parse<R: BufRead>(mut reader: R) -> Result<Response<R>> {
    let status_line = line(&mut reader)?;
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("not a status line: {status_line:?}"))?;
    let mut headers = BTreeMap::new();
    loop {
        let header = line(&mut reader)?;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').with_context(|| format!("not a header: {header:?}"))?;
        headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
    }
    let framing = framing(&headers)?;
    Ok(Response { status, headers, body: BufReader::new(Body { reader, framing }) })
}

fn framing(headers: &BTreeMap<String, String>) -> Result<Framing> {
    if headers.get("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        return Ok(Framing::Chunked(None));
    }
    Ok(match headers.get("content-length") {
        Some(length) => Framing::Length(length.parse().with_context(|| format!("not a length: {length:?}"))?),
        None => Framing::ToEnd,
    })
}

/// One line of the head, without its end.
fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    ensure!(reader.read_line(&mut line)? > 0, "the connection ended within the head");
    match line.strip_suffix("\r\n") {
        Some(text) => Ok(text.to_owned()),
        None => bail!("a line of the head does not end in CR LF: {line:?}"),
    }
}

impl<R: BufRead> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.framing {
            Framing::Ended => Ok(0),
            Framing::ToEnd => self.reader.read(buffer),
            Framing::Length(left) => {
                let got = self.read_framed(buffer, left)?;
                self.framing = Framing::Length(left - got as u64);
                Ok(got)
            }
            Framing::Chunked(None) => {
                self.start_chunk()?;
                self.read(buffer)
            }
            Framing::Chunked(Some(left)) => {
                let got = self.read_framed(buffer, left)?;
                if left == got as u64 {
                    self.end_of_line()?;
                    self.framing = Framing::Chunked(None);
                } else {
                    self.framing = Framing::Chunked(Some(left - got as u64));
                }
                Ok(got)
            }
        }
    }
}

impl<R: BufRead> Body<R> {
    /// Reads at most `left` bytes, and at least one where any are left.
    fn read_framed(&mut self, buffer: &mut [u8], left: u64) -> std::io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got = self.reader.read(&mut buffer[..wanted])?;
        if got == 0 && wanted > 0 {
            return Err(broken(&format!("the body ended {left} bytes too early")));
        }
        Ok(got)
    }

    fn start_chunk(&mut self) -> std::io::Result<()> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let digits = line.trim_end().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(digits, 16).map_err(|_| broken(&format!("not a chunk size: {line:?}")))?;
        self.framing = if size == 0 {
            self.end_of_line()?;
            Framing::Ended
        } else {
            Framing::Chunked(Some(size))
        };
        Ok(())
    }

    fn end_of_line(&mut self) -> std::io::Result<()> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        if line == "\r\n" { Ok(()) } else { Err(broken(&format!("a chunk does not end in CR LF: {line:?}"))) }
    }
}

fn broken(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(bytes: &str) -> Result<(u16, String)> {
        let mut response = parse(bytes.as_bytes())?;
        let mut body = String::new();
        response.body.read_to_string(&mut body)?;
        Ok((response.status, body))
    }

    #[test]
    fn a_body_of_known_length_ends_there() {
        let got = answer("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more").unwrap();
        assert_eq!(got, (200, "hello".into()));
    }

    #[test]
    fn chunks_are_joined() {
        let got = answer(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab\n\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
        );
        assert_eq!(got.unwrap(), (200, "ab\n0123456789".into()));
    }

    #[test]
    fn without_a_length_the_body_goes_to_the_end() {
        assert_eq!(answer("HTTP/1.1 404 Not Found\r\n\r\nnothing here").unwrap(), (404, "nothing here".into()));
    }

    #[test]
    fn a_body_cut_short_is_an_error() {
        assert!(answer("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello").is_err());
        assert!(answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello").is_err());
        assert!(answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").is_err());
    }

    #[test]
    fn what_is_not_http_is_an_error() {
        for bytes in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno header\r\n\r\n",
            "HTTP/1.1 200 OK\n\n",
        ] {
            assert!(answer(bytes).is_err(), "{bytes:?}");
        }
    }
}
