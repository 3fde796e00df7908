"""The figures of README are those of benchmarks/results, rounded; both languages have the same."""

import json
import re
from itertools import permutations
from pathlib import Path

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+")


def stated(name: str) -> list[str]:
    """The decimal numbers between the marks of a README."""
    text = (ROOT / name).read_text(encoding="utf8")
    parts = re.findall(r"<!-- figures -->(.*?)<!-- /figures -->", text, re.DOTALL)
    assert len(parts) == 2
    return [number for part in parts for number in NUMBER.findall(part)]


def measured(found: object) -> list[float]:
    """Every number of a result, in its texts, too; the means of draws, and what a method loses to FP32."""
    if isinstance(found, bool | None):
        return []
    if isinstance(found, int | float):
        return [float(found)]
    if isinstance(found, str):
        return [float(number) for number in NUMBER.findall(found)]
    values = list(found.values()) if isinstance(found, dict) else list(found)
    numbers = [number for value in values for number in measured(value)]
    if isinstance(found, list) and values and isinstance(values[0], dict) and "top1" in values[0]:
        numbers += [sum(value[key] for value in values) / len(values) for key in ("top1", "float_top1")]
    if isinstance(found, dict) and "float" in found:
        numbers += [a - b for a, b in permutations([v for v in values if isinstance(v, float)], 2)]
    return numbers


def test_readme_states_what_was_measured():
    files = (ROOT / "benchmarks/results").glob("*.json")
    numbers = [number for file in files for number in measured(json.loads(file.read_text()))]
    for text in set(stated("README.md")):
        digits = len(text.partition(".")[2])
        near = (0.51 if digits > 1 else 0.6) * 10**-digits  # printed lines are rounded once already
        assert any(abs(number - float(text)) <= near for number in numbers), f"{text} is in no result"


def test_both_languages_state_the_same():
    assert sorted(stated("README.zh-CN.md")) == sorted(stated("README.md"))
