"""Training quantizers by name."""

from tersor.tables import Named, made, name_of
from tersor.training.quantizers.base import Quantizer, Start, TrainingQuantizer, check_start
from tersor.training.quantizers.binary import Sign
from tersor.training.quantizers.dorefa import Dorefa
from tersor.training.quantizers.fixed import Fixed
from tersor.training.quantizers.irnet import IrNet
from tersor.training.quantizers.lsq import Lsq
from tersor.training.quantizers.lsq_plus import LsqPlus
from tersor.training.quantizers.pact import Pact
from tersor.training.quantizers.projected import Projected
from tersor.training.quantizers.twn import Ttq, Twn

__all__ = ["QUANTIZERS", "Quantizer", "Start", "TrainingQuantizer", "quantizer"]

QUANTIZERS: dict[str, type[TrainingQuantizer]] = {
    "fixed": Fixed,
    "lsq": Lsq,
    "lsq+": LsqPlus,
    "pact": Pact,
    "dorefa": Dorefa,
    "twn": Twn,
    "ttq": Ttq,
    "sign": Sign,
    "irnet": IrNet,
    "projected": Projected,
}
"""All training quantizers by name."""


def quantizer(asked: Named, start: Start) -> Quantizer:
    """The module of a site: the quantizer that is asked for; ``auto``: ``lsq``, of binary values ``sign``.

    Raises:
        RecipeError: naming the site, if the quantizer does not train its format.
    """
    if asked == "auto":
        asked = "sign" if start.spec.format.name == "binary" else "lsq"
    entry = made(QUANTIZERS, asked, "quantizer")
    check_start(name_of(asked), entry, start)
    return entry(start)
