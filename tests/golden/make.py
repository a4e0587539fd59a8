"""Makes the golden vectors of tests/golden.rs: layers computed by PyTorch in float64, from its own functions.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.8.0 numpy==2.4.6 safetensors==0.8.0
    /tmp/golden/bin/python tests/golden/make.py

Writes one safetensors file a case beside this script; seeds are fixed, so that a second run writes the same files. Those of gated
layers come from torch 2.15.0, which differs from 2.8.0 in the last bits of y.

A file holds x [batch, seq_len, hidden_size] (float32; NaN where padding), lengths [batch] (int64), the weights
(float32, layer by layer: `0.w_qkv`, ...), and y (float64; 0 where padding). Its metadata holds the configuration as
JSON under one key, `config` (of several, safetensors shuffles the order); `num_key_value_heads`, `rotary` and `gated` are
there only where a layer is about them.
Nothing here comes from the crate: a sequence is computed by itself and without its padding, so that there is no mask
whose meaning the two could share.
"""

import itertools
import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
DESIGNS = ["saf-post", "paf-post", "saf-pre", "paf-pre", "paf-pre-two"]
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
# The activations of gates.
GATES = ACTIVATIONS | {"silu": F.silu}
# head_dim, num_attention_heads, hidden_size, intermediate_size, eps: in one hidden_size = heads * head_dim, as usual.
DIMENSIONS = [
    (32, 2, 64, 40, 1e-5),
    (64, 2, 24, 52, 1e-12),
    (80, 1, 31, 33, 1e-5),
    (96, 1, 17, 64, 1e-5),
    (128, 2, 20, 29, 1e-6),
]
# Lengths of the sequences, and what they are padded to: none padded, empty ones, one token, and sequences that are
# longer than any block of an implementation is likely to be.
BATCHES = [([7, 0, 5], 7), ([1], 1), ([37, 12], 37), ([0, 3, 3, 1], 4), ([70, 65], 71)]


# Layers with fewer key and value heads than query heads, or with rotary embeddings (dim, base, interleaved: pairs of
# neighbours as in GPT-J, else of halves as in GPT-NeoX), or both: design, causal, activation, head_dim, query heads, key
# and value heads, hidden_size, intermediate_size, rotary, index of BATCHES.
GROUPED_OR_ROTARY = [
    ("paf-post", False, "gelu", 64, 4, 2, 24, 40, None, 0),
    ("paf-pre", True, "gelu", 32, 5, 1, 19, 33, None, 4),
    ("paf-pre-two", True, "gelu", 96, 2, 2, 20, 29, (24, 10000.0, False), 2),
    ("paf-pre", True, "gelu_new", 64, 2, 2, 24, 31, (64, 10000.0, True), 4),
    ("paf-pre", True, "gelu", 64, 3, 1, 17, 40, (64, 10000.0, False), 4),
    ("saf-pre", False, "relu", 32, 6, 2, 21, 37, (10, 500000.0, True), 2),
    ("paf-pre", True, "gelu_new", 256, 2, 1, 16, 24, (64, 10000.0, True), 3),
]


# Layers with a gated FFN, likewise.
GATED = [
    ("paf-pre", True, "silu", 32, 4, 2, 24, 37, (32, 8e6, True), 2),
    ("saf-post", False, "silu", 32, 2, None, 20, 31, None, 0),
    ("paf-pre-two", False, "gelu", 64, 1, None, 18, 23, None, 3),
]


def random_weights(generator, head_dim, heads, hidden, inner, kv_heads=None, gated=False):
    query = heads * head_dim
    qkv = query + 2 * (kv_heads or heads) * head_dim

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float32)

    def matrix(rows, cols):
        return normal(rows, cols) * cols**-0.5

    weights = {
        "w_qkv": matrix(qkv, hidden),
        "b_qkv": 0.1 * normal(qkv),
        "w_o": matrix(hidden, query),
        "b_o": 0.1 * normal(hidden),
        "w_1": matrix(inner, hidden),
        "b_1": 0.1 * normal(inner),
        "w_2": matrix(hidden, inner),
        "b_2": 0.1 * normal(hidden),
        "ln_1.gamma": 1 + 0.1 * normal(hidden),
        "ln_1.beta": 0.1 * normal(hidden),
        "ln_2.gamma": 1 + 0.1 * normal(hidden),
        "ln_2.beta": 0.1 * normal(hidden),
    }
    if gated:
        weights |= {"w_gate": matrix(inner, hidden), "b_gate": 0.1 * normal(inner)}
    return weights


def rotated(x, dim, base, interleaved):
    """Rotary embedding of x [heads, length, head_dim]: pairs are complex numbers, multiplied by exp(i·angle)."""
    positions = torch.arange(x.shape[1], dtype=torch.float64)
    frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.outer(positions, frequencies)
    turns = torch.polar(torch.ones_like(angles), angles)
    part, rest = x[..., :dim], x[..., dim:]
    if interleaved:
        pairs = torch.stack([part[..., 0::2], part[..., 1::2]], dim=-1)
    else:
        pairs = torch.stack(part.chunk(2, dim=-1), dim=-1)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turns)
    # Neighbours: a pair's two side by side. Halves: all first ones, then all second ones.
    part = turned.flatten(-2) if interleaved else torch.cat([turned[..., 0], turned[..., 1]], dim=-1)
    return torch.cat([part, rest], dim=-1)


