"""From decoded pixels to bytes, and from the device to the host's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turbort.errors import TurbortError

if TYPE_CHECKING:
    from torch import Tensor

    from turbort.io.writer import Frames


class Arriving:
    """Pixels [C, T, H, W] in [-1, 1] as uint8 frames [T, H, W, C] that are on their way to the host.

    Each is round((clamp(x, -1, 1) + 1) * 127.5), halves to even, computed on the device in float32 whatever the input's
    dtype. Making one does not wait for a CUDA device: the copy goes into pinned memory behind the work that is queued there.
    Other devices have finished the copy when the constructor returns.
    """

    def __init__(self, video: Tensor) -> None:
        import torch

        # A copy even of float32, because the steps below work in place.
        wide = video.detach().to(torch.float32, copy=True)
        bad = wide.isfinite().logical_not_().sum()
        codes = wide.clamp_(-1.0, 1.0).add_(1.0).mul_(127.5).round_().permute(1, 2, 3, 0)
        self._pixels = wide.numel()
        self._codes = _sent(codes.to(torch.uint8, memory_format=torch.contiguous_format))
        self._bad = _sent(bad)
        self._there = None
        if video.device.type == "cuda":
            # Blocking: whoever waits sleeps, instead of taking a processor from the encoder.
            self._there = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._there.record(torch.cuda.current_stream(video.device))

    def frames(self) -> Frames:
        """The frames, once they are there; may be called from another thread.

        Raises TurbortError for NaN or infinite pixels: a byte made from those would depend on the machine.
        """
        if self._there is not None:
            self._there.synchronize()
        bad = int(self._bad)
        if bad:
            raise TurbortError(
                f"{bad} of {self._pixels} decoded pixels are not finite numbers",
                fix="choose a higher precision for the model or the VAE in the profile (for example compute: fp32)",
            )
        result: Frames = self._codes.numpy()
        return result


def frames_to_uint8(video: Tensor) -> Frames:
    """The frames of `Arriving(video)`, waited for: uint8 [T, H, W, C] of pixels [C, T, H, W]. Raises as that does."""
    return Arriving(video).frames()


def _sent(values: Tensor) -> Tensor:
    """The same values on the host; from a CUDA device they are there when the device gets to the end of its queue."""
    import torch

    if values.device.type != "cuda":
        return values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)
