"""A stack of parallel layers on PyTorch's tensors and current stream, through the C ABI with nothing but ctypes.

    python3 examples/pytorch.py [LIBRARY]        LIBRARY: libpaf_cuda.so, or set PAF_LIBRARY

Compares with PyTorch in float64, times both, then does it once more inside torch.cuda.graph. Exits with 1 where something is wrong.
"""

import ctypes
import os
import sys
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_size_t, c_void_p

import torch
import torch.nn.functional as F

ABI_VERSION = 1
F32, BF16, F16 = 1, 2, 3  # PafDtype
GELU = 1  # PafHiddenAct
PAF_POST_NORM = 2  # PafDesign
DEVICE_MEMORY = 2  # PafMemory


class Struct(ctypes.Structure):
    """A struct of paf.h, which begins with its size; fields that are not named are 0."""

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)


class EncoderConfig(Struct):
    _fields_ = (
        [(name, c_size_t) for name in (
            "struct_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
            "num_hidden_layers", "max_rows", "rotary_dim")]
        + [("rotary_base", c_float), ("rotary_interleaved", c_int32), ("layer_norm_eps", c_float)]
        + [(name, c_int32) for name in ("hidden_act", "gated", "causal", "design", "dtype")]
    )


WEIGHTS = ("w_qkv", "b_qkv", "w_o", "b_o", "w_1", "b_1", "w_gate", "b_gate", "w_2", "b_2",
           "ln_1_gamma", "ln_1_beta", "ln_2_gamma", "ln_2_beta")


class LayerWeights(Struct):
    _fields_ = [("struct_size", c_size_t), ("dtype", c_int32), ("memory", c_int32)] + [(name, c_void_p) for name in WEIGHTS]


class Batch(Struct):
    _fields_ = [("struct_size", c_size_t), ("batch", c_size_t), ("seq_len", c_size_t), ("packed_rows", c_size_t),
                ("lengths", c_void_p), ("first_rows", c_void_p), ("positions", c_void_p)]


class Forward(Struct):
    _fields_ = [("struct_size", c_size_t), ("stream", c_void_p), ("batch", POINTER(Batch)), ("x", c_void_p), ("y", c_void_p),
                ("workspace", c_void_p), ("workspace_bytes", c_size_t), ("schedule", c_int32), ("reserved", c_int32)]


