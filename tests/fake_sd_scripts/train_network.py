"""A stand-in for sd-scripts' train_network.py: its options, names, lines, files, and its way of counting, without a model.

For tests alone. It counts as v0.10.1 does: from the beginning of the epoch in which it starts; it resumes inside an epoch
only without accumulation; and it runs on to the end of the epoch when it is resumed and `max_train_steps` falls inside.
`behaviour.json` beside the working folder's config says what goes wrong: `die_after` (step), `die_in_state` (folder),
`fits` (largest batch, else torch's own words of CUDA memory), `nan_from`, `hang_after`, `validation` (loss by epoch).
"""

import json
import math
import os
import shutil
import struct
import sys
import time
from pathlib import Path

import toml
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

words = sys.argv[1:]
given = {word[2:]: words[i + 1] if i + 1 < len(words) else "" for i, word in enumerate(words) if word.startswith("--")}
tables = toml.loads(Path(given["config_file"]).read_text())
flat = {key: value for table in tables.values() for key, value in table.items()}
options = {**flat, **given}
dataset = toml.loads(Path(given["dataset_config"]).read_text())["datasets"][0]
behaviour = json.loads(Path("behaviour.json").read_text())
name, output = options["output_name"], Path(options["output_dir"])
accumulation = int(options["gradient_accumulation_steps"])
batches = math.ceil(behaviour["images"] * dataset["subsets"][0]["num_repeats"] / dataset["batch_size"])
per_epoch = math.ceil(batches / accumulation)
total = (
    int(options["max_train_epochs"]) * per_epoch if "max_train_epochs" in options else int(options["max_train_steps"])
)
epochs = math.ceil(total / per_epoch)
stamp = "20260101000000"
events = EventFileWriter(
    str(Path(options["logging_dir"]) / f"{options['log_prefix']}{stamp}{os.getpid()}" / "network_train")
)


def say(text: str) -> None:
    print(text, flush=True)


def log(step: int, **values: float) -> None:
    summary = summary_pb2.Summary(
        value=[summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    )
    events.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))
    events.flush()


def save(path: Path, **metadata: object) -> None:
    raw = Path("template.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    header["__metadata__"] = {key: str(value) for key, value in metadata.items()}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def checkpoint(file: str, step: int, epoch: int) -> None:
    say(f"\nsaving checkpoint: {output / file}")
    save(output / file, ss_steps=step, ss_epoch=epoch)


def save_state(folder: str, step: int, epoch: int) -> None:
    if "save_state" not in options:
        return
    path = output / folder
    path.mkdir()
    (path / "train_state.json").write_text(json.dumps({"current_epoch": epoch, "current_step": step}))
    if behaviour.get("die_in_state") == folder:
        os._exit(1)
    save(path / "model.safetensors")
    for other in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        (path / other).write_text(other)
    say(f"[RANK 0] Random states saved in {path}/random_states_0.pkl")


say("accelerator device: cpu")
say(f"  num batches per epoch / x: {batches}\n  num epochs / x: {epochs}\n  total optimization steps / x: {total}")
if dataset["batch_size"] > behaviour.get("fits", 99) and not (
    "gradient_checkpointing" in options and behaviour.get("checkpointing_helps")
):
    say(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB"
    )
    sys.exit(1)
output.mkdir(parents=True, exist_ok=True)
start = int(options.get("initial_step", 0))
if start:
    assert Path(options["resume"], "random_states_0.pkl").is_file()
first_epoch, skip = divmod(start, per_epoch)
if "skip_until_initial_step" in options:
    assert accumulation == 1, "would train nothing"
else:
    skip = 0
step, shown = skip, 0
for epoch in range(first_epoch, epochs):
    say(f"\nepoch {epoch + 1}/{epochs}\n")
    while step - (epoch - first_epoch) * per_epoch < per_epoch and step < total:
        true_step = first_epoch * per_epoch + step + 1
        for _ in range(accumulation - 1):
            log(step, **{"loss/current": 1 / true_step})
        step, shown = step + 1, shown + 1
        every = int(options.get("save_every_n_steps", 0))
        if every and step % every == 0:
            checkpoint(f"{name}-step{step:08d}.safetensors", step, epoch)
            save_state(f"{name}-step{step:08d}-state", step, epoch + 1)
        loss = math.nan if true_step >= behaviour.get("nan_from", 10**9) else 1 / true_step
        say(f"steps:  10%|#| {shown}/{total - skip} [00:01<00:01, 1.00it/s, avr_loss={loss:.3g}]")
        log(step, **{"loss/current": loss, "lr/unet": 1e-4})
        if behaviour.get("die_after") == true_step:
            os._exit(1)
        if behaviour.get("hang_after") == true_step:
            time.sleep(60)
        time.sleep(behaviour.get("pause", 0.0))
    if "validation" in behaviour and (epoch + 1) % int(options["validate_every_n_epochs"]) == 0:
        log(epoch + 1, **{"loss/validation/epoch_average": behaviour["validation"][epoch]})
    if (epoch + 1) % int(options["save_every_n_epochs"]) == 0 and epoch + 1 < epochs:
        checkpoint(f"{name}-{epoch + 1:06d}.safetensors", step, epoch + 1)
        save_state(f"{name}-{epoch + 1:06d}-state", step, epoch + 1)
    if "sample_every_n_epochs" in options and (epoch + 1) % int(options["sample_every_n_epochs"]) == 0:
        (output / "sample").mkdir(exist_ok=True)
        for index, _ in enumerate(json.loads(Path(options["sample_prompts"]).read_text())):
            shutil.copy("images/0.png", output / "sample" / f"{name}_e{epoch + 1:06d}_{index:02d}_{stamp}_1.png")
if behaviour.get("leaves_nothing"):
    sys.exit(0)
checkpoint(f"{name}.safetensors", step, epochs)
say("model saved.")
