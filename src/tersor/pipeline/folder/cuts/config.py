"""The numbers of a configuration that say how wide and deep a language model is, and configurations with others."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tersor.checkpoints.architecture import model_config

# Names of one number in configurations; which of them a model reads is found by building it with another value.
COLUMNS = (
    "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size",
    "ffn_dim", "ffn_hidden_size", "n_inner", "d_ff", "inner_dim",
)  # fmt: skip
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
GROUPS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTH = ("hidden_size", "n_embd", "d_model")


@dataclass(frozen=True, eq=False)
class Part:
    """A configuration, or one nested in it.

    Args:
        config: the content of config.json.
        path: the keys that lead to the part.
        values: the part as transformers reads it, with its defaults.
    """

    config: Mapping[str, Any]
    path: tuple[str, ...]
    values: Any

    def number(self, names: Sequence[str]) -> tuple[str, int] | None:
        """The first of these names that states a number, those in the file first, and the number."""
        return next(self.numbers(names), None)

    def numbers(self, names: Sequence[str]) -> Iterator[tuple[str, int]]:
        """All of these names that state a number, those in the file first."""
        stated = self.stated()
        for name in sorted(names, key=lambda n: n not in stated):
            value = getattr(self.values, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                yield name, value
            elif value is None and name == "n_inner" and hasattr(self.values, name):
                yield name, 4 * self.width

    @property
    def width(self) -> int:
        """The width of the residual stream; 0 if it is not stated."""
        return next((v for n in WIDTH if isinstance(v := getattr(self.values, n, None), int)), 0)

    def lists(self, length: int) -> Iterator[tuple[str, list[Any]]]:
        """The lists with a value for each layer."""
        for name, value in self.values.to_dict().items():
            named = "layer" in name or "attention" in name or name.endswith("types")
            if named and isinstance(value, (list, tuple)) and len(value) == length:
                yield name, list(value)

    def stated(self) -> Mapping[str, Any]:
        """The part of config.json itself."""
        found = self.config
        for key in self.path:
            found = found[key]
        return found

    def edited(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The whole configuration with other values in this part."""
        config = copy.deepcopy(dict(self.config))
        found = config
        for key in self.path:
            found = found[key]
        found.update(values)
        return config


def parts_of(config: Mapping[str, Any]) -> list[Part]:
    """The configuration, and those nested in it, such as that of the text model."""
    loaded = model_config(config)
    nested = [key for key in getattr(loaded, "sub_configs", ()) if isinstance(config.get(key), dict)]
    whole = Part(config, (), loaded)
    return [whole, *(Part(config, (key,), getattr(loaded, key)) for key in nested)]
