"""The model card of a compressed Hugging Face folder: what was done, what was measured, and how to load it."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from tersor.checkpoints.sparse.layouts import VERSION, sparsity_of
from tersor.errors import RecipeError
from tersor.inert import plain
from tersor.measure.formatting import change_text, number_text, size_text
from tersor.measure.language import LanguageReport
from tersor.recipe.yaml_text import load_yaml
from tersor.words import speaking

CARD = "README.md"
LIMIT = 1 << 20
URL = "https://github.com/tersor/tersor"
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# What a card takes over of the original's front matter, where it is a word or a list of words.
_TAKEN = ("license", "license_name", "license_link", "language", "pipeline_tag", "datasets")
# Control characters but tab and line break, and marks that turn the direction of writing.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# Elements of HTML that do more than to look like something, among them any with a handler or a link that is a script.
_TAGS = re.compile(
    r"<(?=/?(?:script|style|iframe|object|embed|link|meta|base|form|svg|math)\b)"
    r"|<(?=[a-z][^<>]{0,2000}?(?:[\s/\"']on[a-z]+\s*=|(?:java|vb)script\s*:))",
    re.IGNORECASE,
)
_PACKAGES = {
    None: "transformers accelerate",
    "compressed-tensors": "transformers accelerate compressed-tensors",
    "gptq": "transformers accelerate optimum gptqmodel",
    "awq": "transformers accelerate gptqmodel",
}

# What stands above the card of the original model.
ORIGINAL = "## Card of the original model\n\n"


def model_card(report: LanguageReport, config: Mapping[str, Any], name: str, original: str | None) -> str:
    """The text of a folder's README.md.

    Args:
        config: the content of config.json.
        name: of the original model, as ``name_of`` tells it.
        original: the text of the original's card, which stands below; None: it has none.
    """
    front, body = parted(original or "")
    with speaking("en"):  # a card is for everybody
        parts = [
            _front_matter(report, front, name),
            f"# {escaped(name)}, {_formats(report)}\n",
            _what(report, name),
            _figures(report),
            _loading(config),
            _limits(report),
            _licence(front),
            f"{ORIGINAL}{body}" if body else "",
        ]
    return "\n".join(part for part in parts if part)


def parted(text: str) -> tuple[dict[str, Any], str]:
    """The front matter of a card, which is data and read within bounds, and the text below it.

    >>> parted("---\\nlicense: mit\\n---\\n# A model\\n")
    ({'license': 'mit'}, '# A model\\n')
    >>> parted("---\\n!!python/object/apply:os.system ['true']\\n---\\n# A model\\n")
    ({}, '# A model\\n')
    """
    found = _FRONT.match(text)
    body = _TAGS.sub("&lt;", _ACTING.sub("", text[found.end() :] if found else text)).lstrip("\n")
    try:
        data = load_yaml(found[1], "the card") if found else {}
    except RecipeError:  # of no use, and no harm
        data = {}
    return (data if isinstance(data, dict) else {}), body


def original_card(folder: Path) -> str | None:
    """The text of a folder's card; None where there is none, or none that can be shown."""
    path = folder / CARD
    if not path.is_file() or path.stat().st_size > LIMIT:
        return None
    return path.read_text(encoding="utf-8", errors="replace")


def name_of(folder: Path) -> str:
    """The name of a model: that of its folder, or of its repository, where the folder is a snapshot of it.

    >>> name_of(Path("hub/models--org--small/snapshots/0a1b"))
    'org/small'
    """
    path = folder.absolute()
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):
        return path.parents[1].name.removeprefix("models--").replace("--", "/", 1)
    return path.resolve().name or "model"


def escaped(text: str) -> str:
    r"""A foreign name in Markdown, in which it is only text.

    >>> print(escaped("a|b_<c>\n"))
    a\|b\_\<c\>
    """
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", plain(text).strip())


def _front_matter(report: LanguageReport, front: Mapping[str, Any], name: str) -> str:
    taken = {key: front[key] for key in _TAKEN if key in front and _is_words(front[key])}
    tags = front.get("tags")
    own = [report.layout, *sorted(_kinds(report)), "tersor"]
    tags = [*(tags if isinstance(tags, list) and _is_words(tags) else []), *own]
    data = {
        "base_model": plain(name),
        "base_model_relation": "quantized",
        "library_name": "transformers",
        **taken,
        "tags": list(dict.fromkeys(tags)),
    }
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n"


