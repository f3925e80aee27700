"""Several trainings in one pack of models, from loading to the end of each.

What takes wall time is told by phase: imports, load models, latents, training. Those that train together share the first
two, and each one's seconds are the wall time that it waited for, so they do not add up over styles.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from brushset.errors import BrushsetError, EnvironmentProblem, TrainerFailed
from brushset.native.saving import States
from brushset.native.training import Training
from brushset.protocols import Emit
from brushset.records import Trained

if TYPE_CHECKING:
    from brushset.native.latents import CachedLatents
    from brushset.native.loop import Update
    from brushset.native.schedule import Schedule
    from brushset.native.session import Session


def train_at_once(pack: Mapping[int, Training], device: str | None) -> Iterator[tuple[int, Trained | BrushsetError]]:
    """Trains jobs that share their models, on `device` or the GPU where there is one. Yields each under its key as it
    ends; what fails all of them is each one's failure.
    """
    left = dict(pack)
    with ExitStack() as stack:
        for training in pack.values():
            stack.enter_context(training)
        try:
            for index, result in _Attempt(pack, device).run():
                del left[index]
                yield index, result
        except BrushsetError as error:
            for index, training in left.items():
                training.fail(error)
                yield index, error


class _Attempt:
    """One start of them all."""

    def __init__(self, trainings: Mapping[int, Training], device: str | None) -> None:
        self._trainings = trainings
        self._first = next(iter(trainings.values()))
        self._wanted = device
        self._phases: dict[int, dict[str, float]] = defaultdict(dict)
        self._begun = time.monotonic()

    def run(self) -> Iterator[tuple[int, Trained | BrushsetError]]:
        with self._phase("imports"):
            self._device = self._prepare()
        held: dict[int, CachedLatents] = {}
        for index, ending in self._encode():
            if isinstance(ending, BrushsetError):
                yield index, ending
            else:
                held[index] = ending
        if held:
            with self._phase("load models"):
                sessions = self._open(held)
            yield from self._train(sessions)

    def _prepare(self) -> str:
        """Imports what takes seconds to, and settles the device."""
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401 - here, so that their time is told apart
        from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401 - see above

        from brushset.native.session import check_device

        device = self._wanted or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(self._first.settings.training, device)
        torch.set_float32_matmul_precision("high" if self._first.job.spec.train.tf32 else "highest")
        torch.backends.cudnn.benchmark = device != "cpu"  # a few shapes, thousands of times each
        return device

    def _encode(self) -> Iterator[tuple[int, CachedLatents | BrushsetError]]:
        """Caches the latents of each; the VAE is let go of after the last."""
        from brushset.bases.load import load_components
        from brushset.native.heldout import encode_heldout
        from brushset.native.latents import encode_images

        recipe = self._first.settings.training
        # On a CPU float32 is also the faster one: bfloat16 took ten times as long to encode with.
        dtype = _dtype("no" if recipe.no_half_vae or self._device == "cpu" else recipe.mixed_precision)
        with self._phase("load models"):
            vae = load_components(self._first.job.base, device=self._device, dtype=dtype, parts=("vae",)).vae
        for index, training in self._trainings.items():

            def tell(done: int, total: int, emit: Emit = training.emit) -> None:
                emit("progress", what="latents", done=done, total=total)

            try:
                with self._phase("latents", [index]):
                    latents = encode_images(training.images, vae, training.settings, tell)
                    if training.heldout_images is not None:
                        training.heldout = encode_heldout(training.heldout_images, vae, training.settings)
            except BrushsetError as error:
                training.fail(error)
                yield index, error
            else:
                yield index, latents

    def _open(self, held: Mapping[int, CachedLatents]) -> dict[int, Session]:
        """Loads the base once, and puts an adapter for each into it."""
        from brushset.bases.load import load_components
        from brushset.native.session import Style, open_pack

        parts = ("unet", "text_encoder", "tokenizer")
        dtype = _dtype(self._first.settings.training.mixed_precision)
        models = load_components(self._first.job.base, device=self._device, dtype=dtype, parts=parts)
        trainings = [(self._trainings[index], latents) for index, latents in held.items()]
        styles = [Style(each.settings, each.images, each.length, latents, each.heldout) for each, latents in trainings]
        train = self._first.job.spec.train
        sessions = open_pack(styles, models, cuda_graphs=train.cuda_graphs, compiled=train.compile)
        return dict(zip(held, sessions, strict=True))

    def _train(self, sessions: Mapping[int, Session]) -> Iterator[tuple[int, Trained | BrushsetError]]:
        from brushset.native.compiling import compile_seconds
        from brushset.native.loop import open_schedule, run_together

        states = States([self._trainings[index] for index in sessions])
        beside = f", beside {len(sessions) - 1} others" if len(sessions) > 1 else ""
        for index, session in sessions.items():
            training = self._trainings[index]
            about = f"{len(training.images.images)} images, {training.length.steps} steps, device {self._device}"
            training.tracker.line(f"native: {about}{beside}")
            training.start(session, states.save)
            if training.ended:
                yield index, self._result(index)
        indices = {id(session): index for index, session in sessions.items()}
        begun = time.monotonic()
        schedule = open_schedule(list(sessions.values()))
        self._forecast([index for index in sessions if not self._trainings[index].ended], sessions, schedule)
        updates = run_together(list(sessions.values()), schedule=schedule, at_rest=states.at_rest)
        for session, told in states.before_a_stop(updates):
            index = indices[id(session)]
            training = self._trainings[index]
            if training.failure is None:
                if (failure := _pass_on(training, session, told)) is not None:
                    yield index, failure
                elif training.ended:
                    self._note("training", [index], time.monotonic() - begun)
                    if training.job.spec.train.compile:
                        self._note("compilation, within training", [index], compile_seconds())
                    yield index, self._result(index)

    def _forecast(self, indices: Sequence[int], sessions: Mapping[int, Session], schedule: Schedule) -> None:
        """Says of several how many passes they take and how much memory: once to whoever watches, and in each one's log."""
        from brushset.native.loop import batches_done
        from brushset.native.memory import describe_memory

        if len(indices) < 2:
            return
        going = [sessions[index] for index in indices]
        done = {session.row: batches_done(session) for session in going}
        batches, passes = schedule.batches(done), schedule.count(done)
        fewer = f"{100 * (batches - passes) / batches:.0f} % fewer"
        for text in (f"{len(going)} styles: {batches} batches in {passes} passes, {fewer}", describe_memory(going)):
            self._trainings[indices[0]].emit("note", text=text)
            for index in indices:
                self._trainings[index].tracker.line(text)

    def _result(self, index: int) -> Trained:
        device = _device_name(self._device)
        trained = self._trainings[index].result(device=device, seconds=time.monotonic() - self._begun)
        return trained.model_copy(update={"phases": self._phases[index]})

    @contextmanager
    def _phase(self, name: str, indices: Iterable[int] = ()) -> Iterator[None]:
        """Tells how long it took, of those given or of all."""
        begun = time.monotonic()
        yield
        self._note(name, list(indices) or list(self._trainings), time.monotonic() - begun)

    def _note(self, name: str, indices: Iterable[int], seconds: float) -> None:
        for index in indices:
            training, phases = self._trainings[index], self._phases[index]
            phases[name] = round(phases.get(name, 0.0) + seconds, 3)
            if training.failure is None:
                training.emit("phase", what=name, seconds=round(seconds, 3))


def _pass_on(training: Training, session: Session, told: Update | TrainerFailed) -> BrushsetError | None:
    """Writes down one update; a style whose files cannot be written ends there, the others go on. Returns what ended it."""
    try:
        if isinstance(told, TrainerFailed):
            raise told
        training.tell(told)
    except OSError as error:
        training.fail(EnvironmentProblem(f"{error.filename or training.job.output_dir}: {error.strerror or error}"))
    except BrushsetError as error:
        training.fail(error)
    session.stopped = training.ended or training.failure is not None
    return training.failure


def _dtype(precision: str) -> Any:
    import torch

    return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device.startswith("cuda") else device
