"""Claims about GPUs: ids, what children see, and whether several styles fit. nvidia-smi is a stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from programs import put_on_path

from brushset.cli import devices
from brushset.cli.devices import (
    Gpu,
    list_gpus,
    memory_warnings,
    parse_gpus,
    require_gpus,
    slot_environment,
    use_gpus,
    wanted_gb,
)
from brushset.cli.options import Options, load_spec
from brushset.errors import EnvironmentProblem, UsageError
from brushset.load import build_spec
from brushset.spec import StyleSpec
from brushset.trees import available_cores

TWO = (Gpu("0", "GPU-aa", "H100", 80.0), Gpu("1", "GPU-bb", "H100", 40.0))


def make_spec(**train: Any) -> StyleSpec:
    return build_spec([("test", {"name": "ink", "trigger": "inkstyle", "train": train})])


def test_ids_are_numbers_or_uuids() -> None:
    assert parse_gpus(None) == ()
    assert parse_gpus("0, 1") == ("0", "1")
    assert parse_gpus("GPU-3f2a-11,MIG-ab/1/0") == ("GPU-3f2a-11", "MIG-ab/1/0")
    for text in ("", "0,", "a", "0;1", "-1", "0 1", "cuda:0"):
        with pytest.raises(UsageError, match="is no GPU; fix: ids as nvidia-smi lists them"):
            parse_gpus(text)
    with pytest.raises(UsageError, match="named twice"):
        parse_gpus("1,1")


def test_nvidia_smi_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer = "0, GPU-aa, NVIDIA H100 80GB HBM3, 81000\\n1, GPU-bb, NVIDIA H100 80GB HBM3, [N/A]"
    put_on_path(monkeypatch, tmp_path, "nvidia-smi", f"print('{answer}')")
    found = list_gpus()
    assert [(gpu.index, gpu.uuid, gpu.name) for gpu in found] == [
        ("0", "GPU-aa", "NVIDIA H100 80GB HBM3"),
        ("1", "GPU-bb", "NVIDIA H100 80GB HBM3"),
    ]
    assert [round(gpu.free_gb, 1) for gpu in found] == [79.1, 0.0]
    put_on_path(monkeypatch, tmp_path, "nvidia-smi", "import sys; print('no driver'); sys.exit(9)")
    assert list_gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert list_gpus() == []


def test_gpus_restrict_what_is_seen_and_count_as_nvidia_smi_does() -> None:
    environ: dict[str, str] = {}
    use_gpus((), environ, ())
    assert environ == {}
    use_gpus(("1", "0"), environ, TWO)
    assert environ == {"CUDA_VISIBLE_DEVICES": "1,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    environ = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    use_gpus(("1",), environ, TWO)
    assert environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


@pytest.mark.parametrize(
    ("ids", "visible", "seen", "said"),
    [
        (("0",), "", (), "no NVIDIA GPU is seen here"),
        (("0", "2"), "", TWO, r"no GPU 2 here; there are 0 \(H100\), 1 \(H100\)"),
        (("GPU-cc",), "", TWO, "no GPU GPU-cc here"),
        (("0",), "1", TWO, "CUDA_VISIBLE_DEVICES=1 keeps GPU 0 from this process; fix: --gpus out of 1"),
    ],
)
def test_a_gpu_that_cannot_be_had_is_named(
    ids: tuple[str, ...], visible: str, seen: tuple[Gpu, ...], said: str
) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    with pytest.raises(EnvironmentProblem, match=said):
        use_gpus(ids, environ, seen)
    assert environ == ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})


def test_more_processes_than_gpus_are_refused_before_any_work() -> None:
    require_gpus(1, {}, ())
    require_gpus(2, {}, TWO)
    require_gpus(2, {"CUDA_VISIBLE_DEVICES": "0,1"}, TWO)
    for environ, seen, count in (({}, (), 0), ({}, TWO[:1], 1), ({"CUDA_VISIBLE_DEVICES": "1"}, TWO, 1)):
        with pytest.raises(UsageError, match=f"processes = 2 wants as many GPUs, and {count} are seen here"):
            require_gpus(2, environ, seen)


def test_slots_take_gpus_in_turn_and_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "available_cores", lambda: 16)
    slots = [slot_environment(slot, 3, gpus=("0", "1"), environ={"A": "b"}) for slot in range(3)]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1", "0"]
    assert {slot["OMP_NUM_THREADS"] for slot in slots} == {"5"}
    assert all(slot["A"] == "b" for slot in slots)
    assert slot_environment(0, 40, gpus=(), environ={})["OMP_NUM_THREADS"] == "1"
    assert slot_environment(0, 40, gpus=(), environ={"OMP_NUM_THREADS": "7"}) == {"OMP_NUM_THREADS": "7"}
    assert available_cores() >= 1


def test_the_number_of_gpus_is_a_setting_and_their_ids_are_not() -> None:
    one, both, others = (load_spec("cartoon", Options(gpus=ids), images=None) for ids in ("0", "0,1", "2,3"))
    assert (one.train.processes, both.train.processes) == (1, 2)
    assert both == others
    assert one == load_spec("cartoon", Options(), images=None)
    assert load_spec("cartoon", Options(gpus="0,1", parallel=2), images=None).train.processes == 1


def test_what_does_not_fit_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def free(gigabytes: float) -> None:
        memory = type("Memory", (), {"available": gigabytes * 1e9})
        monkeypatch.setattr(devices.psutil, "virtual_memory", lambda: memory)

    specs = [make_spec(mixed_precision="no")] * 3
    free(1000)
    assert memory_warnings(specs, 3, gpus=(), seen=()) == []
    assert memory_warnings([], 3, gpus=(), seen=()) == []
    free(10)
    (line,) = memory_warnings(specs, 2, gpus=(), seen=())
    assert line.startswith("2 styles at once want about 41 GB of main memory, 10 GB are free; fix:")
    free(1000)
    assert memory_warnings(specs, 3, gpus=("0", "1"), seen=TWO) == []
    (line,) = memory_warnings(specs, 3, gpus=("1",), seen=TWO)
    assert line.startswith("3 styles at once on a GPU want about 52 GB, 40 GB are free there")


def test_checkpointing_and_small_images_want_less() -> None:
    whole = wanted_gb(make_spec(), cuda=True)[1]
    assert wanted_gb(make_spec(gradient_checkpointing=True), cuda=True)[1] < whole
    assert wanted_gb(make_spec(batch_size=1), cuda=True)[1] < whole
    assert wanted_gb(make_spec(), cuda=False)[1] == 0.0


def test_the_doctor_names_gpus_and_mps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from brushset.cli import doctor

    assert doctor._gpus() == [] or list_gpus()
    put_on_path(monkeypatch, tmp_path, "nvidia-smi", "print('0, GPU-aa, NVIDIA H100, 81000')")
    gpus, mps = doctor._gpus()
    assert gpus.found == "0: NVIDIA H100, 79 GB free"
    assert mps.found == "nvidia-cuda-mps-control is not on PATH"
    put_on_path(monkeypatch, tmp_path, "nvidia-cuda-mps-control", "")
    assert doctor._gpus()[1].found.endswith("nvidia-cuda-mps-control, for --parallel N --mps")
