//! Alerts, as those have them who are told: a real Alertmanager, a real mail server, webhooks and programs, such that receive
//! and such that do not.
//!
//! What is out of the ordinary is a cgroup of the test's own that is nearly full. They need
//! `apt-get install --no-install-recommends prometheus-alertmanager python3-aiosmtpd`.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};
use tests::{
    Agent, Alertmanager, Cgroup, Machine, Receiver, Workload, agent,
    clock::{PATIENCE, boot_ns, wait_until},
    expect, json,
    receiver::{MailServer, free_address, lines},
};

const MIB: u64 = 1 << 20;
/// What the cgroup may have.
const LIMIT: u64 = 64 * MIB;
/// More than 80 % of it, at which a warning is told, and less than 90 %.
const MUCH: u64 = 55 * MIB;
/// What makes that more than 90 %, which is critical.
const MORE: u64 = 5 * MIB;
/// Far less than what a receiver that does not answer takes for one try, which is 10 s.
const SOON: Duration = Duration::from_secs(8);
/// As Slack's addresses have one in their path.
const SECRET: &str = "T0SECRET/B0SECRET";
/// Nothing but memory is judged, and that soon; the machine's own is nobody's business here.
const SETTINGS: [&str; 3] = ["alerts.hold=1s", "alerts.cool_down=0s", "alerts.silence=the machine"];
const OTHER_RULES: [&str; 10] = [
    "gpu_underutilization",
    "io_bottleneck",
    "gpu_temperature",
    "memory_stall",
    "thrashing",
    "gpu_memory",
    "gpu_throttling",
    "gpu_lost",
    "leak",
    "oom_kill",
];

/// An agent with these settings besides.
fn start(settings: &[String]) -> Result<Agent> {
    let others = OTHER_RULES.map(|rule| format!("alert_{rule}=false"));
    let all = SETTINGS.into_iter().chain(others.iter().chain(settings).map(String::as_str));
    Agent::start(&all.flat_map(|setting| ["--set", setting]).collect::<Vec<_>>())
}

/// Tries receivers out.
fn try_out(settings: &[String]) -> Result<Output> {
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    agent::run(&["alerts", "test"].into_iter().chain(settings).collect::<Vec<_>>())
}

/// A cgroup that may not have much, and a process there that takes what it is told to.
struct Tenant {
    workload: Workload,
    cgroup: Cgroup,
    taken: Vec<(u64, u64)>,
}

impl Tenant {
    fn new(name: &str) -> Result<Self> {
        let (workload, cgroup) = (Workload::start()?, Cgroup::new(name)?);
        cgroup.limit_memory(LIMIT)?;
        cgroup.add(workload.pid())?;
        Ok(Self { workload, cgroup, taken: Vec::new() })
    }

    fn take(&mut self, bytes: u64) -> Result<()> {
        let kept = self.workload.run(&format!("keep anon {bytes}"))?;
        self.taken.push((json::count(&kept, "address")?, bytes));
        Ok(())
    }

    fn give_back(&mut self) -> Result<()> {
        for (address, bytes) in self.taken.drain(..) {
            self.workload.run(&format!("give-back {address} {bytes}"))?;
        }
        Ok(())
    }

    /// As alerts call it.
    fn name(&self) -> String {
        format!("cgroup {}", self.cgroup.path())
    }

    /// The one alert about it, once it stands so.
    fn alert(&self, agent: &Agent, state: &str, severity: &str) -> Result<Value> {
        wait_until(&format!("a {severity} that is {state}"), PATIENCE, || {
            let answer = agent.get("/v1/alerts")?;
            let is_its = |alert: &&Value| alert["subject"]["cgroup"] == self.cgroup.path();
            let its: Vec<_> = json::list(&answer, "alerts")?.iter().filter(is_its).collect();
            ensure!(its.len() < 2, "more than one: {its:?}");
            Ok(its.into_iter().find(|alert| alert["state"] == state && alert["severity"] == severity).cloned())
        })
    }
}

/// What a receiver has been told of an alert: the text of a field, of each.
fn texts(told: &[Value], name: &str) -> Result<Vec<String>> {
    told.iter().map(|told| Ok(json::text(told, name)?.to_owned())).collect()
}

