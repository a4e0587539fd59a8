"""Holds `paf_roberta/expected.safetensors` against the code of the paper's authors (arXiv 2305.13297), with the same weights.

    python3 -m venv /tmp/paper
    /tmp/paper/bin/pip install torch==2.15.0 transformers==4.40.2 safetensors==0.8.0 'numpy<2'
    /tmp/paper/bin/python tests/checkpoints/check_paper.py paf_modeling_roberta.py

The file is from github.com/luffycodes/Parallel-Transformers-Pytorch, which is written for a Transformers of that time. Hidden states
and logits have to be the same in float64, but for the last bits; what is different fails.
"""

import importlib.util
import pathlib
import sys

import torch
from safetensors.torch import load_file
from transformers import RobertaConfig

FOLDER = pathlib.Path(__file__).parent / "paf_roberta"
# Made by the module itself, or tied to others.
NOT_IN_FILES = {"roberta.embeddings.position_ids", "lm_head.decoder.weight", "lm_head.decoder.bias"}


def main(path):
    spec = importlib.util.spec_from_file_location("paper", path)
    paper = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(paper)
    model = paper.RobertaForMaskedLM(RobertaConfig.from_pretrained(FOLDER)).double().eval()
    weights = {name: tensor.double() for name, tensor in load_file(FOLDER / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= NOT_IN_FILES and not unexpected, (missing, unexpected)
    model.tie_weights()
    expected = load_file(FOLDER / "expected.safetensors")
    first = 0
    for length in expected["lengths"].tolist():
        rows = slice(first, first + length)
        first += length
        given = {"input_ids": expected["ids"][None, rows], "token_type_ids": expected["token_types"][None, rows]}
        with torch.no_grad():
            hidden = model.roberta(**given).last_hidden_state[0]
            logits = model(**given).logits[0]
        for name, got in (("hidden", hidden), ("logits", logits)):
            torch.testing.assert_close(got, expected[name][rows], rtol=1e-12, atol=1e-12)
            print(f"{length} tokens, {name}: off by {(got - expected[name][rows]).abs().max().item():.1e} at most")


if __name__ == "__main__":
    main(sys.argv[1])
