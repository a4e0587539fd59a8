use super::predict::of_layer;
use super::report::rows;
use super::work::{Block, Layer};
use super::*;
use crate::config::{BatchShape, Design, LayerConfig, MODELS, Rotary, preset};
use crate::dtype::Dtype;
use crate::measure::devices::{self, Description};
use crate::measure::speedup::Weights;

/// A device on which numbers are easy: 1 FLOP takes 1 µs, 1 byte 1 µs, a kernel 1000.
fn easy() -> Description {
    Description {
        flops_per_s: 1e6,
        bytes_per_s: 1e6,
        l2_bytes: 1,
        kernel_us: 1000.0,
        ..devices::known("a100").unwrap()
    }
}

fn tiny(design: Design) -> LayerConfig {
    LayerConfig { design, ..LayerConfig::new(2, 1, 3).unwrap() }
}

#[test]
fn a_small_layer_is_as_counted_by_hand() {
    // Two sequences of 5 tokens, hidden_size 2, FFN 3, two bytes an element.
    let of = Layer::new(&tiny(Design::PafPostNorm), &BatchShape::new(2, 5).unwrap(), 2);
    let attention = Block::of(of.attention_block());
    // QKV 10 × 6 × 2, scores and their sums of values 2 · 5² pairs × 2 wide each, Wo 10 × 2 × 2.
    assert_eq!(attention.flops, 2.0 * (120.0 + 100.0 + 100.0 + 40.0));
    // (6 × 2 + 6) + (2 × 2 + 2) + γ and β.
    assert_eq!(attention.weight_bytes, 2.0 * (18.0 + 6.0 + 4.0));
    // x, QKV, context, and x and Attn(x) again; QKV, context, Attn(x), a.
    assert_eq!(attention.read_bytes, 2.0 * 10.0 * (2.0 + 6.0 + 2.0 + 2.0 * 2.0));
    assert_eq!(attention.written_bytes, 2.0 * 10.0 * (6.0 + 2.0 + 2.0 + 2.0));
    assert_eq!(attention.bytes(), 56.0 + 280.0 + 240.0);
    assert_eq!(attention.flops_per_byte, 720.0 / 576.0);
    let ffn = Block::of(of.ffn_block());
    assert_eq!(ffn.flops, 2.0 * 2.0 * 10.0 * 6.0);
    assert_eq!(ffn.weight_bytes, 2.0 * ((6.0 + 3.0) + (6.0 + 2.0) + 4.0));
    assert_eq!(ffn.read_bytes, 2.0 * 10.0 * (2.0 + 3.0 + 2.0 * 2.0));
    assert_eq!(ffn.written_bytes, 2.0 * 10.0 * (3.0 + 2.0 + 2.0));
}

#[test]
fn a_small_prediction_is_as_computed_by_hand() {
    let of = Layer::new(&tiny(Design::PafPostNorm), &BatchShape::new(1, 1).unwrap(), 2);
    // FLOPs and bytes, each µs: QKV 24, 36 + 4 + 12; attention 8, 12 + 4; Wo 8, 12 + 4 + 4; a join of two 0, 8 + 8 + 4.
    // W1 12, 18 + 4 + 6; W2 12, 16 + 6 + 4.
    let predicted = of_layer(&of, &easy());
    let attention = 52.0 + 16.0 + 20.0;
    let ffn = 28.0 + 26.0;
    assert_eq!(predicted.attention_us, attention + 20.0 + 4000.0);
    assert_eq!(predicted.ffn_us, ffn + 20.0 + 3000.0);
    assert_eq!((predicted.saf_kernels, predicted.saf_work_us), (7, attention + ffn + 40.0));
    assert_eq!(predicted.saf_us, attention + ffn + 40.0 + 7000.0);
    assert_eq!((predicted.paf_flops_us, predicted.paf_bytes_us), (64.0, attention + ffn));
    assert_eq!((predicted.paf_attention_us, predicted.paf_ffn_us), (attention + 3000.0, ffn + 2000.0));
    // A join of three: 8 + 12 + 4.
    assert_eq!((predicted.paf_bound, predicted.paf_kernels, predicted.paf_join_us), (Bound::Attention, 4, 1024.0));
    assert_eq!(predicted.paf_us, attention + 4024.0);
    assert_eq!(predicted.saf_over_paf, (attention + ffn + 7040.0) / (attention + 4024.0));
    assert_eq!(predicted.saf_over_paf_apart, (predicted.attention_us + predicted.ffn_us) / predicted.attention_us);

    // Without waits the bytes of both are the bound; with little bandwidth for them even more; with few FLOP/s those are.
    let bound = |device: Description| of_layer(&of, &device).paf_bound;
    assert_eq!(bound(Description { kernel_us: 1e-9, ..easy() }), Bound::Bytes);
    assert_eq!(bound(Description { kernel_us: 1e-9, flops_per_s: 1e3, ..easy() }), Bound::Flops);
    // Activations that the cache holds do not go through memory: weights remain, 36 + 12 + 18 + 16.
    let cached = of_layer(&of, &Description { l2_bytes: 1 << 20, ..easy() });
    assert_eq!(cached.paf_bytes_us, 82.0);
}