def _is_words(value: Any) -> TypeGuard[str | list[str]]:
    """Whether a value is a short text, or a list of at most a hundred of them."""
    if isinstance(value, list):
        return len(value) <= 100 and all(isinstance(item, str) and _is_words(item) for item in value)
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def _kinds(report: LanguageReport) -> Counter[str]:
    """How many weights are stored in each format, or with which zeros."""
    return Counter(w.format.split(",")[0].split(" per ")[0].split()[0] for w in report.weights if w.format)


def _as_code(text: str) -> str:
    """A name as code, on one line."""
    return f"`{plain(text).replace('`', '')}`"


def _formats(report: LanguageReport) -> str:
    kinds = [kind if kind.isalnum() else f"{kind} zeros" for kind in _kinds(report)]
    return f"compressed to {' and '.join(kinds)}" if kinds else "unchanged"


def _what(report: LanguageReport, name: str) -> str:
    counts = Counter(w.format for w in report.weights if w.format)
    stored = ", ".join(f"{count} as {escaped(kind)}" for kind, count in counts.most_common())
    version = report.environment.versions.get("tersor", "")
    lines = [
        f"[Tersor]({URL}) {version} compressed the weights of {escaped(name)} ({escaped(report.architecture)}) with "
        f"the recipe {_as_code(report.recipe)}, in the layout {_as_code(str(report.layout))}: {stored or 'none'}, of "
        f"{len(report.weights)} matrices. The others stay as they were.\n"
    ]
    if report.calibration:
        lines.append(f"Calibrated on {escaped(report.calibration)}.\n")
    return "\n".join(lines)


def _figures(report: LanguageReport) -> str:
    before, after = report.original_bytes, report.compressed_bytes
    smaller = change_text(report.compression, "smaller", "larger")
    rows = [("size of the weights", size_text(before), f"{size_text(after)}, {smaller}")]
    if report.bits_per_weight is not None:
        rows.append(("bits per quantized weight", "", f"{report.bits_per_weight:.2f}"))
    note = "Perplexity was not measured (`tersor compress --valid`)."
    if report.original is not None and report.compressed is not None:
        one, two = report.original.perplexity, report.compressed.perplexity
        rows.append(("perplexity", f"{one:.4g}", f"{two:.4g} ({number_text((two / one - 1) * 100, '+.2f')} %)"))
        note = f"Perplexity is of {escaped(str(report.compressed.protocol))}."
    if report.divergence is not None:
        found = report.divergence
        rows.append(("divergence from the original", "", f"{found.nats:.4f} nats per token"))
        rows.append(("same most likely token", "", f"{found.agreement * 100:.1f} %"))
    lines = ["| | original | compressed |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    more = "`report.json` and `report.html` give the error of every weight, `recipe.yaml` what was asked for."
    return "## Figures\n\n" + "\n".join(lines) + f"\n\n{note} {more}\n"


def _loading(config: Mapping[str, Any]) -> str:
    quantization = config.get("quantization_config") or {}
    code = _code("import tersor", "", 'model = tersor.load("path/to/this/folder").model')
    ours = f"With Tersor (`tersor generate path/to/this/folder --prompt Hello`), in Python:\n\n{code}"
    if quantization.get("quantization_status") == "tersor":
        return f"## Loading\n\nOther tools do not read how its transposed weights are stored. {ours}"
    if (sparse := sparsity_of(config)) is not None:
        return (
            f"## Loading\n\nThe layout {_as_code(sparse)} is read by compressed-tensors up to {VERSION}; transformers "
            f"with a later one would initialize these weights at random. {ours}"
        )
    packages = _PACKAGES.get(quantization.get("quant_method"), _PACKAGES[None])
    causal = any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ())
    kind = "AutoModelForCausalLM" if causal else "AutoModel"
    theirs = _code(
        f"from transformers import AutoTokenizer, {kind}",
        "",
        f'model = {kind}.from_pretrained("path/to/this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
    )
    return f"## Loading\n\nWith transformers (`pip install {packages}`):\n\n{theirs}\n{ours}"


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```", ""])


def _limits(report: LanguageReport) -> str:
    return "## Limits\n\n" + "\n".join(f"- {escaped(w)}" for w in report.warnings) + "\n" if report.warnings else ""


def _licence(front: Mapping[str, Any]) -> str:
    found = front.get("license")
    if _is_words(found):
        stated = ", ".join(found) if isinstance(found, list) else str(found)
        return f"## Licence\n\n{escaped(stated)}, as the original's.\n"
    return "## Licence\n\nThe card of the original states none; whatever holds for the original holds for this model.\n"
