"""Sentence embeddings of a file of texts: `paf run` in turns with sentence-transformers, on the same GPU.

    python3 texts.py texts.jsonl
    python3 sentences.py --paf PAF --checkpoint DIR --input texts.jsonl [--turns 9] [--dtype bf16] [--json FILE] [--backend cpu]

DIR is a sentence encoder that both can load, such as all-MiniLM-L6-v2. First both embed all texts, and each pair of vectors has to
agree (cosine at least 0.999); then they take turns. A turn is a whole process of `paf run`, which says itself what it spent on what,
and a call of sentence-transformers' `encode` with each of several batch sizes, in a process where the model is loaded and has run
before. What is compared is tokenizing and computing, from texts to vectors in the host's memory; `paf run` does this cold, its
first batch included. Loading is told apart, and what a process takes from its start to its end.

Both run in the same 16-bit type, or on the CPU in f32, from the same files, mean pooling, vectors divided by their length, no text cut.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

BATCH_SIZES = [32, 128, 512]
PEER = "sentence-transformers"
SCHEMA = "paf-cuda/sentences/1"


class Paf:
    name = "paf run"

    def __init__(self, arguments):
        self.command = [arguments.paf, "run", "--backend", arguments.backend, "--checkpoint", arguments.checkpoint]
        self.command += ["--input", arguments.input, "--task", "embed", "--normalize", "--format", "npy", "--timing"]
        self.command += ["--dtype", arguments.dtype] if arguments.backend == "cuda" else []
        self.vectors = pathlib.Path(tempfile.mkdtemp()) / "vectors.npy"

    def sample(self):
        """Seconds for texts to vectors, to load, and for all of the process."""
        start = time.perf_counter()
        done = subprocess.run(self.command + ["--output", self.vectors], stderr=subprocess.PIPE, text=True)
        whole = time.perf_counter() - start
        if done.returncode != 0:
            sys.exit(f"paf run failed: {done.stderr}")
        timing = json.loads(done.stderr.strip().splitlines()[-1])
        self.texts, self.tokens = timing["texts"], timing["tokens"]
        return {"run_s": timing["tokenizing_s"] + timing["computing_s"], "loading_s": timing["loading_s"], "whole_s": whole, "timing": timing}


class Peer:
    def __init__(self, model, texts, batch_size):
        self.name = f"{PEER}, batches of {batch_size}"
        self.model, self.texts, self.batch_size = model, texts, batch_size

    def embed(self):
        return self.model.encode(self.texts, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False)

    def sample(self):
        start = time.perf_counter()
        self.embed()
        return {"run_s": time.perf_counter() - start}


def load_peer(arguments):
    import torch
    from sentence_transformers import SentenceTransformer

    start = time.perf_counter()
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[arguments.dtype]
    model = SentenceTransformer(arguments.checkpoint, device=arguments.backend, model_kwargs={"dtype": dtype}).eval()
    model.max_seq_length = model[0].auto_model.config.max_position_embeddings
    if arguments.backend == "cuda":
        torch.cuda.synchronize()
    return model, time.perf_counter() - start


def least_cosine(ours, theirs):
    import numpy

    ours, theirs = (vectors.astype(numpy.float64) for vectors in (ours, theirs))
    if ours.shape != theirs.shape:
        sys.exit(f"paf run gave {ours.shape} vectors, {PEER} {theirs.shape}")
    dots = (ours * theirs).sum(1)
    return float((dots / numpy.sqrt((ours**2).sum(1) * (theirs**2).sum(1))).min())


def interval(samples):
    """Of the median, 95 %: from the order of the samples alone."""
    ordered, n = sorted(samples), len(samples)
    rank, outside = 0, 0.0
    while rank < n // 2:
        outside += math.comb(n, rank) / 2**n
        if 2 * outside > 0.05:
            break
        rank += 1
    return (ordered[rank - 1], ordered[n - rank]) if rank else (ordered[0], ordered[-1])


def shown(samples, scale=1.0, digits=3):
    low, high = interval(samples)
    return f"{statistics.median(samples) * scale:.{digits}f} [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--paf", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--input", required=True)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--dtype", choices=["bf16", "f16"], default="bf16")
    parser.add_argument("--json")
    parser.add_argument("--backend", choices=["cuda", "cpu"], default="cuda")
    arguments = parser.parse_args()
    if arguments.backend == "cpu":
        arguments.dtype = "f32"
    if arguments.turns < 6:
        parser.error("--turns: an interval of the median needs 6")
    texts = [json.loads(line)["text"] for line in open(arguments.input, encoding="utf-8")]

    paf = Paf(arguments)
    first = paf.sample()
    contestants, missing, versions, loading_s = [paf], None, {}, None
    try:
        model, loading_s = load_peer(arguments)
    except Exception as error:  # whatever keeps it from running has to be told
        missing = f"{type(error).__name__}: {error}"
    else:
        import numpy
        import sentence_transformers
        import torch

        device = torch.cuda.get_device_name() if arguments.backend == "cuda" else "CPU"
        versions = {PEER: sentence_transformers.__version__, "torch": torch.__version__, "device": device}
        ours = numpy.load(paf.vectors)
        for batch_size in BATCH_SIZES:
            contestants.append(Peer(model, texts, batch_size))
            cosine = least_cosine(ours, contestants[-1].embed())
            print(f"{contestants[-1].name}: least cosine to paf run's {cosine:.6f}", file=sys.stderr)
            if not cosine >= 0.999:
                sys.exit("the vectors do not agree: nothing was measured")

    samples = {contestant.name: [] for contestant in contestants}
    for turn in range(arguments.turns):
        for i in range(len(contestants)):
            contestant = contestants[(i + turn) % len(contestants)]
            samples[contestant.name].append(contestant.sample())

    count, tokens = paf.texts, paf.tokens
    with_versions = "".join(f", {name} {version}" for name, version in versions.items())
    print(f"\n{count} texts, {tokens} tokens, {arguments.dtype}, {arguments.turns} turns{with_versions}; medians, [95 % intervals]\n")
    print("| | texts to vectors, s | texts/s | tokens/s | that over paf run's | loading, s | whole process, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    own = [sample["run_s"] for sample in samples[paf.name]]
    for contestant in contestants:
        run = [sample["run_s"] for sample in samples[contestant.name]]
        ratios = [theirs / ours for theirs, ours in zip(run, own)]
        if contestant is paf:
            loading, whole = (shown([sample[key] for sample in samples[paf.name]]) for key in ("loading_s", "whole_s"))
        else:
            loading, whole = f"{loading_s:.3f}, once", "–"
        rates = " | ".join(f"{of / statistics.median(run):.0f}" for of in (count, tokens))
        print(f"| {contestant.name} | {shown(run)} | {rates} | {shown(ratios, digits=2)} | {loading} | {whole} |")
    if missing:
        print(f"| {PEER} | missing: {missing} | | | | | |")
    if arguments.json:
        report = {"schema": SCHEMA, "texts": count, "tokens": tokens, "dtype": arguments.dtype, "versions": versions}
        report |= {"missing": missing, "peer_loading_s": loading_s, "first": first, "samples": samples}
        pathlib.Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
