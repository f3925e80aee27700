"""Weights fetched beforehand: resumed, checked, told; against a server of our own and a hub's cache made by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import orchestrate
from brushset import hub
from brushset.cli.guard import guarded
from brushset.cli.models import wanted_models
from brushset.download import fetch_file
from brushset.errors import VerificationFailed
from brushset.load import build_spec
from eval import weights
from eval.weights import PINNED, Unavailable, find_weights

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT; breaks off after `cut` bytes where that is set, and knows ranges unless `deaf`."""

    asked: list[str | None]
    cut: int | None
    deaf: bool

    def do_GET(self) -> None:
        wanted = None if self.deaf else self.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: self.cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    kind = type("Kind", (Server,), {"asked": [], "cut": None, "deaf": False})
    http = HTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    kind.url = f"http://127.0.0.1:{http.server_address[1]}/weights.pth"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    yield kind
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_file_that_broke_off_is_gone_on_with_where_it_ended(server, tmp_path: Path):
    target = tmp_path / "some" / "weights.pth"
    server.cut = 100_000
    with pytest.raises(OSError, match="100000 of 1280000 bytes came"):
        fetch_file(server.url, target, sha256=SHA256)
    assert not target.exists()
    server.cut = None
    fetch_file(server.url, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]
    assert [path.name for path in target.parent.iterdir()] == ["weights.pth"]


