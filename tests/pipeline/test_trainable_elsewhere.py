"""Students of tersor.trainable in the hands of others: Trainer, PEFT, FSDP2, torch.compile."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import tersor

pytestmark = pytest.mark.slow


def gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "n_positions": 16, "n_embd": 32, "n_layer": 1, "n_head": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **ends)).eval()


def llama(tied=False):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).eval()


def tokens():
    return torch.randint(0, 64, (16, 12), generator=torch.Generator().manual_seed(0))


def trained(student, folder, steps, resume=None):
    """The student after so many steps of transformers' Trainer, which saves every two."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, report_to=[], save_steps=2,
        use_cpu=True, disable_tqdm=True, learning_rate=1e-2, lr_scheduler_type="constant",
    )
    data = [{"input_ids": row, "labels": row} for row in tokens()]
    Trainer(model=student, args=arguments, train_dataset=data).train(resume_from_checkpoint=resume)
    return student


def same(student, small, inputs):
    """Between layers, rounding in float may move a value to the next code."""
    with torch.no_grad():
        torch.testing.assert_close(small(inputs).logits, student(inputs).logits, rtol=0, atol=2e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", [gpt2, llama, lambda: llama(True)], ids=["gpt2", "llama", "tied"])
def test_transformers_trainer_trains_saves_and_resumes(make, tmp_path):
    student = tersor.trainable(make())
    assert type(student) is type(make())
    before = {n: p.clone() for n, p in student.named_parameters()}
    trained(student, tmp_path / "whole", 4)
    assert [n for n, p in student.named_parameters() if torch.equal(p, before[n])] == []
    again = trained(tersor.trainable(make()), tmp_path / "again", 4, resume=str(tmp_path / "whole" / "checkpoint-2"))
    for (name, one), (_, other) in zip(student.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    same(student.eval(), tersor.quantize_dynamic(student), tokens())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_adapts_and_merges():
    peft = pytest.importorskip("peft")
    student = tersor.trainable(llama())
    adapted = peft.get_peft_model(student, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    for _ in range(2):
        adapted(input_ids=tokens(), labels=tokens()).loss.backward()
        optimizer.step()
    same(adapted.eval(), tersor.quantize_dynamic(adapted), tokens())
    before = student.model.layers[0].self_attn.q_proj.base_layer.weight.clone()
    merged = adapted.merge_and_unload()
    layer = merged.model.layers[0].self_attn.q_proj
    assert not torch.equal(layer.weight, before)
    scales = [f"weight_quantizer.{n}" for n in ("log_scale", "codes_range", "start_scale", "zero_point")]
    assert list(layer.state_dict()) == ["weight", *scales]
    same(merged, tersor.quantize_dynamic(merged), tokens())


@pytest.fixture
def mesh():
    """A mesh of this process alone."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@pytest.mark.parametrize("recipe", ["int8-dynamic", "int4-weight"])
def test_fsdp2_shards_parameters_and_scales(recipe, mesh):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": nn.LSTM(64, 32), "head": nn.Linear(32, 32)})
    student, x = tersor.trainable(model, recipe), torch.randn(4, 3, 64)
    alone = copy.deepcopy(student)
    for layer in student.values():
        fully_shard(layer, mesh=mesh)
    for trains in (student, alone):
        optimizer = torch.optim.SGD(trains.parameters(), lr=0.1)
        trains["head"](trains["rnn"](x)[0]).square().mean().backward()
        optimizer.step()
    whole = get_model_state_dict(student, options=StateDictOptions(full_state_dict=True))
    assert all(isinstance(p, torch.distributed.tensor.DTensor) for p in student.parameters())
    assert whole.keys() == alone.state_dict().keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in alone.state_dict().items())


COMPILED = """
import sys, torch, tersor
from torch import nn

torch.manual_seed(0)
for layer, recipe in ((nn.Linear(64, 32), "int8-dynamic"), (nn.Linear(64, 32), "int16-dynamic"),
                      (nn.Conv1d(64, 8, 1), "int4-weight"), (nn.GRUCell(64, 8), "int8-dynamic")):
    student = tersor.trainable(nn.Sequential(layer), recipe, progress=False)
    x = torch.randn((4, 64, 3) if isinstance(layer, nn.Conv1d) else (4, 64))
    compiled = torch.compile(student, backend=sys.argv[1], fullgraph=True)
    # Those of a scale jump where its largest weight, at the very end of the range, counts as outside.
    parameters = [p for n, p in student.named_parameters() if "quantizer" not in n]
    torch.testing.assert_close(student(x), compiled(x))
    one, other = (torch.autograd.grad(m(x).square().mean(), parameters) for m in (student, compiled))
    for a, b in zip(one, other):
        assert float((a - b).norm()) <= 0.05 * float(a.norm())
"""


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_as_one_graph(backend):
    # The checks of types at run time, which the tests install, cannot be compiled.
    command = [sys.executable, "-W", "error:Dynamo", "-c", COMPILED, backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
