"""The model card, the text for Civitai, and the upload: against a server of our own that speaks the hub's protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from export_case import linked_copy, make_run, make_spec, report_of, run_export, trained_record, written_job
from huggingface_hub import ModelCard
from huggingface_hub.utils._http import reset_sessions

from brushset.errors import EnvironmentProblem, UsageError, VerificationFailed
from brushset.protocols import ExportJob
from brushset.spec import BaseSection
from webui_export.model_card import card_text, civitai_text, export_hub
from webui_export.push import push_to_hub, told_captions
from webui_export.verify.card import model_card_faults

TOKEN = "hf_not_a_real_token"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    run_export(make_run(root / "runs", "cartoon"), report_of("cartoon"), root / "export")
    return root / "export" / "hub"


@pytest.fixture
def hub(packed: Path, tmp_path: Path) -> Path:
    return linked_copy(packed, tmp_path / "hub")


class Hub(BaseHTTPRequestHandler):
    """Enough of the hub to create a repository and commit small files; remembers what it was told."""

    told: list[tuple[str, str, dict[str, Any]]]
    commit: list[dict[str, Any]]
    status = 200

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        lines = [json.loads(line) for line in raw.splitlines() if line.strip()]
        self.told.append((self.path, self.headers.get("Authorization", ""), lines[0] if lines else {}))
        if self.status != 200:
            self.answer({"error": "no"}, self.status)
        elif self.path == "/api/repos/create":
            self.answer({"url": f"{self.server_url()}/someone/cartoon"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            self.answer(
                {"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]]}
            )
        elif "/commit/" in self.path:
            self.commit += lines
            self.answer({"commitUrl": f"{self.server_url()}/someone/cartoon/commit/1", "commitOid": "1"})
        else:
            self.answer({}, 404)

    def do_GET(self) -> None:
        self.answer({"error": "none"}, 404)

    def server_url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def go_online(patch: pytest.MonkeyPatch, address: str) -> None:
    """Points the library at an address, in a process that is else offline; it keeps its sessions, and their mode."""
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    patch.setattr("huggingface_hub.constants.ENDPOINT", address)
    reset_sessions()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine, to which the library's own client talks."""
    Hub.told, Hub.commit, Hub.status = [], [], 200
    running = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{running.server_address[1]}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    go_online(monkeypatch, address)
    yield Hub
    reset_sessions()
    running.shutdown()
    running.server_close()
    thread.join()


def make_card(root: Path, report: Any = None, **settings: Any) -> tuple[ExportJob, str]:
    job = written_job(root, **settings)
    export_hub(job, report or report_of("cartoon"))
    return job, (job.folder / "README.md").read_text()


def test_the_card_has_what_the_hub_goes_by(tmp_path: Path) -> None:
    spec = make_spec(base=BaseSection(model="stable-diffusion-v1-5/stable-diffusion-v1-5"))
    job, text = make_card(tmp_path, spec=spec)
    header = ModelCard(text).data.to_dict()
    assert header["license"] == "creativeml-openrail-m"
    assert (header["base_model"], header["base_model_relation"]) == (spec.base.model, "adapter")
    assert (header["instance_prompt"], header["pipeline_tag"]) == ("cartoonstyle", "text-to-image")
    assert [item["output"]["url"] for item in header["widget"]] == ["sample_1.png", "sample_2.png"]
    assert header["widget"][1]["text"] == "cartoonstyle, a lake"
    assert list(model_card_faults(job.folder / "README.md")) == []
    assert "![Evaluation grid](grid.png)" in text
    assert "| | base | base + style words | cartoon 0.8 | Better is | Images | By |" in text
    assert "| CLIP score | – | – | 0.31 (0.20 to 0.40) | higher | 2 | ViT-L/14 |" in text
    assert "To be beaten is base + style words" in text
    assert 'weight_name="cartoon.safetensors"' in text


