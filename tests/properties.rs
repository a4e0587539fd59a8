//! What must hold of every layer, whatever its dimensions, weights and lengths: on the oracle and on the f32 engine.

mod common;

use std::sync::Arc;

use common::{check_f32, run, widen};
use paf_cuda::config::Rotary;
use paf_cuda::cpu::oracle::{self, Rounding};
use paf_cuda::cpu::{Encoder, Workspace};
use paf_cuda::verify::compare;
use paf_cuda::weights::{NormWeights, random_activations, random_layers};
use paf_cuda::{BatchShape, Design, Dtype, EncoderConfig, Error, HiddenAct, LayerConfig, Result, Schedule};
use proptest::prelude::*;
use proptest::sample::select;

/// An encoder, a batch and its input, all random.
#[derive(Debug, Clone)]
struct Case {
    config: EncoderConfig,
    shape: BatchShape,
    seed: u64,
}

impl Case {
    fn encoder(&self) -> Encoder {
        let layers = random_layers(&self.config, self.seed).collect();
        Encoder::new(self.config.clone(), Arc::new(layers)).unwrap()
    }

    fn x(&self) -> Vec<f32> {
        random_activations(self.shape.rows(), self.config.layer.hidden_size, self.seed)
    }

    /// What the oracle makes of `x`.
    fn exact(&self, shape: &BatchShape, x: &[f32]) -> Vec<f64> {
        let layers: Vec<_> = random_layers(&self.config, self.seed).collect();
        oracle::encoder(&self.config, &layers, &widen(x), shape, Rounding::Exact).unwrap()
    }

    fn serial(&self, shape: &BatchShape, x: &[f32]) -> Vec<f32> {
        run(&self.encoder(), Schedule::Serial, shape, x).unwrap()
    }

    /// The rows of sequence `i`, as a range of elements.
    fn elements(&self, i: usize) -> std::ops::Range<usize> {
        let (rows, size) = (self.shape.rows_of(i), self.config.layer.hidden_size);
        rows.start * size..rows.end * size
    }
}

fn layers() -> impl Strategy<Value = LayerConfig> {
    // A hidden size of a few elements makes layer norms ill-conditioned: two close values have hardly a variance.
    let dimensions = (8usize..=72, (1usize..=3, 1usize..=3), 1usize..=40, 1usize..=90);
    let rotary = (0.0..1.0, select(&[1e4f32, 50.0]), any::<bool>());
    (
        dimensions,
        (select(&HiddenAct::ALL), any::<bool>()),
        select(&Design::ALL),
        any::<bool>(),
        prop::option::of(rotary),
    )
        .prop_map(
            |(
                (hidden_size, (num_key_value_heads, group), head_dim, intermediate_size),
                (hidden_act, gated),
                design,
                causal,
                rotary,
            )| {
                LayerConfig {
                    hidden_size,
                    num_attention_heads: num_key_value_heads * group,
                    num_key_value_heads,
                    head_dim,
                    intermediate_size,
                    layer_norm_eps: 1e-5,
                    hidden_act,
                    gated,
                    design,
                    causal,
                    rotary: rotary.filter(|_| head_dim > 1).map(|(share, base, interleaved)| {
                        let pairs = 1 + (share * (head_dim / 2) as f64) as usize;
                        Rotary { dim: 2 * pairs, base, interleaved }
                    }),
                }
            },
        )
}

fn shapes() -> impl Strategy<Value = BatchShape> {
    // Mostly short; the long ones span several blocks of queries and of keys.
    let sizes = (1usize..=4, prop_oneof![4 => 1usize..=20, 1 => 60usize..=140], any::<bool>());
    sizes.prop_flat_map(|(batch, seq_len, packed)| {
        prop::collection::vec(0..=seq_len, batch).prop_map(move |mut lengths| {
            if packed {
                lengths[batch / 2] = lengths[batch / 2].max(1); // at least one token
                return BatchShape::packed(lengths).unwrap();
            }
            BatchShape::new(batch, seq_len).unwrap().with_lengths(lengths).unwrap()
        })
    })
}

