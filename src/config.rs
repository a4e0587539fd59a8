//! What a layer is: dimensions, design, activation. Names follow Hugging Face's `config.json`.
//!
//! Nothing invalid passes this door: [`LayerConfig::validate`] is called by whatever takes a configuration,
//! and no later stage has to doubt a dimension.

mod batch;
mod presets;

pub use batch::BatchShape;
pub use presets::{MODELS, Preset, preset};

use crate::error::{Error, Result};

/// The largest dimension accepted anywhere: keeps every product of two of them far inside `u64`/`i64` and every
/// kernel index inside 32 bits where the kernels count in 32 bits.
pub const MAX_DIMENSION: usize = 1 << 20;

/// How a layer composes its attention and feed-forward (FFN) blocks.
///
/// `Attn` includes its output projection and bias; `FFN(x) = W2·act(W1·x + b1) + b2`, or with a gate
/// (arXiv 2002.05202) `FFN(x) = W2·(act(Wg·x + bg) ∘ (W1·x + b1)) + b2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Design {
    /// Serial, norm after: `a = LN1(x + Attn(x)); y = LN2(a + FFN(a))`. BERT, RoBERTa, MiniLM.
    SafPostNorm,
    /// Parallel, norm after: `y = LN2(x + Attn(x) + FFN(x))`. The paper's (arXiv 2305.13297) PAF-RoBERTa and PAF-BERT.
    PafPostNorm,
    /// Serial, norm before: `a = x + Attn(LN1(x)); y = a + FFN(LN2(a))`. GPT-2, or GPT-NeoX with
    /// `use_parallel_residual = false`.
    SafPreNorm,
    /// Parallel, one norm before: `n = LN1(x); y = x + Attn(n) + FFN(n)`. GPT-J, Phi, Falcon-7B, Command-R.
    PafPreNorm,
    /// Parallel, two norms before: `y = x + Attn(LN1(x)) + FFN(LN2(x))`. GPT-NeoX, Pythia.
    PafPreNormTwo,
}

impl Design {
    /// All five.
    pub const ALL: [Self; 5] =
        [Self::SafPostNorm, Self::PafPostNorm, Self::SafPreNorm, Self::PafPreNorm, Self::PafPreNormTwo];

    /// Whether attention and FFN are independent of each other, so that they can run at the same time.
    pub const fn is_parallel(self) -> bool {
        matches!(self, Self::PafPostNorm | Self::PafPreNorm | Self::PafPreNormTwo)
    }

    /// Whether the norm comes after the residual sum.
    pub const fn is_post_norm(self) -> bool {
        matches!(self, Self::SafPostNorm | Self::PafPostNorm)
    }

    /// The serial design with the same place of the norm: what a parallel design is compared with.
    pub const fn serial(self) -> Self {
        if self.is_post_norm() { Self::SafPostNorm } else { Self::SafPreNorm }
    }

    /// The parallel design with the same place of the norm (one norm, for the pre-norm designs that have none yet).
    pub const fn parallel(self) -> Self {
        match self {
            Self::SafPostNorm => Self::PafPostNorm,
            Self::SafPreNorm => Self::PafPreNorm,
            other => other,
        }
    }

    /// Short name, for tables and result files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SafPostNorm => "saf-post",
            Self::PafPostNorm => "paf-post",
            Self::SafPreNorm => "saf-pre",
            Self::PafPreNorm => "paf-pre",
            Self::PafPreNormTwo => "paf-pre-two",
        }
    }
}

impl std::fmt::Display for Design {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// In what order, on which streams, a layer's kernels are launched. The result is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// Every kernel on one stream: the serial designs' only order, and the parallel designs' baseline.
    Serial,
    /// Attention on one stream, FFN on the other, forked and joined by events before the residual add.
    TwoStream,
    /// Wide products on one stream: `[Wqkv; W1]` side by side along N, `[Wo | W2]` along K, whose sum is what the residual adds.
    Fused,
    /// The wide first product, then attention beside the second FFN product, then the output projection added onto that.
    Hybrid,
}

impl Schedule {
    /// All schedules there are.
    pub const ALL: [Self; 4] = [Self::Serial, Self::TwoStream, Self::Fused, Self::Hybrid];

