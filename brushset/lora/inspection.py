"""What an adapter file says and holds: rank, alpha, dtype, modules, norms of ΔW by block, metadata, hashes. No torch.

‖BA‖ is taken from the factors without the product: ‖BA‖² = ⟨BᵀB, AAᵀ⟩, two matrices of rank × rank a module. Tensors
are read as numpy arrays, so a file of 38 MB is told in about a second where importing torch alone takes longer.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.bases.header import Header, TensorEntry, read_header
from brushset.files import sha256_file
from brushset.lora.kinds import family, foreign_kind
from brushset.lora.layouts import Layout, read_layout
from brushset.lora.metadata import model_hash, window_hash
from brushset.lora.strength import Config, is_alpha_stated, stated_configs

if TYPE_CHECKING:
    import numpy as np

_BLOCK = re.compile(r"lora_unet_((?:down|up)_blocks_\d|mid_block)|lora_te_text_model_encoder_layers_(\d+)_")
_CONVOLUTIONS = re.compile(r"_(conv\d?|conv_shortcut|conv_in|conv_out)$")
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}


@dataclass(frozen=True)
class ModuleFacts:
    """One module's numbers. `norm` is ‖ΔW‖ (Frobenius), NaN where a value is, `size` how many numbers ΔW has."""

    size: int
    rank: int
    alpha: float
    norm: float
    up_norm: float
    down_norm: float
    finite: bool

    @property
    def dead(self) -> bool:
        """Whether `up` is all zero: nothing was trained here."""
        return self.up_norm == 0

    @property
    def rms(self) -> float:
        """How large one number of ΔW is; a trained SD 1.5's own are 0.02 to 0.05."""
        return self.norm / math.sqrt(self.size) if self.size else 0.0


@dataclass(frozen=True)
class Inspection:
    """All that is told of one file. `modules`: Kohya name → numbers; none where `foreign` says that the file is no plain
    LoRA of SD 1.x.
    """

    path: Path
    family: str
    foreign: str
    size_bytes: int
    layouts: tuple[str, ...]
    dtypes: Mapping[str, int]
    modules: Mapping[str, ModuleFacts]
    alpha_stated: bool
    old_text_prefix: bool
    metadata: Mapping[str, str]
    hashes: Mapping[str, str]

    @property
    def hash_right(self) -> bool | None:
        """Whether the metadata's hash is that of the tensors; None where it states none."""
        stated = self.metadata.get("sshs_model_hash")
        return None if stated is None else stated == self.hashes["tensors_sha256"]

    def counts(self) -> dict[str, int]:
        """Modules by part."""
        parts = Counter(_part(name) for name in self.modules)
        return {part: parts[part] for part in ("UNet", "UNet convolutions", "text encoder") if parts[part]}

    def blocks(self) -> dict[str, float]:
        """Block → ‖ΔW‖ of its modules together, text encoder first, then the UNet from input to output."""
        squares: dict[str, float] = {}
        for name, facts in self.modules.items():
            block = block_of(name)
            squares[block] = squares.get(block, 0.0) + facts.norm**2
        return {block: math.sqrt(squares[block]) for block in sorted(squares, key=block_order)}


def inspect_file(file: Path) -> Inspection:
    """Reads one LoRA file, of any layout; of other methods and models only what the header says.

    Raises:
        UsageError: no such file, a pickle, not safetensors, no LoRA.
        VerificationFailed: keys that name nothing, twice the same or half a module.
    """
    header = read_header(file)
    foreign = foreign_kind(header) or ""
    layout = Layout({}, (), old_text_prefix=False) if foreign else read_layout(header, str(file))
    configs = stated_configs(header, file)
    sha256, tensors = sha256_file(file), model_hash(file)
    return Inspection(
        path=file,
        family=family(header),
        foreign=foreign,
        size_bytes=file.stat().st_size,
        layouts=layout.kinds,
        dtypes=dict(Counter(entry.dtype for entry in header.tensors.values())),
        modules=dict(_measure(file, header, layout, configs)),
        alpha_stated=is_alpha_stated(header, configs, layout),
        old_text_prefix=layout.old_text_prefix,
        metadata=header.metadata,
        hashes={
            "sha256": sha256,
            "tensors_sha256": tensors,
            "A1111 (Lora hashes)": tensors[:12],
            "AutoV1": window_hash(file),
            "AutoV2": sha256[:10],
            "AutoV3": tensors[:12],
        },
    )


def block_of(name: str) -> str:
    """`down 0`, `mid`, `up 3`, `text 11`; `in/out` for what stands outside the blocks."""
    match = _BLOCK.match(name)
    if match is None:
        return "in/out"
    if match[2]:
        return f"text {match[2]}"
    return match[1].replace("_blocks_", " ").replace("_block", "")


