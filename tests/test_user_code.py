"""What code of the user's raises is told in one line, with the user's own line, and never ends the program."""

import pytest

from tersor.errors import CalibrationError, TaskError
from tersor.user_code import told, users


def raising(error):
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("two\n  lines."), r"raised ValueError: two lines \(test_user_code\.py, line \d+: raise error\); "),
        (KeyError("x"), r"read raised KeyError: 'x' \("),
        (AssertionError(), r"read raised AssertionError \(test_user"),
        (SystemExit(0), r"read called sys\.exit\(0\) \(test_user"),
        (SystemExit("bye"), r"read called sys\.exit\('bye'\)"),
        (MemoryError(), r"read raised MemoryError \("),
        (ValueError("x" * 10_000), r"read raised ValueError: x{400} \("),
    ],
)
def test_errors_become_ours_with_the_users_line(error, said):
    with pytest.raises(TaskError, match=said) as caught, users("read", TaskError, "correct it"):
        raising(error)
    assert caught.value.__cause__ is error
    assert str(caught.value).endswith("; correct it")


@pytest.mark.parametrize("error", [CalibrationError("ours"), KeyboardInterrupt(), GeneratorExit()])
def test_errors_of_ours_and_interruptions_pass(error):
    with pytest.raises(type(error)) as caught, users("read", TaskError, "correct it"):
        raising(error)
    assert caught.value is error


def test_a_syntax_error_is_told_where_it_is(tmp_path):
    with pytest.raises(SyntaxError) as caught:
        compile("x = 1\ny = (\n", str(tmp_path / "mine.py"), "exec")
    assert told(caught.value) == "SyntaxError: '(' was never closed (mine.py, line 2: y = ()"
    assert told(ValueError("never raised")) == "ValueError: never raised"
