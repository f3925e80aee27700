"""LoRA files with the real keys, for tests: `up` is large enough that a lost module shows. Other layouts are written by
rules of their own, which share no code with the readers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brushset.bases.configs import TINY, Architecture
from brushset.lora.keys import expected_shapes, key_table

State = dict[str, Any]


def lora_state(
    *, architecture: Architecture = TINY, dim: int = 4, alpha: float = 2.0, seed: int = 0, text_encoder: bool = True
) -> State:
    """A Kohya state dict in float32, filled from N(0, 0.1)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(alpha) if name.endswith(".alpha") else 0.1 * torch.randn(shape, generator=generator)
        for name, shape in expected_shapes(dim, text_encoder=text_encoder, architecture=architecture).items()
    }


def locon_state(
    *, architecture: Architecture = TINY, conv_dim: int = 2, conv_alpha: float = 1.0, **recipe: Any
) -> State:
    """`lora_state` with the 85 convolutions and time projections that sd-scripts' conv_dim adds."""
    import torch

    state = lora_state(architecture=architecture, **recipe)
    generator = torch.Generator().manual_seed(1)
    for module in key_table(architecture).values():
        if ".resnets." in module.path or "samplers." in module.path:
            down, up, alpha = module.keys
            shapes = module.lora_shapes(conv_dim)
            state[down], state[up] = (0.1 * torch.randn(shape, generator=generator) for shape in shapes)
            state[alpha] = torch.tensor(conv_alpha)
    return state


def save(state: State, path: Path, metadata: dict[str, str] | None = None) -> Path:
    import torch
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()},
        path,
        metadata=metadata,
    )
    return path


def write_lora(path: Path, *, dtype: str = "float32", metadata: dict[str, str] | None = None, **recipe: Any) -> Path:
    """Writes `lora_state(**recipe)` as a Kohya file."""
    import torch

    state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in lora_state(**recipe).items()}
    return save(state, path, metadata)


def modules_of(state: State) -> dict[str, tuple[str, str, Any, Any]]:
    """Kohya name → (component, path, down, up with the strength in it)."""
    found = {}
    for name, module in key_table().items():
        down, up, alpha = module.keys
        if down in state:
            scale = state[alpha].item() / state[down].shape[0]
            found[name] = (module.component, module.path, state[down], scale * state[up])
    return found


def in_diffusers(state: State) -> State:
    """Today's diffusers keys."""
    out = {}
    for component, path, down, up in modules_of(state).values():
        out[f"{component}.{path}.lora_A.weight"], out[f"{component}.{path}.lora_B.weight"] = down, up
    return out


def in_old_diffusers(state: State) -> State:
    """diffusers 0.18 to 0.22: lora.down in the UNet, lora_linear_layer in the text encoder."""
    out = {}
    for component, path, down, up in modules_of(state).values():
        middle = "lora" if component == "unet" else "lora_linear_layer"
        out[f"{component}.{path}.{middle}.down.weight"], out[f"{component}.{path}.{middle}.up.weight"] = down, up
    return out


def in_processors(state: State, *, prefix: str = "unet.") -> State:
    """diffusers before 0.18: the attention layers alone, by their processors."""
    roles = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    out = {}
    for component, path, down, up in modules_of(state).values():
        owner, _, last = path.removesuffix(".0").rpartition(".")
        if component == "unet" and owner.endswith(("attn1", "attn2")):
            stem = f"{prefix}{owner}.processor.{last}_lora"
        elif component == "text_encoder" and last in roles:
            stem = f"text_encoder.{owner}.{roles[last]}_lora"
        else:
            continue
        out[f"{stem}.down.weight"], out[f"{stem}.up.weight"] = down, up
    return out


def in_peft(state: State, component: str) -> State:
    """PEFT's own saver, on one model."""
    out = {}
    for owner, path, down, up in modules_of(state).values():
        if owner == component:
            out[f"base_model.model.{path}.lora_A.weight"] = down
            out[f"base_model.model.{path}.lora_B.weight"] = up
    return out


def write_trio(folder: Path) -> dict[str, Path]:
    """Three adapters that differ in rank, alpha and in what they reach."""
    return {
        "anime": write_lora(folder / "anime.safetensors", seed=1),
        "watercolor": write_lora(folder / "watercolor.safetensors", seed=2, dim=3, alpha=3.0),
        "unet-only": write_lora(folder / "unet-only.safetensors", seed=3, text_encoder=False),
    }
