//! A whole comparison on the CPU, with a stand-in for PyTorch that answers as it should, or does not.
#![cfg(unix)]

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::config::{BatchShape, Design, EncoderConfig, LayerConfig};
use crate::error::{Error, Result};
use crate::measure::compare::{Experiment, Peer, Subject, Way};
use crate::measure::speedup::{Engine, Mode};
use crate::measure::timing::Effort;

const HELLO: &str =
    r#"{"torch": "2.11", "cuda": "13.0", "cudnn": 91900, "triton": null, "transformers": null, "device": "a card"}"#;

const LAYERS: &str = r#"{"layers": 2}"#;

/// A row that is ready, off by `error` of at most 1.
fn ready(design: &str, way: &str, mode: &str, error: f64) -> Value {
    let verified = json!([{
        "what": "all", "max_error": error, "bound": 1.0, "relative_l2": 0.1, "relative_l2_bound": 0.2,
    }]);
    json!({"design": design, "way": way, "mode": mode, "verified": verified})
}

fn prepared(ready: &[Value]) -> String {
    let absent = json!([{"design": "paf", "way": "fused", "mode": "graph", "why": "no room"}]);
    json!({"ready": ready, "absent": absent}).to_string()
}

/// A peer that has these answers to each kind of request.
fn answers(layers: &str, shape: &str, sample: &str) -> String {
    format!(
        "echo '{HELLO}'\nwhile read request; do case \"$request\" in\n*'\"model\"'*) echo '{layers}';;\n*'\"shape\"'*) echo '{shape}';;\n\
         *'\"sample\":0'*) echo '{{\"us\": 2e9}}';;\n*) {sample};;\nesac; done"
    )
}

fn experiment() -> Experiment {
    let layer = LayerConfig { design: Design::PafPreNorm, ..LayerConfig::new(64, 2, 128).unwrap() };
    let config = EncoderConfig { layer, num_hidden_layers: 2 };
    let shapes = vec![BatchShape::new(1, 8).unwrap(), BatchShape::new(2, 5).unwrap()];
    Experiment {
        subjects: vec![Subject { model: None, config, rotary_left_out: false, shapes }],
        schedules: Vec::new(),
        modes: vec![Mode::Eager],
        ways: vec![Way::Eager, Way::Fused],
        seed: 1,
        effort: Effort { warm_up_rounds: 0, min_rounds: 6, max_rounds: 6, budget: Duration::ZERO, noise: None },
    }
}

fn compare(script: &str) -> Result<Report> {
    // A shell in Python's place.
    let mut peer = Peer::start_script("sh", script, 0)?;
    experiment().run(&Engine::Cpu, Ok(&mut peer), |_, _, _| ())
}

fn three() -> String {
    let rows = [("saf", "eager", "graph"), ("paf", "eager", "graph"), ("paf", "eager", "launches")];
    prepared(&rows.map(|(design, way, mode)| ready(design, way, mode, 0.5)))
}