def layer(x, w, design, causal, act, heads, eps, kv_heads=None, rotary=None):
    """One layer over one sequence [length, hidden]."""
    kv_heads = kv_heads or heads

    def attn(x):
        length = x.shape[0]
        # Heads of queries, of keys, of values, in this order along the columns.
        all_heads = F.linear(x, w["w_qkv"], w["b_qkv"]).view(length, heads + 2 * kv_heads, -1).transpose(0, 1)
        q, k, v = all_heads.split([heads, kv_heads, kv_heads])
        if rotary:
            q, k = rotated(q, *rotary), rotated(k, *rotary)
        if kv_heads < heads:
            k, v = (t.repeat_interleave(heads // kv_heads, dim=0) for t in (k, v))
        context = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return F.linear(context.transpose(0, 1).reshape(length, -1), w["w_o"], w["b_o"])

    def ffn(x):
        inner = F.linear(x, w["w_1"], w["b_1"])
        if "w_gate" in w:
            inner = GATES[act](F.linear(x, w["w_gate"], w["b_gate"])) * inner
        else:
            inner = ACTIVATIONS[act](inner)
        return F.linear(inner, w["w_2"], w["b_2"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[name + ".gamma"], w[name + ".beta"], eps)

    if design == "saf-post":
        a = norm(x + attn(x), "ln_1")
        return norm(a + ffn(a), "ln_2")
    if design == "paf-post":
        return norm(x + attn(x) + ffn(x), "ln_2")
    if design == "saf-pre":
        a = x + attn(norm(x, "ln_1"))
        return a + ffn(norm(a, "ln_2"))
    if design == "paf-pre":
        n = norm(x, "ln_1")
        return x + attn(n) + ffn(n)
    if design == "paf-pre-two":
        return x + attn(norm(x, "ln_1")) + ffn(norm(x, "ln_2"))
    raise ValueError(design)


def write(seed, design, causal, act, head_dim, heads, hidden, inner, eps, layers, batch, kv_heads=None, rotary=None, gated=False):
    """One file; weights and activations from the seed."""
    lengths, seq_len = batch
    eps = torch.tensor(eps, dtype=torch.float32).item()
    generator = torch.Generator().manual_seed(seed)
    weights = [random_weights(generator, head_dim, heads, hidden, inner, kv_heads, gated) for _ in range(layers)]
    x = torch.full((len(lengths), seq_len, hidden), float("nan"), dtype=torch.float32)
    y = torch.zeros(len(lengths), seq_len, hidden, dtype=torch.float64)
    for sequence, length in enumerate(lengths):
        if length == 0:
            continue
        x[sequence, :length] = torch.randn(length, hidden, generator=generator, dtype=torch.float32)
        h = x[sequence, :length].double()
        for w in weights:
            w = {name: t.double() for name, t in w.items()}
            h = layer(h, w, design, causal, act, heads, eps, kv_heads, rotary)
        y[sequence, :length] = h
    tensors = {"x": x, "y": y, "lengths": torch.tensor(lengths)}
    tensors |= {f"{l}.{name}": t for l, w in enumerate(weights) for name, t in w.items()}
    config = {
        "design": design,
        "causal": causal,
        "hidden_act": act,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "head_dim": head_dim,
        "intermediate_size": inner,
        "layer_norm_eps": eps,
        "num_hidden_layers": layers,
    }
    name = f"{design}_{'causal' if causal else 'full'}_{act}_d{head_dim}"
    if kv_heads:
        config["num_key_value_heads"] = kv_heads
        name += f"_h{heads}_{kv_heads}"
    if rotary:
        dim, base, interleaved = rotary
        config["rotary"] = {"dim": dim, "base": base, "interleaved": interleaved}
        name += f"_{'neighbours' if interleaved else 'halves'}{dim}"
    if gated:
        config["gated"] = True
        name += "_gated"
    save_file(tensors, HERE / f"{name}.safetensors", {"config": json.dumps(config)})


def main():
    for old in HERE.glob("*.safetensors"):
        old.unlink()
    acts = itertools.cycle(ACTIVATIONS)
    for i, (causal, design) in enumerate(itertools.product([False, True], DESIGNS)):
        # Shifted by a different amount in the second round, so that a design meets other dimensions there.
        head_dim, heads, hidden, inner, eps = DIMENSIONS[(i + i // 5) % 5]
        batch, layers = BATCHES[(2 * i + i // 5) % 5], 2 if i % 5 == 1 else 1
        write(1000 + i, design, causal, next(acts), head_dim, heads, hidden, inner, eps, layers, batch)
    for i, (design, causal, act, head_dim, heads, kv_heads, hidden, inner, rotary, batch) in enumerate(GROUPED_OR_ROTARY):
        layers = 2 if i == 2 else 1
        write(
            2000 + i, design, causal, act, head_dim, heads, hidden, inner, 1e-5, layers, BATCHES[batch], kv_heads, rotary
        )
    for i, (design, causal, act, head_dim, heads, kv_heads, hidden, inner, rotary, batch) in enumerate(GATED):
        layers = 2 if i == 0 else 1
        write(
            3000 + i, design, causal, act, head_dim, heads, hidden, inner, 1e-5, layers, BATCHES[batch], kv_heads, rotary,
            gated=True,
        )


if __name__ == "__main__":
    main()
