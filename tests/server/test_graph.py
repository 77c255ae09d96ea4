"""Workflows as the page saves them, with the real definitions of core's nodes."""

from __future__ import annotations

import graph
import pytest


def node(id, type, values=(), inputs=(), outputs=(), **more):
    """A node as it is saved; inputs are (name, type, link) or, for a widget's socket, (name, type, link, True)."""
    slots = [
        {"name": n, "type": t, "link": link, **({"widget": {"name": n}} if widget else {})}
        for n, t, link, *widget in inputs
    ]
    outs = [{"name": t, "type": t, "links": []} for t in outputs]
    return {"id": id, "type": type, "widgets_values": list(values), "inputs": slots, "outputs": outs, **more}


def workflow(nodes, links):
    return {"version": 0.4, "nodes": nodes, "links": [[*link, "*"] for link in links]}


def text_to_image(**sampler):
    """Core's first workflow, at the small model's size. `sampler` changes the KSampler node."""
    k = node(
        5,
        "KSampler",
        [42, "randomize", 4, 3.5, "euler", "normal", 1.0],
        [
            ("model", "MODEL", 1),
            ("positive", "CONDITIONING", 4),
            ("negative", "CONDITIONING", 5),
            ("latent_image", "LATENT", 6),
        ],
        ["LATENT"],
    )
    return workflow(
        [
            node(1, "CheckpointLoaderSimple", ["bespoke-small.safetensors"], [], ["MODEL", "CLIP", "VAE"], pos=[0, 0]),
            node(2, "CLIPTextEncode", ["a red circle on white"], [("clip", "CLIP", 2)], ["CONDITIONING"], pos=[300, 0]),
            node(3, "CLIPTextEncode", [""], [("clip", "CLIP", 3)], ["CONDITIONING"], pos=[300, 200]),
            node(4, "EmptyLatentImage", [128, 128, 2], [], ["LATENT"], pos=[300, 400]),
            k | {"pos": [600, 0]} | sampler,
            node(6, "VAEDecode", [], [("samples", "LATENT", 7), ("vae", "VAE", 8)], ["IMAGE"], pos=[900, 0]),
            node(7, "SaveImage", ["plain"], [("images", "IMAGE", 9)], [], pos=[1200, 0], title="Two circles"),
        ],
        [
            (1, 1, 0, 5, 0),
            (2, 1, 1, 2, 0),
            (3, 1, 1, 3, 0),
            (4, 2, 0, 5, 1),
            (5, 3, 0, 5, 2),
            (6, 4, 0, 5, 3),
            (7, 5, 0, 6, 0),
            (8, 1, 2, 6, 1),
            (9, 6, 0, 7, 0),
        ],
    )


def test_text_to_image(object_info):
    prompt = graph.to_prompt(text_to_image(), object_info)
    assert prompt["5"] == {
        "class_type": "KSampler",
        "inputs": {
            "model": ["1", 0],
            "seed": 42,
            "steps": 4,
            "cfg": 3.5,
            "sampler_name": "euler",
            "scheduler": "normal",
            "positive": ["2", 0],
            "negative": ["3", 0],
            "latent_image": ["4", 0],
            "denoise": 1.0,
        },
        "_meta": {"title": "KSampler"},
    }
    assert prompt["2"]["inputs"] == {"text": "a red circle on white", "clip": ["1", 1]}
    assert prompt["6"]["inputs"] == {"samples": ["5", 0], "vae": ["1", 2]}
    assert prompt["7"]["inputs"] == {"images": ["6", 0], "filename_prefix": "plain"}
    assert prompt["7"]["_meta"] == {"title": "Two circles"}
    assert list(prompt) == ["1", "2", "3", "4", "5", "6", "7"]


def test_links_as_objects(object_info):
    flow = text_to_image()
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    flow["links"] = [dict(zip(names, link, strict=True)) for link in flow["links"]]
    assert graph.to_prompt(flow, object_info) == graph.to_prompt(text_to_image(), object_info)


def test_a_node_without_control_takes_every_value(object_info):
    # `noise_seed` is controlled, `add_noise` before it is not.
    values = ["enable", 7, "fixed", 20, 8.0, "euler", "normal", 3, 10000, "disable"]
    taken = graph.widget_values(node(1, "KSamplerAdvanced", values), object_info["KSamplerAdvanced"])
    assert taken == {
        "add_noise": "enable",
        "noise_seed": 7,
        "steps": 20,
        "cfg": 8.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "start_at_step": 3,
        "end_at_step": 10000,
        "return_with_leftover_noise": "disable",
    }