/// Other lengths, laid out likewise.
fn with_other_lengths(shape: &BatchShape, lengths: Vec<usize>) -> BatchShape {
    if shape.is_packed() {
        return BatchShape::packed(lengths).unwrap();
    }
    BatchShape::new(shape.batch(), shape.seq_len()).unwrap().with_lengths(lengths).unwrap()
}

fn cases() -> impl Strategy<Value = Case> {
    (layers(), 1usize..=2, shapes(), any::<u64>()).prop_map(|(layer, num_hidden_layers, shape, seed)| Case {
        config: EncoderConfig { layer, num_hidden_layers },
        shape,
        seed,
    })
}

/// A matrix of standard normal numbers.
fn normal(rows: usize, cols: usize, seed: u64) -> Vec<f64> {
    widen(&random_activations(rows, cols, seed))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_agrees_with_the_oracle_and_its_schedules_bitwise(case in cases()) {
        let (encoder, x) = (case.encoder(), case.x());
        let y = run(&encoder, Schedule::Serial, &case.shape, &x).unwrap();
        check_f32(&y, &case.exact(&case.shape, &x), &encoder)?;
        match run(&encoder, Schedule::TwoStream, &case.shape, &x) {
            Ok(two_stream) => prop_assert!(y == two_stream),
            Err(error) => prop_assert!(!case.config.layer.design.is_parallel(), "{error}"),
        }
        prop_assert!(run(&encoder, Schedule::Fused, &case.shape, &x).is_err());
    }

    #[test]
    fn padding_may_hold_anything_and_comes_out_zero(
        case in cases(), poison in select(&[f32::NAN, f32::INFINITY, -3e38]),
    ) {
        let x = case.x();
        let mut poisoned = x.clone();
        for i in 0..case.shape.batch() {
            let valid = case.shape.length(i) * case.config.layer.hidden_size;
            poisoned[case.elements(i)][valid..].fill(poison);
        }
        let (y, exact) = (case.serial(&case.shape, &poisoned), case.exact(&case.shape, &poisoned));
        prop_assert_eq!(&y, &case.serial(&case.shape, &x));
        prop_assert_eq!(&exact, &case.exact(&case.shape, &x));
        for i in 0..case.shape.batch() {
            let valid = case.shape.length(i) * case.config.layer.hidden_size;
            prop_assert!(y[case.elements(i)][valid..].iter().all(|&y| y == 0.0));
            prop_assert!(exact[case.elements(i)][valid..].iter().all(|&y| y == 0.0));
        }
    }

    #[test]
    fn sequences_in_another_order_give_the_same_outputs_in_that_order(case in cases(), turn in 1usize..4) {
        let (batch, x) = (case.shape.batch(), case.x());
        // Sequence i of the new batch is sequence `from(i)` of the old one.
        let from = |i: usize| (i + turn) % batch;
        let lengths = (0..batch).map(|i| case.shape.length(from(i))).collect();
        let shape = with_other_lengths(&case.shape, lengths);
        fn reorder<T: Copy>(case: &Case, values: &[T], from: impl Fn(usize) -> usize) -> Vec<T> {
            (0..case.shape.batch()).flat_map(|i| values[case.elements(from(i))].to_vec()).collect()
        }
        let turned = reorder(&case, &x, from);
        // The oracle treats each row alike; in the engine's products a row may fall into another tile.
        let exact = reorder(&case, &case.exact(&case.shape, &x), from);
        prop_assert_eq!(&case.exact(&shape, &turned), &exact);
        check_f32(&case.serial(&shape, &turned), &exact, &case.encoder())?;
    }

    #[test]
    fn a_sequence_alone_gives_what_it_gives_padded_in_a_batch(case in cases()) {
        let x = case.x();
        let (y, exact) = (case.serial(&case.shape, &x), case.exact(&case.shape, &x));
        for i in (0..case.shape.batch()).filter(|&i| case.shape.length(i) > 0) {
            let alone = BatchShape::new(1, case.shape.length(i)).unwrap();
            let valid = alone.rows() * case.config.layer.hidden_size;
            let (x, exact) = (&x[case.elements(i)][..valid], &exact[case.elements(i)][..valid]);
            prop_assert_eq!(&case.exact(&alone, x), exact);
            check_f32(&case.serial(&alone, x), exact, &case.encoder())?;
            check_f32(&y[case.elements(i)][..valid], exact, &case.encoder())?;
        }
    }

    #[test]
    fn later_tokens_change_earlier_outputs_only_where_attention_is_not_causal(case in cases(), split in 0.0..1.0) {
        let (batch, hidden_size) = (case.shape.batch(), case.config.layer.hidden_size);
        let shape = match case.shape.is_packed() {
            true => case.shape.clone(),
            false => BatchShape::new(batch, case.shape.seq_len()).unwrap(),
        };
        let from = |i: usize| (split * shape.length(i) as f64) as usize;
        let (x, other) = (case.x(), random_activations(shape.rows(), hidden_size, !case.seed));
        let mut changed = x.clone();
        for i in 0..batch {
            let later = case.elements(i).start + from(i) * hidden_size..case.elements(i).end;
            changed[later.clone()].copy_from_slice(&other[later]);
        }
        let [y, y_changed] = [&x, &changed].map(|x| case.serial(&shape, x));
        let [exact, exact_changed] = [&x, &changed].map(|x| case.exact(&shape, x));
        for i in 0..batch {
            let earlier = case.elements(i).start..case.elements(i).start + from(i) * hidden_size;
            let equal = exact[earlier.clone()] == exact_changed[earlier.clone()];
            prop_assert_eq!(equal, case.config.layer.causal || from(i) == 0);
            prop_assert!(!case.config.layer.causal || y[earlier.clone()] == y_changed[earlier.clone()]);
        }
    }

    #[test]
    fn packed_sequences_give_what_padded_ones_give(case in cases()) {
        let (shape, size) = (&case.shape, case.config.layer.hidden_size);
        prop_assume!(shape.tokens() > 0);
        let lengths: Vec<_> = (0..shape.batch()).map(|i| shape.length(i)).collect();
        let longest = BatchShape::new(shape.batch(), *lengths.iter().max().unwrap()).unwrap();
        let (padded, packed) = (longest.with_lengths(lengths.clone()).unwrap(), BatchShape::packed(lengths).unwrap());
        // From one layout to the other; what is padding becomes NaN.
        let spread = |x: &[f32]| {
            let mut spread = vec![f32::NAN; padded.rows() * size];
            for i in 0..packed.batch() {
                let rows = packed.rows_of(i);
                spread[padded.first_row(i) * size..][..rows.len() * size]
                    .copy_from_slice(&x[rows.start * size..rows.end * size]);
            }
            spread
        };
        let x = random_activations(packed.rows(), size, case.seed);
        let (dense, exact) = (case.exact(&packed, &x), case.exact(&padded, &spread(&x)));
        for i in 0..packed.batch() {
            let (from, to, len) = (packed.first_row(i) * size, padded.first_row(i) * size, packed.length(i) * size);
            prop_assert_eq!(&dense[from..][..len], &exact[to..][..len]);
        }
        check_f32(&case.serial(&packed, &x), &dense, &case.encoder())?;
    }

    #[test]
    fn attention_stays_between_the_smallest_and_the_largest_value_it_sees(
        layer in layers(), shape in shapes(), seed: u64,
    ) {
        let qkv = normal(shape.rows(), layer.qkv_size(), seed);
        let context = oracle::attention(&qkv, &layer, &shape, Rounding::Exact).unwrap();
        for (row, context) in context.chunks_exact(layer.query_size()).enumerate() {
            let sequence = shape.sequence_of(row);
            let position = row - shape.first_row(sequence);
            let keys = if layer.causal { position + 1 } else { shape.length(sequence) };
            for (column, &got) in context.iter().enumerate().filter(|_| position < shape.length(sequence)) {
                let group = layer.num_attention_heads / layer.num_key_value_heads;
                let shared = column / layer.head_dim / group * layer.head_dim + column % layer.head_dim;
                let in_row = layer.query_size() + layer.key_value_size() + shared;
                let first_value = shape.first_row(sequence) * layer.qkv_size() + in_row;
                let values = || qkv[first_value..].iter().copied().step_by(layer.qkv_size()).take(keys);
                let (min, max) = (values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max));
                prop_assert!(min - 1e-12 <= got && got <= max + 1e-12, "row {}, column {}", row, column);
            }
        }
    }

    #[test]
    fn grouped_heads_are_repeated_heads(case in cases()) {
        let layer = &case.config.layer;
        let group = layer.num_attention_heads / layer.num_key_value_heads;
        let config = LayerConfig { num_key_value_heads: layer.num_attention_heads, ..layer.clone() };
        // Rows of the key and value heads, each as often as query heads share it.
        let repeat = |rows: &[f32], width: usize| {
            let head = layer.head_dim * width;
            let (queries, shared) = rows.split_at(layer.query_size() * width);
            let repeated = shared.chunks_exact(head).flat_map(|head| head.repeat(group));
            queries.iter().copied().chain(repeated).collect::<Vec<f32>>()
        };
        let layers: Vec<_> = random_layers(&case.config, case.seed)
            .map(|weights| {
                let (w_qkv, b_qkv) = (repeat(&weights.w_qkv, layer.hidden_size), repeat(&weights.b_qkv, 1));
                paf_cuda::weights::LayerWeights { w_qkv, b_qkv, ..weights }
            })
            .collect();
        let config = EncoderConfig { layer: config, ..case.config.clone() };
        let x = case.x();
        let exact = oracle::encoder(&config, &layers, &widen(&x), &case.shape, Rounding::Exact).unwrap();
        prop_assert_eq!(&case.exact(&case.shape, &x), &exact);
        check_f32(&case.serial(&case.shape, &x), &exact, &case.encoder())?;
    }

    #[test]
    fn rotation_makes_scores_depend_on_how_far_apart_positions_are(layer in layers(), len in 2usize..60, seed: u64) {
        prop_assume!(layer.rotary.is_some());
        // The same token everywhere: what differs between scores is due to positions.
        let shape = BatchShape::new(1, len).unwrap();
        let mut qkv = normal(1, layer.qkv_size(), seed).repeat(len);
        let before = qkv.clone();
        oracle::rotate(&mut qkv, &layer, &shape, Rounding::Exact).unwrap();
        let row = |row: usize| &qkv[row * layer.qkv_size()..][..layer.qkv_size()];
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
        for head in 0..layer.num_attention_heads {
            let group = layer.num_attention_heads / layer.num_key_value_heads;
            let (query, key) = (head * layer.head_dim, layer.query_size() + head / group * layer.head_dim);
            let score = |i: usize, j: usize| -> f64 {
                let (query, key) = (&row(i)[query..][..layer.head_dim], &row(j)[key..][..layer.head_dim]);
                query.iter().zip(key).map(|(q, k)| q * k).sum()
            };
            for (i, j) in (1..len).flat_map(|i| (1..len).map(move |j| (i, j))) {
                prop_assert!((score(i, j) - score(i - 1, j - 1)).abs() < 1e-10, "head {}, {} and {}", head, i, j);
            }
            // Rotations change no lengths.
            let own = |qkv: &[f64]| norm(&qkv[(len - 1) * layer.qkv_size() + query..][..layer.head_dim]);
            prop_assert!((own(&qkv) - own(&before)).abs() < 1e-10);
        }
        let values = layer.query_size() + layer.key_value_size();
        for (rotated, before) in qkv.chunks_exact(layer.qkv_size()).zip(before.chunks_exact(layer.qkv_size())) {
            prop_assert_eq!(&rotated[values..], &before[values..]);
        }
    }

    #[test]
    fn neighbours_are_halves_in_another_order(layer in layers(), shape in shapes(), seed: u64) {
        let Some(rotary) = layer.rotary else { return Ok(()) };
        let with = |interleaved| LayerConfig { rotary: Some(Rotary { interleaved, ..rotary }), ..layer.clone() };
        // Column `from` of a head of neighbours is column `to` of a head of halves.
        let reorder = |qkv: &[f64]| {
            let mut halves = qkv.to_vec();
            for (to, from) in halves.chunks_exact_mut(layer.head_dim).zip(qkv.chunks_exact(layer.head_dim)) {
                for i in 0..rotary.dim / 2 {
                    (to[i], to[i + rotary.dim / 2]) = (from[2 * i], from[2 * i + 1]);
                }
            }
            halves
        };
        let mut neighbours = normal(shape.rows(), layer.qkv_size(), seed);
        let mut halves = reorder(&neighbours);
        oracle::rotate(&mut neighbours, &with(true), &shape, Rounding::Exact).unwrap();
        oracle::rotate(&mut halves, &with(false), &shape, Rounding::Exact).unwrap();
        prop_assert_eq!(reorder(&neighbours), halves);
    }

    #[test]
    fn layer_norm_centres_scales_and_ignores_shift_and_scale(
        rows in 1usize..5, size in 8usize..100, shift in -50.0..50.0, scale in 0.5..20.0, seed: u64,
    ) {
        let unit = NormWeights { gamma: vec![1.0; size], beta: vec![0.0; size] };
        let norm = |s: &[f64], weights| oracle::norm_join(&[s], size, Some(weights), 1e-12, Rounding::Exact).unwrap();
        let s = normal(rows, size, seed);
        let y = norm(&s, &unit);
        let moved: Vec<_> = s.iter().map(|s| scale * s + shift).collect();
        for (y, moved) in y.iter().zip(norm(&moved, &unit)) {
            prop_assert!((y - moved).abs() < 1e-9, "{} {}", y, moved);
        }
        for row in y.chunks_exact(size) {
            let square_mean = row.iter().map(|y| y * y).sum::<f64>() / size as f64;
            prop_assert!(row.iter().sum::<f64>().abs() < 1e-10 && (square_mean - 1.0).abs() < 1e-9);
        }
        let [gamma, beta] = [!seed, seed / 2].map(|seed| random_activations(1, size, seed));
        let scaled = norm(&s, &NormWeights { gamma: gamma.clone(), beta: beta.clone() });
        for (i, (y, scaled)) in y.iter().zip(scaled).enumerate() {
            let expected = y * f64::from(gamma[i % size]) + f64::from(beta[i % size]);
            prop_assert!((expected - scaled).abs() < 1e-12);
        }
    }

    #[test]
    fn wrong_lengths_are_errors(case in cases(), x_off in -1isize..=1, y_off in -1isize..=1) {
        let layer = &case.config.layer;
        let expected = case.shape.rows() * layer.hidden_size;
        let [x_len, y_len] = [x_off, y_off].map(|off| expected.checked_add_signed(off).unwrap());
        let (encoder, x, mut y) = (case.encoder(), vec![0.0f32; x_len], vec![0.0f32; y_len]);
        let mut workspace: Workspace = encoder.workspace(&case.shape).unwrap();
        let forward = encoder.forward(Schedule::Serial, &case.shape, &x, &mut y, &mut workspace);
        prop_assert_eq!(is_mismatch(forward)?, x_len != expected || y_len != expected);

        let layers: Vec<_> = random_layers(&case.config, case.seed).collect();
        let x = widen(&x);
        let result = oracle::encoder(&case.config, &layers, &x, &case.shape, Rounding::Exact);
        prop_assert_eq!(is_mismatch(result)?, x_len != expected);
        let qkv = vec![0.0; (case.shape.rows() * layer.qkv_size()).checked_add_signed(x_off).unwrap()];
        let result = oracle::attention(&qkv, layer, &case.shape, Rounding::Exact);
        prop_assert_eq!(is_mismatch(result)?, x_off != 0);
        let result = oracle::norm_join(&[&x, &widen(&y)], layer.hidden_size, None, 1e-5, Rounding::Exact);
        prop_assert_eq!(is_mismatch(result)?, x_off != 0 || y_off != 0);

        let (n, k) = (layer.qkv_size(), layer.hidden_size);
        let (weight, bias) = (&layers[0].w_qkv, vec![0.0; n.checked_add_signed(y_off).unwrap()]);
        let linear = |weight, bias| oracle::linear(&x, case.shape.rows(), weight, bias, n, k, Rounding::Exact);
        prop_assert_eq!(is_mismatch(linear(weight, Some(&bias)))?, x_off != 0 || y_off != 0);
        prop_assert_eq!(is_mismatch(linear(weight, None))?, x_off != 0);
        prop_assert!(is_mismatch(linear(&weight[1..], None))?);
    }
}

