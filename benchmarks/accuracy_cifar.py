"""ResNet-20 and ResNet-56 on CIFAR-10 in both engines, the engines' own quantizers beside them."""

from dataclasses import asdict, replace

from pictures import cifar10, top1, usual

import tersor
from benchmarks import common, peers
from benchmarks.accuracy import in_float, look, ours, pair, simulation_claims
from benchmarks.common import Claim, Outcome, say

PICTURES = 512
PEERS = {"openvino": ("NNCF", peers.nncf_runner), "onnxruntime": ("quantize_static", peers.ort_runner)}


def cifar(name: str, quick: bool) -> tersor.Task:
    """The task; in short only 200 test pictures judge."""
    task = common.task(name, quick)
    if not quick:
        return task
    pixels, labels = cifar10("test")
    return replace(task, evaluate=lambda predict: top1(predict, pixels[:200], labels[:200], usual))


def bench(quick: bool) -> Outcome:
    """Top-1 lost on all 10,000 test pictures, calibrated on 512 training pictures."""
    claims, details = [], {}
    for name, title in (("resnet20", "ResNet-20"), ("resnet56", "ResNet-56"))[: 1 if quick else 2]:
        task = cifar(name, quick)
        for engine, (peer_name, peer) in PEERS.items():
            before = in_float(task, engine)
            found = ours(task, engine, before)
            say(f"{task.name}, {engine}: {peer_name}")
            other = pair(before, look(task, peer(task, PICTURES), peer_name))
            what = f"{title}, {engine}"
            beside = f"{peer_name} {other.drop:.2f}"
            claims.append(
                Claim("cifar", what, found.drop, 0.2, unit="points", spread=found.interval, peer=beside)
            )
            claims += simulation_claims(what, found)
            details[what] = {"ours": asdict(found), peer_name: asdict(other)}
    return Outcome(claims, details)


if __name__ == "__main__":
    common.main("accuracy_cifar", bench)
