"""The trainers. A new one is a file here and a line in ENGINES; it offers `protocols.Engine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from brushset.errors import EnvironmentProblem, UsageError
from brushset.kohya.source import PINNED_VERSION, find_source
from brushset.protocols import Engine, PackingEngine
from brushset.spec import StyleSpec


def _kohya() -> Engine:
    from brushset.engines.kohya import KohyaEngine

    return KohyaEngine()


def _native() -> Engine:
    from brushset.engines.native import NativeEngine

    return NativeEngine()


ENGINES: Mapping[str, Callable[[], Engine]] = {"kohya": _kohya, "native": _native}


def make_engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        UsageError: there is none; "auto" must have been settled before.
    """
    if name not in ENGINES:
        raise UsageError(f'[train] engine = "{name}" is no engine; fix: one of {", ".join(ENGINES)}')
    return ENGINES[name]()


def packs(name: str) -> bool:
    """Whether the engine of that name trains several styles in one pass."""
    return name == "native"


def make_packing_engine(name: str) -> PackingEngine:
    """The engine of that name, which `packs`."""
    from brushset.engines.native import NativeEngine

    assert packs(name), name
    return NativeEngine()


def choose_engine(wanted: str, *, may_fetch: bool = True, processes: int = 1) -> tuple[str, str]:
    """Settles "auto": kohya where sd-scripts is there or can be fetched within seconds, else native.

    Args:
        wanted: "auto", or an engine's name, which is then taken.
        may_fetch: false asks no network and writes nothing.
        processes: GPUs that one training is spread over, which native cannot.

    Returns:
        The engine's name, and why in one line.

    Raises:
        EnvironmentProblem: kohya is wanted, and sd-scripts can be neither found nor fetched.
        UsageError: native would train, on several GPUs.
    """
    if wanted == "native":
        refuse_several(processes)
        return "native", "as asked for"
    try:
        source = find_source(fetch=may_fetch)
    except EnvironmentProblem as error:
        if wanted == "auto":
            refuse_several(processes, why=f", and sd-scripts is not there ({error})")
        if wanted == "kohya" and may_fetch:
            raise
        if wanted == "kohya":
            return "kohya", f"as asked for, but {error}"
        return "native", str(error)
    found = f"sd-scripts {source.commit[:12]} at {source.folder}"
    return "kohya", f"as asked for: {found}" if wanted == "kohya" else found


def refuse_several(processes: int, why: str = "") -> None:
    """Raises UsageError where the native engine would have to spread one training over several GPUs."""
    if processes > 1:
        raise UsageError(
            f"[train] processes = {processes}: the native engine trains a style on one GPU{why}; fix: --engine kohya, "
            "processes = 1, or --parallel with a style a GPU"
        )


def sd_scripts_state() -> str:
    """In one line: where sd-scripts is and at which commit, or why it is not there. Asks no network."""
    try:
        source = find_source(fetch=False)
    except EnvironmentProblem as error:
        return f"absent, so engine auto would fetch {PINNED_VERSION} or take native: {error}"
    return f"{source.commit[:12]} at {source.folder}" + (f"; {source.note}" if source.note else "")


def planned_command(spec: StyleSpec) -> list[str]:
    """The argv that a run would start, for a plan: with the base as named, and `‹…›` for what is not known yet."""
    if spec.train.engine != "kohya":
        return []
    from brushset.kohya.command import Launch, build_command
    from brushset.kohya.source import SCRIPT
    from brushset.manifest import device_name
    from brushset.paths import SUBMODULE

    try:
        script = find_source(fetch=False).script
    except EnvironmentProblem:
        script = SUBMODULE / SCRIPT
    overrides = {
        "pretrained_model_name_or_path": spec.base.model,
        "tokenizer_cache_dir": "‹tokenizer of the base›",
        "output_dir": "‹folder of the attempt›",
    }
    cpu = device_name().startswith("CPU")
    processes = spec.train.processes
    return build_command(Launch(script, spec.train.mixed_precision, cpu and processes == 1, overrides, processes))
