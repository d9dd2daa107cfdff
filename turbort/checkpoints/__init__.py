"""Weights in the dialects that users have: Wan's own files, TurboDiffusion, LightX2V, diffusers and umT5.

checkpoint = open_checkpoint("wan2.1-t2v-1.3b.pth")
for name, value in stream(checkpoint, expected):
    ...
"""

from turbort.checkpoints.checkpoint import Checkpoint, load_into, open_checkpoint, stream
from turbort.checkpoints.detect import detect
from turbort.checkpoints.dialect import Dialect, Entry

__all__ = ["Checkpoint", "Dialect", "Entry", "detect", "load_into", "open_checkpoint", "stream"]