/// What became of what a receiver was to be told.
fn sink(agent: &Agent, name: &str) -> Result<Value> {
    let answer = agent.get("/v1/alerts")?;
    let found = json::list(&answer, "sinks")?.iter().find(|sink| sink["name"] == name);
    found.cloned().with_context(|| format!("no {name} in {answer}"))
}

/// Its numbers: told, lost, waiting.
fn fates(agent: &Agent, name: &str) -> Result<[u64; 3]> {
    let sink = sink(agent, name)?;
    Ok([json::count(&sink, "sent_total")?, json::count(&sink, "dropped_total")?, json::count(&sink, "queued")?])
}

/// Waits until so many alerts and ends of alerts were told, with none lost.
fn wait_for_told(agent: &Agent, names: &[&str], times: u64) -> Result<()> {
    for name in names {
        wait_until(&format!("{name} to be told {times} times"), 2 * PATIENCE, || {
            let fates = fates(agent, name)?;
            ensure!(fates[0] <= times && fates[1] == 0, "{name}: {fates:?}");
            Ok((fates == [times, 0, 0]).then_some(()))
        })
        .with_context(|| agent.words())?;
    }
    Ok(())
}

/// Lets several ticks pass.
fn several_ticks(agent: &Agent) -> Result<()> {
    (0..4).try_for_each(|_| agent.settle())
}

/// A program of a shell's commands.
fn program(directory: &Path, commands: &str) -> Result<PathBuf> {
    let path = directory.join("program");
    fs::write(&path, format!("#!/bin/sh\n{commands}\n"))?;
    fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    Ok(path)
}

/// How far apart the agent's judgements are.
#[derive(Default)]
struct Ticks {
    last: u64,
    longest: u64,
    seen: u64,
}

impl Ticks {
    fn look(&mut self, agent: &Agent) -> Result<()> {
        let time = json::count(&agent.get("/v1/alerts")?, "time_ns")?;
        if time > self.last {
            self.longest = self.longest.max(if self.seen > 0 { time - self.last } else { 0 });
            (self.last, self.seen) = (time, self.seen + 1);
        }
        Ok(())
    }
}

#[test]
fn a_real_alertmanager_knows_of_one_alert_and_tells_its_beginning_and_its_end_once() -> Result<()> {
    let _machine = Machine::claim()?;
    let told = Receiver::start(200)?;
    let alertmanager = Alertmanager::start(told.address())?;
    let mut tenant = Tenant::new("alertmanager")?;
    let agent = start(&[format!("alerts.alertmanager=http://{}", alertmanager.address())])?;
    let name = tenant.name();
    // In which order it tells of two at once is its own.
    let tellings = |times: usize| -> Result<Vec<(String, String)>> {
        wait_until(&format!("Alertmanager to tell {times} times"), PATIENCE, || {
            let posts = told.taken();
            let alerts = posts.iter().flat_map(|post| post["alerts"].as_array().into_iter().flatten());
            let all: Vec<Value> = alerts.filter(|alert| alert["labels"]["subject"] == *name).cloned().collect();
            let all = texts(&all, "status")?.into_iter().zip(texts(&all, "labels.severity")?);
            let mut all: Vec<_> = all.collect();
            all.sort();
            Ok((all.len() >= times).then_some(all))
        })
    };
    let pair = |state: &str, severity: &str| (state.to_owned(), severity.to_owned());

    tenant.take(MUCH)?;
    let alert = tenant.alert(&agent, "firing", "warning")?;
    let known = alertmanager.one("subject", &tenant.name())?;
    let labels = json!({
        "alertname": "monitor_memory_pressure",
        "instance": fs::read_to_string("/proc/sys/kernel/hostname")?.trim(),
        "severity": "warning",
        "subject": tenant.name(),
        "cgroup": tenant.cgroup.path(),
    });
    expect::exactly("labels", json::at(&known, "labels")?, &labels)?;
    let evidence: Value = serde_json::from_str(json::text(&known, "annotations.evidence")?)?;
    expect::exactly("limit", json::count(&evidence, "memory.limit_bytes")?, LIMIT)?;
    let summary = json::text(&known, "annotations.summary")?;
    ensure!(summary.starts_with("High memory usage: ") && summary.contains(&tenant.name()), "{summary}");
    ensure!(json::text(&alert, "summary")?.starts_with("High memory usage: "), "{alert}");
    expect::exactly("tellings", tellings(1)?, vec![pair("firing", "warning")])?;

    // It is told again and again that it goes on, lest it takes it for over, and tells nobody of that.
    wait_until("Alertmanager to be told again", 2 * PATIENCE, || {
        let again = alertmanager.one("subject", &tenant.name())?;
        Ok((json::text(&again, "endsAt")? > json::text(&known, "endsAt")?).then_some(()))
    })?;
    several_ticks(&agent)?;
    expect::exactly("tellings", tellings(1)?, vec![pair("firing", "warning")])?;
    expect::exactly("told, lost, waiting", fates(&agent, "alertmanager")?, [1, 0, 0])?;

    tenant.take(MORE)?;
    tenant.alert(&agent, "firing", "critical")?;
    alertmanager.one("severity", "critical")?;
    let mut expected = vec![pair("firing", "critical"), pair("firing", "warning"), pair("resolved", "warning")];
    expect::exactly("tellings", tellings(3)?, expected.clone())?;

    tenant.give_back()?;
    tenant.alert(&agent, "resolved", "critical")?;
    wait_until("Alertmanager to have no alerts", PATIENCE, || Ok(alertmanager.active()?.is_empty().then_some(())))?;
    expected.insert(2, pair("resolved", "critical"));
    expect::exactly("tellings", tellings(4)?, expected.clone())?;
    several_ticks(&agent)?;
    expect::exactly("tellings", tellings(4)?, expected)?;
    wait_for_told(&agent, &["alertmanager"], 3)?;
    agent.stop()
}