    /// `serial`, `two-stream`, `fused` or `hybrid`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Serial => "serial",
            Self::TwoStream => "two-stream",
            Self::Fused => "fused",
            Self::Hybrid => "hybrid",
        }
    }

    /// Whether the result is the same to the last bit: both run the same kernels, in another order. Others round sums at
    /// other places.
    pub fn agrees_bitwise(self, other: Self) -> bool {
        let has_narrow_products = |schedule| matches!(schedule, Self::Serial | Self::TwoStream);
        self == other || has_narrow_products(self) && has_narrow_products(other)
    }

    /// An error if `design` cannot be run in this order.
    pub fn check(self, design: Design) -> Result<()> {
        if self != Self::Serial && !design.is_parallel() {
            return Err(Error::Unsupported {
                what: format!("schedule {self} with design {design}"),
                remedy:
                    "in a serial design the FFN reads what attention wrote; use schedule serial, or a parallel design"
                        .into(),
            });
        }
        Ok(())
    }
}

impl std::fmt::Display for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Schedule {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|schedule| schedule.name() == s).ok_or_else(|| Error::InvalidConfig {
            field: "schedule",
            got: format!("{s:?}"),
            expected: Self::ALL.map(Self::name).join(" or "),
        })
    }
}

/// The FFN's activation function, by its Hugging Face name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HiddenAct {
    /// `gelu`: `x·Φ(x) = x/2·(1 + erf(x/√2))` (arXiv 1606.08415).
    Gelu,
    /// `gelu_new`: the tanh approximation `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))` (same paper, section 2).
    GeluNew,
    /// `relu`: `max(x, 0)`.
    Relu,
    /// `silu`: `x·σ(x) = x / (1 + exp(−x))`; of the gate it makes a SwiGLU. On a GPU of gates alone.
    Silu,
}

impl HiddenAct {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Gelu, Self::GeluNew, Self::Relu, Self::Silu];

    /// Hugging Face's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluNew => "gelu_new",
            Self::Relu => "relu",
            Self::Silu => "silu",
        }
    }
}

impl std::fmt::Display for HiddenAct {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for HiddenAct {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|act| act.name() == s).ok_or_else(|| Error::InvalidConfig {
            field: "hidden_act",
            got: format!("{s:?}"),
            expected: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// Rotary position embeddings (arXiv 2104.09864): pair `i` of the first `dim` dimensions of each query and key head is
/// rotated by `position · base^(−2i/dim)`, positions counted from the start of a token's sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// How many of a head's dimensions are rotated (`rotary_dim`, or `rotary_pct · head_dim`).
    pub dim: usize,
    /// Base of the angles' geometric series (`rotary_emb_base`, `rope_theta`).
    pub base: f32,
    /// Pairs are neighbours, dimensions `2i` and `2i + 1` (GPT-J, Command-R), instead of `i` and `i + dim/2` (GPT-NeoX,
    /// Pythia, Falcon, Phi).
    pub interleaved: bool,
}

impl Rotary {
    /// Checks that heads of that width can have it.
    pub(crate) fn check(&self, head_dim: usize) -> Result<()> {
        if self.dim == 0 || self.dim > head_dim || !self.dim.is_multiple_of(2) {
            return Err(Error::InvalidConfig {
                field: "rotary_dim",
                got: self.dim.to_string(),
                expected: format!("an even number from 2 to head_dim = {head_dim}"),
            });
        }
        if !(self.base.is_finite() && self.base > 0.0) {
            return Err(Error::InvalidConfig {
                field: "rotary_base",
                got: self.base.to_string(),
                expected: "a positive finite number".into(),
            });
        }
        Ok(())
    }
}

/// Dimensions and design of one transformer layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; fewer than `num_attention_heads` for grouped-query attention.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the FFN's inner layer.
    pub intermediate_size: usize,
    /// ε of the layer norms.
    pub layer_norm_eps: f32,
    /// Activation of the FFN; with a gate, the gate's.
    pub hidden_act: HiddenAct,
    /// Whether the FFN's inner layer is multiplied by a gate, the activation of a projection of its own: SwiGLU in Command-R.
    pub gated: bool,
    /// How attention, FFN and norms are composed.
    pub design: Design,
    /// Whether a position attends only to itself and to earlier ones.
    pub causal: bool,
    /// Rotary embeddings of queries and keys, if the model has them.
    pub rotary: Option<Rotary>,
}

impl LayerConfig {
    /// An encoder layer (post-norm PAF, exact GELU, ε = 1e-5) of these dimensions, with
    /// `head_dim = hidden_size / num_attention_heads`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if a dimension is 0 or above [`MAX_DIMENSION`], or `hidden_size` is not a multiple of
    /// `num_attention_heads`.
    pub fn new(hidden_size: usize, num_attention_heads: usize, intermediate_size: usize) -> Result<Self> {
        check_dimension("num_attention_heads", num_attention_heads)?;
        if !hidden_size.is_multiple_of(num_attention_heads) {
            return Err(Error::InvalidConfig {
                field: "hidden_size",
                got: hidden_size.to_string(),
                expected: format!("a multiple of num_attention_heads = {num_attention_heads}"),
            });
        }
        let config = Self {
            hidden_size,
            num_attention_heads,
            num_key_value_heads: num_attention_heads,
            head_dim: hidden_size / num_attention_heads,
            intermediate_size,
            layer_norm_eps: 1e-5,
            hidden_act: HiddenAct::Gelu,
            gated: false,
            design: Design::PafPostNorm,
            causal: false,
            rotary: None,
        };
        config.validate()?;
        Ok(config)
    }

