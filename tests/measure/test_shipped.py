"""Everything that must be shipped counts, also in subfolders; the report does not."""

import pytest

from tersor.errors import SavedFolderError
from tersor.measure import shipped_bytes, shipped_files


def test_all_files_but_the_report(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, size in {
        "m.xml": 10,
        "m.bin": 1000,
        "sub/report.json": 5,
        "report.json": 99,
        "report.html": 99,
    }.items():
        (tmp_path / name).write_bytes(bytes(size))
    assert shipped_files(tmp_path) == {"m.bin": 1000, "m.xml": 10, "sub/report.json": 5}
    assert shipped_bytes(str(tmp_path)) == 1015


@pytest.mark.parametrize("name", ["", "absent"])
def test_nothing_to_ship_is_an_error(tmp_path, name):
    with pytest.raises(SavedFolderError, match="no file to ship"):
        shipped_bytes(tmp_path / name)
