"""Makes the checkpoints of tests/checkpoints.rs: a small model of every family, saved by Transformers, and what it computes.

    python3 -m venv /tmp/checkpoints
    /tmp/checkpoints/bin/pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
    /tmp/checkpoints/bin/python tests/checkpoints/make.py

Writes one folder a case beside this script: the checkpoint, and `expected.safetensors` with ids [tokens] and lengths
[sequences] (int64; sequences one after the other), token_types [tokens] where the model has them, hidden [tokens,
hidden_size] (float64), and logits [tokens, vocab_size] and pooler [sequences, hidden_size] where the model has them. Its
metadata has the design under `design` where the folder does not say it. Besides, for the same sequences as one batch padded to the
right, and to the left: right.mask and left.mask [sequences, length] (int64, 1 where there is a token), right.ids and left.ids likewise,
with token_types, and right.hidden and so on, of the tokens alone. Seeds are fixed: a second run writes the same
numbers, but for the last bits of results.

Everything is computed in float64, each sequence by itself without padding, but for those batches. Where Transformers computes in float32 whatever
the model's type is, the part is replaced here (`Rotary64`, `attention_64`), and the script fails unless that agrees with the
original to float32's precision. PAF models are no part of Transformers: those are computed from plain PyTorch operations.
"""

import json
import math
import pathlib
import shutil
import types

import torch
import torch.nn.functional as F
import transformers as T
from safetensors.torch import load_file, save_file
from transformers.models.cohere import modeling_cohere

HERE = pathlib.Path(__file__).parent
# The numbers that the crate's f32 configuration holds, so that no difference comes from there.
EPS_5, EPS_12 = (torch.tensor(eps, dtype=torch.float32).item() for eps in (1e-5, 1e-12))
SCALE = torch.tensor(0.3, dtype=torch.float32).item()
LENGTHS = [7, 1, 13]
COHERE_ROTATED = modeling_cohere.apply_rotary_pos_emb
VOCAB = 37


def randomize(model, seed):
    """Activations keep their scale, and no bias or norm is left at the value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 2:
            # Larger than usual for queries and keys, so that attention is not just a mean.
            values *= 1.0 if "embed" in name or "wte" in name else 1.5 * parameter.shape[1] ** -0.5
        else:
            norm = any(part in name.lower() for part in ("norm", "ln_")) and name.endswith("weight")
            values = 0.2 * values + (1.0 if norm else 0.0)
        parameter.data.copy_(values)
    model.tie_weights()
    return model.eval()


class Rotary64(torch.nn.Module):
    """cos and sin [1, length, dim] of positions, in float64, both halves alike, or neighbours."""

    def __init__(self, dim, base, neighbours=False):
        super().__init__()
        self.neighbours = neighbours
        self.frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)

    def forward(self, x, position_ids):
        angles = position_ids[..., None].double() * self.frequencies
        angles = angles.repeat_interleave(2, dim=-1) if self.neighbours else torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def attention_64(self, query, key, value, attention_mask=None):
    """GPT-J's attention proper, [batch, heads, length, head_dim]; the original computes scores in float32."""
    causal = attention_mask is None
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, is_causal=causal), None


def cohere_norm_64(self, x):
    """Command-R's norm, which has no bias; the original computes it in float32."""
    return F.layer_norm(x, x.shape[-1:], self.weight, None, self.variance_epsilon)


def cohere_rotated_64(q, k, cos, sin, unsqueeze_dim=1):
    """Queries and keys [batch, heads, length, head_dim], turned as pairs of neighbours; the original does it in float32."""

    def turned(x):
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        turns = torch.complex(cos[..., ::2], sin[..., ::2]).unsqueeze(unsqueeze_dim)
        return torch.view_as_real(pairs * turns).flatten(-2)

    return turned(q), turned(k)


