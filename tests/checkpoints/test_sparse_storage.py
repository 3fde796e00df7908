"""Networks stored without their zeros: bit for bit the same, smaller, and nothing invalid is read."""

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import tersor
from tersor.checkpoints import network as checkpoint
from tersor.checkpoints.sparse.storage import ENTRY, STORAGES, Pattern, Stored, read, smallest
from tersor.errors import SavedFolderError, TersorError
from tersor.numerics.packing import packed_bytes
from tersor.recipe import Quantization, Recipe

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool)
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a, b):
    words = WORDS[a.element_size()]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(words), b.view(words))


def random_bits(shape, dtype, seed):
    """Any bits that the dtype can have: NaN, infinity and −0.0 among them."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (*shape, size), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def in_pattern(tensor, n, m, seed):
    """The tensor with all but ``n`` of every ``m`` neighbours zero."""
    order = torch.rand(tensor.numel() // m, m, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    kept = (order < n).reshape(tensor.shape)
    words = tensor.view(WORDS[tensor.element_size()])
    return torch.where(kept, words, torch.zeros_like(words)).view(tensor.dtype)


@given(st.sampled_from([*FLOATS, *INTEGERS]), st.floats(0, 1), st.integers(0, 50), st.integers(1, 40))
def test_every_tensor_comes_back_bit_for_bit(dtype, share, rows, columns):
    tensor = random_bits((rows, columns, 8), dtype, rows)
    words = tensor.view(WORDS[tensor.element_size()])
    words[torch.rand(tensor.shape, generator=torch.Generator().manual_seed(columns)) < share] = 0
    found = smallest(tensor, 8)
    if found is not None:
        name, stored = found
        assert stored.nbytes + ENTRY < tensor.numel() * tensor.element_size() or tensor.numel() == 0
        assert same_bits(read(name, stored, tuple(tensor.shape), dtype, 8), tensor)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", ["unstructured", "1:2", "2:4", "1:4", "1:8"])
def test_codes_of_every_width_come_back(bits, signed, kind):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    codes = torch.randint(low, high, (64, 64), dtype=torch.int8 if signed else torch.uint8)
    if kind == "unstructured":
        codes[torch.rand(64, 64) < 0.9] = 0
    else:
        codes = in_pattern(codes, *map(int, kind.split(":")), seed=bits)
    found = smallest(codes, bits)
    worth = packed_bytes(codes.numel(), 1) + packed_bytes(int((codes != 0).sum()), bits) + ENTRY
    if worth < packed_bytes(codes.numel(), bits):
        assert found is not None
    if found is not None:
        assert found[1].nbytes <= worth
        assert same_bits(read(*found, (64, 64), codes.dtype, bits), codes)


@pytest.mark.parametrize("name", [n for n in STORAGES if n != "bitmask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_pattern_that_holds_exactly_is_used_and_beats_the_mask(name, dtype):
    n, m = map(int, name.split(":"))
    tensor = in_pattern(torch.randint(1, 100, (64, 64)).to(dtype), n, m, seed=0)
    found, stored = smallest(tensor, 8)
    assert found == name
    mask = tensor.numel() // 8 + int((tensor != 0).sum()) * tensor.element_size()
    assert stored.nbytes < mask
    assert same_bits(read(name, stored, (64, 64), dtype, 8), tensor)
    broken = tensor.clone()
    broken[5, : m] = 1  # one group too full
    assert smallest(broken, 8) is None or smallest(broken, 8)[0] != name


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (1, 8)])
def test_every_group_that_a_pattern_covers_is_stored_and_no_other(n, m):
    for group in itertools.product((0, 1), repeat=m):
        tensor = torch.tensor([9 * k for k in group], dtype=torch.int8)
        stored = Pattern(n, m).store(tensor)
        assert (stored is not None) == (sum(group) <= n)
        if stored is not None:
            assert torch.equal(Pattern(n, m).read(*stored, m), tensor)


def test_zeros_that_cost_more_than_they_save_are_stored():
    tensor = torch.randn(256, 256)
    tensor[torch.rand(256, 256) < 0.02] = 0  # the mask takes 1 bit of 32: 3.1 %
    assert smallest(tensor, 8) is None
    tensor[torch.rand(256, 256) < 0.05] = 0
    assert smallest(tensor, 8)[0] == "bitmask"
    assert smallest(torch.zeros(8, 8), 8) is None, "too small for another entry in the header"
    assert smallest(torch.zeros(1000, dtype=torch.complex64), 8) is None


BAD = {
    "a mask with too few bits": ("bitmask", [1.0, 2.0], [1], 8),
    "a mask with too many bits": ("bitmask", [1.0], [3], 8),
    "a mask with bits behind the end": ("bitmask", [1.0, 2.0], [1, 128], 9),
    "a mask of another length": ("bitmask", [1.0], [1, 0], 8),
    "a way that does not exist": ("2:4", [1.0, 2.0], [6], 4),
    "too many values": ("2:4", [1.0, 2.0, 3.0], [0], 4),
    "too many ways": ("2:4", [1.0, 2.0], [0, 0, 0], 4),
    "half a group": ("2:4", [1.0, 2.0, 3.0], [0], 6),
}


@pytest.mark.parametrize("case", BAD)
def test_places_that_do_not_match_are_refused(case):
    name, values, places, count = BAD[case]
    stored = Stored(torch.tensor(values), torch.tensor(places, dtype=torch.uint8))
    with pytest.raises((ValueError, TersorError)):
        read(name, stored, (count,), torch.float32, 8)


def pruned(pattern):
    """A network of two layers whose weights are 80 % zeros, or 2:4."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    with torch.no_grad():
        for layer in (net[0], net[2]):
            if pattern == "2:4":
                layer.weight.copy_(in_pattern(layer.weight.detach(), 2, 4, 0))
            elif pattern:
                layer.weight[torch.rand(layer.weight.shape) < 0.8] = 0
    return net


