//! What was measured on, and the state that it was in.

#[cfg(feature = "cuda")]
use super::report::DeviceState;
use super::report::Machine;

/// The host's processor and number of threads, with no GPU.
pub(super) fn host() -> Machine {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Machine {
        cpu: model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned()),
        cpu_threads: rayon::current_num_threads(),
        device: None,
        portable: false,
        compute_capability: None,
        multiprocessors: None,
        driver: None,
        cuda_driver_version: None,
    }
}

/// The host, with a GPU.
#[cfg(feature = "cuda")]
pub(super) fn with_device(device: &crate::gpu::Device, monitor: &Monitor) -> Machine {
    let info = device.info();
    let version = |(major, minor): (u32, u32)| Some(format!("{major}.{minor}"));
    Machine {
        device: Some(info.name.clone()),
        portable: device.leaves_hopper_kernels(),
        compute_capability: version(info.compute_capability),
        multiprocessors: Some(info.multiprocessors),
        driver: monitor.driver(),
        cuda_driver_version: version(info.cuda_driver_version),
        ..host()
    }
}

/// Clocks, power and temperature of one device, where the driver's management library is there to tell.
#[cfg(feature = "cuda")]
pub(super) struct Monitor {
    nvml: Option<nvml_wrapper::Nvml>,
    pci_bus_id: String,
}

#[cfg(feature = "cuda")]
impl Monitor {
    pub(super) fn new(device: &crate::gpu::Device) -> Self {
        Self { nvml: nvml_wrapper::Nvml::init().ok(), pci_bus_id: device.info().pci_bus_id.clone() }
    }

    pub(super) fn driver(&self) -> Option<String> {
        self.nvml.as_ref()?.sys_driver_version().ok()
    }

    pub(super) fn state(&self) -> Option<DeviceState> {
        use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor, TemperatureThreshold};
        let device = self.nvml.as_ref()?.device_by_pci_bus_id(self.pci_bus_id.as_str()).ok()?;
        Some(DeviceState {
            sm_clock_mhz: device.clock_info(Clock::SM).ok(),
            memory_clock_mhz: device.clock_info(Clock::Memory).ok(),
            power_w: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3),
            power_limit_w: device.enforced_power_limit().ok().map(|milliwatts| f64::from(milliwatts) / 1e3),
            temperature_c: device.temperature(TemperatureSensor::Gpu).ok(),
            temperature_limit_c: device.temperature_threshold(TemperatureThreshold::GpuMax).ok(),
            throttle_reasons: device.current_throttle_reasons().ok().map(|reasons| format!("{reasons:?}")),
        })
    }
}
