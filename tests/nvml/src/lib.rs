//! A stand-in for NVIDIA's `libnvidia-ml.so`: the C interface of NVML, as far as a monitor needs it, answered from a script.
//!
//! The script is a JSON file named by `NVML_STANDIN_SCRIPT`, read anew at each call, so that a test can change it while the
//! agent runs. It has an answer for each function by its C name: at its top for the library's functions, in `gpus[i]` for
//! those of a GPU, and in `gpus[i].mig[j]` for those of an instance (`null` for a place without one). An answer is a value,
//! or `{"error": CODE}` with a code of `nvmlReturn_t`; what has none is not supported. `{"delay_ms": {FUNCTION: N}}` at the
//! top makes a function hang for that long, or until the script no longer says so.
//!
//! Prototypes and layouts are those of nvml.h, written down here by themselves, so that they also check those the agent has.

use libc::{c_char, c_uint, c_ulonglong};
use serde_json::Value;
use std::{
    env, fs,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

/// The variable that names the script.
pub const SCRIPT: &str = "NVML_STANDIN_SCRIPT";

/// `nvmlReturn_t`: the codes this stand-in gives by itself.
mod code {
    pub(super) const SUCCESS: u32 = 0;
    pub(super) const UNINITIALIZED: u32 = 1;
    pub(super) const INVALID_ARGUMENT: u32 = 2;
    pub(super) const NOT_SUPPORTED: u32 = 3;
    pub(super) const NOT_FOUND: u32 = 6;
    pub(super) const INSUFFICIENT_SIZE: u32 = 7;
    pub(super) const UNKNOWN: u32 = 999;
}

/// `nvmlDevice_t`, opaque to callers: (GPU + 1) << 16 | (place of the instance + 1, or 0 for the GPU itself).
type Device = *mut libc::c_void;

/// `nvmlMemory_v2_t`.
#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlUtilization_t`, in per cent.
#[repr(C)]
pub struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// `nvmlProcessInfo_v2_t`, which `nvmlDeviceGet…RunningProcesses_v3` fill.
#[repr(C)]
pub struct ProcessInfo {
    pid: c_uint,
    used_gpu_memory: c_ulonglong,
    gpu_instance_id: c_uint,
    compute_instance_id: c_uint,
}

/// `nvmlDeviceAttributes_t`.
#[repr(C)]
pub struct Attributes {
    multiprocessor_count: c_uint,
    shared_copy_engine_count: c_uint,
    shared_decoder_count: c_uint,
    shared_encoder_count: c_uint,
    shared_jpeg_count: c_uint,
    shared_ofa_count: c_uint,
    gpu_instance_slice_count: c_uint,
    compute_instance_slice_count: c_uint,
    memory_size_mb: c_ulonglong,
}

/// How often the library was initialised and not yet shut down.
static INITIALISED: AtomicU32 = AtomicU32::new(0);

/// A call of one function, with what the script says of it.
struct Call {
    function: &'static str,
    script: Value,
}

impl Call {
    /// Reads the script, and hangs for as long as that says so.
    fn begin(function: &'static str) -> Result<Self, u32> {
        let begin = Instant::now();
        loop {
            let script = env::var_os(SCRIPT).and_then(|path| fs::read(path).ok());
            let script = script.and_then(|text| serde_json::from_slice::<Value>(&text).ok()).ok_or(code::UNKNOWN)?;
            let delay = Duration::from_millis(script["delay_ms"][function].as_u64().unwrap_or_default());
            if begin.elapsed() >= delay {
                return Ok(Self { function, script });
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// As [`Self::begin`], for functions that need an initialised library.
    fn inside(function: &'static str) -> Result<Self, u32> {
        if INITIALISED.load(SeqCst) == 0 {
            return Err(code::UNINITIALIZED);
        }
        Self::begin(function)
    }

    /// The function's answer by `place`, which is the script or a part of it.
    fn answer<'a>(&self, place: &'a Value) -> Result<&'a Value, u32> {
        let answer = &place[self.function];
        match answer["error"].as_u64() {
            Some(error) => Err(narrow(error)),
            None if answer.is_null() => Err(code::NOT_SUPPORTED),
            None => Ok(answer),
        }
    }

    /// The answer for a device.
    fn of(&self, device: Device) -> Result<&Value, u32> {
        self.answer(self.place(device)?)
    }

    /// What the script says of a device.
    fn place(&self, device: Device) -> Result<&Value, u32> {
        let handle = device as usize;
        let gpu = self.script["gpus"].get((handle >> 16).wrapping_sub(1)).ok_or(code::INVALID_ARGUMENT)?;
        match handle & 0xffff {
            0 => Ok(gpu),
            place => gpu["mig"].get(place - 1).ok_or(code::INVALID_ARGUMENT),
        }
    }
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A number of the script, or of a list in it.
fn number(value: &Value) -> Result<u64, u32> {
    value.as_u64().ok_or(code::UNKNOWN)
}

fn gpu_handle(index: usize) -> usize {
    (index + 1) << 16
}

/// What a function returns.
fn status(result: Result<(), u32>) -> u32 {
    result.err().unwrap_or(code::SUCCESS)
}

/// Gives the caller a value.
///
/// # Safety
/// `out` is null or valid for writing.
unsafe fn give<T>(out: *mut T, value: T) -> Result<(), u32> {
    if out.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller's by this function's contract.
    unsafe { out.write(value) };
    Ok(())
}

/// Gives the caller a text with its NUL.
///
/// # Safety
/// `buffer` has room for `length` bytes.
unsafe fn give_text(text: &Value, buffer: *mut c_char, length: c_uint) -> Result<(), u32> {
    let text = text.as_str().ok_or(code::UNKNOWN)?;
    if buffer.is_null() || text.len() >= length as usize {
        return Err(code::INSUFFICIENT_SIZE);
    }
    // SAFETY: the text and its NUL fit the buffer, which is the caller's by this function's contract.
    unsafe {
        buffer.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        buffer.add(text.len()).write(0);
    }
    Ok(())
}

/// Functions that give one number of a device: `(name, the way to its out-parameter's type)`.
macro_rules! numbers {
    ($($(#[$about:meta])* $name:ident($($argument:ident: $kind:ty),*) -> $out:ty;)*) => {$(
        $(#[$about])*
        ///
        /// # Safety
        /// As in nvml.h: `out` is null or valid for writing.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: Device, $($argument: $kind,)* out: *mut $out) -> u32 {
            status((|| {
                let call = Call::inside(stringify!($name))?;
                let answer = call.of(device)?;
                $(let answer = if answer.is_array() { &answer[$argument as usize] } else { answer };)*
                let value = <$out>::try_from(number(answer)?).map_err(|_| code::UNKNOWN)?;
                // SAFETY: by this function's contract.
                unsafe { give(out, value) }
            })())
        }
    )*};
}

numbers! {
    /// Draw in milliwatts.
    nvmlDeviceGetPowerUsage() -> c_uint;
    /// Enforced limit in milliwatts.
    nvmlDeviceGetEnforcedPowerLimit() -> c_uint;
    /// Temperature in degrees Celsius; sensor 0 is the chip's.
    nvmlDeviceGetTemperature(sensor: c_uint) -> c_uint;
    /// Clock in MHz; the script has a list by `nvmlClockType_t`: graphics, SM, memory.
    nvmlDeviceGetClockInfo(domain: c_uint) -> c_uint;
    /// Bits of `nvmlClocksThrottleReason…`.
    nvmlDeviceGetCurrentClocksThrottleReasons() -> c_ulonglong;
    /// Places for instances.
    nvmlDeviceGetMaxMigDeviceCount() -> c_uint;
}

/// Initialises the library.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> u32 {
    status(Call::begin("nvmlInit_v2").and_then(|call| match call.answer(&call.script) {
        Err(error) if error != code::NOT_SUPPORTED => Err(error),
        _ => {
            INITIALISED.fetch_add(1, SeqCst);
            Ok(())
        }
    }))
}

/// Shuts the library down.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> u32 {
    let left = INITIALISED.fetch_update(SeqCst, SeqCst, |count| count.checked_sub(1));
    if left.is_ok() { code::SUCCESS } else { code::UNINITIALIZED }
}

/// The driver's version.
///
/// # Safety
/// As in nvml.h: `version` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> u32 {
    status((|| {
        let call = Call::inside("nvmlSystemGetDriverVersion")?;
        // SAFETY: by this function's contract.
        unsafe { give_text(call.answer(&call.script)?, version, length) }
    })())
}

/// How many GPUs there are: as many as the script has, unless that says otherwise.
///
/// # Safety
/// As in nvml.h: `count` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> u32 {
    status((|| {
        let call = Call::inside("nvmlDeviceGetCount_v2")?;
        let gpus = match call.answer(&call.script) {
            Err(code::NOT_SUPPORTED) => call.script["gpus"].as_array().map_or(0, Vec::len) as u64,
            answer => number(answer?)?,
        };
        // SAFETY: by this function's contract.
        unsafe { give(count, narrow(gpus)) }
    })())
}

