"""The processor's account of itself, on x86 and on Arm, and this machine's."""

import pytest
import torch

from tersor.engines.targets import CPUS, UNKNOWN, exact_int8, here, isa_flags
from tersor.measure import describe_environment
from tersor.measure.environment import cpu_name, versions

ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\nCPU part\t: 0xd40\n"
X86 = "processor\t: 0\nmodel name\t: Old CPU\nflags\t\t: sse4_2 avx2 fma\nbugs\t\t: avx512_vnni\n"


@pytest.mark.parametrize(
    ("text", "flags", "exact"),
    [(ARM, ("asimd", "asimddp", "i8mm", "bf16"), True), (X86, ("avx2",), False), ("", (), False)],
    ids=["arm", "x86", "none"],
)
def test_flags_and_what_they_mean(text, flags, exact):
    assert isa_flags(text) == flags
    assert exact_int8(flags) is exact


def test_the_name():
    assert cpu_name(X86) == "Old CPU"


def test_this_machine():
    found = describe_environment(threads=3, precision="f32")
    assert (found.threads, found.precision) == (3, "f32")
    assert (
        found.versions["torch"] == torch.__version__.split("+")[0]
        or found.versions["torch"] == torch.__version__
    )
    assert found.system


def test_what_is_not_installed_has_no_version():
    assert list(versions(["tersor-no-such-package"])) == ["python"]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("avx2", "x86-avx2"),
        ("avx2 avx512_vnni", "x86-vnni"),
        ("avx2 avx_vnni avx512_bf16", "x86-bf16"),
        ("avx2 avx512_vnni avx512_bf16 amx_int8", "x86-amx"),
        ("asimd", "arm-neon"),
        ("asimd asimddp", "arm-dotprod"),
        ("sse2", "an unknown CPU"),
    ],
)
def test_a_cpu_is_the_last_target_that_it_has_the_instructions_of(cpu, flags, name):
    cpu(*flags.split())
    assert here().name == name
    assert here().exact_int8 is exact_int8(flags.split())
    assert here() in (*CPUS, UNKNOWN)


def test_the_target_stands_in_the_environment():
    assert describe_environment(threads=1, precision="f32", target="x86-amx").target == "x86-amx"
