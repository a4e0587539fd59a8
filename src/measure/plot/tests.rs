use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::place::text_width;
use super::series::{Shape, panels, schedules, seq_lens};
use super::svg;
use crate::error::Error;
use crate::measure::report::{Case, Report, Spread, Variant};

fn variant(design: &str, schedule: &str, mode: &str, [low, median, high]: [f64; 3]) -> Variant {
    Variant {
        plan: None,
        design: design.into(),
        schedule: schedule.into(),
        mode: mode.into(),
        samples_us: Vec::new(),
        median_us: Spread { median: 1.0, low: 1.0, high: 1.0, confidence: 0.97 },
        tflops: 1.0,
        roofline_share: None,
        speedup_over_saf: Spread { median, low, high, confidence: 0.97 },
    }
}

fn saf(mode: &str) -> Variant {
    variant("saf-post", "serial", mode, [1.0; 3])
}

fn case(batch: usize, seq_len: usize, variants: Vec<Variant>) -> Case {
    Case {
        batch,
        seq_len,
        lengths: None,
        packed: false,
        flops: 1.0,
        bytes: 1.0,
        floor_us: None,
        verified: Vec::new(),
        state_before: None,
        state_after: None,
        variants,
    }
}

/// SAF and PAF as a graph, in two schedules of which the second is faster.
fn two(batch: usize, seq_len: usize) -> Case {
    let two_stream = variant("paf-post", "two-stream", "graph", [0.98, 0.99, 1.01]);
    case(batch, seq_len, vec![saf("graph"), variant("paf-post", "fused", "graph", [1.19, 1.2, 1.3]), two_stream])
}

fn report(model: &str, cases: Vec<Case>) -> Report {
    let report = json!({
        "schema": "paf-cuda/speedup/1", "version": "0", "git_revision": null, "unix_time_s": 0,
        "machine": {
            "cpu": "some CPU", "cpu_threads": 1, "device": "some GPU", "compute_capability": null,
            "multiprocessors": null, "driver": null, "cuda_driver_version": null
        },
        "backend": "cuda", "model": model, "dtype": "bf16",
        "config": {
            "num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 16,
            "head_dim": 64, "intermediate_size": 4096, "hidden_act": "gelu", "causal": false, "rotary_dim": null,
            "rotary_left_out": false
        },
        "seed": 1, "method": "", "ceilings": { "flops_per_s": null, "bytes_per_s": 1.0, "source": "" }, "cases": []
    });
    Report { cases, ..serde_json::from_value(report).unwrap() }
}

#[test]
fn files_of_one_model_are_one_panel() {
    let reports = [report("a", vec![two(4, 512), two(1, 128)]), report("a", vec![two(1, 2048)])];
    let panels = panels(&reports).unwrap();
    assert_eq!(panels.len(), 1);
    assert_eq!(panels[0].title(), "a (paf-post), 24 layers");
    assert_eq!(panels[0].subtitle(), "bf16 on some GPU, mode graph");
    let shapes: Vec<_> = panels[0].shapes.iter().map(|shape| (shape.tokens, shape.label().concat())).collect();
    let expected = [(128, "1 ×128"), (2048, "4 ×512"), (2048, "1 ×2048")];
    assert_eq!(shapes, expected.map(|(tokens, label)| (tokens, label.to_owned())));
    assert_eq!((schedules(&panels), seq_lens(&panels)), (vec!["two-stream", "fused"], vec![128, 512, 2048]));
    let points = &panels[0].shapes[0].points;
    let found: Vec<_> = points.iter().map(|point| (point.schedule, point.ratio.median, point.is_win())).collect();
    assert_eq!(found, [("two-stream", 0.99, false), ("fused", 1.2, true)]);
    // In whichever order the files are named.
    let turned = [reports[1].clone(), reports[0].clone()];
    assert_eq!(svg(&turned).unwrap(), svg(&reports).unwrap());
}

