/* paf-cuda: transformer layers whose attention and feed-forward blocks run at the same time on one GPU.
 * Made by cbindgen of src/ffi; the README has an example, examples/c a program.
 *
 * Every function that can fail returns a PafStatus, and paf_last_error has its text. Functions take any thread. None lets a panic or an
 * exception out. Structs begin with their size: `PafForward call = {.struct_size = sizeof call};` leaves every other field 0.
 */


#ifndef PAF_H
#define PAF_H

#include <stddef.h>
#include <stdint.h>

/* cuda.h's and the CUDA runtime's: CUcontext is a pointer to the first, CUstream and cudaStream_t are pointers to the second. */
typedef struct CUctx_st CUctx_st;
typedef struct CUstream_st CUstream_st;

// Version of this interface. Functions and fields are only ever added under one number; it changes when what was there changes.
#define PAF_ABI_VERSION 1

// What a call came to. 0 is success; paf_last_error has the text of every other.
enum PafStatus
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Done, or enqueued.
  PAF_STATUS_OK = 0,
  // A pointer, number, shape, alignment or text that the call cannot take.
  PAF_STATUS_INVALID_ARGUMENT = 1,
  // A handle that was destroyed, is null, is of another kind, or never was one.
  PAF_STATUS_INVALID_HANDLE = 2,
  // Valid, but nothing that this version or this device can do.
  PAF_STATUS_UNSUPPORTED = 3,
  // The CUDA driver library is not on this machine.
  PAF_STATUS_NO_DRIVER = 4,
  // There is a driver but no device, or not the one asked for.
  PAF_STATUS_NO_DEVICE = 5,
  // The driver cannot load this build's kernels.
  PAF_STATUS_DRIVER_TOO_OLD = 6,
  // The device's memory is exhausted. Everything that was there before still works.
  PAF_STATUS_OUT_OF_MEMORY = 7,
  // A CUDA call failed; the context still works.
  PAF_STATUS_CUDA_ERROR = 8,
  // A CUDA error has destroyed the context, in this call or before: no call with it can succeed any more. Handles can be destroyed.
  PAF_STATUS_CONTEXT_LOST = 9,
  // Another thread is in a call with this encoder. Nothing was done. paf_encoder_clone makes one for each thread.
  PAF_STATUS_BUSY = 10,
  // The workspace is smaller than paf_encoder_workspace_bytes says.
  PAF_STATUS_WORKSPACE_TOO_SMALL = 11,
  // A defect of this library, which the text describes.
  PAF_STATUS_INTERNAL = 12,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum PafStatus PafStatus;
#else
typedef int32_t PafStatus;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Element types. Activations, and a device's copy of the weights, are PAF_DTYPE_BF16 or PAF_DTYPE_F16.
enum PafDtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // IEEE binary32: of weights that are given, never of activations.
  PAF_DTYPE_F32 = 1,
  // bfloat16.
  PAF_DTYPE_BF16 = 2,
  // IEEE binary16.
  PAF_DTYPE_F16 = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum PafDtype PafDtype;
#else
typedef int32_t PafDtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How a layer composes attention and feed-forward (FFN) blocks.
enum PafDesign
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // a = LN1(x + Attn(x)); y = LN2(a + FFN(a))
  PAF_DESIGN_SAF_POST_NORM = 1,
  // y = LN2(x + Attn(x) + FFN(x))
  PAF_DESIGN_PAF_POST_NORM = 2,
  // a = x + Attn(LN1(x)); y = a + FFN(LN2(a))
  PAF_DESIGN_SAF_PRE_NORM = 3,
  // n = LN1(x); y = x + Attn(n) + FFN(n)
  PAF_DESIGN_PAF_PRE_NORM = 4,
  // y = x + Attn(LN1(x)) + FFN(LN2(x))
  PAF_DESIGN_PAF_PRE_NORM_TWO = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum PafDesign PafDesign;
