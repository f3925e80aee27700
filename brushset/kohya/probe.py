"""What would train_network.py do with this pair of TOMLs? A script for a child process: it runs sd-scripts' own code.

    python probe.py SD_SCRIPTS_DIR OUT.json PROCESSES --config_file training.toml --dataset_config dataset.toml …

The real `NetworkTrainer.train` is run: parser, checks, dataset loader, buckets, LoRA network, optimizer, data loader and
schedule are sd-scripts' own, and so is the arithmetic of steps. What is not there is weights: UNet and text encoder
stand on torch's meta device, nothing is cached, and the run ends where the schedule has been made. No image is decoded,
only its size read. Nothing of brushset is imported, and nothing but OUT.json written.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import io
import json
import logging
import math
import random
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_CLIP_L = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
_CURVE_POINTS = 64  # of the learning rate over the steps


class _Enough(BaseException):
    """The schedule has been made: all that is asked for is known. No Exception, which train() might handle."""


def main() -> int:
    """Runs the trainer up to its schedule and writes what it found."""
    folder, out, processes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    sys.argv = ["train_network.py", *sys.argv[4:]]
    sys.path[0] = str(folder)  # in place of this script's own folder, whose modules must not be found by theirs
    warnings, said = _Warnings(), dict[str, Any]()
    with contextlib.redirect_stdout(io.StringIO()):
        train_network: Any = importlib.import_module("train_network")
        train_util = importlib.import_module("library.train_util")
        logging.root.addHandler(warnings)
        train_network.setup_logging = warnings.stay(train_network.setup_logging)
        parser = train_network.setup_parser()
        args = parser.parse_args()
        train_util.verify_command_line_training_args(args)
        args = train_util.read_config_from_file(args, parser)
        said["given"] = _plain(vars(args))
        said |= _probe(train_network, train_util, args, processes) | {"warnings": warnings.lines}
    out.write_text(json.dumps(said, default=str, ensure_ascii=False), encoding="utf-8")
    return 0


class _Warnings(logging.Handler):
    """Keeps what sd-scripts warns of, English half only, each line once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def stay(self, setup_logging: Any) -> Any:
        """`setup_logging`, which takes all handlers away, and this one put back behind it."""

        def setup(*words: Any, **more: Any) -> None:
            setup_logging(*words, **more)
            logging.root.addHandler(self)

        return setup

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage().split(" / ")[0].strip()
        if line and line not in self.lines:
            self.lines.append(line)


def _probe(train_network: Any, train_util: Any, args: Any, processes: int) -> dict[str, Any]:
    """Runs `train`; what was seen until it ended, and how it ended if not as wanted."""
    seen: dict[str, Any] = {}
    trainer = _trainer(train_network, seen)
    real_fix, real_prepare = train_util.get_scheduler_fix, train_util.prepare_accelerator

    def make_schedule(args: Any, optimizer: Any, num_processes: int) -> None:
        seen.update(optimizer=optimizer, scheduler=real_fix(args, optimizer, num_processes))
        raise _Enough

    train_util.get_scheduler_fix = make_schedule
    train_util.prepare_accelerator = lambda _args: _accelerator(processes)
    failed = ""
    try:
        trainer.train(args)
        failed = "it would end at once, with exit code 0 and no file"
    except _Enough:
        pass
    except SystemExit as error:
        failed = f"it would end with exit code {error.code}"
    except Exception as error:  # noqa: BLE001  whatever sd-scripts raises is the answer that was asked for
        failed = f"{type(error).__name__}: {str(error).split(' / ')[0].splitlines()[0] if str(error) else ''}"
        seen["traceback"] = traceback.format_exc()
    finally:
        train_util.get_scheduler_fix, train_util.prepare_accelerator = real_fix, real_prepare
    return {
        "failed": failed,
        "traceback": seen.get("traceback", ""),
        "args": _plain(vars(args)),
        **_describe(args, seen, processes),
    }


def _trainer(train_network: Any, seen: dict[str, Any]) -> Any:
    """The real trainer, with models on the meta device, that tells which datasets and network it made."""

    class Probe(train_network.NetworkTrainer):  # type: ignore[misc]  # sd-scripts is not typed
        def get_tokenize_strategy(self, args: Any) -> Any:
            seen["seed"] = args.seed
            if args.tokenizer_cache_dir is None:
                return SimpleNamespace(tokenizer=None)
            seen["tokenize"] = super().get_tokenize_strategy(args)
            return seen["tokenize"]

        def assert_extra_args(self, args: Any, train_dataset_group: Any, val_dataset_group: Any) -> None:
            super().assert_extra_args(args, train_dataset_group, val_dataset_group)
            seen.update(train=train_dataset_group, validation=val_dataset_group)
            for group in (train_dataset_group, val_dataset_group):
                if group is not None:
                    group.new_cache_latents = lambda *_: None

        def load_target_model(self, *_: Any) -> Any:
            return ("probe", *_models_without_weights())

        def cache_text_encoder_outputs_if_needed(self, *_: Any) -> None:
            """Would move the text encoder, which has no weights here."""

        def post_process_network(self, _args: Any, _accelerator: Any, network: Any, *_: Any) -> None:
            seen["network"] = network
            real = network.prepare_optimizer_params

            def prepare_optimizer_params(*rates: Any) -> Any:
                made = real(*rates)
                seen["groups"] = _describe_groups(made)  # now: the schedule will scale the rates in place
                return made

            network.prepare_optimizer_params = prepare_optimizer_params

    return Probe()


