"""One `.pth` file: a plain state dict saved by torch, unpickled without running code and mapped instead of read."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbort.checkpoints.source import Header, Source, unreadable
from turbort.errors import CheckpointError

WRAPPERS = ("state_dict", "model", "module")
"""Keys under which training code keeps the state dict beside its own state."""

PLAIN = "load it where it came from and save only its tensors: torch.save(model.state_dict(), 'weights.pth')"


def read_pickle(path: Path) -> Source:
    """The tensors of a `torch.save`d state dict.

    The file is unpickled with `weights_only=True` and `mmap=True`, always. Raises CheckpointError for anything that is not a
    plain mapping of names to dense tensors, or that would need code from the file to run.
    """
    _require_stored_zip(path)
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # the unpickler meets whatever a damaged or hostile file makes of it
        raise _not_plain(path, error) from error
    tensors = _state_dict(path, content)
    headers = {name: Header(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return Source(path, headers, tensors.__getitem__, (path,))


def _require_stored_zip(path: Path) -> None:
    """Mapping needs torch's zip format, its entries uncompressed and each there once; torch checks neither."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist()]
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise unreadable(path, error) from error
    if len(set(names)) < len(names):
        raise unreadable(path, "two of its entries have the same name, so that it holds different weights for different readers")
    if packed:
        raise unreadable(path, f"its entry {packed[0]} is compressed, which torch.save never does", fix=PLAIN)


def _not_plain(path: Path, error: Exception) -> CheckpointError:
    reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), str(error))
    reason = reason.strip().partition("\n")[0][:200] or type(error).__name__
    return CheckpointError(
        f"{path} is damaged or is not a plain state dict, so it was not loaded ({reason})",
        fix=f"download it again, or {PLAIN}",
    )


def _state_dict(path: Path, content: Any) -> Mapping[str, Tensor]:
    """The mapping of names to tensors, taken out of a training file's wrapper if there is one."""
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a plain state dict", fix=PLAIN)
    for name, value in content.items():
        problem = _not_a_weight(name, value)
        if problem:
            raise CheckpointError(f"{path} is not a plain state dict: {problem}", fix=PLAIN)
    return content


def _not_a_weight(name: Any, value: Any) -> str | None:
    if not isinstance(name, str):
        return f"the key {name!r:.80} is not a string"
    if not isinstance(value, Tensor):
        return f"the entry {name:.80} is a {type(value).__name__}, not a tensor"
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        return f"the entry {name:.80} is not a dense tensor with values ({value.layout}, {value.device})"
    return None