#else
typedef int32_t PafDesign;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Activation functions. Of a GEMM, 0 is none.
enum PafHiddenAct
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // With erf.
  PAF_HIDDEN_ACT_GELU = 1,
  // With tanh.
  PAF_HIDDEN_ACT_GELU_NEW = 2,
  // max(x, 0)
  PAF_HIDDEN_ACT_RELU = 3,
  // Of gates alone.
  PAF_HIDDEN_ACT_SILU = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum PafHiddenAct PafHiddenAct;
#else
typedef int32_t PafHiddenAct;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// In what order, on which streams, a layer's kernels are launched. Of a forward call, 0 is the encoder's plan.
enum PafSchedule
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Every kernel on the caller's stream: the only order of the serial designs.
  PAF_SCHEDULE_SERIAL = 1,
  // Attention on one stream, FFN on the other, forked from the caller's and joined to it by events.
  PAF_SCHEDULE_TWO_STREAM = 2,
  // Wide products on the caller's stream.
  PAF_SCHEDULE_FUSED = 3,
  // A wide first product, then attention beside the FFN's second.
  PAF_SCHEDULE_HYBRID = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum PafSchedule PafSchedule;
#else
typedef int32_t PafSchedule;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Where weights are.
enum PafMemory
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // In the host's memory.
  PAF_MEMORY_HOST = 1,
  // In the device's memory.
  PAF_MEMORY_DEVICE = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum PafMemory PafMemory;
#else
typedef int32_t PafMemory;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// A device with a context on it and its kernels. Any number of threads may use one at once.
typedef struct PafDevice PafDevice;

// A stack of layers on a device: weights, streams, a plan. One thread at a time may be in a call with one.
typedef struct PafEncoder PafEncoder;

// What an encoder is; names as in Hugging Face's config.json. Fields of 0 stand for what is said beside them.
typedef struct PafEncoderConfig {
  // sizeof(PafEncoderConfig)
  size_t struct_size;
  // Width of the residual stream, a multiple of 8.
  size_t hidden_size;
  // Query heads.
  size_t num_attention_heads;
  // Key and value heads; 0: as many as query heads.
  size_t num_key_value_heads;
  // Width of one head; 0: hidden_size / num_attention_heads.
  size_t head_dim;
  // Width of the FFN's inner layer, a multiple of 8.
  size_t intermediate_size;
  // Equal layers.
  size_t num_hidden_layers;
  // Most rows (tokens, padding included) that one forward call will have, at most 2^20.
  size_t max_rows;
  // Of a head, how many dimensions are rotated by their positions; 0: none.
  size_t rotary_dim;
  // Base of the rotation's angles; 0: 10000.
  float rotary_base;
  // Not 0: pairs are neighbours (GPT-J), instead of halves (GPT-NeoX).
  int32_t rotary_interleaved;
  // Epsilon of the layer norms; 0: 1e-5.
  float layer_norm_eps;
  // A PafHiddenAct: the FFN's activation, or with a gate the gate's.
  int32_t hidden_act;
  // Not 0: the FFN's inner layer is multiplied by a gate (SwiGLU).
  int32_t gated;
  // Not 0: a position attends to itself and to earlier ones alone.
  int32_t causal;
  // A PafDesign.
  int32_t design;
  // A PafDtype, of activations and of the encoder's copy of the weights: PAF_DTYPE_BF16 or PAF_DTYPE_F16.
  int32_t dtype;
} PafEncoderConfig;

