//! A Python numeric loop that also allocates and touches memory: processor time and page faults, no waiting.

use super::workload::{Workload, require_program};
use crate::process;
use anyhow::Result;
use std::{path::Path, process::Command};

/// Some two seconds of work.
const SCRIPT: &str = "\
total = 0.0
for block in range(240):
    numbers = [(block * 7919 + n) % 10007 for n in range(100000)]
    total += sum(n * 0.5 for n in numbers)
    memory = bytearray(4 << 20)
    for place in range(0, len(memory), 4096):
        memory[place] = 1
print(total)
";

pub(crate) fn prepare(_directory: &Path) -> Result<Workload> {
    let found = require_program("python3", "python3")?;
    // What is found may be a script that starts the interpreter: time only the interpreter.
    let interpreter = process::output(Command::new(found).args(["-c", "import sys; print(sys.executable)"]))?;
    let mut command = Command::new(interpreter.trim());
    command.args(["-c", SCRIPT]);
    Ok(Workload::alone(command))
}
