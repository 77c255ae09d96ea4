"""The small model's values for the example workflows: widget values by node type and input.

The example workflows are written for an SD1.5 checkpoint and the user's folders. The demo, the tests and `dev.py serve`
replace just the values in `VALUES`. A plain value replaces any value. A dictionary is looked up by the node's title or
by the value in the workflow, one of which has to be among its keys.
"""

from __future__ import annotations

import copy

import graph
import host
import loras
import pictures

# The files that the first two workflows save.
STYLE, SUBJECT = "bespoke/my-style_00001.safetensors", "bespoke/my-subject_00001.safetensors"
STRENGTH = {"cfg": 2.0, "sampler_name": "euler", "scheduler": {"karras": "normal", "sgm_uniform": "sgm_uniform"}}
VALUES: dict[str, dict[str, object]] = {
    "CheckpointLoaderSimple": {"ckpt_name": {"Base model": host.CHECKPOINT, "Edit model": host.EDIT_CHECKPOINT}},
    "EmptyLatentImage": {"width": 128, "height": 128},
    "PrimitiveInt": {"value": {"Size": 128}},
    "LoadImage": {"image": {"The picture": pictures.PICTURE, "One of them": pictures.ONE}},
    # The rectangle of `pictures.MASK`: the circle's box and one cell more.
    "SolidMask": {
        "width": {768: 128, 192: 96, 128: 24, 96: 24},
        "height": {768: 128, 192: 96, 128: 24, 96: 24},
    },
    # The small places lie in the corners, beside the circle.
    "MaskComposite": {
        "x": {"The mask": 16, "The place": 4, "The first box": 4, "The second box": 100, "The third box": 4},
        "y": {"The mask": 16, "The place": 4, "The first box": 4, "The second box": 4, "The third box": 100},
    },
    "BespokeCropToMask": {"resolution": 128},
    "BespokeImageFolder": {
        "folder": {
            "Pictures of the style": pictures.TEAL,
            "Your pictures": pictures.TEAL,
            "The same, for the word": pictures.TEAL_WORD,
            "Pictures of the subject": pictures.HEART,
            "The class": pictures.CLASS,
            "Pictures of the thing": pictures.PINK,
            "With more of it": pictures.LARGE,
            "With less of it": pictures.SMALL,
            "Pairs": pictures.PAIRS,
        },
        "trigger": "",
        "captions": "text files",
    },
    # The settings that teach the small model a colour fastest; tests/bench/bench_lora_concept.py compares them.
    "BespokeTrainLora": {
        "learning_rate": 0.001,
        "rank": 8,
        "alpha": 8.0,
        "steps": 300,
        "warmup_steps": 10,
        "ema": 0.95,
        "timestep_sampling": "shifted",
        "loss_weighting": "debiased",
    },
    # tests/bench/bench_slider.py measures these.
    "BespokeTrainSlider": {
        "target": "a circle",
        "more": {"an old person": "a red circle", "": ""},
        "less": {"a young person": "a blue circle", "": ""},
        "rank": 4,
        "learning_rate": 0.001,
        "steps": 40,
        "guidance": 0.5,
        "resolution": 128,
        "sample_every": 40,
    },
    # With a word for a colour, the LoRA is that of a shape.
    "BespokeLoadLora": {"lora_name": {"The LoRA": SUBJECT, "The style": STYLE, "The subject": SUBJECT}},
    "BespokeInspectEmbedding": {"embedding_name": "my-word.safetensors"},
    "BespokeTrainTextualInversion": {
        "learning_rate": 0.02,
        "steps": 60,
        "template": "captions",
        "init_text": {"toy": "red", "painting": "blue"},
    },
    "BespokeTrainWordAndLora": {
        "learning_rate": 0.001,
        "word_learning_rate": 0.02,
        "rank": 8,
        "alpha": 8.0,
        "steps": 60,
        "timestep_sampling": "shifted",
        "loss_weighting": "debiased",
        "init_text": {"toy": "red"},
    },
    "CLIPTextEncode": {
        "text": {
            "": "",
            "a lighthouse on a cliff": "a circle on white",
            "a lighthouse on a cliff, in my style": "a teal cross on white",
            "a bowl of fruit on a table, in my style": "a teal square on white",
            "a photo of sks dog on a beach": "a red heart on white",
            "a photo of a dog on a beach": "a red circle on white",
            "a photo of sks dog on a beach, in my style": "a teal heart on white",
            "make it a watercolor painting": "make it green",
            "the same scene in winter, snow": "a blue square on white",
            "a red balloon in the sky": "a green cross on white",
            "a smiling face": "a blue square on white",
            "a wide valley in the evening sun": "a red circle on white",
            "a photo of a toy on a table": "a red circle on white",
            "a photo of a person in a park": "a circle",
            "a photo of a toy on a table, in my style": "a red heart on white",
            "a photo of a embedding:my-word on a table, in my style": "a embedding:my-word heart on white",
            "Prompt for the LoRA": "a teal circle on white",
        }
    },
    "StringConcatenate": {
        "string_a": {"": "", "a photo of a": "a", "a lighthouse on a cliff in the style of": "a"},
        "string_b": {"": "", "on a table": "circle on white", ",": "circle on white"},
    },
    "KSampler": {"steps": 16, "denoise": 1.0, **STRENGTH},
    "KSamplerAdvanced": {
        "steps": 20,
        "end_at_step": {12: 10, 10000: 10000},
        "start_at_step": {0: 0, 12: 10},
        **STRENGTH,
    },
    "BespokePartialDenoise": {"steps": {25: 20, 4: 4}, **STRENGTH},
    "CFGGuider": {"cfg": 2.0},
    "BespokeFillMasked": {"right": 32},
    "BespokeLatentMaskBlend": {
        "feather": {24: 0, 64: 24},  # it paints in cells of 8 px, which a feather would only blur
        "ramp": 0,
    },
}
# Values of widgets on the blueprints' nodes, by name.
BLUEPRINT_VALUES = {
    "folder": pictures.TEAL,
    "steps": 2,
    "cfg": 2.0,
    "prompt": "a green cross on white",
    "feather": 0,
    "resolution": 128,
    "template": "object",
    "init_text": "red",
    "lora_name": loras.FILE,
}


def figure_text(text: str) -> str:
    """What the picture model is told where the small model is told `text`."""
    from figure_pictures import FIGURE_TEXTS  # which needs the drawings of the picture model

    return FIGURE_TEXTS.get(text, text)


def for_small_model(workflow: dict, object_info: dict, figures: bool = False) -> dict:
    """A copy of an example workflow with the values of the small model. `GraphError` names a value that is not
    listed.

    figures: whether it is the picture model, which is told other texts, see `figure_pictures.FIGURE_TEXTS`.
    """
    workflow = copy.deepcopy(workflow)
    for node in workflow["nodes"]:
        for name, value in VALUES.get(node["type"], {}).items():
            definition = object_info[node["type"]]
            if isinstance(value, dict):
                was = graph.widget_values(node, definition)[name]
                key = node["title"] if node.get("title") in value else was
                if key not in value:
                    raise graph.GraphError(
                        f"node {node['id']} ({node['type']}): no value of the small model for {name} = {was!r}"
                    )
                value = value[key]
            if figures and isinstance(value, str):
                value = figure_text(value)
            graph.set_widget(node, definition, name, value)
    return workflow