    /// The same layer in another design.
    pub fn with_design(&self, design: Design) -> Self {
        Self { design, ..self.clone() }
    }

    /// Width of all query heads together, `num_attention_heads · head_dim`.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of the key heads (or of the value heads) together.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Width of the packed QKV product.
    pub fn qkv_size(&self) -> usize {
        self.query_size() + 2 * self.key_value_size()
    }

    /// Width of the FFN's first product: `intermediate_size`, or gate and inner layer side by side, which is twice that.
    pub fn first_size(&self) -> usize {
        self.intermediate_size * if self.gated { 2 } else { 1 }
    }

    /// Checks that such a layer can exist.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the first field at fault.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate_size),
        ] {
            check_dimension(field, value)?;
        }
        // Each factor is at most 2²⁰ here, so the products cannot wrap.
        for (field, value) in [
            ("num_attention_heads · head_dim", self.query_size()),
            ("QKV width", self.qkv_size()),
            ("width of gate and inner layer", self.first_size()),
        ] {
            check_dimension(field, value)?;
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(Error::InvalidConfig {
                field: "num_key_value_heads",
                got: self.num_key_value_heads.to_string(),
                expected: format!("a divisor of num_attention_heads = {}", self.num_attention_heads),
            });
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps > 0.0) {
            return Err(Error::InvalidConfig {
                field: "layer_norm_eps",
                got: self.layer_norm_eps.to_string(),
                expected: "a positive finite number".into(),
            });
        }
        self.rotary.map_or(Ok(()), |rotary| rotary.check(self.head_dim))
    }

    /// Weight and bias elements of the products of one layer, and of the norms that its design uses.
    pub fn parameters(&self) -> usize {
        let (h, f, q, qkv) = (self.hidden_size, self.intermediate_size, self.query_size(), self.qkv_size());
        let first = self.first_size();
        let norms = if matches!(self.design, Design::PafPostNorm | Design::PafPreNorm) { 1 } else { 2 };
        (qkv * h + qkv) + (h * q + h) + (first * h + first) + (h * f + h) + norms * 2 * h
    }

    /// Floating-point operations (a multiply-add counts two) of one layer's products over sequences of these lengths:
    /// `2·tokens·(weights) + 4·len²·query_size` per sequence, half of the latter when causal. Norms, softmax and
    /// activations are left out, as is usual.
    pub fn flops(&self, lengths: &[usize]) -> f64 {
        let (h, of_ffn) = (self.hidden_size as f64, (self.first_size() + self.intermediate_size) as f64);
        let (q, qkv) = (self.query_size() as f64, self.qkv_size() as f64);
        let weights = qkv * h + h * q + of_ffn * h;
        lengths
            .iter()
            .map(|&len| {
                let n = len as f64;
                let pairs = if self.causal { n * (n + 1.0) / 2.0 } else { n * n };
                2.0 * n * weights + 4.0 * pairs * q
            })
            .sum()
    }
}

