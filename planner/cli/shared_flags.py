"""Flags that several commands spell alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PlanInstead = Annotated[
    Path | None, typer.Option("--plan", help="JSON of fit or estimate instead of flags.", show_default=False)
]
CommandInstead = Annotated[
    str | None, typer.Option("--command", help="A `vllm serve ...` line instead of flags.", show_default=False)
]
PlanBeside = Annotated[
    Path | None, typer.Option("--plan", help="JSON of estimate or fit to hold it against.", show_default=False)
]
Rank = Annotated[int, typer.Option("--rank", help="Which plan of a fit.")]
Cards = Annotated[
    str | None,
    typer.Option("--cards", help="Only these GPUs: 0,1 (CUDA_VISIBLE_DEVICES, else all).", show_default=False),
]
Images = Annotated[int | None, typer.Option("--images", help="Images in each request.", show_default=False)]
ImageSize = Annotated[str | None, typer.Option("--image-size", help="WIDTHxHEIGHT in pixels.", show_default=False)]
Videos = Annotated[int | None, typer.Option("--videos", help="Videos in each request.", show_default=False)]
VideoSeconds = Annotated[float, typer.Option("--video-seconds", help="Length of each video.")]
SafetyMargin = Annotated[
    float, typer.Option("--safety-margin", help="Share of the predicted use kept free on the device.")
]
