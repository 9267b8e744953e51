//! Finding what builds kernel programs: a Rust compiler with the sources of its library, and bpf-linker with an LLVM of
//! the same major version. The compiler that built the committed objects is preferred; then the distribution's; then
//! those of rustup.

use super::record::Identity;
use crate::process;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What to type where nothing was found.
const HOW_TO_INSTALL: &str = "\
They take a Rust compiler with its library's sources, and bpf-linker with the same LLVM. On Debian:
  apt-get install --no-install-recommends rustc-web cargo-web rust-web-src llvm-22-dev libpolly-22-dev libzstd-dev
  LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --no-default-features --features llvm-22
Elsewhere, with rustup and the development files of the LLVM that `rustc +nightly -vV` names, here 22:
  rustup toolchain install nightly --component rust-src
  LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --no-default-features --features llvm-22";

/// A compiler and a linker that can build the kernel programs.
#[derive(Debug)]
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
    identity: Identity,
}

impl Toolchain {
    /// Finds a toolchain, if possible one of the recorded versions.
    pub(crate) fn find(recorded: Option<&Identity>) -> Result<Self> {
        let linker = Linker::find()?;
        let installed = Compiler::installed();
        if installed.is_empty() {
            bail!(missing("no Rust compiler here has the sources of its library"));
        }
        let compiler = choose(installed, &linker, recorded)?;
        let identity = identity(&compiler, &linker);
        Ok(Self { compiler, linker: linker.program, identity })
    }

    /// Its versions.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its cargo.
    pub(crate) fn cargo(&self) -> PathBuf {
        self.compiler.directory.join("cargo")
    }

    /// Its compiler.
    pub(crate) fn rustc(&self) -> PathBuf {
        self.compiler.directory.join("rustc")
    }

    /// The sources of its library: the directory above `library`.
    pub(crate) fn library_sources(&self) -> &Path {
        &self.compiler.library_sources
    }

    /// The directory of the linker.
    pub(crate) fn linker_directory(&self) -> &Path {
        self.linker.parent().unwrap_or(Path::new("."))
    }
}

fn missing(what: &str) -> String {
    format!("cannot build the kernel programs: {what}.\n{HOW_TO_INSTALL}")
}

fn identity(compiler: &Compiler, linker: &Linker) -> Identity {
    Identity {
        rustc: compiler.version.clone(),
        rustc_llvm: compiler.llvm.clone(),
        bpf_linker: linker.version.clone(),
        bpf_linker_llvm: linker.llvm.clone(),
    }
}

/// The recorded compiler, else the first whose bitcode the linker understands.
fn choose(installed: Vec<Compiler>, linker: &Linker, recorded: Option<&Identity>) -> Result<Compiler> {
    let is_recorded = |compiler: &Compiler| recorded.is_some_and(|recorded| *recorded == identity(compiler, linker));
    let is_understood = |compiler: &Compiler| major(&compiler.llvm) == major(&linker.llvm);
    let position = installed.iter().position(is_recorded).or_else(|| installed.iter().position(is_understood));
    let Some(position) = position else {
        let found: Vec<_> =
            installed.iter().map(|compiler| format!("rustc {}, LLVM {}", compiler.version, compiler.llvm)).collect();
        bail!(missing(&format!(
            "bpf-linker has LLVM {}, and no compiler with its library's sources has the same ({})",
            linker.llvm,
            found.join("; ")
        )));
    };
    installed.into_iter().nth(position).context("the compiler just found")
}

fn major(version: &str) -> &str {
    version.split('.').next().unwrap_or(version)
}

/// A Rust compiler with cargo and the sources of its library.
#[derive(Debug, Clone, PartialEq)]
struct Compiler {
    /// Where cargo and rustc are.
    directory: PathBuf,
    library_sources: PathBuf,
    version: String,
    llvm: String,
}

impl Compiler {
    /// The distribution's, then rustup's in the order of their names.
    fn installed() -> Vec<Self> {
        let distribution = PathBuf::from("/usr/bin");
        std::iter::once(distribution).chain(rustup_directories()).filter_map(Self::in_directory).collect()
    }

