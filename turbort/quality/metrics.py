"""Image metrics of two videos of the same shape, from scikit-image, and LPIPS where that package is installed.

Frames are uint8 [T, H, W, 3]; the first is the reference. Needs the extra `quality`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turbort.errors import UnavailableError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Frames = NDArray[Any]

PSNR_CAP = 100.0
"""dB that stands for "the same": identical frames have no finite PSNR."""
SSIM_WINDOW = 7


def skimage_metrics() -> Any:
    """The module `skimage.metrics`; UnavailableError says how to get it."""
    try:
        import skimage.metrics
    except ImportError:
        raise UnavailableError("the image metrics need scikit-image", fix="pip install 'turbort[quality]'") from None
    return skimage.metrics


def psnr(reference: Frames, other: Frames) -> float:
    """10 log10(255^2 / mse) over the whole video, in dB; `PSNR_CAP` for equal frames."""
    if (reference == other).all():
        return PSNR_CAP
    return min(PSNR_CAP, float(skimage_metrics().peak_signal_noise_ratio(reference, other, data_range=255)))


def psnr_of_frames(reference: Frames, other: Frames) -> list[float]:
    """`psnr` of each frame."""
    return [psnr(a, b) for a, b in zip(reference, other, strict=True)]


def ssim_of_frames(reference: Frames, other: Frames) -> list[float]:
    """Structural similarity of each frame over the three channels; Wang et al. 2004, as scikit-image computes it."""
    similarity = skimage_metrics().structural_similarity
    pairs = zip(reference, other, strict=True)
    return [float(similarity(a, b, channel_axis=-1, data_range=255, win_size=SSIM_WINDOW)) for a, b in pairs]


def latent_psnr(reference: Tensor, other: Tensor) -> float:
    """PSNR of two latents in dB; the peak is the reference's own range, as latents have none."""
    a, b = reference.float().cpu().numpy(), other.float().cpu().numpy()
    span = float(a.max() - a.min())
    if span == 0.0 or (a == b).all():
        return PSNR_CAP if (a == b).all() else 0.0
    return min(PSNR_CAP, float(skimage_metrics().peak_signal_noise_ratio(a, b, data_range=span)))


def lpips(reference: Frames, other: Frames) -> tuple[float | None, str]:
    """Mean LPIPS (AlexNet) and an empty note, or None and why there is none.

    Zhang et al. 2018. The package `lpips` brings its own calibration; the network's weights are torchvision's, which
    it downloads at first use.
    """
    try:
        import lpips as package
    except ImportError:
        return None, "not installed (pip install lpips)"
    import torch

    try:
        network = package.LPIPS(net="alex", verbose=False).eval()
    except Exception as error:  # noqa: BLE001 - a failed download must not fail a verification
        return None, f"not available: {str(error).splitlines()[0]}"
    a, b = (torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1 for frames in (reference, other))
    with torch.inference_mode():
        return float(network(a, b).mean()), ""
