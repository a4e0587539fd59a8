"""PyTorch's scaled dot-product attention, one back end at a time, for a program that measures it in turns with its own.

    python3 attention.py DEVICE_ORDINAL

It speaks JSON, an object a line. First it says what it is: {"torch": ..., "cudnn": ..., "device": ...}. Then it answers requests:

    {"case": {"batch", "heads", "key_value_heads", "seq_len", "head_dim", "causal"}, "dtype": "bf16" or "f16",
     "sets": {NAME: count, ...}, "launches": {NAME: count, ...}}
        -> {"backends": [...], "absent": {back end: why, ...}}
    Makes operands, checks each back end against float64, and records graphs of that many launches; under each NAME they go in
    turn through that many sets of operands. Q, K and V are views of one packed product, as a model has them.

    {"sample": [back end, NAME]}
        -> {"us": device time of one launch}
    One replay of the graph that is not timed, then one that is.

What fails is answered with {"error": text}.
"""

import json
import sys
import warnings

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "FlashAttention-2": SDPBackend.FLASH_ATTENTION}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


class Case:
    def __init__(self, request):
        self.shape = request["case"]
        dtype = DTYPES[request["dtype"]]
        batch, seq_len, head_dim = (self.shape[name] for name in ("batch", "seq_len", "head_dim"))
        heads, key_value_heads = self.shape["heads"], self.shape["key_value_heads"]
        generator = torch.Generator("cuda").manual_seed(0)
        self.operands = []
        for _ in range(max(request["sets"].values())):
            size = (batch, seq_len, heads + 2 * key_value_heads, head_dim)
            qkv = torch.randn(size, device="cuda", dtype=dtype, generator=generator).transpose(1, 2)
            self.operands.append(qkv.split([heads, key_value_heads, key_value_heads], 1))
        self.launches = request["launches"]
        self.graphs, self.absent = {}, {}
        for backend in BACKENDS:
            try:
                self.check(backend)
            except RuntimeError as error:
                # "No available kernel", with the reasons as warnings.
                self.absent[backend] = str(error).splitlines()[0]
                continue
            for name, launches in self.launches.items():
                sets = self.operands[: request["sets"][name]]
                self.graphs[backend, name] = self.record(backend, [sets[i % len(sets)] for i in range(launches)])

    def attention(self, backend, operands):
        grouped = self.shape["heads"] != self.shape["key_value_heads"]
        with sdpa_kernel(BACKENDS[backend]):
            return F.scaled_dot_product_attention(*operands, is_causal=self.shape["causal"], enable_gqa=grouped)

    def record(self, backend, launches):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for operands in launches:
                out = self.attention(backend, operands)
                del out
        return graph

    def check(self, backend):
        """Sixteen rows, spread over the whole output. Also what has to happen once before a capture."""
        q, k, v = self.operands[0]
        out = self.attention(backend, (q, k, v))
        batch, heads, seq_len, head_dim = q.shape
        for i in range(16):
            b, h, row = i * (batch - 1) // 15, i * (heads - 1) // 15, i * (seq_len - 1) // 15
            group = h // (heads // self.shape["key_value_heads"])
            keys = row + 1 if self.shape["causal"] else seq_len
            scores = k[b, group, :keys].double() @ q[b, h, row].double() / head_dim**0.5
            weights = torch.softmax(scores, 0)
            values = v[b, group, :keys].double()
            exact, size = weights @ values, weights @ values.abs()
            bound = torch.finfo(q.dtype).eps * (exact.abs() + size) + 1e-5
            error = (out[b, h, row].double() - exact).abs()
            if not bool((error <= bound).all()):
                raise ValueError(f"{backend} is off by {error.max().item():.3e} at batch {b}, head {h}, row {row}")

    def sample(self, backend, name):
        graph = self.graphs[backend, name]
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        graph.replay()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / self.launches[name]


def main():
    warnings.simplefilter("ignore")
    torch.cuda.set_device(int(sys.argv[1]))
    name = torch.cuda.get_device_name()
    answer({"torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "device": name})
    case = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "case" in request:
                # What the last one held goes first.
                case = None
                torch.cuda.empty_cache()
                case = Case(request)
                answer({"backends": [name for name in BACKENDS if name not in case.absent], "absent": case.absent})
            else:
                answer({"us": case.sample(*request["sample"])})
        except Exception as error:  # whoever asked has to hear of it
            answer({"error": f"{type(error).__name__}: {error}"})


def answer(message):
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
