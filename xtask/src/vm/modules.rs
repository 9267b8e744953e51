//! Kernel modules: which others each needs first, by what it says of itself, since packages hold no list of that.

use crate::process;
use anyhow::{Context, Result, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A module, ready to be loaded.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) code: Vec<u8>,
}

/// The modules of these names and what they depend on, dependencies first. What the kernel has built in, by its
/// `modules.builtin` among the files, is left out.
pub(crate) fn in_load_order(files: &[PathBuf], names: &[&str]) -> Result<Vec<Module>> {
    let mut modules =
        Modules { files: BTreeMap::new(), built_in: BTreeSet::new(), done: BTreeSet::new(), order: Vec::new() };
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == "modules.builtin" {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            modules.built_in.extend(text.lines().filter_map(|line| module_name(Path::new(line))));
        } else if let Some(name) = module_name(path) {
            modules.files.insert(name, path);
        }
    }
    for name in names {
        modules.add(name, true)?;
    }
    Ok(modules.order)
}

struct Modules<'a> {
    files: BTreeMap<String, &'a Path>,
    built_in: BTreeSet<String>,
    done: BTreeSet<String>,
    order: Vec<Module>,
}

impl Modules<'_> {
    fn add(&mut self, name: &str, required: bool) -> Result<()> {
        let name = name.replace('-', "_");
        if self.built_in.contains(&name) || !self.done.insert(name.clone()) {
            return Ok(());
        }
        let Some(&path) = self.files.get(&name) else {
            // The kernel may have been built without what a module would like to have.
            return if required && name != "virtio_rng" { bail!("the package has no module {name}") } else { Ok(()) };
        };
        let code = read(path)?;
        for (dependency, required) in dependencies(&code) {
            self.add(&dependency, required)?;
        }
        self.order.push(Module { name, code });
        Ok(())
    }
}

/// A module's name, with `_` for `-` as the kernel writes it; none where the file is no module.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem =
        name.strip_suffix(".ko").or_else(|| name.strip_suffix(".ko.xz")).or_else(|| name.strip_suffix(".ko.zst"))?;
    Some(stem.replace('-', "_"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let program = super::kernels::require(tool, if tool == "xz" { "xz-utils" } else { "zstd" })?;
    process::output_bytes(Command::new(program).arg("-dc").arg(path))
}

/// What a module's information section says it depends on, and whether it cannot do without.
fn dependencies(code: &[u8]) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for entry in code.split(|&byte| byte == 0) {
        let Ok(entry) = std::str::from_utf8(entry) else { continue };
        if let Some(names) = entry.strip_prefix("depends=") {
            found.extend(names.split(',').filter(|name| !name.is_empty()).map(|name| (name.to_owned(), true)));
        } else if let Some(names) = entry.strip_prefix("softdep=pre: ") {
            found.extend(names.split_whitespace().map(|name| (name.to_owned(), false)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first_and_built_in_ones_not_at_all() {
        let directory = std::env::temp_dir().join(format!("xtask-modules-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let write = |name: &str, text: &[u8]| {
            fs::write(directory.join(name), text).unwrap();
            directory.join(name)
        };
        let files = [
            write("ext4.ko", b"\x7fELF\0depends=jbd2,mbcache\0softdep=pre: crc32c\0"),
            write("jbd2.ko", b"\0depends=\0"),
            write("modules.builtin", b"kernel/fs/mbcache.ko\n"),
        ];
        let order = in_load_order(&files, &["ext4"]);
        let missing = in_load_order(&files, &["loop"]);
        fs::remove_dir_all(&directory).unwrap();
        let names: Vec<_> = order.unwrap().into_iter().map(|module| module.name).collect();
        assert_eq!(names, ["jbd2", "ext4"]);
        assert!(missing.is_err_and(|error| error.to_string().contains("no module loop")));
    }
}
