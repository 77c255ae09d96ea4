"""The nodes of training sets, run through ComfyUI."""

import shutil
from pathlib import Path

import folder_paths
import pytest
import torch
from PIL import Image


@pytest.fixture
def folder(comfyui):
    path = Path(folder_paths.get_input_directory()) / "bespoke_test_set"
    path.mkdir(parents=True)
    Image.radial_gradient("L").resize((640, 480)).save(path / "a.png")
    yield path
    shutil.rmtree(path)


def test_the_bucket_step_reaches_the_set(folder, run_node):
    """640x480 px at 512: 576x448 in steps of 64; in steps of 16 576x432, all of it. Without the input, as an older
    workflow has it, the step is 64.
    """
    given = dict(folder=folder.name, captions="file names", template="", trigger="zor", resolution=512)
    for changes, size in (({}, (448, 576)), ({"bucket_step": 64}, (448, 576)), ({"bucket_step": 16}, (432, 576))):
        images, _, report, _ = run_node("BespokeImageFolder", **given, **changes)
        assert images.items[0].pixels.shape[:2] == size
        assert f"1 at {size[1]}x{size[0]} px" in report


def test_masks_with_a_channel_reach_the_set(comfyui, run_node):
    mask = torch.rand(1, 1, 64, 72)
    images, _ = run_node("BespokeImageBatch", images=torch.rand(1, 64, 72, 3), captions="", trigger="", masks=mask)
    assert torch.equal(images.items[0].mask, mask[0, 0])
