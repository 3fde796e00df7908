"""The former place of ``OpenVinoDecoder``."""

from tersor.engines.openvino.decoder import OpenVinoDecoder

__all__ = ["OpenVinoDecoder"]
