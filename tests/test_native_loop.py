"""Training itself: deterministic, in the right arithmetic, and learning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from native_case import make_run, settings_of, write_pair

from brushset.bases.load import load_components
from brushset.errors import TrainerFailed, UsageError
from brushset.native.dataset import Length, epoch_batches, plan_length, read_training_set
from brushset.native.latents import encode_images
from brushset.native.loop import open_schedule, run_updates
from brushset.native.session import Session, check_device, open_session
from brushset.paths import RunPaths
from brushset.records import BaseFile


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    return make_run(tmp_path_factory.mktemp("run"))


def begin(
    run: RunPaths, base: BaseFile, dataset: dict[str, Any] | None = None, training: dict[str, Any] | None = None
) -> tuple[Session, Length]:
    """A session on the run's images, with the changed pair."""
    write_pair(run, dataset or {}, training or {})
    settings = settings_of(run)
    images = read_training_set(settings)
    models = load_components(base)
    latents = encode_images(images, models.vae, settings, lambda *_: None)
    length = plan_length(images.plan, settings.dataset, settings.training)
    return open_session(settings, images, length, latents, models), length


def gradients(session: Session) -> dict[str, torch.Tensor]:
    found = session.adapter.gradients()
    return {name: value.clone() for name, value in found.items() if name.endswith("lora_up.weight")}


def test_two_runs_of_one_seed_make_equal_bytes_and_another_seed_does_not(run: RunPaths, tiny_base: BaseFile) -> None:
    changes = {"caption_dropout_rate": 0.3, "shuffle_caption": True, "flip_aug": True}
    states, losses = [], []
    for seed in (7, 7, 8):
        session, length = begin(run, tiny_base, changes, {"seed": seed, "max_train_epochs": 1})
        losses.append([update.loss for update in run_updates(session, length)])
        states.append(session.adapter.state(None))
    assert losses[0] == losses[1] != losses[2]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"],
                           states[2]["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"])  # fmt: skip


def test_updates_are_numbered_to_the_planned_end_and_every_layer_moves(run: RunPaths, tiny_base: BaseFile) -> None:
    session, length = begin(run, tiny_base, training={"lr_scheduler": "cosine", "lr_warmup_steps": 1})
    updates = list(run_updates(session, length))
    assert (length.batches_per_epoch, length.steps) == (3, 6)
    assert [update.step for update in updates] == [1, 2, 3, 4, 5, 6]
    assert [update.epoch for update in updates] == [1, 1, 1, 2, 2, 2]
    assert [update.ends_epoch for update in updates] == [False, False, True] * 2
    assert updates[0].rates == {"textencoder": 0.0, "unet": 0.0}
    assert updates[1].rates == {"textencoder": 5e-4, "unet": 1e-3}
    assert updates[5].average == pytest.approx(sum(update.loss for update in updates[3:]) / 3)
    assert all(layer.up.abs().max() > 0 for layer in session.adapter.layers.values())


def test_steps_end_training_in_mid_epoch(run: RunPaths, tiny_base: BaseFile) -> None:
    session, length = begin(run, tiny_base, training={"max_train_epochs": None, "max_train_steps": 4})
    assert open_schedule([session]).count({session.row: 0}) == 4
    updates = list(run_updates(session, length))
    assert (updates[-1].step, updates[-1].epoch, updates[-1].ends_epoch) == (4, 2, False)


def test_the_loss_of_a_repeated_batch_falls(run: RunPaths, tiny_base: BaseFile) -> None:
    session, _ = begin(run, tiny_base, training={"unet_lr": 1e-2, "text_encoder_lr": 1e-2, "network_dim": 16})
    batch = epoch_batches(session.images, session.settings.dataset, seed=7, epoch=1)[0]
    losses = []
    for _ in range(20):
        losses.append(session.backward(batch, 0).item())
        session.update()
    assert losses[-1] < 0.9 * losses[0]