// Weights of one layer, row-major without gaps, matrices [out_features, in_features]. A bias or beta that is null is zeros, a gamma that
// is null is ones. q = num_attention_heads * head_dim, kv = num_key_value_heads * head_dim.
typedef struct PafLayerWeights {
  // sizeof(PafLayerWeights)
  size_t struct_size;
  // A PafDtype, of all of them.
  int32_t dtype;
  // A PafMemory, of all of them.
  int32_t memory;
  // Query, key and value projections one above the other, [q + 2 kv, hidden_size].
  const void *w_qkv;
  // [q + 2 kv]
  const void *b_qkv;
  // Attention's output projection, [hidden_size, q].
  const void *w_o;
  // [hidden_size]
  const void *b_o;
  // The FFN's first product, [intermediate_size, hidden_size].
  const void *w_1;
  // [intermediate_size]
  const void *b_1;
  // The gate's projection, [intermediate_size, hidden_size]; null without a gate.
  const void *w_gate;
  // [intermediate_size]; null without a gate.
  const void *b_gate;
  // The FFN's second product, [hidden_size, intermediate_size].
  const void *w_2;
  // [hidden_size]
  const void *b_2;
  // LN1, [hidden_size] each. PAF_DESIGN_PAF_POST_NORM does not use it.
  const void *ln_1_gamma;
  // [hidden_size]
  const void *ln_1_beta;
  // LN2, [hidden_size] each. PAF_DESIGN_PAF_PRE_NORM does not use it.
  const void *ln_2_gamma;
  // [hidden_size]
  const void *ln_2_beta;
} PafLayerWeights;

// Which rows of the activations are which sequences. Pointers are to the device's memory, which is read when the stream runs the call.
typedef struct PafBatch {
  // sizeof(PafBatch)
  size_t struct_size;
  // Number of sequences.
  size_t batch;
  // Rows of each, padding included; of packed sequences, tokens of the longest, or more.
  size_t seq_len;
  // 0: padded, batch * seq_len rows. Else the sequences are packed, one after the other, and this is the sum of their lengths.
  size_t packed_rows;
  // [batch], valid tokens of each, 0 to seq_len. Null, if padded: all have seq_len. Rows of padding get no weight as keys, and become
  // zeros in every output.
  const int32_t *lengths;
  // [batch], if packed: the row of each sequence's first token.
  const int32_t *first_rows;
  // [packed_rows], if packed: the position of each row in its sequence.
  const int32_t *positions;
} PafBatch;

// One forward call. Pointers but `batch` are to the device's memory, which belongs to the call until the stream has run it.
typedef struct PafForward {
  // sizeof(PafForward)
  size_t struct_size;
  // The caller's stream; null is the legacy default stream.
  CUstream_st *stream;
  // Which rows are which sequences.
  const struct PafBatch *batch;
  // [rows, hidden_size], aligned to 16 bytes.
  const void *x;
  // [rows, hidden_size], aligned to 16 bytes. May be x.
  void *y;
  // Scratch memory, aligned to 256 bytes, apart from x and y. Nothing is kept there from one call to the next.
  void *workspace;
  // As many as paf_encoder_workspace_bytes says, or more.
  size_t workspace_bytes;
  // A PafSchedule; 0: the encoder's plan.
  int32_t schedule;
  // 0
  int32_t reserved;
} PafForward;

// One product: c = act(a * transposed(w) + bias), or a * transposed(w) + bias + residual, accumulated in fp32. k and n are multiples of 8.
// Matrices are row-major without gaps; all pointers are aligned to 16 bytes.
typedef struct PafGemm {
  // sizeof(PafGemm)
  size_t struct_size;
  // The caller's stream.
  CUstream_st *stream;
  // PAF_DTYPE_BF16 or PAF_DTYPE_F16.
  int32_t dtype;
  // A PafHiddenAct other than PAF_HIDDEN_ACT_SILU, or 0. Not together with a residual.
  int32_t activation;
  // Rows of a and c.
  size_t m;
  // Rows of w, columns of c.
  size_t n;
  // Columns of a and w.
  size_t k;
  // [m, k]
  const void *a;
  // [n, k]
  const void *w;
  // [n], or null.
  const void *bias;
  // [m, n], or null.
  const void *residual;
  // [m, n]
  void *c;
} PafGemm;