#[test]
fn other_conditions_are_other_panels() {
    let one = report("a", vec![two(1, 128)]);
    let mut all = vec![one.clone(), report("b", vec![two(1, 128)])];
    all.push(Report { dtype: "f16".into(), ..one.clone() });
    let mut other = one.clone();
    other.run.machine.device = None;
    all.push(other);
    let mut other = one.clone();
    other.config.num_hidden_layers = 12;
    all.push(other);
    let mut other = one.clone();
    other.cases[0].variants[1].design = "paf-pre".into();
    other.cases[0].variants.pop();
    other.model = None;
    all.push(other);
    let mut both = two(1, 128);
    both.variants.extend([saf("eager"), variant("paf-post", "fused", "eager", [1.0; 3])]);
    all.push(report("c", vec![both]));
    let panels = panels(&all).unwrap();
    let titles: Vec<_> = panels.iter().map(|panel| format!("{}; {}", panel.title(), panel.subtitle())).collect();
    assert_eq!(
        titles,
        [
            "a (paf-post), 24 layers; bf16 on some GPU, mode graph",
            "b (paf-post), 24 layers; bf16 on some GPU, mode graph",
            "a (paf-post), 24 layers; f16 on some GPU, mode graph",
            "a (paf-post), 24 layers; bf16 on some CPU, mode graph",
            "a (paf-post), 12 layers; bf16 on some GPU, mode graph",
            "hidden_size 1024, 16 heads, intermediate_size 4096 (paf-pre), 24 layers; bf16 on some GPU, mode graph",
            "c (paf-post), 24 layers; bf16 on some GPU, mode graph",
            "c (paf-post), 24 layers; bf16 on some GPU, mode eager",
        ]
    );
    check_picture(&svg(&all).unwrap());
}

#[test]
fn auto_is_one_series_whatever_it_chose() {
    let auto = |choice| variant("paf-post", choice, "graph", [1.1, 1.2, 1.3]);
    let mut cases = vec![two(1, 128), two(1, 256), two(1, 512)];
    for (case, choice) in cases.iter_mut().zip(["auto (fused)", "auto", "auto: hybrid"]) {
        case.variants.insert(0, auto(choice));
    }
    cases[0].variants.push(auto("another"));
    let reports = [report("a", cases)];
    let panels = panels(&reports).unwrap();
    assert_eq!(schedules(&panels), ["two-stream", "fused", "another", "auto"]);
}

#[test]
fn tokens_are_those_that_are_valid() {
    let padded = Case { lengths: Some(vec![9, 0, 17]), ..two(3, 17) };
    let packed = Case { packed: true, ..padded.clone() };
    let reports = [report("a", vec![two(3, 17), packed, padded])];
    let panels = panels(&reports).unwrap();
    let labels: Vec<_> = panels[0].shapes.iter().map(|shape| (shape.tokens, shape.label())).collect();
    assert_eq!(labels[0], (26, vec!["3 ×".to_owned(), "17".to_owned(), "Σ 26".to_owned()]));
    assert_eq!(labels[1], (26, vec!["3 packed".to_owned(), "≤ 17".to_owned(), "Σ 26".to_owned()]));
    assert_eq!(labels[2], (51, vec!["3 ×".to_owned(), "17".to_owned()]));
    assert_eq!(panels[0].shapes.iter().map(Shape::has_lengths).collect::<Vec<_>>(), [true, true, false]);
}

#[test]
fn what_cannot_be_drawn_is_a_typed_error() {
    #[track_caller]
    fn refuses(reports: &[Report], parts: &[&str]) {
        let error = svg(reports).unwrap_err();
        assert!(matches!(error, Error::Mismatch { operation: "plot", .. }), "{error:?}");
        for part in parts {
            assert!(error.to_string().contains(part), "{part:?} is missing in: {error}");
        }
    }
    let good = report("a", vec![two(1, 128)]);
    refuses(&[], &["parallel variants", "0"]);
    refuses(&[good.clone(), report("b", vec![])], &["number of cases", "0 (b on some GPU)"]);
    refuses(&[report("a", vec![case(1, 128, vec![saf("graph")])])], &["parallel variants"]);
    refuses(&[good.clone(), good.clone()], &["two (1 × 128, fused graph)", "expected one"]);

    let fused = |ratio| variant("paf-post", "fused", "graph", ratio);
    refuses(&[report("a", vec![case(1, 128, vec![fused([1.0; 3])])])], &["baseline", "1 × 128, fused graph", "SAF"]);
    refuses(&[report("a", vec![case(1, 128, vec![saf("eager"), fused([1.0; 3])])])], &["baseline"]);
    for ratio in [[0.0, 1.0, 2.0], [1.2, 1.1, 1.3], [1.0, 1.2, 1.1], [1.0, 1.0, f64::INFINITY], [f64::NAN; 3]] {
        refuses(&[report("a", vec![case(1, 128, vec![saf("graph"), fused(ratio)])])], &["ratio", "1 × 128"]);
    }

    let of_lengths = |lengths| Case { lengths: Some(lengths), ..two(2, 128) };
    for case in [of_lengths(vec![0, 0]), of_lengths(vec![]), of_lengths(vec![usize::MAX, 1]), two(usize::MAX, 2)] {
        refuses(&[report("a", vec![case])], &["number of tokens"]);
    }
}

