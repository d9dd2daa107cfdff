"""Options that several commands share, so that one name means one thing everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Option("--model", "-m", metavar="NAME|DIR", help="Model name, or a folder with a model.yaml.")]
Profile = Annotated[
    str | None, typer.Option("--profile", metavar="NAME|FILE", help="Hardware profile; chosen by the device when absent.")
]
Weights = Annotated[Path | None, typer.Option("--weights", metavar="DIR", help="Folder with the files of the model.")]
On = Annotated[
    str | None,
    typer.Option(
        "--on", metavar="BACKEND", help="Run elsewhere than the profile says (cuda, cuda:1, ...); `cpu` rehearses any profile."
    ),
]
Size = Annotated[str | None, typer.Option("--size", metavar="WxH", help="Pixels in multiples of 16, or 480p, 720p, 16:9, ...")]
Frames = Annotated[int | None, typer.Option("--frames", metavar="N", help="Number of frames, 4k+1.")]
Sampler = Annotated[
    str | None, typer.Option("--sampler", metavar="NAME", help="Sampler, where the model has presets for several.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write to this file.")]
Loras = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="FILE[:STRENGTH]", help="LoRA to add to the weights; may be given several times."),
]
Budget = Annotated[
    str | None,
    typer.Option("--memory-budget", metavar="SIZE", help="Use no more device memory than this (12GiB), as on a smaller device."),
]