def read_array(file: Path, header: Header, entry: TensorEntry) -> np.ndarray[Any, Any]:
    """One tensor as float64. bfloat16 is the upper half of float32."""
    import numpy as np

    with file.open("rb") as opened:
        opened.seek(header.data_offset + entry.start)
        raw = opened.read(entry.end - entry.start)
    if entry.dtype == "BF16":
        wide = np.frombuffer(raw, "<u2").astype("<u4") << 16
        return wide.view("<f4").astype("f8").reshape(entry.shape)
    return np.frombuffer(raw, _NUMPY[entry.dtype]).astype("f8").reshape(entry.shape)


def _measure(
    file: Path, header: Header, layout: Layout, configs: Mapping[Any, Config]
) -> Iterator[tuple[str, ModuleFacts]]:
    import numpy as np

    def array(keys: Mapping[str, str], part: str) -> np.ndarray[Any, Any]:
        return read_array(file, header, header.tensors[keys[part]])

    for name, keys in layout.modules.items():
        down, up = array(keys.parts, "down"), array(keys.parts, "up")
        down, up = down.reshape(len(down), -1), up.reshape(len(up), -1)
        rank = len(down)
        alpha = float(rank)
        if "alpha" in keys.parts:
            alpha = float(array(keys.parts, "alpha").reshape(-1)[0])
        elif config := configs.get(keys.component):
            alpha = config.alpha_of(keys.path, rank)
        finite = bool(np.isfinite(down).all() and np.isfinite(up).all() and math.isfinite(alpha))
        squared = float(((up.T @ up) * (down @ down.T)).sum()) if finite and up.shape[1] == rank else math.nan
        norm = abs(alpha / rank) * math.sqrt(max(squared, 0.0)) if finite and rank else math.nan
        yield name, ModuleFacts(up.shape[0] * down.shape[1], rank, alpha, norm, _norm(up), _norm(down), finite)


def _norm(values: np.ndarray[Any, Any]) -> float:
    import numpy as np

    return float(np.linalg.norm(values)) if np.isfinite(values).all() else math.nan


def _part(name: str) -> str:
    if name.startswith("lora_te"):
        return "text encoder"
    return "UNet convolutions" if _CONVOLUTIONS.search(name) or name.endswith("time_emb_proj") else "UNet"


def block_order(block: str) -> tuple[int, int]:
    """The text encoder's blocks first, then the UNet's as an image goes through them."""
    kind, _, number = block.partition(" ")
    return ("text", "in/out", "down", "mid", "up").index(kind), int(number or 0)


def trigger_of(metadata: Mapping[str, str]) -> tuple[str, str]:
    """(trigger, where that stands): stated, or the one tag that is in every caption; two empty strings for none."""
    if phrase := metadata.get("modelspec.trigger_phrase"):
        return phrase, "modelspec.trigger_phrase"
    folders = _table(metadata.get("ss_tag_frequency", ""))
    tags: Counter[str] = Counter()
    for counts in folders.values():
        tags.update(
            {str(tag).strip(): count for tag, count in counts.items() if isinstance(count, int)}
            if isinstance(counts, dict)
            else {}
        )
    common = tags.most_common(2)
    if common and (len(common) == 1 or common[0][1] > common[1][1]):
        return common[0][0], "the most frequent tag of ss_tag_frequency"
    return "", ""


def training_facts(metadata: Mapping[str, str]) -> dict[str, str]:
    """How the file was trained, as far as its metadata says."""
    facts = {what: metadata.get(key, "") for what, key in _FACTS.items()}
    images = [_table(text) for text in (metadata.get("ss_dataset_dirs", ""),)]
    counted = sum(
        folder.get("img_count", 0) for table in images for folder in table.values() if isinstance(folder, dict)
    )
    facts["images"] = metadata.get("ss_num_train_images", "") or (str(counted) if counted else "")
    return {what: value for what, value in facts.items() if value not in ("", "None", "IsADirectory")}


_FACTS = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "license": "modelspec.license",
    "base model": "ss_sd_model_name",
    "base hash": "ss_new_sd_model_hash",
    "network": "ss_network_module",
    "steps": "ss_steps",
    "epoch": "ss_epoch",
    "resolution": "modelspec.resolution",
    "UNet rate": "ss_unet_lr",
    "text encoder rate": "ss_text_encoder_lr",
    "optimizer": "ss_optimizer",
    "scheduler": "ss_lr_scheduler",
    "clip skip": "ss_clip_skip",
    "seed": "ss_seed",
    "written by": "modelspec.implementation_version",
    "date": "modelspec.date",
}


def _table(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