#[test]
fn both_sides_are_sampled_in_the_same_rounds_and_compared() {
    let report = compare(&answers(LAYERS, &three(), "echo '{\"us\": 1e9}'")).unwrap();
    assert_eq!((report.run.schema.as_str(), report.dtype.as_str()), (SCHEMA, "f32"));
    assert_eq!(report.peer.as_ref().unwrap().cudnn, Some(91900));
    let [stack] = &report.stacks[..] else { panic!("{} stacks", report.stacks.len()) };
    assert_eq!((stack.design.as_str(), stack.cases.len()), ("paf-pre", 2));
    for case in &stack.cases {
        // SAF, and PAF in two schedules; three of the peer's, as many samples of each.
        assert_eq!((case.ours.variants.len(), case.peers.len(), case.absent.len()), (3, 3, 1));
        assert!(case.ours.variants.iter().all(|variant| variant.samples_us.len() == 6));
        assert_eq!(case.peers[0].samples_us, [2e9; 6]);
        assert_eq!(case.peers[1].samples_us, [1e9; 6]);
        let designs = case.peers.iter().map(|row| row.design.as_str()).collect::<Vec<_>>();
        assert_eq!(designs, ["saf-pre", "paf-pre", "paf-pre"]);
        let ours = case.ours_in("saf-pre").unwrap();
        assert_eq!(case.peers[0].over_ours, paired(&[2e9; 6], &ours.samples_us).unwrap());
        // 2 s over 1 s, whatever ours took.
        let cells = case.best_cells().unwrap();
        assert_eq!(cells[8], "2.000 ± 0.000");
        assert!(cells[2].starts_with("2000000.000") && cells[2].ends_with("eager, graph"), "{cells:?}");
    }
    let missing = report.missing.iter().map(|missing| missing.way.as_str()).collect::<Vec<_>>();
    assert_eq!(missing, ["two-stream", "compile"]);
    let markdown = report.markdown();
    for part in [
        "custom dimensions (paf-pre): 2 layers of 64, f32\n",
        "| 2 × 5 | saf-pre | paf-cuda serial, eager |",
        "| 2 × 5 | paf-pre | PyTorch eager, launches | 1000000.000 ± 0.000 |",
        "- PyTorch 2.11, cuDNN 91900\n",
        "- PyTorch compile was not measured: not asked for\n",
        "- custom dimensions 1 × 8: no row of PyTorch paf fused, graph: no room\n",
    ] {
        assert!(markdown.contains(part), "{part:?} is missing in: {markdown}");
    }
    // The same but for single rows.
    let summary = report.summary();
    let lines: Vec<_> =
        markdown.lines().filter(|line| !line.contains("| saf-pre |") && !line.contains("| paf-pre |")).collect();
    assert!(summary.lines().all(|line| lines.contains(&line)) && !summary.contains("this / here"), "{summary}");
    assert!(summary.contains("| 2 × 5 |") && summary.contains("not measured: not asked for\n"), "{summary}");
    let again: Report = serde_json::from_str(&report.json()).unwrap();
    assert_eq!((again.markdown(), again.stacks[0].cases[1].peers.len()), (markdown, 3));
}

/// A row of ours in every round of the same time.
fn row(like: &report::Variant, design: &str, plan: Option<&str>, mode: &str, us: f64) -> report::Variant {
    report::Variant {
        design: design.into(),
        schedule: if plan.is_some() { "auto" } else { "fused" }.into(),
        plan: plan.map(Into::into),
        mode: mode.into(),
        samples_us: vec![us; 6],
        median_us: paired(&[us; 6], &[1.0; 6]).unwrap(),
        ..like.clone()
    }
}

#[test]
fn a_lucky_row_of_paf_does_not_stand_for_ours() {
    let report = compare(&answers(LAYERS, &three(), "echo '{\"us\": 1e9}'")).unwrap();
    let mut case = report.stacks[0].cases[0].clone();
    let like = case.ours.variants[0].clone();
    let row = |design, plan, mode, us| row(&like, design, plan, mode, us);
    // Of SAF the faster row counts, whoever chose it; of PAF the planner's, in the same mode.
    case.ours.variants = vec![
        row("saf-pre", None, "graph", 1200.0),
        row("saf-pre", Some("serial"), "graph", 1250.0),
        row("paf-pre", None, "graph", 1000.0),
        row("paf-pre", Some("fused attention=x"), "graph", 1250.0),
        row("saf-pre", None, "eager", 1300.0),
        row("paf-pre", Some("fused"), "eager", 800.0),
    ];
    for (peer, us) in case.peers.iter_mut().zip([1800.0, 1500.0, 1375.0]) {
        peer.samples_us = vec![us; 6];
        peer.median_us = paired(&[us; 6], &[1.0; 6]).unwrap();
    }
    let ratios = |case: &Case| case.all_cells().map(|[.., over]| over[..5].to_owned()).collect::<Vec<_>>();
    assert_eq!(
        case.best_cells().unwrap(),
        [
            "1 × 8",
            "1.200 ± 0.000 fused, graph",
            "1.800 ± 0.000 eager, graph",
            "1.500 ± 0.000",
            "1.250 ± 0.000 auto: fused, graph",
            "1.375 ± 0.000 eager, launches",
            "1.100 ± 0.000",
            "0.960 ± 0.000",
            "1.309 ± 0.000",
        ]
    );
    assert_eq!(ratios(&case), ["1.000", "1.042", "0.800", "1.000", "1.083", "0.640", "1.500", "1.200", "1.100"]);
    // Where nobody planned there are but the fixed schedules, and the fastest stands for them.
    case.ours.variants.retain(|variant| variant.plan.is_none());
    let cells = case.best_cells().unwrap();
    assert_eq!([&cells[4], &cells[6], &cells[7]], ["1.000 ± 0.000 fused, graph", "1.375 ± 0.000", "1.200 ± 0.000"]);
}

