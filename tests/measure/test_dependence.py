"""An evaluation that scores something else than what `predict` returns is said so; one that scores it never is."""

import pytest
import torch
from torch import nn

from tersor.measure.agreement import AgreementRecorder
from tersor.measure.metric import dependence_warnings, evaluate_metric
from tersor.metrics import hits

NET = nn.Linear(4, 3)
nn.init.normal_(NET.weight, generator=torch.Generator().manual_seed(1))
X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
LABELS = NET(X).argmax(1)


def _pairs(predict):
    a, b = predict(X), predict(X.flip(0))
    return torch.cosine_similarity(a, b)


def _until_the_end(predict):
    count = 0
    while predict(X[:1]).argmax() != LABELS[0]:
        count += 1
    return float(count)


IGNORING = {
    "the model": lambda predict: hits(NET(X), LABELS),
    "the model, having called it": lambda predict: (predict(X), hits(NET(X), LABELS))[1],
    "one number": lambda predict: (predict(X), 0.5)[1],
}
SCORING = {
    "classes": lambda predict: hits(predict(X), LABELS),
    "one number": lambda predict: float((predict(X).argmax(1) == LABELS).float().mean()),
    "its sign does not matter": _pairs,
    "a loop": _until_the_end,
    "an assertion": lambda predict: float(torch.testing.assert_close(predict(X), NET(X)) is None),
}


def _warnings(evaluate):
    recorder = AgreementRecorder(NET)
    with torch.no_grad():
        found = [evaluate_metric(evaluate, recorder)] * 2
        return dependence_warnings(evaluate, NET, len(recorder.fingerprints), found)


@pytest.mark.parametrize("name", IGNORING)
def test_scores_of_something_else_are_said(name):
    (said,) = _warnings(IGNORING[name])
    assert "score what predict(x) returns, not the model itself" in said
    assert ("did not call" in said) == (name == "the model")


@pytest.mark.parametrize("name", SCORING)
def test_scores_of_the_network_are_not(name):
    assert _warnings(SCORING[name]) == []


def test_scores_that_differ_are_not_tried_again():
    found = [evaluate_metric(lambda predict, value=value: value, NET) for value in (0.5, 0.6)]
    assert dependence_warnings(lambda predict: pytest.fail("called"), NET, 1, found) == []
