"""Energy from a made-up powercap tree: packages only, wrapping counters, unreadable ones ignored."""

import pytest

from tersor.measure import joules_per_call
from tersor.measure.energy import zones


def _zone(root, name, kind, counter="0", span="999"):
    folder = root / name
    folder.mkdir()
    (folder / "name").write_text(kind + "\n")
    (folder / "energy_uj").write_text(counter)
    (folder / "max_energy_range_uj").write_text(span)
    return folder / "energy_uj"


def test_nothing_where_there_is_no_powercap(tmp_path):
    assert joules_per_call(lambda: None, root=tmp_path / "absent") is None


def test_packages_are_summed_and_counters_may_wrap(tmp_path):
    first = _zone(tmp_path, "intel-rapl:0", "package-0", "100", "999999")
    second = _zone(tmp_path, "intel-rapl:1", "package-1", "900", "999")
    part = _zone(tmp_path, "intel-rapl:0:0", "core", "0", "999999")
    _zone(tmp_path, "intel-rapl:2", "psys", "0", "999999")
    calls = []

    def call():
        calls.append(1)
        # The first call is untimed. The second counter wraps at 1000: 900 → 0 is 100.
        if len(calls) == 2:
            first.write_text("400100")
            second.write_text("0")
            part.write_text("99999")

    assert joules_per_call(call, min_time=0, root=tmp_path) == pytest.approx(0.4001)
    assert len(calls) == 2


@pytest.mark.parametrize("content", ["", "lots"])
def test_a_counter_that_cannot_be_read_is_no_zone(tmp_path, content):
    _zone(tmp_path, "intel-rapl:0", "package-0", content)
    assert zones(tmp_path) == []
