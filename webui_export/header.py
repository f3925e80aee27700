"""What the header of an exported file says: what the trainer wrote, without empty values, and what UIs go by besides.

Nothing here tells the time or the machine: the same weights and settings give the same bytes. The date is that of the
training, which the trainer wrote.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path, PurePath

from brushset.bases.header import Header, read_header
from brushset.lora.metadata import model_hash
from brushset.protocols import ExportJob
from brushset.stage_records import load_record
from webui_export.names import require_stem
from webui_export.pictures import thumbnail
from webui_export.verify.header import ARCHITECTURE, NO_VALUES
from webui_export.verify.lora import BASE_KEY, NARROW_KEY, RANDOM


def complete_header(job: ExportJob) -> dict[str, str]:
    """All fields but the two hashes of the whole file, which `with_hashes` adds."""
    spec, header = job.spec, read_header(job.weights)
    metadata = dict(header.metadata)
    digest = model_hash(job.weights)
    side = spec.dataset.resolution
    metadata.setdefault("modelspec.sai_model_spec", "1.0.1")
    metadata.setdefault("modelspec.implementation", "diffusers")
    metadata.setdefault("modelspec.prediction_type", "epsilon")
    metadata.setdefault("modelspec.resolution", f"{side}x{side}")
    metadata.setdefault("modelspec.date", _trained_on(job))
    metadata.setdefault("ss_network_dim", str(spec.train.network_dim))
    metadata.setdefault("ss_network_alpha", str(spec.train.network_alpha))
    metadata |= {
        "ss_output_name": require_stem(spec.name),
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "modelspec.architecture": ARCHITECTURE,
        "modelspec.title": title(spec.name),
        "modelspec.author": spec.export.author,
        "modelspec.description": describe(job),
        "modelspec.trigger_phrase": spec.trigger,
        "modelspec.tags": ", ".join(tags(job)),
        "modelspec.license": spec.export.license,
        "modelspec.usage_hint": f"Put {spec.trigger} first in the prompt; weight {job.advice.weight:g}.{_clip_hint(job)}",
        "modelspec.lora_default_weight": f"{job.advice.weight:g}",
        "modelspec.hash_sha256": f"0x{digest}",
        "modelspec.thumbnail": thumbnail(job.preview) if job.preview else "",
        NARROW_KEY: "narrow" if is_narrow(header) else "",
        BASE_KEY: RANDOM if job.trained.base_random else "",
    }
    told = tell_tags(metadata, spec.export.tag_frequency, spec.trigger)
    return {key: value for key, value in told.items() if value not in NO_VALUES}


def tell_tags(metadata: Mapping[str, str], level: str, trigger: str) -> dict[str, str]:
    """The header with as much of the captions' tags as the level allows: all, the trigger's count alone, or none. What
    `ss_datasets` repeats of them goes with them.
    """
    told = dict(metadata)
    if level == "full":
        return told
    told.pop("ss_datasets", None)
    folders = json.loads(told.pop("ss_tag_frequency", "{}"))
    if level == "minimal" and folders:
        kept = {
            folder: {tag: count for tag, count in counts.items() if tag.strip() == trigger}
            for folder, counts in folders.items()
        }
        told["ss_tag_frequency"] = json.dumps(kept)
    return told


def title(stem: str) -> str:
    """A name with its family, since nothing else tells people that SDXL does not take it."""
    return f"{stem} (SD 1.5)"


def tags(job: ExportJob) -> list[str]:
    """What the file is found by, each once."""
    return list(dict.fromkeys([job.spec.name, "style", "lora", "sd-1.5", *job.spec.export.tags]))


def describe(job: ExportJob) -> str:
    """One line for people, which says so where the file proves only that the machinery runs."""
    return " ".join(filter(None, [about(job), reservation(job)]))


def about(job: ExportJob) -> str:
    """What the style is, in the user's words."""
    spec = job.spec
    return (spec.description or f"Style LoRA for Stable Diffusion 1.5, trigger {spec.trigger}").rstrip(". ") + "."


def reservation(job: ExportJob) -> str:
    """Why the file is worth nothing as a style; empty where nothing of the kind is known."""
    if job.trained.base_random:
        return "Trained on a base model of random numbers: it shows that the machinery runs, nothing more."
    if job.spec.smoke:
        return f"Smoke run of {job.trained.steps} steps: it shows that the machinery runs, nothing more."
    return ""


def base_name(model: str) -> str:
    """A base model's name as strangers may read it: of a path on this machine only its last part."""
    return PurePath(model).name if is_local(model) else model


def is_local(model: str) -> bool:
    """Whether a base model is a path on this machine."""
    return PurePath(model).is_absolute() or model[:1] in ".~" or Path(model).suffix == ".safetensors"


def is_narrow(header: Header) -> bool:
    """Whether the file was trained on the narrow random model, which no UI has."""
    from webui_export.verify.blocks import NARROW

    layer = header.shape("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight")
    return layer is not None and layer[1] == NARROW.text


def _trained_on(job: ExportJob) -> str:
    """The day on which training ended, for a file that does not say; empty where no record does either."""
    record = load_record(job.run, "train")
    return time.strftime("%Y-%m-%d", time.gmtime(record.ended_at)) if record else ""


def _clip_hint(job: ExportJob) -> str:
    skip = job.spec.train.clip_skip
    return f" Clip skip {skip}." if skip > 1 else ""