#[test]
fn without_a_peer_the_reason_is_in_the_report() {
    let why = Peer::start("/no/such/python", 0).unwrap_err();
    let report = experiment().run(&Engine::Cpu, Err(why), |_, _, _| ()).unwrap();
    assert_eq!((report.peer.as_ref(), report.missing.len()), (None, 4));
    assert!(report.missing[0].why.contains("/no/such/python"), "{:?}", report.missing);
    let cells = report.stacks[0].cases[0].best_cells().unwrap();
    assert_eq!([&cells[2], &cells[3], &cells[8]], [ABSENT; 3]);
    assert_ne!(cells[7], ABSENT);
    assert!(report.table().contains("paf-cuda serial"));
    // Sampled as beside a peer; of which nothing is said.
    assert!(report.method.contains("after a call of the same that is not timed"), "{}", report.method);
    assert!(!report.method.contains("PyTorch"), "{}", report.method);
    assert!(report.markdown().contains("- PyTorch eager was not measured: the peer PyTorch failed: /no/such/python"));
}

#[test]
fn what_is_wrong_is_not_timed() {
    let sample = "echo '{\"error\": \"it was sampled\"}'";
    let refused = |shape: &str| match compare(&answers(LAYERS, shape, sample)) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{shape} was measured"),
    };
    let wrong = refused(r#"{"wrong": "saf eager is off by 3.0"}"#);
    assert!(wrong.contains("verification failed: saf eager is off by 3.0"), "{wrong}");
    // Also where the peer does not notice.
    let wrong = refused(&prepared(&[ready("saf", "eager", "graph", 1.5)]));
    assert!(wrong.contains("verification failed") && wrong.contains("1.5"), "{wrong}");
    let nobody = refused(&prepared(&[json!({"design": "saf", "way": "x", "mode": "y", "verified": []})]));
    assert!(nobody.contains("verification failed"), "{nobody}");
}

/// The reason for which nothing of the peer is in a report that has all of ours.
fn lost(layers: &str, shape: &str, sample: &str) -> String {
    let report = compare(&answers(layers, shape, sample)).unwrap();
    let cases = &report.stacks[0].cases;
    assert_eq!(cases.len(), 2);
    for Case { ours, peers, .. } in cases {
        assert!(peers.is_empty() && ours.variants.iter().all(|variant| variant.samples_us.len() == 6));
    }
    let missing = report.missing.iter().find(|missing| missing.way == "eager").unwrap();
    assert_eq!(missing.from.as_deref(), Some("custom dimensions 1 × 8"));
    missing.why.clone()
}

