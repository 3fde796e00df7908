"""A slice of `make stress`, of a minute: the same with fewer calls, compressions and kills."""

import json
import subprocess
import sys

import pytest

from tests.stress import memory, threads
from tests.stress.row import Row


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*threads.RUNNING, threads.DECODER])
def test_threads_get_their_own_answers(engine):
    assert [row.detail for row in threads.rows(400, (2, 8), [engine])] == ["wrong 0, failed 0"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_compressions_in_a_row_keep_no_memory(engine):
    found = memory.row(8, engine)
    assert not found.wrong, found


@pytest.mark.slow
def test_memory_that_a_run_keeps_is_seen(monkeypatch):
    kept = []
    monkeypatch.setattr(memory.gc, "collect", lambda: kept.append(memory.torch.ones(250_000)))
    assert memory.row(6, "torch").wrong


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "count"), [("folder", "KILL", 1), ("save", "KILL", 2), ("save", "TERM", 2)])
def test_a_killed_run_loses_tears_and_leaves_nothing(kind, name, count):
    command = [sys.executable, "-m", "tests.stress.kills", kind, name, str(count), "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
    found = Row(**json.loads(done.stdout.splitlines()[-1]))
    assert not found.wrong, found


def test_a_wrong_answer_and_an_error_are_counted():
    asked = []

    def call(number):
        asked.append(number)
        if number == 3 and len(asked) > 4:
            raise ValueError
        return threads.torch.tensor([len(asked) if number == 2 else number])

    found = threads.answers(call, [0, 1, 2, 3], 2, 80, "a test")
    assert (found.runs, found.wrong, found.detail) == (80, 40, "wrong 20, failed 20")
