"""The security page states the bounds and side files of the code."""

import ast
import re
from pathlib import Path

import pytest

from tersor.checkpoints.foreign.config import inert
from tersor.checkpoints.foreign.files import MAX_BYTES, MAX_DEPTH, MAX_DIGITS, read_array, read_bytes
from tersor.checkpoints.graph import schema, sizes
from tersor.checkpoints.hf_folder import SIDE_FILES
from tersor.errors import TaskError, TersorError
from tersor.recipe import yaml_text

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src"
PAGE, CHINESE = (
    (ROOT / f"docs/{language}/concepts/security.md").read_text(encoding="utf8")
    for language in ("en", "zh")
)


@pytest.mark.parametrize("page", [PAGE, CHINESE], ids=["en", "zh"])
def test_the_page_lists_the_side_files(page):
    listed = page[page.index("- `tokenizer.json`") :].split("\n\n")[0]
    named = set(re.findall(r"`([\w.-]+)`", listed)) - {".txt", ".md"}
    endings = {f"{name}{end}" for name in ("LICENSE", "LICENCE", "NOTICE") for end in ("", ".txt", ".md")}
    assert named | endings == SIDE_FILES


def test_the_page_states_the_bounds():
    assert f"{MAX_BYTES >> 20} MiB, nested {MAX_DEPTH} deep, integers of {MAX_DIGITS} digits" in PAGE
    items = f"{yaml_text.MAX_ITEMS:,} values"
    assert f"{yaml_text.MAX_BYTES >> 10} KiB, nested {yaml_text.MAX_DEPTH} deep, {items}" in PAGE
    assert f"| {schema.MAX_INPUTS >> 30} GiB together |" in PAGE
    assert f"| {sizes.MAX_VALUE >> 30} GiB, or {sizes.FACTOR} times" in PAGE
    assert f"| {schema.MAX_NODES:,} |" in PAGE
    assert f"| {sizes.MAX_PARTS:,} |" in PAGE


def test_the_chinese_page_has_the_figures_of_the_english_one():
    in_tables = re.compile(r"\d(?:[\d,.^]*\d)?(?=.*\|$)", re.MULTILINE)
    assert in_tables.findall(CHINESE) == in_tables.findall(PAGE)


def test_only_one_file_of_the_package_lets_transformers_read():
    names = {"from_pretrained", "from_config", "_from_config"}
    trees = {path.name: ast.walk(ast.parse(path.read_text(encoding="utf8"))) for path in PACKAGE.rglob("*.py")}
    reading = {name for name, tree in trees.items() if names & {getattr(x, "attr", "") for x in tree}}
    assert reading == {"architecture.py"}


ACTING = """
    auto_map trust_remote_code _attn_implementation attn_implementation_internal vocab_file tokenizer_file
    fast_tokenizer_files custom_generate name_or_path init_inputs cache_dir
""".split()


@pytest.mark.parametrize("key", ACTING)
def test_what_would_act_is_left_out_at_any_depth(key):
    config = {"a": [{key: "evil", "b": 1}], key: {"c": 2}, "text_config": {key: 1, "d": {key: 2}}}
    assert inert(config) == {"a": [{"b": 1}], "text_config": {"d": {}}}


def test_a_large_file_is_refused_by_its_size(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(TersorError, match="larger than 64 MiB"):
        read_bytes(tmp_path / "x", TersorError, "shorten it")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x09" + b"\x00" * 81, b"PK\x03\x04" + b"\x00" * 90])
def test_what_is_no_array_is_named(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(TaskError, match=r"cannot be read as a .npy file"):
        read_array(tmp_path / "x.npy")
