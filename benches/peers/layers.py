"""Stacks of transformer layers as users of PyTorch write them, for a program that measures them in turns with its own.

    python3 layers.py DEVICE_ORDINAL

It speaks JSON, an object a line. First it says what it is: {"torch": ..., "cudnn": ..., "device": ..., ...}. Then it answers requests:

    {"model": {the fields of a layer's configuration by their names, "design", "num_hidden_layers"}, "dtype": "bf16" or "f16",
     "seed": number, "ways": ["eager", "two-stream", "fused", "compile"]}
        -> {"layers": number of them}
    Makes random weights, each layer's its own. "design" is a parallel one; the serial one beside it has its norms in the same place.

    {"shape": {"batch": ..., "seq_len": ...}}
        -> {"ready": [{"design", "way", "mode", "verified": [...]}, ...], "absent": [{"design", "way", "mode", "why"}, ...]}
    Makes activations; runs and records the serial and the parallel design (saf, paf) in every way that was asked for; checks each
    against float64 at a depth of two layers and at full depth. A wrong result is an error, and nothing is ready then.

    {"sample": index in "ready"}
        -> {"us": device time of one call}
    One call that is not timed, then one that is, between two events.

What fails is answered with {"error": text}, a wrong result with {"wrong": text}.

The ways: eager is one operation after the other, as a CUDA graph and, in a row of its own, launched one by one; two-stream runs the FFN
on a second stream; fused makes Q, K, V and the FFN's inner layer in one wide product, and the sum of both outputs in another, of
concatenated operands; compile is torch.compile of a layer. All but eager's second row are CUDA graphs (mode graph, not launches).
"""

import gc
import importlib.metadata
import json
import os
import sys
import warnings

import torch
import torch.nn.functional as F

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
# Two show that the first layer hands over to the second, before rounding errors have piled up.
FEW_LAYERS = 2


class Wrong(Exception):
    """A result that is not what it should be: not to be timed."""


class Config:
    def __init__(self, fields):
        vars(self).update(fields)
        self.query_size = self.num_attention_heads * self.head_dim
        self.qkv_size = self.query_size + 2 * self.num_key_value_heads * self.head_dim
        self.grouped = self.num_attention_heads != self.num_key_value_heads
        self.post_norm = self.design == "paf-post"
        self.two_norms = self.design == "paf-pre-two"
        self.act = ACTIVATIONS[self.hidden_act]

    def angles(self, seq_len, device):
        """Cosines and sines of the rotary embedding, in float64: [seq_len, dim / 2]."""
        pairs = torch.arange(0, self.rotary["dim"], 2, device=device, dtype=torch.float64)
        positions = torch.arange(seq_len, device=device, dtype=torch.float64)
        angles = torch.outer(positions, self.rotary["base"] ** (-pairs / self.rotary["dim"]))
        return angles.cos(), angles.sin()


def random_layer(c, dtype, generator, wide):
    """One layer's weights. Matrices keep the scale of what they multiply; `wide`: also side by side along K, for one product."""

    def normal(*size, deviation, mean=0.0):
        values = torch.randn(size, device=generator.device, generator=generator)
        return (values * deviation + mean).to(dtype)

    def matrix(rows, cols):
        return normal(rows, cols, deviation=cols**-0.5)

    inner = c.intermediate_size * (2 if c.gated else 1)
    # One above the other: each of them is a part without gaps.
    both = matrix(c.qkv_size + inner, c.hidden_size)
    b_both = normal(c.qkv_size + inner, deviation=0.1)
    w = {"both": both, "b_both": b_both}
    w["qkv"], w["first"] = both.split([c.qkv_size, inner])
    w["b_qkv"], w["b_first"] = b_both.split([c.qkv_size, inner])
    w["o"], w["b_o"] = matrix(c.hidden_size, c.query_size), normal(c.hidden_size, deviation=0.1)
    w["second"], w["b_second"] = matrix(c.hidden_size, c.intermediate_size), normal(c.hidden_size, deviation=0.1)
    for i in (1, 2):
        w[f"gamma_{i}"] = normal(c.hidden_size, deviation=0.1, mean=1.0)
        w[f"beta_{i}"] = normal(c.hidden_size, deviation=0.1)
    if wide:
        w["out"], w["b_out"] = torch.cat([w["o"], w["second"]], 1), w["b_o"] + w["b_second"]
    return w


