//! Asking NVIDIA's library (NVML). It is loaded when it is first asked: neither it nor its headers are needed to build.
//!
//! Calls are those of drivers since 510. What a GPU does not support, and what is plainly no measurement, is none.

use crate::{
    gpu::{Gpu, GpuMemory, GpuProcess, MigInstance},
    ids::Tgid,
    time::BootTime,
};
use nvml_wrapper::{
    Device, Nvml,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{Clock, TemperatureSensor},
    enums::device::UsedGpuMemory,
    error::NvmlError,
    struct_wrappers::device::{DeviceAttributes, ProcessInfo},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

/// No chip is hotter: what is above is a sentinel.
const CELSIUS_MAX: u32 = 250;
/// No board draws more.
const MILLIWATTS_MAX: u32 = 100_000_000;
/// No clock is faster.
const MEGAHERTZ_MAX: u32 = 100_000;
/// How often to ask for a list that grows while it is asked for.
const LIST_TRIES: usize = 3;
/// `nvmlDeviceGetMigMode` calls it enabled (`NVML_DEVICE_MIG_ENABLE`).
const MIG_ENABLED: u32 = 1;

/// The library, loaded and initialised; unloaded on drop.
pub(super) struct Session<'a> {
    nvml: Nvml,
    names: &'a mut NamesByIndex,
    /// GPUs that have told their names in this session.
    told: BTreeSet<u32>,
}

/// Names of the GPUs by their number, which outlive a session: a lost one no longer tells its own, in the next session either.
pub(super) type NamesByIndex = BTreeMap<u32, Names>;

#[derive(Clone, Default)]
pub(super) struct Names {
    uuid: Option<String>,
    name: Option<String>,
}

impl<'a> Session<'a> {
    /// Loads and initialises the library. An error says in one line why not.
    pub(super) fn begin(library: &Path, names: &'a mut NamesByIndex) -> Result<Self, String> {
        if cfg!(target_feature = "crt-static") {
            return Err("this agent is linked statically and can load no driver's library: \
                        use one that is linked dynamically"
                .to_owned());
        }
        let nvml = Nvml::builder().lib_path(library.as_os_str()).init().map_err(|error| match error {
            NvmlError::LibloadingError(error) => {
                format!("{error}; if this host has NVIDIA GPUs, install their driver or set gpu.library")
            }
            error => format!("{} cannot be initialised: {error}", library.display()),
        })?;
        Ok(Self { nvml, names, told: BTreeSet::new() })
    }

    pub(super) fn driver_version(&self) -> String {
        self.nvml.sys_driver_version().unwrap_or_else(|error| format!("of unknown version: {error}"))
    }

    /// Reads all GPUs. An error means that the driver is lost, and says in one line how.
    pub(super) fn read(&mut self) -> Result<Vec<Arc<Gpu>>, String> {
        let lost = |error: NvmlError| format!("the driver does not answer: {error}");
        let count = self.nvml.device_count().map_err(lost)?;
        let gpus: Vec<_> = (0..count).map(|index| self.read_gpu(index)).collect::<Result<_, _>>().map_err(lost)?;
        let answers = |gpu: &Gpu| gpu.failure.is_none();
        match gpus.first().and_then(|gpu| gpu.failure.as_ref()) {
            Some(failure) if !gpus.iter().any(answers) => Err(format!("no GPU answers: {failure}")),
            _ => Ok(gpus.into_iter().map(Arc::new).collect()),
        }
    }

    /// One GPU. An error means that the driver is lost, and not only this GPU.
    fn read_gpu(&mut self, index: u32) -> Result<Gpu, NvmlError> {
        let time = BootTime::now();
        let read = self.nvml.device_by_index(index).and_then(|device| {
            if self.told.insert(index) {
                self.names.entry(index).or_default().learn(Names::of(&device));
            }
            read_device(&device)
        });
        let gpu = match read {
            Ok(gpu) => gpu,
            Err(error) if is_loss_of_the_driver(&error) => return Err(error),
            Err(error) => Gpu { failure: Some(error.to_string()), ..Gpu::default() },
        };
        let Names { uuid, name } = self.names.get(&index).cloned().unwrap_or_default();
        Ok(Gpu { time, index, uuid, name, ..gpu })
    }
}

