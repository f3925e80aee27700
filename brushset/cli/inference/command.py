"""`inference` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brushset.cli.inference.request import Composing, Drawing, Gridding, InferenceRequest, Machine
from brushset.cli.options import Options, takes_options

Prompts = Annotated[list[str] | None, typer.Option(help="One or more prompts.")]
PromptFiles = Annotated[
    list[Path] | None, typer.Option("--prompts-file", metavar="FILE", help="Prompts, one a line; # begins a remark.")
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        metavar="STYLE|FILE[:WEIGHT]…",
        help="The mix: anime:0.6 file.safetensors:0.4; an epoch: anime@6:0.8; by part: anime:0.6,text=0.3; a part of the "
        "steps: anime:0.8@0-0.5. Default: each style alone.",
    ),
]
Method = Annotated[
    str | None,
    typer.Option(metavar="weighted|schedule|switch|composite", help="How adapters act together; default: weighted."),
]
Every = Annotated[int | None, typer.Option(metavar="STEPS", help="Of switch: steps of each turn; default 5.")]
Shares = Annotated[str | None, typer.Option(metavar="equal|weights", help="Of composite: what weighs the predictions.")]
Normalize = Annotated[bool, typer.Option("--normalize", help="Scale the weights so that they sum to 1.")]
Each = Annotated[
    bool, typer.Option("--each", help="Every adapter by itself, not the mix; to compare styles or epochs.")
]
Grid = Annotated[bool, typer.Option("--grid", help="One picture too: a column a mix, base first, a row a prompt.")]
Weights = Annotated[
    list[str] | None, typer.Option(metavar="W…", help="Columns of --grid: 0.4 0.8 for one adapter, 0.3/0.7 for two.")
]
NumImages = Annotated[int, typer.Option(help="Images a prompt and mix, seeds in a row.")]
Negative = Annotated[str | None, typer.Option(help="Negative prompt; default: the style's.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps; default: the style's, 25.")]
Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance; default: the style's, 7.")]
Size = Annotated[str | None, typer.Option(metavar="WxH", help="Such as 512x768; default: the style's, 512x512.")]
Width = Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")]
Height = Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")]
Scheduler = Annotated[str | None, typer.Option(metavar="NAME", help='As in A1111; default "DPM++ 2M Karras".')]
ClipSkip = Annotated[int | None, typer.Option(help="As in A1111; default: as the style was trained.")]
Triggers = Annotated[bool, typer.Option("--triggers/--no-triggers", help="Put missing triggers in front of prompts.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the UNet first; pays from some hundred images on.")]
Precision = Annotated[
    str | None,
    typer.Option(metavar="fp32|fp16|bf16", help="Default: fp16 on a GPU, else fp32. fp32 where NaN comes out."),
]
Replay = Annotated[
    list[Path] | None, typer.Option(metavar="PNG…", help="Make images of inference again, from what they say.")
]
Out = Annotated[Path | None, typer.Option(help="Folder for the images; what is there stays.")]


@takes_options
def inference_command(  # noqa: PLR0913, PLR0917  each is an option of its own
    options: Options,
    context: typer.Context,
    prompts: Prompts = None,
    prompt_files: PromptFiles = None,
    loras: Loras = None,
    method: Method = None,
    every: Every = None,
    shares: Shares = None,
    normalize: Normalize = False,
    each: Each = False,
    grid: Grid = False,
    weights: Weights = None,
    num_images: NumImages = 1,
    negative: Negative = None,
    steps: Steps = None,
    guidance: Guidance = None,
    size: Size = None,
    width: Width = None,
    height: Height = None,
    scheduler: Scheduler = None,
    clip_skip: ClipSkip = None,
    triggers: Triggers = True,
    compile_unet: Compile = False,
    precision: Precision = None,
    replay: Replay = None,
    out: Out = None,
) -> None:
    """Make images with the trained adapters, or any LoRA files: one, mixed, or as a grid of weights and prompts."""
    from brushset.cli.inference.replay import replay_images
    from brushset.cli.inference.run import infer

    request = InferenceRequest(
        prompts=tuple(prompts or ()),
        prompt_files=tuple(prompt_files or ()),
        loras=tuple(loras or ()),
        num_images=num_images,
        triggers=triggers,
        out=out,
        drawing=Drawing(negative, steps, guidance, size, width, height, scheduler, clip_skip),
        composing=Composing(method, every, shares, normalize),
        gridding=Gridding(grid, tuple(weights or ()), each),
        machine=Machine(compile_unet, precision),
    )
    asked = options.laid_over(context.obj)
    if replay:
        replay_images(asked, replay, request)
    else:
        infer(asked, request)
