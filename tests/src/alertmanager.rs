//! A real Alertmanager: Debian's package `prometheus-alertmanager`.

use crate::{
    clock::{PATIENCE, wait_until},
    http,
    receiver::free_address,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fs::{self, File},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

const HOST: [(&str, &str); 1] = [("Host", "localhost")];

/// A real Alertmanager, which tells each alert by itself to a webhook, at once and when it is over.
#[derive(Debug)]
pub struct Alertmanager {
    child: Child,
    address: SocketAddr,
    directory: TempDir,
}

impl Alertmanager {
    /// Starts one, and waits until it answers.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start(webhook: SocketAddr) -> Result<Self> {
        let (address, directory) = (free_address()?, tempfile::tempdir()?);
        let path = |name: &str| directory.path().join(name);
        let settings = format!(
            "route: {{receiver: test, group_by: ['...'], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}}\n\
             receivers: [{{name: test, webhook_configs: [{{url: 'http://{webhook}/', send_resolved: true}}]}}]\n"
        );
        fs::write(path("settings.yml"), settings)?;
        let child = Command::new("prometheus-alertmanager")
            .arg(format!("--config.file={}", path("settings.yml").display()))
            .arg(format!("--storage.path={}", path("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--cluster.listen-address=")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(path("log"))?)
            .spawn()
            .context("cannot start Alertmanager: install Debian's package prometheus-alertmanager")?;
        let alertmanager = Self { child, address, directory };
        let words = || fs::read_to_string(alertmanager.directory.path().join("log")).unwrap_or_default();
        wait_until("Alertmanager to be ready", PATIENCE, || {
            let listens = TcpStream::connect(address).is_ok();
            Ok((listens && http::get_tcp(address, "/-/ready", &HOST)?.status == 200).then_some(()))
        })
        .with_context(words)?;
        Ok(alertmanager)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What goes on, as it knows it.
    ///
    /// # Errors
    /// It does not answer as it should.
    pub fn active(&self) -> Result<Vec<Value>> {
        let answer = http::get_tcp(self.address, "/api/v2/alerts", &HOST)?;
        ensure!(answer.status == 200, "Alertmanager answered {}: {}", answer.status, answer.body);
        Ok(serde_json::from_str(&answer.body)?)
    }

    /// The one alert that goes on, once its label is this.
    ///
    /// # Errors
    /// As [`Self::active`], or there is none in time.
    pub fn one(&self, label: &str, value: &str) -> Result<Value> {
        wait_until(&format!("an alert with {label} {value} at Alertmanager"), PATIENCE, || {
            Ok(self.active()?.into_iter().find(|alert| alert["labels"][label] == value))
        })?;
        wait_until("Alertmanager to have one alert", PATIENCE, || {
            let [alert] = &self.active()?[..] else { return Ok(None) };
            Ok((alert["labels"][label] == value).then(|| alert.clone()))
        })
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(|_| ())) {
            eprintln!("cannot end Alertmanager: {error}");
        }
    }
}