def test_control_follows_the_definition():
    def definition(**options):
        return {"input": {"required": {"seed": ["INT", options], "steps": ["INT", {}]}}}

    assert graph.widget_values(node(1, "X", [5, 20]), definition(control_after_generate=False)) == {
        "seed": 5,
        "steps": 20,
    }
    for options in ({}, {"control_after_generate": True}, {"control_after_generate": "fixed"}):
        assert graph.widget_values(node(1, "X", [5, "fixed", 20]), definition(**options)) == {"seed": 5, "steps": 20}
    combo = {"input": {"required": {"file": [["a", "b"], {"control_after_generate": True}], "steps": ["INT", {}]}}}
    assert graph.widget_values(node(1, "X", ["b", "increment", "", 20]), combo) == {"file": "b", "steps": 20}


def test_later_widgets_are_left_out():
    definition = {
        "input": {"required": {"steps": ["INT", {}]}, "optional": {"rank": ["INT", {}], "mask": ["MASK", {}]}}
    }
    assert graph.widget_values(node(1, "X", [20]), definition) == {"steps": 20}


def test_the_upload_button_of_old_files(object_info):
    taken = graph.widget_values(node(1, "LoadImageMask", ["a.png", "red", "image"]), object_info["LoadImageMask"])
    assert taken == {"image": "a.png", "channel": "red"}


def test_too_many_values_are_refused(object_info):
    with pytest.raises(
        graph.GraphError, match=r"node 4 \(EmptyLatentImage\): 1 widget values too many, from 'fixed' on"
    ):
        graph.widget_values(node(4, "EmptyLatentImage", [128, 128, 1, "fixed"]), object_info["EmptyLatentImage"])


def test_a_choice_in_braces_is_refused(object_info):
    with pytest.raises(graph.GraphError, match="at random"):
        graph.widget_values(node(2, "CLIPTextEncode", ["a {red|blue} circle"]), object_info["CLIPTextEncode"])


def test_a_list_is_boxed():
    definition = {"input": {"required": {"names": ["COMBO", {"options": ["a", "b"], "multiselect": True}]}}}
    assert graph.widget_values(node(1, "X", [["a", "b"]]), definition) == {"names": {"__value__": ["a", "b"]}}


def test_values_by_name():
    definition = {"input": {"required": {"steps": ["INT", {}], "cfg": ["FLOAT", {}]}}}
    saved = {"id": 1, "type": "X", "widgets_values": {"cfg": 2.0, "steps": 3, "preview": {}}}
    assert graph.widget_values(saved, definition) == {"steps": 3, "cfg": 2.0}


def test_a_link_wins_over_the_widget(object_info):
    flow = text_to_image()
    flow["nodes"].append(node(8, "PrimitiveInt", [9, "fixed"], [], ["INT"]))
    flow["nodes"][4]["inputs"].append({"name": "steps", "type": "INT", "link": 10, "widget": {"name": "steps"}})
    flow["links"].append([10, 8, 0, 5, 4, "INT"])
    prompt = graph.to_prompt(flow, object_info)
    assert prompt["5"]["inputs"]["steps"] == ["8", 0]
    assert prompt["8"]["inputs"] == {"value": 9}


def test_primitive_reroute_and_notes(object_info):
    flow = text_to_image()
    flow["nodes"] += [
        node(8, "PrimitiveNode", [11, "randomize"], [], ["INT"]),
        node(9, "Reroute", [], [("", "*", 1)], ["MODEL"]),
        node(10, "Reroute", [], [("", "*", 11)], ["MODEL"]),
        node(11, "Note", ["read me"]),
        node(12, "MarkdownNote", ["# read me"]),
    ]
    sampler = flow["nodes"][4]
    sampler["inputs"][0]["link"] = 12
    sampler["inputs"].append({"name": "seed", "type": "INT", "link": 10, "widget": {"name": "seed"}})
    flow["links"][0][3] = 9
    flow["links"] += [[10, 8, 0, 5, 4, "INT"], [11, 9, 0, 10, 0, "*"], [12, 10, 0, 5, 0, "MODEL"]]
    prompt = graph.to_prompt(flow, object_info)
    assert prompt["5"]["inputs"]["model"] == ["1", 0]
    assert prompt["5"]["inputs"]["seed"] == 11
    assert set(prompt) == {"1", "2", "3", "4", "5", "6", "7"}


