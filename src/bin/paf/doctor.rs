//! `paf doctor`.

use anyhow::{Result, bail};

use super::output::print;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// What was looked at, how it is, and what was found or is to be done.
type Finding = (&'static str, Verdict, String);

pub fn run() -> Result<()> {
    let mut findings = examine();
    findings.push(examine_cpu_engine());
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED).set_header(["check", "", "found"]);
    for (check, verdict, found) in &findings {
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        table.add_row([check, verdict, found.as_str()]);
    }
    print(&format!("{table}\n"))?;
    let failed = findings.iter().filter(|(_, verdict, _)| *verdict == Verdict::Fail).count();
    if failed > 0 {
        bail!("{failed} of {} checks failed; the table says what to do", findings.len());
    }
    Ok(())
}

/// A stack of each design on the host.
fn examine_cpu_engine() -> Finding {
    let mut cases = paf_cuda::verify::cpu::cases();
    cases.retain(|case| case.name.contains(" 2x17"));
    match first_failure(&cases) {
        None => ("CPU engine", Verdict::Ok, format!("{} small stacks agree with the oracle", cases.len())),
        Some(failure) => ("CPU engine", Verdict::Fail, failure),
    }
}

fn first_failure(cases: &[paf_cuda::verify::Case]) -> Option<String> {
    cases.iter().find_map(|case| Some(format!("{}: {}", case.name, case.run().err()?)))
}

#[cfg(not(feature = "cuda"))]
fn examine() -> Vec<Finding> {
    let found = "this build has none (--no-default-features): only the CPU engine works; rebuild with feature `cuda`";
    vec![("CUDA kernels", Verdict::Warn, found.into())]
}

#[cfg(feature = "cuda")]
fn examine() -> Vec<Finding> {
    use paf_cuda::Error;
    use paf_cuda::gpu::{device_count, driver_version, ptx};

    let mut findings = Vec::new();
    let mut add = |check, verdict, found: String| findings.push((check, verdict, found));
    let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");

    if ptx::MODULES.is_empty() {
        add("embedded PTX", Verdict::Fail, "none: built for documentation only; rebuild with nvcc".into());
    } else {
        let mut targets: Vec<_> = ptx::MODULES.iter().map(|module| module.target).collect();
        targets.sort_unstable();
        targets.dedup();
        let isa = ptx::MODULES[0].isa_version();
        add(
            "embedded PTX",
            Verdict::Ok,
            format!("{} modules for {}, ISA {isa}", ptx::MODULES.len(), targets.join(", ")),
        );
        let nvcc = format!("CUDA {}, {}", version(ptx::TOOLKIT_VERSION), ptx::NVCC);
        add("nvcc of this build", Verdict::Ok, nvcc);
    }

    match driver_version() {
        Err(Error::NoDriver) => {
            let remedy = "no libcuda.so: the CPU engine will be used; install NVIDIA's driver to use a GPU";
            add("CUDA driver", Verdict::Warn, remedy.into());
            return findings;
        }
        Err(error) => {
            add("CUDA driver", Verdict::Fail, error.to_string());
            return findings;
        }
        Ok(driver) if driver < ptx::TOOLKIT_VERSION => {
            let error = Error::DriverTooOld { driver: version(driver), needed: version(ptx::TOOLKIT_VERSION) };
            add("CUDA driver", Verdict::Fail, error.to_string());
        }
        Ok(driver) => add("CUDA driver", Verdict::Ok, format!("supports CUDA {}", version(driver))),
    }
    match device_count() {
        Ok(0) => {
            let remedy = "none: the CPU engine will be used; check CUDA_VISIBLE_DEVICES and nvidia-smi";
            add("CUDA devices", Verdict::Warn, remedy.into());
        }
        Ok(count) => {
            add("CUDA devices", Verdict::Ok, count.to_string());
            (0..count).for_each(|ordinal| findings.extend(examine_device(ordinal)));
        }
        Err(error) => add("CUDA devices", Verdict::Fail, error.to_string()),
    }
    findings
}

#[cfg(feature = "cuda")]
fn examine_device(ordinal: usize) -> Vec<Finding> {
    use paf_cuda::gpu::Device;

    let device = match Device::new(ordinal) {
        Ok(device) => device,
        Err(error) => return vec![("device", Verdict::Fail, format!("{ordinal}: {error}"))],
    };
    let info = device.info();
    let mut findings = vec![(
        "device",
        Verdict::Ok,
        format!(
            "{ordinal}: {}, capability {}.{}, {} multiprocessors, {} GiB, L2 {} MiB, up to {} MHz",
            info.name,
            info.compute_capability.0,
            info.compute_capability.1,
            info.multiprocessors,
            info.memory_bytes >> 30,
            info.l2_bytes >> 20,
            info.sm_clock_khz / 1000
        ),
    )];
    findings.push(match device.memory_info() {
        Ok((free, total)) if free < total / 10 => {
            let found =
                format!("{} of {} MiB: other programs use the device; timings will suffer", free >> 20, total >> 20);
            ("free memory", Verdict::Warn, found)
        }
        Ok((free, total)) => ("free memory", Verdict::Ok, format!("{} of {} MiB", free >> 20, total >> 20)),
        Err(error) => ("free memory", Verdict::Fail, error.to_string()),
    });
    // One layer of each design, in both types and all schedules, is enough to see that kernels load and compute.
    let small = |case: &paf_cuda::verify::Case| case.name.starts_with("layer") && case.name.contains(" d64 1x1");
    let mut cases = paf_cuda::verify::gpu::cases(&device);
    cases.retain(small);
    findings.push(match first_failure(&cases) {
        None => ("kernels", Verdict::Ok, format!("loaded; {} small layers agree with the oracle", cases.len())),
        Some(failure) => ("kernels", Verdict::Fail, failure),
    });
    findings
}