#[test]
fn a_peer_that_fails_leaves_ours_with_the_reason() {
    let sampled = |sample: &str| lost(LAYERS, &three(), sample);
    assert!(sampled("echo '{\"us\": 0}'").contains("a call took 0"));
    assert!(sampled("echo '{\"us\": -1.5}'").contains("a call took -1.5"));
    assert!(sampled("echo '{\"ms\": 1}'").contains("{\\\"ms\\\": 1}"));
    assert!(sampled("echo 'CUDA error: out of memory' >&2; exit 1").contains("CUDA error: out of memory"));
    assert!(sampled("exit").contains("without a word"));
    let other = lost(LAYERS, &prepared(&[ready("moe", "eager", "graph", 0.5)]), "exit");
    assert!(other.contains("\"moe\""), "{other}");
    let failed = lost(LAYERS, r#"{"error": "OutOfMemoryError: no room"}"#, "exit");
    assert!(failed.contains("no room"), "{failed}");
    let fewer = lost(r#"{"layers": 1}"#, &three(), "exit");
    assert!(fewer.contains("1 layers, not 2"), "{fewer}");
}

#[test]
fn what_was_measured_before_the_peer_failed_stays() {
    // Two rounds into the second of the two shapes: three a round, 18 on the first.
    let sample = "n=$((n+1)); [ $n -le 24 ] && echo '{\"us\": 1e9}' || { echo 'Bus error' >&2; exit; }";
    let script = answers(LAYERS, &three(), sample).replace("*'\"sample\":0'*) echo '{\"us\": 2e9}';;\n", "");
    let report = compare(&script).unwrap();
    let [first, second] = &report.stacks[0].cases[..] else { panic!("{} cases", report.stacks[0].cases.len()) };
    assert_eq!((first.peers.len(), second.peers.len()), (3, 0));
    assert!(first.peers.iter().all(|row| row.samples_us == [1e9; 6]));
    assert!(second.ours.variants.iter().all(|variant| variant.samples_us.len() == 6));
    let line = "PyTorch eager was not measured from custom dimensions 2 × 5 on: the peer PyTorch failed: Bus error";
    assert!(report.notes().iter().any(|note| note == line), "{:?}", report.notes());
    assert!(report.method.contains("PyTorch runs"), "{}", report.method);
}

#[test]
fn noisy_rows_of_both_sides_are_named() {
    let mut report = compare(&answers(LAYERS, &three(), "echo '{\"us\": 1e9}'")).unwrap();
    assert_eq!((report.noise_target, report.warnings().len()), (None, 0));
    report.noise_target = Some(0.005);
    let case = &mut report.stacks[0].cases[0];
    let wide = Spread { median: 100.0, low: 90.0, high: 110.0, confidence: 0.96 };
    let narrow = Spread { low: 100.0, high: 100.0, ..wide };
    case.ours.variants.iter_mut().for_each(|variant| variant.median_us = narrow);
    case.ours.variants[1].median_us = wide;
    case.peers[2].median_us = wide;
    report.stacks[0].cases.truncate(1);
    let name = report.stacks[0].cases[0].ours.variants[1].name();
    let rows = format!("{name} ± 10.0 %, PyTorch paf-pre eager (launches) ± 10.0 %");
    let noisy = format!("custom dimensions 1 × 8: noise above ± 0.5 %: {rows}");
    assert_eq!(report.warnings(), std::slice::from_ref(&noisy));
    report.run.planted = Some("PAF_PLANT_SLOWDOWN=paf:1.05".into());
    let planted = "times that a test has made longer: PAF_PLANT_SLOWDOWN=paf:1.05".to_owned();
    assert_eq!(report.warnings(), [planted, noisy]);
}

#[test]
fn padded_and_packed_batches_are_refused() {
    for shape in
        [BatchShape::packed(vec![3, 4]).unwrap(), BatchShape::new(1, 8).unwrap().with_lengths(vec![7]).unwrap()]
    {
        let mut experiment = experiment();
        experiment.subjects[0].shapes[1] = shape;
        let none = || Err(Error::Peer { peer: "PyTorch", text: "none".into() });
        let error = experiment.run(&Engine::Cpu, none(), |_, _, _| ()).unwrap_err().to_string();
        assert!(error.contains("full sequences"), "{error}");
    }
}
