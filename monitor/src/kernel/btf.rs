//! Looking up field offsets, enum values and prototypes in the running kernel's type information (BTF).
//!
//! A walker over the raw section, some milliseconds and no copy: aya's own parser hides members and takes 24 MB. Format:
//! Documentation/bpf/btf.rst of the kernel.

use super::syscall;
use std::fs;

/// Where the kernel shows its BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The running kernel's type information: as it shows it in sysfs, or where that is out of sight, as in some containers, as
/// it hands it out through bpf(2) since Linux 5.11.
pub fn vmlinux() -> Result<Vec<u8>, BtfError> {
    fs::read(VMLINUX)
        .or_else(|source| syscall::vmlinux_btf().map_err(|_| BtfError::Read { path: VMLINUX.to_owned(), source }))
}

/// The running kernel's types, by name.
pub struct Types {
    data: Vec<u8>,
    /// Offset of each type in `data`, by type id.
    types: Vec<u32>,
    strings: usize,
    /// Structures, unions, enums, typedefs and functions: hash of the name, and type id. There are some 100,000 of them, and a
    /// few dozen are ever looked for: going through all of them costs less than a map does.
    names: Vec<(u32, u32)>,
}

/// Why there are no types.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is not BTF of a known form.
    #[error("not BTF that can be understood: {0}")]
    Malformed(&'static str),
}

/// Kinds of types (include/uapi/linux/btf.h).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FORWARD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
    pub(super) const PTR: u32 = 2;
}

/// One type's head.
#[derive(Clone, Copy)]
struct Type {
    /// Offset of what follows the head.
    body: usize,
    kind: u32,
    length: usize,
    bit_fields: bool,
    size_or_type: u32,
}

const HEADER: usize = 24;
const TYPE: usize = 12;

impl Types {
    /// Those of the running kernel.
    pub fn running() -> Result<Self, BtfError> {
        Self::parse(vmlinux()?)
    }

