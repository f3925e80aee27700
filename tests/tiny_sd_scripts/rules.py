"""What sd-scripts' own functions answer. For tests alone, in a process of its own:
`SD_SCRIPTS_DIR=… python rules.py FOLDER`. FOLDER holds questions.json, {name: {"ask": …, …}}; it leaves answers.json with
an answer a name, and answers.safetensors with those that are tensors. Random numbers come from one torch.Generator a question, in
the order in which sd-scripts draws them.
"""

import argparse
import collections
import json
import os
import random
import sys
import types
from pathlib import Path

sys.path.insert(0, os.environ["SD_SCRIPTS_DIR"])

import torch
from library import train_util
from networks import lora
from safetensors.torch import load_file, save_file
from train_network import NetworkTrainer

folder = Path(sys.argv[1])
tensors = load_file(folder / "questions.safetensors") if (folder / "questions.safetensors").is_file() else {}
answered: dict = {}
DRAWS = {"randn": torch.randn, "rand": torch.rand, "randint": torch.randint}


def buckets(ask):
    manager = train_util.BucketManager(*ask["manager"])
    if not ask["manager"][0]:
        manager.make_buckets()
    return [manager.select_bucket(*size)[:2] for size in ask["sizes"]]


def pixels(ask):
    image = train_util.load_image(ask["path"], False)
    image, *_ = train_util.trim_and_resize_if_required(False, image, tuple(ask["bucket"]), tuple(ask["resized"]))
    return train_util.IMAGE_TRANSFORMS(image)


def captions(ask):
    """How often each caption is made in so many draws."""
    random.seed(1)
    found = collections.Counter()
    for _ in range(ask["draws"]):
        dataset = types.SimpleNamespace(replacements={}, **ask["dataset"])
        subset = types.SimpleNamespace(**ask["subset"])
        found[train_util.BaseDataset.process_caption(dataset, subset, ask["caption"])] += 1
    return found


def rates(ask):
    args = argparse.Namespace(**ask["args"])
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=ask["rate"])
    scheduler = train_util.get_scheduler_fix(args, optimizer, 1)
    found = []
    for _ in range(args.max_train_steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def noise(ask):
    """Noise, noisy latents and timesteps of given latents."""
    generator = torch.Generator().manual_seed(ask["seed"])

    def draw(kind):
        return lambda *shape, **_: DRAWS[kind](*shape, generator=generator)

    torch.randn, torch.rand, torch.randint = (draw(kind) for kind in ("randn", "rand", "randint"))
    torch.randn_like = lambda like, **_: DRAWS["randn"](like.shape, generator=generator)
    random.random = lambda: DRAWS["rand"]((), generator=generator).item()
    args = argparse.Namespace(**ask["args"])
    scheduler = NetworkTrainer().get_noise_scheduler(args, torch.device("cpu"))
    made = train_util.get_noise_noisy_latents_and_timesteps(args, scheduler, tensors["latents"])
    torch.randn, torch.rand, torch.randint = (DRAWS[kind] for kind in ("randn", "rand", "randint"))
    return dict(zip(("noise", "noisy", "timesteps"), made, strict=True))


def losses(ask):
    """The loss of each timestep, of given predictions and noise [1000, …]."""
    args = argparse.Namespace(**ask["args"])
    scheduler = NetworkTrainer().get_noise_scheduler(args, torch.device("cpu"))
    every = torch.arange(1000)
    bends = train_util.get_huber_threshold_if_needed(args, every, scheduler)
    loss = train_util.conditional_loss(tensors["predicted"], tensors["noise"], args.loss_type, "none", bends)
    return NetworkTrainer().post_process_loss(loss.mean(dim=(1, 2, 3)), args, every, scheduler)


def norms(ask):
    """Weights after apply_max_norm_regularization; `given` are a network's, by name."""
    state = {name: tensor.clone() for name, tensor in load_file(folder / ask["given"]).items()}
    network = types.SimpleNamespace(state_dict=lambda: state)
    lora.LoRANetwork.apply_max_norm_regularization(network, ask["limit"], torch.device("cpu"))
    return state


answers = {}
for name, question in json.loads((folder / "questions.json").read_text(encoding="utf-8")).items():
    answer = globals()[question["ask"]](question)
    if isinstance(answer, torch.Tensor):
        answer = {"": answer}
    if isinstance(answer, dict) and all(isinstance(value, torch.Tensor) for value in answer.values()) and answer:
        answered |= {f"{name}/{key}": value.contiguous() for key, value in answer.items()}
    else:
        answers[name] = answer
(folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
save_file(answered or {"none": torch.zeros(1)}, folder / "answers.safetensors")
