//! `monitor query`: asks the agent at its socket, or a recording, and prints the answer as it comes.

use super::{settings::Socket, written};
use crate::{
    history::{At, Recording},
    output::{json::Pretty, wants_colour},
    serve,
};
use anyhow::{Context as _, bail};
use axum::body::Body;
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Body as HttpBody, Bytes},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::{
    future::poll_fn,
    io::{self, IsTerminal as _, Write},
    path::{Path, PathBuf},
    pin::Pin,
    process::ExitCode,
};
use tokio::net::UnixStream;

/// The most that is read of an answer that is an error.
const PROBLEM_BYTES_MAX: usize = 64 << 10;

/// Ask the running agent, or a recording, and print the answer: indented on a terminal, as it comes elsewhere.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  monitor query /                                      what can be asked
  monitor query '/v1/trees?sort=page_faults.per_second&limit=5'
  monitor query '/v1/processes?cgroup=/system.slice&sort=block_io.read_bytes_total'
  monitor query '/v1/events?follow=true'               what happens, as it happens
  monitor query /v1/health | jq .cost
  monitor query --from night.rec '/v1/trees?sort=page_faults.per_second'       at the recording's end
  monitor query --from /var/lib/monitor --at 2026-11-21T03:17:00+01:00 /v1/snapshot
  monitor query --from night.rec --at=-10m /v1/events  what happened until ten minutes before the end")]
pub(super) struct Arguments {
    /// What to ask for, with its parameters; quote it, as & and ? mean something to the shell.
    #[arg(value_name = "PATH", value_parser = path_and_query)]
    path: Uri,
    #[command(flatten)]
    asked: Asked,
}

/// Who is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Asked {
    #[command(flatten)]
    socket: Socket,
    /// Ask this recording, a file or a directory, instead of the running agent.
    #[arg(long, value_name = "FILE|DIR", conflicts_with = "socket")]
    from: Option<PathBuf>,
    /// The moment of the recording: a time such as 2026-11-21T14:30:00Z or @1795271400, or -30s before its end [default: its
    /// end]. The last snapshot until then answers.
    #[arg(long, value_name = "TIME", requires = "from", allow_hyphen_values = true)]
    at: Option<At>,
}

