"""The processor's account of itself, on x86 and on Arm, and this machine's."""

import pytest
import torch

from tersor.measure import describe_environment, exact_int8
from tersor.measure.environment import cpu_name, isa_flags, versions

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
