"""What may be told to strangers: a LoRA's metadata shown, edited or stripped; tensors stay byte for byte.

sd-scripts writes some 80 fields. `ss_tag_frequency` holds every caption tag, `ss_dataset_dirs` and `ss_datasets` folder
names, `ss_training_comment` whatever was noted. `minimal` keeps what UIs need to find and show a file, `none` nothing
but what says that it is an SD 1.5 LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from brushset.errors import UsageError
from brushset.lora.metadata import model_hash, read_metadata, rewrite_metadata, with_hashes

Keep = Literal["full", "minimal", "none"]
LEVELS: tuple[Keep, ...] = ("full", "minimal", "none")
PRIVATE: Mapping[str, str] = {  # field → what it gives away
    "ss_tag_frequency": "the captions' tags",
    "ss_dataset_dirs": "folder names",
    "ss_datasets": "captions' tags, folder names",
    "ss_reg_dataset_dirs": "folder names",
    "ss_training_comment": "a note of the trainer",
    "ss_sd_model_name": "the base model's file name",
    "ss_vae_name": "the VAE's file name",
    "ssmd_cover_images": "pictures",
}
_MINIMAL = (
    "format", "ss_output_name", "ss_base_model_version", "ss_v2", "ss_network_module", "ss_network_dim",
    "ss_network_alpha", "ss_network_args", "ss_clip_skip", "sshs_model_hash", "sshs_legacy_hash", "brushset.kohya",
)  # fmt: skip
_NEEDED = ("format", "ss_base_model_version", "ss_v2", "modelspec.architecture", "brushset.kohya")
# The way back to Kohya's form, alphas included, hangs on brushset.kohya; it holds numbers alone.


def strip(metadata: Mapping[str, str], keep: str) -> dict[str, str]:
    """The fields that are left at a level.

    Raises:
        UsageError: no such level.
    """
    if keep not in LEVELS:
        raise UsageError(f"--keep {keep}: one of {', '.join(LEVELS)}")
    if keep == "full":
        return dict(metadata)
    if keep == "none":
        return {key: value for key, value in metadata.items() if key in _NEEDED}
    kept = {key: value for key, value in metadata.items() if key in _MINIMAL or key.startswith("modelspec.")}
    return {key: value for key, value in kept.items() if value != "None"}


def edit(metadata: Mapping[str, str], changes: Sequence[str]) -> dict[str, str]:
    """The metadata with each `key=value` set; `key=` takes the key away.

    Raises:
        UsageError: a change without `=`, or of what is computed.
    """
    edited = dict(metadata)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {change}: expected key=value, such as modelspec.title=Cartoon; key= takes it away")
        if key in ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"):
            raise UsageError(f"--set {change}: hashes are computed from the tensors")
        edited.pop(key, None)
        if value:
            edited[key] = value
    return edited


def write_edited(source: Path, target: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    """Writes `source` with other metadata under `target`, its hashes right, and returns what was written."""
    digest = model_hash(source)
    told = {key: value for key, value in metadata.items() if value}
    if "modelspec.hash_sha256" in told:
        told["modelspec.hash_sha256"] = f"0x{digest}"
    rewrite_metadata(source, target, told)
    if "sshs_model_hash" in told or any(key.startswith("ss_") for key in told):
        rewrite_metadata(target, target, with_hashes(target))
    return read_metadata(target)
