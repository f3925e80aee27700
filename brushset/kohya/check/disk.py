"""What would sd-scripts find in the folders that a file names? Relative paths start where one stands, as they do there.

Only the top level of a folder is looked at, and only the endings that sd-scripts globs for, as it does.
"""

from __future__ import annotations

import os
from pathlib import Path

from brushset.kohya.check.dataset import Subset
from brushset.kohya.check.findings import Finding, said
from brushset.kohya.check.findings import Path as Place

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl")


def image_dir_findings(subset: Subset, file: str) -> list[Finding]:
    """What is wrong with a subset's folder, its images and its captions, as they lie on this disk."""
    folder = subset.settings.given.get("image_dir")
    if not isinstance(folder, str) or not folder or "metadata_file" in subset.settings.given:
        return []
    source, place = subset.places.get("image_dir", (file, (*subset.path, "image_dir")))
    path = Path(folder)
    ends = "sd-scripts passes over it with a line in its log, and ends with exit code 0 where it was the only one"
    if not path.is_dir():
        there = "is a file" if path.exists() else "is not there"
        fix = "forward slashes: a backslash is part of a name here" if "\\" in folder and os.sep == "/" else ""
        return [Finding(source, place, "wrong", f"{said('image_dir', folder)} {there}", ends, fix)]
    images = _images(path)
    if not images:
        inside = sorted(item.name for item in path.iterdir() if item.is_dir())
        fix = f"image_dir must be the folder of the images themselves, such as {folder}/{inside[0]}" if inside else ""
        return [Finding(source, place, "wrong", f"{said('image_dir', folder)} holds no images", ends, fix)]
    return _caption_findings(subset, images, file)


def train_data_dir_findings(folder: object, place: Place, file: str) -> list[Finding]:
    """What is wrong with train_data_dir, whose sub-folders must be named `<repeats>_<words>`."""
    if not isinstance(folder, str) or not folder:
        return []
    path, ends = Path(folder), "sd-scripts finds no data, and ends with exit code 0 and no file"
    if not path.is_dir():
        return [Finding(file, place, "wrong", f"{said('train_data_dir', folder)} is not there", ends)]
    inside = [item.name for item in path.iterdir() if item.is_dir()]
    if not any(name.split("_")[0].isdigit() and int(name.split("_")[0]) > 0 for name in inside):
        text = f"{said('train_data_dir', folder)} holds no folder that begins with a number of repeats"
        return [Finding(file, place, "wrong", text, ends, "name the folder of images such as 10_mystyle, inside of it")]
    return []


def _images(folder: Path) -> list[Path]:
    """The files that sd-scripts takes for images: endings in all lower or all upper case."""
    found = [
        item
        for item in folder.iterdir()
        if item.suffix in IMAGE_ENDINGS or item.suffix in map(str.upper, IMAGE_ENDINGS)
    ]
    return sorted(item for item in found if item.is_file())


def _caption_findings(subset: Subset, images: list[Path], file: str) -> list[Finding]:
    ending = str(subset.settings["caption_extension"] or "")
    ending = ending if ending.startswith(".") or not ending else f".{ending}"
    bare = [image for image in images if not ending or not image.with_suffix(ending).is_file()]
    if not bare or subset.settings.on("class_tokens"):
        return []
    given = subset.places.get("caption_extension")
    source, place = given or (file, (*subset.path, "caption_extension"))
    others = sorted(
        {
            other
            for other in (".txt", ".caption")
            if other != ending and any(image.with_suffix(other).is_file() for image in bare)
        }
    )
    what = "" if given else ", which is sd-scripts' default,"
    of = f"{len(bare)} of {len(images)} images in {subset.settings['image_dir']}"
    text = f"caption_extension {ending}{what} finds no caption for {of}"
    fix = (
        f'caption_extension = "{others[0]}": such files are there' if others else "write captions, or give class_tokens"
    )
    return [Finding(source, place, "wrong", text, "they train with empty captions, exit code 0", fix)]
