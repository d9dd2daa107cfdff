"""Quantisation: schemes, QTensor, packing, and fake quantisation for training."""

from turbort.quant.bsq import block_mask, block_sparsify
from turbort.quant.fake import fake_quant
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import SCHEMES, dequantize, quantize

__all__ = ["SCHEMES", "QTensor", "block_mask", "block_sparsify", "dequantize", "fake_quant", "quantize"]
