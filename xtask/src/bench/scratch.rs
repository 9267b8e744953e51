//! A private directory for one benchmark, removed with all that is in it.

use anyhow::{Context, Result};
use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Removes its directory when dropped.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new directory below the system's one for temporary files. Others may pass through it, because servers run as
    /// users of their own, but nobody else may write there.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("monitor-{name}-{}", std::process::id()));
        let unusable = || format!("cannot make {}", path.display());
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(unusable)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).with_context(unusable)?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("warning: cannot remove {}: {error}", self.path.display());
        }
    }
}
