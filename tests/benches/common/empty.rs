//! Empty programs for the hooks of ours: what a hook itself costs.

use anyhow::{Context, Result, bail};
use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{BtfTracePoint, FExit, RawTracePoint, TracePoint},
};
use monitor::kernel::{objects, plan::Hook};

/// Loads one for this hook, attached to nothing: the object that has it, and its name there.
pub(crate) fn load(hook: Hook, btf: &Btf) -> Result<(Ebpf, &'static str)> {
    let mut object = EbpfLoader::new().btf(None).load(&objects::empty())?;
    let name = match hook {
        Hook::TpBtf(_) => "empty_tp_btf",
        Hook::SyscallTracepoint(_) => "empty_tracepoint",
        Hook::RawTracepoint(_) => "empty_raw_tracepoint",
        Hook::FExit(_) => "empty_fexit",
        other => bail!("there is no empty program for {other}"),
    };
    let program = object.program_mut(name).context("no program")?;
    match hook {
        Hook::TpBtf(tracepoint) => <&mut BtfTracePoint>::try_from(program)?.load(tracepoint, btf)?,
        Hook::FExit(function) => <&mut FExit>::try_from(program)?.load(function, btf)?,
        Hook::RawTracepoint(_) => <&mut RawTracePoint>::try_from(program)?.load()?,
        _ => <&mut TracePoint>::try_from(program)?.load()?,
    }
    Ok((object, name))
}