/// A GPU by its number.
///
/// # Safety
/// As in nvml.h: `device` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut Device) -> u32 {
    status((|| {
        let call = Call::inside("nvmlDeviceGetHandleByIndex_v2")?;
        let handle = gpu_handle(index as usize) as Device;
        match call.of(handle) {
            Ok(_) | Err(code::NOT_SUPPORTED) => {}
            Err(error) => return Err(error),
        }
        // SAFETY: by this function's contract.
        unsafe { give(device, handle) }
    })())
}

/// The instance in one place of a GPU.
///
/// # Safety
/// As in nvml.h: `instance` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: Device,
    index: c_uint,
    instance: *mut Device,
) -> u32 {
    status((|| {
        let call = Call::inside("nvmlDeviceGetMigDeviceHandleByIndex")?;
        let there = call.place(device)?["mig"].get(index as usize).is_some_and(Value::is_object);
        let handle = device as usize | (index as usize + 1);
        // SAFETY: by this function's contract.
        if there { unsafe { give(instance, handle as Device) } } else { Err(code::NOT_FOUND) }
    })())
}

/// A device's uuid.
///
/// # Safety
/// As in nvml.h: `uuid` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: Device, uuid: *mut c_char, length: c_uint) -> u32 {
    // SAFETY: by this function's contract.
    status(Call::inside("nvmlDeviceGetUUID").and_then(|call| unsafe { give_text(call.of(device)?, uuid, length) }))
}

