"""Groups of near-duplicates: exactly those of the brute-force search, at any distance, fast and in little memory."""

from __future__ import annotations

import csv
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brushset.audit.duplicates import group_duplicates, group_near
from brushset.audit.folder import audit_folder
from brushset.audit.settings import AuditSettings
from brushset.log import silent
from brushset.paths import PROJECT
from brushset.records import AuditedImage, Measures
from brushset.spec import DatasetSection, StyleSpec

DATA = PROJECT.parent / "shared" / "data"
MEASURES = Measures(
    orientation=1, alpha_share=0, sharpness=1, mean_luma=0.5, contrast=1, black_share=0, white_share=0, margin="none",
    margins_px=(0, 0, 0, 0), uniform=False, jpeg_quality=None,
)  # fmt: skip


def brute_force(hashes: list[int], distance: int) -> list[list[int]]:
    """Union of all pairs, one by one."""
    label = list(range(len(hashes)))
    for a, b in itertools.combinations(range(len(hashes)), 2):
        if (hashes[a] ^ hashes[b]).bit_count() <= distance and label[a] != label[b]:
            old, new = max(label[a], label[b]), min(label[a], label[b])
            label = [new if value == old else value for value in label]
    groups: dict[int, list[int]] = {}
    for index, value in enumerate(label):
        groups.setdefault(value, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def flipped(value: int, bits: set[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


# Hashes near a few centres, so that there are groups, chains and pairs right at the distance.
clustered = st.lists(
    st.builds(
        flipped,
        st.sampled_from([0, 2**64 - 1, 0x0F0F0F0F0F0F0F0F, 0x123456789ABCDEF0]),
        st.sets(st.integers(0, 63), max_size=9),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(clustered, st.integers(0, 16))
def test_the_groups_are_those_of_the_brute_force_search(hashes: list[int], distance: int):
    assert group_near(hashes, distance) == brute_force(hashes, distance)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.integers(0, 16))
def test_random_hashes_group_as_by_brute_force_too(hashes: list[int], distance: int):
    assert group_near(hashes, distance) == brute_force(hashes, distance)


def test_no_pair_is_missed_at_the_distance_and_none_is_found_beyond_it():
    for distance in range(17):
        at = flipped(0, set(range(distance)))
        assert group_near([0, at], distance) == [[0, 1]]
        assert group_near([0, flipped(at, {40})], distance) == []


def test_a_chain_is_one_group():
    assert group_near([0, 2**64 - 1, 0b11, 0b1111, 0b111111], 2) == [[0, 2, 3, 4]]


@pytest.mark.parametrize("kind", ["different", "one ball", "equal"])
def test_a_hundred_thousand_hashes_take_seconds_and_little_memory(kind: str):
    import tracemalloc

    rng = np.random.default_rng(0)
    count = 20_000  # a twenty-fifth of the work of 100,000
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    if kind == "one ball":
        hashes = np.zeros(count, np.uint64)
        for _ in range(6):
            hashes ^= np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
    elif kind == "equal":
        hashes = rng.integers(0, 4, count).astype(np.uint64) * np.uint64(0x1111111111111111)
    values = hashes.tolist()
    started = time.process_time()
    groups = group_near(values, 6)
    assert time.process_time() - started < 4
    assert len(groups) == {"different": 0, "one ball": 1, "equal": 4}[kind]
    tracemalloc.start()
    group_near(values[:5000], 6)
    assert tracemalloc.get_traced_memory()[1] < 5000 * 500
    tracemalloc.stop()


def image(path: str, phash: str, **fields: object) -> AuditedImage:
    facts: dict[str, object] = {"sha256": path, "size_bytes": 1, "width_px": 100, "height_px": 100, **fields}
    return AuditedImage(path=path, phash=phash, format="PNG", mode="RGB", verdict="ok", measures=MEASURES, **facts)


def test_the_largest_of_a_group_is_named_first():
    small, large = image("a", "0" * 16, width_px=50), image("b", "0" * 15 + "7", width_px=900)
    (group,) = group_duplicates([small, large, image("c", "f" * 16)], 6)
    assert (group.kind, group.images, group.widest, group.number) == ("near", ("b", "a"), 3, 1)


def test_images_without_a_hash_are_grouped_by_equal_bytes_alone():
    blank = [image("a", "", sha256="x"), image("b", "", sha256="x"), image("c", "", sha256="y")]
    (group,) = group_duplicates(blank, 16)
    assert (group.kind, group.images) == ("exact", ("a", "b"))
    assert group_duplicates([], 6) == []


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the project")
def test_all_labelled_duplicates_are_found_at_the_default_and_what_is_labelled_none_is_not():
    with (DATA / "duplicates_truth.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13
    member: dict[str, tuple[str, int]] = {}
    for name in ("watercolor_potter", "anime_mikabul"):
        result = audit_folder(DATA / name, AuditSettings.of(StyleSpec(name="x", trigger="t")), silent)
        member |= {f"{name}/{path}": (name, group.number) for group in result.groups for path in group.images}
    for row in rows:
        together = row["a"] in member and member[row["a"]] == member.get(row["b"])
        assert together == row["expected"].startswith(("duplicate", "near-duplicate")), row
    assert len(member) == 22, "nothing but the labelled pairs"


def test_the_distance_is_the_users():
    assert DatasetSection().near_duplicate_distance == 6
    pair = [image("a", "0" * 16), image("b", "0" * 14 + "ff")]
    assert group_duplicates(pair, DatasetSection(near_duplicate_distance=7).near_duplicate_distance) == []
    assert len(group_duplicates(pair, DatasetSection(near_duplicate_distance=8).near_duplicate_distance)) == 1