def compressed(net, **weights):
    data = [(torch.randn(16, 64),)]
    task = tersor.Task("sparse", net, (torch.zeros(2, 64),), lambda: data)
    recipe = Recipe(weights=Quantization(**weights)) if weights else "int8-static"
    return tersor.compress(task, recipe, engine="torch", report=False, progress=False), data[0][0]


@pytest.mark.parametrize("pattern", ["80%", "2:4"])
@pytest.mark.parametrize("weights", [{}, {"format": "int4"}, {"format": "fp32"}], ids=str)
def test_a_saved_network_is_smaller_and_the_same(pattern, weights, tmp_path):
    done, x = compressed(pruned(pattern), **weights)
    folder = done.save(tmp_path / "out")
    files = load_file(folder / checkpoint.FILES[1])
    kinds = {t["sparse"] for t in json.loads((folder / checkpoint.FILES[0]).read_text())["tensors"].values() if
             "sparse" in t}  # fmt: skip
    assert kinds == {"2:4" if pattern == "2:4" else "bitmask"}
    dense, _ = compressed(pruned(""), **weights)
    dense_files = load_file(dense.save(tmp_path / "dense") / checkpoint.FILES[1])
    assert sum(t.nbytes for t in files.values()) < 0.9 * sum(t.nbytes for t in dense_files.values())
    again = tersor.load(folder)
    assert torch.equal(again(x), done(x))
    for (name, before), (other, after) in zip(done.network.tensors(), again.network.tensors(), strict=True):
        assert name == other
        assert same_bits(before.detach(), after.detach())


def test_a_network_without_zeros_is_written_in_the_format_that_all_versions_read(tmp_path):
    done, _ = compressed(pruned(""))
    (tmp_path / "out").mkdir()
    checkpoint.write(done.network, tmp_path / "out")
    graph = json.loads((tmp_path / "out" / checkpoint.FILES[0]).read_text())
    assert graph["format"] == 1
    assert not any("sparse" in t for t in graph["tensors"].values())


def damaged(folder, graph=lambda g: None, tensors=lambda t: None):
    path, file = (folder / name for name in checkpoint.FILES)
    content, found = json.loads(path.read_text()), load_file(file)
    graph(content)
    tensors(found)
    path.write_text(json.dumps(content))
    save_file(found, file)
    return folder


@pytest.fixture
def folder(tmp_path):
    done, _ = compressed(pruned("80%"))
    (tmp_path / "net").mkdir()
    checkpoint.write(done.network, tmp_path / "net")
    checkpoint.read(tmp_path / "net")
    return tmp_path / "net"


def places(found):
    return next(name for name in found if name.endswith(":places"))


def huge(graph):
    layout = next(t for t in graph["tensors"].values() if "sparse" in t)
    layout["shape"] = [1 << 40]


TENSORS = {
    "a bit more": lambda t: t[places(t)].__setitem__(0, t[places(t)][0] ^ 1),
    "a shorter mask": lambda t: t.update({places(t): t[places(t)][:-1].clone()}),
    "a mask of another type": lambda t: t.update({places(t): t[places(t)].to(torch.int16)}),
    "a mask with rows": lambda t: t.update({places(t): t[places(t)].reshape(2, -1)}),
    "no mask": lambda t: t.__delitem__(places(t)),
    "fewer values": lambda t: t.update({places(t)[:-7]: t[places(t)[:-7]][:-1].clone()}),
    "values of another type": lambda t: t.update({places(t)[:-7]: t[places(t)[:-7]].to(torch.int32)}),
    "a mask for no tensor": lambda t: t.update({"x:places": torch.zeros(1, dtype=torch.uint8)}),
}
GRAPHS = {
    "a huge shape": huge,
    "an unknown storage": lambda g: next(t for t in g["tensors"].values() if "sparse" in t).update(sparse="7:9"),
    "another storage": lambda g: next(t for t in g["tensors"].values() if "sparse" in t).update(sparse="2:4"),
    "no storage": lambda g: next(t for t in g["tensors"].values() if "sparse" in t).pop("sparse") and None,
    "codes of one bit": lambda g: next(t for t in g["tensors"].values() if "sparse" in t).update(bits=1),
}


@pytest.mark.parametrize("case", TENSORS)
def test_damaged_tensors_are_refused(case, folder):
    with pytest.raises(SavedFolderError, match="save"):
        checkpoint.read(damaged(folder, tensors=TENSORS[case]))


@pytest.mark.parametrize("case", GRAPHS)
def test_a_damaged_description_is_refused(case, folder):
    with pytest.raises(SavedFolderError, match="save"):
        checkpoint.read(damaged(folder, graph=GRAPHS[case]))