#[test]
fn every_layer_has_the_work_that_its_configuration_says() {
    let shapes = [
        BatchShape::new(1, 1).unwrap(),
        BatchShape::new(3, 70).unwrap(),
        BatchShape::new(3, 70).unwrap().with_lengths(vec![70, 0, 9]).unwrap(),
        BatchShape::packed(vec![5, 0, 130, 1]).unwrap(),
    ];
    let mut layers: Vec<_> = MODELS.iter().map(|name| preset(name).unwrap().config.layer).collect();
    layers.extend(Design::ALL.map(|design| LayerConfig {
        num_key_value_heads: 2,
        gated: true,
        causal: true,
        rotary: Some(Rotary { dim: 8, base: 1e4, interleaved: true }),
        design,
        ..LayerConfig::new(64, 4, 200).unwrap()
    }));
    for layer in layers {
        let layer = layer.with_design(layer.design.parallel());
        for shape in &shapes {
            let of = Layer::new(&layer, shape, 2);
            let lengths: Vec<usize> = (0..shape.batch()).map(|i| shape.length(i)).collect();
            let parallel = Block::of(of.attention.iter().chain(&of.ffn).chain([&of.parallel_join]));
            let serial = Block::of(of.attention_block().chain(of.ffn_block()));
            for (block, design) in [(parallel, layer.design), (serial, layer.design.serial())] {
                let flops = layer.flops(&lengths);
                assert!((block.flops - flops).abs() <= 1e-12 * flops, "{design}: {} is not {flops}", block.flops);
                let parameters = layer.with_design(design).parameters();
                assert_eq!(block.weight_bytes, (2 * parameters) as f64, "{design}");
            }
            // What the parallel design saves is one join.
            assert!(parallel.bytes() < serial.bytes());
        }
    }
}

#[test]
fn the_crossover_is_where_both_take_as_many_flops() {
    // 2d for plain layers with an FFN of 4d.
    let roberta = preset("roberta-large").unwrap().config.layer;
    assert_eq!(crossover_seq_len(&roberta), Some(2048.0));
    for name in MODELS {
        let layer = preset(name).unwrap().config.layer;
        let crossover = crossover_seq_len(&layer).unwrap();
        let more = |seq_len: f64| {
            let of = Layer::new(&layer, &BatchShape::new(1, seq_len as usize).unwrap(), 2);
            Block::of(&of.attention).flops > Block::of(&of.ffn).flops
        };
        assert!(!more(crossover.floor()) && more(crossover.floor() + 1.0), "{name}: {crossover}");
    }
    let narrow = LayerConfig::new(64, 4, 64).unwrap();
    assert_eq!(crossover_seq_len(&narrow), None);
}

#[test]
fn predictions_belong_together() {
    for device in devices::names().map(|name| devices::known(name).unwrap()) {
        for name in MODELS {
            let layer = preset(name).unwrap().config.layer;
            let layer = layer.with_design(layer.design.parallel());
            for seq_len in [1, 64, 512, 8192] {
                let shape = BatchShape::new(2, seq_len).unwrap();
                let of = of_layer(&Layer::new(&layer, &shape, Dtype::BYTES), &device);
                let what = format!("{name} 2 × {seq_len} on {}: {of:?}", device.name);
                assert!((of.saf_us - of.attention_us - of.ffn_us).abs() <= 1e-9 * of.saf_us, "{what}");
                assert!((1.0..=3.0).contains(&of.saf_over_paf), "{what}");
                assert!((1.0..=2.0).contains(&of.saf_over_paf_apart), "{what}");
                let floor = of.paf_flops_us.max(of.paf_bytes_us);
                assert!(of.paf_us >= floor + device.kernel_us, "{what}");
            }
        }
    }
}

fn experiment(shapes: Vec<BatchShape>) -> Experiment {
    let config = preset("roberta-large").unwrap().config;
    let config = config.with_design(config.layer.design.parallel());
    let model = Some("roberta-large".to_owned());
    Experiment { model, config, rotary_left_out: false, weights: Weights::Random, dtype: Dtype::Bf16, shapes }
}

