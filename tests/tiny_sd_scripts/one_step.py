"""One step of sd-scripts' real process_batch on given weights, latents, captions, noise and timesteps.

For tests alone, in a process of its own: `SD_SCRIPTS_DIR=… python one_step.py FOLDER`. FOLDER holds job.json (paths,
captions, arguments), adapter.safetensors and batch.safetensors (latents before scaling, noise, timesteps); it leaves
result.safetensors with the loss and the gradient of every LoRA weight. The models are given ones; the network, the
text strategy, the noise scheduler, the loss and its weights are sd-scripts' own.
"""

# ruff: noqa: E402 - imports follow the path and the constants that they read

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, os.environ["SD_SCRIPTS_DIR"])

from library import original_unet

original_unet.BLOCK_OUT_CHANNELS = (32, 64, 64, 64)  # brushset.bases.configs.TINY
original_unet.TIMESTEP_INPUT_DIM = 32
original_unet.TIME_EMBED_DIM = 128

import torch
import train_network
from accelerate import Accelerator
from library import strategy_sd, train_util
from networks import lora
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

folder = Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
batch = load_file(folder / "batch.safetensors")
base = Path(job["base"])
args = train_network.setup_parser().parse_args(job["args"])
args.v2 = False

unet = original_unet.UNet2DConditionModel(sample_size=64, attention_head_dim=8, cross_attention_dim=32)
unet.load_state_dict(load_file(base / "unet" / "diffusion_pytorch_model.safetensors"))
text_encoder = CLIPTextModel.from_pretrained(base / "text_encoder")
train_util.replace_unet_modules(unet, mem_eff_attn=False, xformers=False, sdpa=True)
network = lora.create_network(1.0, args.network_dim, args.network_alpha, None, text_encoder, unet)
network.apply_to(text_encoder, unet, True, True)
print(network.load_weights(str(folder / "adapter.safetensors")))
for model in (unet, text_encoder):
    model.requires_grad_(False).eval()
network.requires_grad_(True)

strategy = strategy_sd.SdTokenizeStrategy.__new__(strategy_sd.SdTokenizeStrategy)
strategy.tokenizer = CLIPTokenizer.from_pretrained(job["tokenizer"])
strategy.max_length = 77 if args.max_token_length is None else args.max_token_length + 2

trainer = train_network.NetworkTrainer()
accelerator = Accelerator(cpu=True)
torch.randn_like = lambda *_, **__: batch["noise"]
train_util.get_timesteps = lambda *_, **__: batch["timesteps"]
loss = trainer.process_batch(
    {
        "latents": batch["latents"],
        "input_ids_list": strategy.tokenize(job["captions"]),
        "loss_weights": torch.ones(len(job["captions"])),
        "captions": job["captions"],
        "custom_attributes": [{} for _ in job["captions"]],
        "alpha_masks": None,
    },
    [text_encoder],
    unet,
    network,
    None,
    trainer.get_noise_scheduler(args, accelerator.device),
    torch.float32,
    torch.float32,
    accelerator,
    args,
    strategy_sd.SdTextEncodingStrategy(args.clip_skip),
    strategy,
)
loss.backward()
gradients = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
save_file({"loss": loss.detach(), **gradients}, folder / "result.safetensors")
