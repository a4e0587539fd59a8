/* Two parallel layers on the caller's memory and stream: padded sequences, a second encoder on the same weights in another schedule, a
 * forward call inside a stream capture, and one GEMM by itself. Exits with 1 where a result is not what it has to be. */
#include <cuda_runtime_api.h>
#include <paf.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HIDDEN = 256, HEADS = 4, INTERMEDIATE = 1024, LAYERS = 2, BATCH = 2, SEQ_LEN = 48, ROWS = BATCH * SEQ_LEN };

static void check(const char *call, PafStatus status, const void *handle) {
    if (status != PAF_STATUS_OK) {
        char text[512];
        paf_last_error(handle, text, sizeof text);
        fprintf(stderr, "%s: status %d: %s\n", call, (int)status, text);
        exit(1);
    }
}

static void check_cuda(const char *call, cudaError_t error) {
    if (error != cudaSuccess) {
        fprintf(stderr, "%s: %s\n", call, cudaGetErrorString(error));
        exit(1);
    }
}

#define PAF(call, handle) check(#call, (call), (handle))
#define CUDA(call) check_cuda(#call, (call))

/* Uniform in -scale to scale; the same every time. */
static float uniform(float scale) {
    static unsigned long long state = 1;
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return scale * ((float)(state >> 40) / (float)(1 << 23) - 1.0f);
}

static float *random_floats(size_t count, float scale) {
    float *values = malloc(count * sizeof *values);
    if (values == NULL) {
        exit(1);
    }
    for (size_t i = 0; i < count; i++) {
        values[i] = uniform(scale);
    }
    return values;
}

/* bfloat16 is the upper half of a float; cut, not rounded, which is as good for made-up numbers. */
static unsigned short to_bf16(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return (unsigned short)(bits >> 16);
}

static float from_bf16(unsigned short half) {
    unsigned bits = (unsigned)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static unsigned short *random_bf16(size_t count, float scale) {
    unsigned short *values = malloc(count * sizeof *values);
    if (values == NULL) {
        exit(1);
    }
    for (size_t i = 0; i < count; i++) {
        values[i] = to_bf16(uniform(scale));
    }
    return values;
}

static void *to_device(const void *from, size_t bytes) {
    void *to;
    CUDA(cudaMalloc(&to, bytes));
    CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
    return to;
}

static void require(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "%s\n", what);
        exit(1);
    }
    printf("%s: yes\n", what);
}

/* c = relu(a * transposed(w) + bias) by itself, against a loop on the host. */
static void one_gemm(PafDevice *device, cudaStream_t stream) {
    enum { M = 33, N = 64, K = 128 };
    unsigned short *a = random_bf16(M * K, 1), *w = random_bf16(N * K, 1), *bias = random_bf16(N, 1), c[M * N] = {0};
    void *on_device = to_device(c, sizeof c);
    PafGemm gemm = {
        .struct_size = sizeof gemm,
        .stream = stream,
        .dtype = PAF_DTYPE_BF16,
        .activation = PAF_HIDDEN_ACT_RELU,
        .m = M,
        .n = N,
        .k = K,
        .a = to_device(a, M * K * 2),
        .w = to_device(w, N * K * 2),
        .bias = to_device(bias, N * 2),
        .c = on_device,
    };
    PAF(paf_gemm(device, &gemm), device);
    CUDA(cudaStreamSynchronize(stream));
    CUDA(cudaMemcpy(c, on_device, sizeof c, cudaMemcpyDeviceToHost));
    int agrees = 1;
    for (int row = 0; row < M; row++) {
        for (int col = 0; col < N; col++) {
            float sum = from_bf16(bias[col]);
            for (int k = 0; k < K; k++) {
                sum += from_bf16(a[row * K + k]) * from_bf16(w[col * K + k]);
            }
            sum = sum > 0 ? sum : 0;
            agrees &= fabsf(from_bf16(c[row * N + col]) - sum) <= 0.01f * fabsf(sum) + 0.01f;
        }
    }
    require(agrees, "a GEMM agrees with a loop on the host");
    CUDA(cudaFree((void *)gemm.a));
    CUDA(cudaFree((void *)gemm.w));
    CUDA(cudaFree((void *)gemm.bias));
    CUDA(cudaFree(on_device));
    free(a);
    free(w);
    free(bias);
}

