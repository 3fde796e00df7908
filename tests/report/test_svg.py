"""Drawings are well-formed, to scale, within their box, and keep foreign text as text."""

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from tersor.report import svg

NUMBER = st.one_of(st.none(), st.floats(-200, 200))


def _widths(drawing):
    return [float(rect.get("width")) for rect in ElementTree.fromstring(drawing).iter("rect")]


def test_bars_are_to_scale():
    assert _widths(svg.bar(25, 100, "x")) == [25]
    assert _widths(svg.twin_bar(40.0, 10.0, 50.0)) == [80, 20]
    assert _widths(svg.twin_bar(-3.0, None, 50.0)) == [0]
    assert _widths(svg.bar(1, 0, "x")) == [0]


def test_whiskers_reach_from_p10_to_p90():
    assert "M40 6H60" in svg.bar(50, 100, "x", spread=(40, 60))


def test_a_whisker_beyond_the_axis_has_no_end_mark():
    assert "M100 3V9" not in svg.bar(50, 100, "x", spread=(40, 300))
    assert "M100 3V9" in svg.bar(50, 100, "x", spread=(40, 100))


def test_a_gap_in_what_is_known_is_a_gap_in_the_line():
    path = svg.profile([10.0, None, 10.0], [None] * 3, [], 20.0, "x")
    assert 'd="M0 50H33.33M66.67 50H100"' in path


def test_channels_are_drawn_by_decades_and_the_marked_apart():
    drawing = ElementTree.fromstring(svg.channels([1.0, 10.0, 0.0, 100.0], 1.0, [3], "x"))
    paths = {path.get("class").strip(): path.get("d") for path in drawing.iter("path")}
    # From 1 to 1,000: a third of the height is a decade, and nothing is drawn of a dead channel.
    assert paths["area"] == "M0 100V100H25V100M25 100V66.67H50V100"
    assert paths["area fell"] == "M75 100V33.33H100V100"
    assert paths["whisker"] == "M0 100H100"


def test_of_channels_that_share_a_column_the_largest_is_seen():
    reach = [1.0] * 3000
    reach[1234] = 50.0
    drawing = ElementTree.fromstring(svg.channels(reach, 1.0, [1234], "x"))
    paths = {path.get("class").strip(): path.get("d") for path in drawing.iter("path")}
    assert paths["area"].count("M") == svg.COLUMNS
    assert paths["area fell"].count("M") == 1


@given(st.lists(NUMBER, min_size=1, max_size=20), st.lists(NUMBER, min_size=1, max_size=20))
def test_nothing_leaves_the_box(local, accumulated):
    drawing = svg.profile(local, accumulated, [0], 50.0, "x")
    for path in ElementTree.fromstring(drawing).iter("path"):
        assert all(0 <= float(number) <= 100 for number in re.findall(r"[-\d.]+", path.get("d")))


def test_labels_are_escaped():
    drawing = svg.bar(1, 1, '"><script>alert(1)</script>')
    assert ElementTree.fromstring(drawing).get("aria-label") == '"><script>alert(1)</script>'
    assert "<script" not in drawing