def test_accumulated_gradients_are_the_mean_of_the_batches(run: RunPaths, tiny_base: BaseFile) -> None:
    apart = []
    for number in range(2):
        session, _ = begin(run, tiny_base)
        batch = epoch_batches(session.images, session.settings.dataset, seed=7, epoch=1)[number]
        session.backward(batch, number)
        apart.append(gradients(session))
    session, length = begin(run, tiny_base, training={"gradient_accumulation_steps": 2})
    assert (length.steps_per_epoch, length.steps) == (2, 4)
    for number in range(2):
        session.backward(epoch_batches(session.images, session.settings.dataset, seed=7, epoch=1)[number], number)
    together = gradients(session)
    assert len(together) == 264
    for name, value in together.items():
        assert torch.allclose(value, (apart[0][name] + apart[1][name]) / 2, atol=1e-7)


def test_an_accumulated_epoch_ends_with_its_short_group(run: RunPaths, tiny_base: BaseFile) -> None:
    session, length = begin(run, tiny_base, training={"gradient_accumulation_steps": 2, "max_train_epochs": 1})
    assert open_schedule([session]).count({session.row: 0}) == 3
    updates = list(run_updates(session, length))
    assert [update.ends_epoch for update in updates] == [False, True]
    assert updates[-1].average == pytest.approx((2 * updates[0].loss + updates[1].loss) / 3)


def test_gradient_checkpointing_changes_memory_and_not_gradients(run: RunPaths, tiny_base: BaseFile) -> None:
    found = []
    for checkpointing in (False, True):
        session, _ = begin(run, tiny_base, training={"gradient_checkpointing": checkpointing})
        session.backward(epoch_batches(session.images, session.settings.dataset, seed=7, epoch=1)[0], 0)
        found.append(gradients(session))
    assert len(found[0]) == len(found[1]) == 264
    assert all(torch.allclose(value, found[1][name], atol=1e-7) for name, value in found[0].items())


