//! The compiled kernel programs, embedded at build time from `monitor-ebpf/objects`.

use crate::source::Source;
use std::borrow::Cow;

macro_rules! object {
    ($name:literal) => {
        aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../monitor-ebpf/objects/", $name, ".o"))
    };
}

/// The object of a source.
pub fn of(source: Source) -> Cow<'static, [u8]> {
    let embedded: &'static [u8] = match source {
        Source::PageFault => object!("page_fault"),
        Source::AddressSpace => object!("address_space"),
        Source::BlockIo => object!("block_io"),
        Source::Lifecycle => object!("lifecycle"),
        Source::Requests => object!("requests"),
        Source::Resident => object!("resident"),
    };
    fresh(source.name(), embedded)
}

/// The object that checks field offsets against the running kernel.
pub fn self_check() -> Cow<'static, [u8]> {
    fresh("self_check", object!("self_check"))
}

/// The object with empty programs, for benchmarks.
pub fn empty() -> Cow<'static, [u8]> {
    fresh("empty", object!("empty"))
}

/// In debug builds, MONITOR_OBJECTS names a folder whose objects are used instead: `cargo xtask ebpf --check` tries
/// freshly built ones that way. A release build has one source of kernel code: itself.
fn fresh(name: &str, embedded: &'static [u8]) -> Cow<'static, [u8]> {
    #[cfg(debug_assertions)]
    if let Some(folder) = std::env::var_os("MONITOR_OBJECTS") {
        let path = std::path::Path::new(&folder).join(name).with_extension("o");
        // An object that cannot be read must not be mistaken for the embedded one: an empty one fails to load.
        return Cow::Owned(std::fs::read(&path).unwrap_or_else(|error| {
            log::error!("{}: {error}", path.display());
            Vec::new()
        }));
    }
    let _ = name;
    Cow::Borrowed(embedded)
}
