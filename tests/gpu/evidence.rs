//! The program's measurements on a GPU: results are what their schemas say, a slowdown is found, and what is wrong is not timed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::PoisonError;

use libtest_mimic::{Failed, Trial};
use paf_cuda::measure::schema::documents;
use serde_json::Value;

use super::schemas::{errors, strict};
use super::{ALONE, Outcome};

/// A measurement of each kind that takes a second or two, and the name by which its candidates can be slowed down. Sizes at which
/// neither the power limit nor launches rule.
const MEASUREMENTS: [(&str, &str); 4] = [
    ("gemm", "kernels gemm --shapes 512x3072x1024,128x1024x4096 --seconds 1"),
    ("attention", "kernels attention --shapes 1x16x512x64,4x16x512x64 --peer none --seconds 1"),
    ("norm", "kernels norm --seconds 0.3"),
    (
        "paf-post",
        "speedup --model minilm-l6 --batch 1 --seq 512 --modes graph --schedules fused --backend cuda --seconds 2",
    ),
];

/// Those that cannot be compared with an earlier result.
const OTHERS: [&str; 5] = [
    "plan --model minilm-l6 --batch 1 --seq 128 --no-cache --seconds 1",
    "peak --backend cuda --seconds 0.5",
    "complexity --model minilm-l6 --batch 1 --seq 128 --seconds 0.5",
    "compare --model minilm-l6 --batch 1 --seq 128 --python none --seconds 0.5",
    "trace --model minilm-l6 --batch 1 --seq 128 --mode eager --times events",
];

pub fn trials(trials: &mut Vec<Trial>) {
    let mut add = |name: String, test: Box<dyn FnOnce() -> Outcome + Send>| {
        trials.push(Trial::test(format!("evidence: {name}"), move || {
            // Other tests would show in the times.
            let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
            test()
        }));
    };
    for (name, command) in MEASUREMENTS {
        let short = command.split(" --").next().unwrap_or(command);
        let test = move || slowdown(name, command);
        add(format!("paf {short}: 5 % more of {name} is found by --baseline, nothing is not"), Box::new(test));
    }
    for command in MEASUREMENTS.map(|(_, command)| command).into_iter().chain(OTHERS) {
        let short = command.split(" --").next().unwrap_or(command);
        add(
            format!("paf {short}: a result that its schema describes, with states"),
            Box::new(move || described(command)),
        );
        add(format!("paf {short}: a wrong result is not timed"), Box::new(move || wrong(command)));
    }
}

/// The program: beside the suite where both were bundled, else where cargo has built it.
fn program() -> Result<PathBuf, Failed> {
    let beside = std::env::current_exe()?.with_file_name("paf");
    let built = option_env!("CARGO_BIN_EXE_paf").map(PathBuf::from);
    let found = std::iter::once(beside).chain(built).find(|path| path.is_file());
    found.ok_or_else(|| "the program paf is not beside the suite, nor where cargo has built it".into())
}

fn paf(command: &str, more: &[&Path], fault: Option<(&str, &str)>) -> Result<Output, Failed> {
    let mut process = Command::new(program()?);
    process.args(command.split(' ')).args(more).envs(fault).stdin(Stdio::null());
    Ok(process.output()?)
}

fn told(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

fn exits(output: &Output, code: i32) -> Outcome {
    match output.status.code() {
        Some(found) if found == code => Ok(()),
        found => Err(format!("exit code {found:?}, expected {code}: {}", told(output)).into()),
    }
}

fn slowdown(name: &str, command: &str) -> Outcome {
    let folder = tempfile::tempdir()?;
    let (earlier, json, baseline) = (folder.path().join("earlier.json"), Path::new("--json"), Path::new("--baseline"));
    exits(&paf(command, &[json, &earlier], None)?, 0)?;
    let same = paf(command, &[baseline, &earlier], None)?;
    exits(&same, 0)?;
    let slower = paf(command, &[baseline, &earlier], Some(("PAF_PLANT_SLOWDOWN", &format!("{name}:1.05"))))?;
    exits(&slower, 3)?;
    // Every row that has it, and no other; but for hot ones, of which short kernels' vary by more than what is planted.
    let text = told(&slower);
    if !text.contains("warning: times that a test has made longer: PAF_PLANT_SLOWDOWN=") {
        return Err(format!("the result does not say that it was slowed down: {text}").into());
    }
    let rows = |verdict: &str| {
        let of = |line: &&str| line.contains("│") && line.contains(verdict) && !line.contains("hot");
        text.lines().filter(of).count()
    };
    let (found, others) = (rows(" SLOWER "), rows(" slower once ") + rows(" same ") + rows(" faster "));
    // Layers: SAF, which is not slowed down, and one schedule of PAF.
    let expected = if name == "paf-post" { 1 } else { 0 };
    if found == 0 || others != expected {
        return Err(
            format!("{found} rows are slower and {others} are not, expected {expected} of these: {text}").into()
        );
    }
    Ok(())
}

/// What has states, in a result of any kind. A timeline has none: it is of one call.
fn parts(result: &Value) -> Vec<&Value> {
    match (&result["cases"], &result["stacks"], &result["traceEvents"]) {
        (Value::Array(cases), ..) => {
            cases.iter().map(|case| if case["measured"].is_object() { &case["measured"] } else { case }).collect()
        }
        (_, Value::Array(stacks), _) => stacks.iter().filter_map(|stack| stack["cases"].as_array()).flatten().collect(),
        (_, _, Value::Array(_)) => Vec::new(),
        _ => vec![result],
    }
}

fn described(command: &str) -> Outcome {
    let output = paf(command, &[Path::new("--json"), Path::new("-")], None)?;
    exits(&output, 0)?;
    let result: Value = serde_json::from_slice(&output.stdout)?;
    let name = result["schema"].as_str().ok_or("there is no schema")?;
    let document = documents().into_iter().find(|document| document.schema == name).ok_or("an unknown schema")?;
    let errors = errors(&strict(serde_json::from_str(&document.json)?), &result);
    if !errors.is_empty() {
        return Err(format!("{name}: {errors:#?}").into());
    }
    // Wherever the driver's management library is, which also tells the driver's version.
    for part in parts(&result).into_iter().filter(|_| result["machine"]["driver"].is_string()) {
        for state in ["state_before", "state_after"] {
            if !part[state]["sm_clock_mhz"].is_u64() || !part[state]["throttle_reasons"].is_string() {
                return Err(format!("{name}: {state} is {}", part[state]).into());
            }
        }
    }
    Ok(())
}

fn wrong(command: &str) -> Outcome {
    let folder = tempfile::tempdir()?;
    let json = folder.path().join("result.json");
    let output = paf(command, &[Path::new("--json"), &json], Some(("PAF_PLANT_WRONG", "1")))?;
    exits(&output, 1)?;
    let text = told(&output);
    if !text.contains("verification failed") || !output.stdout.is_empty() || json.exists() {
        return Err(format!("expected a refusal and nothing else: {text}").into());
    }
    Ok(())
}
