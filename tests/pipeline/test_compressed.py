"""Folders: whole or not at all, checked before use, nothing in them believed."""

import json
import os
import stat

import pytest
import torch
from parts import conv, head, task_of
from torch import nn

import tersor
from tersor.errors import EngineError, SavedFolderError


@pytest.fixture(scope="module")
def done():
    torch.manual_seed(0)
    return tersor.compress(
        task_of(nn.Sequential(conv(3, 8), head(8)), (3, 8, 8)), engine="torch", report=False, progress=False
    )


@pytest.fixture
def folder(done, tmp_path):
    return done.save(tmp_path / "saved")


def _manifest(folder, change):
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "a/../../outside.txt"])
def test_a_manifest_that_names_files_outside_is_not_trusted(folder, name):
    (folder.parent / "outside.txt").write_text("secret")
    _manifest(folder, lambda m: m["files"].update({name: {"sha256": "0", "bytes": 1, "shipped": True}}))
    with pytest.raises(SavedFolderError, match="outside its folder: do not trust it"):
        tersor.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format=99),
        lambda m: m.pop("engine"),
        lambda m: m.update(files=[]),
        lambda m: m.update(files={"network.json": 3}),
        lambda m: m.update(files={"network.json": {}}),
        lambda m: m.update(inputs=None),
    ],
)
def test_a_damaged_manifest_is_said_so(folder, change):
    _manifest(folder, change)
    with pytest.raises(SavedFolderError, match=r"manifest\.json is damaged"):
        tersor.load(folder)


def test_no_json_and_no_folder(folder, tmp_path):
    (folder / "manifest.json").write_text("{")
    with pytest.raises(SavedFolderError, match="damaged"):
        tersor.load(folder)
    with pytest.raises(SavedFolderError, match=r"nowhere has no manifest\.json: pass a folder"):
        tersor.load(tmp_path / "nowhere")


def test_an_engine_that_does_not_exist(folder):
    _manifest(folder, lambda m: m.update(engine="os"))
    with pytest.raises(EngineError, match="no engine 'os'"):
        tersor.load(folder)


@pytest.mark.parametrize("name", ["network.json", "network.safetensors", "recipe.yaml"])
def test_one_bit_more_or_less_is_noticed(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 4
    (folder / name).write_bytes(data)
    with pytest.raises(SavedFolderError, match=rf"{name} was altered"):
        tersor.load(folder)


def test_a_file_of_that_name_is_kept(done, tmp_path):
    (tmp_path / "x").write_text("mine")
    for force in (False, True):
        with pytest.raises(SavedFolderError, match=r"exists|is a file"):
            done.save(tmp_path / "x", force)
    assert (tmp_path / "x").read_text() == "mine"


def test_a_failed_exchange_puts_the_old_folder_back(done, folder, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    replace, calls = os.replace, []

    def fails_once(source, target):
        calls.append(target)
        if target == folder and calls.count(folder) == 1:
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr("tersor.checkpoints.manifest.os.replace", fails_once)
    with pytest.raises(SavedFolderError, match="no space"):
        done.save(folder, force=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["saved"]


def test_parents_are_made_and_rights_are_the_users(done, tmp_path):
    made = done.save(tmp_path / "a" / "b" / "c")
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(made.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("engine", [None, "auto", "torch"])
def test_a_network_runs_in_the_engine_that_it_was_compressed_for(engine, folder):
    assert tersor.load(folder, engine=engine).engine == "torch"
    with pytest.raises(EngineError, match="compressed for torch, not for openvino"):
        tersor.load(folder, engine="openvino")


def test_loading_reads_no_pickle(folder, monkeypatch):
    import pickle

    def refused(*args, **kwargs):
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "Unpickler", refused)
    monkeypatch.setattr(pickle, "load", refused)
    monkeypatch.setattr(pickle, "loads", refused)
    monkeypatch.setattr(torch, "load", refused)
    assert tersor.load(folder)(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
