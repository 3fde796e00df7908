"""One runner or decoder, called by several threads at once: each gets the answers to its own inputs."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

import tersor
from tersor.engines import ENGINES
from tests.stress.row import Row

RUNNING = [name for name in ENGINES if ENGINES[name].version() is not None]
DECODER = "openvino decoder"
WORKERS = (2, 4, 8)


def answers(call: Callable[[Any], Tensor], inputs: Sequence[Any], workers: int, calls: int, what: str) -> Row:
    """Compare ``calls`` answers of ``workers`` threads with those of one."""
    start, alone = time.monotonic(), [call(x) for x in inputs]

    def count(worker: int) -> tuple[int, int]:
        wrong = failed = 0
        for k in range(calls // workers):
            number = (worker * 7 + k) % len(inputs)
            try:
                wrong += not torch.equal(call(inputs[number]), alone[number])
            except Exception:  # whatever it is
                failed += 1
        return wrong, failed

    with ThreadPoolExecutor(workers) as pool:
        counted = list(pool.map(count, range(workers)))
    wrong, failed = (sum(found[k] for found in counted) for k in (0, 1))
    done = calls // workers * workers
    said = f"wrong {wrong}, failed {failed}"
    return Row(f"{workers} threads, {what}", done, wrong + failed, said, time.monotonic() - start)


def runner(engine: str) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """A small network in an engine, and batches of 1 to 3, which are separate models in OpenVINO."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 6)).eval()
    data = [torch.rand(8, 2, 6, 6)]
    task = tersor.Task("threads", model, (torch.zeros(1, 2, 6, 6),), lambda: data)
    recipe = "int8-tensorrt" if engine == "tensorrt" else "int8-static"
    done = tersor.compress(task, recipe, engine, threads=1, report=False, progress=False)
    return done.runner, [torch.randn(1 + k % 3, 2, 6, 6) for k in range(24)]


def decoder() -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """A tiny Llama in OpenVINO's decoder, which keeps its past in the request: prompts of several lengths."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tersor.engines.openvino.decoder import OpenVinoDecoder

    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 48}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()
    model.set_attn_implementation("eager")
    made = OpenVinoDecoder.build(model, dict(model.named_parameters()), threads=1, precision="f32")
    prompts = [torch.randint(3, 61, (1, 2 + k % 5)) for k in range(24)]
    return lambda ids: made.generate(ids, 6), prompts


def rows(calls: int, workers: Sequence[int] = WORKERS, engines: Sequence[str] = (*RUNNING, DECODER)) -> list[Row]:
    """A row for each engine and number of threads."""
    found = []
    for engine in engines:
        call, inputs = decoder() if engine == DECODER else runner(engine)
        found += [answers(call, inputs, count, calls, engine) for count in workers]
    return found
