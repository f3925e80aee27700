"""Makes the small world's base model, a tiny Stable Diffusion that has learnt to draw: tests/small_world/weights.safetensors.

    python scripts/make_small_world.py                     # all of it, on a CPU, about half an hour of one core
    python scripts/make_small_world.py --look /tmp/look    # and pictures of what it draws
    python scripts/make_small_world.py --unpack /tmp/base  # the kept weights as a folder for --base-model
    python scripts/make_small_world.py --eyes              # only the network that judges its pictures: eyes.safetensors

Pictures and captions are drawn by tests/small_world. Equal seeds and thread counts give equal bytes on one machine. With
`--work` the VAE is kept there when it is trained, so that the rest can be made again without it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from small_world import eyes, folder, prior, vae

SEED = 1


def main() -> None:
    """Trains, or unpacks, or looks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unpack", type=Path, help="write the kept weights as a diffusers folder, and end")
    parser.add_argument("--eyes", action="store_true", help="teach the judge by the kept weights' VAE, and end")
    parser.add_argument("--look", type=Path, help="a folder for pictures")
    parser.add_argument("--work", type=Path, help="a folder for what is half done")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    if asked.unpack:
        print(folder.unpack(asked.unpack))
        return
    import torch

    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as unkept:
        asked.work = asked.work or Path(unkept)
        asked.work.mkdir(parents=True, exist_ok=True)
        if asked.eyes:
            teach_eyes(asked.work)
        else:
            make_base(asked)


def teach_eyes(work: Path) -> None:
    """Teaches the judge on pictures that the kept VAE has passed on."""
    from brushset.bases.load import load_components
    from brushset.bases.resolve import resolve_base
    from brushset.bases.tensors import save_tensors
    from brushset.log import silent

    base = resolve_base(str(folder.unpack(work / "base")), None, silent)
    autoencoder = load_components(base, parts=("vae",)).vae
    for step, loss, network in eyes.teach(autoencoder, SEED):
        if step % 200 == 0:
            print(f"eyes step {step}: loss {loss:.4f}, {time.process_time():.0f} CPU s", flush=True)
        if step == eyes.STEPS:
            save_tensors(eyes.WEIGHTS, {name: weight.half() for name, weight in network.state_dict().items()})


def make_base(asked: argparse.Namespace) -> None:
    """Trains VAE, UNet and text encoder, and keeps them."""
    if asked.look:
        asked.look.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    autoencoder = make_vae(asked.work / "vae.pt", asked.look)
    print(f"VAE: {time.process_time() - started:.0f} CPU s", flush=True)
    lessons = prior.prepare_lessons(autoencoder, SEED)
    for step, loss, models in prior.train_prior(lessons, SEED):
        if step % 100 == 0:
            print(f"prior step {step}: loss {loss:.4f}, {time.process_time() - started:.0f} CPU s", flush=True)
        if step % 500 == 0 or step == prior.STEPS:
            save(models, autoencoder, lessons, asked)


def make_vae(kept: Path, look: Path | None) -> Any:
    """The trained autoencoder, from the work folder where it is there."""
    import torch
    from diffusers import AutoencoderKL

    autoencoder = AutoencoderKL.from_config(vae.small_vae_config())
    if kept.is_file():
        autoencoder.load_state_dict(torch.load(kept, weights_only=True))
    else:
        for step, error, autoencoder in vae.train_vae(SEED):  # noqa: B007 - the last one is meant
            if step % 100 == 0:
                print(f"VAE step {step}: error {error:.4f}", flush=True)
        vae.normalise(autoencoder, vae.draw_everything(SEED)[:1024])
        torch.save(autoencoder.state_dict(), kept)
    autoencoder.eval().requires_grad_(False)
    if look:
        show_vae(autoencoder, look / "vae.png")
    return autoencoder


def save(models: prior.Prior, autoencoder: Any, lessons: prior.Lessons, asked: argparse.Namespace) -> None:
    """Keeps the average of the weights so far, and draws with what was kept."""
    parts = {"unet": models.averaged("unet"), "vae": autoencoder.state_dict()}
    parts["text_encoder"] = models.averaged("text_encoder")
    folder.pack(parts, lessons.known, SEED)
    if asked.look:
        show_base(folder.unpack(asked.work / "base"), asked.look / "base.png")


def show_vae(autoencoder: Any, file: Path) -> None:
    """Pictures of all styles, and what the VAE makes of them below each."""
    import torch
    from PIL import Image

    from small_world.styles import STYLES, make_style

    rows = []
    for name in ("plain", *STYLES):
        pixels = vae.to_tensor(make_style(name, 16, 99))
        with torch.no_grad():
            seen = autoencoder.decode(autoencoder.encode(pixels.float() / 127.5 - 1).latent_dist.mean).sample
        error = (seen.clamp(-1, 1) - (pixels.float() / 127.5 - 1)).square().mean()
        print(f"VAE, {name}: {10 * torch.log10(4 / error):.1f} dB", flush=True)
        rows += [pixels, ((seen.clamp(-1, 1) + 1) * 127.5).round().byte()]
    whole = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    Image.fromarray(whole.permute(1, 2, 0).numpy()).save(file)


def show_base(base: Path, file: Path) -> None:
    """What the base draws of twelve captions it was never shown as they are, six seeds each."""
    from brushset.generator import MultiLoRAGenerator
    from small_world.measure import draw_grid, prompts

    draw_grid(MultiLoRAGenerator(str(base), device="cpu", exact=False), prompts(12), 6).save(file)


if __name__ == "__main__":
    main()