def test_plain_attention_agrees_with_sdpa(run: RunPaths, tiny_base: BaseFile) -> None:
    losses = []
    for sdpa in (True, False):
        session, _ = begin(run, tiny_base, training={"sdpa": sdpa})
        batch = epoch_batches(session.images, session.settings.dataset, seed=7, epoch=1)[0]
        losses.append(session.backward(batch, 0).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("changes", [{"network_train_unet_only": True}, {"text_encoder_lr": [0.0]}])
def test_text_that_is_not_trained_is_encoded_once(run: RunPaths, tiny_base: BaseFile, changes: dict[str, Any]) -> None:
    session, length = begin(run, tiny_base, {"caption_dropout_rate": 0.5}, {**changes, "max_train_epochs": 1})
    calls = []
    session.text._encoder.register_forward_hook(lambda *_: calls.append(1))
    list(run_updates(session, length))
    assert not calls
    assert all(layer.up.abs().max() == 0 for layer in session.adapter.text_encoder.values())
    assert all(layer.up.abs().max() > 0 for layer in session.adapter.unet.values())


def test_dropped_captions_are_trained_as_empty_ones(run: RunPaths, tiny_base: BaseFile) -> None:
    session, _ = begin(run, tiny_base, {"caption_dropout_rate": 1.0})
    seen = []
    prepare = session.text.prepare
    session.text.prepare = lambda captions, skip, **named: (seen.extend(captions), prepare(captions, skip, **named))[1]  # type: ignore[method-assign]
    session.backward(epoch_batches(session.images, session.settings.dataset, seed=7, epoch=1)[0], 0)
    assert set(seen) == {""}


def test_uncached_latents_are_drawn_anew_around_the_same_mean(run: RunPaths, tiny_base: BaseFile) -> None:
    session, _ = begin(run, tiny_base, {"flip_aug": True}, {"cache_latents": False})
    batch = epoch_batches(session.images, session.settings.dataset, seed=7, epoch=1)[0]
    drawn = torch.stack([session.latents.take(batch, torch.Generator().manual_seed(n)) for n in range(300)])
    assert drawn.std(dim=0).min() > 0
    row, stored = session.latents.rows[batch.images[0]], session.latents.mean[batch.bucket]
    assert stored.shape[1] == 2
    assert torch.allclose(drawn[:, 0].mean(dim=0), stored[row].mean(dim=0), atol=0.25 * stored.std().item() + 0.05)


def test_the_mirror_image_is_cached_beside_the_image(run: RunPaths, tiny_base: BaseFile) -> None:
    session, _ = begin(run, tiny_base, {"flip_aug": True})
    batch = epoch_batches(session.images, session.settings.dataset, seed=7, epoch=1)[0]
    stored = session.latents.mean[batch.bucket]
    assert stored.shape[1] == 2
    taken = [session.latents.take(batch, torch.Generator().manual_seed(n))[0] for n in range(40)]
    row = session.latents.rows[batch.images[0]]
    first = sum(torch.equal(each, stored[row, 0]) for each in taken)
    assert 8 <= first <= 32
    assert all(torch.equal(each, stored[row, 0]) or torch.equal(each, stored[row, 1]) for each in taken)


def test_a_loss_of_nan_stops_training_at_once(run: RunPaths, tiny_base: BaseFile) -> None:
    session, length = begin(run, tiny_base)
    for value in session.latents.mean.values():
        value.fill_(float("nan"))
    with pytest.raises(TrainerFailed, match="step 1: the loss is nan"):
        next(iter(run_updates(session, length)))


def test_bfloat16_trains_float32_weights_to_nearly_the_same_loss(run: RunPaths, tiny_base: BaseFile) -> None:
    session, length = begin(run, tiny_base)
    exact = next(iter(run_updates(session, length))).loss
    write_pair(run, {}, {"mixed_precision": "bf16"})
    settings = settings_of(run)
    models = load_components(tiny_base, dtype=torch.bfloat16)
    session = open_session(settings, session.images, length, session.latents, models)
    assert models.unet.conv_in.weight.dtype == torch.bfloat16
    assert session.pack.flat.master.dtype == torch.float32
    assert session.pack.flat.working.dtype == torch.bfloat16
    assert next(iter(run_updates(session, length))).loss == pytest.approx(exact, rel=0.02)


def test_what_a_cpu_cannot_do_is_refused_before_anything_is_loaded(run: RunPaths) -> None:
    for changes, words in (({"mixed_precision": "fp16"}, "fp16"), ({"sdpa": False, "xformers": True}, "xformers")):
        write_pair(run, {}, changes)
        with pytest.raises(UsageError, match=f"{words}.* needs a CUDA device"):
            check_device(settings_of(run).training, "cpu")


def test_a_vae_that_makes_nan_is_told_of(run: RunPaths, tiny_base: BaseFile) -> None:
    write_pair(run, {}, {})
    settings = settings_of(run)
    vae = load_components(tiny_base, parts=("vae",)).vae
    vae.encoder.conv_in.weight.fill_(float("inf"))
    with pytest.raises(TrainerFailed, match="no_half_vae"):
        encode_images(read_training_set(settings), vae, settings, lambda *_: None)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_gpu_trains_to_nearly_the_same_loss(run: RunPaths, tiny_base: BaseFile, precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    session, length = begin(run, tiny_base)
    exact = [update.loss for update in run_updates(session, length)]
    write_pair(run, {}, {"mixed_precision": precision})
    settings = settings_of(run)
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    models = load_components(tiny_base, device="cuda", dtype=dtype)
    vae = load_components(tiny_base, device="cuda", parts=("vae",)).vae
    latents = encode_images(session.images, vae, settings, lambda *_: None)
    session = open_session(settings, session.images, length, latents, models)
    assert [update.loss for update in run_updates(session, length)] == pytest.approx(exact, rel=0.02)
