"""Save Image Set in a graph, run by ComfyUI's own validation, executor and caches."""

from __future__ import annotations

import shutil
from pathlib import Path

import folder_paths
import nodes
import prompts
import pytest
import torch

MODELS = {"model": ["models", 0], "clip": ["models", 1], "vae": ["models", 2]}
TRAIN = MODELS | dict(
    targets="cross-attention", rank=2, alpha=2.0, learning_rate=1e-2, steps=2, batch_size=2, seed=5, precision="fp32"
)


class Pictures:
    """Three pictures of two sizes, their masks and captions, as lists."""

    RETURN_TYPES = ("IMAGE", "MASK", "STRING")
    OUTPUT_IS_LIST = (True, True, True)
    FUNCTION = "give"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def give(self):
        draw = torch.Generator().manual_seed(3)
        sizes = [(64, 64), (64, 72), (64, 64)]
        pictures = [torch.rand(1, *size, 3, generator=draw) for size in sizes]
        masks = [torch.randint(0, 256, (1, *size), generator=draw) / 255 for size in sizes]
        return pictures, masks, ["a red thing", "a blue\nthing", "a thing"]


@pytest.fixture
def queue(comfyui, sd15):
    prompts.Models.models = sd15
    before = dict(nodes.NODE_CLASS_MAPPINGS)
    nodes.NODE_CLASS_MAPPINGS["TestPictures"] = Pictures
    yield prompts.Queue
    nodes.NODE_CLASS_MAPPINGS.clear()
    nodes.NODE_CLASS_MAPPINGS.update(before)
    shutil.rmtree(Path(folder_paths.get_input_directory()) / "saved", ignore_errors=True)


def graph() -> dict:
    """Pictures, masks and captions on the wire -> a set -> a folder -> a set of it; a training of each."""
    read = dict(captions="text files", template="", trigger="zor", resolution=72, bucket_step=64, masks="*-mask.png")
    kept = {"lora": ["one", 1], "again": ["other", 1], "folder": ["save", 0], "report": ["save", 1]}
    return dict(
        models=("TestModels", {}),
        pictures=("TestPictures", {}),
        batch=(
            "BespokeImageBatch",
            {"images": ["pictures", 0], "masks": ["pictures", 1], "captions": ["pictures", 2], "trigger": "zor"},
        ),
        save=("BespokeSaveImageSet", {"images": ["batch", 0], "folder": "saved/set"}),
        folder=("BespokeImageFolder", read | {"folder": "(no folder yet)", "folder_name": ["save", 0]}),
        one=("BespokeTrainLora", TRAIN | {"images": ["batch", 0]}),
        other=("BespokeTrainLora", TRAIN | {"images": ["folder", 0], "resume": False}),
        **{f"keep {name}": ("TestKeep", {"value": link, "name": name}) for name, link in kept.items()},
    )


def test_the_lora_of_a_saved_set_is_that_of_the_set(queue, runs):
    """Oracle: the training on the set itself. A second server (a new queue, so no cache) finds the folder there."""
    kept = queue().run(**graph())
    (one,), (again,) = kept["lora"] + kept["again"]
    assert one.keys() == again.keys()
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(bool(value.any()) for key, value in one.items() if "up" in key)
    assert kept["folder"] == [["saved/set"]]
    ((report,),) = kept["report"]
    assert report.startswith("input/saved/set: 3 pictures, 3 caption files, 3 masks.")
    assert "resolution 72; bucket_step 64; masks *-mask.png; trigger zor." in report
    before = {path: path.stat().st_mtime_ns for path in sorted(Path(folder_paths.get_input_directory()).rglob("*"))}
    prompt = graph()
    for name in ("one", "other", "folder", "models", "keep lora", "keep again"):
        del prompt[name]
    kept = queue().run(**prompt)
    assert kept["folder"] == [["saved/set"]]
    ((report,),) = kept["report"]
    assert report.startswith("Already there: input/saved/set holds 3 pictures")
    assert before == {
        path: path.stat().st_mtime_ns for path in sorted(Path(folder_paths.get_input_directory()).rglob("*"))
    }


def test_what_is_no_set_is_refused_with_the_mend(comfyui, run_node):
    from bespoke.training.errors import InputError

    with pytest.raises(InputError, match="images is of the kind Tensor; wire in the images of Bespoke Image Batch"):
        run_node("BespokeSaveImageSet", images=torch.zeros(1, 64, 64, 3), folder="saved/set")