int main(void) {
    if (paf_abi_version() != PAF_ABI_VERSION) {
        fprintf(stderr, "the library has ABI %u, this program was compiled for %u\n", paf_abi_version(), PAF_ABI_VERSION);
        return 1;
    }
    PafDevice *device;
    PAF(paf_device_open(0, &device), NULL);

    PafEncoderConfig config = {
        .struct_size = sizeof config,
        .hidden_size = HIDDEN,
        .num_attention_heads = HEADS,
        .intermediate_size = INTERMEDIATE,
        .num_hidden_layers = LAYERS,
        .max_rows = ROWS,
        .hidden_act = PAF_HIDDEN_ACT_GELU,
        .design = PAF_DESIGN_PAF_PRE_NORM,
        .dtype = PAF_DTYPE_BF16,
    };
    /* Biases and betas are left null, which is zeros; gammas, which is ones. */
    PafLayerWeights layers[LAYERS];
    memset(layers, 0, sizeof layers);
    for (int i = 0; i < LAYERS; i++) {
        layers[i].struct_size = sizeof layers[i];
        layers[i].dtype = PAF_DTYPE_F32;
        layers[i].memory = PAF_MEMORY_HOST;
        layers[i].w_qkv = random_floats(3 * HIDDEN * HIDDEN, 0.1f);
        layers[i].w_o = random_floats(HIDDEN * HIDDEN, 0.1f);
        layers[i].w_1 = random_floats(INTERMEDIATE * HIDDEN, 0.1f);
        layers[i].w_2 = random_floats(HIDDEN * INTERMEDIATE, 0.05f);
    }
    PafEncoder *encoder, *other;
    PAF(paf_encoder_create(device, &config, layers, &encoder), device);
    PAF(paf_encoder_clone(encoder, &other), encoder);
    for (int i = 0; i < LAYERS; i++) {
        free((void *)layers[i].w_qkv);
        free((void *)layers[i].w_o);
        free((void *)layers[i].w_1);
        free((void *)layers[i].w_2);
    }

    size_t workspace_bytes;
    PAF(paf_encoder_workspace_bytes(encoder, ROWS, &workspace_bytes), encoder);
    size_t bytes = ROWS * HIDDEN * 2;
    unsigned short *x = random_bf16(ROWS * HIDDEN, 1), *y = malloc(bytes), *serial = malloc(bytes), *captured = malloc(bytes);
    int lengths[BATCH] = {SEQ_LEN, 29};
    void *device_x = to_device(x, bytes), *device_y, *workspace;
    int *device_lengths = to_device(lengths, sizeof lengths);
    CUDA(cudaMalloc(&device_y, bytes));
    CUDA(cudaMalloc(&workspace, workspace_bytes));
    cudaStream_t stream;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));

    PafBatch batch = {.struct_size = sizeof batch, .batch = BATCH, .seq_len = SEQ_LEN, .lengths = device_lengths};
    PafForward call = {
        .struct_size = sizeof call,
        .stream = stream,
        .batch = &batch,
        .x = device_x,
        .y = device_y,
        .workspace = workspace,
        .workspace_bytes = workspace_bytes,
    };
    PAF(paf_encoder_forward(encoder, &call), encoder);
    CUDA(cudaMemcpyAsync(y, device_y, bytes, cudaMemcpyDeviceToHost, stream));
    CUDA(cudaStreamSynchronize(stream));
    int finite = 1, changed = 0, zero = 1;
    for (int i = 0; i < ROWS * HIDDEN; i++) {
        int padding = i / HIDDEN % SEQ_LEN >= lengths[i / HIDDEN / SEQ_LEN];
        finite &= isfinite(from_bf16(y[i])) != 0;
        changed |= y[i] != x[i];
        zero &= !padding || from_bf16(y[i]) == 0;
    }
    require(finite && changed, "the output is finite, and not the input");
    require(zero, "rows of padding are zeros");

    /* The same weights in another order of kernels, which gives the same bits. */
    PAF(paf_encoder_set_plan(other, "serial"), other);
    PAF(paf_encoder_forward(other, &call), other);
    CUDA(cudaMemcpyAsync(serial, device_y, bytes, cudaMemcpyDeviceToHost, stream));
    CUDA(cudaStreamSynchronize(stream));
    require(memcmp(y, serial, bytes) == 0, "one stream gives the bits of two");

    /* Inside the caller's own capture. */
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    PAF(paf_encoder_forward(encoder, &call), encoder);
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiateWithFlags(&executable, graph, 0));
    CUDA(cudaMemsetAsync(device_y, 0xff, bytes, stream));
    CUDA(cudaGraphLaunch(executable, stream));
    CUDA(cudaMemcpyAsync(captured, device_y, bytes, cudaMemcpyDeviceToHost, stream));
    CUDA(cudaStreamSynchronize(stream));
    require(memcmp(y, captured, bytes) == 0, "a captured call gives them, too");
    CUDA(cudaGraphExecDestroy(executable));
    CUDA(cudaGraphDestroy(graph));

    one_gemm(device, stream);

    PAF(paf_encoder_destroy(other), other);
    PAF(paf_encoder_destroy(encoder), encoder);
    PAF(paf_device_destroy(device), device);
    CUDA(cudaFree(workspace));
    CUDA(cudaFree(device_y));
    CUDA(cudaFree(device_x));
    CUDA(cudaFree(device_lengths));
    CUDA(cudaStreamDestroy(stream));
    free(x);
    free(y);
    free(serial);
    free(captured);
    return 0;
}
