//! Whole models: what they refuse, that workspaces can be used again, and checkpoints of every family from their folders on.

use paf_cuda::gpu::{Model, ModelWorkspace, Pooling};
use paf_cuda::weights::{Embeddings, Head, ModelWeights, NormWeights, PositionEmbeddings};

use super::*;

pub fn trials(device: &Device, trials: &mut Vec<Trial>) {
    let mut add = |name, test, design| trials.push(together(device, name, test, design));
    for design in [Design::PafPostNorm, Design::PafPreNormTwo] {
        add(format!("model {design}: batches one after the other are those alone, disturbed"), again, design);
    }
    add("model: what does not fit is refused, and nothing is left".into(), refused, Design::PafPostNorm);
    #[cfg(feature = "checkpoint")]
    checkpoints::trials(device, trials);
}

const HIDDEN: usize = 128;
const VOCAB: usize = 53;

/// A model of the layers of [`Fixture`]'s dimensions, with positions for 90 tokens.
pub fn model(device: &Device, design: Design) -> Result<Model, Error> {
    let layer = LayerConfig { design, ..LayerConfig::new(HIDDEN, 2, 512)? };
    let config = EncoderConfig { layer, num_hidden_layers: 3 };
    let weights = Arc::new(EncoderWeights::upload(device, &config, Dtype::Bf16, random_layers(&config, 3))?);
    let table = |rows, seed| random_activations(rows, HIDDEN, seed);
    let norm = NormWeights { gamma: table(1, 5), beta: table(1, 6) };
    let weights_around = ModelWeights {
        embeddings: Embeddings {
            word: table(VOCAB, 1),
            position: Some(PositionEmbeddings { table: table(90, 2), padding_idx: None }),
            rotary_positions: None,
            token_type: Some(table(2, 3)),
            norm: Some(norm.clone()),
        },
        final_norm: Some(norm),
        pooler: None,
        head: Some(Head { transform: None, decoder: None, bias: Some(random_activations(1, VOCAB, 7)), scale: 1.0 }),
    };
    Model::new(Encoder::new(&config, weights)?, &weights_around)
}

pub fn ids(shape: &BatchShape) -> Vec<u32> {
    (0..shape.rows()).map(|row| (row * 17 % VOCAB) as u32).collect()
}

/// Everything that a batch gives, with a workspace of its own or one that others have used.
fn results(model: &Model, shape: &BatchShape, workspace: &mut ModelWorkspace) -> Result<[Vec<f32>; 4], Error> {
    let schedule = Schedule::TwoStream;
    model.forward(schedule, shape, &ids(shape), None, workspace)?;
    let rows = [shape.rows() - 1, 0];
    Ok([
        model.pool(Pooling::Mean, workspace)?,
        model.logits(&rows, workspace)?,
        workspace.hidden()?,
        model.pool(Pooling::Cls, workspace)?,
    ])
}

fn again(device: &Device, design: Design) -> Outcome {
    let model = model(device, design)?;
    let shapes = [
        BatchShape::packed(vec![70, 0, 3])?,
        BatchShape::new(2, 9)?,
        BatchShape::new(3, 30)?.with_lengths(vec![30, 0, 11])?,
        BatchShape::packed(vec![1])?,
        BatchShape::new(1, 90)?,
        BatchShape::packed(vec![0, 65, 1, 24])?,
    ];
    let alone = |shape: &BatchShape| -> Result<_, Error> {
        let mut workspace = model.workspace(&Stream::new(device)?, shape.rows(), shape.batch())?;
        workspace.poison()?;
        results(&model, shape, &mut workspace)
    };
    let expected = shapes.iter().map(alone).collect::<Result<Vec<_>, _>>()?;
    let mut workspace = model.workspace(&Stream::new(device)?, 90, 4)?;
    workspace.poison()?;
    let late = Duration::from_micros(60);
    for repeat in 0..12 {
        let branch = if repeat % 2 == 0 { Branch::Attention } else { Branch::Ffn };
        workspace.hold_back(branch, if repeat % 3 == 0 { Duration::ZERO } else { late });
        for (i, (shape, expected)) in shapes.iter().zip(&expected).enumerate() {
            if results(&model, shape, &mut workspace)? != *expected {
                return Err(format!("repeat {repeat}: batch {i} differs from the same alone").into());
            }
            if workspace.shape() != Some(shape) {
                return Err(format!("the workspace holds {:?}", workspace.shape()).into());
            }
        }
    }
    Ok(())
}