# A layer, as its users write it: x and every input is [tokens, hidden_size].


def rotated(x, rotary, tables):
    dim, (cos, sin) = rotary["dim"], tables
    turned, rest = x[..., :dim], x[..., dim:]
    if rotary["interleaved"]:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def context(qkv, c, at):
    """softmax(QKᵀ/√d)·V of packed Q, K and V."""
    heads = [c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads]
    q, k, v = qkv.view(at.batch, at.seq_len, sum(heads), c.head_dim).transpose(1, 2).split(heads, 1)
    if c.rotary:
        q, k = rotated(q, c.rotary, at.tables), rotated(k, c.rotary, at.tables)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=c.causal, enable_gqa=c.grouped)
    return out.transpose(1, 2).reshape(-1, c.query_size)


def attention(x, w, c, at):
    return F.linear(context(F.linear(x, w["qkv"], w["b_qkv"]), c, at), w["o"], w["b_o"])


def activated(first, c):
    if not c.gated:
        return c.act(first)
    gate, inner = first.chunk(2, -1)
    return c.act(gate) * inner


def ffn(x, w, c):
    return F.linear(activated(F.linear(x, w["first"], w["b_first"]), c), w["second"], w["b_second"])


def norm(x, w, c, i):
    return F.layer_norm(x, (c.hidden_size,), w[f"gamma_{i}"], w[f"beta_{i}"], c.layer_norm_eps)


def saf(x, w, c, at):
    if c.post_norm:
        a = norm(x + attention(x, w, c, at), w, c, 1)
        return norm(a + ffn(a, w, c), w, c, 2)
    a = x + attention(norm(x, w, c, 1), w, c, at)
    return a + ffn(norm(a, w, c, 2), w, c)


def one_after_the_other(n_1, n_2, w, c, at):
    return attention(n_1, w, c, at), ffn(n_2, w, c)


def on_two_streams(n_1, n_2, w, c, at):
    here = torch.cuda.current_stream()
    at.side.wait_stream(here)
    with torch.cuda.stream(at.side):
        fed = ffn(n_2, w, c)
    attended = attention(n_1, w, c, at)
    here.wait_stream(at.side)
    return attended, fed


def in_wide_products(n_1, n_2, w, c, at):
    both = F.linear(n_1, w["both"], w["b_both"])
    mixed = context(both[:, : c.qkv_size], c, at)
    return (F.linear(torch.cat([mixed, activated(both[:, c.qkv_size :], c)], 1), w["out"], w["b_out"]),)


def paf(x, w, c, at, branches=one_after_the_other):
    n_1 = n_2 = x
    if not c.post_norm:
        n_1 = norm(x, w, c, 1)
        n_2 = norm(x, w, c, 2) if c.two_norms else n_1
    for addend in branches(n_1, n_2, w, c, at):
        x = x + addend
    return norm(x, w, c, 2) if c.post_norm else x


# The same in float64, for one sequence, without PyTorch's fused operations.


