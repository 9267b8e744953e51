//! A C compiler on a generated file: several processes one after the other, heaps that grow, files read and written.

use super::workload::{Workload, require_program};
use anyhow::{Context, Result};
use std::{fmt::Write, fs, path::Path, process::Command};

/// Some three seconds of work.
const FUNCTIONS: usize = 700;

pub(crate) fn prepare(directory: &Path) -> Result<Workload> {
    let compiler = require_program("cc", "gcc")?;
    let source = directory.join("generated.c");
    fs::write(&source, program(FUNCTIONS)?).with_context(|| format!("cannot write {}", source.display()))?;
    let mut command = Command::new(compiler);
    command.args(["-O2", "-c", "-o"]).arg(directory.join("generated.o")).arg(source);
    Ok(Workload::alone(command))
}

/// A C program of many small functions, the same each time.
fn program(functions: usize) -> Result<String> {
    let mut text = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
    for number in 0..functions {
        writeln!(
            text,
            "long mix_{number}(const long *values, long count) {{\n\
             \x20   long sum = {number};\n\
             \x20   for (long i = 0; i < count; i++) {{\n\
             \x20       if (values[i] % {divisor} == 0) sum += values[i] * {factor};\n\
             \x20       else sum ^= values[i] << (i & 7);\n\
             \x20   }}\n\
             \x20   return sum;\n\
             }}",
            divisor = number % 13 + 2,
            factor = number + 3,
        )?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::program;

    #[test]
    fn the_program_is_the_same_each_time_and_has_every_function() {
        let text = program(3).unwrap();
        assert_eq!(text, program(3).unwrap());
        assert_eq!(text.matches("long mix_").count(), 3);
    }
}
