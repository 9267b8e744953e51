//! toolchain.toml beside the committed objects: what built them, and their digests.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter, Write},
    fs,
    io::ErrorKind,
    path::Path,
};

/// Its name.
pub(crate) const FILE: &str = "toolchain.toml";

const HEADER: &str = "# What built the objects beside this file, and their SHA-256. Written by `cargo xtask ebpf`, read by `--check`.\n\n";

/// What built the committed objects.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The toolchain's versions.
    pub(crate) toolchain: Identity,
    /// The SHA-256 of each object, by its name without ending.
    pub(crate) objects: BTreeMap<String, String>,
}

/// The versions that decide what a source builds to. Equal ones build equal objects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// First line of `rustc -vV`, without the program's name.
    pub(crate) rustc: String,
    /// The compiler's LLVM.
    pub(crate) rustc_llvm: String,
    /// The linker, which generates the code.
    pub(crate) bpf_linker: String,
    /// The linker's LLVM.
    pub(crate) bpf_linker_llvm: String,
}

impl Display for Identity {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let Self { rustc, rustc_llvm, bpf_linker, bpf_linker_llvm } = self;
        write!(formatter, "rustc {rustc}, LLVM {rustc_llvm}; bpf-linker {bpf_linker}, LLVM {bpf_linker_llvm}")
    }
}

impl Record {
    /// The record in this directory; none where there is none.
    pub(crate) fn read(directory: &Path) -> Result<Option<Self>> {
        let file = directory.join(FILE);
        match fs::read_to_string(&file) {
            Ok(text) => {
                toml::from_str(&text).map(Some).with_context(|| format!("cannot understand {}", file.display()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    /// Writes the record into this directory.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let file = directory.join(FILE);
        let text = toml::to_string(self).context("the record of the toolchain")?;
        fs::write(&file, format!("{HEADER}{text}")).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// An object's SHA-256 in hexadecimal, as `sha256sum` prints it.
pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_what_sha256sum_prints() {
        assert_eq!(digest(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_unknown_keys_are_refused() {
        let directory = std::env::temp_dir().join(format!("xtask-record-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        assert_eq!(Record::read(&directory).unwrap(), None);
        let record = Record {
            toolchain: Identity {
                rustc: "1.96.0 (ac68faa20 2026-05-25)".to_owned(),
                rustc_llvm: "22.1.8".to_owned(),
                bpf_linker: "0.13.0".to_owned(),
                bpf_linker_llvm: "22.1.8".to_owned(),
            },
            objects: BTreeMap::from([("page_fault".to_owned(), digest(b"an object"))]),
        };
        record.write(&directory).unwrap();
        assert_eq!(Record::read(&directory).unwrap(), Some(record));
        fs::write(directory.join(FILE), "surprise = 1\n").unwrap();
        assert!(Record::read(&directory).is_err());
        fs::remove_dir_all(&directory).unwrap();
    }
}
