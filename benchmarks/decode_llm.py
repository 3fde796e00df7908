"""Decoding at batch 1: a random Llama of 1.1 B parameters, int4 in OpenVINO, beside llama.cpp Q4_0 and PyTorch BF16."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from benchmarks import common
from benchmarks.common import THREADS, Claim, Outcome, milliseconds, say, timed
from benchmarks.peers_llama import LlamaCpp
from tersor.engines.openvino.decoder import OpenVinoDecoder
from tersor.numerics import QTensor, QuantSpec

LAYERS, PROMPT = 22, 32
BODY = QuantSpec("int4", "group:128", scale_dtype="float16")
ENDS = QuantSpec("int8", "channel", scale_dtype="float16")
READS = "reading as many bytes"


def bench(quick: bool) -> Outcome:
    """One token after a prompt of 32; the bandwidth is that of the fastest of three ways to read as many bytes."""
    config = llama(2 if quick else LAYERS)
    drawn = Drawn(config)
    say("decoder")
    decoder = OpenVinoDecoder.build(drawn.model, drawn, threads=THREADS)
    say("peers")
    torch.set_num_threads(THREADS)
    peers = {"PyTorch BF16": eager(config)} | ({} if quick else llama_cpp(config))
    calls = {"ours": steps(decoder)} | readers(drawn.read_bytes) | peers
    say(f"timing {', '.join(calls)}")
    found = timed(calls, quick)
    read = min((k for k in found if k.startswith(READS)), key=lambda k: found[k].median)
    gigabytes = drawn.read_bytes / 1e9
    rates = {k: 1000 / v.median for k, v in found.items() if not k.startswith(READS)}
    beside = ", ".join(f"{k} {v:.1f} tokens/s" for k, v in rates.items())
    share = found[read].median / found["ours"].median
    spread = sorted(a / b for a, b in zip(found[read].rounds, found["ours"].rounds, strict=True))
    claim = Claim(
        "decode_llm",
        f"{gigabytes:.2f} GB a token, {1000 * gigabytes / found['ours'].median:.1f} of "
        f"{1000 * gigabytes / found[read].median:.1f} GB/s",
        share,
        None if quick else 0.7,
        at_most=False,
        spread=(spread[len(spread) // 10], spread[-1 - len(spread) // 10]),
        peer=beside,
    )
    audit = {f"{op} {precision}": n for (op, precision), n in decoder.audit().items()}
    return Outcome([claim], {"milliseconds": milliseconds(found), "audit": audit})


def llama(layers: int) -> LlamaConfig:
    """The shape of TinyLlama 1.1 B."""
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )


class Drawn(Mapping[str, Tensor | QTensor]):
    """Random weights, drawn when they are asked for and held nowhere."""

    def __init__(self, config: LlamaConfig) -> None:
        with torch.device("meta"):
            self.model: nn.Module = AutoModelForCausalLM.from_config(config).eval()
        self.shapes = {n: p.shape for n, p in self.model.named_parameters()}
        self.read_bytes = sum(self._bytes(n) for n in self.shapes if "embed" not in n)

    def __getitem__(self, name: str) -> Tensor | QTensor:
        shape = self.shapes[name]
        if len(shape) == 1:
            return torch.ones(shape)
        spec = self._spec(name)
        codes = torch.randint(spec.low, spec.high + 1, shape, dtype=torch.int8)
        # So that the products neither fade nor grow.
        scale = torch.full(spec.granularity.scale_shape(shape), 1.7 / spec.high / shape[1] ** 0.5)
        return QTensor(codes, scale.half().float(), torch.zeros_like(scale), spec)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @staticmethod
    def _spec(name: str) -> QuantSpec:
        return ENDS if "embed" in name or "lm_head" in name else BODY

    def _bytes(self, name: str) -> int:
        shape = self.shapes[name]
        if len(shape) == 1:
            return 4 * shape.numel()
        spec = self._spec(name)
        return shape.numel() * spec.format.bits // 8 + 2 * torch.Size(spec.granularity.scale_shape(shape)).numel()


def steps(decoder: OpenVinoDecoder) -> Callable[[], object]:
    """One more token, whatever it is: the cache begins anew where it has grown by 256."""
    state = {"left": 0}

    def step() -> None:
        if state["left"] == 0:
            decoder.begin()
            decoder.step(torch.arange(PROMPT)[None])
            state["left"] = 256
        decoder.step(torch.tensor([[7]]))
        state["left"] -= 1

    return step


def readers(count: int) -> dict[str, Callable[[], object]]:
    """Ways to read as many bytes as a token does."""
    numbers = torch.ones(count // 4)
    halves = numbers[: count // 8], numbers[count // 8 : count // 8 * 2]
    return {
        f"{READS}, sum": numbers.sum,
        f"{READS}, max": numbers.max,
        f"{READS}, dot": lambda: torch.dot(*halves),
    }


def eager(config: LlamaConfig) -> Callable[[], object]:
    """PyTorch in BF16, with the cache of transformers."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
    state: dict[str, Any] = {"left": 0}

    @torch.no_grad()
    def step() -> None:
        if state["left"] == 0:
            state.update(left=256, cache=DynamicCache(config=config))
            model(torch.arange(PROMPT)[None], past_key_values=state["cache"])
        model(torch.tensor([[7]]), past_key_values=state["cache"])
        state["left"] -= 1

    return step


def llama_cpp(config: LlamaConfig) -> dict[str, Callable[[], object]]:
    """llama.cpp on random Q4_0 blocks of the same shapes, where its Python is installed."""
    peer = LlamaCpp.start(config, THREADS, PROMPT)
    return {"llama.cpp Q4_0": peer.step} if peer else {}


if __name__ == "__main__":
    common.main("decode_llm", bench)
