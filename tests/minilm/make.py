"""Makes `expected.safetensors` of tests/minilm.rs: what Transformers computes with the real all-MiniLM-L6-v2.

    make .minilm/installed
    python3 -m venv /tmp/minilm
    /tmp/minilm/bin/pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
    /tmp/minilm/bin/python tests/minilm/make.py .minilm/model

The file has, for the sentences (lines) of sentences.txt, lengths [sentences] and ids [tokens] (int64; special tokens
included), and vectors [sentences, hidden_size] (float32): hidden states averaged over a sentence's tokens and divided by their
length. Each sentence is computed by itself in float32, neither padded nor cut.
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

HERE = pathlib.Path(__file__).parent


def main(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    sentences = (HERE / "sentences.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    ids, vectors = [], []
    for sentence in sentences:
        encoded = tokenizer(sentence, truncation=False, padding=False, return_tensors="pt")
        with torch.no_grad():
            mean = model(**encoded).last_hidden_state[0].mean(dim=0)
        ids.append(encoded["input_ids"][0])
        vectors.append(mean / mean.norm())
    tensors = {
        "lengths": torch.tensor([len(sentence) for sentence in ids]),
        "ids": torch.cat(ids),
        "vectors": torch.stack(vectors),
    }
    save_file(tensors, HERE / "expected.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
