//! What a sceptic asks of the numbers: how quiet they are, whether they were verified, how they compare with earlier ones.

use serde_json::Value;

use super::*;

/// The program with a variable that plants a fault.
fn faulty(variable: &str, value: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paf"));
    command.env(variable, value).args(arguments).stdin(Stdio::null()).output().expect("paf starts")
}

/// A small result, and a folder for more.
struct Earlier {
    folder: tempfile::TempDir,
    report: Value,
}

impl Earlier {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let json = folder.path().join("earlier.json");
        let output = paf(&small(&["--json", json.to_str().unwrap()]));
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        Self { report: read_json(json), folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// A file of that name with a changed report.
    fn changed(&self, name: &str, change: impl FnOnce(&mut Value)) -> String {
        let mut report = self.report.clone();
        change(&mut report);
        std::fs::write(self.path(name), report.to_string()).unwrap();
        self.path(name)
    }

    /// The same with all samples multiplied, by more than a busy processor does.
    fn scaled(&self, name: &str, factor: f64) -> String {
        self.changed(name, |report| {
            for variant in report["cases"][0]["variants"].as_array_mut().unwrap() {
                for sample in variant["samples_us"].as_array_mut().unwrap() {
                    *sample = (sample.as_f64().unwrap() * factor).into();
                }
            }
        })
    }
}

#[test]
fn a_slower_run_than_the_baseline_is_exit_code_3() {
    let earlier = Earlier::new();
    let (fast, slow, now) =
        (earlier.scaled("fast.json", 0.001), earlier.scaled("slow.json", 1000.0), earlier.path("now.json"));
    let output = paf(&small(&["--baseline", &fast, "--json", &now]));
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    for part in ["SAF / this", "Beside ", "fast.json", "now / before", "SLOWER"] {
        assert!(stdout.contains(part), "{part:?} is missing in: {stdout}");
    }
    assert!(stderr.contains("3 of 3 rows are slower") && stderr.contains("more than 2 %"), "{stderr}");
    assert_eq!(read_json(&now)["cases"].as_array().unwrap().len(), 1, "the result is kept");

    let output = paf(&small(&["--baseline", &slow, "--threshold", "50"]));
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(stdout.matches("faster").count(), 3, "{stdout}");
    // Data on stdout is only data with a baseline, too.
    let output = paf(&small(&["--baseline", &fast, "--json", "-"]));
    assert_eq!(output.status.code(), Some(3));
    serde_json::from_slice::<Value>(&output.stdout).unwrap();
}

#[test]
fn a_planted_slowdown_is_in_the_rows_that_it_names() {
    let output = faulty("PAF_PLANT_SLOWDOWN", "paf-post:50", &small(&["--json", "-"]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ratio = |i: usize| report["cases"][0]["variants"][i]["speedup_over_saf"]["median"].as_f64().unwrap();
    assert!(ratio(0) == 1.0 && ratio(1) < 0.3 && ratio(2) < 0.3, "{}", text(&output.stderr));
    let output = faulty("PAF_PLANT_SLOWDOWN", "paf-post", &small(&[]));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("WHAT:FACTOR"), "{}", text(&output.stderr));
}

#[test]
fn baselines_of_something_else_are_refused_before_anything_is_measured() {
    let earlier = Earlier::new();
    let device = earlier.changed("device.json", |report| report["machine"]["cpu"] = "another processor".into());
    let dtype = earlier.changed("dtype.json", |report| report["dtype"] = "bf16".into());
    let model = earlier.changed("model.json", |report| report["config"]["intermediate_size"] = 256.into());
    let schema = earlier.changed("schema.json", |report| report["schema"] = "paf-cuda/gemm/1".into());
    let broken = earlier.changed("broken.json", |report| report["cases"] = 1.into());
    // What would take a minute, if it began.
    let refused = |file: &str, code, parts: &[&str]| {
        refuses(
            &small(&["--baseline", file])
                .iter()
                .map(|&part| if part == "0.05" { "60" } else { part })
                .collect::<Vec<_>>(),
            code,
            parts,
        );
    };
    refused(&device, 2, &["baseline", "device is another processor"]);
    refused(&dtype, 2, &["baseline", "dtype is bf16", "f32"]);
    refused(&model, 2, &["baseline", "model is", "256", "128"]);
    refused(&schema, 2, &["baseline", "paf-cuda/gemm/1", "paf-cuda/speedup/1"]);
    refused(&broken, 1, &["broken.json", "no result"]);
    refused(&earlier.path("missing.json"), 1, &["cannot read", "missing.json"]);
    refuses(&small(&["--threshold", "3"]), 2, &["--baseline"]);
    refuses(&small(&["--baseline", &model, "--threshold", "0"]), 2, &["threshold = 0"]);
}

#[test]
fn rows_without_a_partner_are_named() {
    let earlier = Earlier::new();
    let other = earlier.scaled("slow.json", 1000.0);
    let mut report = read_json(&other);
    report["cases"][0]["variants"][2]["schedule"] = "hybrid".into();
    std::fs::write(&other, report.to_string()).unwrap();
    let output = paf(&small(&["--baseline", &other]));
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for part in [
        "only in this run: 1 × 16: paf-post two-stream (eager)",
        "only in the baseline: 1 × 16: paf-post hybrid (eager)",
    ] {
        assert!(stdout.contains(part), "{part:?} is missing in: {stdout}");
    }
    // Nothing in common at all.
    refuses(&small(&["--baseline", &other, "--batch", "2"]), 2, &["rows in common is 0"]);
}

#[test]
fn sampling_stops_when_it_is_quiet_and_names_what_is_not() {
    let rounds = |noise: &str, seconds: &str| {
        let mut arguments = small(&["--noise", noise, "--json", "-"]);
        *arguments.iter_mut().find(|argument| **argument == "0.05").unwrap() = seconds;
        let output = paf(&arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["noise_target"].as_f64().unwrap() * 100.0, noise.parse::<f64>().unwrap());
        (report["cases"][0]["variants"][0]["samples_us"].as_array().unwrap().len(), text(&output.stderr))
    };
    // Never that quiet: all rounds, each row named.
    let (made, stderr) = rounds("0.000001", "600");
    assert_eq!(made, 201);
    assert!(stderr.contains("warning: 1 reasons to doubt"), "{stderr}");
    let line = stderr.lines().find(|line| line.starts_with("warning: 1 × 16: noise above ± 0.000001 %: ")).unwrap();
    for row in ["saf-post serial (eager) ± ", "paf-post serial (eager) ± ", "paf-post two-stream (eager) ± "] {
        assert!(line.contains(row), "{line}");
    }
    // As quiet as that after a few looks.
    let (made, stderr) = rounds("100", "600");
    assert!(made < 201 && !stderr.contains("noise above"), "{made} rounds: {stderr}");
    for bad in ["0", "-1", "NaN", "101"] {
        refuses(&small(&[&format!("--noise={bad}")]), 2, &["noise = ", bad]);
    }
}

#[test]
fn a_wrong_result_is_not_timed() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("r.json");
    let output = faulty("PAF_PLANT_WRONG", "1", &small(&["--json", json.to_str().unwrap()]));
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""), "{stderr}");
    assert!(stderr.contains("verification failed") && stderr.contains("row 0, column 0"), "{stderr}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a result was written");
    // Whatever verifies sees it.
    for command in [&["verify", "--backend", "cpu", "--filter", "2x17"][..], &["doctor"]] {
        let output = faulty("PAF_PLANT_WRONG", "1", command);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {}", text(&output.stdout));
    }
    assert_eq!(faulty("PAF_PLANT_WRONG", "0", &small(&[])).status.code(), Some(0));
}