class Paf:
    """The library. Every call that does not come to 0 raises its text."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.paf_last_error.argtypes = [c_void_p, c_char_p, c_size_t]
        self.library.paf_last_error.restype = c_size_t
        if self.library.paf_abi_version() != ABI_VERSION:
            raise RuntimeError(f"{path} has ABI {self.library.paf_abi_version()}, this was written for {ABI_VERSION}")

    def __call__(self, name, *arguments):
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            text = ctypes.create_string_buffer(1024)
            self.library.paf_last_error(None, text, len(text))
            raise RuntimeError(f"{name}: status {status}: {text.value.decode()}")


class Encoder:
    """Layers y = LN2(x + Attn(x) + FFN(x)), called like a torch module on [batch, seq_len, hidden_size] in bfloat16."""

    def __init__(self, paf, config, layers):
        self.paf, self.handle = paf, c_void_p()
        device = c_void_p()
        paf("paf_device_open", c_size_t(torch.cuda.current_device()), byref(device))
        given = (LayerWeights * len(layers))(*[
            LayerWeights(dtype=BF16, memory=DEVICE_MEMORY, **{name: tensor.data_ptr() for name, tensor in layer.items()})
            for layer in layers])
        paf("paf_encoder_create", device, byref(config), given, byref(self.handle))
        paf("paf_device_destroy", device)  # the encoder keeps what it needs
        self.workspaces = {}

    def workspace(self, rows):
        if rows not in self.workspaces:
            needed = c_size_t()
            self.paf("paf_encoder_workspace_bytes", self.handle, c_size_t(rows), byref(needed))
            self.workspaces[rows] = torch.empty(needed.value, dtype=torch.uint8, device="cuda")
        return self.workspaces[rows]

    def plan(self, batch, seq_len, seconds):
        """Measures which schedule and kernels are the fastest, and returns their names."""
        self.paf("paf_encoder_measure_plan", self.handle, c_size_t(batch), c_size_t(seq_len), ctypes.c_double(seconds), None)
        text = ctypes.create_string_buffer(1024)
        self.paf("paf_encoder_plan", self.handle, text, c_size_t(len(text)), None)
        return text.value.decode()

    def __call__(self, x):
        assert x.is_contiguous() and x.dtype == torch.bfloat16 and x.is_cuda
        batch, seq_len, _ = x.shape
        y, workspace = torch.empty_like(x), self.workspace(batch * seq_len)
        call = Forward(stream=torch.cuda.current_stream().cuda_stream, batch=ctypes.pointer(Batch(batch=batch, seq_len=seq_len)),
                       x=x.data_ptr(), y=y.data_ptr(), workspace=workspace.data_ptr(), workspace_bytes=workspace.numel())
        self.paf("paf_encoder_forward", self.handle, byref(call))
        return y

    def destroy(self):
        self.paf("paf_encoder_destroy", self.handle)


def random_layers(config, seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    h, f = config.hidden_size, config.intermediate_size

    def normal(*shape, scale, mean=0.0):
        return (torch.randn(*shape, generator=generator, device="cuda") * scale + mean).bfloat16()

    return [{
        "w_qkv": normal(3 * h, h, scale=h ** -0.5), "b_qkv": normal(3 * h, scale=0.1),
        "w_o": normal(h, h, scale=h ** -0.5), "b_o": normal(h, scale=0.1),
        "w_1": normal(f, h, scale=h ** -0.5), "b_1": normal(f, scale=0.1),
        "w_2": normal(h, f, scale=f ** -0.5), "b_2": normal(h, scale=0.1),
        "ln_2_gamma": normal(h, scale=0.1, mean=1.0), "ln_2_beta": normal(h, scale=0.1),
    } for _ in range(config.num_hidden_layers)]


def reference(config, layers, x):
    """The same layers in torch, in the type of x."""
    for layer in layers:
        w = {name: tensor.to(x.dtype) for name, tensor in layer.items()}
        heads = F.linear(x, w["w_qkv"], w["b_qkv"]).unflatten(-1, (3, config.num_attention_heads, -1))
        context = F.scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4).unbind())
        attention = F.linear(context.transpose(1, 2).flatten(2), w["w_o"], w["b_o"])
        ffn = F.linear(F.gelu(F.linear(x, w["w_1"], w["b_1"])), w["w_2"], w["b_2"])
        x = F.layer_norm(x + attention + ffn, (config.hidden_size,), w["ln_2_gamma"], w["ln_2_beta"], 1e-5)
    return x


def milliseconds(run, repeats=50):
    for _ in range(5):
        run()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def captured(run):
    """A graph of one call, and where its result is. Memory is warm before the capture, in which torch may only take from its pool."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result


def relative_error(got, expected):
    return float((got.double() - expected).norm() / expected.norm())


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PAF_LIBRARY", "libpaf_cuda.so")
    batch, seq_len = 2, 128
    config = EncoderConfig(hidden_size=1024, num_attention_heads=16, intermediate_size=4096, num_hidden_layers=6,
                           max_rows=batch * seq_len, hidden_act=GELU, design=PAF_POST_NORM, dtype=BF16)
    layers = random_layers(config, 1)
    x = torch.randn(batch, seq_len, config.hidden_size, device="cuda", generator=torch.Generator("cuda").manual_seed(2)).bfloat16()
    encoder = Encoder(Paf(path), config, layers)

    expected = reference(config, layers, x.double())
    torchs = relative_error(reference(config, layers, x), expected)
    ours = relative_error(encoder(x), expected)
    print(f"relative error against float64: PAF {ours:.5f}, torch in bfloat16 {torchs:.5f}")
    failed = not ours <= 2 * torchs

    print("plan:", encoder.plan(batch, seq_len, 2.0))
    eager = encoder(x)
    planned = relative_error(eager, expected)
    failed |= not planned <= 2 * torchs

    # Inside torch's capture: the library's streams fork from torch's and join it.
    graph, result = captured(lambda: encoder(x))
    torch_graph, _ = captured(lambda: reference(config, layers, x))
    result.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    same = torch.equal(result, eager)
    print("inside torch.cuda.graph:", "the same bits" if same else "OTHER BITS")
    failed |= not same

    for name, ours, torchs in [("eager", lambda: encoder(x), lambda: reference(config, layers, x)),
                               ("graph", graph.replay, torch_graph.replay)]:
        paf_ms, torch_ms = milliseconds(ours), milliseconds(torchs)
        print(f"{name}: PAF {paf_ms:.3f} ms, torch {torch_ms:.3f} ms, torch / PAF {torch_ms / paf_ms:.2f}")
    encoder.destroy()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