def _models_without_weights() -> tuple[Any, Any, Any]:
    """Text encoder, a stand-in for the VAE, and UNet of SD 1.5, made by the classes that sd-scripts uses."""
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    unet_class = importlib.import_module("library.original_unet").UNet2DConditionModel
    with torch.device("meta"):
        unet = unet_class(sample_size=64, attention_head_dim=8, cross_attention_dim=768)
        text_encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**_CLIP_L))
    return text_encoder, torch.nn.Identity(), unet


def _accelerator(processes: int) -> Any:
    """What `train` asks of accelerate before its schedule: how many processes, and nothing of a device."""
    return SimpleNamespace(
        device=importlib.import_module("torch").device("cpu"), num_processes=processes, is_main_process=True,
        print=lambda *_: None, wait_for_everyone=lambda: None,
    )  # fmt: skip


def _describe(args: Any, seen: dict[str, Any], processes: int) -> dict[str, Any]:
    found: dict[str, Any] = {"seed_given": seen.get("seed")}
    for key in ("train", "validation"):
        group = seen.get(key)
        found[key] = [_describe_dataset(dataset, seen.get("tokenize")) for dataset in group.datasets] if group else []
    if "network" in seen:
        found["network"] = _describe_network(seen["network"], seen.get("groups"))
    if "scheduler" in seen:
        found |= _describe_length(args, math.ceil(len(seen["train"]) / processes))
        found["optimizer"] = _describe_optimizer(seen["optimizer"])
        found["lr_curve"] = _describe_curve(seen["scheduler"], args.max_train_steps)
    return found


def _describe_dataset(dataset: Any, tokenize: Any) -> dict[str, Any]:
    """One dataset: its settings, buckets with images (repeats counted), and every image with its caption."""
    random.seed(0)  # what is shuffled below is shuffled alike each time
    manager = dataset.bucket_manager
    keys = (
        "batch_size", "width", "height", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps",
        "bucket_no_upscale", "num_train_images", "num_reg_images",
    )  # fmt: skip
    buckets = [
        {"resolution": list(resolution), "count": len(bucket), "batches": math.ceil(len(bucket) / dataset.batch_size)}
        for resolution, bucket in zip(manager.resos, manager.buckets)  # noqa: B905  as sd-scripts pairs them
        if bucket
    ]
    return {
        **{key: _plain(getattr(dataset, key, None)) for key in keys},
        "batches": len(dataset),
        "buckets": buckets,
        "subsets": [_plain(vars(subset)) for subset in dataset.subsets],
        "images": [_describe_image(dataset, info, tokenize) for info in dataset.image_data.values()],
    }


def _describe_image(dataset: Any, info: Any, tokenize: Any) -> dict[str, Any]:
    """One image. `read` is its caption as it was read, `caption` as one step would see it when it is not dropped."""
    subset = copy.copy(dataset.image_to_subset[info.image_key])
    subset.caption_dropout_rate, subset.caption_dropout_every_n_epochs = 0.0, 0
    caption = dataset.process_caption(subset, info.caption)
    tokens = None
    if tokenize is not None:
        tokens = len(tokenize.tokenizer(caption, truncation=False, verbose=False).input_ids) - 2
    return {
        "path": info.absolute_path,
        "size": list(info.image_size),
        "bucket": list(info.bucket_reso),
        "resized": list(info.resized_size),
        "repeats": info.num_repeats,
        "read": info.caption,
        "caption": caption,
        "tokens": tokens,
    }


def _describe_network(network: Any, groups: Any) -> dict[str, Any]:
    """Modules, ranks and scales of the LoRA that was made, and the rate that each of its parts gets."""
    parts = {}
    for name in ("text_encoder", "unet"):
        modules = getattr(network, f"{name}_loras", [])
        parts[name] = {
            "modules": len(modules),
            "dims": sorted({int(module.lora_dim) for module in modules}),
            "scales": sorted({float(module.scale) for module in modules}),
        }
    return {**parts, "groups": groups or []}


def _describe_groups(made: Any) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: which part of the network, its rate, how many tensors. A part that is not
    there is not trained, whatever its rate was meant to be.
    """
    groups, names = made if isinstance(made, tuple) else (made, None)
    return [
        {"part": names[index] if names else str(index), "lr": group.get("lr"), "tensors": len(list(group["params"]))}
        for index, group in enumerate(groups)
    ]


def _describe_length(args: Any, batches: int) -> dict[str, Any]:
    """The arithmetic that `train` does after the schedule: each process's batches an epoch, optimizer steps, epochs."""
    per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    return {
        "batches_per_epoch": batches,
        "steps": args.max_train_steps,
        "epochs": math.ceil(args.max_train_steps / per_epoch),
    }


def _describe_optimizer(optimizer: Any) -> dict[str, Any]:
    """Its class and settings; the rate among its defaults is nobody's, since every group brings its own."""
    settings = {key: value for key, value in optimizer.defaults.items() if key != "lr"}
    return {"name": f"{type(optimizer).__module__}.{type(optimizer).__name__}", "settings": _plain(settings)}


def _describe_curve(scheduler: Any, steps: int) -> list[dict[str, Any]]:
    """The rates at some steps, first and last among them; empty where the schedule is not a function of the step."""
    lambdas = getattr(scheduler, "lr_lambdas", None)
    if not lambdas:
        return []
    at = (
        sorted({round(index * (steps - 1) / (_CURVE_POINTS - 1)) for index in range(_CURVE_POINTS)})
        if steps > 1
        else [0]
    )
    return [
        {"step": step + 1, "lr": [base * shape(step) for base, shape in zip(scheduler.base_lrs, lambdas)]}  # noqa: B905
        for step in at
    ]


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return (
        _plain(dataclasses.asdict(value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
        else str(value)
    )


if __name__ == "__main__":
    sys.exit(main())
