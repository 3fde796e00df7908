"""Training in the report: what it led to is said wherever a report is shown, and drawn from the epochs alone."""

import math
import re

import pytest
from sample_report import resnet20

from tersor.measure.parts.training import Training, summary
from tersor.measure.schema import Report
from tersor.report.compare import side_by_side
from tersor.report.figures import figures
from tersor.report.html import html
from tersor.report.text import text
from tersor.report.training import curves, rows, sentence
from tersor.words import speaking


def trained(count=3, after=0.05, kept=True, **changes):
    epochs = [
        {"number": k, "steps": 10 * k, "loss": 1 / k, "held_out": 0.1 / k, "rate": 1e-3 / k, "seconds": 2.0}
        for k in range(1, count + 1)
    ]
    made = {"epochs": epochs, "before": 0.123, "after": after, "kept": kept, "held_out": "the task's loss on <b>"}
    return {**made, **changes}


def test_a_training_that_helped_is_said_once_and_is_no_problem():
    report = resnet20(trainings=[trained()])
    assert summary(report.trainings[0]) == "trained 3 epochs: held-out loss 0.123 → 0.05"
    assert "\nTrained 3 epochs: held-out loss 0.123 → 0.05\n" in text(report)
    assert "Below target" not in (report.headline or "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"after": 0.2, "kept": False}, "(held-out loss 0.123 → 0.2): the network from before training was kept"),
        ({"after": 0.2}, "(held-out loss 0.123 → 0.2), and the trained network is the result"),
        ({"after": None, "kept": False}, "(held-out loss 0.123 → not finite): the network from before training was"),
    ],
)
def test_a_network_that_was_better_before_is_never_silent(changes, words):
    report = resnet20(trainings=[trained(**changes)])
    assert (report.headline or "").startswith("Below target: training made it worse ")
    assert words in (report.headline or "")
    assert words in " ".join(text(report, width=200).split())
    assert words in html(report)
    with speaking("zh"):
        assert "训练使结果变差" in text(report, width=200)


def test_of_many_epochs_the_first_and_the_last_are_listed():
    lines = text(resnet20(trainings=[trained(50)])).splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("epoch "))
    listed = [line.split()[0] for line in lines[start + 2 : start + 12]]
    assert listed == ["before", "1", "8", "15", "22", "29", "36", "43", "50", "trained"]


def test_curves_go_through_every_known_value():
    training = Training.model_validate(trained(4))
    found = {curve.title: curve for curve in curves(training)}
    assert list(found) == ["Held-out loss", "Training loss", "Learning rate"]
    # Before training and four epochs; the dashed line is the value before.
    points = re.findall(r'cx="([\d.]+)%" cy="([\d.]+)%"', found["Held-out loss"].drawing)
    assert [float(x) for x, _ in points] == [0, 25, 50, 75, 100]
    low, high = float(found["Held-out loss"].up[0]), float(found["Held-out loss"].up[2])
    values = [high - (high - low) * float(y) / 100 for _, y in points]
    assert values == pytest.approx([0.123, 0.1, 0.05, 0.1 / 3, 0.025], abs=1e-3)
    assert found["Held-out loss"].drawing.count('class="front"') == 1
    assert found["Training loss"].drawing.count('class="drawn"') == 3
    assert found["Training loss"].across == ("epoch 1", "epoch 4")


def test_what_is_unknown_leaves_a_gap_and_nothing_to_draw_no_curve():
    epochs = [{**epoch, "held_out": None} for epoch in trained(1)["epochs"]]
    training = Training.model_validate(trained(1, epochs=epochs))
    assert curves(training) == []
    assert rows(training)[1][2] == "–"
    page = html(resnet20(trainings=[trained(1, epochs=epochs)]))
    assert 'id="training"' in page
    assert 'class="scatter curve"' not in page


def test_a_loop_of_the_users_own_has_no_epochs():
    training = Training(before=0.2, after=0.1, kept=True, held_out="the loss")
    assert sentence(training) == "Trained: held-out loss 0.2 → 0.1"
    assert curves(training) == []
    assert "epochs in figures" not in html(resnet20(trainings=[training.model_dump()]))


def test_the_page_names_every_drawing_and_escapes_what_is_foreign():
    page = html(resnet20(trainings=[trained()]))
    assert "<b>" not in page.partition('id="training"')[2].partition("</section>")[0]
    assert page.count('<svg class="scatter curve" role="group" aria-label="') == 3
    assert 'aria-label="epoch 2: 0.05"' in page
    assert "<details open>" in page.partition('id="training"')[2]
    assert "<details open>" not in html(resnet20(trainings=[trained(13)])).partition('id="training"')[2][:9000]


def test_the_report_keeps_trainings_and_reports_without_them_have_none():
    report = resnet20(trainings=[trained()], **{"timings_s.train": 12.0})
    assert Report.model_validate_json(report.to_json()) == report
    assert "train 12.0 s" in text(report)
    assert resnet20().trainings == ()
    assert "train" not in resnet20().timings_s.model_dump(exclude_none=True)


def test_no_loss_of_a_report_is_nan():
    with pytest.raises(ValueError, match="finite"):
        Training(before=math.nan, after=1.0, kept=True, held_out="the loss")


def test_comparisons_have_rows_for_training_if_a_run_trained():
    found = side_by_side({"a": figures(resnet20(trainings=[trained()])), "b": figures(resnet20())})
    values = {row.name: [figure.text for figure in row.figures] for row in found.rows}
    assert values["epochs trained"] == ["3", "–"]
    assert values["held-out loss, before → after training"] == ["0.123 → 0.05", "–"]
    alone = side_by_side({"a": figures(resnet20()), "b": figures(resnet20())})
    assert "epochs trained" not in {row.name for row in alone.rows}


@pytest.mark.parametrize(
    ("trainings", "words"),
    [([], "training (`tersor finetune --recipe int8-qat`)"), ([trained()], "more epochs of training")],
)
def test_a_drop_beyond_chance_is_answered_with_training(trainings, words):
    drop = {"ratios.metric_drop": 0.02, "compressed.metric_interval": (0.01, 0.03), "compressed.metric": 0.897,
            "compressed.metric_simulated": 0.897, "trainings": trainings}  # fmt: skip
    assert words in resnet20(**drop).headline