impl Names {
    fn of(device: &Device<'_>) -> Self {
        let known = |name: Result<String, NvmlError>| name.ok().filter(|name| !name.is_empty());
        Self { uuid: known(device.uuid()), name: known(device.name()) }
    }

    /// What is told now counts; what is not told any more stays.
    fn learn(&mut self, now: Self) {
        *self = Self { uuid: now.uuid.or(self.uuid.take()), name: now.name.or(self.name.take()) };
    }
}

/// What a GPU measures. An error means that it is lost, or the driver.
fn read_device(device: &Device<'_>) -> Result<Gpu, NvmlError> {
    let memory = read_memory(device)?;
    let utilization = told(device.utilization_rates())?;
    let clock = |domain| -> Result<_, NvmlError> { Ok(told(device.clock_info(domain))?.and_then(hertz)) };
    let mig = read_instances(device)?;
    let processes = read_processes(device, memory)?;
    Ok(Gpu {
        utilization_ratio: utilization.as_ref().and_then(|rates| ratio(rates.gpu)),
        memory_utilization_ratio: utilization.as_ref().and_then(|rates| ratio(rates.memory)),
        memory,
        temperature_celsius: told(device.temperature(TemperatureSensor::Gpu))?.filter(|&value| value <= CELSIUS_MAX),
        power_watts: told(device.power_usage())?.and_then(watts),
        power_limit_watts: told(device.enforced_power_limit())?.and_then(watts),
        graphics_clock_hertz: clock(Clock::Graphics)?,
        sm_clock_hertz: clock(Clock::SM)?,
        memory_clock_hertz: clock(Clock::Memory)?,
        throttle_reasons: told(device.current_throttle_reasons())?.map(names_of_reasons),
        processes: processes.or_else(|| of_instances(mig.as_deref()?)),
        mig,
        ..Gpu::default()
    })
}

/// The instances of a GPU in MIG mode, none where it is not. They come and go while the driver runs.
fn read_instances(device: &Device<'_>) -> Result<Option<Vec<MigInstance>>, NvmlError> {
    if told(device.mig_mode())?.is_none_or(|mode| mode.current != MIG_ENABLED) {
        return Ok(None);
    }
    let total_bytes = read_memory(device)?.total_bytes;
    let places = told(device.mig_device_count())?.unwrap_or_default();
    let mut instances = Vec::new();
    for index in 0..places {
        let Some(instance) = told(device.mig_device_by_index(index))? else { continue };
        let memory = read_memory(&instance)?;
        let attributes = told(instance.attributes())?;
        instances.push(MigInstance {
            index,
            uuid: Names::of(&instance).uuid,
            profile: attributes.zip(total_bytes).map(|(attributes, total)| profile(&attributes, total)),
            memory,
            processes: read_processes(&instance, memory)?,
        });
    }
    Ok(Some(instances))
}

fn read_memory(device: &Device<'_>) -> Result<GpuMemory, NvmlError> {
    let memory = match device.memory_info() {
        // Every GPU with memory of its own knows this: one that does not is out of order.
        Err(NvmlError::Unknown) => return Err(NvmlError::Unknown),
        answer => told(answer)?,
    };
    let total_bytes = memory.as_ref().map(|memory| memory.total).filter(|&total| total > 0 && total < u64::MAX);
    let used_bytes = memory.map(|memory| memory.used).filter(|&used| total_bytes.is_some_and(|total| used <= total));
    Ok(GpuMemory { used_bytes, total_bytes })
}

/// Who computes or draws on a device; none where it tells neither.
fn read_processes(device: &Device<'_>, memory: GpuMemory) -> Result<Option<Vec<GpuProcess>>, NvmlError> {
    let compute = told(whole(|| device.running_compute_processes()))?;
    let graphics = told(whole(|| device.running_graphics_processes()))?;
    if compute.is_none() && graphics.is_none() {
        return Ok(None);
    }
    let all = compute.into_iter().chain(graphics).flatten();
    Ok(Some(merge(all, memory.total_bytes.unwrap_or(u64::MAX))))
}

/// A list that may have grown between the question for its length and that for its items.
fn whole<T>(list: impl Fn() -> Result<Vec<T>, NvmlError>) -> Result<Vec<T>, NvmlError> {
    let mut answer = list();
    for _ in 1..LIST_TRIES {
        if !matches!(answer, Err(NvmlError::InsufficientSize(_))) {
            break;
        }
        answer = list();
    }
    answer
}

