//! A webhook, as Slack takes it: `text` for people, and all of the alert beside it for programs.

use super::{Notice, Sink, http::Poster, worker::Failure};
use serde_json::json;

/// Posts to a webhook.
pub(super) struct Webhook {
    poster: Poster,
}

impl Webhook {
    pub(super) fn new(address: &str) -> anyhow::Result<Self> {
        Ok(Self { poster: Poster::new(address)? })
    }
}

impl Sink for Webhook {
    fn name(&self) -> &'static str {
        "webhook"
    }

    fn send(&mut self, notice: &Notice) -> Result<(), Failure> {
        self.poster.post(&json!({ "text": escaped(&notice.line()), "alert": notice.json() }))
    }
}

/// Slack's three control characters (api.slack.com/reference/surfaces/formatting), so that nobody's name is a link or a call.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_call_nobody() {
        assert_eq!(super::escaped("a & <!channel>"), "a &amp; &lt;!channel&gt;");
    }
}
