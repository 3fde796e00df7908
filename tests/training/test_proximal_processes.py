"""Two data-parallel processes with ADMM: the same targets on both, as one process with all of the data."""

import sys

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from tersor.training.proximal.admm import Admm
from tersor.training.proximal.optimizer import ProximalOptimizer


def trained(rank, count, wrap=lambda model: model):
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    optimizer = ProximalOptimizer(torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9))
    optimizer.admm(model.weight, Admm("ternary", every=3))
    optimizer.mask(model.bias, torch.tensor([True, True, False, True]))
    wrapped = wrap(model)
    for step in range(12):
        batch = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))[rank::count]
        optimizer.zero_grad()
        wrapped(batch).square().mean().backward()
        optimizer.step()
    optimizer.project()
    return torch.cat([model.weight.detach().flatten(), model.bias.detach()]), optimizer.residuals["weight"][-1].primal


def work(rank, file, results):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    weight, primal = trained(rank, 2, DistributedDataParallel)
    results[rank] = (weight.tolist(), primal)
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo's file store")
def test_two_processes_project_onto_the_same_codes_as_one(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        workers = [context.Process(target=work, args=(rank, tmp_path / "store", results)) for rank in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        assert [worker.exitcode for worker in workers] == [0, 0]
        both = dict(results)
    assert both[0] == both[1]
    alone, primal = trained(0, 1)
    assert torch.allclose(torch.tensor(both[0][0]), alone, atol=1e-5)
    assert both[0][1] == pytest.approx(primal, rel=1e-3)
