"""An unfinished training on disk: one safetensors file, from which the next attempt goes on, equal to the last bit.

It holds the adapter's weights in full precision, the optimizer's moments, and what was told so far. Random numbers are not
in it: they depend on seed and number alone. The fingerprint says of what training it is; another's is not gone on from.
"""

from __future__ import annotations

import json
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

FILE, _VERSION = "state.safetensors", 1


def fingerprint(settings: NativeSettings, images: TrainingSet, base_sha256: str) -> str:
    """What must be the same for a state to mean the same."""
    seen = [(image.path.name, image.caption, image.size) for image in images.images]
    return sha256_json(
        [
            _VERSION,
            settings.training.model_dump(mode="json"),
            settings.dataset.model_dump(mode="json"),
            seen,
            base_sha256,
        ]
    )


def save_state(path: Path, session: Session, *, of: str, told: dict[str, Any]) -> None:
    """Writes the state after the session's last step, whole or not at all. `told` is JSON, and comes back.

    Raises:
        EnvironmentProblem: the disk is full or the folder cannot be written.
    """
    import torch
    from safetensors.torch import save

    tensors = {"weights": session.pack.flat.master[session.row]}
    found = session.optimizer.state_dict()
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in found["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                scalars.setdefault(str(index), {})[key] = value
    groups = [{key: value for key, value in group.items() if key not in _NOT_KEPT} for group in found["param_groups"]]
    described = {
        "of": of,
        "step": session.step,
        "recent": session.recent,
        "scalars": scalars,
        "groups": [
            {key: float(v) if isinstance(v, torch.Tensor) else v for key, v in group.items()} for group in groups
        ],
        "scaler": session.pack.scalers[session.row].state_dict() if session.pack.scalers else None,
        "told": told,
    }
    copied = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(copied, {"brushset": json.dumps(described)}))


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
        flat = session.pack.flat
        flat.master[session.row].copy_(self.tensors["weights"])
        flat.refresh()
        optimizer = session.optimizer.state_dict()
        kept: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in self.described["scalars"].items()}
        for name, tensor in self.tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                kept.setdefault(int(index), {})[key] = tensor
        optimizer["state"] = kept
        for group, values in zip(optimizer["param_groups"], self.described["groups"], strict=True):
            group.update({key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
        session.optimizer.load_state_dict(optimizer)
        if session.pack.scalers:
            session.pack.scalers[session.row].load_state_dict(self.described["scaler"])
        session.step, session.recent = self.step, self.described["recent"]


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
