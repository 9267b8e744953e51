//! Posting JSON.

use super::{TRY_FOR, worker::Failure};
use anyhow::ensure;
use axum::http::Uri;
use serde_json::Value;
use ureq::Agent;

/// Posts to one address.
pub(super) struct Poster {
    agent: Agent,
    address: String,
}

impl Poster {
    /// # Errors
    /// It is no address.
    pub(super) fn new(address: &str) -> anyhow::Result<Self> {
        let is_address = address.parse::<Uri>().is_ok_and(|uri| {
            uri.host().is_some() && uri.scheme_str().is_some_and(|scheme| ["http", "https"].contains(&scheme))
        });
        ensure!(is_address, "{address:?} is no address: it takes one such as https://host/path");
        let config = Agent::config_builder()
            .timeout_global(Some(TRY_FOR))
            .http_status_as_error(false)
            // Where somebody else is meant, somebody else is to be named.
            .max_redirects(0)
            .max_idle_connections(0)
            .user_agent(concat!("monitor/", env!("CARGO_PKG_VERSION")));
        Ok(Self { agent: config.build().into(), address: address.to_owned() })
    }

    /// Posts a document. What the other side calls our mistake is not tried again.
    pub(super) fn post(&self, body: &Value) -> Result<(), Failure> {
        let answer = self
            .agent
            .post(&self.address)
            .content_type("application/json")
            .send(body.to_string())
            .map_err(|error| Failure::later(format!("{}: {error}", host_of(&self.address))))?;
        let status = answer.status();
        let refused = || format!("{}: {status}", host_of(&self.address));
        match status.as_u16() {
            200..=299 => Ok(()),
            408 | 425 | 429 | 500..=599 => Err(Failure::later(refused())),
            _ => Err(Failure::for_good(refused())),
        }
    }
}

/// An address's host and port: its path may be a secret, as Slack's is, and so is what stands before the host.
pub(super) fn host_of(address: &str) -> &str {
    let begin = address.find("://").map_or(0, |at| at + 3);
    let host = &address[begin..];
    let host = &host[..host.find(['/', '?', '#']).unwrap_or(host.len())];
    &host[host.rfind('@').map_or(0, |at| at + 1)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_are_taken_and_their_secrets_are_not_told() {
        let shown = |address| Poster::new(address).map(|poster| host_of(&poster.address).to_owned()).ok();
        assert_eq!(shown("https://hooks.example.com/services/T0/B0/secret").as_deref(), Some("hooks.example.com"));
        assert_eq!(shown("http://user:pass@127.0.0.1:9093").as_deref(), Some("127.0.0.1:9093"));
        assert_eq!(shown("http://127.0.0.1:1?token=secret").as_deref(), Some("127.0.0.1:1"));
        assert_eq!(shown("http://h/a@b#c").as_deref(), Some("h"));
        for wrong in ["", "hooks.example.com/x", "ftp://host/", "http://", "/path"] {
            assert!(Poster::new(wrong).is_err(), "{wrong:?}");
        }
    }
}