#[test]
fn everybody_is_told_the_same_once_when_it_begins_and_once_when_it_is_over() -> Result<()> {
    const NAMES: [&str; 5] = ["log", "json_lines", "webhook", "exec", "email"];
    let _machine = Machine::claim()?;
    let (directory, webhook, mail) = (tempfile::tempdir()?, Receiver::start(200)?, MailServer::start()?);
    let path = |name: &str| directory.path().join(name);
    let (json_lines, input, words) = (path("json_lines"), path("input"), path("words"));
    let commands = format!(
        "cat >> {}\necho $MONITOR_ALERT_RULE $MONITOR_ALERT_STATE $MONITOR_ALERT_SEVERITY >> {}",
        input.display(),
        words.display()
    );
    // Slack would take it for a call of everybody.
    let mut tenant = Tenant::new("<!channel> & ü")?;
    let agent = start(&[
        format!("alerts.json_lines={}", json_lines.display()),
        format!("alerts.webhook=http://{}/services/{SECRET}", webhook.address()),
        format!("alerts.exec={}", program(directory.path(), &commands)?.display()),
        format!("alerts.email_server=smtp://{}", mail.address()),
        "alerts.email_from=Monitor <monitor@example.org>".to_owned(),
        "alerts.email_to=one@example.org,another@example.org".to_owned(),
    ])?;
    tenant.take(MUCH)?;
    tenant.alert(&agent, "firing", "warning")?;
    wait_for_told(&agent, &NAMES, 1)?;
    // It goes on, which is no news.
    several_ticks(&agent)?;
    wait_for_told(&agent, &NAMES, 1)?;
    tenant.give_back()?;
    let over = tenant.alert(&agent, "resolved", "warning")?;
    wait_for_told(&agent, &NAMES, 2)?;
    several_ticks(&agent)?;
    wait_for_told(&agent, &NAMES, 2)?;

    let told = lines(&json_lines)?;
    expect::exactly("states", texts(&told, "state")?, vec!["firing".to_owned(), "resolved".to_owned()])?;
    let summaries = texts(&told, "summary")?;
    for (told, summary) in told.iter().zip(&summaries) {
        expect::exactly("rule", json::text(told, "rule")?, "memory_pressure")?;
        expect::exactly("subject", json::text(told, "subject.cgroup")?, &tenant.cgroup.path())?;
        ensure!(summary.starts_with("High memory usage: ") && summary.contains(&tenant.name()), "{summary}");
    }
    for name in ["summary", "since_ns", "fired_ns", "resolved_ns", "value", "threshold", "evidence"] {
        expect::exactly(name, json::at(&told[1], name)?, json::at(&over, name)?)?;
    }

    let posts = webhook.taken();
    let alerts: Vec<Value> = posts.iter().map(|post| post["alert"].clone()).collect();
    expect::exactly("what the webhook was told", &alerts, &told)?;
    for (text, summary) in texts(&posts, "text")?.iter().zip(&summaries) {
        let escaped = summary.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        ensure!(text.ends_with(&escaped) && !text.contains('<'), "{text} is not of {summary}");
    }
    expect::exactly("what the program was told", &lines(&input)?, &told)?;
    let words = fs::read_to_string(&words)?;
    expect::exactly("its environment", &*words, "memory_pressure firing warning\nmemory_pressure resolved warning\n")?;

    let mails = mail.mails()?;
    expect::exactly("mails", mails.len(), 2)?;
    for (mail, told) in mails.iter().zip(&told) {
        let summary = json::text(told, "summary")?;
        let what = if told["state"] == "firing" { "warning" } else { "resolved" };
        let subject = format!("[{}] {what}: {summary}", json::text(told, "host")?);
        expect::exactly("subject of a mail", json::text(mail, "Subject")?, &*subject)?;
        expect::exactly("its sender", json::text(mail, "From")?, "Monitor <monitor@example.org>")?;
        expect::exactly("its recipients", &mail["recipients"], &json!(["one@example.org", "another@example.org"]))?;
        let (line, whole) = json::text(mail, "body")?.split_once("\n\n").context("no empty line")?;
        ensure!(line.ends_with(summary), "{line} is not of {summary}");
        expect::exactly("what the mail tells", &serde_json::from_str::<Value>(whole)?, told)?;
    }
    let logged = agent.words().lines().filter(|line| line.contains(&tenant.name())).count();
    expect::exactly("lines of the log", logged, 2)?;
    agent.stop()
}