/// A stack of equal layers.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// What each layer is.
    pub layer: LayerConfig,
    /// How many there are.
    pub num_hidden_layers: usize,
}

impl EncoderConfig {
    /// Checks that such a stack can exist.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the first field at fault.
    pub fn validate(&self) -> Result<()> {
        check_dimension("num_hidden_layers", self.num_hidden_layers)?;
        self.layer.validate()
    }

    /// The same stack in another design.
    pub fn with_design(&self, design: Design) -> Self {
        Self { layer: self.layer.with_design(design), ..*self }
    }
}

pub(crate) fn check_dimension(field: &'static str, value: usize) -> Result<()> {
    if value == 0 || value > MAX_DIMENSION {
        return Err(Error::InvalidConfig {
            field,
            got: value.to_string(),
            expected: format!("a number from 1 to {MAX_DIMENSION}"),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: Result<LayerConfig>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn bad_dimensions_are_refused_with_their_values() {
        assert!(message(LayerConfig::new(1000, 16, 4096)).contains("hidden_size = 1000"));
        assert!(message(LayerConfig::new(1024, 0, 4096)).contains("num_attention_heads = 0"));
        assert!(message(LayerConfig::new(0, 16, 4096)).contains("hidden_size = 0"));
        assert!(message(LayerConfig::new(usize::MAX - 15, 16, 4096)).contains("hidden_size"));
        assert!(message(LayerConfig::new(1024, 16, MAX_DIMENSION + 1)).contains("intermediate_size = 1048577"));
        let wide = LayerConfig { num_attention_heads: MAX_DIMENSION, ..LayerConfig::new(1024, 16, 4096).unwrap() };
        assert!(wide.validate().is_err());
        let gated = LayerConfig { gated: true, ..LayerConfig::new(1024, 16, MAX_DIMENSION).unwrap() };
        assert!(gated.validate().unwrap_err().to_string().contains("gate and inner layer = 2097152"));
    }

    #[test]
    fn rotary_dimensions_and_bases_are_checked() {
        let layer = LayerConfig::new(1024, 16, 4096).unwrap();
        let with = |dim, base| LayerConfig { rotary: Some(Rotary { dim, base, interleaved: false }), ..layer.clone() };
        with(64, 1e4).validate().unwrap();
        for (dim, base, part) in [
            (0, 1e4, "rotary_dim = 0"),
            (15, 1e4, "rotary_dim = 15"),
            (66, 1e4, "head_dim = 64"),
            (64, 0.0, "rotary_base = 0"),
            (64, f32::NAN, "rotary_base = NaN"),
        ] {
            assert!(message(with(dim, base).validate().map(|()| layer.clone())).contains(part), "{part}");
        }
    }

    #[test]
    fn flops_of_roberta_large_match_the_closed_form() {
        let config = LayerConfig::new(1024, 16, 4096).unwrap();
        let (n, d, f) = (512.0, 1024.0, 4096.0);
        let expected = 2.0 * n * (4.0 * d * d + 2.0 * d * f) + 4.0 * n * n * d;
        assert_eq!(config.flops(&[512]), expected);
        assert_eq!(config.flops(&[512, 512]), 2.0 * expected);
        let causal = LayerConfig { causal: true, ..config };
        assert_eq!(causal.flops(&[512]), expected - 4.0 * n * (n - 1.0) / 2.0 * d);
        // A gate is one more product of the first one's size.
        let gated = LayerConfig { gated: true, causal: false, ..causal };
        assert_eq!(gated.flops(&[512]), expected + 2.0 * n * d * f);
    }

    #[test]
    fn serial_designs_have_one_order() {
        for design in Design::ALL {
            for schedule in Schedule::ALL {
                assert_eq!(schedule.check(design).is_ok(), design.is_parallel() || schedule == Schedule::Serial);
            }
            assert!(!design.serial().is_parallel() && design.parallel().is_parallel());
        }
    }
}
