"""Bytes that the VAE's decoder takes beside its weights, read off the plan's convolutions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from turbort.memory_sites import float_bytes, is_reference, parse_shape

if TYPE_CHECKING:
    from turbort.plan import Plan


@dataclass(frozen=True)
class _Conv:
    """A convolution of the decoder: shapes of input and weight, bytes per value, copies that its kernel makes, whether its
    input has room for the past, and whether its kernel keeps its weight in a layout of its own."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    width: int
    copies: int
    room: bool
    lays_out: bool

    @property
    def frame(self) -> int:
        """Bytes of one frame of one channel."""
        return self.x[3] * self.x[4] * self.width

    @property
    def causal(self) -> bool:
        return len(self.weight) == 5 and self.weight[2] > 1


ROOM = {"cuda/triton": ("cuda/cudnn", "cuda/triton", "cuda/triton-any")}
"""Kernels of `vae_norm_silu` that leave room for the past in front of their result, and the convolutions that use it."""

LAYING_OUT = ("cuda/triton", "cuda/triton-any")
"""Kernels of `causal_conv3d` that keep their weight's taps side by side."""


def _convolutions(plan: Plan) -> Iterable[_Conv]:
    before = None
    for choice in plan:
        if choice.path.startswith("vae/decoder") and choice.op in ("causal_conv3d", "vae_upsample"):
            shapes = [parse_shape(text) for text in choice.shapes]
            reorders = is_reference(choice) and "/channels-last" not in choice.kernel
            after = before.kernel if before is not None and before.op == "vae_norm_silu" else ""
            room = choice.kernel in ROOM.get(after, ())
            lays_out = choice.op == "causal_conv3d" and choice.kernel in LAYING_OUT
            yield _Conv(shapes[0], shapes[1], float_bytes(choice.precision), int(reorders), room, lays_out)
        before = choice


def vae_layouts(plan: Plan) -> int:
    """Second layouts of weights that the convolutions' kernels keep from their first call on."""
    return sum(prod(conv.weight) * conv.width for conv in _convolutions(plan) if conv.lays_out)


def vae_caches(plan: Plan) -> int:
    """Two past frames per causal convolution of one clip."""
    return sum(2 * conv.x[1] * conv.frame for conv in _convolutions(plan) if conv.causal)


def vae_activations(plan: Plan, chunk: int, latent_frames: int) -> int:
    """The widest convolution of one clip decoded `chunk` latent frames at a time.

    Alive together: the block's shortcut, the convolution's input, the same with its past (and once more where the kernel
    reorders it), the output, and the new past beside the old.
    """
    widest = 0
    for conv in _convolutions(plan):
        # A clip's first latent frame is one frame of video at every level, the others are as many as the plan recorded.
        frames = conv.x[2] * chunk if chunk < latent_frames else 1 + conv.x[2] * (latent_frames - 1)
        into, out = conv.x[1], conv.weight[0]
        if len(conv.weight) == 5:
            past = 2 if conv.causal else 0
            # With room, the input and the same with its past are one.
            beside = (1 if conv.room else 2) * frames
            values = into * (beside + (1 + conv.copies) * (frames + past) + past) + out * frames
        else:
            values = frames * (into + 4 * out + 4 * (into * (1 + conv.copies) if conv.copies else out))
        widest = max(widest, values * conv.frame)
    return widest