    /// The compiler in this directory, unless it lacks its library's sources or does not start.
    fn in_directory(directory: PathBuf) -> Option<Self> {
        let rustc = directory.join("rustc");
        if !process::is_executable(&rustc) || !process::is_executable(&directory.join("cargo")) {
            return None;
        }
        let sysroot = process::output(Command::new(&rustc).args(["--print", "sysroot"])).ok()?;
        let library_sources = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
        if !library_sources.join("library/core/src/lib.rs").exists() {
            return None;
        }
        let (version, llvm) = compiler_versions(&process::output(Command::new(&rustc).arg("-vV")).ok()?)?;
        Some(Self { directory, library_sources, version, llvm })
    }
}

fn rustup_directories() -> Vec<PathBuf> {
    let home =
        std::env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".rustup")));
    let toolchains = home.map(|home| home.join("toolchains"));
    let entries = toolchains.and_then(|toolchains| fs::read_dir(toolchains).ok()).into_iter().flatten();
    let mut directories: Vec<_> = entries.flatten().map(|entry| entry.path().join("bin")).collect();
    directories.sort();
    directories
}

/// The compiler's and its LLVM's version in what `rustc -vV` prints.
fn compiler_versions(text: &str) -> Option<(String, String)> {
    let version = text.lines().next()?.strip_prefix("rustc ")?;
    let llvm = text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    Some((version.to_owned(), llvm.to_owned()))
}

/// bpf-linker.
struct Linker {
    program: PathBuf,
    version: String,
    llvm: String,
}

impl Linker {
    fn find() -> Result<Self> {
        let beside_cargo = std::env::home_dir().map(|home| home.join(".cargo/bin/bpf-linker"));
        let program = process::find_program("bpf-linker")
            .or_else(|| beside_cargo.filter(|file| process::is_executable(file)))
            .with_context(|| missing("bpf-linker is neither in PATH nor in ~/.cargo/bin"))?;
        let version = process::output(Command::new(&program).arg("--version"))?;
        let llvm = process::output(Command::new(&program).args([
            "--llvm-args=--version",
            "--output",
            "/dev/null",
            "/dev/null",
        ]))?;
        let version = version.trim().strip_prefix("bpf-linker ").context("bpf-linker tells no version")?.to_owned();
        let llvm = linker_llvm_version(&llvm).context("bpf-linker does not tell its LLVM's version")?;
        Ok(Self { program, version, llvm })
    }
}

/// The version in what LLVM prints of itself, such as "Debian LLVM version 22.1.8".
fn linker_llvm_version(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("LLVM version ")?;
    rest.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERBOSE: &str = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                           host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    fn compiler(version: &str, llvm: &str) -> Compiler {
        Compiler {
            directory: PathBuf::from("/usr/bin"),
            library_sources: PathBuf::from("/usr/src"),
            version: version.to_owned(),
            llvm: llvm.to_owned(),
        }
    }

    fn linker(llvm: &str) -> Linker {
        Linker { program: PathBuf::from("/bin/bpf-linker"), version: "0.13.0".to_owned(), llvm: llvm.to_owned() }
    }

    #[test]
    fn versions_are_read_from_what_the_programs_print() {
        let expected = ("1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)".to_owned(), "22.1.8".to_owned());
        assert_eq!(compiler_versions(VERBOSE), Some(expected));
        assert_eq!(compiler_versions("clang 19"), None);
        assert_eq!(linker_llvm_version("Debian LLVM version 22.1.8\n  Optimized build."), Some("22.1.8".to_owned()));
        assert_eq!(linker_llvm_version("bpf-linker"), None);
    }

    #[test]
    fn the_recorded_compiler_is_preferred_and_others_need_the_linkers_llvm() {
        let (old, new, nightly) = (compiler("1.96", "22.1.8"), compiler("1.97", "22.1.4"), compiler("1.99", "23.1.0"));
        let linker = linker("22.1.8");
        let recorded = identity(&new, &linker);
        let installed = vec![nightly.clone(), old.clone(), new.clone()];
        assert_eq!(choose(installed.clone(), &linker, Some(&recorded)).unwrap(), new);
        assert_eq!(choose(installed, &linker, None).unwrap(), old);
        let refused = choose(vec![nightly], &linker, None).unwrap_err().to_string();
        assert!(
            refused.contains("rustc 1.99, LLVM 23.1.0") && refused.contains("cargo install bpf-linker"),
            "{refused}"
        );
    }
}
