//! The choice of an engine: what runs is said, and what cannot be chosen is refused.

use super::*;

/// These models have heads that no kernel is for: whichever engine `auto` looks at first, they run on the CPU.
#[test]
fn auto_says_that_the_cpu_runs() {
    let folder = Folder::new("bert_encoder");
    let expected = folder.results(&["--text", "w5 w6"]);
    let output = folder.run_on("auto", &["--text", "w5 w6", "--dtype", "f16"], b"");
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), lines(&output.stdout)), (Some(0), expected), "{stderr}");
    assert!(stderr.contains("using the CPU engine") && stderr.lines().count() == 1, "{stderr}");
}

#[test]
fn engines_and_types_that_are_none_are_usage_errors() {
    let folder = Folder::new("bert_encoder");
    let refuses = |arguments: &[&str], parts: &[&str]| {
        let output = folder.run_on("cpu", &[&["--text", "w5"], arguments].concat(), b"");
        let stderr = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), ""), "{stderr}");
        parts.iter().for_each(|part| assert!(stderr.contains(part), "{part:?} is missing in: {stderr}"));
    };
    refuses(&["--dtype", "f32"], &["f32", "bf16 or f16"]);
    refuses(&["--device", "first"], &["first", "--device"]);
    let output = folder.run_on("tpu", &["--text", "w5"], b"");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("auto, cuda, cpu"), "{}", text(&output.stderr));
}

#[test]
fn a_gpu_that_is_not_there_is_a_failure() {
    let folder = Folder::new("bert_encoder");
    let output = folder.run_on("cuda", &["--text", "w5", "--device", "4096"], b"");
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""), "{stderr}");
    // Without the kernels they are missing; without a driver that is; with one, device 4096.
    let causes =
        if cfg!(feature = "cuda") { ["no CUDA driver", "no CUDA device 4096"] } else { ["no CUDA kernels"; 2] };
    assert!(causes.iter().any(|cause| stderr.contains(cause)), "{stderr}");
}