fn refused(device: &Device, design: Design) -> Outcome {
    let model = model(device, design)?;
    let stream = Stream::new(device)?;
    let mut workspace = model.workspace(&stream, 32, 2)?;
    // As everywhere in these tests; and initcheck does not see what bulk copies write to memory that nothing else has written.
    workspace.poison()?;
    let serial = Schedule::Serial;
    let two = BatchShape::packed(vec![3, 2])?;
    expect(&["without hidden states"], model.logits(&[0], &mut workspace).map(drop))?;
    expect(&["without hidden states"], model.pool(Pooling::Mean, &mut workspace).map(drop))?;
    expect(&["without hidden states"], workspace.hidden().map(drop))?;
    expect(&["53 (sequence 1)", "less than 53"], model.forward(serial, &two, &[0, 1, 2, 53, 0], None, &mut workspace))?;
    expect(&["4 elements", "5, one a row"], model.forward(serial, &two, &[0; 4], None, &mut workspace))?;
    expect(&["token type is 2"], model.forward(serial, &two, &[0; 5], Some(&[0, 1, 0, 2, 0]), &mut workspace))?;
    let long = BatchShape::new(1, 91)?;
    expect(&["length is 91", "at most 90"], model.forward(serial, &long, &[0; 91], None, &mut workspace))?;
    let many = BatchShape::new(3, 1)?;
    expect(&["2 sequences", "at least 3 rows and 3"], model.forward(serial, &many, &[0; 3], None, &mut workspace))?;
    let large = BatchShape::new(1, 33)?;
    expect(&["32 rows", "at least 33"], model.forward(serial, &large, &[0; 33], None, &mut workspace))?;
    expect(&["rows = 0"], model.workspace(&stream, 0, 1).map(drop))?;
    expect(&["sequences = 1048577"], model.workspace(&stream, 1, (1 << 20) + 1).map(drop))?;
    let other = Device::new(device.info().ordinal)?;
    expect(&["device of the stream"], model.workspace(&Stream::new(&other)?, 8, 1).map(drop))?;
    // A design or schedule that cannot be leaves no hidden states, either.
    model.forward(serial, &two, &[0; 5], None, &mut workspace)?;
    expect(&["row is 5", "less than 5"], model.logits(&[4, 5], &mut workspace).map(drop))?;
    expect(&["pooler"], model.pooler(&mut workspace).map(drop))?;
    let narrow = LayerConfig { design, ..LayerConfig::new(64, 2, 512)? };
    let narrow = EncoderConfig { layer: narrow, num_hidden_layers: 1 };
    let weights = Arc::new(EncoderWeights::upload(device, &narrow, Dtype::Bf16, random_layers(&narrow, 3))?);
    let words = |rows, width| ModelWeights {
        embeddings: Embeddings {
            word: random_activations(rows, width, 1),
            position: None,
            rotary_positions: None,
            token_type: None,
            norm: None,
        },
        final_norm: None,
        pooler: None,
        head: None,
    };
    let narrow = Encoder::new(&narrow, weights)?;
    expect(&["word embeddings is 130 elements", "hidden_size = 64"], Model::new(narrow, &words(1, 130)).map(drop))?;
    let saf = EncoderConfig {
        layer: LayerConfig { design: Design::SafPostNorm, ..LayerConfig::new(64, 2, 512)? },
        num_hidden_layers: 1,
    };
    let weights = Arc::new(EncoderWeights::upload(device, &saf, Dtype::Bf16, random_layers(&saf, 3))?);
    let narrow = Model::new(Encoder::new(&saf, weights)?, &words(7, 64))?;
    expect(&["workspace", "hidden_size: 64"], narrow.forward(serial, &two, &[0; 5], None, &mut workspace))?;
    let mut own = narrow.workspace(&stream, 8, 2)?;
    own.poison()?;
    expect(&["two-stream", "saf-post"], narrow.forward(Schedule::TwoStream, &two, &[0; 5], None, &mut own))?;
    expect(&["without hidden states"], own.hidden().map(drop))?;
    // And what the first one holds is still there.
    let shape = workspace.shape().cloned();
    if shape != Some(two) || !workspace.hidden()?.iter().all(|x| x.is_finite()) {
        return Err(format!("the workspace holds {shape:?}").into());
    }
    Ok(())
}