def exact(model):
    """The model in float64, with the parts replaced that would not be."""
    model = model.double()
    config, base = model.config, model.base_model
    if hasattr(base, "rotary_emb"):
        parameters = config.rope_parameters
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
        base.rotary_emb = Rotary64(dim, parameters["rope_theta"], neighbours=config.model_type == "cohere")
    if config.model_type == "cohere":
        for module in model.modules():
            if isinstance(module, modeling_cohere.CohereLayerNorm):
                module.forward = types.MethodType(cohere_norm_64, module)
        # The modules look it up each time: what runs after is in float64, too.
        modeling_cohere.apply_rotary_pos_emb = cohere_rotated_64
    if config.model_type == "gptj":
        for block in base.h:
            cos, sin = Rotary64(config.rotary_dim, 10000.0)(None, torch.arange(config.n_positions)[None])
            half = config.rotary_dim // 2
            block.attn.embed_positions = torch.cat([sin[0, :, :half], cos[0, :, :half]], dim=-1)
            block.attn._attn = types.MethodType(attention_64, block.attn)
    return model


def run(model, ids, token_types, **more):
    """Hidden states, and logits and the pooler's vector if there are any, of sequences [sequences, length]."""
    given = {"input_ids": ids} | more
    if token_types is not None:
        given["token_type_ids"] = token_types
    output = model.base_model(**given)
    found = {"hidden": output.last_hidden_state}
    if getattr(output, "pooler_output", None) is not None:
        found["pooler"] = output.pooler_output
    if model.base_model is not model:
        output = model(**given)
        found["logits"] = output.logits if hasattr(output, "logits") else output.prediction_logits
    return found


def alone(model, ids, token_types):
    """The same of one sequence [length] by itself."""
    output = run(model, ids[None], None if token_types is None else token_types[None])
    return {key: value if key == "pooler" else value[0] for key, value in output.items()}


def padded(model, ids, token_types, left):
    """Hidden states and logits of all sequences as one batch with padding, and the batch."""
    longest = max(LENGTHS) + 2
    pad = model.config.pad_token_id or 0

    def row(tokens, fill):
        more = torch.full((longest - len(tokens),), fill)
        return torch.cat([more, tokens] if left else [tokens, more])

    batch = {"ids": torch.stack([row(i, pad) for i in ids]), "mask": torch.stack([row(torch.ones_like(i), 0) for i in ids])}
    if token_types[0] is not None:
        batch["token_types"] = torch.stack([row(t, 0) for t in token_types])
    more = {"attention_mask": batch["mask"]}
    if model.config.model_type != "roberta":
        # Counted from the first token, as for generation; RoBERTa does so by itself.
        more["position_ids"] = (batch["mask"].cumsum(-1) - 1).clamp(min=0)
    output = run(model, batch["ids"], batch.get("token_types"), **more)
    # The pooler's is the first column's, which is padding on the left.
    output.pop("pooler", None)
    return batch | {key: value[batch["mask"].bool()] for key, value in output.items()}