def test_a_server_that_knows_no_ranges_is_asked_for_the_whole(server, tmp_path: Path):
    (tmp_path / "weights.pth.part").write_bytes(b"something older")
    server.deaf = True
    fetch_file(server.url, tmp_path / "weights.pth", sha256=SHA256)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_a_part_that_was_whole_is_checked_and_named(server, tmp_path: Path):
    (tmp_path / "weights.pth.part").write_bytes(CONTENT)
    fetch_file(server.url, tmp_path / "weights.pth", sha256=SHA256)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_another_file_than_was_expected_is_not_kept(server, tmp_path: Path):
    with pytest.raises(VerificationFailed, match=r"SHA-256 is .*…, expected 000000000000…"):
        fetch_file(server.url, tmp_path / "weights.pth", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_pinned_weights_by_url_are_fetched_into_torchs_cache_and_checked_again_there(
    server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    pinned = dataclasses.replace(weights.ALEXNET, url=server.url, sha256=SHA256)
    found = find_weights("alexnet", pinned)
    assert found.file == tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"
    assert found.sha256 == SHA256
    found.file.write_bytes(b"damaged")
    with pytest.raises(
        VerificationFailed, match=r"not the weights of alexnet: .*fix: delete .*orchestrate.py fetch-models"
    ):
        find_weights("alexnet", pinned)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found.file.unlink()
    with pytest.raises(Unavailable, match=r"HF_HUB_OFFLINE is set; fix: orchestrate\.py fetch-models"):
        find_weights("alexnet", pinned)


def hub_cache(root: Path, name: str, files: dict[str, bytes]) -> Path:
    """A repository as the hub's cache lays it out: large files in blobs named by their SHA-256."""
    folder = root / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    (folder / "blobs").mkdir(parents=True)
    for path, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / path).symlink_to(blob)
    return snapshot


@pytest.fixture
def repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """What the hub has; everything else is not to be had. Revisions asked for stand in `asked`."""
    have: dict[str, Path] = {}

    def snapshot_download(model: str, *, revision: str | None, allow_patterns: Sequence[str], **_: object) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        if model not in have:
            raise LocalEntryNotFoundError(f"no {model}")
        assert allow_patterns
        return str(have[model])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    return have


def test_a_pinned_repository_is_held_against_its_hash(tmp_path: Path, repositories: dict[str, Path]):
    content = b"clip" * 100
    repositories[weights.CLIP.name] = hub_cache(tmp_path, weights.CLIP.name, {"model.safetensors": content})
    pinned = dataclasses.replace(weights.CLIP, sha256=hashlib.sha256(content).hexdigest())
    assert find_weights(pinned.name, pinned).folder == repositories[pinned.name]
    with pytest.raises(VerificationFailed, match="not the weights of openai/clip"):
        find_weights(weights.CLIP.name, weights.CLIP)
    other = dataclasses.replace(weights.CLIP, sha256="0" * 64)
    repositories["else/clip"] = repositories[pinned.name]
    assert find_weights("else/clip", other).sha256 == pinned.sha256, "of another id no hash is known"
    with pytest.raises(Unavailable, match=r"facebook/dinov2-large is not on this machine.*fetch-models"):
        find_weights(weights.DINOV2.name, weights.DINOV2)


def test_the_default_style_wants_the_base_a_captioner_and_every_network_of_evaluation():
    names = [wanted.name for wanted in wanted_models([build_spec([("x", {"name": "ink", "trigger": "ink"})])])]
    assert names[:2] == ["stable-diffusion-v1-5/stable-diffusion-v1-5", "Salesforce/blip-image-captioning-large"]
    assert "pharmapsychotic/ci-preprocess" in names
    assert {pinned.name for pinned in PINNED} <= set(names)
    tagged = build_spec([("x", {"name": "ink", "trigger": "ink", "caption": {"captioner": "wd14"}})])
    assert "SmilingWolf/wd-vit-tagger-v3" in [wanted.name for wanted in wanted_models([tagged])]
    smoke = build_spec([("x", {"name": "ink", "trigger": "ink", "smoke": True, "base": {"model": "random:tiny"}})])
    kept = {wanted.name for wanted in wanted_models([smoke])}
    assert not kept & {pinned.name for pinned in PINNED}


SMALL = ("--set", "caption.captioner=trigger-only", "--base-model", "random:tiny")


def test_the_command_fetches_what_it_can_and_names_the_rest_in_one_line(
    tmp_path: Path, repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    content = b"dino" * 100
    repositories[weights.DINOV2.name] = hub_cache(tmp_path, weights.DINOV2.name, {"model.safetensors": content})
    sha256 = hashlib.sha256(content).hexdigest()
    pinned = [dataclasses.replace(each, sha256=sha256) if each is weights.DINOV2 else each for each in PINNED]
    monkeypatch.setattr("brushset.cli.models.PINNED", pinned)
    assert guarded(orchestrate.app, ["fetch-models", "--for", "cartoon", *SMALL]) == 4
    told = capsys.readouterr()
    assert "facebook/dinov2-large" in told.out
    assert "checked" in told.out
    assert "Apache-2.0" in told.out
    errors = [line for line in told.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "4 of 5 models are neither on this machine nor to be fetched now: openai/clip-vit-large-patch14" in errors[0]
    assert "fix: go online and call this again" in errors[0]


def test_a_damaged_blob_is_found_by_its_name_and_dry_runs_fetch_nothing(
    tmp_path: Path, repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    snapshot = hub_cache(tmp_path, weights.CSD.name, {"pytorch_model.bin": b"csd" * 100})
    repositories[weights.CSD.name] = snapshot
    blob = (snapshot / "pytorch_model.bin").resolve()
    blob.write_bytes(b"rot")
    pinned = dataclasses.replace(weights.CSD, sha256=hashlib.sha256(b"rot").hexdigest())
    monkeypatch.setattr("brushset.cli.models.PINNED", [pinned])
    assert guarded(orchestrate.app, ["fetch-models", "--for", "cartoon", *SMALL]) == 6
    assert "its publisher's" in capsys.readouterr().err
    blob.unlink()
    seen: list[bool] = []
    monkeypatch.setattr(hub, "fetch_repository", lambda *_, **__: pytest.fail("by another name"))
    monkeypatch.setattr("eval.weights.fetch_repository", lambda *_, **__: seen.append(_offline()) or snapshot)
    assert guarded(orchestrate.app, ["fetch-models", "--for", "cartoon", "--dry-run", "--json", *SMALL]) == 0
    assert seen == [True]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["event"], line["name"], line["state"]) for line in lines] == [("model", weights.CSD.name, "missing")]


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
