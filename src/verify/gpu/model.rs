//! Whole models against the oracle.

use std::sync::Arc;

use super::{ACTIVATIONS, DTYPES, random, worse};
use crate::config::{BatchShape, Design, EncoderConfig, HiddenAct, LayerConfig, Rotary, Schedule};
use crate::cpu::oracle::{self, Rounding};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::{Device, Encoder, EncoderWeights, Model, ModelWorkspace, Pooling, Stream};
use crate::verify::{Case, Comparison, Layout, compare};
use crate::weights::{
    Dense, Embeddings, Head, LayerWeights, ModelWeights, NormWeights, PositionEmbeddings, Transform, random_layers,
};

/// A model of random weights, with what its kind has around its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// All three tables, their norm, a pooler, a transform before a tied decoder with a bias.
    Bert,
    /// The same without a pooler, with RoBERTa's positions and a decoder of its own.
    Roberta,
    /// Words alone, a final norm, a decoder of its own without a bias.
    Decoder,
    /// Words alone, a final norm, a tied decoder without a bias whose logits are scaled; layers with a gate. Command-R.
    Scaled,
    /// Words alone, a final norm, and no head.
    Headless,
}

const PADDING: u32 = 1;

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::Decoder => "decoder",
            Self::Scaled => "scaled",
            Self::Headless => "headless",
        }
    }

    fn weights(self, dtype: Dtype, h: usize, vocab_size: usize, act: HiddenAct) -> ModelWeights {
        let table = |rows, seed| random(dtype, rows, h, seed);
        let around = |mean: f32, seed| -> Vec<f32> {
            random(dtype, 1, h, seed).iter().map(|x| dtype.round(mean + 0.2 * x)).collect()
        };
        let norm = |seed| NormWeights { gamma: around(1.0, seed), beta: around(0.0, seed + 1) };
        let scaled =
            |rows, seed| -> Vec<f32> { table(rows, seed).iter().map(|w| dtype.round(w / (h as f32).sqrt())).collect() };
        let dense = |seed| Dense { weight: scaled(h, seed), bias: around(0.0, seed + 1) };
        let post_norm = matches!(self, Self::Bert | Self::Roberta);
        let padding_idx = (self == Self::Roberta).then_some(PADDING);
        let transform = post_norm.then(|| Transform { dense: dense(40), act, norm: norm(42) });
        ModelWeights {
            embeddings: Embeddings {
                word: table(vocab_size, 21),
                position: post_norm.then(|| PositionEmbeddings { table: table(140, 22), padding_idx }),
                rotary_positions: None,
                token_type: post_norm.then(|| table(2, 23)),
                norm: post_norm.then(|| norm(24)),
            },
            final_norm: (!post_norm).then(|| norm(26)),
            pooler: (self == Self::Bert).then(|| dense(28)),
            head: (self != Self::Headless).then(|| Head {
                transform,
                decoder: (!matches!(self, Self::Bert | Self::Scaled)).then(|| scaled(vocab_size, 44)),
                bias: post_norm.then(|| random(dtype, 1, vocab_size, 45)),
                scale: if self == Self::Scaled { 0.0625 } else { 1.0 },
            }),
        }
    }
}

/// Every design, with what models of its kind have; vocabularies that are no multiple of 8, and one that is; each layout in turn.
pub(super) fn cases(device: &Device) -> Vec<Case> {
    let layouts = [
        Layout::Full(1, 1),
        Layout::Full(2, 70),
        Layout::Padded(67, vec![66, 0, 31]),
        Layout::Packed(vec![0, 65, 1, 0, 130]),
    ];
    let kinds = [
        (Kind::Bert, Design::SafPostNorm),
        (Kind::Bert, Design::PafPostNorm),
        (Kind::Roberta, Design::SafPostNorm),
        (Kind::Roberta, Design::PafPostNorm),
        (Kind::Decoder, Design::SafPreNorm),
        (Kind::Decoder, Design::PafPreNorm),
        (Kind::Decoder, Design::PafPreNormTwo),
        (Kind::Headless, Design::PafPreNorm),
        (Kind::Scaled, Design::PafPreNorm),
    ];
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for (i, (kind, design)) in kinds.into_iter().enumerate() {
            for (j, layout) in layouts.iter().enumerate() {
                let schedules: Vec<_> = Schedule::ALL.into_iter().filter(|s| s.check(design).is_ok()).collect();
                let schedule = schedules[(i + j) % schedules.len()];
                let vocab_size = [37, 1001, 64, 259][(i + j) % 4];
                let name = format!("model {dtype} {} {design} {schedule} vocab {vocab_size} {layout}", kind.name());
                let (device, layout) = (device.clone(), layout.clone());
                cases.push(Case::new(name, move || {
                    let causal = matches!(kind, Kind::Decoder | Kind::Scaled | Kind::Headless);
                    let rotary = causal.then_some(Rotary { dim: 16, base: 1e4, interleaved: kind == Kind::Scaled });
                    let base = LayerConfig::new(96, 3, 136)?;
                    let gated = kind == Kind::Scaled;
                    let hidden_act = if gated { HiddenAct::Silu } else { base.hidden_act };
                    let layer = LayerConfig { design, causal, rotary, gated, hidden_act, ..base };
                    let act = ACTIVATIONS[(i + j) % 3];
                    let config = EncoderConfig { layer, num_hidden_layers: 2 };
                    let layers: Vec<_> = random_layers(&config, 7).map(|layer| layer.rounded(dtype)).collect();
                    let uploaded = Arc::new(EncoderWeights::upload(&device, &config, dtype, &layers)?);
                    let weights = kind.weights(dtype, 96, vocab_size, act);
                    let model = Model::new(Encoder::new(&config, uploaded)?, &weights)?;
                    check(&model, &layers, &weights, schedule, &layout.shape()?)
                }));
            }
        }
    }
    cases
}