def paf(model, ids, token_types):
    """As `alone`, of a BERT or RoBERTa whose layers are y = LN2(x + Attn(x) + FFN(x)) (arXiv 2305.13297)."""
    config, w = model.config, {name: t for name, t in model.state_dict().items()}
    base = config.model_type + "."
    heads, eps = config.num_attention_heads, config.layer_norm_eps

    def linear(x, name):
        return F.linear(x, w[name + ".weight"], w[name + ".bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], eps)

    positions = torch.arange(len(ids))
    if config.model_type == "roberta":
        positions = positions + config.pad_token_id + 1
    table = {name: w[f"{base}embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
    x = norm(table["word"][ids] + table["position"][positions] + table["token_type"][token_types], base + "embeddings.LayerNorm")
    for i in range(config.num_hidden_layers):
        layer = f"{base}encoder.layer.{i}."
        q, k, v = (
            linear(x, f"{layer}attention.self.{name}").view(len(ids), heads, -1).transpose(0, 1)
            for name in ("query", "key", "value")
        )
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        attn = linear((weights @ v).transpose(0, 1).reshape(len(ids), -1), layer + "attention.output.dense")
        ffn = linear(F.gelu(linear(x, layer + "intermediate.dense")), layer + "output.dense")
        x = norm(x + attn + ffn, layer + "output.LayerNorm")
    found = {"hidden": x}
    if config.model_type == "roberta":
        dense, transform_norm, bias = "lm_head.dense", "lm_head.layer_norm", "lm_head.bias"
    else:
        found["pooler"] = torch.tanh(linear(x[:1], base + "pooler.dense"))
        head = "cls.predictions."
        dense, transform_norm, bias = head + "transform.dense", head + "transform.LayerNorm", head + "bias"
    found["logits"] = F.linear(norm(F.gelu(linear(x, dense)), transform_norm), table["word"], w[bias])
    return found


def edit_config(folder, edit):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config, indent=2) + "\n")


def rename(folder, edit):
    path = folder / "model.safetensors"
    tensors = {edit(name): t.clone() for name, t in load_file(path).items()}
    save_file(tensors, path)


def case(name, seed, model, dtype=torch.float32, shards=False, paf_layers=False, design=None, after=None):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model = randomize(model, seed).to(dtype)
    model.save_pretrained(folder, max_shard_size="24KB" if shards else "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    if after:
        after(folder)

    generator = torch.Generator().manual_seed(1000 + seed)
    config = model.config
    typed = getattr(config, "type_vocab_size", None)
    ids = [torch.randint(0, VOCAB, (length,), generator=generator) for length in LENGTHS]
    if config.model_type == "roberta" and not paf_layers:
        # A token that is padding, in the midst of others: RoBERTa does not count it.
        ids[2][4] = config.pad_token_id
    elif config.model_type == "roberta":
        ids = [torch.where(i == config.pad_token_id, 5, i) for i in ids]
    token_types = [torch.randint(0, typed, (length,), generator=generator) if typed else None for length in LENGTHS]
    # Read back: a cast to 16 bits and back also rounds what is in no file, such as the frequencies of rotary embeddings.
    options = {"add_pooling_layer": False} if name == "roberta_encoder" else {}
    model = type(model).from_pretrained(folder, dtype=torch.float32, **options).eval()
    modeling_cohere.apply_rotary_pos_emb = COHERE_ROTATED
    with torch.no_grad():
        rough = [alone(model, *pair) for pair in zip(ids, token_types)] if not paf_layers else None
        model = exact(model)
        outputs = [(paf if paf_layers else alone)(model, *pair) for pair in zip(ids, token_types)]
        batches = {side: padded(model, ids, token_types, side == "left") for side in ("left", "right") if not paf_layers}
    for i, output in enumerate(outputs):
        for key, value in output.items():
            assert value.dtype == torch.float64, (name, key)
            if rough:
                torch.testing.assert_close(rough[i][key].double(), value, rtol=2e-4, atol=2e-5)
    tensors = {"ids": torch.cat(ids), "lengths": torch.tensor(LENGTHS)}
    if typed:
        tensors["token_types"] = torch.cat(token_types)
    tensors |= {key: torch.cat([output[key] for output in outputs]) for key in outputs[0]}
    tensors |= {f"{side}.{key}": value for side, batch in batches.items() for key, value in batch.items()}
    for side in batches:
        # Padding is of no account: what the crate is checked against is what the model means, not a quirk of its masks.
        for key in ("hidden", "logits"):
            if key in tensors:
                torch.testing.assert_close(tensors[f"{side}.{key}"], tensors[key], rtol=1e-10, atol=1e-11)
    save_file(tensors, folder / "expected.safetensors", {"design": design} if design else None)


def main():
    T.utils.logging.disable_progress_bar()
    torch.set_default_dtype(torch.float32)
    bert = dict(
        vocab_size=VOCAB, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=17, type_vocab_size=2, layer_norm_eps=EPS_12,
    )
    roberta = bert | dict(type_vocab_size=1, layer_norm_eps=EPS_5, pad_token_id=1)
    neox = dict(
        vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=56,
        max_position_embeddings=32, layer_norm_eps=EPS_5, bos_token_id=0, eos_token_id=0,
    )
    falcon = dict(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32,
        layer_norm_epsilon=EPS_5, ffn_hidden_size=40,
    )

    def old_names(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    def old_neox(folder):
        # As Transformers 4 wrote it: its names of the rotary parameters, and constants among the weights.
        def edit(config):
            parameters = config.pop("rope_parameters")
            config |= {"rotary_emb_base": parameters["rope_theta"], "rotary_pct": parameters["partial_rotary_factor"]}

        edit_config(folder, edit)
        path = folder / "model.safetensors"
        tensors = load_file(path)
        for layer in range(2):
            prefix = f"gpt_neox.layers.{layer}.attention."
            tensors[prefix + "bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool)
            tensors[prefix + "masked_bias"] = torch.tensor(-1e9)
            tensors[prefix + "rotary_emb.inv_freq"] = torch.ones(8)
        save_file(tensors, path)

    case("bert", 1, T.BertForPreTraining(T.BertConfig(**bert)))
    case("bert_encoder", 2, T.BertModel(T.BertConfig(**bert | dict(hidden_act="gelu_new"))), dtype=torch.float16,
         after=lambda folder: rename(folder, old_names))
    case("roberta", 3, T.RobertaForMaskedLM(T.RobertaConfig(**roberta)), shards=True)
    case("roberta_encoder", 4, T.RobertaModel(T.RobertaConfig(**roberta), add_pooling_layer=False), dtype=torch.bfloat16)
    case("paf_bert", 5, T.BertForPreTraining(T.BertConfig(**bert)), paf_layers=True, design="paf-post")
    case("paf_roberta", 6, T.RobertaForMaskedLM(T.RobertaConfig(**roberta)), paf_layers=True, design="paf-post")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    case("gpt_neox", 7, T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**neox, rope_parameters=rope)), dtype=torch.float16, shards=True)
    rope = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.25}
    serial = dict(use_parallel_residual=False, attention_bias=False, hidden_act="relu", rope_parameters=rope)
    case("gpt_neox_serial", 8, T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**neox | serial)), after=old_neox)
    gptj = T.GPTJConfig(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, rotary_dim=8, n_positions=32, layer_norm_epsilon=EPS_5,
        bos_token_id=0, eos_token_id=0,
    )
    case("gptj", 9, T.GPTJForCausalLM(gptj))
    phi = T.PhiConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=44, layer_norm_eps=EPS_5, max_position_embeddings=32,
    )
    case("phi", 10, T.PhiForCausalLM(phi), dtype=torch.bfloat16)
    case("phi_base", 11, T.PhiModel(phi))

    def old_phi(folder):
        # As Transformers 4 wrote it, and as Phi-2 has it: two fifths of a head are rotated.
        def edit(config):
            parameters = config.pop("rope_parameters")
            config |= {name: parameters[name] for name in ("rope_theta", "partial_rotary_factor")} | {"rope_scaling": None}

        edit_config(folder, edit)

    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4}
    phi_2 = T.PhiConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=44,
        layer_norm_eps=EPS_5, max_position_embeddings=32, rope_parameters=rope,
    )
    case("phi_2", 18, T.PhiForCausalLM(phi_2), dtype=torch.float16, after=old_phi)
    case("falcon", 12, T.FalconForCausalLM(T.FalconConfig(**falcon)))
    grouped = dict(new_decoder_architecture=True, num_kv_heads=2, bias=True, tie_word_embeddings=False)
    case("falcon_new", 13, T.FalconForCausalLM(T.FalconConfig(**falcon | grouped)), shards=True)
    one = dict(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1)
    case("falcon_new_one_norm", 14, T.FalconForCausalLM(T.FalconConfig(**falcon | one)))
    cohere = dict(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=44, max_position_embeddings=32, layer_norm_eps=EPS_5, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 8e6},
    )

    def old_cohere(folder):
        # As Transformers 4 wrote it.
        def edit(config):
            config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]

        edit_config(folder, edit)

    case("cohere", 16, T.CohereForCausalLM(T.CohereConfig(**cohere)))
    untied = dict(tie_word_embeddings=False, attention_bias=True, logit_scale=SCALE, hidden_size=24, head_dim=8)
    case("cohere_untied", 17, T.CohereForCausalLM(T.CohereConfig(**cohere | untied)), dtype=torch.bfloat16, shards=True,
         after=old_cohere)
    case("falcon_heads", 15, T.FalconForCausalLM(T.FalconConfig(**falcon | dict(multi_query=False))))


if __name__ == "__main__":
    main()
