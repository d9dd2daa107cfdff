"""Picks the video VAE that a config describes."""

from __future__ import annotations

from turbort.models.config import VaeConfig
from turbort.models.wan_vae import WanVae
from turbort.models.wan_vae22 import WanVae22


def build_vae(config: VaeConfig) -> WanVae:
    """A Wan 2.1 VAE, or the residual one of Wan 2.2 TI2V-5B."""
    return WanVae22(config) if config.residual else WanVae(config)
