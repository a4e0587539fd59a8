//! Options that several commands have: what the layers are, what the batches are, how to launch, how long to measure.

#[cfg(feature = "checkpoint")]
use std::path::PathBuf;
#[cfg(feature = "checkpoint")]
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
#[cfg(feature = "checkpoint")]
use paf_cuda::checkpoint::Checkpoint;
use paf_cuda::config::{Rotary, preset};
use paf_cuda::measure::speedup::{Mode, Weights};
use paf_cuda::measure::timing::{Effort, NOISE};
use paf_cuda::{BatchShape, Design, EncoderConfig, Error, LayerConfig};

/// The layers.
#[derive(Debug, Args)]
pub struct ModelArguments {
    /// A model's dimensions, by name (`paf models` lists them); roberta-large if no dimensions are given.
    #[arg(long, conflicts_with_all = ["hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "head_dim"])]
    model: Option<String>,
    #[arg(long, requires_all = ["num_attention_heads", "intermediate_size"])]
    hidden_size: Option<usize>,
    #[arg(long, requires = "hidden_size")]
    num_attention_heads: Option<usize>,
    /// Key and value heads, if they are fewer: a divisor of num_attention_heads.
    #[arg(long, requires = "hidden_size")]
    num_key_value_heads: Option<usize>,
    #[arg(long, requires = "hidden_size")]
    intermediate_size: Option<usize>,
    /// Width of a head, if it is not hidden_size / num_attention_heads.
    #[arg(long, requires = "hidden_size")]
    head_dim: Option<usize>,
    /// Where the norms are [default: as in the model]
    #[arg(long, value_enum)]
    design: Option<Norms>,
    /// Let a position attend only to itself and earlier ones, also where the model does not.
    #[arg(long)]
    causal: bool,
    /// Rotate so many dimensions of each query and key head.
    #[arg(long, requires = "hidden_size")]
    rotary_dim: Option<usize>,
    /// Base of the rotary angles.
    #[arg(long, requires = "rotary_dim", default_value_t = 10_000.0)]
    rotary_base: f32,
    /// Rotate neighbouring dimensions, as GPT-J does, instead of those half of rotary_dim apart.
    #[arg(long, requires = "rotary_dim")]
    rotary_interleaved: bool,
    /// Leave out a model's rotary embeddings, to see what they cost.
    #[arg(long, conflicts_with = "rotary_dim")]
    without_rotary: bool,
    /// Number of layers [default: the model's; on the CPU 4]
    #[arg(long)]
    layers: Option<usize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Norms {
    /// After the residual sum.
    Post,
    /// One, before both branches.
    Pre,
    /// One before each branch.
    PreTwo,
}

/// What the layers are, in the parallel design.
pub struct Model {
    /// The preset, if it is one.
    pub name: Option<String>,
    pub config: EncoderConfig,
    /// Whether the preset has rotary embeddings that were left out.
    pub rotary_left_out: bool,
}

/// Layers on the CPU if none are asked for: three variants of 1 × 512 then take seconds, not minutes, on two cores.
const CPU_LAYERS: usize = 4;

impl ModelArguments {
    /// The model that was named, if one was.
    #[cfg(feature = "cuda")]
    pub fn name(&self) -> Option<&str> {
        self.model.as_deref()
    }

    pub fn model(&self, cpu: bool) -> Result<Model> {
        let mut name = None;
        let config = match (self.hidden_size, self.num_attention_heads, self.intermediate_size) {
            (Some(hidden_size), Some(heads), Some(intermediate_size)) => {
                let mut layer = match self.head_dim {
                    None => LayerConfig::new(hidden_size, heads, intermediate_size)?,
                    // The default division need not work out: any valid one is the start.
                    Some(head_dim) => {
                        let any = LayerConfig::new(hidden_size, 1, intermediate_size)?;
                        LayerConfig { num_attention_heads: heads, num_key_value_heads: heads, head_dim, ..any }
                    }
                };
                layer.num_key_value_heads = self.num_key_value_heads.unwrap_or(heads);
                let (base, interleaved) = (self.rotary_base, self.rotary_interleaved);
                layer.rotary = self.rotary_dim.map(|dim| Rotary { dim, base, interleaved });
                layer.causal = self.causal;
                layer.validate()?;
                EncoderConfig { layer, num_hidden_layers: 24 }
            }
            _ => {
                let preset = preset(self.model.as_deref().unwrap_or("roberta-large"))?;
                name = Some(preset.name.to_owned());
                preset.config
            }
        };
        self.adapt(name, config, cpu)
    }

    /// The layers of `config`, in the parallel design and with what else was asked for.
    #[cfg(feature = "checkpoint")]
    fn of(&self, config: &EncoderConfig, cpu: bool) -> Result<Model> {
        let there = config.num_hidden_layers;
        if let Some(layers) = self.layers.filter(|&layers| layers > there) {
            let (got, expected) = (layers.to_string(), format!("at most {there}, which the checkpoint has"));
            return Err(Error::InvalidConfig { field: "layers", got, expected }.into());
        }
        self.adapt(None, config.clone(), cpu)
    }

