"""ComfyUI workflows: their structure, and equality with two worked examples that a ComfyUI server accepted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from webui_export.pictures import write_carrier
from webui_export.verify.workflow import api_faults, carried, forms_agree, loras_of, prompt_of, ui_faults
from webui_export.workflow import DEFAULT_CHECKPOINT, LoraUse, Sampling, api_workflow, chain_nodes, ui_workflow

FACTS = Path(__file__).resolve().parents[2] / "shared" / "facts"
LORAS = [
    LoraUse("anistyle", "anistyle.safetensors", 0.7),
    LoraUse("wcstyle", "wcstyle.safetensors", 0.5),
    LoraUse("cartoonstyle", "cartoonstyle.safetensors", 0.6),
]
SAMPLING = Sampling("rnd_sd15.safetensors", "anistyle, wcstyle, cartoonstyle, a cat on a roof", "lowres, blurry")
# Of the worked examples: id, type, what feeds each input, and the UI's widgets.
EXPECTED = {
    1: ("CheckpointLoaderSimple", {}, ["rnd_sd15.safetensors"]),
    2: ("LoraLoader", {"model": (1, 0), "clip": (1, 1)}, ["anistyle.safetensors", 0.7, 0.7]),
    3: ("LoraLoader", {"model": (2, 0), "clip": (2, 1)}, ["wcstyle.safetensors", 0.5, 0.5]),
    4: ("LoraLoader", {"model": (3, 0), "clip": (3, 1)}, ["cartoonstyle.safetensors", 0.6, 0.6]),
    5: ("CLIPTextEncode", {"clip": (4, 1)}, ["anistyle, wcstyle, cartoonstyle, a cat on a roof"]),
    6: ("CLIPTextEncode", {"clip": (4, 1)}, ["lowres, blurry"]),
    7: ("EmptyLatentImage", {}, [512, 512, 1]),
    8: (
        "KSampler",
        {"model": (4, 0), "positive": (5, 0), "negative": (6, 0), "latent_image": (7, 0)},
        [1, "fixed", 25, 7.0, "dpmpp_2m", "karras", 1.0],
    ),
    9: ("VAEDecode", {"samples": (8, 0), "vae": (1, 2)}, []),
    10: ("SaveImage", {"images": (9, 0)}, ["lora"]),
}


def test_three_loras_are_chained_as_in_the_worked_example():
    workflow = ui_workflow(chain_nodes(LORAS, SAMPLING))
    sources = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    found = {
        node["id"]: (
            node["type"],
            {entry["name"]: sources[entry["link"]] for entry in node["inputs"]},
            node["widgets_values"],
        )
        for node in workflow["nodes"]
    }
    assert found == EXPECTED


def test_the_apis_form_has_the_same_links_and_values_and_no_hidden_widget():
    found = api_workflow(chain_nodes(LORAS, SAMPLING))
    assert {int(number): node["class_type"] for number, node in found.items()} == {
        number: row[0] for number, row in EXPECTED.items()
    }
    for number, (_, links, widgets) in EXPECTED.items():
        inputs = found[str(number)]["inputs"]
        assert {name: value for name, value in inputs.items() if isinstance(value, list)} == {
            name: [str(source), slot] for name, (source, slot) in links.items()
        }
        assert [value for value in inputs.values() if not isinstance(value, list)] == [
            value for value in widgets if value != "fixed"
        ]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_links_are_consistent_for_any_number_of_loras(count: int):
    workflow = ui_workflow(chain_nodes((LORAS * 2)[:count], SAMPLING))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["last_node_id"] == len(nodes) == 7 + count
    assert [link[0] for link in workflow["links"]] == list(range(1, workflow["last_link_id"] + 1))
    for number, source, source_slot, target, target_slot, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][source_slot]["links"]
        assert nodes[source]["outputs"][source_slot]["type"] == kind
        assert nodes[target]["inputs"][target_slot] == {
            "name": nodes[target]["inputs"][target_slot]["name"], "type": kind, "link": number,
        }  # fmt: skip
        assert source < target, "a node is fed by earlier ones alone, so ids are an order of execution"


@pytest.mark.skipif(not FACTS.is_dir(), reason="the worked examples lie beside the project, and are not there")
@pytest.mark.parametrize(
    ("file", "render"), [("comfyui_3_loras.json", ui_workflow), ("comfyui_3_loras.api.json", api_workflow)]
)
def test_three_loras_equal_the_worked_examples_to_the_letter(file: str, render: Any):
    found = json.loads(json.dumps(render(chain_nodes(LORAS, SAMPLING))))
    assert found == json.loads((FACTS / file).read_text())


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("clip_skip", [1, 2])
def test_what_is_rendered_passes_our_schema_in_both_forms(count: int, clip_skip: int):
    nodes = chain_nodes(LORAS[:count], replace(SAMPLING, clip_skip=clip_skip))
    ui, api = ui_workflow(nodes), api_workflow(nodes)
    assert list(ui_faults(ui)) == list(api_faults(api)) == []
    assert forms_agree(ui, api)
    assert loras_of(api) == [lora.file for lora in LORAS[:count]]
    assert prompt_of(api) == SAMPLING.prompt


def test_clip_is_skipped_behind_the_last_lora_and_feeds_both_prompts():
    api = api_workflow(chain_nodes(LORAS[:2], replace(SAMPLING, clip_skip=2)))
    assert (api["4"]["class_type"], api["4"]["inputs"]) == (
        "CLIPSetLastLayer", {"clip": ["3", 1], "stop_at_clip_layer": -2},
    )  # fmt: skip
    assert [node["inputs"]["clip"] for node in api.values() if node["class_type"] == "CLIPTextEncode"] == [["4", 0]] * 2
    sampler = next(node["inputs"] for node in api.values() if node["class_type"] == "KSampler")
    assert sampler["model"] == ["3", 0]


def test_the_usual_checkpoint_is_offered_for_download_and_no_other():
    def models(name: str) -> object:
        return ui_workflow(chain_nodes([], replace(SAMPLING, checkpoint=name)))["nodes"][0]["properties"].get("models")

    assert models("mine.safetensors") is None
    assert [model["name"] for model in models(DEFAULT_CHECKPOINT)] == [DEFAULT_CHECKPOINT]


@pytest.mark.skipif(not FACTS.is_dir(), reason="the worked examples lie beside the project, and are not there")
def test_the_worked_examples_pass_our_schema():
    ui, api = (json.loads((FACTS / file).read_text()) for file in ("comfyui_3_loras.json", "comfyui_3_loras.api.json"))
    assert list(ui_faults(ui)) == list(api_faults(api)) == []
    assert forms_agree(ui, api)


def test_a_picture_carries_both_forms_where_saveimage_puts_them(tmp_path: Path):
    picture = tmp_path / "in.png"
    Image.new("L", (64, 96), 7).save(picture)
    nodes = chain_nodes(LORAS, replace(SAMPLING, prompt="Ätherisch, 猫"))
    write_carrier(picture, tmp_path / "out.png", ui_workflow(nodes), api_workflow(nodes))
    with Image.open(tmp_path / "out.png") as image:
        image.load()
        assert {name for name in image.info if isinstance(image.info[name], str)} == {"workflow", "prompt"}
    raw = (tmp_path / "out.png").read_bytes()
    assert raw.count(b"tEXtworkflow\0") == raw.count(b"tEXtprompt\0") == 1
    assert carried(tmp_path / "out.png") == (
        json.loads(json.dumps(ui_workflow(nodes))), json.loads(json.dumps(api_workflow(nodes))),
    )  # fmt: skip
