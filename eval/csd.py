"""CSD: a description of style that leaves the content out (Somepalli et al. 2024, arXiv 2404.01292).

CLIP's ViT-L/14 image tower, trained further, with its projection replaced by two heads, for style and for content:

    s(x) = ViT(x) · W_style / ‖ViT(x) · W_style‖          1024 → 768

Written from the paper on transformers' tower. The published file names its tensors as OpenAI's CLIP does, under `backbone.`,
with `last_layer_style` [width, 768] beside it, all under `module.` where it was trained on several GPUs. The authors say on
top of their README that the uploaded weights show "some discrepancy" with the paper: hence the AUC on our own references.

The published file is a pickle. It is read with torch's restricted unpickler, which makes tensors and the named inert types
and runs nothing, after its hash was found to be the pinned one.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.errors import VerificationFailed

if TYPE_CHECKING:
    import torch

_HEAD_WIDTH = 64  # OpenAI's CLIP: heads = width / 64
_MODULE, _BACKBONE, _STYLE = "module.", "backbone.", "last_layer_style"
_IN_PROJECTION = re.compile(r"encoder\.layers\.(\d+)\.attn\.in_proj_(weight|bias)")
_NAMES = (
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def read_csd_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a CSD file, safetensors or torch's own, without `module.`.

    Raises:
        VerificationFailed: it is no such file, or holds what torch's restricted unpickler refuses.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_inert_types()):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise VerificationFailed(f"{path}: not read as CSD's weights: {str(error).splitlines()[0]}") from error
    state = state.get("model_state_dict", state)
    return {name.removeprefix(_MODULE): tensor for name, tensor in state.items()}


def build_csd(state: Mapping[str, torch.Tensor], name: str) -> Any:
    """Transformers' CLIPVisionModelWithProjection with CSD's weights; its sizes are read off the tensors.

    Raises:
        VerificationFailed: tensors are missing, left over, or of other shapes.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    try:
        tensors = _tower_tensors(state)
        width, _, patch, _ = tensors["vision_model.embeddings.patch_embedding.weight"].shape
        side = round((len(tensors["vision_model.embeddings.position_embedding.weight"]) - 1) ** 0.5)
        config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=len(tensors["vision_model.encoder.layers.0.mlp.fc1.bias"]),
            num_hidden_layers=len([key for key in tensors if key.endswith("layer_norm1.bias")]),
            num_attention_heads=width // _HEAD_WIDTH,
            image_size=side * patch,
            patch_size=patch,
            projection_dim=len(tensors["visual_projection.weight"]),
            hidden_act="quick_gelu",
        )
        model = CLIPVisionModelWithProjection(config)
        model.load_state_dict(tensors)
    except KeyError as error:
        raise VerificationFailed(f"{name}: not CSD's weights: no {error.args[0]}") from error
    except RuntimeError as error:
        raise VerificationFailed(f"{name}: not CSD's weights: {' '.join(str(error).split())[:300]}") from error
    return model.float().eval()


def _tower_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenAI's names to transformers'; the joint projection of query, key and value is cut into three."""
    tensors = {"visual_projection.weight": state[_STYLE].T.contiguous()}
    for name, tensor in state.items():
        if not name.startswith(_BACKBONE):
            continue
        plain = name.removeprefix(_BACKBONE)
        for pattern, replacement in _NAMES:
            plain = re.sub(pattern, replacement, plain)
        if joint := _IN_PROJECTION.fullmatch(plain):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                tensors[f"vision_model.encoder.layers.{joint[1]}.self_attn.{part}_proj.{joint[2]}"] = piece
        else:
            tensors[f"vision_model.{plain}"] = tensor
    return tensors


def _inert_types() -> list[Any]:
    """What the published training checkpoint holds beside tensors: its options and a few numbers."""
    import numpy as np

    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]  # noqa: SLF001 - the name under which NumPy pickles it
    return [
        argparse.Namespace,
        np.dtype,
        type(np.dtype(np.float64)),
        type(np.dtype(np.int64)),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]