    /// Indexes a BTF section of this machine's byte order.
    pub fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        let mut this = Self { data, types: vec![0], strings: 0, names: Vec::new() };
        if this.data.get(..2) != Some(&[0x9f, 0xeb]) {
            return Err(BtfError::Malformed("no BTF magic"));
        }
        let header = this.u32(4).unwrap_or(0) as usize;
        let field = |at| this.u32(at).map(|v| v as usize).ok_or(BtfError::Malformed("header is cut"));
        let (types, types_length, strings) = (field(8)?, field(12)?, field(16)?);
        if header < HEADER {
            return Err(BtfError::Malformed("header is too short"));
        }
        this.strings = header + strings;
        let end = header + types + types_length;
        let mut at = header + types;
        while at < end {
            let head = this.head(at).ok_or(BtfError::Malformed("a type is cut"))?;
            let size = body_size(head).ok_or(BtfError::Malformed("a kind of type that is not known"))?;
            let id = this.types.len() as u32;
            this.types.push(at as u32);
            let named = [kind::STRUCT, kind::UNION, kind::ENUM, kind::ENUM64, kind::TYPEDEF, kind::FUNC];
            if named.contains(&head.kind)
                && let Some(name) = this.u32(at).and_then(|offset| this.string(offset))
                && !name.is_empty()
            {
                this.names.push((hash(name), id));
            }
            at = head.body + size;
        }
        Ok(this)
    }

    /// Byte offset of a field, given as a dotted path (`thread_info.status`); members of anonymous structures and unions
    /// count as members of what contains them. None where there is no such field, or it is a bit-field.
    pub fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut id = self.named(structure, &[kind::STRUCT, kind::UNION])?;
        let mut bits = 0;
        for member in path.split('.') {
            let (offset, member_type) = self.member(self.resolve(id)?, member)?;
            bits += offset;
            id = member_type;
        }
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Bytes of a structure.
    pub fn size(&self, structure: &str) -> Option<u32> {
        Some(self.type_of(self.named(structure, &[kind::STRUCT])?)?.size_or_type)
    }

    /// Value of a constant of a named enum.
    pub fn enum_value(&self, name: &str, constant: &str) -> Option<u32> {
        let head = self.type_of(self.named(name, &[kind::ENUM, kind::ENUM64])?)?;
        let step = if head.kind == kind::ENUM64 { 12 } else { 8 };
        (0..head.length)
            .map(|i| head.body + i * step)
            .find_map(|at| (self.string(self.u32(at)?)? == constant.as_bytes()).then(|| self.u32(at + 4)).flatten())
    }

    /// Arguments of a tracepoint, as its programs see them and C writes them; none where there is no such tracepoint.
    pub fn tracepoint_arguments(&self, tracepoint: &str) -> Option<Vec<String>> {
        // typedef void (*btf_trace_NAME)(void *data, arguments …)
        let typedef = self.type_of(self.named(&format!("btf_trace_{tracepoint}"), &[kind::TYPEDEF])?)?;
        let pointer = self.type_of(typedef.size_or_type)?;
        let mut arguments = (pointer.kind == kind::PTR).then(|| self.arguments(pointer.size_or_type))??;
        (!arguments.is_empty()).then(|| arguments.remove(0))?;
        Some(arguments)
    }

    /// Arguments of a function, as C writes them; none where there is no such function.
    pub fn function_arguments(&self, function: &str) -> Option<Vec<String>> {
        self.arguments(self.type_of(self.named(function, &[kind::FUNC])?)?.size_or_type)
    }

    fn arguments(&self, prototype: u32) -> Option<Vec<String>> {
        let head = self.type_of(prototype).filter(|head| head.kind == kind::FUNC_PROTO)?;
        (0..head.length).map(|i| Some(self.spelled(self.u32(head.body + i * 8 + 4)?))).collect()
    }

    /// A type as C writes it, as far as arguments have them.
    fn spelled(&self, id: u32) -> String {
        let Some(head) = self.type_of(id) else { return "void".into() };
        let name = || {
            let name = self.u32(head.body - TYPE).and_then(|offset| self.string(offset));
            String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
        };
        let inner = || self.spelled(head.size_or_type);
        match head.kind {
            kind::STRUCT | kind::FORWARD if !head.bit_fields || head.kind == kind::STRUCT => {
                format!("struct {}", name())
            }
            kind::UNION | kind::FORWARD => format!("union {}", name()),
            kind::ENUM | kind::ENUM64 => format!("enum {}", name()),
            kind::PTR => {
                let to = inner();
                if to.ends_with('*') { format!("{to}*") } else { format!("{to} *") }
            }
            kind::CONST => format!("const {}", inner()),
            kind::VOLATILE => format!("volatile {}", inner()),
            kind::RESTRICT | kind::TYPE_TAG => inner(),
            // gcc and clang name the same types in their own ways; gcc's stand in the table.
            kind::INT => match name().as_str() {
                "unsigned int" | "unsigned" => "unsigned int".into(),
                "unsigned long" => "long unsigned int".into(),
                "long" => "long int".into(),
                "_Bool" => "bool".into(),
                name => name.into(),
            },
            kind::FUNC_PROTO => "function".into(),
            kind::ARRAY => "array".into(),
            _ => name(),
        }
    }

    /// Offset in bits, and type, of a member, looked for in anonymous members, too.
    fn member(&self, structure: u32, name: &str) -> Option<(u32, u32)> {
        let head = self.type_of(structure)?;
        if head.kind != kind::STRUCT && head.kind != kind::UNION {
            return None;
        }
        (0..head.length).map(|i| head.body + i * 12).find_map(|at| {
            let member_name = self.string(self.u32(at)?)?;
            let (member_type, raw) = (self.u32(at + 4)?, self.u32(at + 8)?);
            let (bits, bit_field) = if head.bit_fields { (raw & 0xff_ffff, raw >> 24 != 0) } else { (raw, false) };
            if member_name == name.as_bytes() {
                return (!bit_field).then_some((bits, member_type));
            }
            if !member_name.is_empty() {
                return None;
            }
            let (inner, inner_type) = self.member(self.resolve(member_type)?, name)?;
            Some((bits + inner, inner_type))
        })
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        loop {
            let head = self.type_of(id)?;
            match head.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = head.size_or_type
                }
                _ => return Some(id),
            }
        }
    }

    fn named(&self, name: &str, kinds: &[u32]) -> Option<u32> {
        let wanted = hash(name.as_bytes());
        let ids = self.names.iter().filter(|(hash, _)| *hash == wanted).map(|&(_, id)| id);
        ids.filter(|&id| self.name_of(id) == Some(name.as_bytes()))
            .find(|&id| self.type_of(id).is_some_and(|head| kinds.contains(&head.kind)))
    }

    fn name_of(&self, id: u32) -> Option<&[u8]> {
        self.string(self.u32(*self.types.get(id as usize)? as usize)?)
    }

    fn type_of(&self, id: u32) -> Option<Type> {
        (id != 0).then(|| self.head(*self.types.get(id as usize)? as usize))?
    }

    fn head(&self, at: usize) -> Option<Type> {
        let info = self.u32(at + 4)?;
        Some(Type {
            body: at + TYPE,
            kind: info >> 24 & 0x1f,
            length: (info & 0xffff) as usize,
            bit_fields: info >> 31 != 0,
            size_or_type: self.u32(at + 8)?,
        })
    }

    fn string(&self, offset: u32) -> Option<&[u8]> {
        let tail = self.data.get(self.strings + offset as usize..)?;
        tail.split(|&byte| byte == 0).next()
    }

    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.data.get(at..at + 4)?.try_into().ok()?))
    }
}