// softmax(Q * transposed(K) / sqrt(head_dim)) * V of each sequence and each head. Matrices are aligned to 16 bytes.
typedef struct PafAttention {
  // sizeof(PafAttention)
  size_t struct_size;
  // The caller's stream.
  CUstream_st *stream;
  // Which rows are which sequences.
  const struct PafBatch *batch;
  // PAF_DTYPE_BF16 or PAF_DTYPE_F16.
  int32_t dtype;
  // Not 0: a position attends to itself and to earlier ones alone.
  int32_t causal;
  // Query heads.
  size_t heads;
  // Key and value heads, a divisor of heads; 0: as many.
  size_t key_value_heads;
  // 32, 64, 80, 96, 128 or 256.
  size_t head_dim;
  // [rows, (heads + 2 key_value_heads) * head_dim]: all query heads, all key heads, all value heads.
  const void *qkv;
  // [rows, heads * head_dim]
  void *out;
  // fp32 [heads, rows], or null: natural logarithm of the softmax's denominator, minus infinity in rows of padding.
  float *log_sum_exp;
} PafAttention;

// s = sum of up to three addends, and out = (s - mean) / sqrt(variance + eps) * gamma + beta of each row. All pointers are
// aligned to 16 bytes.
typedef struct PafNorm {
  // sizeof(PafNorm)
  size_t struct_size;
  // The caller's stream.
  CUstream_st *stream;
  // Which rows are padding, and become zeros; null: none.
  const struct PafBatch *batch;
  // PAF_DTYPE_BF16 or PAF_DTYPE_F16.
  int32_t dtype;
  // Added to the variance; 0: 1e-5.
  float eps;
  // Rows: those of the batch, if there is one.
  size_t rows;
  // Columns, a multiple of 8.
  size_t hidden_size;
  // [rows, hidden_size] each; the second and third may be null.
  const void *addends[3];
  // Where s goes, [rows, hidden_size], or null. May be an addend.
  void *sum;
  // [hidden_size]
  const void *gamma;
  // [hidden_size]
  const void *beta;
  // [rows, hidden_size]
  void *out;
} PafNorm;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The library's PAF_ABI_VERSION: to be compared with the header's before anything else is called.
uint32_t paf_abi_version(void);

// The library's version, "major.minor.patch". Never null; not to be freed.
const char *paf_version(void);

// Copies what went wrong in the last call that failed with this handle, or, where the handle is null or not alive, in the last call
// that failed on this thread; empty if none has. At most `bytes` bytes are written, the last one always 0.
// Returns how many bytes the text takes with its 0, whatever `bytes` is; `buffer` may be null if `bytes` is 0.
//
// # Safety
// `buffer` has room for `bytes` bytes.
size_t paf_last_error(const void *handle,
                      char *buffer,
                      size_t bytes);

// Writes a handle of device `ordinal`, on its primary context, which the CUDA runtime uses, too.
//
// # Safety
// `device` is null or has room for a handle.
PafStatus paf_device_open(size_t ordinal, struct PafDevice **device);

// Writes a handle of the device of a context that the caller has, and keeps alive until the handle and everything made with it are
// destroyed.
//
// # Safety
// `context` is null or a live CUcontext; `device` is null or has room for a handle.
PafStatus paf_device_from_context(CUctx_st *context,
                                  struct PafDevice **device);

// Has the driver load the kernels for a PafDtype, which else the first call that needs them does: inside a stream capture none can be
// loaded. Making an encoder does this, too.
PafStatus paf_device_prepare(struct PafDevice *device,
                             int32_t of);

// Waits for everything that was launched on the device: where errors of kernels are reported. Not during a stream capture.
PafStatus paf_device_synchronize(struct PafDevice *device);

// Ends the handle; null is no error. Does not wait: what was enqueued with it has to have run, and graphs that hold it are replayed no
// more. Encoders made with it go on working.
PafStatus paf_device_destroy(struct PafDevice *device);

