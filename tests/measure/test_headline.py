"""The first line: plain where it worked; what, why and what to try where it did not."""

import pytest
from sample_report import UNKNOWN_METRIC, latency, layers, resnet20

from tersor.measure import diagnose, unknown
from tersor.measure.headline import below_plan, is_fallback

GAIN = "3.3x smaller, 2.1x faster, top-1 accuracy 91.70 % -> 91.68 %"
FALLEN = [
    dict(layer, executed="fp32", note="zero point per channel") if at in (3, 9) else layer
    for at, layer in enumerate(layers())
]
UNTOLD = [
    dict(layer, note="openvino: no reason known; part of Subgraph s") if layer["executed"] == "fp32" else layer
    for layer in FALLEN
]
FLOAT = [dict(layer, weight_format="fp32", weight_bytes=10**6) for layer in layers()]
LSTM = {"name": "rnn.lstm", "op": "lstm", "planned": "fp32", "weight_format": None, "weight_bytes": 300_000}
FLOAT_LSTM = [dict(x, **LSTM) if k == 3 else dict(x, weight_bytes=9 * bool(x["weight_format"]))
              for k, x in enumerate(layers())]  # fmt: skip
WORSE = {"compressed.metric": 0.90, "compressed.metric_simulated": 0.90, "ratios.metric_drop": 0.017}
BEYOND = {**WORSE, "compressed.metric_interval": (0.012, 0.022)}
ONE_NUMBER = {"compressed.metric_interval": None, "warnings": [unknown("compressed.metric_interval", "x")]}
FEW = {"calibration": {"adequate": False, "notes": ["8 samples"]}}
NARROW = [
    dict(layer, planned="fp32", note="OpenVINO: drops it") if at in (3, 5) else layer
    for at, layer in enumerate(layers())
]
OLD_CPU = {"environment.isa": ["avx2"]}
SLOW = {"ratios.speedup": 0.8, "ratios.speedup_spread": (0.75, 0.85)}
TURNING = [{"name": str(k), "op": op, "planned": None, "executed": "fp32"} for k, op in enumerate(
    ("Convolution", "Reorder", "FakeQuantize", "Pooling"))]  # fmt: skip


def test_a_result_that_worked():
    assert resnet20().headline == GAIN
    assert diagnose(resnet20()).worked


@pytest.mark.parametrize(
    ("changes", "what", "why", "remedy"),
    [
        (SLOW, "1.2x slower than FP32 in the same engine (0.75x to 0.85x over the rounds)", "", "another engine"),
        ({"ratios.speedup": 0.99, "ratios.speedup_spread": (0.985, 0.995)}, "1.01x slower", "", "another engine"),
        ({**SLOW, "audit": TURNING}, "with 2 of 4 operators that only convert", "", "larger layers"),
        ({**SLOW, "layers": FALLEN}, "with 2 of 22 layers in float", "", "remedies for the layers in float"),
        ({**SLOW, **OLD_CPU}, "no VNNI", "", "newer CPU"),
        ({**SLOW, "original.latency_ms": dict(latency(0.02, 1))}, "with calls of 20.0 µs", "", "larger batch"),
        ({"layers": FALLEN}, "2 of 22 layers fell back to float (layer1.1.conv1, layer2.1.conv1)",
         "zero point per channel", "another granularity"),
        ({"layers": NARROW}, "ran in fewer bits than planned (layer1.1.conv1: int8 where fp32 is planned",
         "OpenVINO: drops it", "report the layer"),
        ({"layers": UNTOLD}, "2 of 22 layers fell back to float (layer1.1.conv1, layer2.1.conv1), no reason known", "",
         "another granularity"),
        ({"ratios.compression": 0.9}, "did not shrink (1.10 MB -> 338 kB)", "", "inspect"),
        ({"ratios.compression": 0.9, "layers": FLOAT}, "did not shrink", "no weight is stored in fewer bits",
         "inspect"),
        ({"ratios.compression": 1.0, "layers": []}, "did not shrink", "the rest is the graph", "nothing"),
        ({"ratios.compression": 1.0, "layers": FLOAT_LSTM}, "did not shrink",
         "300 kB of it are weights that stayed in float (rnn.lstm)", "int8-dynamic"),
        (BEYOND, "worse by 1.70 points, beyond chance (95 %: +1.20",
         "layer3.0.conv2 34.2 dB", "fp16"),
        ({**BEYOND, "compressed.metric_simulated": 0.916},
         "worse by 1.70 points", "the simulation keeps it and openvino does not", "another engine"),
        ({**BEYOND, "compressed.metric_simulated": 0.916, **OLD_CPU, "environment.target": "x86-vnni"},
         "worse by 1.70 points", "planned for x86-vnni, it saturates on this CPU", "measuring on the target"),
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
    cause = f", because {problem.why}" if why else ""
    assert bool(problem.why) == bool(why)
    assert report.headline.startswith(f"Below target: {problem.what}{cause}; try: {problem.remedy}")
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


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("changes", [SLOW, {"layers": FALLEN}, {"layers": NARROW}], ids=["slow", "wide", "narrow"])
def test_a_simulation_makes_no_headline_of_speed_and_precision(engine, changes):
    report = resnet20(engine=engine, **changes)
    assert diagnose(report).worked == (engine == "torch")
    assert ("faster" in report.headline or "slower" in report.headline) == (engine != "torch")


@pytest.mark.parametrize(
    ("speedup", "spread", "said"),
    [
        (0.97, (0.93, 1.01), "speed: no difference beyond the noise (0.93x to 1.01x)"),
        (1.04, (0.99, 1.1), "speed: no difference beyond the noise (0.99x to 1.10x)"),
        (1.2, (0.6, 2.0), "speed: no difference beyond the noise (0.60x to 2.00x: a busy machine)"),
        (1.04, (1.02, 1.06), "1.04x faster"),
    ],
)
def test_speed_within_chance_is_no_problem(speedup, spread, said):
    report = resnet20(**{"ratios.speedup": speedup, "ratios.speedup_spread": spread})
    assert diagnose(report).worked
    assert report.headline == f"3.3x smaller, {said}, top-1 accuracy 91.70 % -> 91.68 %"


def test_without_a_spread_that_of_the_latencies_decides():
    one = {"median": 1.0, "p10": 0.9, "p90": 1.1}
    for scale, said in ((1.05, "beyond the noise"), (1.5, "1.5x slower")):
        other = {name: value * scale for name, value in one.items()}
        changes = {"original.latency_ms": one, "compressed.latency_ms": other, "ratios.speedup": 1 / scale}
        assert said in resnet20(**changes, **{"ratios.speedup_spread": None}).headline


def test_a_float_operator_inside_an_integer_kernel_is_not_below_its_plan():
    bare = {"planned": "fp32", "weight_format": None}
    merged = [dict(layer, **bare) if at == 3 else layer for at, layer in enumerate(layers())]
    assert not below_plan(resnet20(layers=merged))


def test_every_problem_is_said():
    found = diagnose(resnet20(**{**SLOW, "ratios.compression": 0.5, "layers": FALLEN}))
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