def lora_between(mode):
    """Text to image with a LoraLoader between the checkpoint and the rest, in the given mode."""
    flow = text_to_image()
    inputs = [("model", "MODEL", 1), ("clip", "CLIP", 10)]
    flow["nodes"].append(node(8, "LoraLoader", ["x.safetensors", 1.0, 1.0], inputs, ["MODEL", "CLIP"], mode=mode))
    flow["nodes"][4]["inputs"][0]["link"] = 11
    flow["nodes"][1]["inputs"][0]["link"] = 12
    flow["links"] += [[10, 1, 1, 8, 1, "CLIP"], [11, 8, 0, 5, 0, "MODEL"], [12, 8, 1, 2, 0, "CLIP"]]
    return flow


def test_bypassed_and_muted(object_info):
    on = graph.to_prompt(lora_between(0), object_info)
    assert on["8"]["inputs"] == {
        "model": ["1", 0],
        "clip": ["1", 1],
        "lora_name": "x.safetensors",
        "strength_model": 1.0,
        "strength_clip": 1.0,
    }
    assert (on["5"]["inputs"]["model"], on["2"]["inputs"]["clip"]) == (["8", 0], ["8", 1])

    bypassed = graph.to_prompt(lora_between(graph.BYPASSED), object_info)
    assert "8" not in bypassed
    assert (bypassed["5"]["inputs"]["model"], bypassed["2"]["inputs"]["clip"]) == (["1", 0], ["1", 1])

    muted = graph.to_prompt(lora_between(graph.MUTED), object_info)
    assert "8" not in muted
    assert "model" not in muted["5"]["inputs"]
    assert "clip" not in muted["2"]["inputs"]


def test_a_bypassed_output_without_a_fitting_input_is_nothing(object_info):
    flow = text_to_image()
    flow["nodes"][5]["mode"] = graph.BYPASSED  # VAEDecode: LATENT and VAE in, IMAGE out
    assert "images" not in graph.to_prompt(flow, object_info)["7"]["inputs"]


def test_a_dynamic_combo(object_info):
    definition = object_info["ResizeImageMaskNode"]
    taken = graph.widget_values(node(1, "ResizeImageMaskNode", ["scale by multiplier", 0.5, "area"]), definition)
    assert taken == {"resize_type": "scale by multiplier", "resize_type.multiplier": 0.5, "scale_method": "area"}
    values = ["scale dimensions", 64, 32, "center", "area"]
    assert graph.widget_values(node(1, "ResizeImageMaskNode", values), definition) == {
        "resize_type": "scale dimensions",
        "resize_type.width": 64,
        "resize_type.height": 32,
        "resize_type.crop": "center",
        "scale_method": "area",
    }


def test_growing_inputs(object_info):
    flow = workflow(
        [
            node(1, "EmptyImage", [64, 64, 1, 0], [], ["IMAGE"]),
            node(2, "EmptyImage", [64, 64, 1, 255], [], ["IMAGE"]),
            node(
                3,
                "BatchImagesNode",
                [],
                [("images.image0", "IMAGE", 1), ("images.image1", "IMAGE", 2), ("images.image2", "IMAGE", None)],
                ["IMAGE"],
            ),
            node(4, "SaveImage", ["grown"], [("images", "IMAGE", 3)]),
        ],
        [(1, 1, 0, 3, 0), (2, 2, 0, 3, 1), (3, 3, 0, 4, 0)],
    )
    prompt = graph.to_prompt(flow, object_info)
    assert prompt["3"]["inputs"] == {"images.image0": ["1", 0], "images.image1": ["2", 0]}


def test_invalid_workflows_are_refused(object_info):
    with pytest.raises(graph.GraphError, match="no list of nodes"):
        graph.to_prompt({"1": {"class_type": "KSampler", "inputs": {}}}, object_info)
    with pytest.raises(graph.GraphError, match=r"node 5 \(NoSuchNode\): the server has no node of this type"):
        graph.to_prompt(text_to_image(type="NoSuchNode"), object_info)
    flow = text_to_image()
    flow["links"] = flow["links"][1:]
    with pytest.raises(graph.GraphError, match="link 1 is not in the list"):
        graph.to_prompt(flow, object_info)
    loop = workflow(
        [node(1, "Reroute", [], [("", "*", 1)]), node(2, "SaveImage", ["x"], [("images", "IMAGE", 1)])],
        [(1, 1, 0, 1, 0)],
    )
    with pytest.raises(graph.GraphError, match="back to itself"):
        graph.to_prompt(loop, object_info)


def test_choices(object_info):
    assert graph.choices(object_info["CheckpointLoaderSimple"], "ckpt_name") == [
        "bespoke-small-edit.safetensors",
        "bespoke-small.safetensors",
    ]
    assert graph.choices(object_info["ImageRotate"], "rotation") == ["none", "90 degrees", "180 degrees", "270 degrees"]
    assert graph.choices(object_info["KSampler"], "steps") is None
