"""What will a run really use, by sd-scripts' own word, and is it what was planned?

`ask_sd_scripts` runs probe.py in a child process; `describe` tells its answer line by line; `differences` holds it
against the plan. 9 s on one core, nearly all of it imports.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brushset.errors import UsageError, VerificationFailed
from brushset.files import read_json
from brushset.kohya.command import CHILD_SETTINGS
from brushset.kohya.source import Source
from brushset.paths import RunPaths
from brushset.process import child_env, run_command
from brushset.records import Captions, EngineConfig
from brushset.spec import StyleSpec

PROBE = Path(__file__).with_name("probe.py")
EFFECTIVE_FILE = "effective.json"
LIMIT_S = 600.0
_SHOWN_CAPTIONS = 3
_CLOSE = 1e-6
_USUAL = ("no regularization images",)  # said of every style

Effective = dict[str, Any]


def ask_sd_scripts(source: Source, run: RunPaths, words: Sequence[str] = (), *, processes: int = 1) -> Effective:
    """Asks what `run`'s pair of TOMLs leads to; writes the answer to config/effective.json.

    Args:
        source: the sd-scripts to ask.
        run: its folder is the working directory, as it is in training.
        words: further options for train_network.py, such as ("--tokenizer_cache_dir", folder).
        processes: how many share an epoch's batches.

    Raises:
        UsageError: sd-scripts would refuse the pair, or end without training.
        TrainerFailed: it could not be asked; the log says why.
    """
    out = run.config / EFFECTIVE_FILE
    pair = ("--config_file", str(run.training_toml), "--dataset_config", str(run.dataset_toml))
    run_command(
        [sys.executable, str(PROBE), str(source.folder), str(out), str(processes), *pair, *words],
        cwd=run.root,
        env=child_env({**CHILD_SETTINGS, "PYTHONWARNINGS": "ignore"}),
        log_path=run.logs / "effective.log",
        on_line=lambda _line: None,
        timeout_s=LIMIT_S,
    )
    effective: Effective = read_json(out)
    if effective["failed"]:
        raise UsageError(
            f"{run.root}: sd-scripts cannot use this pair: {effective['failed']}; log: {run.logs / 'effective.log'}",
            detail=str(effective["traceback"]),
        )
    return effective


def captions_of(effective: Effective) -> dict[str, str]:
    """File name → caption as one training step sees it when it is not dropped out."""
    return {Path(image["path"]).name: image["caption"] for dataset in effective["train"] for image in dataset["images"]}


@dataclass(frozen=True)
class Line:
    """One thing that a run will use."""

    what: str
    value: str


def describe(effective: Effective) -> list[Line]:
    """The answer for people, most asked-for first."""
    args = effective["args"]
    return [
        *_network_lines(effective),
        *_rate_lines(effective),
        *_length_lines(effective),
        *_caption_lines(effective),
        Line("precision", f"trains in {args['mixed_precision']}, saves in {args['save_precision'] or 'float32'}"),
        Line("clip_skip", str(args["clip_skip"] or 1)),
        Line("seed", str(args["seed"]) if effective["seed_given"] is not None else "random: none is given"),
        Line("saves", _saves(args)),
        *(Line("sd-scripts warns", text) for text in effective["warnings"] if text not in _USUAL),
    ]


def _network_lines(effective: Effective) -> list[Line]:
    args, lines = effective["args"], []
    dim = args["network_dim"] or 4
    for part, found in _parts(effective).items():
        if found["modules"]:
            scales = ", ".join(f"{scale:g}" for scale in found["scales"])
            dims = ", ".join(map(str, found["dims"]))
            lines.append(Line(part, f"{found['modules']} modules, dim {dims}, acts with alpha/dim = {scales}"))
        else:
            lines.append(Line(part, "no modules: it stays as it is"))
    return [Line("network", f"{args['network_module']}, dim {dim}, alpha {args['network_alpha']:g}"), *lines]


def _rate_lines(effective: Effective) -> list[Line]:
    args, lines = effective["args"], []
    for part, found in _parts(effective).items():
        rates = _rates(effective, part)
        told = ", ".join(f"{rate:g}" for rate in rates)
        if found["modules"]:
            lines.append(Line(f"{part} rate", told or "0: its modules are saved untrained"))
    steps = effective["steps"]
    warmup = args["lr_warmup_steps"]
    warmup_steps = int(warmup * steps) if isinstance(warmup, float) else warmup
    lines.append(Line("schedule", f"{args['lr_scheduler']}, {warmup_steps} of {steps} steps of warm-up"))
    if curve := effective["lr_curve"]:
        points = [curve[0], max(curve, key=lambda point: max(point["lr"])), curve[-1]]
        at = [f"{'/'.join(f'{rate:.3g}' for rate in point['lr'])} at step {point['step']}" for point in points]
        parts = "/".join(group["part"] for group in effective["network"]["groups"])
        lines.append(Line("rates by step", f"{parts} {' → '.join(at)}"))
    optimizer = effective["optimizer"]
    settings = ", ".join(args["optimizer_args"] or ()) or "defaults"
    return [*lines, Line("optimizer", f"{optimizer['name']} ({settings})")]


def _length_lines(effective: Effective) -> list[Line]:
    lines = []
    for index, dataset in enumerate(effective["train"]):
        name = "dataset" if len(effective["train"]) == 1 else f"dataset {index}"
        for subset in dataset["subsets"]:
            shown = f"{subset['img_count']} images × {subset['num_repeats']} repeats"
            lines.append(Line(name, f"{subset['image_dir']}: {shown} an epoch"))
        for bucket in dataset["buckets"]:
            width, height = bucket["resolution"]
            batches = f"{bucket['count']} ÷ batch {dataset['batch_size']} → {bucket['batches']} batches"
            lines.append(Line(f"bucket {width}x{height}", batches))
    accumulation = effective["args"]["gradient_accumulation_steps"]
    per_epoch = f"{effective['batches_per_epoch']} batches" + (f" ÷ {accumulation}" if accumulation > 1 else "")
    by_steps = effective["given"]["max_train_epochs"] is None
    epochs = (
        f"× {effective['epochs']} epochs" if not by_steps else f"until max_train_steps, in epoch {effective['epochs']}"
    )
    return [*lines, Line("length", f"{per_epoch} an epoch {epochs} → {effective['steps']} optimizer steps")]


def _caption_lines(effective: Effective) -> list[Line]:
    lines = []
    for dataset in effective["train"]:
        for subset in dataset["subsets"]:
            shuffled = "shuffled behind them" if subset["shuffle_caption"] else "not shuffled"
            dropped = f", {subset['caption_dropout_rate']:.0%} dropped" if subset["caption_dropout_rate"] else ""
            lines.append(Line("caption files", f"*{subset['caption_extension']}"))
            lines.append(Line("captions", f"keep_tokens {subset['keep_tokens']}, {shuffled}{dropped}"))
    shown = [image for dataset in effective["train"] for image in dataset["images"]][:_SHOWN_CAPTIONS]
    return lines + [Line(Path(image["path"]).name, repr(image["caption"])) for image in shown]


def _saves(args: Mapping[str, Any]) -> str:
    name = f"{args['output_name'] or 'last'}.{args['save_model_as']}"
    counts = {unit: args[f"save_every_n_{unit}s"] for unit in ("epoch", "step") if args[f"save_every_n_{unit}s"]}
    every = [f"every {count} {unit}s" if count > 1 else f"every {unit}" for unit, count in counts.items()]
    return f"{name} at the end" + "".join(f", and one {each}" for each in every)


def differences(spec: StyleSpec, planned: EngineConfig, captions: Captions, effective: Effective) -> list[str]:
    """Where sd-scripts would do something else than was planned, a line each; empty where all is as planned."""
    found = [
        f"{what}: planned {ours!r}, but sd-scripts would use {theirs!r}"
        for what, ours, theirs in [*_lengths(planned, effective), *_settings(spec, effective)]
        if not _equal(ours, theirs)
    ]
    read = {Path(image["path"]).name: image["read"] for dataset in effective["train"] for image in dataset["images"]}
    for caption in captions.captions:
        name = Path(caption.image).name
        if name in read and read[name] != caption.text:
            found.append(f"caption of {name}: planned {caption.text!r}, but sd-scripts would use {read[name]!r}")
    return found


def require_as_planned(spec: StyleSpec, planned: EngineConfig, captions: Captions, effective: Effective) -> None:
    """Raises VerificationFailed with every difference between plan and answer."""
    if found := differences(spec, planned, captions, effective):
        raise VerificationFailed.of_many(found)


def _lengths(planned: EngineConfig, effective: Effective) -> list[tuple[str, object, object]]:
    datasets = effective["train"]
    subsets = [subset for dataset in datasets for subset in dataset["subsets"]]
    buckets: dict[str, int] = {}
    for dataset in datasets:
        for image in dataset["images"]:
            name = "x".join(map(str, image["bucket"]))
            buckets[name] = buckets.get(name, 0) + 1
    return [
        ("images", planned.images, sum(subset["img_count"] for subset in subsets)),
        ("repeats", [planned.repeats], [subset["num_repeats"] for subset in subsets]),
        ("batches an epoch", planned.batches_per_epoch, effective["batches_per_epoch"]),
        ("optimizer steps", planned.steps, effective["steps"]),
        ("epochs", planned.epochs, effective["epochs"]),
        ("buckets", planned.buckets, buckets),
    ]


def _settings(spec: StyleSpec, effective: Effective) -> list[tuple[str, object, object]]:
    train, args, parts = spec.train, effective["args"], _parts(effective)
    text_encoder = train.train_text_encoder
    (subset,) = effective["train"][0]["subsets"]
    rows: list[tuple[str, object, object]] = [
        ("UNet modules", 192, parts["UNet"]["modules"]),
        ("text encoder modules", 72 if text_encoder else 0, parts["text encoder"]["modules"]),
        ("dim", [train.network_dim], parts["UNet"]["dims"]),
        ("alpha/dim", [train.network_alpha / train.network_dim], parts["UNet"]["scales"]),
        ("unet_lr", [train.unet_lr], _rates(effective, "UNet")),
        ("text_encoder_lr", [train.text_encoder_lr] if text_encoder else [], _rates(effective, "text encoder")),
        ("optimizer", train.optimizer.lower(), effective["optimizer"]["name"].rpartition(".")[2].lower()),
        ("caption_extension", ".txt", subset["caption_extension"]),
        ("resolution", [spec.dataset.resolution] * 2, [effective["train"][0][side] for side in ("width", "height")]),
        ("output_name", spec.name, args["output_name"]),
    ]
    of_args = (
        "lr_scheduler", "max_grad_norm", "gradient_accumulation_steps", "mixed_precision", "save_precision", "seed",
        "cache_latents", "gradient_checkpointing",
    )  # fmt: skip
    rows += [(key, getattr(train, key), args[key]) for key in of_args]
    of_subset = ("keep_tokens", "shuffle_caption", "caption_dropout_rate", "flip_aug")
    rows += [(key, getattr(train, key), subset[key]) for key in of_subset]
    rows += [(key, getattr(train, key), effective["train"][0][key]) for key in ("batch_size", "enable_bucket")]
    off_by_default = {"clip_skip": 1, "min_snr_gamma": 0, "noise_offset": 0, "max_token_length": 75}
    rows += [(key, getattr(train, key), args[key] or off) for key, off in off_by_default.items()]
    return rows


def _parts(effective: Effective) -> dict[str, dict[str, Any]]:
    network = effective["network"]
    return {"UNet": network["unet"], "text encoder": network["text_encoder"]}


def _rates(effective: Effective, part: str) -> list[float]:
    """The rates that a part's modules get; empty where they get none, and are not trained."""
    prefix = "unet" if part == "UNet" else "textencoder"
    return sorted({group["lr"] for group in effective["network"]["groups"] if group["part"].startswith(prefix)})


def _equal(ours: object, theirs: object) -> bool:
    if isinstance(ours, float | int) and isinstance(theirs, float | int):
        return abs(ours - theirs) <= _CLOSE * max(abs(ours), abs(theirs))
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    return ours == theirs
