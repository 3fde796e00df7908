"""Blocks of tiny eager networks of the transformers package, and a call of one as it was recorded."""

import torch
from tiny import NETS, build
from torch import Tensor, nn

IDS = torch.arange(40).reshape(2, 20)


def network(name: str, **options) -> nn.Module:
    """A tiny network whose weights, norms' and biases' among them, are all random; of `tiny` or with options."""
    import transformers

    if name in NETS and not options:
        model = build(name)[0]
    else:
        kind = {"mixtral": "Mixtral", "llama": "Llama", "gemma": "Gemma", "gemma2": "Gemma2", "phi3": "Phi3"}[name]
        rope = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        rope |= {"intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}
        rope |= {} if name == "phi3" else {"head_dim": 8}
        rope |= {"eos_token_id": 2} if name == "phi3" else {}
        config = getattr(transformers, f"{kind}Config")(**(rope | options))
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + (parameter == 1))
    return model.eval()


def blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks: the longest list of modules."""
    return list(max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len))


def recorded(model: nn.Module, block: nn.Module, ids: Tensor = IDS) -> tuple[tuple, dict]:
    """Arguments and keyword arguments that the block is called with."""
    calls = []
    hook = block.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    # Else the second call would find the keys of the first.
    model.config.use_cache = False
    with torch.no_grad():
        model(ids)
    hook.remove()
    return calls[0]