#[test]
fn receivers_that_are_dead_or_slow_or_refuse_keep_nobody_waiting() -> Result<()> {
    const FAILING: [(&str, &str); 4] =
        [("webhook", "refused"), ("alertmanager", "500"), ("exec", "did not end within 10 s"), ("email", "")];
    let _machine = Machine::claim()?;
    let (directory, dead, refusing) = (tempfile::tempdir()?, free_address()?, Receiver::start(500)?);
    // The kernel takes connections for it, and nobody answers.
    let slow = TcpListener::bind("127.0.0.1:0")?;
    let json_lines = directory.path().join("json_lines");
    let mut tenant = Tenant::new("waiting")?;
    let agent = start(&[
        format!("alerts.json_lines={}", json_lines.display()),
        format!("alerts.webhook=http://{dead}/services/{SECRET}"),
        format!("alerts.alertmanager=http://{}", refusing.address()),
        format!("alerts.exec={}", program(directory.path(), "exec sleep 20")?.display()),
        format!("alerts.email_server=smtp://{}", slow.local_addr()?),
        "alerts.email_from=monitor@example.org".to_owned(),
        "alerts.email_to=one@example.org".to_owned(),
    ])?;
    let mut ticks = Ticks::default();
    let wait_for_line = |number: usize, time: &str, ticks: &mut Ticks| -> Result<()> {
        let line = wait_until("a line for an alert", PATIENCE, || {
            ticks.look(&agent)?;
            Ok(lines(&json_lines)?.get(number).cloned())
        })?;
        let late = Duration::from_nanos(boot_ns().saturating_sub(json::count(&line, time)?));
        println!("a line came after {late:?}");
        ensure!(late < SOON, "it came after {late:?}: {line}");
        Ok(())
    };
    tenant.take(MUCH)?;
    wait_for_line(0, "fired_ns", &mut ticks)?;
    for (name, why) in FAILING {
        let failed = wait_until(&format!("{name} to fail"), PATIENCE, || {
            ticks.look(&agent)?;
            let sink = sink(&agent, name)?;
            Ok((json::count(&sink, "failures_total")? > 0).then_some(sink))
        })?;
        println!("{failed}");
        ensure!(json::text(&failed, "error")?.contains(why), "it does not say why: {failed}");
        expect::exactly("told, lost, waiting", fates(&agent, name)?, [0, 0, 1])?;
    }
    tenant.give_back()?;
    wait_for_line(1, "resolved_ns", &mut ticks)?;
    println!("{} ticks, at most {} ms apart", ticks.seen, ticks.longest / 1_000_000);
    ensure!(ticks.seen > 20, "{} ticks prove nothing", ticks.seen);
    ensure!(u128::from(ticks.longest) < SOON.as_nanos(), "ticks were {} ns apart", ticks.longest);
    // They are counted a moment after they are there.
    for (name, expected) in [("json_lines", [2, 0, 0]), ("webhook", [0, 0, 2])] {
        let counted = || Ok((fates(&agent, name)? == expected).then_some(()));
        wait_until(&format!("{name} to have told, lost and kept {expected:?}"), PATIENCE, counted)?;
    }

    let socket = agent.socket().display().to_string();
    let shown = agent::run(&["alerts", "--socket", &socket])?;
    let shown = String::from_utf8(shown.stdout)?;
    ensure!(shown.contains(&format!("webhook is not told: {dead}")), "{shown}");
    for words in [&shown, &agent.words(), &agent.answer("/v1/alerts")?.body] {
        ensure!(words.contains(&dead.to_string()), "it does not say who is dead: {words}");
        ensure!(!words.contains("SECRET"), "it tells the secret: {words}");
    }

    let revived = Receiver::start_at(dead, 200)?;
    refusing.answer_with(200);
    wait_for_told(&agent, &["webhook", "alertmanager"], 2)?;
    for name in ["webhook", "alertmanager"] {
        expect::exactly("error", &sink(&agent, name)?["error"], &Value::Null)?;
    }
    let expected: Vec<_> = lines(&json_lines)?;
    let told: Vec<Value> = revived.taken().iter().map(|body| body["alert"].clone()).collect();
    expect::exactly("what the webhook was told", &told, &expected)?;
    expect::exactly("its path", &*revived.posts()[0].target, &*format!("/services/{SECRET}"))?;
    expect::exactly("what Alertmanager took", refusing.taken().len(), 2)?;
    // One complaint for all tries, and one word of the end.
    let about = |lines: &[String]| lines.iter().filter(|line| line.contains("alerts to webhook")).count();
    expect::exactly("complaints", about(&agent.complaints()), 1)?;
    let all: Vec<_> = agent.words().lines().map(str::to_owned).collect();
    expect::exactly("words of it", about(&all), 2)?;
    agent.stop()
}