fn path_and_query(text: &str) -> Result<Uri, String> {
    let uri = text.parse().ok().filter(|_| text.starts_with('/'));
    uri.ok_or_else(|| "it takes a path such as /v1/trees, with other letters than [A-Za-z0-9/._~-] as %XX".to_owned())
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let terminal = io::stdout().is_terminal();
    let printer = terminal.then(|| Pretty::new(wants_colour()));
    arguments.asked.ask(&arguments.path, printer, &mut io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

impl Asked {
    /// Asks for a path, and prints the answer as it comes, or what `show` makes of it.
    pub(super) fn print<T: DeserializeOwned>(
        &self,
        path: &str,
        json: bool,
        show: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<ExitCode> {
        let path = path.parse().context("not a path")?;
        if json {
            self.ask(&path, None, &mut io::stdout())?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut answer = Vec::new();
        self.ask(&path, None, &mut answer)?;
        let answer = serde_json::from_slice(&answer).context("the agent's answer is not understood")?;
        written(io::stdout().write_all(show(&answer).as_bytes()))?;
        Ok(ExitCode::SUCCESS)
    }

    /// Asks for a path, and writes the answer to `out`, by the printer where there is one.
    pub(super) fn ask(&self, path: &Uri, printer: Option<Pretty>, out: &mut impl Write) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
        match &self.from {
            Some(from) => runtime.block_on(ask_recording(from, self.at.unwrap_or_default(), path, printer, out)),
            None => runtime.block_on(ask(&self.socket.load()?.config.socket, path, printer, out)),
        }
    }
}

/// What the agent at a socket answers, understood.
pub(super) fn asked_agent<T: DeserializeOwned>(socket: &Path, path: &Uri) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let mut answer = Vec::new();
    runtime.block_on(ask(socket, path, None, &mut answer))?;
    serde_json::from_slice(&answer).context("the agent's answer is not understood")
}

/// What is answered from all that was seen until then.
const WHOLE: [&str; 6] = ["/v1/events", "/v1/findings", "/v1/alerts", "/v1/oom", "/v1/recommendations", "/v1/budget"];

/// Asks a recording as [`ask`] asks an agent. What of it cannot be read is told on standard error.
async fn ask_recording(
    from: &Path,
    at: At,
    path: &Uri,
    printer: Option<Pretty>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let recording = Recording::open(from)?;
    recording.remarks().iter().for_each(|remark| log::warn!("{remark}"));
    let recorded = recording.replay(at, WHOLE.contains(&path.path()))?;
    let response = serve::answer_recorded(recorded, path).await;
    tell(response, printer, out).await.with_context(|| format!("asking {} for {path}", from.display()))
}

/// Asks, and writes the answer to `out`, by the printer where there is one. Error answers become errors.
async fn ask(socket: &Path, path: &Uri, printer: Option<Pretty>, out: &mut impl Write) -> anyhow::Result<()> {
    let stream = UnixStream::connect(socket).await.map_err(|error| unanswered(socket, error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let conversation = async {
        let request = Request::get(path).header(header::HOST, "localhost").body(Body::empty())?;
        let response = sender.send_request(request).await?;
        tell(response, printer, out).await
    };
    let conversation = async { conversation.await.with_context(|| format!("asking {} for {path}", socket.display())) };
    tokio::pin!(connection, conversation);
    tokio::select! {
        result = &mut conversation => result,
        // The connection ended first; what it had received is still with the conversation.
        _ = &mut connection => conversation.await,
    }
}

/// Why nobody answers at a socket, and what to do about it.
fn unanswered(socket: &Path, error: io::Error) -> anyhow::Error {
    let socket = socket.display();
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => format!("may not ask at {socket}: be root, or join the socket's group"),
        _ => {
            format!("no agent answers at {socket}: start it with `sudo monitor run`, or name its socket with --socket")
        }
    };
    anyhow::Error::new(error).context(remedy)
}

/// A body as it comes from a socket, or from the endpoints themselves.
trait Answer: HttpBody<Data = Bytes, Error: std::error::Error + Send + Sync + 'static> + Unpin {}

impl<B: HttpBody<Data = Bytes, Error: std::error::Error + Send + Sync + 'static> + Unpin> Answer for B {}

async fn tell(response: Response<impl Answer>, printer: Option<Pretty>, out: &mut impl Write) -> anyhow::Result<()> {
    if response.status() == StatusCode::OK { print(response, printer, out).await } else { fail(response).await }
}

async fn print(response: Response<impl Answer>, printer: Option<Pretty>, out: &mut impl Write) -> anyhow::Result<()> {
    let is_document = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    let mut printer = printer.filter(|_| is_document);
    let mut body = response.into_body();
    let mut ends_line = true;
    while let Some(piece) = next(&mut body).await? {
        let mut text = Vec::new();
        match &mut printer {
            Some(printer) => printer.push(&piece, &mut text),
            None => text.extend_from_slice(&piece),
        }
        ends_line = text.last().map_or(ends_line, |&last| last == b'\n');
        // A reader that has gone ends the conversation; following would never notice otherwise.
        if let Err(error) = out.write_all(&text).and_then(|()| out.flush()) {
            return written(Err(error));
        }
    }
    if ends_line { Ok(()) } else { written(out.write_all(b"\n")) }
}

/// Turns an error answer into one line.
async fn fail(response: Response<impl Answer>) -> anyhow::Result<()> {
    let status = response.status();
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(piece) = next(&mut body).await?.filter(|_| text.len() < PROBLEM_BYTES_MAX) {
        text.extend_from_slice(&piece);
    }
    let problem: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    match problem["detail"].as_str() {
        Some(detail) => bail!("{status}: {detail}"),
        None => bail!("{status}"),
    }
}

/// The next piece of a body.
async fn next<B: Answer>(body: &mut B) -> Result<Option<Bytes>, B::Error> {
    loop {
        match poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await.transpose()? {
            Some(frame) => {
                if let Ok(piece) = frame.into_data() {
                    return Ok(Some(piece));
                }
            }
            None => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixListener,
    };

    /// What is printed when a server sends `answer`, piece by piece, and what became of asking.
    async fn asked(answer: &'static [&'static str], printer: Option<Pretty>) -> (String, anyhow::Result<()>) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("m.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            for piece in answer {
                let _ = stream.write_all(piece.as_bytes()).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let mut out = Vec::new();
        let result = ask(&socket, &"/v1/trees?limit=1".parse().unwrap(), printer, &mut out).await;
        assert!(server.await.unwrap().starts_with("GET /v1/trees?limit=1 HTTP/1.1\r\n"));
        (String::from_utf8(out).unwrap(), result)
    }

    const CHUNKED: &[&str] = &[
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n",
        "3\r\n1}\n\r\n0\r\n\r\n",
    ];

    #[tokio::test]
    async fn an_answer_comes_as_it_is_where_nobody_looks() {
        let (text, result) = asked(CHUNKED, None).await;
        result.unwrap();
        assert_eq!(text, "{\"a\":1}\n");
    }

    #[tokio::test]
    async fn it_is_indented_where_somebody_looks() {
        let (text, result) = asked(CHUNKED, Some(Pretty::new(false))).await;
        result.unwrap();
        assert_eq!(text, "{\n  \"a\": 1\n}\n");
    }

    #[tokio::test]
    async fn lines_stay_lines() {
        let answer = &["HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ncontent-length: 8\r\n\r\n{\"a\":1}\n"];
        let (text, result) = asked(answer, Some(Pretty::new(true))).await;
        result.unwrap();
        assert_eq!(text, "{\"a\":1}\n");
    }

    #[tokio::test]
    async fn an_error_answer_is_one_line() {
        let answer = &["HTTP/1.1 404 Not Found\r\ncontent-length: 29\r\n\r\n{\"detail\":\"there is no /x: …\"}"];
        let (text, result) = asked(answer, None).await;
        let message = format!("{:#}", result.unwrap_err());
        assert!(text.is_empty() && message.contains("404 Not Found") && !message.contains('\n'), "{message}");
        let answer = &["HTTP/1.1 400 Bad Request\r\ncontent-length: 20\r\n\r\n{\"detail\":\"sort=x\"} "];
        let message = format!("{:#}", asked(answer, None).await.1.unwrap_err());
        assert!(message.ends_with("400 Bad Request: sort=x"), "{message}");
    }

    #[tokio::test]
    async fn a_cut_answer_is_an_error() {
        let (_, result) = asked(&CHUNKED[..1], None).await;
        assert!(result.is_err());
        let (_, result) = asked(&[], None).await;
        assert!(result.is_err());
    }

    #[tokio::test]
    async fn without_an_agent_it_says_how_to_start_one() {
        let path = Path::new("/no/such.sock");
        let error = ask(path, &"/".parse().unwrap(), None, &mut Vec::new()).await.unwrap_err();
        let message = format!("{error:#}");
        assert!(
            message.starts_with("no agent answers at /no/such.sock: start it with `sudo monitor run`"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn a_reader_that_has_gone_ends_it_quietly() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("m.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 16]).await.unwrap();
            stream.write_all(CHUNKED[0].as_bytes()).await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
        });
        ask(&socket, &"/".parse().unwrap(), None, &mut Closed).await.unwrap();
        server.await.unwrap();
    }

    #[test]
    fn without_the_right_it_says_how_to_get_it() {
        let error = unanswered(Path::new("/m.sock"), io::ErrorKind::PermissionDenied.into());
        assert!(error.to_string().starts_with("may not ask at /m.sock: be root"), "{error}");
    }

    #[test]
    fn a_path_begins_with_a_slash() {
        assert!(path_and_query("/v1/trees?cgroup=/a%20b").is_ok());
        assert!(path_and_query("v1/trees").is_err());
        assert!(path_and_query("/a b").is_err());
    }
}
