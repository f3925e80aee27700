"""Which weights a captioner reads: a folder, or a repository of the HF hub at one commit.

Commits are pinned where they could be looked up on the hub's own pages: captions then do not change under the user's
feet, and a new upload is not run unseen. Any other id stands for its branch `main`, and the commit that it was is
recorded. `[caption] revision` overrules both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from brushset.files import sha256_file, sha256_json
from brushset.hub import fetch_repository

PINNED = {
    "Salesforce/blip-image-captioning-large": "353689b859fcf0523410b1806dace5fb46ecdf41",
    "SmilingWolf/wd-vit-tagger-v3": "7f6b584d0bd3f55c4531f14ba3d4761b2bccdc0f",
    "timm/vit_large_patch14_clip_224.openai": "18d0535469bb561bf468d76c1d73aa35156c922b",
    "pharmapsychotic/ci-preprocess": "8304b4f0f2c02396589782b0beb71011975e4265",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Weights:
    """`files` are the patterns to fetch; those in `decisive` are hashed where the model is a folder."""

    model: str
    revision: str | None
    files: tuple[str, ...]
    decisive: tuple[str, ...]

    @property
    def commit(self) -> str | None:
        """What is asked of the hub: as the style says, else as pinned, else None for `main`."""
        return self.revision or PINNED.get(self.model)

    def folder(self) -> Path:
        """Where they lie.

        Raises:
            NotToBeHad: neither in the cache nor to be fetched now.
        """
        if Path(self.model).is_dir():
            return Path(self.model)
        return fetch_repository(self.model, self.files, revision=self.commit)

    def identity(self) -> str:
        """`id@commit`, or `folder name@digest`; asks the hub only where the commit is not known beforehand.

        Raises:
            NotToBeHad: as `folder`.
        """
        if Path(self.model).is_dir():
            found = sorted(path for pattern in self.decisive for path in Path(self.model).glob(pattern))
            return f"{Path(self.model).name}@{sha256_json([[path.name, sha256_file(path)] for path in found])[:16]}"
        commit = self.commit
        if commit is None or not _COMMIT.fullmatch(commit):
            commit = self.folder().name
        return f"{self.model}@{commit}"