/// Rows by process. A process that computes and draws stands in both lists with all it holds; one on several instances
/// has a row for each.
fn merge(rows: impl Iterator<Item = ProcessInfo>, most: u64) -> Vec<GpuProcess> {
    let mut by_instance: BTreeMap<_, Option<u64>> = BTreeMap::new();
    for row in rows {
        let bytes = match row.used_gpu_memory {
            UsedGpuMemory::Used(bytes) if bytes <= most => Some(bytes),
            _ => None,
        };
        let held = by_instance.entry((Tgid(row.pid), row.gpu_instance_id, row.compute_instance_id)).or_default();
        *held = (*held).max(bytes);
    }
    by_process(by_instance.into_iter().map(|((pid, ..), memory_bytes)| GpuProcess { pid, memory_bytes }))
}

/// A sum by process, not known where a part of it is not.
fn by_process(parts: impl Iterator<Item = GpuProcess>) -> Vec<GpuProcess> {
    let mut sums: BTreeMap<Tgid, Option<u64>> = BTreeMap::new();
    for part in parts {
        let sum = sums.entry(part.pid).or_insert(Some(0));
        *sum = sum.zip(part.memory_bytes).map(|(sum, bytes)| sum.saturating_add(bytes));
    }
    sums.into_iter().map(|(pid, memory_bytes)| GpuProcess { pid, memory_bytes }).collect()
}

/// The processes of all instances together; none where one does not tell.
fn of_instances(instances: &[MigInstance]) -> Option<Vec<GpuProcess>> {
    let lists: Option<Vec<_>> = instances.iter().map(|instance| instance.processes.as_ref()).collect();
    Some(by_process(lists?.into_iter().flatten().copied()))
}

