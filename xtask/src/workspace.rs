//! Where things are in this workspace, and which machines it supports. Everything is asked of cargo, so that no list of
//! packages or programs is kept here.

use crate::process;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The directory of the workspace's Cargo.toml.
pub(crate) fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// The committed kernel objects.
pub(crate) fn objects() -> PathBuf {
    root().join("monitor-ebpf/objects")
}

/// Cargo's target directory, wherever configuration or environment put it.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let metadata = metadata()?;
    let directory = metadata["target_directory"].as_str().context("cargo metadata tells no target_directory")?;
    Ok(PathBuf::from(directory))
}

/// The names of the kernel programs' objects: one per binary of monitor-ebpf.
pub(crate) fn kernel_object_names() -> Result<Vec<String>> {
    let metadata = metadata()?;
    let package = array(&metadata["packages"])
        .find(|package| package["name"] == "monitor-ebpf")
        .context("cargo metadata knows no package monitor-ebpf")?;
    let mut names: Vec<String> = array(&package["targets"])
        .filter(|target| array(&target["kind"]).any(|kind| kind == "bin"))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

/// Refuses machines that the agent does not run on, in one line.
pub(crate) fn require_supported_machine() -> Result<()> {
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Ok(());
    }
    bail!("monitor runs on Linux on x86_64 only; this is {} on {}", std::env::consts::OS, std::env::consts::ARCH)
}

fn metadata() -> Result<Value> {
    let text = process::output(process::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    serde_json::from_str(&text).context("cargo metadata wrote something else than JSON")
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