/// Whether `result` is [`Error::Mismatch`]; any other error is a failure.
fn is_mismatch<T>(result: Result<T>) -> Result<bool> {
    match result {
        Ok(_) => Ok(false),
        Err(Error::Mismatch { .. }) => Ok(true),
        Err(other) => Err(other),
    }
}

/// The bound for 16-bit kernels is wide enough for one that rounds once, at its end, and narrow enough for the errors
/// that a kernel is likely to have.
#[test]
fn the_16_bit_bound_passes_careful_results_and_no_wrong_ones() {
    let shape = BatchShape::new(3, 40).unwrap().with_lengths(vec![40, 33, 9]).unwrap();
    for (dtype, design) in [Dtype::Bf16, Dtype::F16].into_iter().flat_map(|d| Design::ALL.map(|design| (d, design))) {
        let layer = LayerConfig { design, causal: true, ..LayerConfig::new(72, 4, 200).unwrap() };
        let config = EncoderConfig { layer, num_hidden_layers: 2 };
        let layers: Vec<_> = random_layers(&config, 11).map(|weights| weights.rounded(dtype)).collect();
        let x: Vec<f32> = random_activations(shape.rows(), 72, 12).into_iter().map(|x| dtype.round(x)).collect();
        let [exact, naive] = [Rounding::Exact, Rounding::To(dtype)]
            .map(|rounding| oracle::encoder(&config, &layers, &widen(&x), &shape, rounding).unwrap());
        let check = |config: &EncoderConfig, layers: &[_], shape: &BatchShape| {
            let encoder = Encoder::new(config.clone(), Arc::new(layers.to_vec())).unwrap();
            let mut y = run(&encoder, Schedule::Serial, shape, &x).unwrap();
            y.iter_mut().for_each(|y| *y = dtype.round(*y));
            compare(&y, &exact, &naive, dtype.epsilon(), 72)
        };
        check(&config, &layers, &shape).unwrap();

        let fails = |what: &str, result: Result<_>| {
            assert!(matches!(result, Err(Error::Verification(_))), "{what} passed in {dtype}, {design}: {result:?}");
        };
        let edited = |edit: fn(&mut paf_cuda::weights::LayerWeights)| {
            let mut layers = layers.clone();
            edit(&mut layers[1]);
            check(&config, &layers, &shape)
        };
        fails("no bias of the output projection", edited(|w| w.b_o.fill(0.0)));
        fails("no bias of the second FFN product", edited(|w| w.b_2.fill(0.0)));
        fails("one element of W1 wrong", edited(|w| w.w_1[5] += 8.0));
        fails("the two norms exchanged", edited(|w| std::mem::swap(&mut w.ln_1, &mut w.ln_2)));
        let full = EncoderConfig { layer: LayerConfig { causal: false, ..config.layer.clone() }, ..config.clone() };
        fails("no causal mask", check(&full, &layers, &shape));
        for other in Design::ALL.into_iter().filter(|&other| other != design) {
            fails(other.name(), check(&config.with_design(other), &layers, &shape));
        }
        let longer = shape.clone().with_lengths(vec![40, 34, 9]).unwrap();
        fails("a padded row taken for a token", check(&config, &layers, &longer));
    }
}
