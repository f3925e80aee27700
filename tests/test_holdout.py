"""The held-out images: whole groups, chosen by content alone, sealed, and never among those trained on."""

from __future__ import annotations

import hashlib
import itertools
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from brushset.errors import VerificationFailed
from brushset.prepare.holdout import choose_heldout, choose_sizes, seal_of, verify_holdout
from brushset.records import AuditedImage, Prepared, PreparedImage
from brushset.spec import DatasetSection


def audited(number: int, group: int | None = None, path: str = "") -> AuditedImage:
    return AuditedImage(
        path=path or f"{number}.png", sha256=hashlib.sha256(str(number).encode()).hexdigest(), size_bytes=1,
        format="PNG", mode="RGB", width_px=512, height_px=512, verdict="ok", group=group,
    )  # fmt: skip


def dataset(**changes: object) -> DatasetSection:
    return DatasetSection(**changes)


def nearest(sizes: list[int], target: int, limit: int) -> int:
    """The definition, by trying all subsets."""
    sums = {sum(some) for count in range(len(sizes) + 1) for some in itertools.combinations(sizes, count)}
    return min((total for total in sorted(sums) if total <= limit), key=lambda total: abs(total - target))


@pytest.mark.parametrize(("images", "held"), [(79, 0), (80, 8), (100, 10), (173, 17)])
def test_a_tenth_is_held_out_from_eighty_images_up(images: int, held: int) -> None:
    assert len(choose_heldout([audited(i) for i in range(images)], dataset())) == held


def test_no_share_holds_nothing_out() -> None:
    assert choose_heldout([audited(i) for i in range(200)], dataset(holdout=0.0)) == set()


def test_groups_are_never_parted() -> None:
    images = [audited(i, group=i // 3 if i < 90 else None) for i in range(150)]
    held = choose_heldout(images, dataset())
    assert len(held) == 15
    parts = [{image.sha256 in held for image in images if image.group == group} for group in range(30)]
    assert all(len(part) == 1 for part in parts)
    assert {True} in parts  # groups are held out too, not the single images alone


def test_names_and_order_do_not_matter() -> None:
    images = [audited(i, group=i // 2 if i < 40 else None) for i in range(120)]
    others = [image.model_copy(update={"path": f"x/{index}.jpg"}) for index, image in enumerate(images)]
    random.Random(0).shuffle(others)
    renumbered = [
        image.model_copy(update={"group": None if image.group is None else 99 - image.group}) for image in others
    ]
    assert choose_heldout(images, dataset()) == choose_heldout(renumbered, dataset())


def test_one_image_more_changes_little() -> None:
    images = [audited(i) for i in range(150)]
    before, after = choose_heldout(images, dataset()), choose_heldout([*images, audited(150)], dataset())
    assert len(before ^ after) <= 2


def test_training_keeps_what_the_share_would_leave_of_the_least_number() -> None:
    """80 images in groups of 9: nearest to 8 is 9, which would leave 71."""
    images = [audited(i, group=i // 9) for i in range(80)]
    assert len(choose_heldout(images, dataset())) == 8  # the last group has 8
    images = [audited(i, group=i // 9) for i in range(81)]
    assert len(choose_heldout(images, dataset())) == 9
    assert choose_heldout([audited(i, group=i // 20) for i in range(80)], dataset()) == set()


def test_one_great_group_is_trained_on_whole() -> None:
    images = [audited(i, group=0 if i < 100 else None) for i in range(120)]
    held = choose_heldout(images, dataset())
    assert len(held) == 12
    assert not held & {image.sha256 for image in images[:100]}


@given(sizes=st.lists(st.integers(1, 12), max_size=9), target=st.integers(0, 30), limit=st.integers(0, 40))
def test_the_sum_is_the_nearest_that_there_is(sizes: list[int], target: int, limit: int) -> None:
    chosen = choose_sizes(sizes, target=target, limit=limit)
    assert chosen == sorted(set(chosen))
    total = sum(sizes[index] for index in chosen)
    assert total <= limit
    assert abs(total - target) == abs(nearest(sizes, target, limit) - target)


def test_a_hundred_thousand_images_are_split_in_seconds() -> None:
    rng = random.Random(1)
    sizes = [rng.choice((1, 1, 1, 2, 5, 30)) for _ in range(30_000)]
    began = time.perf_counter()
    chosen = choose_sizes(sizes, target=10_000, limit=99_000)
    assert sum(sizes[index] for index in chosen) == 10_000
    assert time.perf_counter() - began < 10


def image(name: str, source: str) -> PreparedImage:
    return PreparedImage(name=name, source=source, source_sha256=source, width_px=8, height_px=8, upscaled_by=1.0)


def sealed(folder: Path) -> Prepared:
    """Three images trained on and one held out, on disk."""
    (folder / "heldout").mkdir(parents=True)
    names = ("a.png", "b.png", "c.png", "heldout/d.png")
    for index, name in enumerate(names):
        Image.new("RGB", (8, 8), (60 * index, 0, 0)).save(folder / name)
    made = [image(name, f"source-{name}") for name in names]
    return Prepared(images=tuple(made[:3]), heldout=(made[3],), seal=seal_of(made[3:]), skipped={})


def test_an_honest_split_passes(tmp_path: Path) -> None:
    verify_holdout(sealed(tmp_path), tmp_path)
    verify_holdout(Prepared(images=(image("a.png", "x"),), skipped={}), tmp_path)


def test_the_seal_does_not_depend_on_the_order() -> None:
    some = [image(f"{i}.png", f"{i}") for i in range(5)]
    assert seal_of(some) == seal_of(reversed(some))
    assert seal_of(some) != seal_of(some[1:])
    assert seal_of([]) == ""


def test_a_broken_seal_is_told(tmp_path: Path) -> None:
    record = sealed(tmp_path).model_copy(update={"heldout": (image("heldout/d.png", "another"),)})
    with pytest.raises(VerificationFailed, match="not the ones that were sealed"):
        verify_holdout(record, tmp_path)


def test_an_image_on_both_sides_is_named(tmp_path: Path) -> None:
    record = sealed(tmp_path)
    leak = record.model_copy(update={"images": (*record.images, image("e.png", record.heldout[0].source_sha256))})
    with pytest.raises(VerificationFailed, match=r"heldout/d\.png: held out, and trained on as e\.png"):
        verify_holdout(leak, tmp_path)


def test_a_held_out_file_copied_among_the_others_is_named(tmp_path: Path) -> None:
    record = sealed(tmp_path)
    (tmp_path / "stray.png").write_bytes((tmp_path / "heldout" / "d.png").read_bytes())
    with pytest.raises(VerificationFailed, match=r"stray\.png: a copy of the held-out heldout/d\.png"):
        verify_holdout(record, tmp_path)
