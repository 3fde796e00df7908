"""llama.cpp as a peer: in a process of its own, since it may live in another environment (TERSOR_PEERS_PYTHON)."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

PYTHON = Path(os.environ.get("TERSOR_PEERS_PYTHON", sys.executable))
# One line in, one token decoded, one line out.
_SERVER = """
import sys
from llama_cpp import Llama
path, threads, prompt = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = Llama(path, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
left = 0
print("ready", flush=True)
for line in sys.stdin:
    if left == 0:
        model.reset()
        for token in range(prompt):  # one by one: its AMX kernels crash on several
            model.eval([token])
        left = 256
    model.eval([7])
    left -= 1
    print("done", flush=True)
"""


class LlamaCpp:
    """A process that decodes one token when it is asked to."""

    def __init__(self, process: subprocess.Popen[str], folder: tempfile.TemporaryDirectory) -> None:
        self.process, self.folder = process, folder

    @classmethod
    def start(cls, config: Any, threads: int, prompt: int) -> "LlamaCpp | None":
        """None where llama-cpp-python is not installed, which is said on standard error."""
        if not PYTHON.exists():
            print(f"no llama.cpp: {PYTHON} does not exist", file=sys.stderr)
            return None
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / "random.gguf"
        write_random(path, config)
        arguments = [str(PYTHON), "-c", _SERVER, str(path), str(threads), str(prompt)]
        process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        found = cls(process, folder)
        if found._line() != "ready":
            print("no llama.cpp: it does not load the random model", file=sys.stderr)
            return None
        return found

    def step(self) -> None:
        """One token."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        if self._line() != "done":
            raise RuntimeError("llama.cpp has ended")

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()


def write_random(path: Path, config: Any) -> None:
    """A GGUF file of a Llama with random Q4_0 blocks, and words without meaning."""
    from gguf import GGMLQuantizationType, GGUFWriter

    random = np.random.default_rng(0)
    writer = GGUFWriter(str(path), "llama")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(vocabulary)
    # Without words llama.cpp loads the model and ends when it decodes.
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{k}>" for k in range(vocabulary)])
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types([1] * vocabulary)
    narrow = width // heads * kv_heads
    shapes = {
        "attn_q": (width, width),
        "attn_k": (narrow, width),
        "attn_v": (narrow, width),
        "attn_output": (width, width),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }

    def quantized(name: str, rows: int, columns: int) -> None:
        blocks = random.integers(0, 256, (rows, columns // 32, 18), dtype=np.uint8)
        blocks[..., :2] = np.array([0.2 / columns**0.5], dtype=np.float16).view(np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=GGMLQuantizationType.Q4_0)

    for layer in range(config.num_hidden_layers):
        for name, (rows, columns) in shapes.items():
            quantized(f"blk.{layer}.{name}.weight", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, dtype=np.float32))
    quantized("token_embd.weight", vocabulary, width)
    quantized("output.weight", vocabulary, width)
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