def reference(x, layers, c, is_saf, store):
    """What each layer gives. `store` is what happens to a tensor that an implementation of one operation after the other keeps."""

    def linear(x, weight, bias):
        return store(x @ weight.double().T + bias.double())

    def attend(x, w):
        seq_len, heads = x.shape[0], [c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads]
        q, k, v = linear(x, w["qkv"], w["b_qkv"]).view(seq_len, sum(heads), c.head_dim).transpose(0, 1).split(heads)
        if c.rotary:
            tables = [store(table) for table in c.angles(seq_len, x.device)]
            q, k = (store(rotated(t, c.rotary, tables)) for t in (q, k))
        k, v = (t.repeat_interleave(c.num_attention_heads // c.num_key_value_heads, 0) for t in (k, v))
        parts = []
        # Some queries at a time: all scores at once need not fit.
        for first in range(0, seq_len, 256):
            scores = store(q[:, first : first + 256] @ k.mT / c.head_dim**0.5)
            if c.causal:
                queries = torch.arange(first, first + scores.shape[1], device=x.device)
                keys = torch.arange(seq_len, device=x.device)
                scores = scores.masked_fill(keys > queries[:, None], -torch.inf)
            parts.append(store(store(scores.softmax(-1)) @ v))
        mixed = torch.cat(parts, 1).transpose(0, 1).reshape(seq_len, c.query_size)
        return linear(mixed, w["o"], w["b_o"])

    def feed(x, w):
        first = linear(x, w["first"], w["b_first"])
        if c.gated:
            gate, inner = first.chunk(2, -1)
            first = store(store(c.act(gate)) * inner)
        else:
            first = store(c.act(first))
        return linear(first, w["second"], w["b_second"])

    def normed(x, w, i):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + c.layer_norm_eps).sqrt()
        return store(scaled * w[f"gamma_{i}"].double() + w[f"beta_{i}"].double())

    for w in layers:
        if is_saf:
            a = store(x + attend(x if c.post_norm else normed(x, w, 1), w))
            if c.post_norm:
                a = normed(a, w, 1)
            x = store(a + feed(a if c.post_norm else normed(a, w, 2), w))
        else:
            n_1 = x if c.post_norm else normed(x, w, 1)
            n_2 = normed(x, w, 2) if c.two_norms else n_1
            x = store(store(x + attend(n_1, w)) + feed(n_2, w))
        if c.post_norm:
            x = normed(x, w, 2)
        yield x


def verified(what, got, exact, naive):
    """How far `got` is from `exact`, if that is at most twice as far as `naive`, and what rounding it costs."""
    if not bool(got.isfinite().all()):
        raise Wrong(f"{what}: not all elements are finite")
    rounding = torch.finfo(got.dtype).eps / 2
    got = got.double()

    def distances(values):
        error = (values - exact).abs()
        return error.max().item(), (error.norm() / exact.norm()).item()

    (error, l2), (naive_error, naive_l2) = distances(got), distances(naive)
    found = {
        "what": what,
        "max_error": error,
        "bound": 2 * naive_error + rounding * exact.abs().max().item(),
        "relative_l2": l2,
        "relative_l2_bound": 2 * naive_l2 + rounding,
    }
    if not (error <= found["bound"] and l2 <= found["relative_l2_bound"]):
        raise Wrong(f"{what} is off by {error:.3e} (bound {found['bound']:.3e}), in L2 {l2:.3e} ({found['relative_l2_bound']:.3e})")
    if not found["relative_l2_bound"] < 1:
        raise Wrong(f"{what}: the naive result is so far off that zeros would pass")
    return found


class Model:
    def __init__(self, request, device):
        self.c = Config(request["model"])
        self.dtype, self.device, self.ways = DTYPES[request["dtype"]], device, request["ways"]
        self.generator = torch.Generator(device).manual_seed(request["seed"])
        wide = "fused" in self.ways and not self.c.two_norms
        layers = range(self.c.num_hidden_layers)
        self.layers = [random_layer(self.c, self.dtype, self.generator, wide) for _ in layers]


class Shape:
    """The stacks on one batch shape, ready to be sampled."""

    def __init__(self, model, shape):
        self.model, self.batch, self.seq_len = model, shape["batch"], shape["seq_len"]
        c, device = model.c, model.device
        size = (self.batch * self.seq_len, c.hidden_size)
        self.x = torch.randn(size, device=device, dtype=model.dtype, generator=model.generator)
        self.tables = [table.to(model.dtype) for table in c.angles(self.seq_len, device)] if c.rotary else None
        self.side = torch.cuda.Stream()
        self.expected = {}
        self.ready, self.absent, self.calls = [], [], []
        for way in model.ways:
            for design in ("saf", "paf"):
                if way in ("eager", "compile") or design == "paf":
                    self.prepare(design, way)

    def prepare(self, design, way):
        self.attempt({"design": design, "way": way, "mode": "graph"}, self.recorded)
        if way == "eager":
            self.attempt({"design": design, "way": way, "mode": "launches"}, self.launched)

    def attempt(self, row, make):
        """A row that is ready, with its checks and its call, which `make` gives, or one that is absent."""
        try:
            checks, call = make(row)
        except Wrong:
            raise
        except Exception as error:  # whatever keeps it from running: others may run
            torch.cuda.empty_cache()
            text = str(error).strip().splitlines() or [""]
            self.absent.append({**row, "why": f"{type(error).__name__}: {text[0]}"})
            return
        self.ready.append({**row, "verified": checks})
        self.calls.append(call)

    def recorded(self, row):
        layer, few = self.layer(row["design"], row["way"]), self.model.layers[:FEW_LAYERS]
        checks = [self.check(row, self.stack(layer, few), len(few))]
        graph, out = self.record(lambda: self.stack(layer, self.model.layers))
        graph.replay()
        checks.append(self.check(row, out, len(self.model.layers)))
        return checks, graph.replay

    def launched(self, row):
        layer = self.layer(row["design"], row["way"])

        def call():
            return self.stack(layer, self.model.layers)

        return [self.check(row, call(), len(self.model.layers))], call

    def layer(self, design, way):
        c = self.model.c
        if way == "fused" and c.two_norms:
            raise NotImplementedError("with two norms the first products read different inputs")
        if design == "saf":
            layer = lambda x, w: saf(x, w, c, self)
        else:
            branches = {"two-stream": on_two_streams, "fused": in_wide_products}.get(way, one_after_the_other)
            layer = lambda x, w: paf(x, w, c, self, branches)
        return torch.compile(layer, dynamic=False, fullgraph=True) if way == "compile" else layer

    def stack(self, layer, layers):
        y = self.x
        for w in layers:
            y = layer(y, w)
        return y

    def record(self, run):
        """A graph of `run` and what it writes. It runs before, so that what happens once has happened."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
        return graph, out

    def check(self, row, out, depth):
        """The last sequence: sequences do not see each other, but each has to be where it belongs."""
        if row["design"] not in self.expected:
            x, layers = self.x[-self.seq_len :].double(), self.model.layers
            depths = (min(FEW_LAYERS, len(layers)), len(layers))
            sides = []
            for store in (lambda t: t, lambda t: t.to(self.model.dtype).double()):
                outputs = enumerate(reference(x, layers, self.model.c, row["design"] == "saf", store), 1)
                sides.append({depth: y for depth, y in outputs if depth in depths})
            self.expected[row["design"]] = sides
        exact, naive = (side[depth] for side in self.expected[row["design"]])
        what = f"PyTorch {row['design']} {row['way']} {row['mode']}, {self.batch} × {self.seq_len}, {depth} layers"
        return verified(what, out[-self.seq_len :], exact, naive)

    def sample(self, index):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.calls[index]()
        start.record()
        self.calls[index]()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3


def installed(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main():
    # Only answers go where answers are expected, whatever a library prints.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message):
        print(json.dumps(message), file=answers, flush=True)

    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    device = torch.device("cuda", int(sys.argv[1]))
    torch.cuda.set_device(device)
    answer(
        {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": installed("triton"),
            "transformers": installed("transformers"),
            "device": torch.cuda.get_device_name(),
        }
    )
    model = shape = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "sample" in request:
                answer({"us": shape.sample(request["sample"])})
                continue
            # What the last one held goes first.
            shape = None
            if "model" in request:
                model = None
            torch.compiler.reset()
            gc.collect()
            torch.cuda.empty_cache()
            if "model" in request:
                model = Model(request, device)
                answer({"layers": len(model.layers)})
            else:
                shape = Shape(model, request["shape"])
                answer({"ready": shape.ready, "absent": shape.absent})
        except Wrong as error:
            answer({"wrong": str(error)})
        except Exception as error:  # whoever asked has to hear of it
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