/// FNV-1a.
fn hash(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Bytes that follow a type's head.
fn body_size(head: Type) -> Option<usize> {
    Some(match head.kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => head.length * 12,
        kind::ENUM | kind::FUNC_PROTO => head.length * 8,
        // Pointer, forward, typedef, qualifiers, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Types {
        Types::running().expect("this test needs a kernel that shows its BTF")
    }

    #[test]
    fn offsets_that_are_fixed_by_the_abi_are_found() {
        let types = running();
        // struct pt_regs is the same in every x86-64 kernel since 2.6.
        assert_eq!(types.offset("pt_regs", "r15"), Some(0));
        assert_eq!(types.offset("pt_regs", "di"), Some(112));
        assert_eq!(types.offset("list_head", "prev"), Some(8));
        assert_eq!(types.offset("task_struct", "thread_info.status"), types.offset("thread_info", "status"));
        assert_eq!(types.offset("task_struct", "no_such_field"), None);
        assert_eq!(types.offset("no_such_structure", "x"), None);
    }

    #[test]
    fn members_of_anonymous_unions_are_found() {
        // siginfo's payload sits in an anonymous struct inside an anonymous union.
        assert_eq!(running().offset("siginfo", "si_signo"), Some(0));
        assert_eq!(running().offset("siginfo", "si_code"), Some(8));
    }

    #[test]
    fn enums_functions_and_tracepoints_are_found() {
        let types = running();
        assert_eq!(types.enum_value("bpf_map_type", "BPF_MAP_TYPE_HASH"), Some(1));
        assert_eq!(types.enum_value("bpf_map_type", "NO_SUCH"), None);
        assert_eq!(types.function_arguments("__x64_sys_mmap").unwrap(), ["const struct pt_regs *"]);
        assert_eq!(types.function_arguments("no_such_function"), None);
        let fork = types.tracepoint_arguments("sched_process_fork").unwrap();
        assert_eq!(fork, ["struct task_struct *", "struct task_struct *"]);
        let fault = types.tracepoint_arguments("page_fault_user").unwrap();
        assert_eq!(fault, ["long unsigned int", "struct pt_regs *", "long unsigned int"]);
        assert_eq!(types.tracepoint_arguments("no_such_tracepoint"), None);
    }

    #[test]
    fn garbage_is_refused_and_never_panics() {
        assert!(Types::parse(Vec::new()).is_err());
        assert!(Types::parse(vec![0x9f, 0xeb, 1, 0]).is_err());
        let whole = fs::read(VMLINUX).unwrap();
        for cut in [24, 100, 1000, 100_001, whole.len() - 1] {
            let _ = Types::parse(whole[..cut].to_vec()).map(|types| types.offset("task_struct", "pid"));
        }
    }
}
