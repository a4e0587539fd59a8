//! The program as a user runs it: exit codes, messages with their values, data that parses, nothing half-written.
#![cfg(feature = "cli")]

#[path = "cli/complexity.rs"]
mod complexity;
#[path = "cli/evidence.rs"]
mod evidence;
#[path = "cli/report.rs"]
mod report;

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn paf(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_paf")).args(arguments).stdin(Stdio::null()).output().expect("paf starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("paf writes UTF-8")
}

/// Runs `arguments` and checks the exit code and that every part is in the one error message.
#[track_caller]
fn refuses(arguments: &[&str], code: i32, parts: &[&str]) {
    let output = paf(arguments);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{arguments:?}: {part:?} is missing in: {stderr}");
    }
}

/// How many lines `paf report` has in tables. Beside these there may be how noisy this machine is, and nothing else.
#[track_caller]
fn table_lines(report: &str) -> usize {
    let (table, others): (Vec<_>, Vec<_>) = report.lines().partition(|line| line.starts_with('|'));
    for line in others {
        let doubt = line.starts_with("- warning: ") && line.contains("noise above ± 0.5 %");
        let count = line.starts_with("Warning: 1 kind of doubt about these times, named by `paf report ");
        assert!(line.is_empty() || doubt || count, "{line:?} in: {report}");
    }
    table.len()
}

/// A comparison so small that it takes a moment.
const SMALL: [&str; 15] = [
    "speedup",
    "--backend",
    "cpu",
    "--hidden-size",
    "64",
    "--num-attention-heads",
    "2",
    "--intermediate-size",
    "128",
    "--layers",
    "2",
    "--seq",
    "16",
    "--seconds",
    "0.05",
];

fn small<'a>(more: &[&'a str]) -> Vec<&'a str> {
    SMALL.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn bad_dimensions_are_usage_errors() {
    let dims = |hidden, heads, ffn| {
        [
            "speedup",
            "--backend",
            "cpu",
            "--hidden-size",
            hidden,
            "--num-attention-heads",
            heads,
            "--intermediate-size",
            ffn,
        ]
    };
    refuses(&dims("1000", "16", "4096"), 2, &["hidden_size = 1000", "num_attention_heads = 16"]);
    refuses(&dims("0", "16", "4096"), 2, &["hidden_size = 0"]);
    refuses(&dims("1024", "0", "4096"), 2, &["num_attention_heads = 0"]);
    refuses(&dims("1024", "16", "18446744073709551615"), 2, &["intermediate_size = 18446744073709551615"]);
    refuses(&dims("1024", "16", "18446744073709551616"), 2, &["18446744073709551616"]);
    refuses(&dims("1024", "x", "4096"), 2, &["'x'"]);
    refuses(&small(&["--layers", "0"]), 2, &["cannot be used multiple times"]);
    refuses(&["speedup", "--backend", "cpu", "--layers", "0"], 2, &["num_hidden_layers = 0"]);
    refuses(&["speedup", "--backend", "cpu", "--batch", "0"], 2, &["batch = 0"]);
    refuses(&["speedup", "--backend", "cpu", "--batch", "1048576", "--seq", "1048576"], 2, &["1099511627776"]);
}

#[test]
fn bad_choices_are_usage_errors() {
    refuses(&["speedup", "--backend", "cpu", "--model", "gpt-5"], 2, &["\"gpt-5\"", "roberta-large", "falcon-7b"]);
    refuses(&small(&["--rotary-dim", "34"]), 2, &["rotary_dim = 34", "head_dim = 32"]);
    refuses(&small(&["--rotary-dim", "16", "--rotary-base", "0"]), 2, &["rotary_base = 0"]);
    refuses(&small(&["--rotary-interleaved"]), 2, &["--rotary-dim"]);
    refuses(&small(&["--num-key-value-heads", "3"]), 2, &["num_key_value_heads = 3", "num_attention_heads = 2"]);
    refuses(&["speedup", "--dtype", "f64"], 2, &["f64", "bf16 or f16"]);
    refuses(&["speedup", "--schedules", "three-stream"], 2, &["three-stream", "two-stream", "auto"]);
    refuses(&small(&["--schedules", "serial,auto"]), 2, &["auto on the cpu engine", "serial and two-stream"]);
    refuses(&["speedup", "--backend", "tpu"], 2, &["tpu", "cuda"]);
    refuses(&small(&["--batch", "2", "--lengths", "16,17"]), 2, &["17 (sequence 1)", "seq_len = 16"]);
    refuses(&small(&["--batch", "2", "--lengths", "16"]), 2, &["number of lengths is 1", "batch = 2"]);
    refuses(&["speedup", "--backend", "cpu", "--seconds", "-1"], 2, &["-1"]);
    refuses(&small(&["--threads", "0"]), 2, &["threads = 0"]);
    refuses(&small(&["--modes", "graph"]), 2, &["graph", "eager"]);
    refuses(&["verify", "--backend", "cpu", "--filter", "no such case"], 2, &["no such case"]);
    refuses(&["speedup", "--model", "minilm-l6", "--hidden-size", "64"], 2, &["--hidden-size"]);
    refuses(&[], 2, &["Usage"]);
}

