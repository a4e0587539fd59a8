//! What a sceptic asks of the numbers: how quiet they are, whether they were verified, how they compare with earlier ones.

use paf_cuda::measure::statistics::Median;
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
            scale(&mut report["cases"][0], factor);
        })
    }
}

fn scale(case: &mut Value, factor: f64) {
    for variant in case["variants"].as_array_mut().unwrap() {
        for sample in variant["samples_us"].as_array_mut().unwrap() {
            *sample = (sample.as_f64().unwrap() * factor).into();
        }
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
    for part in ["SAF / this", "Beside ", "fast.json", "now / before", "SLOWER", "slower, so measured again:\n"] {
        assert!(stdout.contains(part), "{part:?} is missing in: {stdout}");
    }
    assert!(stderr.contains("3 of 3 rows are slower") && stderr.contains("more than 2 %"), "{stderr}");
    assert_eq!(stdout.matches(", then ").count(), 3, "{stdout}");
    assert_eq!(read_json(&now)["cases"].as_array().unwrap().len(), 1, "the result is kept");

    let output = paf(&small(&["--baseline", &slow, "--threshold", "50"]));
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(stdout.matches("faster").count() == 3 && !stdout.contains("again"), "{stdout}");
    // Of two shapes the one that is slower, and no other, is measured again.
    let two = earlier.path("two.json");
    assert_eq!(paf(&small(&["--batch", "1,2", "--json", &two])).status.code(), Some(0));
    let mut report = read_json(&two);
    for (case, factor) in report["cases"].as_array_mut().unwrap().iter_mut().zip([1000.0, 0.001]) {
        scale(case, factor);
    }
    std::fs::write(&two, report.to_string()).unwrap();
    let output = paf(&small(&["--batch", "1,2", "--baseline", &two]));
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert_eq!((stdout.matches("faster").count(), stdout.matches("SLOWER").count()), (3, 3), "{stdout}");
    assert_eq!((stdout.matches("  2 × 16: ").count(), stdout.matches(", then ").count()), (3, 3), "{stdout}");
    // Data on stdout is only data with a baseline, too.
    let output = paf(&small(&["--baseline", &fast, "--json", "-"]));
    assert_eq!(output.status.code(), Some(3));
    serde_json::from_slice::<Value>(&output.stdout).unwrap();
}

#[test]
fn a_planted_slowdown_is_in_the_rows_that_it_names() {
    let output = faulty("PAF_PLANT_SLOWDOWN", "paf-post:100", &small(&["--json", "-"]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    // The shortest times, which a busy processor makes no longer: a hundred times, where without the fault it is about once.
    let shortest = |i: usize| {
        let samples = report["cases"][0]["variants"][i]["samples_us"].as_array().unwrap();
        samples.iter().map(|sample| sample.as_f64().unwrap()).fold(f64::INFINITY, f64::min)
    };
    let [saf, serial, two_stream] = [0, 1, 2].map(shortest);
    assert!(serial > 5.0 * saf && two_stream > 5.0 * saf, "{saf}, {serial}, {two_stream} µs");
    // It leaves a trace: in the file, in its words, and under the table.
    assert_eq!(report["planted"], "PAF_PLANT_SLOWDOWN=paf-post:100");
    assert!(report["method"].as_str().unwrap().contains("with PAF_PLANT_SLOWDOWN=paf-post:100 set"));
    let warning = "warning: times that a test has made longer: PAF_PLANT_SLOWDOWN=paf-post:100";
    assert!(text(&output.stderr).contains(warning), "{}", text(&output.stderr));
    // And none where nothing is planted.
    let output = paf(&small(&["--json", "-"]));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report.get("planted"), None);
    assert!(!text(&output.stderr).contains("PAF_PLANT") && !report["method"].as_str().unwrap().contains("PAF_PLANT"));
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
    // No shape in common: nothing is measured.
    refuses(&small(&["--baseline", &other, "--batch", "2"]), 2, &["list of shapes is 1 × 16", "2 × 16"]);
    // What cannot be compared once it is measured is written all the same.
    let kept = |name: &str, change: fn(&mut Value), message: &str| {
        let baseline = earlier.changed("baseline.json", |report| {
            report["cases"][0]["variants"].as_array_mut().unwrap().iter_mut().for_each(change)
        });
        let now = earlier.path(name);
        let output = paf(&small(&["--baseline", &baseline, "--json", &now]));
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(message) && stdout.contains("SAF / this"), "{stdout}{stderr}");
        assert_eq!(read_json(&now)["cases"][0]["variants"].as_array().unwrap().len(), 3, "the result is kept");
    };
    kept("rows.json", |variant| variant["schedule"] = "hybrid".into(), "rows in common is 0");
    kept("few.json", |variant| variant["samples_us"] = vec![1e-3; 5].into(), "rows that can be judged is 0");
}

/// After how many rounds it is looked whether it is quiet; after the last nothing more is made.
const LOOKS: [usize; 8] = [11, 17, 26, 39, 59, 89, 134, 201];

#[test]
fn sampling_stops_when_it_is_quiet_and_names_what_is_not() {
    // However busy the processor is, the samples themselves tell when to stop, and what to name.
    let rounds = |noise: &str| {
        let mut arguments = small(&["--noise", noise, "--json", "-"]);
        *arguments.iter_mut().find(|argument| **argument == "0.05").unwrap() = "600";
        let output = paf(&arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let share = noise.parse::<f64>().unwrap() / 100.0;
        assert!((report["noise_target"].as_f64().unwrap() / share - 1.0).abs() < 1e-9);
        let variants = report["cases"][0]["variants"].as_array().unwrap();
        let samples: Vec<Vec<f64>> =
            variants.iter().map(|variant| serde_json::from_value(variant["samples_us"].clone()).unwrap()).collect();
        let made = samples[0].len();
        let is_quiet = |of: &[f64]| Median::of(of).unwrap().is_within(share);
        let reached = |&look: &usize| look <= made && samples.iter().all(|of| is_quiet(&of[..look]));
        assert_eq!(made, LOOKS.into_iter().find(reached).unwrap_or(201), "{noise}: {}", text(&output.stderr));
        let stderr = text(&output.stderr);
        let line = stderr.lines().find(|line| line.starts_with("warning: 1 × 16: noise above ± ")).unwrap_or_default();
        let names = ["saf-post serial (eager) ± ", "paf-post serial (eager) ± ", "paf-post two-stream (eager) ± "];
        for (name, of) in names.into_iter().zip(&samples) {
            assert_eq!(line.contains(name), !is_quiet(of), "{noise}, {name}: {stderr}");
        }
        (made, stderr)
    };
    // Never that quiet: all rounds, each row named.
    let (made, stderr) = rounds("0.000001");
    assert_eq!(made, 201);
    assert!(stderr.contains("warning: 1 reasons to doubt") && stderr.contains("above ± 0.000001 %: "), "{stderr}");
    // As quiet as that after a few looks, if the processor has little else to do.
    rounds("100");
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
