"""What is written for A1111 reads back as A1111 reads it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from a1111_parser import LORA_TAG, lora_hashes, parse

from brushset.generation.schedulers import SCHEDULERS
from brushset.infotext import Infotext, LoraTag, split_sampler

PLAIN = Infotext(
    prompt="anistyle, a cat",
    negative_prompt="lowres, worst quality",
    steps=25,
    sampler="DPM++ 2M",
    schedule_type="Karras",
    guidance=7.0,
    seed=42,
    size=(512, 768),
    model="v1-5-pruned",
    model_hash="6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
    clip_skip=2,
    loras=(LoraTag("anime", 0.6, 0.6, "a" * 64), LoraTag("water: color, v2", 0.3, 0.5, "b" * 64)),
    method="switch",
)


def test_every_setting_reads_back() -> None:
    found = parse(PLAIN.text())
    assert found["Prompt"] == "anistyle, a cat <lora:anime:0.6> <lora:water_color_v2:0.3:0.5>"
    assert found["Negative prompt"] == "lowres, worst quality"
    wanted = {
        "Steps": "25", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": "7", "Seed": "42",
        "Size": "512x768", "Model hash": "6ce0161689", "Model": "v1-5-pruned", "Clip skip": "2", "RNG": "CPU",
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted
    assert lora_hashes(found) == {"anime": "a" * 12, "water_color_v2": "b" * 12}
    assert {name for name, _ in LORA_TAG.findall(found["Prompt"])} == set(lora_hashes(found))
    assert found["Version"] == "brushset"


@pytest.mark.parametrize(
    "prompt",
    [
        'a "quoted" girl, smiling: yes', "line\nbreak", "a cat\nNegative prompt: dogs", "Steps: 1, Sampler: x, Seed: 2",
        "日本語, ünïcode", "back\\slash, 50% {a|b}", "x" * 2000, "<b>tag</b>",
    ],
)  # fmt: skip
def test_odd_prompts_change_no_setting(prompt: str) -> None:
    found, plain = parse(replace(PLAIN, prompt=prompt, loras=()).text()), parse(replace(PLAIN, loras=()).text())
    assert found["Prompt"] == " ".join(prompt.split())
    assert {key: found[key] for key in found if key != "Prompt"} == {
        key: plain[key] for key in plain if key != "Prompt"
    }
    negative = parse(replace(PLAIN, negative_prompt=prompt, loras=()).text())
    assert negative["Negative prompt"] == " ".join(prompt.split())
    assert negative["Seed"] == "42"


@pytest.mark.parametrize("model", ["random:tiny", 'my "best", v2', "C:\\models\\x"])
def test_a_models_name_is_quoted_where_it_would_break_the_line(model: str) -> None:
    found = parse(replace(PLAIN, model=model).text())
    assert found["Model"] == model
    assert found["Seed"] == "42"


def test_what_is_not_known_is_not_said() -> None:
    found = parse(replace(PLAIN, model_hash="", clip_skip=1, loras=(), method="", negative_prompt="").text())
    assert not {"Model hash", "Clip skip", "Lora hashes", "LoRA method"} & found.keys()
    assert found["Negative prompt"] == ""


def test_every_scheduler_has_a_sampler_and_a_schedule_type() -> None:
    told = {name: split_sampler(name) for name in SCHEDULERS}
    assert told["DPM++ 2M Karras"] == ("DPM++ 2M", "Karras")
    assert told["Euler a"] == ("Euler a", "Automatic")
    assert len(set(told.values())) == len(SCHEDULERS) > 5
