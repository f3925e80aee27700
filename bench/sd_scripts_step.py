"""sd-scripts' real training step on given models, counted and timed: bench/train.py's child, in a process of its own.

`SD_SCRIPTS_DIR=… python bench/sd_scripts_step.py JOB.json` prints a line of JSON for each of its batch sizes, with the
UNet alone and with the text encoder, as it goes. process_batch, network, optimizer, accelerator, clipping and the reduction of gradients are sd-scripts' own;
models and latents are of random numbers. On a GPU in bf16, with the optimizer that torch chooses there.
"""

# ruff: noqa: E402 - imports follow the path and the constants that they read

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [os.environ["SD_SCRIPTS_DIR"], str(PROJECT)]
job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))

from library import original_unet

original_unet.BLOCK_OUT_CHANNELS = tuple(job["widths"])
original_unet.TIMESTEP_INPUT_DIM = job["widths"][0]
original_unet.TIME_EMBED_DIM = 4 * job["widths"][0]

import torch
import train_network
from accelerate import Accelerator
from library import strategy_sd, train_util
from networks import lora
from safetensors.torch import load_file
from transformers import CLIPTextModel

from bench.operations import Operations
from bench.timing import measure


def make_step(*, trains_text: bool) -> Any:
    """One whole step as a function, with everything it needs prepared as train_network.py does."""
    base = Path(job["base"])
    on_gpu = job["device"] == "cuda"
    precision, dtype = ("bf16", torch.bfloat16) if on_gpu else ("no", torch.float32)
    options = ["--mixed_precision", precision, "--network_module", "networks.lora", "--learning_rate", "1e-4", "--sdpa"]
    options += [
        "--optimizer_type",
        "AdamW",
        "--min_snr_gamma",
        "5",
        *([] if trains_text else ["--network_train_unet_only"]),
    ]
    options += ["--optimizer_args", "foreach=True"]  # what torch chooses on a GPU; on a CPU it would go one by one
    args = train_network.setup_parser().parse_args(options)
    args.v2 = False
    unet = original_unet.UNet2DConditionModel(sample_size=64, attention_head_dim=8, cross_attention_dim=job["cross"])
    unet.load_state_dict(load_file(base / "unet" / "diffusion_pytorch_model.safetensors"))
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder")
    train_util.replace_unet_modules(unet, mem_eff_attn=False, xformers=False, sdpa=True)
    network = lora.create_network(1.0, job["rank"], job["rank"] / 2, None, encoder, unet)
    network.apply_to(encoder, unet, trains_text, True)
    for model in (unet, encoder):
        model.requires_grad_(False).eval()
    parameters = network.prepare_optimizer_params(1e-4, 1e-4, 1e-4)[0]
    _, _, optimizer = train_util.get_optimizer(args, parameters)
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision=precision)
    for model in (unet, encoder):
        model.to(accelerator.device, dtype)
    rates = train_util.get_scheduler_fix(args, optimizer, 1)
    unet, network, optimizer, rates = accelerator.prepare(unet, network, optimizer, rates)
    if trains_text:
        encoder = accelerator.prepare(encoder)
    trainer = train_network.NetworkTrainer()
    schedule = trainer.get_noise_scheduler(args, accelerator.device)
    strategy = strategy_sd.SdTokenizeStrategy.__new__(strategy_sd.SdTokenizeStrategy)
    strategy.max_length, strategy.tokenizer = 77, type("Tokenizer", (), {"model_max_length": 77, "eos_token_id": 1})()
    encode, recorder = strategy_sd.SdTextEncodingStrategy(None), train_util.LossRecorder()

    def step(count: int, *, optimize: bool = True) -> None:
        batch = {
            "latents": torch.randn(count, 4, job["latent"], job["latent"]),  # on the host, as its loader hands them over
            "input_ids_list": [torch.randint(0, encoder.config.vocab_size, (count, 1, 77))],
            "loss_weights": torch.ones(count), "captions": [""] * count, "custom_attributes": [{}] * count,
            "alpha_masks": None, "text_encoder_outputs_list": None,
        }  # fmt: skip
        loss = trainer.process_batch(
            batch, [encoder], unet, network, None, schedule, dtype, dtype, accelerator, args, encode,
            strategy, is_train=True, train_text_encoder=trains_text, train_unet=True,
        )  # fmt: skip
        accelerator.backward(loss)
        trainer.all_reduce_network(accelerator, network)
        accelerator.clip_grad_norm_(accelerator.unwrap_model(network).get_trainable_params(), 1.0)
        if optimize:
            optimizer.step()
            rates.step()
        optimizer.zero_grad(set_to_none=True)
        recorder.add(epoch=0, step=0, loss=loss.detach().item())

    return step


def measure_all(step: Any, *, text: bool) -> None:
    """A line for each batch size."""
    for size in job["batches"]:
        found = measure(functools.partial(step, size), job["repeats"], device=job["device"], most_s=job["most_s"])
        if job["device"] == "cpu":
            with Operations() as counted:
                step(size, optimize=False)  # the numbers that torch's AdamW reads lie on the host, on a GPU too
            found["synchronising"] = counted.synchronising
        print(json.dumps({"text": text, "batch": size, **found}), flush=True)


torch.set_num_threads(1)
for text in (False, True):
    measure_all(make_step(trains_text=text), text=text)