/// That `document` is an SVG whose texts lie inside it and, in a font as wide as any, apart from each other.
#[track_caller]
fn check_picture(document: &str) {
    let parsed = roxmltree::Document::parse(document).unwrap();
    let root = parsed.root_element();
    assert_eq!((root.tag_name().name(), root.tag_name().namespace()), ("svg", Some("http://www.w3.org/2000/svg")));
    let number = |node: roxmltree::Node, name| node.attribute(name).unwrap().parse::<f64>().unwrap();
    let (width, height) = (number(root, "width"), number(root, "height"));
    let mut boxes: Vec<([f64; 4], &str)> = Vec::new();
    for node in root.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "text"))) {
        let text = node.text().unwrap().trim();
        let (x, y, size) = (number(node, "x"), number(node, "y"), number(node, "font-size"));
        let length = text_width(text, size, node.attribute("font-weight") == Some("bold"));
        let along = match node.attribute("text-anchor").unwrap() {
            "start" => 0.0,
            "middle" => -length / 2.0,
            _ => -length,
        };
        let down = match node.attribute("dy").unwrap() {
            "0.76em" => 0.0,
            "0.5ex" => -size / 2.0,
            _ => -size,
        };
        let place = match node.attribute("transform") {
            None => [x + along, x + along + length, y + down, y + down + size],
            Some(_) => [x + down, x + down + size, y - along - length, y - along],
        };
        assert!(place[0] >= 0.0 && place[1] <= width && place[2] >= 0.0 && place[3] <= height, "{text}: {place:?}");
        for (other, other_text) in &boxes {
            let apart = place[0] >= other[1] || other[0] >= place[1] || place[2] >= other[3] || other[2] >= place[3];
            assert!(apart, "{text:?} {place:?} lies over {other_text:?} {other:?}");
        }
        boxes.push((place, text));
    }
    assert!(boxes.iter().any(|(_, text)| *text == "PAF slower"));
}

#[test]
fn wins_are_filled_and_the_rest_is_hollow() {
    let document = svg(&[report("a", vec![two(1, 128), two(4, 128), two(1, 512)])]).unwrap();
    check_picture(&document);
    // The outlines of markers in the colour of each schedule: circles for 128, squares for 512; a circle is in the legend.
    for (colour, filled) in [("#D55E00", 2 + 1), ("#0072B2", 1)] {
        assert_eq!(document.matches(&format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"1\"/>")).count(), 2 + 1);
        assert_eq!(document.matches(&format!("r=\"4\" opacity=\"1\" fill=\"{colour}\"")).count(), filled);
        assert_eq!(
            document.matches(&format!("<polygon opacity=\"1\" fill=\"{colour}\"")).count(),
            (filled > 1) as usize
        );
    }
    assert_eq!(document.matches("fill=\"#FBE3DF\"").count(), 1);
}

#[test]
fn names_cannot_break_the_document() {
    let mut strange = report("<a & \"b\">\u{0}\u{ffff}", vec![two(1, 128)]);
    strange.run.machine.device = Some("]]>\u{1b}<!--".into());
    let document = svg(&[strange]).unwrap();
    check_picture(&document);
    assert!(document.contains("&lt;a &amp; &quot;b&quot;&gt;\u{fffd}\u{fffd} (paf-post)"));
}

#[test]
fn extremes_have_a_picture() {
    let wild = |ratio| case(1, 1, vec![saf("graph"), variant("paf-post", "fused", "graph", ratio)]);
    for ratio in [[1e-3, 1.0, 1e3], [1e3; 3], [1e-3; 3], [1.0; 3], [0.2, 0.3, 0.5], [3.0, 3.1, 3.2]] {
        let document = svg(&[report("a", vec![wild(ratio)])]).unwrap();
        roxmltree::Document::parse(&document).unwrap();
    }
    let many = (1..300).map(|seq_len| two(1, seq_len)).collect();
    check_picture(&svg(&[report("a", many)]).unwrap());
    check_picture(&svg(&[report("a", vec![two(1, 1), two(1 << 30, 1 << 20), two(1, 512)])]).unwrap());
    check_picture(&svg(&[report(&"a long name ".repeat(30), vec![two(1, 1)])]).unwrap());
}

proptest! {
    #[test]
    fn texts_stay_apart(
        shapes in proptest::collection::vec((0..14u32, 0..14u32, 0..3usize), 1..30),
        names in 1..8usize,
        ratios in proptest::array::uniform8(0.5..1.7f64),
    ) {
        let schedules = ["serial", "two-stream", "fused", "hybrid", "auto", "sixth", "seventh-schedule"];
        let sizes = shapes.into_iter().map(|(batch, seq_len, more)| ((1 << batch) + more, (1 << seq_len) + more));
        let cases = BTreeSet::<(usize, usize)>::from_iter(sizes).into_iter().map(|(batch, seq_len)| {
            let points = schedules[..names].iter().zip(ratios);
            let points = points.map(|(name, x)| variant("paf-post", name, "graph", [x * 0.98, x, x * 1.03]));
            case(batch, seq_len, std::iter::once(saf("graph")).chain(points).collect())
        });
        check_picture(&svg(&[report("a", cases.collect())]).unwrap());
    }
}