#[test]
fn what_cannot_be_written_is_said_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing/result.json");
    refuses(&small(&["--json", missing.to_str().unwrap()]), 1, &["missing/result.json", "cannot write"]);
    refuses(&small(&["--csv", folder.path().to_str().unwrap()]), 1, &["cannot write", "directory"]);
    refuses(&small(&["--json", "-", "--csv", "-"]), 2, &["at most one"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[cfg(feature = "cuda")]
#[test]
fn a_device_that_is_not_there_is_a_failure() {
    // Without a driver it is the driver that is missing; with one, device 4096.
    let commands: [&[&str]; 10] = [
        &["speedup", "--backend", "cuda", "--device", "4096"],
        &["verify", "--backend", "cuda", "--device", "4096", "--portable"],
        &["compare", "--device", "4096", "--python", "none"],
        &["trace", "--device", "4096", "--mode", "eager", "--times", "events"],
        &["plan", "--device", "4096", "--no-cache"],
        &["kernels", "list", "--device", "4096"],
        &["kernels", "gemm", "--device", "4096"],
        &["kernels", "attention", "--device", "4096"],
        &["kernels", "norm", "--device", "4096"],
        &["peak", "--backend", "cuda", "--device", "4096"],
    ];
    for command in commands {
        let output = paf(command);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("no CUDA driver") || stderr.contains("no CUDA device 4096"), "{stderr}");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn bad_choices_of_kernels_are_usage_errors() {
    refuses(&["kernels", "gemm", "--shapes", "128x4096"], 2, &["128x4096", "MxNxK"]);
    for shape in ["0x4096x1024", "128x0x1024", "128x4096x0"] {
        refuses(&["kernels", "gemm", "--shapes", shape], 2, &[shape, "none of them 0"]);
    }
    for rows in ["--min-m", "--max-m"] {
        refuses(&["kernels", "gemm", "--shapes", "128x4096x1024", rows, "64"], 2, &[rows, "--shapes"]);
    }
    refuses(&["kernels", "gemm", "--variants", "sm90:1x1:share1x1:stages4"], 2, &["sm90:1x1", "256x128", "16x64"]);
    refuses(&["kernels", "gemm", "--min-m", "3", "--max-m", "4"], 2, &["3..=4"]);
    refuses(&["kernels", "gemm", "--seconds", "0"], 2, &["seconds = 0"]);
    refuses(&["kernels", "gemm", "--dtype", "f64"], 2, &["f64", "bf16 or f16"]);
    refuses(&["kernels", "attention", "--shapes", "8x16/3x512x64"], 2, &["8x16/3x512x64", "1x32/8x4096x128"]);
    refuses(&["kernels", "attention", "--variants", "sm90:128"], 2, &["sm90:128", "sm80:rowsN"]);
    refuses(&["kernels", "attention", "--seconds", "0"], 2, &["seconds = 0"]);
    refuses(&["kernels", "norm", "--noise", "0"], 2, &["noise = 0"]);
    refuses(&["kernels", "norm", "--baseline", "missing.json"], 1, &["cannot read", "missing.json"]);
    let speedup = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/pythia-1.4b-h100.json");
    for kernel in ["gemm", "attention", "norm"] {
        let expected = format!("paf-cuda/{kernel}/1");
        refuses(&["kernels", kernel, "--baseline", speedup], 2, &["schema", "paf-cuda/speedup/1", &expected]);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn bad_choices_of_comparisons_are_usage_errors() {
    refuses(&["compare", "--peers", "eager,jit"], 2, &["\"jit\"", "two-stream, fused, compile"]);
    refuses(&["compare", "--batch", "2", "--seq", "9", "--lengths", "9,4"], 2, &["[9, 4]", "full sequences"]);
    refuses(&["compare", "--packed", "3,5"], 2, &["[3, 5]", "full sequences"]);
    refuses(&["compare", "--anchors", "--model", "phi-2"], 2, &["\"phi-2\"", "roberta-large, pythia-410m"]);
    refuses(&["compare", "--anchors", "--batch", "1"], 2, &["--anchors", "--batch"]);
    refuses(&["compare", "--anchors", "--layers", "2"], 2, &["--anchors", "--layers"]);
    refuses(&["compare", "--seconds", "0"], 2, &["seconds = 0"]);
    refuses(&["compare", "--json", "missing/compare.json"], 1, &["missing/compare.json", "cannot write"]);
}

#[cfg(feature = "cuda")]
#[test]
fn bad_choices_of_timelines_are_usage_errors() {
    refuses(&["trace", "--batch", "1,2"], 2, &["2 shapes", "one shape"]);
    refuses(&["trace", "--saf", "--schedule", "fused"], 2, &["schedule fused with design saf-post", "serial"]);
    refuses(&["trace", "--schedule", "three-stream"], 2, &["three-stream", "hybrid or auto"]);
    refuses(&["trace", "--schedule", "fused wide=sm90:128x64"], 2, &["wide=sm90:128x64", "wide-first"]);
    refuses(&["trace", "--times", "events"], 2, &["events in mode graph", "mode eager"]);
    refuses(&["trace", "--times", "cupti", "--cupti", "missing/libcupti.so"], 2, &["missing/libcupti.so", "events"]);
    refuses(&["trace", "--layers", "0"], 2, &["num_hidden_layers = 0"]);
    refuses(&["trace", "--json", "missing/trace.json"], 1, &["missing/trace.json", "cannot write"]);
}

#[cfg(feature = "cuda")]
#[test]
fn bad_choices_of_plans_are_usage_errors() {
    refuses(&["plan", "--model", "gpt-5"], 2, &["\"gpt-5\"", "roberta-large"]);
    refuses(
        &["plan", "--hidden-size", "1000", "--num-attention-heads", "16", "--intermediate-size", "64"],
        2,
        &["1000"],
    );
    refuses(&["plan", "--seconds", "0"], 2, &["seconds = 0"]);
    refuses(&["plan", "--seconds", "NaN"], 2, &["seconds = NaN"]);
    refuses(&["plan", "--batch", "0"], 2, &["batch = 0"]);
    refuses(&["plan", "--packed", "3", "--seq", "3"], 2, &["--packed", "--seq"]);
    refuses(&["plan", "--packed", "0,0"], 2, &["Σ lengths = 0"]);
    refuses(&["plan", "--cache", "plans.json", "--no-cache"], 2, &["--cache", "--no-cache"]);
    refuses(&["plan", "--dtype", "f64"], 2, &["f64", "bf16 or f16"]);
    refuses(&["plan", "--json", "missing/plan.json"], 1, &["missing/plan.json", "cannot write"]);
}

#[test]
fn a_small_comparison_gives_a_table_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (json, csv) = (path("r.json"), path("r.csv"));
    let output = paf(&small(&["--batch", "1,3", "--json", &json, "--csv", &csv]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    for part in ["1 × 16", "3 × 16", "saf-post", "paf-post", "two-stream", "TFLOP/s", "SAF / this", "verified"] {
        assert!(stdout.contains(part), "{part:?} is missing in: {stdout}");
    }
    let report = read_json(&json);
    assert_eq!(report["schema"], "paf-cuda/speedup/1");
    assert_eq!(report["cases"].as_array().unwrap().len(), 2);
    for case in report["cases"].as_array().unwrap() {
        let variants = case["variants"].as_array().unwrap();
        assert_eq!(variants.len(), 3);
        let rounds = variants[0]["samples_us"].as_array().unwrap().len();
        assert!(rounds >= 11);
        for variant in variants {
            assert_eq!(variant["samples_us"].as_array().unwrap().len(), rounds);
            assert!(variant["median_us"]["median"].as_f64().unwrap() > 0.0);
            assert!(variant["speedup_over_saf"]["low"].as_f64() <= variant["speedup_over_saf"]["high"].as_f64());
        }
        assert_eq!(variants[0]["speedup_over_saf"]["median"], 1.0);
        assert_eq!(case["verified"].as_array().unwrap().len(), 2);
    }
    assert_eq!(std::fs::read_to_string(&csv).unwrap().lines().count(), 1 + 2 * 3);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "temporary files were left");

    let markdown = paf(&["report", &json]);
    assert_eq!(markdown.status.code(), Some(0));
    assert_eq!(table_lines(&text(&markdown.stdout)), 2 + 6);
    refuses(&["report", &csv], 1, &["r.csv", "no result"]);
}

#[test]
fn the_engine_has_the_threads_that_are_asked_for() {
    for threads in [1, 3] {
        let output = paf(&small(&["--threads", &threads.to_string(), "--json", "-"]));
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["machine"]["cpu_threads"], threads);
    }
}

#[test]
fn a_comparison_with_pytorch_is_reported_again() {
    let folder = tempfile::tempdir().unwrap();
    let (speedup, compare) = (folder.path().join("s.json"), folder.path().join("c.json"));
    let output = paf(&small(&["--json", speedup.to_str().unwrap()]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    // What result files of both kinds have in common, and a row of the peer.
    let mut report = read_json(&speedup);
    let mut case = report["cases"][0].take();
    // The tables have the ratio from the samples of both, whatever an older file's rule was.
    assert_eq!(case["variants"][0]["design"], "saf-post");
    let ours = case["variants"][0]["samples_us"].as_array().unwrap();
    let samples: Vec<_> = ours.iter().map(|us| us.as_f64().unwrap() * 1.5).collect();
    let spread = serde_json::json!({"median": 7.5, "low": 7.25, "high": 7.75, "confidence": 0.95});
    case["absent"] = serde_json::json!([{"design": "paf", "way": "fused", "mode": "graph", "why": "no room"}]);
    case["peers"] = serde_json::json!([{
        "by": "PyTorch", "design": "saf-post", "way": "eager", "mode": "graph", "verified": [], "samples_us": samples,
        "median_us": {"median": 2000.0, "low": 2000.0, "high": 2000.0, "confidence": 0.95}, "over_ours": spread,
    }]);
    report["stacks"] =
        serde_json::json!([{"model": "m", "design": "paf-post", "config": report["config"], "cases": [case]}]);
    report["schema"] = "paf-cuda/compare/1".into();
    report["missing"] = serde_json::json!([{"way": "compile", "why": "not asked for"}]);
    std::fs::write(&compare, report.to_string()).unwrap();
    let output = paf(&["report", compare.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let markdown = text(&output.stdout);
    for part in [
        "m (paf-post): 2 layers of 64, f32",
        " | 2.000 ± 0.000 eager, graph | 1.500 ± 0.000 |",
        "| 1 × 16 | saf-post | PyTorch eager, graph | 2.000 ± 0.000 | 1.500 ± 0.000 |",
        "- PyTorch compile was not measured: not asked for",
        "- m 1 × 16: no row of PyTorch paf fused, graph: no room",
    ] {
        assert!(markdown.contains(part), "{part:?} is missing in: {markdown}");
    }
    report["schema"] = "paf-cuda/compare/0".into();
    std::fs::write(&compare, report.to_string()).unwrap();
    refuses(&["report", compare.to_str().unwrap()], 1, &["paf-cuda/compare/0", "paf-cuda/compare/1"]);
}

#[test]
fn a_timeline_is_summed_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let (speedup, trace) = (folder.path().join("s.json"), folder.path().join("t.json"));
    let output = paf(&small(&["--json", speedup.to_str().unwrap()]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let mut file = read_json(&speedup);
    file["schema"] = "paf-cuda/trace/1".into();
    file["displayTimeUnit"] = "ns".into();
    file["traceEvents"] = serde_json::json!([
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": 1, "args": {"name": "stream caller"}},
        {
            "ph": "X", "name": "0 wide-first", "cat": "wide-first", "pid": 0, "tid": 1, "ts": 0.0, "dur": 4.5, "args": {
                "kernel": "gemm", "layer": 0, "part": "wide-first", "shape": "16 x 224 x 64", "design": "paf-post", "schedule": "fused",
                "tokens": 16, "grid": [4, 1], "cluster": 1, "block": 192, "shared_bytes": 1024, "registers": 168, "overlap": false,
            },
        },
    ]);
    file["otherData"] = serde_json::json!({
        "model": "m", "config": file["config"], "design": "paf-post", "schedule": "fused", "plan": "fused", "mode": "graph",
        "dtype": "bf16", "batch": 1, "seq_len": 16, "packed": false, "tokens": 16, "source": "the device's clock",
        "assigned_by": "names", "forward_us": {"median": 20.0, "low": 19.0, "high": 22.0, "confidence": 0.95},
        "summary": {
            "span_us": 24.0, "busy_us": 18.0, "idle_share": 0.25, "attention_us": 4.0, "ffn_us": 12.0, "together_us": 3.0,
            "together_share": 0.75, "totals": [{"part": "wide-first", "kernel": "gemm", "count": 2, "total_us": 9.0}],
        },
    });
    std::fs::write(&trace, file.to_string()).unwrap();
    let output = paf(&["report", trace.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let markdown = text(&output.stdout);
    for part in [
        "| wide-first | gemm | 2 | 4.50 | 50.0 % |",
        "- m: 2 layers, 1 × 16, paf-post fused graph",
        "one of each for 3.0, 75 % of the shorter",
        "no kernel ran in 25.0 % of the traced time",
        "times: the device's clock; told apart by names",
    ] {
        assert!(markdown.contains(part), "{part:?} is missing in: {markdown}");
    }
    // A folder of timelines alone has a page.
    let alone = folder.path().join("alone");
    std::fs::create_dir(&alone).unwrap();
    std::fs::copy(&trace, alone.join("t.json")).unwrap();
    let output = paf(&["report", alone.to_str().unwrap(), "--html", "-"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let page = text(&output.stdout);
    assert!(page.contains("time together: ") && page.contains("Method of t.json"), "{page}");
    file["traceEvents"] = 1.into();
    std::fs::write(&trace, file.to_string()).unwrap();
    refuses(&["report", trace.to_str().unwrap()], 1, &["t.json", "traceEvents"]);
}

#[test]
fn data_on_stdout_is_only_data() {
    let output = paf(&small(&[
        "--json",
        "-",
        "--lengths",
        "9",
        "--design",
        "pre-two",
        "--causal",
        "--num-key-value-heads",
        "1",
    ]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["cases"][0]["lengths"][0], 9);
    assert_eq!(report["cases"][0]["variants"][1]["design"], "paf-pre-two");
    assert_eq!(report["config"]["causal"], true);
    assert_eq!(report["config"]["num_key_value_heads"], 1);
    assert!(text(&output.stderr).contains("SAF / this"));
}

#[test]
fn packed_sequences_are_compared_too() {
    let mut arguments = vec!["--packed", "9,0,17", "--rotary-dim", "16", "--rotary-interleaved", "--json", "-"];
    arguments.splice(0..0, SMALL.into_iter().filter(|argument| !["--seq", "16"].contains(argument)));
    let output = paf(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["config"]["rotary_dim"], 16);
    assert_eq!(report["cases"][0]["packed"], true);
    assert_eq!(report["cases"][0]["lengths"][2], 17);
    assert!(text(&output.stderr).contains("3 packed, ≤ 17"));
    refuses(&small(&["--packed", "3"]), 2, &["--packed", "--seq"]);
    arguments[SMALL.len() - 1] = "0,0";
    refuses(&arguments, 2, &["Σ lengths = 0"]);
}

#[test]
fn models_lists_all_thirteen() {
    let output = paf(&["models"]);
    assert_eq!(output.status.code(), Some(0));
    let stdout = text(&output.stdout);
    for model in paf_cuda::config::MODELS {
        assert!(stdout.contains(model), "{model}");
    }
    assert_eq!(paf_cuda::config::MODELS.len(), 13);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_paf"))
        .arg("models")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

#[test]
fn doctor_finds_nothing_broken_here() {
    let output = paf(&["doctor"]);
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{stdout}{}", text(&output.stderr));
    if cfg!(feature = "cuda") {
        for part in ["embedded PTX", "compute_80", "ISA", "nvcc of this build", "CUDA driver"] {
            assert!(stdout.contains(part), "{part:?} is missing in: {stdout}");
        }
    }
}

#[test]
fn verify_passes_on_the_cpu_and_tells_errors_and_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("v.json");
    let output = paf(&["verify", "--backend", "cpu", "--all", "--json", json.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let cases = read_json(&json)["cases"].as_array().unwrap().clone();
    assert!(cases.len() >= 60);
    for case in &cases {
        assert!(case["max_error"].as_f64().unwrap() <= case["bound"].as_f64().unwrap(), "{case}");
    }
    assert!(text(&output.stdout).contains(&format!("{} cases, 0 failed", cases.len())));
}

fn read_json(path: impl AsRef<Path>) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}