#[cfg(feature = "checkpoint")]
#[path = "../common/enlarge.rs"]
mod enlarge;

#[cfg(feature = "checkpoint")]
mod checkpoints {
    use std::path::Path;

    use paf_cuda::checkpoint::Checkpoint;
    use paf_cuda::weights::LayerWeights;

    use super::*;

    pub fn trials(device: &Device, trials: &mut Vec<Trial>) {
        let folders = match enlarge::folders() {
            Ok(folders) => folders,
            Err(error) => {
                trials.push(Trial::test("checkpoints: the folders are there", move || Err(error.to_string().into())));
                return;
            }
        };
        for folder in folders {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for dtype in [Dtype::Bf16, Dtype::F16] {
                let (device, folder) = (device.clone(), folder.clone());
                let name =
                    format!("checkpoint {name} {dtype}, enlarged: from its folder to logits, as the oracle has it");
                trials.push(Trial::test(name, move || {
                    let _together = ALONE.read().unwrap_or_else(PoisonError::into_inner);
                    enlarged(&device, &folder, dtype)
                }));
            }
            let device = device.clone();
            trials.push(Trial::test(format!("checkpoint {name}: heads without a kernel are refused"), move || {
                let _together = ALONE.read().unwrap_or_else(PoisonError::into_inner);
                match Model::from_pretrained(&device, &folder, Dtype::Bf16) {
                    Err(Error::Unsupported { what, .. }) if what.contains("head_dim") => Ok(()),
                    other => Err(format!("expected that the head is refused, got {other:?}").into()),
                }
            }));
        }
    }

    fn enlarged(device: &Device, folder: &Path, dtype: Dtype) -> Outcome {
        let large = tempfile::tempdir()?;
        enlarge::enlarge(folder, large.path())?;
        check(device, large.path(), dtype, false)?;
        // BERT's and RoBERTa's weights are for two designs.
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if name.contains("bert") { check(device, large.path(), dtype, true) } else { Ok(()) }
    }

    fn check(device: &Device, folder: &Path, dtype: Dtype, as_paf: bool) -> Outcome {
        let mut checkpoint = Checkpoint::open(folder)?;
        let model = if as_paf {
            checkpoint = checkpoint.with_design(Design::PafPostNorm)?;
            Model::from_checkpoint(device, &checkpoint, dtype)?
        } else {
            Model::from_pretrained(device, folder, dtype)?
        };
        // What the device should hold, by way of the host.
        let layers: Vec<LayerWeights> = checkpoint.layers().map(|layer| layer.rounded(dtype)).collect();
        let weights = checkpoint.model_weights().rounded(dtype);
        let design = checkpoint.config().layer.design;
        for schedule in Schedule::ALL.into_iter().filter(|schedule| schedule.check(design).is_ok()) {
            for shape in [BatchShape::packed(vec![7, 1, 0, 13])?, BatchShape::new(3, 15)?.with_lengths(vec![15, 0, 4])?]
            {
                let checked = verify::gpu::whole_model(&model, &layers, &weights, schedule, &shape);
                checked.map_err(|error| format!("{design} {schedule}, packed: {}: {error}", shape.is_packed()))?;
            }
        }
        let own = Encoder::from_pretrained(device, folder, dtype)?;
        let same = (own.config().num_hidden_layers, own.dtype()) == (layers.len(), dtype);
        if same { Ok(()) } else { Err(format!("{:?} in {}", own.config(), own.dtype()).into()) }
    }
}
