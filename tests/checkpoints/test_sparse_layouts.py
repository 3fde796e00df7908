"""The sparse layouts of compressed-tensors: theirs and ours decode each other's files, and nothing invalid is read."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from compressed_tensors.utils import pack_bitmasks, unpack_bitmasks
from safetensors.torch import load_file, save_file

import tersor
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.checkpoints.sparse.folder import SparseFolder
from tersor.checkpoints.sparse.layouts import KEY, SPARSE_LAYOUTS, Sparse24Bitmask, SparseBitmask, sparsity_of
from tersor.errors import CheckpointError, RecipeError
from tersor.recipe import Quantization, Recipe
from tests.checkpoints.tiny_llama import logits, tiny_llama

NAME = "model.layers.0.mlp.up_proj.weight"
LAYER = NAME.removesuffix(".weight")
FLOAT = Quantization(format="fp32")
DATA = Path(__file__).parents[1] / "data/compressed-tensors-0.14"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def weight(kind, dtype=torch.float32, rows=24, columns=40, seed=0):
    """A weight with −0.0 among its zeros: three quarters of it, or 2:4."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=generator)
    if kind == "sparse-24-bitmask":
        order = torch.rand(rows, columns // 4, 4, generator=generator).argsort(-1)
        w = w * (order < 2).reshape(rows, columns)
        w[3, :4] = 0  # a group with fewer than two
    else:
        w = w * (torch.rand(rows, columns, generator=generator) < 0.25)
        w[5] = 0  # a row without values
    return w.to(dtype)  # zeros of both signs


def same_bits(a, b):
    words = torch.int32 if a.dtype == torch.float32 else torch.int16
    return a.dtype == b.dtype and torch.equal(a.view(words), b.view(words))


def theirs():
    """The last release that reads these layouts, in the place of the one that is installed; skipped if it is not there.

    `pip install --no-deps --target DIR compressed-tensors==0.14.0`, and DIR on the path.
    """
    try:
        return importlib.import_module("compressed_tensors.compressors.sparse_compressors")
    except ImportError:
        pytest.skip("compressed-tensors up to 0.14 is not installed")


@pytest.mark.parametrize("layout", SPARSE_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [40, 44, 36])
def test_a_weight_comes_back_bit_for_bit_and_smaller(layout, dtype, columns):
    w = weight(layout, dtype, columns=columns)
    tensors = SPARSE_LAYOUTS[layout].encode(NAME, w)
    assert tensors.keys() == {f"{LAYER}.{suffix}" for suffix in SPARSE_LAYOUTS[layout].suffixes}
    assert sum(t.nbytes for t in tensors.values()) < w.nbytes
    assert bool((w.signbit() & (w == 0)).any())
    assert same_bits(SPARSE_LAYOUTS[layout].decode(NAME, tensors), w + 0.0), "all but the signs of zeros"


@pytest.mark.parametrize("layout", SPARSE_LAYOUTS)
def test_masks_are_those_of_the_library(layout):
    w = weight(layout)
    bits = SPARSE_LAYOUTS[layout].encode(NAME, w)[f"{LAYER}.bitmask"]
    mask = unpack_bitmasks(bits, list(w.shape))
    assert bool(mask[w != 0].all())
    assert torch.equal(pack_bitmasks(mask), bits)
    if layout == "sparse-24-bitmask":
        assert bool((mask.reshape(-1, 4).sum(1) == 2).all())


@pytest.mark.parametrize("layout", SPARSE_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_their_reader_decodes_ours_and_ours_decodes_theirs(layout, dtype):
    module = theirs()
    w = weight(layout, dtype)
    tensors = SPARSE_LAYOUTS[layout].encode(NAME, w)
    config = importlib.import_module("compressed_tensors.config")
    kinds = {
        "sparse-bitmask": (module.BitmaskCompressor, config.BitmaskConfig),
        "sparse-24-bitmask": (module.Sparse24BitMaskCompressor, config.Sparse24BitMaskConfig),
    }
    compressor, options = kinds[layout]
    compressor = compressor(options())
    assert same_bits(dict(compressor.decompress_from_state_dict(tensors))[NAME], w + 0.0)
    written = compressor.compress({NAME: w}, None)
    assert torch.equal(SPARSE_LAYOUTS[layout].decode(NAME, written), w)


@pytest.mark.parametrize("layout", SPARSE_LAYOUTS)
def test_files_that_their_last_release_wrote_are_read(layout):
    """Written by `python -m tests.checkpoints.test_sparse_layouts` with that release on the path."""
    stored = load_file(DATA / f"{layout}.safetensors")
    dense = stored.pop("dense")
    assert torch.equal(SPARSE_LAYOUTS[layout].decode(NAME, stored), dense)
    ours = SPARSE_LAYOUTS[layout].encode(NAME, dense)
    if layout == "sparse-bitmask":
        assert all(torch.equal(ours[name], stored[name]) for name in stored)


def test_what_would_not_be_smaller_stays_dense():
    assert SparseBitmask().encode(NAME, torch.randn(16, 16)) is None
    assert Sparse24Bitmask().encode(NAME, weight("sparse-bitmask") + 1) is None
    broken = weight("sparse-24-bitmask")
    broken[2, :4] = torch.tensor([1.0, 2.0, 3.0, 0.0])
    assert Sparse24Bitmask().encode(NAME, broken) is None
    assert Sparse24Bitmask().encode(NAME, weight("sparse-bitmask", columns=42)) is None


def changed(tensors, suffix, change):
    return tensors | {f"{LAYER}.{suffix}": change(tensors[f"{LAYER}.{suffix}"])}


BAD = {
    "no mask": lambda t: {n: v for n, v in t.items() if "bitmask" not in n},
    "a mask of another type": lambda t: changed(t, "bitmask", lambda m: m.to(torch.int32)),
    "a mask with a row less": lambda t: changed(t, "bitmask", lambda m: m[1:]),
    "another mask": lambda t: changed(t, "bitmask", lambda m: m ^ 1),
    "fewer values": lambda t: changed(t, "compressed", lambda v: v[:-1]),
    "values of another shape": lambda t: changed(t, "compressed", lambda v: v[None]),
    "a huge shape": lambda t: changed(t, "shape", lambda s: torch.full_like(s, 1 << 40)),
    "a negative shape": lambda t: changed(t, "shape", lambda s: -s),
    "three sizes": lambda t: changed(t, "shape", lambda s: torch.tensor([2, 3, 4])),
    "a shape of floats": lambda t: changed(t, "shape", lambda s: s.float()),
}


@pytest.mark.parametrize("layout", SPARSE_LAYOUTS)
@pytest.mark.parametrize("case", BAD)
def test_tensors_that_do_not_match_are_refused_by_name(layout, case):
    tensors = SPARSE_LAYOUTS[layout].encode(NAME, weight(layout))
    with pytest.raises(CheckpointError, match="up_proj"):
        SPARSE_LAYOUTS[layout].decode(NAME, BAD[case](tensors))


def test_row_offsets_of_another_mask_are_refused():
    tensors = SparseBitmask().encode(NAME, weight("sparse-bitmask"))
    with pytest.raises(CheckpointError, match="row_offsets"):
        SparseBitmask().decode(NAME, changed(tensors, "row_offsets", lambda o: o + 1))


def test_bits_behind_the_last_column_are_refused():
    tensors = SparseBitmask().encode(NAME, weight("sparse-bitmask", columns=41))

    def set_last(mask):
        mask = mask.clone()
        mask[0, -1] |= 128
        return mask

    with pytest.raises(CheckpointError, match="behind the last"):
        SparseBitmask().decode(NAME, changed(tensors, "bitmask", set_last))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    tiny_llama().save_pretrained(folder)
    return folder


def recipe(sparsity, **options):
    return Recipe(name="sparse", weights=options.pop("weights", FLOAT), activations=FLOAT, sparsity=sparsity,
                  pruner="magnitude")  # fmt: skip


@pytest.fixture(scope="module")
def compressed(source, tmp_path_factory):
    """By layout, the result of the same recipe, 2:4, and of the same in dense files."""
    made = {}

    def compressed(layout):
        if layout not in made:
            out = tmp_path_factory.mktemp("out") / "out"
            tokens = torch.randint(3, 90, (4, 16), generator=torch.Generator().manual_seed(0))
            made[layout] = tersor.compress_folder(
                source, out, recipe("2:4"), tokens, layout=layout, progress=False
            )  # fmt: skip
        return made[layout]

    return compressed


@pytest.mark.parametrize("layout", SPARSE_LAYOUTS)
def test_a_folder_holds_the_same_model_in_fewer_bytes(layout, compressed):
    dense, sparse = compressed("compressed-tensors"), compressed(layout)
    weights = [w for w in sparse.report.weights if w.format]
    assert len(weights) == 14
    assert sparse.report.layout == layout
    files = [sum(p.stat().st_size for p in x.folder.glob("*.safetensors")) for x in (dense, sparse)]
    saved = sum(w.bytes for w in dense.report.weights) - sum(w.bytes for w in sparse.report.weights)
    assert abs(files[0] - files[1] - saved) < 500 * len(weights), "what the report says, but for headers"
    assert dense.report.compressed_bytes - sparse.report.compressed_bytes == saved
    assert sum(w.bytes for w in weights) < 0.65 * sum(4 * torch.Size(w.shape).numel() for w in weights)
    assert torch.equal(logits(tersor.load(sparse.folder).model), logits(tersor.load(dense.folder).model))
    found, plain = SparseFolder(sparse.folder), dict(tersor.load(dense.folder).model.state_dict())
    for name in found.sparse:
        assert same_bits(found.tensor(name), plain[name])


@pytest.mark.parametrize("layout", SPARSE_LAYOUTS)
def test_config_json_is_as_their_last_release_reads_it(layout, compressed):
    config = json.loads((compressed(layout).folder / "config.json").read_text())
    assert sparsity_of(config) == layout
    # Any other key would be taken for a quantization, which needs config_groups.
    assert config["quantization_config"].keys() == {"quant_method", "version", KEY}
    found = config["quantization_config"][KEY]
    assert found["sparsity_structure"] == ("2:4" if "24" in layout else "unstructured")
    assert found["global_sparsity"] == 0.5
    assert found["ignore"] == ["lm_head"]
    module = importlib.import_module("compressed_tensors.config")
    made = module.SparsityCompressionConfig.load_from_registry(layout, **found)
    assert made.targets == ["Linear"]


def test_their_reader_opens_the_folder(compressed):
    """Tensor by tensor, from the files."""
    module, config = theirs(), importlib.import_module("compressed_tensors.config")
    folder = compressed("sparse-bitmask").folder
    reader = module.BitmaskCompressor(config.BitmaskConfig())
    found = dict(reader.decompress(str(folder)))
    expected = tersor.load(folder).model.state_dict()
    assert len(found) > 14
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_report_says_who_reads_it_and_what_zeros_save(compressed):
    report = compressed("sparse-bitmask").report
    assert any("reads sparse-bitmask up to 0.14.0 only" in w for w in report.warnings)
    assert not any("neither the file smaller" in w for w in report.warnings)
    assert report.zeros.share == 0.5
    assert report.zeros.pattern == "2:4"
    card = (compressed("sparse-bitmask").folder / "README.md").read_text()
    assert "at random" in card
    assert "from_pretrained" not in card.split("## Limits")[0].split("With Tersor")[0]
    dense = compressed("compressed-tensors").report
    assert dense.zeros.deflated < 0.75 * dense.zeros.bytes
    assert report.zeros.bytes < 0.85 * dense.zeros.bytes, "embeddings and head have no zeros"
    assert any("neither the file smaller" in w for w in dense.warnings)


def test_transformers_here_would_not_read_it(compressed):
    """The reason for the sentence in the report, and for the layout being chosen by name only."""
    from transformers import AutoModelForCausalLM

    folder = compressed("sparse-bitmask").folder
    _, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert NAME in found["missing_keys"]


def test_what_a_layout_cannot_store_is_refused_before_the_work(source, tmp_path):
    for layout, wanted, words in (
        ("sparse-24-bitmask", recipe("50%"), "q_proj gets 50% zeros, and sparse-24-bitmask stores 2:4 alone"),
        ("sparse-bitmask", "int8-weight", "q_proj becomes int8.*float weights"),
        ("sparse-25-bitmask", recipe("50%"), "no layout 'sparse-25-bitmask'; one of .*sparse-bitmask"),
    ):
        with pytest.raises(RecipeError, match=words):
            tersor.compress_folder(source, tmp_path / "out", wanted, layout=layout, progress=False)


def test_a_sparse_folder_is_no_quantized_one_and_damage_is_refused(compressed, tmp_path):
    folder = compressed("sparse-bitmask").folder
    with pytest.raises(CheckpointError, match=r"open it with tersor\.load"):
        QuantizedFolder(folder)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "manifest.json").unlink()
    config = json.loads((copy / "config.json").read_text())
    shard = copy / "model-00002-of-00003.safetensors"
    tensors = load_file(shard)
    part = f"{LAYER}.bitmask"
    save_file(tensors | {part: tensors[part][:, :-1].contiguous()}, shard)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight: its shape does not match its bitmask"):
        tersor.load(copy)
    save_file(tensors | {part: tensors[part] ^ 1}, shard)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight"):
        tersor.load(copy)
    config["quantization_config"]["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="quantized and stored as sparse-bitmask at once"):
        tersor.load(copy)


def write_theirs():
    """The files of DATA, by the release on the path."""
    module, config = theirs(), importlib.import_module("compressed_tensors.config")
    DATA.mkdir(exist_ok=True)
    for layout, kind, options in (
        ("sparse-bitmask", module.BitmaskCompressor, config.BitmaskConfig),
        ("sparse-24-bitmask", module.Sparse24BitMaskCompressor, config.Sparse24BitMaskConfig),
    ):
        dense = weight(layout, torch.bfloat16) + 0.0
        tensors = kind(options()).compress({NAME: dense}, None)
        save_file(tensors | {"dense": dense}, DATA / f"{layout}.safetensors")


if __name__ == "__main__":
    sys.exit(write_theirs())
