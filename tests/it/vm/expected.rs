//! What tests/kernels.toml says of the kernel that this is.

use anyhow::{Context, Result, ensure};
use std::fs;
use toml::{Table, Value};

/// The sources, as the agent names them.
pub(super) const SOURCES: [&str; 6] = ["lifecycle", "page_fault", "address_space", "block_io", "requests", "resident"];

/// All kernels' expectations, by name.
pub(super) fn all() -> Result<Table> {
    Ok(include_str!("../../kernels.toml").parse()?)
}

/// One kernel's expectations.
pub(crate) struct Expected(Table);

impl Expected {
    /// Those of the kernel this is, by the name that its command line gives it.
    pub(crate) fn here() -> Result<Self> {
        let words = fs::read_to_string("/proc/cmdline")?;
        ensure!(
            words.split_whitespace().any(|word| word == "vmtest=1"),
            "this is no virtual machine of `cargo xtask vm`"
        );
        let name = words.split_whitespace().find_map(|word| word.strip_prefix("vm.kernel="));
        let name = name.context("the command line does not name the kernel")?;
        let all = all()?;
        let here = all.get(name).and_then(Value::as_table).with_context(|| format!("kernels.toml has no {name}"))?;
        Ok(Self(here.clone()))
    }

    /// The rungs of a source that hold, best first.
    pub(crate) fn rungs(&self, source: &str) -> Result<Vec<&str>> {
        let rungs = self.0.get(source).and_then(Value::as_array).with_context(|| format!("no rungs of {source}"))?;
        rungs.iter().map(|rung| rung.as_str().context("a rung is no name")).collect()
    }

    /// The arguments of what differs from kernel to kernel.
    pub(super) fn arguments(&self) -> Result<serde_json::Value> {
        let arguments = self.0.get("arguments").and_then(Value::as_table).context("no arguments")?;
        Ok(serde_json::to_value(arguments)?)
    }

    /// Whether it has something.
    pub(super) fn has(&self, what: &str) -> Result<bool> {
        self.0.get(what).and_then(Value::as_bool).with_context(|| format!("kernels.toml does not say {what}"))
    }

    /// What it says of something.
    pub(super) fn text(&self, what: &str) -> Result<&str> {
        self.0.get(what).and_then(Value::as_str).with_context(|| format!("kernels.toml does not say {what}"))
    }
}