// Writes a handle of a stack of `config->num_hidden_layers` layers. Their weights, an array of as many, are rounded and copied to the
// device: they can be freed when this returns. Waits for the device. The plan is two streams, or for a serial design one.
//
// # Safety
// `config` and `layers` are null or as PafEncoderConfig and PafLayerWeights say, nothing writes what they lead to during the call;
// `encoder` is null or has room for a handle.
PafStatus paf_encoder_create(struct PafDevice *device,
                             const struct PafEncoderConfig *config,
                             const struct PafLayerWeights *layers,
                             struct PafEncoder **encoder);

// Writes a handle of the same layers, whose weights both share, with streams and a plan (at first the same) of its own: for another
// thread, or for calls on another stream at the same time.
//
// # Safety
// `clone` is null or has room for a handle.
PafStatus paf_encoder_clone(struct PafEncoder *encoder,
                            struct PafEncoder **clone);

// Ends the handle; null is no error. Waits for the device, and so is not for a capture. The weights go with the last handle that has
// them.
PafStatus paf_encoder_destroy(struct PafEncoder *encoder);

// Writes how many bytes of workspace a forward call on `rows` rows takes; more rows take no less.
//
// # Safety
// `bytes` is null or has room for a size.
PafStatus paf_encoder_workspace_bytes(struct PafEncoder *encoder, size_t rows, size_t *bytes);

// Makes `plan` the encoder's: "serial", "two-stream", "fused" or "hybrid", alone or followed by variants of kernels, as paf_encoder_plan
// writes it. Kernels that it names and that are not loaded yet are loaded here.
//
// # Safety
// `plan` is null or ends with a 0.
PafStatus paf_encoder_set_plan(struct PafEncoder *encoder,
                               const char *plan);

// Copies the encoder's plan as text, at most `bytes` bytes, the last one always 0, and writes to `needed`, unless that is null, how many
// it takes.
//
// # Safety
// `buffer` has room for `bytes` bytes, or is null and `bytes` is 0; `needed` is null or has room for a size.
PafStatus paf_encoder_plan(struct PafEncoder *encoder,
                           char *buffer,
                           size_t bytes,
                           size_t *needed);

// Finds by measuring, for about `seconds`, the fastest plan for `batch` sequences of `seq_len` tokens, and makes it the encoder's. With a
// `cache`, a file's name, what was measured is kept there, or taken from there if it was measured before. Allocates, waits for the device,
// and should have it for itself: not for the middle of serving.
//
// # Safety
// `cache` is null or ends with a 0.
PafStatus paf_encoder_measure_plan(struct PafEncoder *encoder,
                                   size_t batch,
                                   size_t seq_len,
                                   double seconds,
                                   const char *cache);

// Enqueues the stack on the caller's stream, y = layers(x), and returns: allocates nothing, waits for nothing, and can be captured. Two
// streams of the encoder's own are forked from the caller's stream and joined to it by events. Calls with one encoder on different
// streams have to be ordered by the caller, as its streams are the same; paf_encoder_clone makes one with streams of its own.
// A call that fails midway leaves y undefined; a capture that it was part of should be thrown away. A graph that holds a call has what
// the call had, the encoder's weights and streams among them: all of it has to outlive the graph, and a replay is ordered as a call is.
//
// # Safety
// `call` is null or as PafForward says, its pointers to memory of the encoder's device that nothing else touches until the stream has
// run the call.
PafStatus paf_encoder_forward(struct PafEncoder *encoder,
                              const struct PafForward *call);

// Enqueues one product with its epilogue. A graph that holds a call needs the device's handle, or an encoder made with it, for as long as
// it is replayed.
//
// # Safety
// `call` is null or as PafGemm says, its pointers to memory of the device that nothing else touches until the stream has run the call.
PafStatus paf_gemm(struct PafDevice *device,
                   const struct PafGemm *call);

// Enqueues attention.
//
// # Safety
// As paf_gemm, of PafAttention.
PafStatus paf_attention(struct PafDevice *device, const struct PafAttention *call);

// Enqueues a sum with its layer norm.
//
// # Safety
// As paf_gemm, of PafNorm.
PafStatus paf_norm(struct PafDevice *device, const struct PafNorm *call);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PAF_H */