/// A device's name.
///
/// # Safety
/// As in nvml.h: `name` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(device: Device, name: *mut c_char, length: c_uint) -> u32 {
    // SAFETY: by this function's contract.
    status(Call::inside("nvmlDeviceGetName").and_then(|call| unsafe { give_text(call.of(device)?, name, length) }))
}

/// Memory in bytes: the script has `[total, used]`.
///
/// # Safety
/// As in nvml.h: `memory` is null or valid for reading its version and for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Device, memory: *mut Memory) -> u32 {
    /// `NVML_STRUCT_VERSION(Memory, 2)`.
    const VERSION: u32 = size_of::<Memory>() as u32 | 2 << 24;
    status((|| {
        let call = Call::inside("nvmlDeviceGetMemoryInfo_v2")?;
        let answer = call.of(device)?;
        // SAFETY: by this function's contract.
        if memory.is_null() || unsafe { (*memory).version } != VERSION {
            return Err(code::INVALID_ARGUMENT);
        }
        let (total, used) = (number(&answer[0])?, number(&answer[1])?);
        let value = Memory { version: VERSION, total, reserved: 0, free: total.saturating_sub(used), used };
        // SAFETY: by this function's contract.
        unsafe { give(memory, value) }
    })())
}

/// Utilisation: the script has `[gpu, memory]`, in per cent.
///
/// # Safety
/// As in nvml.h: `utilization` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(device: Device, utilization: *mut Utilization) -> u32 {
    status((|| {
        let call = Call::inside("nvmlDeviceGetUtilizationRates")?;
        let answer = call.of(device)?;
        let value = Utilization { gpu: narrow(number(&answer[0])?), memory: narrow(number(&answer[1])?) };
        // SAFETY: by this function's contract.
        unsafe { give(utilization, value) }
    })())
}

