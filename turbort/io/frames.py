"""From decoded pixels to bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turbort.errors import TurbortError

if TYPE_CHECKING:
    from torch import Tensor

    from turbort.io.writer import Frames


def frames_to_uint8(video: Tensor) -> Frames:
    """round((clamp(x, -1, 1) + 1) * 127.5), halves to even: pixels [C, T, H, W] in [-1, 1] to uint8 [T, H, W, C].

    Computed in float32 whatever the input's dtype and returned as a NumPy array in the host's memory. Raises TurbortError
    for NaN or infinite pixels: a byte made from those would depend on the machine.
    """
    wide = video.detach().float()
    if not bool(wide.isfinite().all()):
        bad = int((~wide.isfinite()).sum())
        raise TurbortError(
            f"{bad} of {wide.numel()} decoded pixels are not finite numbers",
            fix="choose a higher precision for the model or the VAE in the profile (for example compute: fp32)",
        )
    codes = wide.clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    result: Frames = codes.permute(1, 2, 3, 0).contiguous().cpu().numpy().astype("uint8")
    return result
