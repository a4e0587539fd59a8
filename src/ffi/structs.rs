//! The structs that C fills in, and the numbers in them.
#![allow(
    rustdoc::broken_intra_doc_links,
    rustdoc::private_intra_doc_links,
    reason = "shapes in brackets, as the header has them, are no links"
)]

use std::ffi::c_void;

use cudarc::driver::sys::CUstream_st;

/// Element types. Activations, and a device's copy of the weights, are PAF_DTYPE_BF16 or PAF_DTYPE_F16.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PafDtype {
    /// IEEE binary32: of weights that are given, never of activations.
    F32 = 1,
    /// bfloat16.
    Bf16 = 2,
    /// IEEE binary16.
    F16 = 3,
}

/// How a layer composes attention and feed-forward (FFN) blocks.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PafDesign {
    /// a = LN1(x + Attn(x)); y = LN2(a + FFN(a))
    SafPostNorm = 1,
    /// y = LN2(x + Attn(x) + FFN(x))
    PafPostNorm = 2,
    /// a = x + Attn(LN1(x)); y = a + FFN(LN2(a))
    SafPreNorm = 3,
    /// n = LN1(x); y = x + Attn(n) + FFN(n)
    PafPreNorm = 4,
    /// y = x + Attn(LN1(x)) + FFN(LN2(x))
    PafPreNormTwo = 5,
}

/// Activation functions. Of a GEMM, 0 is none.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PafHiddenAct {
    /// With erf.
    Gelu = 1,
    /// With tanh.
    GeluNew = 2,
    /// max(x, 0)
    Relu = 3,
    /// Of gates alone.
    Silu = 4,
}

/// In what order, on which streams, a layer's kernels are launched. Of a forward call, 0 is the encoder's plan.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PafSchedule {
    /// Every kernel on the caller's stream: the only order of the serial designs.
    Serial = 1,
    /// Attention on one stream, FFN on the other, forked from the caller's and joined to it by events.
    TwoStream = 2,
    /// Wide products on the caller's stream.
    Fused = 3,
    /// A wide first product, then attention beside the FFN's second.
    Hybrid = 4,
}

/// Where weights are.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PafMemory {
    /// In the host's memory.
    Host = 1,
    /// In the device's memory.
    Device = 2,
}

/// What an encoder is; names as in Hugging Face's config.json. Fields of 0 stand for what is said beside them.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PafEncoderConfig {
    /// sizeof(PafEncoderConfig)
    pub struct_size: usize,
    /// Width of the residual stream, a multiple of 8.
    pub hidden_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; 0: as many as query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; 0: hidden_size / num_attention_heads.
    pub head_dim: usize,
    /// Width of the FFN's inner layer, a multiple of 8.
    pub intermediate_size: usize,
    /// Equal layers.
    pub num_hidden_layers: usize,
    /// Most rows (tokens, padding included) that one forward call will have, at most 2^20.
    pub max_rows: usize,
    /// Of a head, how many dimensions are rotated by their positions; 0: none.
    pub rotary_dim: usize,
    /// Base of the rotation's angles; 0: 10000.
    pub rotary_base: f32,
    /// Not 0: pairs are neighbours (GPT-J), instead of halves (GPT-NeoX).
    pub rotary_interleaved: i32,
    /// Epsilon of the layer norms; 0: 1e-5.
    pub layer_norm_eps: f32,
    /// A PafHiddenAct: the FFN's activation, or with a gate the gate's.
    pub hidden_act: i32,
    /// Not 0: the FFN's inner layer is multiplied by a gate (SwiGLU).
    pub gated: i32,
    /// Not 0: a position attends to itself and to earlier ones alone.
    pub causal: i32,
    /// A PafDesign.
    pub design: i32,
    /// A PafDtype, of activations and of the encoder's copy of the weights: PAF_DTYPE_BF16 or PAF_DTYPE_F16.
    pub dtype: i32,
}

/// Weights of one layer, row-major without gaps, matrices [out_features, in_features]. A bias or beta that is null is zeros, a gamma that
/// is null is ones. q = num_attention_heads * head_dim, kv = num_key_value_heads * head_dim.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PafLayerWeights {
    /// sizeof(PafLayerWeights)
    pub struct_size: usize,
    /// A PafDtype, of all of them.
    pub dtype: i32,
    /// A PafMemory, of all of them.
    pub memory: i32,
    /// Query, key and value projections one above the other, [q + 2 kv, hidden_size].
    pub w_qkv: *const c_void,
    /// [q + 2 kv]
    pub b_qkv: *const c_void,
    /// Attention's output projection, [hidden_size, q].
    pub w_o: *const c_void,
    /// [hidden_size]
    pub b_o: *const c_void,
    /// The FFN's first product, [intermediate_size, hidden_size].
    pub w_1: *const c_void,
    /// [intermediate_size]
    pub b_1: *const c_void,
    /// The gate's projection, [intermediate_size, hidden_size]; null without a gate.
    pub w_gate: *const c_void,
    /// [intermediate_size]; null without a gate.
    pub b_gate: *const c_void,
    /// The FFN's second product, [hidden_size, intermediate_size].
    pub w_2: *const c_void,
    /// [hidden_size]
    pub b_2: *const c_void,
    /// LN1, [hidden_size] each. PAF_DESIGN_PAF_POST_NORM does not use it.
    pub ln_1_gamma: *const c_void,
    /// [hidden_size]
    pub ln_1_beta: *const c_void,
    /// LN2, [hidden_size] each. PAF_DESIGN_PAF_PRE_NORM does not use it.
    pub ln_2_gamma: *const c_void,
    /// [hidden_size]
    pub ln_2_beta: *const c_void,
}

