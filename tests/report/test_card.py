"""The card of a compressed folder: figures of the report, what the original states, and nothing foreign that acts."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import tersor
from tersor.errors import SavedFolderError
from tersor.measure.perplexity import TextScore
from tersor.report.card import LIMIT, model_card, name_of, original_card, parted
from tests.pipeline.tiny_folders import MODELS, written
from tests.report.test_language import GPTQ, PROTOCOL, report, weight

CAUSAL = {"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "compressed-tensors"}}
ORIGINAL = """---
license: mit
language: [en, zh]
tags: [tiny, {a: b}]
widget: [{text: hi}]
base_model: someone/else
---
# Tiny
<script>alert(1)</script> <b>kept</b>\x1b[2J
"""


def _card(original=None, name="org/tiny", config=CAUSAL, **more):
    found = report(weight("a", GPTQ), weight("b", "none", format=None, note="float"), **more)
    text = model_card(found, config, name, original)
    front, body = parted(text)
    assert text.startswith("---\n")
    return front, body


def test_it_holds_the_figures_of_the_report():
    one, two = (TextScore(nats=n, standard_error=None, protocol=PROTOCOL) for n in (1.0, 1.1))
    front, body = _card()
    assert front["base_model"] == "org/tiny"
    assert front["tags"] == ["compressed-tensors", "int4", "tersor"]
    assert "license" not in front
    assert "| size of the weights | 4.00 kB | 1.00 kB, 4" in body
    assert "1 as int4, of 2 matrices" in body
    assert "Perplexity was not measured" in body
    assert 'AutoModelForCausalLM.from_pretrained("path/to/this/folder")' in body
    _, body = parted(model_card(report(weight("a", GPTQ), original=one, compressed=two), CAUSAL, "tiny", None))
    assert "| perplexity | 2.718 | 3.004 (+10.52 %) |" in body


def test_what_the_original_states_is_taken_over_and_its_text_stands_below():
    front, body = _card(ORIGINAL)
    assert (front["license"], front["language"], front["base_model"]) == ("mit", ["en", "zh"], "org/tiny")
    assert "widget" not in front
    assert "mit, as the original's" in body
    assert body.index("## Loading") < body.index("## Card of the original model\n\n# Tiny\n")
    assert "<script" not in body
    assert "<b>kept</b>" in body
    assert "\x1b" not in body


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=alert(1)>", "<BUTTON onclick = 'a()'>x</BUTTON>", '<a href="javascript:a()">x</a>',
        "<img src='x'onload=a()>", "<a\nhref=JavaScript:a()>",
    ],
)  # fmt: skip
def test_what_would_run_in_a_page_is_text(text):
    _, body = _card(f"# Tiny\n{text} <a href='https://x.org'>kept</a>\n")
    assert text not in body
    assert text[1:] in body
    assert "<a href='https://x.org'>kept</a>" in body


def test_a_recipes_name_is_one_line():
    _, body = _card(recipe="x`\n\n# Injected\n<script>")
    assert "the recipe `x  # Injected &lt;script>`, in the layout" in body


def test_names_are_only_text():
    front, body = _card(name="a|b`<c>\n- d\x1b[2J", warnings=["[x](javascript:alert)"])
    assert front["base_model"].startswith("a|b`<c> - d")
    assert "a\\|b\\`\\<c\\> - d" in body
    assert "[x](javascript" not in body


@pytest.mark.parametrize(
    "front",
    [
        "!!python/object/apply:os.system ['true']", "a: [", "- list", "license: {a: 1}", f"license: {'x' * 300}",
        "a: &a [*a]",
    ],
)
def test_front_matter_that_is_none_does_no_harm(front):
    found, body = _card(f"---\n{front}\n---\nthe text\n")
    assert "license" not in found
    assert body.endswith("the text\n")


def test_a_snapshot_has_the_name_of_its_repository(tmp_path):
    assert name_of(Path("/hub/models--org--tiny--v2/snapshots/0a1b")) == "org/tiny--v2"
    assert name_of(tmp_path / "tiny") == "tiny"
    (tmp_path / "README.md").write_bytes(b"\xff" + b"x" * LIMIT)
    assert original_card(tmp_path) is None
    (tmp_path / "README.md").write_bytes(b"\xffx")
    assert original_card(tmp_path) == "�x"


def test_other_tools_are_named_only_where_they_read_it():
    own = {"quantization_config": {"quant_method": "compressed-tensors", "quantization_status": "tersor"}}
    assert "from transformers" not in _card(config=own)[1]
    assert "AutoModel.from_pretrained" in _card(config={"architectures": ["BertModel"]})[1]


@pytest.mark.slow
def test_a_compressed_folder_has_a_card_that_may_be_edited(tmp_path):
    source, out = tmp_path / "tiny", tmp_path / "out"
    source.mkdir()
    written(source, MODELS["llama"]())
    (source / "README.md").write_text(ORIGINAL, encoding="utf-8")
    tersor.compress_folder(source, out, "int8-weight", progress=False)
    card = out / "README.md"
    front = yaml.safe_load(card.read_text(encoding="utf-8").split("---\n")[1])
    assert front["base_model"] == "tiny"
    assert "README.md" in json.loads((out / "manifest.json").read_text())["files"]
    card.write_text("mine", encoding="utf-8")
    assert tersor.load(out).model is not None
    with pytest.raises(SavedFolderError, match=r"README.md in it was altered"):
        tersor.compress_folder(source, out, "int8-weight", force=True, progress=False)
    card.unlink()
    shutil.copy(source / "config.json", out / "config.json")
    with pytest.raises(SavedFolderError, match=r"config.json was altered"):
        tersor.load(out)