    fn adapt(&self, name: Option<String>, mut config: EncoderConfig, cpu: bool) -> Result<Model> {
        let layer = &mut config.layer;
        layer.causal |= self.causal;
        layer.design = match self.design {
            Some(Norms::Post) => Design::PafPostNorm,
            Some(Norms::Pre) => Design::PafPreNorm,
            Some(Norms::PreTwo) => Design::PafPreNormTwo,
            None => layer.design.parallel(),
        };
        let rotary_left_out = self.without_rotary && layer.rotary.take().is_some();
        config.num_hidden_layers = match self.layers {
            Some(layers) => layers,
            None if cpu => CPU_LAYERS.min(config.num_hidden_layers),
            None => config.num_hidden_layers,
        };
        config.validate()?;
        Ok(Model { name, config, rotary_left_out })
    }
}

/// The layers, random or of a checkpoint.
#[derive(Debug, Args)]
pub struct StackArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// The dimensions and weights of a checkpoint in Hugging Face's format, of which there are the first --layers: a folder.
    #[cfg(feature = "checkpoint")]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "hidden_size"])]
    pub checkpoint: Option<PathBuf>,
}

impl StackArguments {
    /// The layers, and where their weights come from.
    pub fn stack(&self, cpu: bool) -> Result<(Model, Weights)> {
        #[cfg(feature = "checkpoint")]
        if let Some(folder) = &self.checkpoint {
            let checkpoint = Checkpoint::open(folder)?;
            let model = self.model.of(checkpoint.config(), cpu)?;
            return Ok((model, Weights::Checkpoint(Arc::new(checkpoint))));
        }
        Ok((self.model.model(cpu)?, Weights::Random))
    }
}

/// The batches. Which there are if none is asked for depends on the command.
#[derive(Debug, Args)]
pub struct ShapeArguments {
    /// Batch sizes [default: 1,8; on the CPU, for `paf complexity` and for `paf trace` 1; for `paf plan` 1, or 64 to 16384 tokens if nothing
    /// is asked for]
    #[arg(long, value_delimiter = ',')]
    batch: Vec<usize>,
    /// Sequence lengths [default: 128,512; for `paf plan` and `paf trace` 128; for `paf complexity` 64 to 8192, doubled]
    #[arg(long, value_delimiter = ',')]
    seq: Vec<usize>,
    /// Valid tokens of each sequence of the batch; the rest is padding.
    #[arg(long, value_delimiter = ',')]
    lengths: Vec<usize>,
    /// Sequences of these lengths, one after the other without padding, instead of --batch and --seq.
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["batch", "seq", "lengths"])]
    packed: Vec<usize>,
}

impl ShapeArguments {
    /// Whether nothing was asked for.
    #[cfg(feature = "cuda")]
    pub fn are_absent(&self) -> bool {
        [&self.batch, &self.seq, &self.lengths, &self.packed].into_iter().all(Vec::is_empty)
    }

    /// Every batch size with every length; where they are not given, the defaults.
    pub fn shapes(&self, default_batch: &[usize], default_seq: &[usize]) -> Result<Vec<BatchShape>> {
        if !self.packed.is_empty() {
            return Ok(vec![BatchShape::packed(self.packed.clone())?]);
        }
        let or = |given: &[usize], default: &[usize]| if given.is_empty() { default.to_vec() } else { given.to_vec() };
        let mut shapes = Vec::new();
        for batch in or(&self.batch, default_batch) {
            for seq in or(&self.seq, default_seq) {
                let shape = BatchShape::new(batch, seq)?;
                let lengths = &self.lengths;
                shapes.push(if lengths.is_empty() { shape } else { shape.with_lengths(lengths.clone())? });
            }
        }
        Ok(shapes)
    }
}

/// A way to launch, as it is asked for.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Launch {
    Eager,
    Graph,
}

impl From<Launch> for Mode {
    fn from(launch: Launch) -> Self {
        match launch {
            Launch::Eager => Self::Eager,
            Launch::Graph => Self::Graph,
        }
    }
}

/// How long to sample layers, and on what numbers. A command may have another default of `--seconds`.
#[derive(Debug, Args)]
pub struct SamplingArguments {
    #[arg(long, default_value_t = 5.0, help = seconds_help("each batch shape", Effort::default().min_rounds))]
    seconds: f64,
    #[command(flatten)]
    noise: NoiseArguments,
    /// Seed of activations, and of weights that are random.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl SamplingArguments {
    pub fn effort(&self) -> Result<Effort> {
        let (budget, noise) = (seconds(self.seconds)?, Some(self.noise.share()?));
        Ok(Effort { budget, noise, ..Effort::default() })
    }
}

/// When the samples are quiet enough.
#[derive(Debug, Args)]
pub struct NoiseArguments {
    /// Stop sampling when the 95 % interval of every median is within so many per cent of it to either side, if --seconds allow; rows
    /// that are noisier are named.
    #[arg(long, value_name = "PERCENT", default_value_t = NOISE * 100.0)]
    noise: f64,
}

impl NoiseArguments {
    /// As a share.
    pub fn share(&self) -> Result<f64> {
        percent("noise", self.noise)
    }
}

/// A percentage as a share.
pub fn percent(field: &'static str, percent: f64) -> Result<f64> {
    if !(percent > 0.0 && percent <= 100.0) {
        let (got, expected) = (percent.to_string(), "a percentage above 0, up to 100".into());
        return Err(Error::InvalidConfig { field, got, expected }.into());
    }
    Ok(percent / 100.0)
}

/// What `--seconds` is: a limit, but for the rounds that an interval takes.
pub fn seconds_help(what: &str, min_rounds: usize) -> String {
    format!("Seconds to sample {what} for; the first {min_rounds} rounds are made however long they take")
}

/// What `--seconds` may be.
pub fn seconds(seconds: f64) -> Result<Duration> {
    if !(seconds > 0.0 && seconds <= 3600.0) {
        let (got, expected) = (seconds.to_string(), "a number up to 3600".into());
        return Err(Error::InvalidConfig { field: "seconds", got, expected }.into());
    }
    Ok(Duration::from_secs_f64(seconds))
}
