"""A tiny language model to try the commands for language models on: ``python -m tersor.demo.llama FOLDER``.

It writes FOLDER/model (a Llama of 0.16 M parameters in the Hugging Face layout), FOLDER/train.txt and FOLDER/valid.txt.
The texts are drawn from a small grammar; in half a minute the model learns to write such sentences, which mean little.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from tersor.packages import needing

__all__ = ["stories", "write"]

STEPS, BATCH, WINDOW, RATE, VOCABULARY = 300, 16, 128, 5e-3, 512
_ANIMALS = "cat dog fox bear mouse rabbit owl frog duck hen".split()
_NAMES = "Tom Lily Max Anna Ben Mia Sam Lucy Tim Sue".split()
_PLACES = "in the forest;near the river;in a small house;on a green hill;by the sea".split(";")
_THINGS = "red ball;shiny stone;big apple;blue boat;warm coat;small key;golden leaf".split(";")
_ENDS = (
    "They played until the sun went down.",
    "From that day on, they were best friends.",
    "Everyone was happy and went home.",
    "That night, {name} slept very well.",
)


def stories(count: int, seed: int) -> Iterator[str]:
    """Short stories drawn from the grammar.

    >>> print(*stories(1, seed=3))
    Once upon a time, there was a little fox named Anna. Anna lived on a green hill. One day, Anna lost a warm coat. ...
    """
    draw = random.Random(seed)  # noqa: S311
    for _ in range(count):
        name, friend = draw.sample(_NAMES, 2)
        animal, other = draw.sample(_ANIMALS, 2)
        thing, place = draw.choice(_THINGS), draw.choice(_PLACES)
        found = draw.choice((f"found a {thing}", f"saw a {thing}", f"lost a {thing}"))
        asked = draw.choice(("Can we share it?", "Is it yours?", "Will you help me?"))
        answer = draw.choice(("Yes, of course!", "Let us go together.", "I am so glad you asked."))
        yield " ".join((
            f"Once upon a time, there was a little {animal} named {name}. {name} lived {place}.",
            f"One day, {name} {found}. A {other} named {friend} came by.",
            f'"{asked}" asked {friend}. "{answer}" said {name}.',
            draw.choice(_ENDS).format(name=name),
        ))  # fmt: skip


def write(folder: Path, steps: int = STEPS) -> Path:
    """Train the model and write it and the two texts into ``folder``; returns the folder of the model."""
    with needing("The tiny language model", "transformers"):
        import tokenizers  # noqa: F401
        import transformers  # noqa: F401
    train, valid = " ".join(stories(1500, seed=0)), " ".join(stories(150, seed=1))
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text(train, encoding="utf8")
    (folder / "valid.txt").write_text(valid, encoding="utf8")
    tokenizer = _tokenizer(train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _trained(torch.tensor(tokenizer.backend_tokenizer.encode(train).ids), steps)
    weights = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}  # it is tied
    save_file(weights, folder / "model/model.safetensors", {"format": "pt"})
    model.config.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def _tokenizer(text: str):
    """A BPE with byte fallback as Llama 2 has it, learned from the text."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))  # noqa: S106
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Punctuation()]
    )
    special = ["<unk>", "<s>", "</s>"]
    codes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(vocab_size=VOCABULARY, special_tokens=[*special, *codes], show_progress=False)
    bpe.train_from_iterator([text], trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    named = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=256, **named)


def _trained(tokens: torch.Tensor, steps: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=160,  # 32 divides it, 64 does not
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            architectures=["LlamaForCausalLM"],
            dtype="float32",
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - WINDOW, (BATCH, 1))
        batch = tokens[starts + torch.arange(WINDOW)]
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        schedule.step()
    return model.eval()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(write(Path(sys.argv[1])))
