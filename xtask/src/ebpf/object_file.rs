//! What a kernel object holds, part by part, so that two objects can be compared and the difference named; and taking
//! debug information out of one. Nothing here knows how objects are made.

use anyhow::{Context, Result, ensure};
use object::{
    BinaryFormat, File, Object, ObjectSection, ObjectSymbol, RelocationTarget, Section, SectionKind, SymbolKind,
    build::elf,
};
use std::{collections::BTreeMap, fmt::Write};

/// An object without its DWARF sections. BTF, which the kernel reads, stays.
pub(crate) fn without_debug_information(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut builder = elf::Builder::read(bytes).context("not an ELF object")?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug_") || name.starts_with(".rel.debug_");
    }
    builder.delete_orphans();
    add_section_names(&mut builder);
    builder.set_section_sizes();
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("write the object")?;
    Ok(stripped)
}

/// LLVM keeps the names of sections among those of symbols; the writer wants a section of their own for them.
fn add_section_names(builder: &mut elf::Builder<'_>) {
    if builder.sections.iter().any(|section| matches!(section.data, elf::SectionData::SectionString)) {
        return;
    }
    let section = builder.sections.add();
    section.name = b".shstrtab".as_slice().into();
    section.sh_type = object::elf::SHT_STRTAB;
    section.sh_addralign = 1;
    section.data = elf::SectionData::SectionString;
}

/// How two objects differ, a line for each part: programs, their instructions, maps, BTF. Empty when they hold the same.
pub(crate) fn differences(fresh: &[u8], committed: &[u8]) -> Result<Vec<String>> {
    let fresh = parts(fresh).context("the fresh object")?;
    let committed = parts(committed).context("the committed object")?;
    let mut differences = Vec::new();
    for (name, content) in &fresh {
        match committed.get(name) {
            None => differences.push(format!("{name}: built, but missing in the committed object")),
            Some(committed) if committed != content => differences.push(format!("{name}: differs")),
            Some(_) => {}
        }
    }
    let gone = committed.keys().filter(|name| !fresh.contains_key(*name));
    differences.extend(gone.map(|name| format!("{name}: in the committed object, but no longer built")));
    Ok(differences)
}

/// The contents of an object's parts, each under a name that a developer knows.
type Parts = BTreeMap<String, Vec<u8>>;

/// Everything in an object that reaches the kernel.
fn parts(bytes: &[u8]) -> Result<Parts> {
    let file = File::parse(bytes).context("not an object file")?;
    ensure!(file.format() == BinaryFormat::Elf, "not an ELF object");
    let mut parts = Parts::new();
    add_sections(&file, &mut parts)?;
    add_symbols(&file, &mut parts)?;
    Ok(parts)
}

fn add_sections(file: &File<'_>, parts: &mut Parts) -> Result<()> {
    for section in file.sections() {
        let name = section.name().context("a section without a name")?;
        if !is_compared(section.kind(), name) {
            continue;
        }
        let part = match section.kind() {
            SectionKind::Text => format!("instructions of {name}"),
            _ => format!("section {name}"),
        };
        parts.insert(part, section.data().with_context(|| format!("the data of section {name}"))?.to_vec());
        let relocations = relocations(file, &section)?;
        if !relocations.is_empty() {
            parts.insert(format!("relocations of {name}"), relocations.into_bytes());
        }
    }
    Ok(())
}

fn add_symbols(file: &File<'_>, parts: &mut Parts) -> Result<()> {
    for symbol in file.symbols().filter(ObjectSymbol::is_definition) {
        let name = symbol.name().context("a symbol without a name")?;
        match symbol.kind() {
            SymbolKind::Text => parts.insert(format!("program {name}"), place(file, &symbol)?.into_bytes()),
            // Constants without a name of their own are told by their section.
            SymbolKind::Data if !name.starts_with("anon.") => {
                parts.insert(format!("map or variable {name}"), data(file, &symbol)?)
            }
            _ => None,
        };
    }
    Ok(())
}

fn is_compared(kind: SectionKind, name: &str) -> bool {
    matches!(
        kind,
        SectionKind::Text
            | SectionKind::Data
            | SectionKind::ReadOnlyData
            | SectionKind::ReadOnlyString
            | SectionKind::UninitializedData
    ) || name.starts_with(".BTF")
}

/// One line per relocation: where, of what kind, to which symbol or section, with which addend.
fn relocations<'data>(file: &File<'data>, section: &impl ObjectSection<'data>) -> Result<String> {
    let mut lines = String::new();
    for (offset, relocation) in section.relocations() {
        let target = match relocation.target() {
            RelocationTarget::Symbol(index) => {
                let symbol = file.symbol_by_index(index)?;
                match (symbol.kind(), symbol.section_index()) {
                    (SymbolKind::Section, Some(section)) => file.section_by_index(section)?.name()?.to_owned(),
                    _ => symbol.name().context("a relocation to a symbol without a name")?.to_owned(),
                }
            }
            other => format!("{other:?}"),
        };
        writeln!(lines, "{offset:#x} {:?} {target} {}", relocation.flags(), relocation.addend())?;
    }
    Ok(lines)
}

