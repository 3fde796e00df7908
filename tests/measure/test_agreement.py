"""Predictions are recorded as argmax, bounded, and compared only where the inputs were the same."""

import pytest
import torch

from tersor.measure import AgreementRecorder, prediction_agreement, same_inputs


def _recorded(predict, batches, **options):
    recorder = AgreementRecorder(predict, **options)
    for batch in batches:
        recorder(batch)
    return recorder


def test_the_answer_passes_through_unchanged():
    answer = {"logits": torch.randn(2, 3)}
    recorder = AgreementRecorder(lambda x, scale: answer)
    assert recorder(torch.ones(2), scale=2.0) is answer
    assert recorder.predictions().tolist() == answer["logits"].argmax(1).tolist()


@pytest.mark.parametrize(
    ("shape", "axis"), [((7, 5), 1), ((2, 7, 5), 2), ((2, 5, 3, 4), 1), ((2, 5, 3, 4, 2), 1)], ids=str
)
def test_share_is_that_of_brute_force_over_ragged_batches(shape, axis):
    torch.manual_seed(0)
    batches = [torch.randn(shape), torch.randn(1, *shape[1:])]
    noise = torch.randn(1, *shape[1:]) * 0.5
    one, two = _recorded(lambda x: x, batches), _recorded(lambda x: (x + noise,), batches)
    equal = torch.cat([(x.argmax(axis) == (x + noise).argmax(axis)).flatten() for x in batches])
    found = prediction_agreement(one, two)
    assert found.share == equal.double().mean().item()
    assert 0 < found.share < 1
    assert found.predictions == equal.numel()


def test_integer_outputs_are_predictions_themselves():
    batches = [torch.tensor([1, 2, 3, 4])]
    one, two = _recorded(lambda x: x, batches), _recorded(lambda x: x.clamp(max=3), batches)
    assert prediction_agreement(one, two).share == 0.75


def test_memory_is_bounded():
    recorder = _recorded(lambda x: x, [torch.randn(10, 3)] * 5, limit=25)
    assert recorder.predictions().numel() == 25
    assert sum(chunk.untyped_storage().nbytes() for chunk in recorder._chunks) == 100


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (torch.zeros(4, 1), "not a row of class scores"),
        (torch.zeros(4), "not a row of class scores"),
        ("text", "contains no tensor"),
    ],
    ids=["one column", "one number", "text"],
)
def test_no_choice_to_compare_says_why(output, reason):
    recorder = _recorded(lambda x: output, [torch.ones(4)])
    found = prediction_agreement(recorder, recorder)
    assert found.share is None
    assert reason in found.reason


def test_other_inputs_are_not_compared():
    x = torch.randn(4, 3)
    one, two = _recorded(lambda x: x, [x, x + 1]), _recorded(lambda x: x, [x + 1, x])
    assert not same_inputs(one, two)
    assert "another order" in prediction_agreement(one, two).reason


def test_nan_in_an_input_is_equal_to_itself():
    x = torch.tensor([[float("nan"), 1.0]])
    assert same_inputs(_recorded(lambda x: x, [x]), _recorded(lambda x: x, [x]))


def test_no_call_at_all_says_so():
    assert "on any sample" in prediction_agreement(AgreementRecorder(len), AgreementRecorder(len)).reason