#[test]
fn what_is_refused_for_good_is_lost_and_counted_and_all_else_is_tried_again() -> Result<()> {
    let _machine = Machine::claim()?;
    let (webhook, alertmanager, mail) = (Receiver::start(404)?, Receiver::start(500)?, MailServer::start()?);
    let mut tenant = Tenant::new("refused")?;
    let agent = start(&[
        format!("alerts.webhook=http://{}/services/{SECRET}", webhook.address()),
        format!("alerts.alertmanager=http://{}", alertmanager.address()),
        format!("alerts.email_server=smtp://{}", mail.address()),
        "alerts.email_from=monitor@example.org".to_owned(),
        "alerts.email_to=nobody@example.org".to_owned(),
    ])?;
    tenant.take(MUCH)?;
    tenant.alert(&agent, "firing", "warning")?;
    for (name, why) in [("webhook", "404"), ("email", "no such user")] {
        let lost = wait_until(&format!("{name} to lose an alert"), PATIENCE, || {
            let sink = sink(&agent, name)?;
            Ok((sink["dropped_total"] == 1 && sink["queued"] == 0).then_some(sink))
        })?;
        expect::exactly("told", json::count(&lost, "sent_total")?, 0)?;
        expect::exactly("failures", json::count(&lost, "failures_total")?, 1)?;
        ensure!(json::text(&lost, "error")?.contains(why), "it does not say why: {lost}");
    }
    let refused = wait_until("a second try", PATIENCE, || {
        let sink = sink(&agent, "alertmanager")?;
        Ok((json::count(&sink, "failures_total")? > 1).then_some(sink))
    })?;
    expect::exactly("lost", json::count(&refused, "dropped_total")?, 0)?;
    expect::exactly("tries at the webhook", webhook.posts().len(), 1)?;

    alertmanager.answer_with(200);
    webhook.answer_with(200);
    wait_for_told(&agent, &["alertmanager"], 1)?;
    tenant.give_back()?;
    wait_for_told(&agent, &["alertmanager"], 2)?;
    wait_until("the webhook to be told of the end", PATIENCE, || {
        Ok((fates(&agent, "webhook")? == [1, 1, 0]).then_some(()))
    })?;
    let told: Vec<Value> = webhook.taken().iter().map(|body| body["alert"].clone()).collect();
    expect::exactly("what the webhook was told", texts(&told, "state")?, vec!["resolved".to_owned()])?;
    wait_until("the end to be lost", PATIENCE, || Ok((fates(&agent, "email")? == [0, 2, 0]).then_some(())))?;
    expect::exactly("mails", mail.mails()?.len(), 0)?;
    ensure!(!agent.words().contains("SECRET"), "it tells the secret: {}", agent.words());
    agent.stop()
}

