"""An unfinished training on disk: one safetensors file, from which the next attempt goes on, equal to the last bit.

It holds the adapter's weights in full precision, the optimizer's moments, the gradients of an update that is not whole yet,
and what was told so far. Random numbers are not
in it: they depend on seed and number alone. The fingerprint says of what training it is; another's is not gone on from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.errors import EnvironmentProblem
from brushset.files import sha256_json, write_atomic

if TYPE_CHECKING:
    import torch

    from brushset.native.dataset import TrainingSet
    from brushset.native.session import Session
    from brushset.native.settings import NativeSettings

FILE, _VERSION = "state.safetensors", 3


def fingerprint(settings: NativeSettings, sets: Sequence[TrainingSet | None], base_sha256: str) -> str:
    """What must be the same for a state to mean the same."""
    asked = [keys and keys.model_dump(mode="json") for keys in (settings.training, settings.dataset, settings.heldout)]
    seen = [[(image.path.name, image.caption, image.size) for image in each.images] for each in sets if each]
    return sha256_json([_VERSION, asked, seen, base_sha256])


def save_state(
    path: Path, session: Session, *, of: str, told: dict[str, Any], beside: Mapping[str, torch.Tensor]
) -> None:
    """Writes where the session is, whole or not at all. `told` is JSON, and comes back, like the tensors `beside`.

    Raises:
        EnvironmentProblem: the disk is full or the folder cannot be written.
    """
    import torch
    from safetensors.torch import save

    flat, row = session.pack.flat, session.row
    tensors = {"weights": flat.strip(row, flat.master[row]), **beside}
    if session.pending:
        tensors["gradients"] = flat.strip(row, flat.summed[row])
    found = session.optimizer.state_dict()
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in found["state"].items():
        for key, value in _flatten(values).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{key}"] = flat.strip(row, value, _group_of(session, index))
            else:
                scalars.setdefault(str(index), {})[key] = value
    groups = [{key: value for key, value in group.items() if key not in _NOT_KEPT} for group in found["param_groups"]]
    described = {
        "of": of,
        "step": session.step,
        "recent": session.recent,
        "pending": session.pending,
        "scalars": scalars,
        "groups": [
            {key: float(v) if isinstance(v, torch.Tensor) else v for key, v in group.items()} for group in groups
        ],
        "scaler": session.pack.scalers[session.row].state_dict() if session.pack.scalers else None,
        "told": told,
    }
    copied = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(copied, {"brushset": json.dumps(described)}))


_WITHIN = "/"  # bitsandbytes keeps what it has quantized in a mapping of its own


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """One tensor's state, mappings in it as further keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = value if isinstance(value, dict) else None
        flat |= {key: value} if inner is None else {f"{key}{_WITHIN}{name}": item for name, item in inner.items()}
    return flat


def _unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_flatten`."""
    values: dict[str, Any] = {}
    for key, value in flat.items():
        outer, within, name = key.partition(_WITHIN)
        if within:
            values.setdefault(outer, {})[name] = value
        else:
            values[key] = value
    return values


def _group_of(session: Session, index: int) -> str | None:
    """The group of the optimizer's so-many-th tensor; AdamW8bit has one a matrix, and packs of one rank alone."""
    return session.groups[index] if index < len(session.groups) else None


_NOT_KEPT = ("params", "lr", "initial_lr")  # rates are a function of the step


@dataclass(frozen=True)
class SavedState:
    """A state as it was read. `told` is what came with it."""

    step: int
    told: dict[str, Any]
    described: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def restore(self, session: Session) -> None:
        """Brings the session to where the state was saved."""
        flat, row = session.pack.flat, session.row
        flat.master[row].copy_(flat.pad(row, self.tensors["weights"]))
        flat.refresh()
        flat.gradients[row].zero_()
        flat.summed[row].zero_()
        if "gradients" in self.tensors:
            flat.summed[row].copy_(flat.pad(row, self.tensors["gradients"]))
        optimizer = session.optimizer.state_dict()
        kept: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in self.described["scalars"].items()}
        for name, tensor in self.tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                kept.setdefault(int(index), {})[key] = flat.pad(row, tensor, _group_of(session, int(index)))
        optimizer["state"] = {index: _unflatten(values) for index, values in kept.items()}
        for group, values in zip(optimizer["param_groups"], self.described["groups"], strict=True):
            group.update({key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
        session.optimizer.load_state_dict(optimizer)
        if session.pack.scalers:
            session.pack.scalers[session.row].load_state_dict(self.described["scaler"])
        session.step, session.recent, session.pending = self.step, self.described["recent"], self.described["pending"]


def read_state(path: Path, *, of: str) -> SavedState:
    """Reads a state.

    Raises:
        EnvironmentProblem: the file is broken, or of another training.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            described = json.loads(file.metadata()["brushset"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if described["of"] != of:
            raise EnvironmentProblem(f"{path}: is of another training")
        return SavedState(described["step"], described["told"], described, tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise EnvironmentProblem(f"{path}: cannot be read: {error}") from error
