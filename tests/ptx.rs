//! Without a GPU: every embedded PTX module assembles for the devices that it is meant for, without spills, local memory
//! or the assembler's performance warnings.
#![cfg(feature = "cuda")]

use std::path::{Path, PathBuf};
use std::process::Command;

use paf_cuda::gpu::ptx::{MODULES, NVCC, PtxModule};

fn ptxas() -> PathBuf {
    Path::new(NVCC).with_file_name("ptxas")
}

/// Real architectures that a module serves; a portable one: Ampere, its consumer cards, Ada, Hopper, Blackwell.
fn architectures(module: &PtxModule) -> &'static [&'static str] {
    match module.target {
        "compute_80" => &["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"],
        // Features of one architecture, which no other card runs.
        "compute_90a" => &["sm_90a"],
        other => panic!("no architectures are listed for {other}"),
    }
}

/// What the assembler says of one module on one architecture.
fn assemble(module: &PtxModule, architecture: &str, folder: &Path) -> String {
    let input = folder.join(format!("{}.ptx", module.name));
    std::fs::write(&input, module.source()).unwrap();
    let output = Command::new(ptxas())
        .arg(format!("-arch={architecture}"))
        .arg("-v")
        .arg(&input)
        .arg("-o")
        .arg(folder.join(format!("{}.{architecture}.cubin", module.name)))
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", ptxas().display()));
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{} for {architecture}: {report}", module.name);
    report
}

/// Lines of an assembler's report that tell of memory traffic or lost speed.
fn complaints(report: &str) -> Vec<&str> {
    report
        .lines()
        .filter(|line| {
            let spills = line.contains("spill stores") && !line.contains(" 0 bytes spill stores, 0 bytes spill loads");
            let stack = line.contains("bytes stack frame") && !line.trim_start().starts_with("0 bytes stack frame");
            spills || stack || line.contains("Potential Performance Loss") || line.contains("warning")
        })
        .collect()
}

#[test]
fn modules_assemble_without_spills_or_warnings() {
    assert!(!MODULES.is_empty());
    let folder = tempfile::tempdir().unwrap();
    // A thread a module: the assembler takes seconds for each.
    let check = |module: &PtxModule| {
        assert!(module.source().contains(&format!(".target sm_{}", &module.target["compute_".len()..])));
        let kernels = module.source().matches(".visible .entry ").count();
        assert!(kernels > 0, "{} has no kernel", module.name);
        for architecture in architectures(module) {
            let report = assemble(module, architecture, folder.path());
            let complaints = complaints(&report);
            assert!(complaints.is_empty(), "{} for {architecture}: {complaints:#?}", module.name);
            let reported = report.matches("Compiling entry function").count();
            assert_eq!(reported, kernels, "kernels of {} for {architecture}", module.name);
        }
    };
    std::thread::scope(|scope| {
        for module in MODULES {
            scope.spawn(|| check(module));
        }
    });
}

#[test]
fn a_report_with_spills_is_noticed() {
    let good = "ptxas info    : Function properties for gemm\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
    assert!(complaints(good).is_empty());
    for bad in [
        "    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads",
        "    0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads",
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized",
    ] {
        assert_eq!(complaints(bad).len(), 1, "{bad}");
    }
}
