"""The helpers of this folder are plain modules beside the tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # torch-npu may be installed, and no driver is loaded here
sys.path.insert(0, str(Path(__file__).parent))
