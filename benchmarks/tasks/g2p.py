"""g2p (two GRUs) on words of a dictionary: the share of words that it says wrong."""

from recurrent import dictionary, spelled, spelling, word_errors

from tersor import Task


def task() -> Task:
    """3,000 words judge; others calibrate, which only recipes of fixed ranges need."""
    judging, others = dictionary(3000), dictionary(128, start=3000)
    return Task(
        name="g2p",
        model=spelling(),
        example=spelled(["tensor"]),
        calibration=lambda: (spelled([word for word, _ in others[k : k + 32]]) for k in range(0, len(others), 32)),
        evaluate=lambda predict: word_errors(predict, judging),
        metric="word error, %",
        higher_is_better=False,
    )
