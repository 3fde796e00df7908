"""The first line: plain where it worked; what, why and what to try where it did not."""

import pytest
from sample_report import UNKNOWN_METRIC, layers, resnet20

from tersor.measure import diagnose, unknown
from tersor.measure.headline import below_plan, is_fallback

GAIN = "3.3x smaller, 2.1x faster, top-1 accuracy 91.70 % -> 91.68 %"
FALLEN = [
    dict(layer, executed="fp32", note="zero point per channel") if at in (3, 9) else layer
    for at, layer in enumerate(layers())
]
WORSE = {"compressed.metric": 0.90, "compressed.metric_simulated": 0.90, "ratios.metric_drop": 0.017}
BEYOND = {**WORSE, "compressed.metric_interval": (0.012, 0.022)}
ONE_NUMBER = {"compressed.metric_interval": None, "warnings": [unknown("compressed.metric_interval", "x")]}
FEW = {"calibration": {"adequate": False, "notes": ["8 samples"]}}
NARROW = [
    dict(layer, planned="fp32", executed="int8") if at == 3 else dict(layer, planned="fp32") if at == 5 else layer
    for at, layer in enumerate(layers())
]
OLD_CPU = {"environment.isa": ["avx2"]}


def test_a_result_that_worked():
    assert resnet20().headline == GAIN
    assert diagnose(resnet20()).worked


@pytest.mark.parametrize(
    ("changes", "what", "why", "remedy"),
    [
        ({"ratios.speedup": 0.8}, "1.2x slower than FP32", "conversions", "another engine"),
        ({"ratios.speedup": 0.99}, "1.01x slower than FP32", "conversions", "another engine"),
        ({"ratios.speedup": 0.8, "layers": FALLEN}, "slower", "2 layers fell back", "remedies for these layers"),
        ({"ratios.speedup": 0.8, "engine": "torch"}, "slower", "only simulates", "openvino"),
        ({"ratios.speedup": 0.8, **OLD_CPU}, "slower", "no VNNI", "newer CPU"),
        ({"layers": FALLEN}, "2 of 22 layers fell back to float (layer1.1.conv1, layer2.1.conv1)",
         "zero point per channel", "another granularity"),
        ({"layers": NARROW}, "ran in fewer bits than planned (layer1.1.conv1: int8 where fp32 is planned",
         "optimized their quantizers away", "report the layer"),
        ({"ratios.compression": 0.9}, "did not shrink (1.10 MB -> 338 kB)", "same width", "inspect"),
        ({"ratios.compression": 1.0, "layers": []}, "did not shrink", "the rest is the graph", "nothing"),
        (BEYOND, "worse by 1.70 points, beyond chance (95 %: +1.20",
         "layer3.0.conv2 34.2 dB", "fp16"),
        ({**BEYOND, "compressed.metric_simulated": 0.916},
         "worse by 1.70 points", "the simulation keeps it and openvino does not", "another engine"),
        ({**BEYOND, "compressed.metric_simulated": 0.916, **OLD_CPU, "environment.target": "x86-vnni"},
         "worse by 1.70 points", "planned for x86-vnni, it saturates on this CPU", "judging it on the target"),
        ({**BEYOND, "compressed.metric_simulated": 0.916, **OLD_CPU, "environment.target": "x86-avx2"},
         "worse by 1.70 points", "the simulation keeps it and openvino does not", "another engine"),
        ({**BEYOND, **FEW}, "worse", "inadequate (8 samples)", "more"),
        ({**WORSE, **ONE_NUMBER},
         "worse by 1.70 points", "largest errors", "fp16"),
    ],
)  # fmt: skip
def test_what_went_wrong_stands_in_the_first_line(changes, what, why, remedy):
    report = resnet20(**changes)
    problem = diagnose(report).problems[0]
    assert what in problem.what
    assert why in problem.why
    assert remedy in problem.remedy
    assert report.headline.startswith(
        f"BELOW TARGET: {problem.what}, because {problem.why}; try: {problem.remedy}"
    )
    assert "\n" not in report.headline


@pytest.mark.parametrize(
    "changes",
    [
        {**WORSE, "compressed.metric_interval": (-0.001, 0.03)},
        ONE_NUMBER,
        {
            "ratios.metric_drop": -0.02,
            "compressed.metric_interval": (-0.03, -0.01),
            "compressed.metric": 0.937,
        },
    ],
    ids=["within chance", "too small to call", "better"],
)
def test_a_metric_within_chance_is_no_problem(changes):
    assert diagnose(resnet20(**changes)).worked


def test_a_float_operator_inside_an_integer_kernel_is_not_below_its_plan():
    bare = {"planned": "fp32", "weight_format": None}
    merged = [dict(layer, **bare) if at == 3 else layer for at, layer in enumerate(layers())]
    assert not below_plan(resnet20(layers=merged))


def test_every_problem_is_said():
    found = diagnose(resnet20(**{"ratios.speedup": 0.5, "ratios.compression": 0.5, "layers": FALLEN}))
    assert len(found.problems) == 3
    assert all(problem.what in found.first_line for problem in found.problems)


def test_a_metric_that_is_no_fraction_and_better_low():
    report = resnet20(**{
        "metric": {"name": "perplexity", "higher_is_better": False}, "original.metric": 12.0,
        "compressed.metric": 15.5, "compressed.metric_simulated": 15.4, "ratios.metric_drop": 3.5,
        "compressed.metric_interval": (3.0, 4.0),
    })  # fmt: skip
    assert "perplexity is worse by 3.5, beyond chance (95 %: +3 to +4)" in report.headline


def test_what_is_unknown_is_left_out():
    unmeasured = [
        "original.bytes",
        "compressed.bytes",
        "ratios.compression",
        "ratios.speedup",
        "ratios.speedup_over_eager",
    ]
    changes = dict.fromkeys(unmeasured)
    report = resnet20(**changes, warnings=[unknown(tuple(unmeasured), "of a test")])
    assert report.headline == "top-1 accuracy 91.70 % -> 91.68 %"
    assert UNKNOWN_METRIC.endswith("no evaluate")


@pytest.mark.parametrize(
    ("planned", "executed", "fell"),
    [("int8", "bf16", True), ("int4", "int8", True), ("fp8", "fp16", True), ("int8", "int4", False),
     ("fp32", "bf16", False), ("int8", None, False), ("fused", "fp32", False), (None, "fp32", False),
     ("fp16", "bf16", False)],
)  # fmt: skip
def test_wider_than_planned_is_a_fallback(planned, executed, fell):
    assert is_fallback(planned, executed) is fell


def test_foreign_text_cannot_break_the_line():
    report = resnet20(**{"metric": {"name": "evil\n\x1b[2Jaccuracy", "higher_is_better": True}})
    assert report.headline.isprintable()