/// An answer, or none where there is none to be had. An error means that the GPU or the driver is lost.
fn told<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) => Err(error),
        Err(error) if is_loss_of_the_driver(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

const fn is_loss_of_the_driver(error: &NvmlError) -> bool {
    matches!(error, NvmlError::Uninitialized | NvmlError::DriverNotLoaded | NvmlError::LibRmVersionMismatch)
}

fn ratio(percent: u32) -> Option<f64> {
    (percent <= 100).then(|| f64::from(percent) / 100.0)
}

fn watts(milliwatts: u32) -> Option<f64> {
    (milliwatts <= MILLIWATTS_MAX).then(|| f64::from(milliwatts) / 1000.0)
}

fn hertz(megahertz: u32) -> Option<u64> {
    (megahertz <= MEGAHERTZ_MAX).then(|| u64::from(megahertz) * 1_000_000)
}

/// The name of an instance's size: slices and memory, as NVIDIA's own tools make it from the same attributes (go-nvlib,
/// `GetMigMemorySizeGB`): memory is in eighths of the whole GPU's.
fn profile(attributes: &DeviceAttributes, total_bytes: u64) -> String {
    const EIGHTHS: f64 = 8.0;
    let total = total_bytes as f64;
    let share = (attributes.memory_size_mb as f64 * f64::from(1 << 20) / total * EIGHTHS).ceil() / EIGHTHS;
    let gigabytes = (share * total_bytes.div_ceil(1 << 30) as f64).round();
    let (gpu, compute) = (attributes.gpu_instance_slice_count, attributes.compute_instance_slice_count);
    if gpu == compute { format!("{gpu}g.{gigabytes}gb") } else { format!("{compute}c.{gpu}g.{gigabytes}gb") }
}

fn names_of_reasons(reasons: ThrottleReasons) -> Vec<&'static str> {
    const NAMES: [(ThrottleReasons, &str); 9] = [
        (ThrottleReasons::GPU_IDLE, "gpu_idle"),
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "applications_clocks_setting"),
        (ThrottleReasons::SW_POWER_CAP, "sw_power_cap"),
        (ThrottleReasons::HW_SLOWDOWN, "hw_slowdown"),
        (ThrottleReasons::SYNC_BOOST, "sync_boost"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "sw_thermal_slowdown"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "hw_thermal_slowdown"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "hw_power_brake_slowdown"),
        (ThrottleReasons::DISPLAY_CLOCK_SETTING, "display_clock_setting"),
    ];
    NAMES.into_iter().filter(|(reason, _)| reasons.contains(*reason)).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn row(pid: u32, used: Option<u64>, instance: Option<u32>) -> ProcessInfo {
        let used_gpu_memory = used.map_or(UsedGpuMemory::Unavailable, UsedGpuMemory::Used);
        ProcessInfo { pid, used_gpu_memory, gpu_instance_id: instance, compute_instance_id: instance.map(|_| 0) }
    }

    fn merged(rows: Vec<ProcessInfo>) -> Vec<(u32, Option<u64>)> {
        merge(rows.into_iter(), GIB).into_iter().map(|process| (process.pid.0, process.memory_bytes)).collect()
    }

    #[test]
    fn who_computes_and_draws_is_counted_once() {
        assert_eq!(merged(vec![row(7, Some(5), None), row(7, Some(5), None)]), [(7, Some(5))]);
        assert_eq!(merged(vec![row(7, Some(5), None), row(7, None, None)]), [(7, Some(5))]);
    }

    #[test]
    fn instances_add_up_and_an_unknown_part_makes_the_sum_unknown() {
        assert_eq!(merged(vec![row(7, Some(5), Some(1)), row(7, Some(6), Some(2))]), [(7, Some(11))]);
        assert_eq!(merged(vec![row(7, Some(5), Some(1)), row(7, None, Some(2)), row(3, Some(1), None)])[1], (7, None));
    }

    #[test]
    fn more_than_the_gpu_has_is_no_measurement() {
        assert_eq!(merged(vec![row(7, Some(GIB + 1), None), row(8, Some(GIB), None)]), [(7, None), (8, Some(GIB))]);
    }

    #[test]
    fn sentinels_are_no_measurements() {
        assert_eq!((ratio(37), ratio(101), ratio(u32::MAX)), (Some(0.37), None, None));
        assert_eq!((watts(700_500), watts(u32::MAX)), (Some(700.5), None));
        assert_eq!((hertz(1980), hertz(u32::MAX)), (Some(1_980_000_000), None));
    }

    #[test]
    fn profiles_are_named_as_nvidia_names_them() {
        let name = |gpu, compute, memory_size_mb, total| {
            let attributes = DeviceAttributes {
                multiprocessor_count: 0,
                shared_copy_engine_count: 0,
                shared_decoder_count: 0,
                shared_encoder_count: 0,
                shared_jpeg_count: 0,
                shared_ofa_count: 0,
                gpu_instance_slice_count: gpu,
                compute_instance_slice_count: compute,
                memory_size_mb,
            };
            profile(&attributes, total)
        };
        // What nvidia-smi shows of an A100 of 40 GB and one of 80 GB.
        assert_eq!(name(1, 1, 4864, 42_505_273_344), "1g.5gb");
        assert_eq!(name(3, 3, 19_968, 42_505_273_344), "3g.20gb");
        assert_eq!(name(3, 1, 19_968, 42_505_273_344), "1c.3g.20gb");
        assert_eq!(name(7, 7, 81_251, 85_899_345_920), "7g.80gb");
    }

    #[test]
    fn every_reason_has_a_name() {
        assert_eq!(names_of_reasons(ThrottleReasons::all()).len(), 9);
        assert_eq!(names_of_reasons(ThrottleReasons::SW_POWER_CAP), ["sw_power_cap"]);
        assert!(names_of_reasons(ThrottleReasons::NONE).is_empty());
    }

    #[test]
    fn a_list_that_grows_is_asked_for_again() {
        let asked = std::cell::Cell::new(0);
        let list = || {
            asked.set(asked.get() + 1);
            if asked.get() == 2 { Ok(vec![1]) } else { Err(NvmlError::InsufficientSize(None)) }
        };
        assert_eq!(whole(list).unwrap(), [1]);
        assert!(whole(list).is_err(), "not for ever");
        assert_eq!(asked.get(), 2 + LIST_TRIES);
    }

    #[test]
    fn what_is_not_supported_is_none_and_what_is_lost_an_error() {
        assert!(matches!(told::<u32>(Err(NvmlError::NotSupported)), Ok(None)));
        assert!(matches!(told::<u32>(Err(NvmlError::Unknown)), Ok(None)));
        assert!(matches!(told::<u32>(Err(NvmlError::GpuLost)), Err(NvmlError::GpuLost)));
        assert!(!is_loss_of_the_driver(&NvmlError::GpuLost));
        assert!(is_loss_of_the_driver(&NvmlError::DriverNotLoaded));
    }
}
