"""Targets of plans: kinds of CPU, by their integer instructions. Importing this module is cheap."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.errors import EngineError

if TYPE_CHECKING:
    import tersor.policy

CPUINFO = Path("/proc/cpuinfo")
# Instruction sets that determine speed and exactness of low precision, x86 first, then Arm (Linux's names).
ISA = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
EXACT_INT8 = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})


@dataclass(frozen=True)
class Target:
    """A kind of hardware.

    Args:
        name: as given to ``--target``.
        isa: instruction sets; the target has at least one of them.
        exact_int8: whether uint8 × int8 products are summed in 32 bits; otherwise weights are limited to 7 bits.
        bf16: whether it has BF16 products.
    """

    name: str
    isa: frozenset[str]
    exact_int8: bool
    bf16: bool = False


# A CPU matches the last of these targets with which it shares an instruction set.
CPUS = (
    Target("x86-avx2", frozenset({"avx2"}), exact_int8=False),
    Target("x86-vnni", frozenset({"avx_vnni", "avx512_vnni"}), exact_int8=True),
    Target("x86-bf16", frozenset({"avx512_bf16"}), exact_int8=True, bf16=True),
    Target("x86-amx", frozenset({"amx_int8"}), exact_int8=True, bf16=True),
    Target("arm-neon", frozenset({"asimd"}), exact_int8=False),
    Target("arm-dotprod", frozenset({"asimddp", "i8mm"}), exact_int8=True),
)
# Weights of 7 bits are exact on every CPU.
UNKNOWN = Target("an unknown CPU", frozenset(), exact_int8=False)


def isa_flags(cpuinfo: str) -> tuple[str, ...]:
    """The instruction sets of `ISA` that the text of /proc/cpuinfo lists.

    >>> isa_flags("flags\\t\\t: fpu sse2 avx2 avx512_vnni")
    ('avx2', 'avx512_vnni')
    """
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    flags = {word for key, _, rest in lines if key.strip().lower() in ("flags", "features") for word in rest.split()}
    return tuple(name for name in ISA if name in flags)


def exact_int8(isa: Iterable[str]) -> bool:
    """Whether uint8 × int8 products are summed in 32 bits; plain AVX2 adds pairs of products in 16 bits and saturates.

    >>> exact_int8(["avx2"]), exact_int8(["avx2", "avx_vnni"])
    (False, True)
    """
    return bool(EXACT_INT8 & set(isa))


def cpuinfo() -> str:
    """The text that describes this machine's CPU, or an empty string."""
    return CPUINFO.read_text() if CPUINFO.is_file() else ""


def here() -> Target:
    """The target of this machine."""
    isa = set(isa_flags(cpuinfo()))
    return next((t for t in reversed(CPUS) if t.isa & isa), UNKNOWN)


def saturates(target: str, isa: Iterable[str]) -> bool:
    """Whether 8-bit products are exact on the named target but saturate on a CPU with the given instruction sets.

    >>> saturates("x86-vnni", ["avx2"]), saturates("x86-avx2", ["avx2"])
    (True, False)
    """
    return any(t.name == target and t.exact_int8 for t in CPUS) and not exact_int8(isa)


def target_of(engine: str, targets: tuple[Target, ...], name: str | None) -> Target:
    """The engine's target of that name; by default this machine.

    Raises:
        EngineError: the engine has no target of that name.

    >>> target_of("torch", CPUS, "x86-vnni").exact_int8
    True
    """
    if name is None:
        return here()
    found = next((t for t in targets if t.name == name), None)
    if found is None:
        names = ", ".join(t.name for t in targets)
        known = f"it plans for {names}, by default for this machine" if targets else "its plans depend on none"
        raise EngineError(f"the engine {engine!r} knows no target {name!r}: {known}")
    return found


def planned_for(policy: "tersor.policy.Policy", target: Target) -> "tersor.policy.Policy":
    """The policy for a target: with 7-bit weights if 8-bit products saturate there."""
    from dataclasses import replace

    policy = replace(policy, target=target.name)
    return policy if target.exact_int8 else policy.with_reduced_weights()
