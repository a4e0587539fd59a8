"""Makes the golden vectors of tests/golden.rs: layers computed by PyTorch in float64, from its own functions.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.8.0 numpy==2.4.6 safetensors==0.8.0
    /tmp/golden/bin/python tests/golden/make.py

Writes one safetensors file a case beside this script; seeds are fixed, so that a second run writes the same files.

A file holds x [batch, seq_len, hidden_size] (float32; NaN where padding), lengths [batch] (int64), the weights
(float32, layer by layer: `0.w_qkv`, ...), and y (float64; 0 where padding). Its metadata holds the configuration as
JSON under one key, `config` (of several, safetensors shuffles the order).
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


def random_weights(generator, head_dim, heads, hidden, inner):
    query = heads * head_dim

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float32)

    def matrix(rows, cols):
        return normal(rows, cols) * cols**-0.5

    return {
        "w_qkv": matrix(3 * query, hidden),
        "b_qkv": 0.1 * normal(3 * query),
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


def layer(x, w, design, causal, act, heads, eps):
    """One layer over one sequence [length, hidden]."""

    def attn(x):
        length = x.shape[0]
        q, k, v = (
            part.view(length, heads, -1).transpose(0, 1)
            for part in F.linear(x, w["w_qkv"], w["b_qkv"]).chunk(3, dim=-1)
        )
        context = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return F.linear(context.transpose(0, 1).reshape(length, -1), w["w_o"], w["b_o"])

    def ffn(x):
        return F.linear(ACTIVATIONS[act](F.linear(x, w["w_1"], w["b_1"])), w["w_2"], w["b_2"])

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


def main():
    for old in HERE.glob("*.safetensors"):
        old.unlink()
    acts = itertools.cycle(ACTIVATIONS)
    for i, (causal, design) in enumerate(itertools.product([False, True], DESIGNS)):
        # Shifted by a different amount in the second round, so that a design meets other dimensions there.
        head_dim, heads, hidden, inner, eps = DIMENSIONS[(i + i // 5) % 5]
        lengths, seq_len = BATCHES[(2 * i + i // 5) % 5]
        act, layers = next(acts), 2 if i % 5 == 1 else 1
        eps = torch.tensor(eps, dtype=torch.float32).item()
        generator = torch.Generator().manual_seed(1000 + i)
        weights = [random_weights(generator, head_dim, heads, hidden, inner) for _ in range(layers)]
        x = torch.full((len(lengths), seq_len, hidden), float("nan"), dtype=torch.float32)
        y = torch.zeros(len(lengths), seq_len, hidden, dtype=torch.float64)
        for sequence, length in enumerate(lengths):
            if length == 0:
                continue
            x[sequence, :length] = torch.randn(length, hidden, generator=generator, dtype=torch.float32)
            h = x[sequence, :length].double()
            for w in weights:
                h = layer(h, {name: t.double() for name, t in w.items()}, design, causal, act, heads, eps)
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
        name = f"{design}_{'causal' if causal else 'full'}_{act}_d{head_dim}.safetensors"
        save_file(tensors, HERE / name, {"config": json.dumps(config)})


if __name__ == "__main__":
    main()
