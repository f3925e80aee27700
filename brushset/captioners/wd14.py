"""WD taggers (SmilingWolf, Apache-2.0): Danbooru tags for anime images, from an ONNX model by onnxruntime.

The repositories hold `model.onnx` and `selected_tags.csv` (columns tag_id, name, category, count; a row an output).
Input as the model was trained on: the image padded to a white square, resized bicubically to the size that the model
states, BGR, float32 from 0 to 255, NHWC. Outputs are probabilities. Source of the rules: SmilingWolf's wd-tagger space.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from brushset.captioners.blip import read_images
from brushset.captioners.weights import Weights
from brushset.errors import EnvironmentProblem
from brushset.hub import NotToBeHad
from brushset.protocols import Describe, Emit, Subject
from brushset.spec import CaptionSection

if TYPE_CHECKING:
    import numpy as np

_MODEL, _TAGS = "model.onnx", "selected_tags.csv"
_GENERAL, _CHARACTER, _RATING = 0, 4, 9
# Tags that are drawn with underscores: in all others an underscore is a space.
_KAOMOJI = "0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_||"


@dataclass(frozen=True)
class Tag:
    """One output of the model."""

    text: str
    category: int


class Wd14Captioner:
    """Character names first, then general tags, each by falling probability; ratings are left out."""

    name = "wd14"

    def __init__(self, section: CaptionSection) -> None:
        self._section = section
        self._weights = tagger_weights(section)
        self.settings = f"{section.tagger}, {section.tag_threshold:g}, characters {section.character_threshold:g}"
        self.batch_size = section.batch_size

    def weights(self) -> str:
        """Model and commit, or the digest of a folder's two files."""
        try:
            return self._weights.identity()
        except NotToBeHad as error:
            raise self._not_to_be_had(str(error)) from error

    def load(self, emit: Emit) -> Describe:
        """Comma-separated tags an image.

        Raises:
            EnvironmentProblem: the model is not to be had, or is no WD tagger.
        """
        try:
            folder = self._weights.folder()
            tags = read_tags(folder / _TAGS)
            session = _session(folder / _MODEL)
        except (NotToBeHad, OSError, ValueError, KeyError) as error:
            raise self._not_to_be_had(str(error)) from error
        source = session.get_inputs()[0]
        fixed, size = source.shape[0] if isinstance(source.shape[0], int) else None, source.shape[1]
        if len(source.shape) != 4 or source.shape[3] != 3 or not isinstance(size, int) or source.shape[2] != size:
            raise self._not_to_be_had(f"its input is {source.shape}, not images × size × size × 3")
        emit("note", text=f"wd14: {len(tags)} tags, {size} px, by {session.get_providers()[0]}")

        def describe(subjects: Sequence[Subject]) -> list[str]:
            import numpy as np

            pixels = np.stack([as_input(image, size) for image in read_images(subjects)])
            step = fixed or len(pixels)
            if len(pixels) % step:
                pixels = np.concatenate([pixels, np.zeros((-len(pixels) % step, *pixels.shape[1:]), np.float32)])
            starts = range(0, len(pixels), step)
            outputs = np.concatenate([session.run(None, {source.name: pixels[at : at + step]})[0] for at in starts])
            if outputs.shape[1] != len(tags):
                raise self._not_to_be_had(f"{outputs.shape[1]} outputs, and {len(tags)} rows in {_TAGS}")
            return [self._caption(row, tags) for row in outputs[: len(subjects)]]

        return describe

    def _caption(self, probabilities: np.ndarray, tags: Sequence[Tag]) -> str:
        least = {_GENERAL: self._section.tag_threshold, _CHARACTER: self._section.character_threshold}
        order = sorted(range(len(tags)), key=lambda index: (tags[index].category != _CHARACTER, -probabilities[index]))
        return ", ".join(
            tags[index].text for index in order if probabilities[index] >= least.get(tags[index].category, 2)
        )

    def _not_to_be_had(self, detail: str) -> EnvironmentProblem:
        return EnvironmentProblem(
            f'[caption] tagger = "{self._section.tagger}": no folder with {_MODEL} and {_TAGS} of a WD tagger, not in '
            f"the cache of HF models, and not to be fetched now; fix: connect to huggingface.co once, or "
            f"--set caption.tagger=FOLDER, or --set caption.captioner=trigger-only",
            detail=detail,
        )


def tagger_weights(section: CaptionSection) -> Weights:
    """What is read of the tagger that a style names."""
    return Weights(section.tagger, section.revision, (_MODEL, _TAGS), (_MODEL, _TAGS))


def read_tags(path: Path) -> list[Tag]:
    """The tags in the order of the model's outputs, as captions spell them: spaces for underscores, no commas."""
    with path.open(encoding="utf-8", newline="") as file:
        return [Tag(_spelled(row["name"]), int(row["category"])) for row in csv.DictReader(file)]


def as_input(image: Image.Image, size: int) -> np.ndarray:
    """float32 [size, size, 3], BGR, 0 to 255: the image on a white square, resized."""
    import numpy as np

    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    if side != size:
        square = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(square, np.float32)[:, :, ::-1]


def _spelled(name: str) -> str:
    return name if name in _KAOMOJI.split() else " ".join(name.replace("_", " ").replace(",", " ").split())


def _session(path: Path) -> Any:
    """An onnxruntime session, on a GPU where the installed onnxruntime can."""
    import onnxruntime

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every operator that it places on the CPU
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no class of their own but Exception
        raise ValueError(f"{path}: {error}") from error