#[test]
fn nobody_is_told_what_is_silenced() -> Result<()> {
    let _machine = Machine::claim()?;
    let (directory, webhook) = (tempfile::tempdir()?, Receiver::start(200)?);
    let json_lines = directory.path().join("json_lines");
    let mut tenant = Tenant::new("silenced")?;
    let agent = start(&[
        "alerts.silence=memory_pressure:*".to_owned(),
        format!("alerts.json_lines={}", json_lines.display()),
        format!("alerts.webhook=http://{}", webhook.address()),
    ])?;
    tenant.take(MUCH)?;
    expect::exactly("silenced", &tenant.alert(&agent, "firing", "warning")?["silenced"], &json!(true))?;
    several_ticks(&agent)?;
    tenant.give_back()?;
    expect::exactly("silenced", &tenant.alert(&agent, "resolved", "warning")?["silenced"], &json!(true))?;
    several_ticks(&agent)?;
    for name in ["log", "json_lines", "webhook"] {
        expect::exactly(name, fates(&agent, name)?, [0, 0, 0])?;
    }
    expect::exactly("what the webhook was told", webhook.posts(), Vec::new())?;
    ensure!(!json_lines.exists(), "there is a file");
    ensure!(!agent.words().contains(&tenant.name()), "it is in the log: {}", agent.words());
    agent.stop()
}

#[test]
fn a_test_tells_who_receives_and_who_does_not() -> Result<()> {
    let (directory, webhook, alertmanager) = (tempfile::tempdir()?, Receiver::start(200)?, Receiver::start(200)?);
    let mail = MailServer::start()?;
    let (json_lines, input) = (directory.path().join("json_lines"), directory.path().join("input"));
    let mut settings = vec![
        format!("alerts.json_lines={}", json_lines.display()),
        format!("alerts.webhook=http://{}/services/{SECRET}", webhook.address()),
        format!("alerts.alertmanager=http://{}", alertmanager.address()),
        format!("alerts.exec={}", program(directory.path(), &format!("cat >> {}", input.display()))?.display()),
        format!("alerts.email_server=smtp://{}", mail.address()),
        "alerts.email_from=monitor@example.org".to_owned(),
        "alerts.email_to=one@example.org".to_owned(),
    ];
    let tested = |settings: &[String], code: i32| -> Result<Vec<(String, String)>> {
        let output = try_out(settings)?;
        let (out, errors) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
        expect::exactly("exit code", output.status.code(), Some(code)).with_context(|| format!("{out}{errors}"))?;
        ensure!(!out.contains("SECRET") && !errors.contains("SECRET"), "it tells the secret: {out}{errors}");
        let lines = out.lines().map(|line| line.split_once(' ').context("no line of two words"));
        lines.map(|line| line.map(|(name, how)| (name.to_owned(), how.trim().to_owned()))).collect()
    };
    let names = ["log", "json_lines", "webhook", "alertmanager", "exec", "email"];
    let fine = names.map(|name| (name.to_owned(), "ok".to_owned()));
    expect::exactly("what a test tells", &tested(&settings, 0)?[..], &fine)?;
    let both = vec!["firing".to_owned(), "resolved".to_owned()];
    expect::exactly("lines", texts(&lines(&json_lines)?, "state")?, both.clone())?;
    expect::exactly("what the program was told", texts(&lines(&input)?, "state")?, both.clone())?;
    let posted: Vec<Value> = webhook.taken().iter().map(|body| body["alert"].clone()).collect();
    expect::exactly("what the webhook was told", texts(&posted, "state")?, both)?;
    expect::exactly("what Alertmanager was told", alertmanager.taken().len(), 2)?;
    expect::exactly("mails", mail.mails()?.len(), 2)?;
    ensure!(json::text(&posted[0], "summary")?.contains("test"), "nobody would know: {}", posted[0]);

    // One that is dead does not keep others from being tried.
    let dead = free_address()?;
    settings[1] = format!("alerts.webhook=http://{dead}/services/{SECRET}");
    alertmanager.answer_with(503);
    let told = tested(&settings, 1)?;
    expect::exactly("sinks", told.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names.to_vec())?;
    for (name, how) in told {
        let fits = match name.as_str() {
            "webhook" => how.starts_with(&format!("FAILED: {dead}: ")) && how.contains("refused"),
            "alertmanager" => how.starts_with("FAILED: ") && how.contains("503"),
            _ => how == "ok",
        };
        ensure!(fits, "{name}: {how}");
    }
    expect::exactly("mails", mail.mails()?.len(), 4)
}