/// Where a program stands; its instructions are compared with their section.
fn place<'data>(file: &File<'data>, symbol: &impl ObjectSymbol<'data>) -> Result<String> {
    Ok(format!("{} {:#x} {:#x}", section_of(file, symbol)?.name()?, symbol.address(), symbol.size()))
}

/// The section and bytes of a map's definition or a variable. Where in its section it stands matters to nobody.
fn data<'data>(file: &File<'data>, symbol: &impl ObjectSymbol<'data>) -> Result<Vec<u8>> {
    let section = section_of(file, symbol)?;
    let bytes = section.data_range(symbol.address(), symbol.size())?.unwrap_or_default();
    Ok([section.name()?.as_bytes(), b" ", bytes].concat())
}

fn section_of<'data, 'file>(
    file: &'file File<'data>,
    symbol: &impl ObjectSymbol<'data>,
) -> Result<Section<'data, 'file>> {
    let index = symbol.section_index().context("a symbol outside of all sections")?;
    Ok(file.section_by_index(index)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{
        Architecture, Endianness, SymbolFlags, SymbolScope,
        write::{Object as Written, Relocation, Symbol, SymbolSection},
    };

    /// An object with one program, which refers to one map, and BTF and DWARF beside them.
    struct Sketch {
        instructions: [u8; 16],
        program: &'static str,
        relocated_at: u64,
        btf: &'static [u8],
        debug: &'static [u8],
    }

    const SKETCH: Sketch = Sketch {
        instructions: [0x18; 16],
        program: "page_fault_user",
        relocated_at: 0,
        btf: b"\x9f\xeb types",
        debug: b"dwarf of /home/somebody",
    };

    impl Sketch {
        fn bytes(&self) -> Vec<u8> {
            let mut object = Written::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
            let code = object.add_section(Vec::new(), b"tp_btf/page_fault_user".to_vec(), SectionKind::Text);
            let maps = object.add_section(Vec::new(), b"maps".to_vec(), SectionKind::Data);
            let btf = object.add_section(Vec::new(), b".BTF".to_vec(), SectionKind::Other);
            let debug = object.add_section(Vec::new(), b".debug_info".to_vec(), SectionKind::Debug);
            object.append_section_data(code, &self.instructions, 8);
            object.append_section_data(maps, &[0; 28], 4);
            object.append_section_data(btf, self.btf, 4);
            object.append_section_data(debug, self.debug, 1);
            let symbol = |name: &str, kind, section, size| Symbol {
                name: name.as_bytes().to_vec(),
                value: 0,
                size,
                kind,
                scope: SymbolScope::Dynamic,
                weak: false,
                section: SymbolSection::Section(section),
                flags: SymbolFlags::None,
            };
            object.add_symbol(symbol(self.program, SymbolKind::Text, code, 16));
            let map = object.add_symbol(symbol("PAGE_FAULTS", SymbolKind::Data, maps, 28));
            let flags = object::RelocationFlags::Elf { r_type: object::elf::R_BPF_64_64 };
            let relocation = Relocation { offset: self.relocated_at, symbol: map, addend: 0, flags };
            object.add_relocation(code, relocation).unwrap();
            object.write().unwrap()
        }
    }

    fn differences_to(changed: &Sketch) -> Vec<String> {
        differences(&changed.bytes(), &SKETCH.bytes()).unwrap()
    }

    #[test]
    fn equal_objects_have_no_differences_and_debug_information_does_not_count() {
        assert!(differences_to(&SKETCH).is_empty());
        assert!(differences_to(&Sketch { debug: b"dwarf of /apps", ..SKETCH }).is_empty());
    }

    #[test]
    fn each_kind_of_difference_is_named() {
        let instructions = differences_to(&Sketch { instructions: [0x95; 16], ..SKETCH });
        assert_eq!(instructions, ["instructions of tp_btf/page_fault_user: differs"]);
        let relocated = differences_to(&Sketch { relocated_at: 8, ..SKETCH });
        assert_eq!(relocated, ["relocations of tp_btf/page_fault_user: differs"]);
        let btf = differences_to(&Sketch { btf: b"\x9f\xeb other", ..SKETCH });
        assert_eq!(btf, ["section .BTF: differs"]);
        let renamed = differences_to(&Sketch { program: "page_fault_kernel", ..SKETCH });
        assert_eq!(
            renamed,
            [
                "program page_fault_kernel: built, but missing in the committed object",
                "program page_fault_user: in the committed object, but no longer built"
            ]
        );
    }

    #[test]
    fn stripping_takes_debug_information_and_nothing_else() {
        let bytes = SKETCH.bytes();
        let stripped = without_debug_information(&bytes).unwrap();
        assert!(stripped.len() < bytes.len());
        assert!(File::parse(&*stripped).unwrap().section_by_name(".debug_info").is_none());
        assert!(differences(&stripped, &bytes).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(differences(b"not an object", &SKETCH.bytes()).is_err());
        assert!(without_debug_information(b"not an object").is_err());
    }
}