/// Everything that a model gives for a batch of random ids, against the oracle; the worst of it. `layers` and `weights` are as the
/// device holds them: rounded.
///
/// # Errors
/// [`Error::Verification`] if a result is out of bounds; whatever running it gives.
pub fn check(
    model: &Model,
    layers: &[LayerWeights],
    weights: &ModelWeights,
    schedule: Schedule,
    shape: &BatchShape,
) -> Result<Comparison> {
    let h = model.hidden_size();
    let (ids, types) = tokens(model, shape);
    let types = types.as_deref();
    // More room than the batch takes, of which the rest stays NaN.
    let (rows, sequences) = (shape.rows() + 3, shape.batch() + 2);
    let mut workspace = model.workspace(&Stream::new(model.encoder().device())?, rows, sequences)?;
    workspace.poison()?;
    model.forward(schedule, shape, &ids, types, &mut workspace)?;

    let config = model.encoder().config();
    let hidden =
        |rounding| oracle::hidden_states(config, layers, weights, shape, &ids, types, rounding).map(|y| (y, rounding));
    let dtype = model.encoder().dtype();
    let references = References { hidden: [hidden(Rounding::Exact)?, hidden(Rounding::To(dtype))?], dtype };
    let mut worst = references.compare(&workspace.hidden()?, h, |hidden, _| Ok(hidden.to_vec()))?;
    for pooling in [Pooling::Mean, Pooling::Cls] {
        let got = model.pool(pooling, &mut workspace)?;
        let pool = |hidden: &[f64], rounding| oracle::pool(pooling, shape, hidden, h, rounding);
        worst = worse(worst, references.compare(&got, h, pool)?);
    }
    worst = worse(worst, head(model, weights, shape, &mut workspace, &references)?);
    if weights.pooler.is_some() {
        let got = model.pooler(&mut workspace)?;
        let pooler = |hidden: &[f64], rounding| {
            let first = oracle::pool(Pooling::Cls, shape, hidden, h, Rounding::Exact)?;
            oracle::pooler(config, weights, &first, rounding)
        };
        worst = worse(worst, references.compare(&got, h, pooler)?);
    } else {
        refused(model.pooler(&mut workspace), "pooler")?;
    }
    Ok(worst)
}

/// Hidden states of the oracle, and of the naive implementation.
struct References {
    hidden: [(Vec<f64>, Rounding); 2],
    dtype: Dtype,
}

impl References {
    /// Compares `got` with what `of` makes of both.
    fn compare(
        &self,
        got: &[f32],
        width: usize,
        of: impl Fn(&[f64], Rounding) -> Result<Vec<f64>>,
    ) -> Result<Comparison> {
        let [exact, naive] = self.hidden.each_ref().map(|(hidden, rounding)| of(hidden, *rounding));
        compare(got, &exact?, &naive?, self.dtype.epsilon(), width)
    }
}

/// Logits of more rows than are computed at a time, some of them twice, in no order; or that there are none.
fn head(
    model: &Model,
    weights: &ModelWeights,
    shape: &BatchShape,
    workspace: &mut ModelWorkspace,
    references: &References,
) -> Result<Comparison> {
    let (h, config) = (model.hidden_size(), model.encoder().config());
    // Padding is zeros, of which a head would make something too; no one asks for it.
    let valid: Vec<_> =
        (0..shape.batch()).flat_map(|i| shape.first_row(i)..shape.first_row(i) + shape.length(i)).collect();
    let rows: Vec<_> = (0..71).map(|i| valid[i * 13 % valid.len()]).collect();
    let got = model.logits(&rows, workspace);
    if weights.head.is_none() {
        refused(got, "head")?;
        return references.compare(&workspace.hidden()?, h, |hidden, _| Ok(hidden.to_vec()));
    }
    let logits = |got: &[f32], rows: &[usize]| {
        references.compare(got, model.vocab_size(), |hidden, rounding| {
            let states: Vec<f64> = rows.iter().flat_map(|row| &hidden[row * h..][..h]).copied().collect();
            oracle::logits(config, weights, &states, rounding)
        })
    };
    let alone = model.logits(&rows[1..2], workspace)?;
    Ok(worse(logits(&got?, &rows)?, logits(&alone, &rows[1..2])?))
}

fn refused(result: Result<Vec<f32>>, part: &str) -> Result<()> {
    match result {
        Err(Error::Unsupported { what, .. }) if what.contains(part) => Ok(()),
        other => Err(Error::Verification(format!("expected that no {part} is supported, got {other:?}"))),
    }
}

/// Random ids and types; what no table has where padding. RoBERTa's padding is among the ids.
fn tokens(model: &Model, shape: &BatchShape) -> (Vec<u32>, Option<Vec<u32>>) {
    let sizes = model.embedding_sizes();
    let (mut ids, mut types) = (vec![u32::MAX; shape.rows()], vec![u32::MAX; shape.rows()]);
    for i in 0..shape.batch() {
        for row in shape.first_row(i)..shape.first_row(i) + shape.length(i) {
            ids[row] = ((row * 7919 + i) % sizes.vocab_size) as u32;
            types[row] = (row % 3) as u32 % sizes.type_vocab_size.map_or(1, |size| size as u32);
        }
    }
    if let Some(padding) = sizes.padding_idx.filter(|_| shape.length(0) > 4) {
        ids[shape.first_row(0) + 4] = padding;
    }
    (ids, sizes.type_vocab_size.map(|_| types))
}