#[test]
fn receivers_that_make_no_sense_are_refused_by_name() -> Result<()> {
    let server = "alerts.email_server=smtp://127.0.0.1:25";
    let (from, to) = ("alerts.email_from=monitor@example.org", "alerts.email_to=one@example.org");
    for (settings, about) in [
        (&["alerts.webhook=nonsense"][..], "alerts.webhook"),
        (&["alerts.webhook=ftp://127.0.0.1/"], "alerts.webhook"),
        (&["alerts.alertmanager=127.0.0.1:9093"], "alerts.alertmanager"),
        (&["alerts.email_server=nonsense", from, to], "alerts.email_server"),
        (&[server, to], "alerts.email_from"),
        (&[server, from], "alerts.email_to"),
        (&[server, from, "alerts.email_to=one@example.org,nonsense"], "alerts.email_to"),
        (&["alerts.colour=red"], "alerts.colour"),
    ] {
        let settings: Vec<_> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let flags = settings.iter().flat_map(|setting| ["--set", setting]);
        let run = agent::run(&["run", "--quiet", "--for", "1s"].into_iter().chain(flags).collect::<Vec<_>>())?;
        for output in [try_out(&settings)?, run] {
            let words = String::from_utf8_lossy(&output.stderr);
            expect::exactly("exit code", output.status.code(), Some(2)).with_context(|| words.clone().into_owned())?;
            ensure!(words.contains(about), "the error does not speak of {about}: {words}");
            expect::exactly("lines", words.trim_end().lines().count(), 1).with_context(|| words.into_owned())?;
            ensure!(output.stdout.is_empty(), "{settings:?} was tried");
        }
    }
    Ok(())
}

/// What fails is tried again as a whole: an alert that became worse is known by one severity at Alertmanager.
#[test]
fn what_became_worse_while_alertmanager_failed_is_told_whole() -> Result<()> {
    let _machine = Machine::claim()?;
    let alertmanager = Receiver::start(200)?;
    let mut tenant = Tenant::new("worse")?;
    let agent = start(&[format!("alerts.alertmanager=http://{}", alertmanager.address())])?;
    tenant.take(MUCH)?;
    tenant.alert(&agent, "firing", "warning")?;
    wait_for_told(&agent, &["alertmanager"], 1)?;
    alertmanager.answer_with(500);
    tenant.take(MORE)?;
    tenant.alert(&agent, "firing", "critical")?;
    wait_until("a try that fails", PATIENCE, || {
        Ok((json::count(&sink(&agent, "alertmanager")?, "failures_total")? > 0).then_some(()))
    })?;
    alertmanager.answer_with(200);
    wait_for_told(&agent, &["alertmanager"], 2)?;
    let taken = alertmanager.taken();
    // What goes on is told again after a while, by itself.
    let mut both = taken.iter().rev().filter_map(Value::as_array).filter(|alerts| alerts.len() == 2);
    let told = both.next().with_context(|| format!("not told whole: {taken:?}"))?;
    let severities = texts(told, "labels.severity")?;
    expect::exactly("severities", severities, vec!["critical".to_owned(), "warning".to_owned()])?;
    ensure!(json::text(&told[1], "endsAt")? < json::text(&told[0], "endsAt")?, "the warning goes on: {told:?}");
    agent.stop()
}