/// As if it had been measured: the blocks take 3 and 4 µs, SAF 7, two streams 5, the planner's choice 3.5; the last round is slow.
fn measured() -> Report {
    let shapes = [128, 512, 4096].map(|seq_len| BatchShape::new(1, seq_len).unwrap()).to_vec();
    let mut report = experiment(shapes).predict(&devices::known("h200").unwrap()).unwrap();
    report.run.machine.device = Some("some GPU".into());
    let times = [
        (Subject::Attention, 3.0),
        (Subject::Ffn, 4.0),
        (Subject::Saf, 7.0),
        (Subject::TwoStream, 5.0),
        (Subject::Auto, 3.5),
    ];
    let samples =
        times.map(|(_, us)| [us; 7].iter().enumerate().map(|(i, us)| us * if i == 6 { 9.0 } else { 1.0 }).collect());
    let subjects = times.map(|(subject, _)| (subject, "serial".to_owned())).to_vec();
    for case in &mut report.cases {
        let rows = rows(subjects.clone(), samples.to_vec()).unwrap();
        case.measured = Some(Measured { verified: Vec::new(), state_before: None, state_after: None, rows });
    }
    report
}

#[test]
fn the_overlap_fraction_is_what_the_shorter_block_saves() {
    let report = measured();
    let of = |subject| report.cases[0].measured.as_ref().unwrap().row(subject).unwrap().clone();
    let (two, auto) = (of(Subject::TwoStream), of(Subject::Auto));
    // (3 + 4 − 5) / 3 and (3 + 4 − 3.5) / 3, in the slow round as well.
    let ends = |spread: crate::measure::report::Spread| (spread.low, spread.median, spread.high);
    assert_eq!(ends(two.overlap.unwrap()), (2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0));
    assert_eq!(ends(auto.overlap.unwrap()), (3.5 / 3.0, 3.5 / 3.0, 3.5 / 3.0));
    assert_eq!((two.saf_over_this.unwrap().median, auto.saf_over_this.unwrap().median), (1.4, 2.0));
    assert_eq!(of(Subject::Saf).saf_over_this.unwrap().median, 1.0);
    assert!(of(Subject::Attention).saf_over_this.is_none() && of(Subject::Saf).overlap.is_none());
    assert!(rows(vec![(Subject::Saf, String::new())], vec![vec![f64::NAN]]).is_err());
    let error = report.cases[0].ratio_error(&auto).unwrap();
    assert_eq!(error, report.cases[0].predicted.saf_over_paf / 2.0 - 1.0);
}

#[test]
fn tables_say_what_is_predicted_and_what_was_measured() {
    let report = measured();
    let markdown = report.markdown();
    let again: Report = serde_json::from_str(&report.json()).unwrap();
    assert_eq!((again.markdown(), again.cases.len()), (markdown.clone(), 3));
    for part in [
        "beyond seq_len 2048",
        "*predicted*",
        "Measured on some GPU",
        "| 1 × 4096 |",
        "PAF two-stream",
        "0.67 ± 0.00",
        "off by",
    ] {
        assert!(markdown.contains(part), "{part:?} is missing in: {markdown}");
    }
    let ratio = report.cases[0].predicted.saf_over_paf;
    assert!(markdown.contains(&format!("{ratio:.3}, {:+.1} %", (ratio / 2.0 - 1.0) * 100.0)), "{markdown}");
    // Three tables of three shapes, the last with two rows each, and under them the terms, and two lines of errors.
    assert_eq!(markdown.lines().filter(|line| line.starts_with("| 1 × ")).count(), 3 + 3 + 6);
    assert_eq!(markdown.lines().filter(|line| line.starts_with("- ")).count(), report.terms().len() + 2);

    let mut noisy = report.clone();
    let medians = noisy.cases.iter_mut().flat_map(|case| &mut case.measured.as_mut().unwrap().rows);
    medians.for_each(|row| row.median_us.high = row.median_us.median);
    assert_eq!((noisy.noise_target, noisy.warnings().len()), (None, 0));
    noisy.noise_target = Some(0.005);
    noisy.cases[1].measured.as_mut().unwrap().rows[4].median_us.high *= 1.1;
    let warnings = noisy.warnings();
    assert!(warnings.len() == 1 && warnings[0].starts_with("1 × 512: noise above ± 0.5 %: PAF auto ±"), "{warnings:?}");
    noisy.run.planted = Some("PAF_PLANT_SLOWDOWN=paf:1.05".into());
    let planted = "times that a test has made longer: PAF_PLANT_SLOWDOWN=paf:1.05".to_owned();
    assert_eq!(noisy.warnings(), [vec![planted], warnings].concat());

    let mut predicted = report.clone();
    predicted.cases.iter_mut().for_each(|case| case.measured = None);
    assert!(!predicted.json().contains("measured\"") && predicted.errors().is_empty());
    predicted.noise_target = Some(0.005);
    assert_eq!(predicted.warnings(), [] as [String; 0]);
    for text in [predicted.markdown(), predicted.table()] {
        assert!(text.contains("redicted for NVIDIA H200") && !text.contains("easured on"), "{text}");
    }
}

#[test]
fn serial_designs_are_refused() {
    let mut experiment = experiment(vec![BatchShape::new(1, 8).unwrap()]);
    experiment.config.layer.design = Design::SafPreNorm;
    let error = experiment.predict(&devices::known("h200").unwrap()).unwrap_err().to_string();
    assert!(error.contains("design = saf-pre"), "{error}");
}