/// Which rows of the activations are which sequences. Pointers are to the device's memory, which is read when the stream runs the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PafBatch {
    /// sizeof(PafBatch)
    pub struct_size: usize,
    /// Number of sequences.
    pub batch: usize,
    /// Rows of each, padding included; of packed sequences, tokens of the longest, or more.
    pub seq_len: usize,
    /// 0: padded, batch * seq_len rows. Else the sequences are packed, one after the other, and this is the sum of their lengths.
    pub packed_rows: usize,
    /// [batch], valid tokens of each, 0 to seq_len. Null, if padded: all have seq_len. Rows of padding get no weight as keys, and become
    /// zeros in every output.
    pub lengths: *const i32,
    /// [batch], if packed: the row of each sequence's first token.
    pub first_rows: *const i32,
    /// [packed_rows], if packed: the position of each row in its sequence.
    pub positions: *const i32,
}

/// One forward call. Pointers but `batch` are to the device's memory, which belongs to the call until the stream has run it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PafForward {
    /// sizeof(PafForward)
    pub struct_size: usize,
    /// The caller's stream; null is the legacy default stream.
    pub stream: *mut CUstream_st,
    /// Which rows are which sequences.
    pub batch: *const PafBatch,
    /// [rows, hidden_size], aligned to 16 bytes.
    pub x: *const c_void,
    /// [rows, hidden_size], aligned to 16 bytes. May be x.
    pub y: *mut c_void,
    /// Scratch memory, aligned to 256 bytes, apart from x and y. Nothing is kept there from one call to the next.
    pub workspace: *mut c_void,
    /// As many as paf_encoder_workspace_bytes says, or more.
    pub workspace_bytes: usize,
    /// A PafSchedule; 0: the encoder's plan.
    pub schedule: i32,
    /// 0
    pub reserved: i32,
}

/// One product: c = act(a * transposed(w) + bias), or a * transposed(w) + bias + residual, accumulated in fp32. k and n are multiples of 8.
/// Matrices are row-major without gaps; all pointers are aligned to 16 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PafGemm {
    /// sizeof(PafGemm)
    pub struct_size: usize,
    /// The caller's stream.
    pub stream: *mut CUstream_st,
    /// PAF_DTYPE_BF16 or PAF_DTYPE_F16.
    pub dtype: i32,
    /// A PafHiddenAct other than PAF_HIDDEN_ACT_SILU, or 0. Not together with a residual.
    pub activation: i32,
    /// Rows of a and c.
    pub m: usize,
    /// Rows of w, columns of c.
    pub n: usize,
    /// Columns of a and w.
    pub k: usize,
    /// [m, k]
    pub a: *const c_void,
    /// [n, k]
    pub w: *const c_void,
    /// [n], or null.
    pub bias: *const c_void,
    /// [m, n], or null.
    pub residual: *const c_void,
    /// [m, n]
    pub c: *mut c_void,
}

/// softmax(Q * transposed(K) / sqrt(head_dim)) * V of each sequence and each head. Matrices are aligned to 16 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PafAttention {
    /// sizeof(PafAttention)
    pub struct_size: usize,
    /// The caller's stream.
    pub stream: *mut CUstream_st,
    /// Which rows are which sequences.
    pub batch: *const PafBatch,
    /// PAF_DTYPE_BF16 or PAF_DTYPE_F16.
    pub dtype: i32,
    /// Not 0: a position attends to itself and to earlier ones alone.
    pub causal: i32,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of heads; 0: as many.
    pub key_value_heads: usize,
    /// 32, 64, 80, 96, 128 or 256.
    pub head_dim: usize,
    /// [rows, (heads + 2 key_value_heads) * head_dim]: all query heads, all key heads, all value heads.
    pub qkv: *const c_void,
    /// [rows, heads * head_dim]
    pub out: *mut c_void,
    /// fp32 [heads, rows], or null: natural logarithm of the softmax's denominator, minus infinity in rows of padding.
    pub log_sum_exp: *mut f32,
}

/// s = sum of up to three addends, and out = (s - mean) / sqrt(variance + eps) * gamma + beta of each row. All pointers are
/// aligned to 16 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PafNorm {
    /// sizeof(PafNorm)
    pub struct_size: usize,
    /// The caller's stream.
    pub stream: *mut CUstream_st,
    /// Which rows are padding, and become zeros; null: none.
    pub batch: *const PafBatch,
    /// PAF_DTYPE_BF16 or PAF_DTYPE_F16.
    pub dtype: i32,
    /// Added to the variance; 0: 1e-5.
    pub eps: f32,
    /// Rows: those of the batch, if there is one.
    pub rows: usize,
    /// Columns, a multiple of 8.
    pub hidden_size: usize,
    /// [rows, hidden_size] each; the second and third may be null.
    pub addends: [*const c_void; 3],
    /// Where s goes, [rows, hidden_size], or null. May be an addend.
    pub sum: *mut c_void,
    /// [hidden_size]
    pub gamma: *const c_void,
    /// [hidden_size]
    pub beta: *const c_void,
    /// [rows, hidden_size]
    pub out: *mut c_void,
}
