//! Calling the toolchain so that it builds the same objects on every machine: the flags, the paths that must not show,
//! and debug information, which makes BTF and is then taken away.

use super::{object_file, toolchain::Toolchain};
use crate::{process, workspace};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";

/// Builds all kernel objects, without debug information, and returns the directory they are in.
pub(crate) fn build(toolchain: &Toolchain, names: &[String]) -> Result<PathBuf> {
    println!("building {} kernel objects with {}", names.len(), toolchain.identity());
    let target = target_directory(toolchain)?;
    let packages = ["--package", "monitor-ebpf", "--package", "monitor-common"];
    // Cargo judges by the times of files; what is committed is judged by their contents, so nothing old may remain.
    process::run_unseen(cargo(toolchain, &target)?.args(["clean", "--release", "--target", TARGET]).args(packages))?;
    let mut build = cargo(toolchain, &target)?;
    build.args(["build", "--locked", "--release", "--package", "monitor-ebpf", "--bins"]);
    process::run(build.args(["--target", TARGET, "-Z", "build-std=core"]))?;
    let stripped = target.join("objects");
    if stripped.exists() {
        fs::remove_dir_all(&stripped).with_context(|| format!("cannot empty {}", stripped.display()))?;
    }
    fs::create_dir_all(&stripped).with_context(|| format!("cannot make {}", stripped.display()))?;
    for name in names {
        strip(&target.join(TARGET).join("release").join(name), &stripped.join(format!("{name}.o")))?;
    }
    Ok(stripped)
}

/// One directory for each toolchain: cargo would not notice that another linker is installed.
fn target_directory(toolchain: &Toolchain) -> Result<PathBuf> {
    let identity = toolchain.identity();
    let rustc = identity.rustc.split(' ').next().unwrap_or_default();
    let name = format!("rustc-{rustc}-bpf-linker-{}-llvm-{}", identity.bpf_linker, identity.bpf_linker_llvm);
    Ok(workspace::target_directory()?.join("ebpf").join(name))
}

fn strip(built: &Path, stripped: &Path) -> Result<()> {
    let bytes = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    let bytes = object_file::without_debug_information(&bytes).with_context(|| format!("strip {}", built.display()))?;
    fs::write(stripped, bytes).with_context(|| format!("cannot write {}", stripped.display()))
}

/// The toolchain's cargo, and nothing of the one that started us.
fn cargo(toolchain: &Toolchain, target: &Path) -> Result<Command> {
    let mut command = Command::new(toolchain.cargo());
    command.current_dir(workspace::root()).envs([("RUSTC_BOOTSTRAP", "1")]);
    for variable in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS"] {
        command.env_remove(variable);
    }
    command.env("RUSTC", toolchain.rustc()).env("CARGO_TARGET_DIR", target);
    command.env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain)?.join("\u{1f}"));
    command.env("PATH", search_path(toolchain)?);
    Ok(command)
}

/// The linker first: rustc looks it up by name.
fn search_path(toolchain: &Toolchain) -> Result<std::ffi::OsString> {
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::iter::once(toolchain.linker_directory().to_owned()).chain(std::env::split_paths(&inherited));
    std::env::join_paths(directories).context("the directory of bpf-linker cannot stand in PATH")
}

/// What rustc is told. Paths are named alike on every machine, because BTF and panic messages hold them.
fn flags(toolchain: &Toolchain) -> Result<Vec<String>> {
    let mut flags: Vec<String> =
        [r#"--cfg=bpf_target_arch="x86_64""#, "-Cdebuginfo=2", "-Clink-arg=--btf"].map(str::to_owned).into();
    let library = toolchain.library_sources();
    let resolved_library = fs::canonicalize(library).with_context(|| format!("cannot find {}", library.display()))?;
    for (path, name) in [
        (workspace::root(), "/monitor"),
        (&cargo_home()?.join("registry/src"), "/registry"),
        (library, "/rust"),
        (&resolved_library, "/rust"),
    ] {
        flags.push(format!("--remap-path-prefix={}={name}", path.display()));
    }
    Ok(flags)
}

fn cargo_home() -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))).context("neither CARGO_HOME nor HOME is set")
}
