"""`--install`: finds the UI by what lies there, replaces nothing, and follows no link out of the folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from export_case import linked_copy, make_run, report_of, run_export

from brushset.errors import UsageError
from brushset.files import list_files
from webui_export.install import find_ui, install_package


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed")
    make_run(root / "runs", "anime")
    run_export(make_run(root / "runs", "cartoon"), report_of("cartoon", "anime"), root / "export")
    return root / "export"


def make_ui(root: Path, *folders: str, files: tuple[str, ...] = ()) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("")
    return root


def files_below(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in list_files(root)]


@pytest.mark.parametrize(
    ("folders", "marks", "name"),
    [
        (("models/Lora",), (), "AUTOMATIC1111 or Forge"),
        (("models/loras", "models/checkpoints"), (), "ComfyUI"),
        (("Models/Lora",), (), "SwarmUI"),
        (("models",), ("webui.py", "launch.py"), "AUTOMATIC1111 or Forge"),
        (("comfy",), ("main.py",), "ComfyUI"),
    ],
)
def test_a_ui_is_known_by_what_lies_there(
    folders: tuple[str, ...], marks: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    assert find_ui(make_ui(tmp_path / "ui", *folders, files=marks)).name == name


def test_what_is_no_ui_is_told_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="looked for models/loras, Models/Lora, models/Lora"):
        find_ui(make_ui(tmp_path / "photos", "2024"))
    with pytest.raises(UsageError, match="no such folder"):
        find_ui(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"did you mean .*bundle/ComfyUI\?"):
        find_ui(make_ui(tmp_path / "bundle", "ComfyUI/models/loras"))
    with pytest.raises(UsageError, match=r"InvokeAI takes no files.*Model Manager"):
        find_ui(make_ui(tmp_path / "invoke", "models", files=("invokeai.yaml",)))


def test_a1111_gets_three_files_and_the_second_time_none(export: Path, tmp_path: Path) -> None:
    ui = make_ui(tmp_path / "it's a web ui", "models/Lora")
    done = install_package(export, ui, replace=False)
    names = [f"models/Lora/cartoon.{suffix}" for suffix in ("json", "preview.png", "safetensors")]
    assert (sorted(done.written), list(done.there), list(done.warnings)) == (names, [], [])
    assert files_below(ui) == names
    assert all((ui / name).read_bytes() == (export / "a1111" / name).read_bytes() for name in names)
    assert (ui / names[2]).stat().st_ino != (export / "a1111" / names[2]).stat().st_ino, "a copy, no link into the run"
    again = install_package(export, ui, replace=False)
    assert (list(again.written), sorted(again.there)) == ([], names)


def test_comfyui_gets_loras_and_workflows_and_no_more(export: Path, tmp_path: Path) -> None:
    ui = make_ui(tmp_path / "ComfyUI", "models/loras")
    install_package(export, ui, replace=False)
    assert files_below(ui) == [
        "models/loras/anime.safetensors", "models/loras/cartoon.preview.png", "models/loras/cartoon.safetensors",
        "user/default/workflows/cartoon.json", "user/default/workflows/cartoon_with_anime.json",
    ]  # fmt: skip


def test_another_file_of_that_name_stops_all_of_it_before_the_first_is_written(export: Path, tmp_path: Path) -> None:
    ui = make_ui(tmp_path / "ui", "models/Lora")
    (ui / "models/Lora/cartoon.json").write_text("mine")
    (ui / "models/Lora/cartoon.safetensors").write_bytes(b"mine too")
    with pytest.raises(UsageError) as refusal:
        install_package(export, ui, replace=False)
    lines = str(refusal.value).splitlines()
    assert len(lines) == 2
    assert all("is there already, and is another file; fix: --replace" in line for line in lines)
    assert files_below(ui) == ["models/Lora/cartoon.json", "models/Lora/cartoon.safetensors"]
    assert (ui / "models/Lora/cartoon.json").read_text() == "mine"
    assert len(install_package(export, ui, replace=True).written) == 3


def test_the_same_tensors_under_another_header_are_told_as_that(export: Path, tmp_path: Path) -> None:
    from brushset.lora.metadata import read_metadata, rewrite_metadata

    ui = make_ui(tmp_path / "ui", "models/Lora")
    source = export / "a1111/models/Lora/cartoon.safetensors"
    rewrite_metadata(source, ui / "models/Lora/cartoon.safetensors", read_metadata(source) | {"mine": "1"})
    with pytest.raises(UsageError, match="holds the same tensors under another header; fix: --replace"):
        install_package(export, ui, replace=False)


def test_another_styles_file_that_came_along_is_left_as_its_own_export_wrote_it(export: Path, tmp_path: Path) -> None:
    from brushset.lora.metadata import read_metadata, rewrite_metadata

    ui = make_ui(tmp_path / "ui", "models/loras")
    source, target = export / "comfyui/models/loras/anime.safetensors", ui / "models/loras/anime.safetensors"
    rewrite_metadata(source, target, read_metadata(source) | {"modelspec.thumbnail": "x"})
    before = target.read_bytes()
    assert "models/loras/anime.safetensors" in install_package(export, ui, replace=False).there
    assert target.read_bytes() == before


def test_a_link_that_leads_out_is_not_followed(export: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    ui = make_ui(tmp_path / "ui", "models")
    (ui / "models/Lora").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(UsageError, match=r"is a link to .*elsewhere, outside of"):
        install_package(export, ui, replace=True)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_link_within_the_folder_is_followed(export: Path, tmp_path: Path) -> None:
    ui = make_ui(tmp_path / "ui", "models", "disk2/loras")
    (ui / "models/Lora").symlink_to(ui / "disk2/loras", target_is_directory=True)
    install_package(export, ui, replace=False)
    assert len(files_below(ui / "disk2")) == 3


def test_a_link_in_a_files_place_is_never_written_through(export: Path, tmp_path: Path) -> None:
    ui = make_ui(tmp_path / "ui", "models/Lora")
    (tmp_path / "precious.json").write_text("precious")
    (ui / "models/Lora/cartoon.json").symlink_to(tmp_path / "precious.json")
    for replace in (False, True):
        with pytest.raises(UsageError, match=r"cartoon.json: is a link to .*precious.json; fix: remove it"):
            install_package(export, ui, replace=replace)
    assert (tmp_path / "precious.json").read_text() == "precious"


def test_what_would_hide_the_lora_there_is_told(export: Path, tmp_path: Path) -> None:
    ui = make_ui(tmp_path / "ui", "models/Lora/old")
    source = export / "a1111/models/Lora/cartoon.safetensors"
    shutil.copy(source, ui / "models/Lora/old/Cartoon.safetensors")
    shutil.copy(source, ui / "models/Lora/best-000004.safetensors")
    (ui / "models/Lora/broken.safetensors").write_bytes(b"?")
    done = install_package(export, ui, replace=False)
    assert len(done.warnings) == 2
    assert "best-000004.safetensors: is called cartoon too" in done.warnings[0]
    assert "Cartoon.safetensors: is called Cartoon too" in done.warnings[1]


def test_a_ui_whose_package_was_not_made_is_told(export: Path, tmp_path: Path) -> None:
    some = linked_copy(export, tmp_path / "some")
    shutil.rmtree(some / "comfyui")
    with pytest.raises(UsageError, match="is ComfyUI's, which was not packed; fix: --to comfyui"):
        install_package(some, make_ui(tmp_path / "ui", "models/loras"), replace=False)
    shutil.rmtree(some / "a1111")
    done = install_package(some, make_ui(tmp_path / "webui", "models/Lora"), replace=False)
    assert (done.target, len(done.written)) == ("forge", 3)
