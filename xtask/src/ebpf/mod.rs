//! `cargo xtask ebpf`: from the kernel programs' sources to the objects committed beside them, and the proof that the one
//! is what the other builds to. This file decides; `toolchain` finds compilers, `build` calls them, `object_file` strips
//! and compares objects, `record` keeps what built the committed ones.

mod build;
mod object_file;
mod record;
mod toolchain;

use crate::{test, workspace};
use anyhow::{Context, Result, bail};
use record::Record;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use toolchain::Toolchain;

/// Rebuild the compiled kernel programs in monitor-ebpf/objects, or check them
///
/// That takes a Rust compiler with its library's sources, and bpf-linker with the same LLVM; where they are missing, the
/// error says which commands install them. Which ones built the objects is recorded beside them.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Change nothing; build fresh objects and fail unless the committed ones hold the same programs, instructions, maps
    /// and BTF. With another toolchain than the recorded one they cannot be compared: then the oracle tests run on the
    /// fresh ones
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    workspace::require_supported_machine()?;
    if options.check { check() } else { rebuild() }
}

fn rebuild() -> Result<()> {
    let committed = workspace::objects();
    let recorded = Record::read(&committed)?;
    let toolchain = Toolchain::find(recorded.as_ref().map(|record| &record.toolchain))?;
    let fresh = build::build(&toolchain, &workspace::kernel_object_names()?)?;
    install(&fresh, &committed, &toolchain)
}

fn check() -> Result<()> {
    let committed = workspace::objects();
    let recorded = Record::read(&committed)?
        .with_context(|| format!("{} has no {}: run `cargo xtask ebpf`", committed.display(), record::FILE))?;
    let toolchain = Toolchain::find(Some(&recorded.toolchain))?;
    let names = workspace::kernel_object_names()?;
    let fresh = build::build(&toolchain, &names)?;
    if recorded.toolchain == *toolchain.identity() {
        return compare_all(&names, &fresh, &committed, &recorded);
    }
    println!("not comparable: installed {}; recorded {}", toolchain.identity(), recorded.toolchain);
    println!("running the oracle tests on the fresh objects in {}", fresh.display());
    test::run_oracle_tests(&fresh)
}

fn install(fresh: &Path, committed: &Path, toolchain: &Toolchain) -> Result<()> {
    fs::create_dir_all(committed).with_context(|| format!("cannot make {}", committed.display()))?;
    let mut digests = BTreeMap::new();
    for (name, file) in objects_in(fresh)? {
        let bytes = read(&file)?;
        let target = committed.join(&name).with_extension("o");
        fs::write(&target, &bytes).with_context(|| format!("cannot write {}", target.display()))?;
        println!("{:>8} bytes  {}", bytes.len(), target.display());
        digests.insert(name, record::digest(&bytes));
    }
    remove_orphans(committed, &digests)?;
    Record { toolchain: toolchain.identity().clone(), objects: digests }.write(committed)
}

/// Removes the objects of programs that are no more.
fn remove_orphans(committed: &Path, kept: &BTreeMap<String, String>) -> Result<()> {
    for (_, file) in objects_in(committed)?.into_iter().filter(|(name, _)| !kept.contains_key(name)) {
        println!("removing {}: nothing builds it any more", file.display());
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(())
}

fn compare_all(names: &[String], fresh: &Path, committed: &Path, recorded: &Record) -> Result<()> {
    let mut differences = Vec::new();
    for (name, _) in objects_in(committed)?.into_iter().filter(|(name, _)| !names.contains(name)) {
        differences.push(format!("{name}.o: committed, but nothing builds it"));
    }
    for name in names {
        let file_name = format!("{name}.o");
        differences.extend(
            compare(name, &fresh.join(&file_name), &committed.join(&file_name), recorded)?
                .into_iter()
                .map(|difference| format!("{file_name}: {difference}")),
        );
    }
    if differences.is_empty() {
        println!("the {} committed objects are what the sources build to", names.len());
        return Ok(());
    }
    for difference in &differences {
        println!("{difference}");
    }
    bail!("the committed objects are not what the sources build to: run `cargo xtask ebpf` and commit the result")
}

fn compare(name: &str, fresh: &Path, committed: &Path, recorded: &Record) -> Result<Vec<String>> {
    if !committed.exists() {
        return Ok(vec!["built, but not committed".to_owned()]);
    }
    let committed = read(committed)?;
    let mut differences = object_file::differences(&read(fresh)?, &committed)?;
    if recorded.objects.get(name) != Some(&record::digest(&committed)) {
        differences.push(format!("its digest is not the one in {}", record::FILE));
    }
    Ok(differences)
}

/// The objects in a directory, by name.
fn objects_in(directory: &Path) -> Result<Vec<(String, PathBuf)>> {
    let unreadable = || format!("cannot list {}", directory.display());
    let mut objects = Vec::new();
    for entry in fs::read_dir(directory).with_context(unreadable)? {
        let file = entry.with_context(unreadable)?.path();
        if let (Some(stem), Some("o")) = (file.file_stem(), file.extension().and_then(|extension| extension.to_str())) {
            objects.push((stem.to_string_lossy().into_owned(), file.clone()));
        }
    }
    objects.sort();
    Ok(objects)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}
