"""Decoding of language models in OpenVINO: 4-bit and 8-bit weights stay compressed, and the cache is model state."""

import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tersor.engines.base import Executed
from tersor.engines.openvino.audit import account
from tersor.engines.openvino.decoder_graph import ROWS, TOKENS, WANTED, decoder_model
from tersor.engines.openvino.runner import compile_model, first_lines, read_model, save_model
from tersor.engines.options import threads_of
from tersor.errors import EngineError
from tersor.numerics import QTensor

_LONGEST = ["tersor", "longest"]


class OpenVinoDecoder:
    """A language model that OpenVINO decodes; every thread that calls it has its own cache.

    Args:
        model: the result of ``decoder_model``.
        threads: by default PyTorch's number of threads.
        precision: the precision of float arithmetic, ``f32`` or ``bf16``.
        runtime_group: number of adjacent values of a token that share a scale when a product with compressed weights
            quantizes its input to int8 at run time, if it divides the weights' group size. 0: inputs stay float.
        cache: the type of stored keys and values: ``f32``, ``f16``, ``bf16`` or ``u8``.

    Raises:
        EngineError: OpenVINO cannot compile the model.
    """

    def __init__(
        self,
        model: Any,
        *,
        threads: int | None = None,
        precision: str = "f32",
        runtime_group: int = 32,
        cache: str = "f16",
    ) -> None:
        self.model = model
        self.threads = threads_of(threads)
        self.precision, self.runtime_group, self.cache = precision, runtime_group, cache
        self.longest = int(model.get_rt_info(_LONGEST).astype(str)) if model.has_rt_info(_LONGEST) else None
        self.vocabulary = int(model.output(0).partial_shape[2].get_length())
        self._chooses = any(WANTED in p.get_names() for p in model.inputs)
        self.compiled = compile_model(
            model,
            self.threads,
            precision,
            {"DYNAMIC_QUANTIZATION_GROUP_SIZE": runtime_group, "KV_CACHE_PRECISION": cache},
        )
        self._own = threading.local()

    @property
    def _request(self) -> Any:
        """This thread's request, which holds its cache."""
        if not hasattr(self._own, "request"):
            self._own.request = self.compiled.create_infer_request()
        return self._own.request

    @classmethod
    def build(cls, model: nn.Module, weights: Mapping[str, Tensor | QTensor], **options: Any) -> "OpenVinoDecoder":
        """A decoder of a causal model of ``transformers`` and its weights by name.

        Args:
            model: gives the architecture; its own parameters are not read and may be on the meta device.
            weights: read one by one; a tied weight may be listed under any of its names, or differ between them.
            options: as for the class.

        Raises:
            EngineError: the model or a weight is not supported, or OpenVINO cannot convert or compile it.
            CaptureError: torch.export cannot capture the model; the message gives the offending line.
        """
        found = decoder_model(model, weights)
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest:
            found.set_rt_info(str(longest), _LONGEST)
        return cls(found, **options)

    @classmethod
    def load(cls, folder: Path, **options: Any) -> "OpenVinoDecoder":
        """Load a decoder that ``save`` wrote; ``options`` as for the class."""
        return cls(read_model(folder), **options)

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the model's files into an existing folder and return their names."""
        return save_model(self.model, folder)

    def logits(self, input_ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch n vocab"]:
        """The logits at every position, from an empty cache."""
        self.begin()
        return self.step(self._checked(input_ids, 0), input_ids.shape[1])

    def generate(
        self,
        input_ids: Int[Tensor, "batch n"],
        max_new_tokens: int,
        eos_token_id: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Int[Tensor, "batch m"]:
        """The prompt and at most ``max_new_tokens`` new tokens; all prompts of a batch have the same length.

        Args:
            eos_token_id: ends a row; rows that end earlier than others are padded with it.
            temperature: 0 takes the most likely token; above 0, tokens are sampled from softmax(logits / temperature).
            seed: of the sampling.
        """
        found = self._checked(input_ids, max_new_tokens)
        generator = torch.Generator().manual_seed(seed)
        ended = torch.zeros(len(found), dtype=torch.bool)
        self.begin()
        step = found
        for _ in range(max_new_tokens):
            token = _chosen(self.step(step)[:, -1], temperature, generator)
            if eos_token_id is not None:
                token = torch.where(ended, eos_token_id, token)
                ended |= token == eos_token_id
            step = token[:, None]
            found = torch.cat([found, step], 1)
            if bool(ended.all()):
                break
        return found

    def executed(self) -> list[Executed]:
        """Every operator of the compiled model with its precision, as OpenVINO reports them."""
        return account(self.model, self.compiled.get_runtime_model(), True)

    def audit(self) -> Counter[tuple[str, str]]:
        """The number of operators by type and by the precision that they run in or read weights of."""
        return Counter((row.op, row.precision) for row in self.executed())

    def cached_layers(self) -> int:
        """The number of layers whose attention operator reads and writes the cache itself, as OpenVINO reports them."""
        found = 0
        for op in self.compiled.get_runtime_model().get_ordered_ops():
            if op.get_rt_info()["layerType"].astype(str) == "ScaledDotProductAttention":
                sources = (port.get_source_output().get_node() for port in op.inputs())
                found += any(s.get_rt_info()["layerType"].astype(str) == "MemoryInput" for s in sources)
        return found

    def begin(self) -> None:
        """Empty the cache."""
        self._request.reset_state()

    def step(self, tokens: Int[Tensor, "batch n"], wanted: int = 1) -> Float[Tensor, "batch wanted vocab"]:
        """The logits of the last ``wanted`` positions; the cache grows by the tokens."""
        batch, length = tokens.shape
        inputs = {TOKENS: tokens.contiguous().numpy(), ROWS: np.arange(batch, dtype=np.int32)}
        if self._chooses:
            inputs[WANTED] = np.arange(length - wanted, length)
        try:
            self._request.infer(inputs, share_inputs=True)
        except Exception as error:
            words = first_lines(error)
            raise EngineError(f"OpenVINO cannot decode {tuple(tokens.shape)} tokens: {words}") from error
        # Copy, since the next step overwrites the output.
        return torch.from_numpy(self._request.get_output_tensor(0).data[:, -wanted:].copy())

    def _checked(self, tokens: Tensor, more: int) -> Tensor:
        """The tokens, checked against the model's vocabulary and its maximum length."""
        if tokens.ndim != 2 or tokens.numel() == 0 or tokens.is_floating_point():
            raise EngineError(f"tokens must be integers of shape [batch, n], not {tokens.dtype} {tuple(tokens.shape)}")
        least, most = int(tokens.min()), int(tokens.max())
        if least < 0 or most >= self.vocabulary:
            raise EngineError(
                f"tokens from {least} to {most}, but the model knows {self.vocabulary}: use its own tokenizer"
            )
        length = tokens.shape[1] + more
        if self.longest and length > self.longest:
            raise EngineError(f"{length} tokens, but the model takes at most {self.longest}: shorten prompt or answer")
        return tokens.long()


def _chosen(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature <= 0:
        return logits.argmax(1)
    return torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