/// MIG mode now and after the next reset: the script has one number for both.
///
/// # Safety
/// As in nvml.h: both are null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(device: Device, current: *mut c_uint, pending: *mut c_uint) -> u32 {
    status((|| {
        let call = Call::inside("nvmlDeviceGetMigMode")?;
        let mode = narrow(number(call.of(device)?)?);
        // SAFETY: by this function's contract.
        unsafe { give(current, mode).and_then(|()| give(pending, mode)) }
    })())
}

/// An instance's size: the script has `[slices of the GPU, compute slices, MB]`.
///
/// # Safety
/// As in nvml.h: `attributes` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetAttributes_v2(device: Device, attributes: *mut Attributes) -> u32 {
    status((|| {
        let call = Call::inside("nvmlDeviceGetAttributes_v2")?;
        let answer = call.of(device)?;
        let value = Attributes {
            multiprocessor_count: 0,
            shared_copy_engine_count: 0,
            shared_decoder_count: 0,
            shared_encoder_count: 0,
            shared_jpeg_count: 0,
            shared_ofa_count: 0,
            gpu_instance_slice_count: narrow(number(&answer[0])?),
            compute_instance_slice_count: narrow(number(&answer[1])?),
            memory_size_mb: number(&answer[2])?,
        };
        // SAFETY: by this function's contract.
        unsafe { give(attributes, value) }
    })())
}

/// Processes that compute.
///
/// # Safety
/// As in nvml.h: `infos` has room for `*count` rows, and may be null where that is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: Device,
    count: *mut c_uint,
    infos: *mut ProcessInfo,
) -> u32 {
    // SAFETY: by this function's contract.
    unsafe { give_processes("nvmlDeviceGetComputeRunningProcesses_v3", device, count, infos) }
}

/// Processes that draw.
///
/// # Safety
/// As in nvml.h: `infos` has room for `*count` rows, and may be null where that is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: Device,
    count: *mut c_uint,
    infos: *mut ProcessInfo,
) -> u32 {
    // SAFETY: by this function's contract.
    unsafe { give_processes("nvmlDeviceGetGraphicsRunningProcesses_v3", device, count, infos) }
}

/// A list of processes: the script has `[pid, bytes]` or `[pid, bytes, GPU instance, compute instance]` for each.
///
/// # Safety
/// `count` is null or valid for reading and writing, and `infos` has room for that many rows.
unsafe fn give_processes(function: &'static str, device: Device, count: *mut c_uint, infos: *mut ProcessInfo) -> u32 {
    /// Stands for no instance.
    const NONE: u32 = u32::MAX;
    status((|| {
        let call = Call::inside(function)?;
        let rows = call.of(device)?.as_array().ok_or(code::UNKNOWN)?;
        if count.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        // SAFETY: not null; by this function's contract.
        let room = unsafe { count.replace(narrow(rows.len() as u64)) } as usize;
        if room < rows.len() {
            return Err(code::INSUFFICIENT_SIZE);
        }
        for (at, row) in rows.iter().enumerate() {
            let instance = |field: usize| row[field].as_u64().map_or(NONE, narrow);
            let info = ProcessInfo {
                pid: narrow(number(&row[0])?),
                used_gpu_memory: number(&row[1])?,
                gpu_instance_id: instance(2),
                compute_instance_id: instance(3),
            };
            // SAFETY: below the number of rows there is room for.
            unsafe { give(infos.add(at), info)? };
        }
        Ok(())
    })())
}
