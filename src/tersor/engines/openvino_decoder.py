"""The former module of ``OpenVinoDecoder``."""

from tersor.engines.openvino.decoder import OpenVinoDecoder

__all__ = ["OpenVinoDecoder"]