mod blocks {
    use super::*;
    use crate::config::{BatchShape, preset};
    use crate::dtype::Dtype;
    use crate::measure::complexity::{self, Experiment, Measured, Row, Subject};
    use crate::measure::devices;
    use crate::measure::plot::complexity as svg;
    use crate::measure::speedup::Weights;

    fn predicted(shapes: &[(usize, usize)]) -> complexity::Report {
        let config = preset("roberta-large").unwrap().config;
        let experiment = Experiment {
            model: Some("<a & \"b\">\u{0}".into()),
            config: config.with_design(config.layer.design.parallel()),
            rotary_left_out: false,
            weights: Weights::Random,
            dtype: Dtype::Bf16,
            shapes: shapes.iter().map(|&(batch, seq_len)| BatchShape::new(batch, seq_len).unwrap()).collect(),
        };
        experiment.predict(&devices::known("h200").unwrap()).unwrap()
    }

    fn measured(shapes: &[(usize, usize)]) -> complexity::Report {
        let mut report = predicted(shapes);
        report.run.machine.device = Some("]]>\u{1b}<!--".into());
        for case in &mut report.cases {
            let spread = |us: f64| Spread { median: us, low: us * 0.98, high: us * 1.03, confidence: 0.97 };
            let row = |subject, us: f64| Row {
                subject,
                plan: "serial".into(),
                samples_us: vec![us],
                median_us: spread(us),
                overlap: None,
                saf_over_this: Some(spread(70.0 / us)),
            };
            let of = [
                (Subject::Attention, 30.0),
                (Subject::Ffn, 40.0),
                (Subject::Saf, 70.0),
                (Subject::TwoStream, 80.0),
                (Subject::Auto, 50.0),
            ];
            let rows = of.map(|(subject, us)| row(subject, us)).to_vec();
            case.measured = Some(Measured { verified: Vec::new(), state_before: None, state_after: None, rows });
        }
        report
    }

    const MANY: [(usize, usize); 8] =
        [(1, 64), (1, 128), (1, 256), (1, 512), (1, 1024), (1, 2048), (1, 4096), (1, 8192)];

    #[test]
    fn predictions_are_dashed_and_hollow_measurements_solid_and_filled() {
        let filled = |document: &str, colour: &str| {
            document.matches(&format!("r=\"4\" opacity=\"1\" fill=\"{colour}\"")).count()
        };
        let document = svg(&predicted(&MANY)).unwrap();
        check_picture(&document);
        // Attention's circles: the legend's, and eight that are white inside.
        assert_eq!((filled(&document, "#0072B2"), filled(&document, "#FFFFFF")), (1, 8));
        assert!(document.contains("predicted for NVIDIA H200") && !document.contains("measured on"));
        assert!(document.contains("attention’s FLOPs pass the FFN’s: 2048"));
        let solid = svg(&measured(&MANY)).unwrap();
        check_picture(&solid);
        assert_eq!((filled(&solid, "#0072B2"), filled(&solid, "#FFFFFF")), (1 + 8, 8));
        assert!(solid.contains("measured on ]]&gt;\u{fffd}&lt;!--"));
    }

    #[test]
    fn every_batch_size_has_a_panel() {
        for report in
            [predicted(&[(1, 64), (8, 64), (8, 128)]), measured(&[(1, 1)]), measured(&[(3, 17), (3, 1 << 18)])]
        {
            let document = svg(&report).unwrap();
            check_picture(&document);
            for case in &report.cases {
                assert!(document.contains(&format!("batch {}", case.batch)), "{}", case.name());
            }
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        let refuses = |report: &complexity::Report, part: &str| {
            let error = svg(report).unwrap_err();
            assert!(matches!(error, Error::Mismatch { operation: "plot", .. }), "{error:?}");
            assert!(error.to_string().contains(part), "{error}");
        };
        refuses(&predicted(&[]), "number of cases");
        refuses(&predicted(&[(1, 64), (1, 64)]), "1 × 64");
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            let mut report = predicted(&[(1, 64)]);
            report.cases[0].predicted.attention_us = bad;
            refuses(&report, "time");
            let mut report = measured(&[(1, 64)]);
            report.cases[0].measured.as_mut().unwrap().rows[4].saf_over_this.as_mut().unwrap().high = bad;
            refuses(&report, "ratio");
        }
        let mut report = predicted(&[(1, 64)]);
        report.cases[0].seq_len = 0;
        refuses(&report, "seq_len");
    }
}