def test_a_base_on_this_machine_is_named_by_its_file_alone(tmp_path: Path) -> None:
    _, text = make_card(tmp_path, spec=make_spec(base=BaseSection(model="/home/me/dream.safetensors")))
    assert "/home/me" not in text
    assert "base_model" not in ModelCard(text).data.to_dict()
    assert "| Base model | dream.safetensors" in text


def test_what_was_trained_on_random_numbers_says_so_first_and_shows_no_score(tmp_path: Path) -> None:
    job, text = make_card(tmp_path, report_of("cartoon", meaningful=False), base_random=True)
    body = text.split("---\n", 2)[2].strip().splitlines()
    assert body[0] == "# cartoon (SD 1.5)"
    assert body[2].startswith("> **Not a usable style.** Trained on a base model of random numbers")
    assert "0.3123" not in text
    assert "**Do not publish" in civitai_text(job)


def test_civitais_text_has_trigger_weight_base_and_licence(tmp_path: Path) -> None:
    text = civitai_text(written_job(tmp_path))
    for line in (
        "Trigger words: cartoonstyle",
        "Suggested weight: 0.8",
        "License: creativeml-openrail-m",
        "Category: style",
    ):
        assert line in text.splitlines()


def test_the_card_does_without_a_grid(tmp_path: Path) -> None:
    job = written_job(tmp_path)
    (job.run.eval / "grid.png").unlink()
    assert "grid.png" not in card_text(job, report_of("cartoon"))


def test_an_upload_makes_a_private_repository_and_commits_every_file(
    hub: Path, server: type[Hub], capfd: pytest.CaptureFixture[str]
) -> None:
    assert push_to_hub(hub, "someone/cartoon").endswith("/someone/cartoon")
    path, authorization, asked = server.told[0]
    assert (path, asked["name"], asked["organization"], asked["private"]) == (
        "/api/repos/create",
        "cartoon",
        "someone",
        True,
    )
    assert authorization == f"Bearer {TOKEN}", "the hub's own mechanism brings the token"
    files = {line["value"]["path"] for line in server.commit if line["key"] == "file"}
    assert files == {"README.md", "cartoon.safetensors", "grid.png", "sample_1.png", "sample_2.png"}
    assert TOKEN not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("status", "line"), [(401, "the hub does not know you; fix: hf auth login"), (403, "may not write there")]
)
def test_a_refusal_of_the_hub_is_one_line_with_the_fix(status: int, line: str, hub: Path, server: type[Hub]) -> None:
    server.status = status
    with pytest.raises(EnvironmentProblem, match=line) as problem:
        push_to_hub(hub, "someone/cartoon")
    assert "\n" not in str(problem.value)
    assert TOKEN not in str(problem.value)


def test_offline_is_one_clear_line(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(EnvironmentProblem, match="HF_HUB_OFFLINE is set; nothing was uploaded"):
        push_to_hub(hub, "someone/cartoon")
    go_online(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(EnvironmentProblem, match=r"the hub cannot be reached \(ConnectionError\)") as problem:
        push_to_hub(hub, "someone/cartoon")
    assert "\n" not in str(problem.value)
    reset_sessions()


@pytest.mark.parametrize("name", ["cartoon", "a/b/c"])
def test_a_name_that_is_none_is_told(name: str, hub: Path) -> None:
    with pytest.raises(UsageError, match="expected NAME/REPO"):
        push_to_hub(hub, name)


def test_what_was_changed_since_is_not_uploaded(hub: Path, server: type[Hub]) -> None:
    (hub / "grid.png").unlink()
    with pytest.raises(VerificationFailed, match=r"hub: README.md: names grid.png"):
        push_to_hub(hub, "someone/cartoon")
    assert server.told == []


def test_tags_of_captions_that_an_upload_would_tell_are_counted(hub: Path) -> None:
    assert told_captions(hub) == 1, "secret, beside the trigger"


def test_steps_and_epochs_are_counted(tmp_path: Path) -> None:
    _, text = make_card(tmp_path)
    assert "20 steps, 1 epoch, " in text
    assert trained_record("cartoon").epochs == 1
