//! Mail, by SMTP.

use super::{Notice, Sink, TRY_FOR, http::host_of, worker::Failure};
use crate::{alert::State, output::harmless};
use anyhow::{Context as _, ensure};
use lettre::{
    Message, SmtpTransport, Transport as _,
    message::{Mailbox, header::ContentType},
};
use std::io;

/// Sends mail.
pub(super) struct Email {
    server: String,
    transport: SmtpTransport,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl Email {
    /// # Errors
    /// Something that is needed is missing, or makes no sense.
    pub(super) fn new(server: &str, from: Option<&str>, to: &[String]) -> anyhow::Result<Self> {
        let transport = SmtpTransport::from_url(server)
            .context("alerts.email_server takes an address such as smtp://127.0.0.1:25 or smtps://user:password@host")?
            .timeout(Some(TRY_FOR))
            .build();
        let from = from.context("alerts.email_from is missing: say who the mail is from")?;
        ensure!(!to.is_empty(), "alerts.email_to is missing: say who the mail is to");
        let parse =
            |address: &str| address.parse::<Mailbox>().with_context(|| format!("{address:?} is no mail address"));
        let to = to.iter().map(|address| parse(address)).collect::<Result<_, _>>().context("alerts.email_to")?;
        let server = host_of(server).to_owned();
        Ok(Self { server, transport, from: parse(from).context("alerts.email_from")?, to })
    }
}

impl Sink for Email {
    fn name(&self) -> &'static str {
        "email"
    }

    fn send(&mut self, notice: &Notice) -> Result<(), Failure> {
        let what = match notice.alert.state {
            State::Firing => notice.alert.severity.name(),
            State::Resolved => "resolved",
        };
        let subject = format!("[{}] {what}: {}", notice.host, harmless(&notice.alert.summary));
        let whole = serde_json::to_string_pretty(&notice.json()).unwrap_or_default();
        let mut message = Message::builder().from(self.from.clone()).subject(subject).header(ContentType::TEXT_PLAIN);
        message = message.message_id(None);
        for to in &self.to {
            message = message.to(to.clone());
        }
        let message = message.body(format!("{}\n\n{whole}\n", notice.line())).map_err(Failure::for_good)?;
        match self.transport.send(&message) {
            Ok(_) => Ok(()),
            Err(error) if is_silent(&error) => {
                Err(Failure::later(format!("{}: no answer within {} s", self.server, TRY_FOR.as_secs())))
            }
            Err(error) if error.is_permanent() => Err(Failure::for_good(format!("{}: {error}", self.server))),
            Err(error) => Err(Failure::later(format!("{}: {error}", self.server))),
        }
    }
}

/// Whether a server said nothing for too long: a socket with a time limit has EAGAIN for that.
fn is_silent(error: &lettre::transport::smtp::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        }
        cause = error.source();
    }
    false
}
