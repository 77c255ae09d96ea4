"""Wires that people try, run by ComfyUI's own validation, executor and caches."""

from __future__ import annotations

import shutil
from pathlib import Path

import comfy_extras.nodes_dataset as core_dataset
import folder_paths
import nodes
import numpy as np
import prompts
import pytest
import torch
from bespoke.nodes.bridge.files.listing import stamp_of_folders
from bespoke.nodes.images.batch import captions_of, image_set
from bespoke.training.errors import InputError
from PIL import Image

TRAIN = dict(
    targets="cross-attention", rank=2, alpha=2.0, learning_rate=1e-2, steps=1, batch_size=2, seed=5, precision="fp32"
)
WORD = dict(name="zor", init_text="a", vectors=1, learning_rate=5e-3, steps=1, batch_size=2, seed=5, precision="fp32")


@pytest.fixture
def folder(comfyui):
    """Four pictures of three sizes with captions, of which one is in two lines."""
    path = Path(folder_paths.get_input_directory()) / "wires_set"
    path.mkdir(parents=True)
    numbers = np.random.default_rng(0)
    for i, (width, height) in enumerate([(64, 64), (96, 64), (130, 100), (64, 64)]):
        Image.fromarray(numbers.integers(0, 256, (height, width, 3), np.uint8)).save(path / f"{i}.png")
        (path / f"{i}.txt").write_text(f"a picture\nnumber {i}" if i == 1 else f"picture {i}")
    yield path
    shutil.rmtree(path)


def models() -> dict:
    return {"model": ["models", 0], "clip": ["models", 1], "vae": ["models", 2]}


def keep(link: list, name: str = "kept") -> tuple[str, dict]:
    return "TestKeep", {"value": link, "name": name}


def image_folder(path: Path, **more) -> tuple[str, dict]:
    return "BespokeImageFolder", dict(
        folder=path.name, captions="text files", template="", trigger="", resolution=128
    ) | more


def train(images: list, **more) -> tuple[str, dict]:
    return "BespokeTrainLora", models() | TRAIN | {"images": images} | more


def same_lora(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- pictures into sets and trainers ----------------------------------------------------------------------------------


def test_cores_dataset_loader_is_one_training_with_the_loras_bits_of_image_folder(queue, folder, runs, monkeypatch):
    """Oracle: Image Folder on the same files. Core's loader gives the order of the disk, so that is sorted here."""
    listdir = core_dataset.os.listdir
    monkeypatch.setattr(core_dataset.os, "listdir", lambda path: sorted(listdir(path)))
    kept = queue.run(
        models=("TestModels", {}),
        loader=("LoadImageTextDataSetFromFolder", {"folder": folder.name}),
        batch=(
            "BespokeImageBatch",
            {"images": ["loader", 0], "captions": ["loader", 1], "trigger": "", "resolution": 128},
        ),
        images=image_folder(folder),
        one=train(["batch", 0]),
        other=train(["images", 0], resume=False),
        a=keep(["one", 1], "lora"),
        b=keep(["other", 1], "lora"),
        c=keep(["batch", 0], "set"),
        d=keep(["images", 0], "set"),
    )
    (one,), (other,) = kept["lora"]
    assert same_lora(one, other)
    (one,), (other,) = kept["set"]
    assert [item.caption for item in one.items] == ["picture 0", "a picture number 1", "picture 2", "picture 3"]
    assert one.fingerprint == other.fingerprint
    assert len(one.items) == 4


def test_sets_are_combined_and_trained_on(queue, folder, runs):
    """One folder at two resolutions, its name spelled in two ways, and a batch: 4 + 2 pictures, not 8 + 2."""
    kept = queue.run(
        models=("TestModels", {}),
        name=("PrimitiveString", {"value": f"{folder.name}//"}),
        small=image_folder(folder, resolution=64, trigger="tok"),
        large=image_folder(folder, folder_name=["name", 0]),
        pictures=("EmptyImage", {"width": 128, "height": 64, "batch_size": 2, "color": 0x336699}),
        batch=("BespokeImageBatch", {"images": ["pictures", 0], "captions": "blue", "trigger": ""}),
        both=(
            "BespokeCombineImageSets",
            {"sets.set0": ["small", 0], "sets.set1": ["large", 0], "sets.set2": ["batch", 0], "weights": "1\n1\n3"},
        ),
        train=train(["both", 0], steps=4),
        a=keep(["both", 0], "set"),
        b=keep(["both", 1], "preview"),
        c=keep(["both", 2], "report"),
        d=keep(["train", 4], "trained"),
    )
    ((images,),), ((report,),), ((trained,),) = kept["set"], kept["report"], kept["trained"]
    assert len(images.items) == 4 + 4 + 2
    assert {item.source for item in images.items[:8]} == {folder.name}
    assert len(images.copies()) == 4 + 2
    assert {item.source: item.weight for item in images.items} == {folder.name: 1.0, images.items[-1].source: 3.0}
    assert f"set1 ({folder.name})" in report
    assert report.startswith("6 pictures in 3 sets, 10 with ")
    assert kept["preview"][0][0].shape[0] == 1
    assert f"each of 4 pictures of {folder.name} was seen " in trained


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"weights": "1\n2"}, "Combine Image Sets: weights has 2 lines for 1 set"),
        ({"weights": "", "resolutions": "big"}, "Combine Image Sets: resolutions has 'big'; write whole numbers"),
    ],
)
def test_what_cannot_be_combined_is_said_with_the_nodes_name(queue, folder, inputs, says):
    with pytest.raises(AssertionError, match=says):
        queue.run(
            images=image_folder(folder),
            both=("BespokeCombineImageSets", {"sets.set0": ["images", 0], **inputs}),
            a=keep(["both", 0], "set"),
        )


def test_images_into_a_trainer_are_the_set_of_image_batch(queue, runs):
    """Oracle: Image Batch with its defaults, wired before the trainer."""
    pictures = ("EmptyImage", {"width": 72, "height": 64, "batch_size": 2, "color": 0x336699})
    kept = queue.run(
        models=("TestModels", {}),
        pictures=pictures,
        batch=("BespokeImageBatch", {"images": ["pictures", 0], "captions": "", "trigger": ""}),
        one=train(["pictures", 0]),
        other=train(["batch", 0], resume=False),
        word=("BespokeTrainTextualInversion", models() | WORD | {"images": ["pictures", 0]}),
        again=("BespokeTrainTextualInversion", models() | WORD | {"images": ["batch", 0], "resume": False}),
        a=keep(["one", 1], "lora"),
        b=keep(["other", 1], "lora"),
        c=keep(["word", 1], "word"),
        d=keep(["again", 1], "word"),
        e=keep(["one", 3], "run"),
        f=keep(["other", 3], "run"),
    )
    (one,), (other,) = kept["lora"]
    assert same_lora(one, other)
    assert kept["run"][0][0].id == kept["run"][1][0].id
    (one,), (other,) = kept["word"]
    assert same_lora(one, other)


def test_images_without_captions_are_refused_where_captions_hold_the_word(queue, runs):
    with pytest.raises(AssertionError, match=r"image 1; write \{word\} where .*in Bespoke Image Batch"):
        queue.run(
            models=("TestModels", {}),
            pictures=("EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 0}),
            word=(
                "BespokeTrainTextualInversion",
                models() | WORD | {"images": ["pictures", 0], "template": "captions"},
            ),
            a=keep(["word", 1]),
        )


@pytest.mark.parametrize("way", ["list", "behind a node that runs for each", "pictures of Image Folder"])
@pytest.mark.parametrize("node", ["BespokeTrainLora", "BespokeTrainTextualInversion", "BespokeExportLoraJob"])
def test_a_list_of_images_is_never_one_training_for_each(queue, folder, runs, way, node):
    """Four pictures would be four trainings; it is refused before the first, with the node to put between."""
    settings = WORD if node == "BespokeTrainTextualInversion" else TRAIN
    source = {"pictures of Image Folder": ["images", 3], "list": ["loader", 0]}.get(way, ["inverted", 0])
    with pytest.raises(AssertionError, match="comes as a list .*wire the list into Bespoke Image Batch"):
        queue.run(
            models=("TestModels", {}),
            images=image_folder(folder),
            loader=("LoadImageDataSetFromFolder", {"folder": folder.name}),
            inverted=("ImageInvert", {"image": ["loader", 0]}),
            trainer=(node, models() | settings | {"images": source}),
            a=keep(["trainer", 1]),
        )
    assert not runs.exists() or not any(runs.iterdir())


def test_a_list_of_something_else_is_still_a_training_for_each(queue, runs):
    """A list of seeds is what a person sweeps with: two trainings, on one IMAGE batch."""

    class Seeds(prompts.Models):
        RETURN_TYPES = ("INT",)
        OUTPUT_IS_LIST = (True,)

        def give(self):
            return ([1, 2],)

    nodes.NODE_CLASS_MAPPINGS["TestSeeds"] = Seeds
    kept = queue.run(
        models=("TestModels", {}),
        seeds=("TestSeeds", {}),
        pictures=("EmptyImage", {"width": 64, "height": 64, "batch_size": 2, "color": 0x336699}),
        one=train(["pictures", 0], seed=["seeds", 0]),
        a=keep(["one", 3]),
    )
    assert [run.info.settings["seed"] for run in kept["kept"][0]] == [1, 2]


def test_lists_of_batches_captions_and_masks():
    """By hand: pictures in the order of the lists; a text for each batch, or for each picture, or one for all."""
    torch.manual_seed(0)
    images = [torch.rand(2, 64, 72, 3), torch.rand(1, 80, 64, 3)]
    masks = [torch.rand(1, 64, 72), torch.rand(80, 64)]
    made = image_set(images, ["one\ntwo", "three"], masks=masks)
    assert [item.caption for item in made.items] == ["one", "two", "three"]
    assert [tuple(item.pixels.shape) for item in made.items] == [(64, 72, 3), (64, 72, 3), (80, 64, 3)]
    for item, mask in zip(made.items, [masks[0][0], masks[0][0], masks[1]], strict=True):
        assert torch.equal(item.mask, mask)
    assert [i.caption for i in image_set(images, ["one\nline", "", "three"], "zor").items] == [
        "zor, one line",
        "zor",
        "zor, three",
    ]
    assert [i.caption for i in image_set(images, ["for all"]).items] == ["for all"] * 3
    assert image_set(images, "").fingerprint == image_set([batch.clone() for batch in images], [""]).fingerprint
    each = image_set(images, "", masks=[torch.ones(64, 72), torch.ones(1, 64, 72), torch.ones(80, 64)])
    assert all(bool((item.mask == 1).all()) for item in each.items)


@pytest.mark.parametrize(
    ("captions", "counts", "words"),
    [
        (["a", "b"], [1, 1, 1], "a list of 2 captions for 3 images"),
        (["a\nb"], [3], "2 captions for 3 images"),
        (["a\nb\nc", "d"], [2, 1], "3 captions for 2 images"),
        ([], [1, 1], "a list of 0 captions"),
        ([None], [1], "of the kind NoneType"),
    ],
)
def test_captions_of_another_number_are_refused(captions, counts, words):
    with pytest.raises(InputError, match=words):
        captions_of(captions, counts)


def test_a_list_with_a_wrong_item_is_refused():
    sizes = [torch.rand(1, 64, 64, 3), torch.rand(1, 72, 64, 3)]
    for images, more, words in (
        ([], {}, "the list of images is empty"),
        ([sizes[0], "x"], {}, "of the kind str"),
        ([sizes[0], torch.rand(1, 64, 40, 3)], {}, "image 2 is 40x64 px"),
        (sizes, {"masks": torch.ones(1, 64, 64)}, "the masks are 64x64 px and the images 64x72"),
        ([*sizes, *sizes], {"masks": [torch.ones(64, 64)] * 3}, "a list of 3 masks for 4 images"),
        (sizes, {"resolution": 32}, "resolution is 32; give 0 to keep the sizes"),
    ):
        with pytest.raises(InputError, match=words):
            image_set(images, "", **more)


def test_resolution_and_bucket_of_a_list():
    """130x100 px at 64: the bucket with sides in steps of 8 px that keeps most of 4,096 px of area, 72x56; off, the
    middle 64x64. Oracle: `target_size`, which Image Folder's tests pin.
    """
    from bespoke.nodes.images.sizes import target_size

    image = [torch.rand(1, 100, 130, 3), torch.rand(1, 64, 64, 3)]
    for bucket in (True, False):
        made = image_set(image, "", resolution=96, bucket=bucket)
        assert tuple(made.items[0].pixels.shape[:2]) == target_size(100, 130, 96, bucket)
        assert tuple(made.items[1].pixels.shape[:2]) == (64, 64)


def test_settings_as_lists_of_different_values_are_refused(queue):
    """One set comes out, so there is one trigger."""

    class Words(prompts.Models):
        RETURN_TYPES = ("STRING",)
        OUTPUT_IS_LIST = (True,)

        def give(self):
            return (["zor", "zab"],)

    nodes.NODE_CLASS_MAPPINGS["TestWords"] = Words
    pictures = ("EmptyImage", {"width": 64, "height": 64, "batch_size": 2, "color": 0})
    batch = {"images": ["pictures", 0], "captions": ["words", 0], "trigger": ""}
    kept = queue.run(
        pictures=pictures, words=("TestWords", {}), batch=("BespokeImageBatch", batch), a=keep(["batch", 0])
    )
    assert [item.caption for item in kept["kept"][0][0].items] == ["zor", "zab"]
    with pytest.raises(AssertionError, match="trigger is a list of 2 values"):
        queue.run(
            pictures=pictures,
            words=("TestWords", {}),
            batch=("BespokeImageBatch", batch | {"captions": "", "trigger": ["words", 0]}),
            a=keep(["batch", 0]),
        )


# --- the pictures of a folder -----------------------------------------------------------------------------------------


def test_pictures_of_a_folder_are_a_list_of_images_and_made_only_where_they_are_wired(queue, folder, monkeypatch):
    """By hand: the set's pixels over 255, each picture once though it stands in the set six times, mirrored or not.

    Wiring the output later gives the pictures too, though nothing else has changed.
    """
    read = []
    from bespoke.nodes.images.reading import pictures as module

    original = module.read_picture
    monkeypatch.setattr(
        module, "read_picture", lambda path, *given: (read.append(path.name), original(path, *given))[1]
    )
    images = image_folder(folder, flip=True, repeats=3)
    without = queue.run(images=images, a=keep(["images", 0], "set"))
    kept = queue.run(images=images, a=keep(["images", 0], "set"), b=keep(["images", 3], "pictures"))
    (found,) = kept["set"][0]
    assert len(found.items) == 24
    assert without["set"][0][0].fingerprint == found.fingerprint
    expected = [item.pixels[None].float() / 255 for item in found.items[:8:2]]
    assert all(torch.equal(a, b) for a, b in zip(kept["pictures"][0], expected, strict=True))
    assert len(read) in (4, 8)  # at most once for each of the two prompts: not a second time for the pictures
    before = len(read)
    assert queue.run(images=images, a=keep(["images", 0], "set"), b=keep(["images", 3], "pictures")) == {}  # cached
    assert len(read) == before


def test_preview_image_shows_the_pictures(queue, folder):
    temporary = Path(folder_paths.get_temp_directory())
    before = set(temporary.glob("ComfyUI_temp_*.png"))
    queue.run(images=image_folder(folder), preview=("PreviewImage", {"images": ["images", 3]}))
    shown = set(temporary.glob("ComfyUI_temp_*.png")) - before
    assert sorted(Image.open(path).size for path in shown) == [(64, 64), (64, 64), (96, 64), (112, 88)]


def test_a_folders_name_on_the_wire(queue, folder):
    """It wins over the list, and a changed caption is read again though the name is the same."""
    (folder.parent / "wires_other").mkdir(exist_ok=True)
    given = dict(
        images=image_folder(folder, folder="wires_other", folder_name=["text", 0]),
        text=("PrimitiveString", {"value": folder.name}),
        a=keep(["images", 0]),
    )
    assert queue.run(**given)["kept"][0][0].items[0].caption == "picture 0"
    assert queue.run(**given) == {}
    (folder / "0.txt").write_text("another caption")
    assert queue.run(**given)["kept"][0][0].items[0].caption == "another caption"
    shutil.rmtree(folder.parent / "wires_other")


# --- names of files ---------------------------------------------------------------------------------------------------


def test_a_lora_is_found_by_the_queue_that_saves_it(queue, runs):
    """Into Bespoke's nodes as text, and into core's and ours as a list, all in the prompt that saves the file."""
    folder_paths.get_filename_list("loras")  # ComfyUI caches the list as it is before the file
    kept = queue.run(
        models=("TestModels", {}),
        pictures=("EmptyImage", {"width": 64, "height": 64, "batch_size": 2, "color": 0x336699}),
        train=train(["pictures", 0]),
        save=(
            "BespokeSaveLora",
            {"lora": ["train", 1], "filename_prefix": "wires/new", "run": ["train", 3], "dtype": "fp32"},
        ),
        load=("BespokeLoadLora", {"lora_name": "none", "name": ["save", 0]}),
        listed=("BespokeLoadLora", {"lora_name": ["save", 1]}),
        inject=(
            "BespokeInjectLora",
            {"model": ["models", 0], "lora_name": "none", "strength_model": 1.0, "name": ["save", 0]},
        ),
        inspect=("BespokeInspectLora", {"lora_name": "none", "name": ["save", 0]}),
        core=(
            "LoraLoaderModelOnly",
            {"model": ["models", 0], "lora_name": ["save", 1], "strength_model": 1.0},
        ),
        compose=("BespokeComposeLoras", {"loras.lora0": ["load", 0], "strengths": ""}),
        a=keep(["load", 0], "lora"),
        b=keep(["listed", 0], "lora"),
        c=keep(["inject", 0], "model"),
        d=keep(["core", 0], "model"),
        e=keep(["inspect", 0], "report"),
        f=keep(["compose", 0], "lora"),
        g=keep(["save", 1], "name"),
    )
    loras = [lora for (lora,) in kept["lora"]]
    assert same_lora(loras[0], loras[1])
    assert loras[0]
    assert all(patcher.patches for (patcher,) in kept["model"])
    assert "new_00001.safetensors: 64 layers" in kept["report"][0][0]
    assert kept["name"] == [["wires/new_00001.safetensors"]]


def test_a_file_that_changed_is_read_again_under_a_wired_name(queue):
    """The list knows the file's size and time; for a name on a wire any change of the folder counts."""
    from safetensors.torch import save_file

    path = Path(folder_paths.get_folder_paths("loras")[0]) / "wires_again.safetensors"

    def save(value: float) -> None:
        layer = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"
        save_file(
            {f"{layer}.lora_up.weight": torch.full((8, 1), value), f"{layer}.lora_down.weight": torch.ones(1, 8)}, path
        )

    given = dict(
        text=("PrimitiveString", {"value": "wires_again"}),  # the ending may be missing
        load=("BespokeLoadLora", {"lora_name": "none", "name": ["text", 0]}),
        a=keep(["load", 0]),
    )
    try:
        for value in (1.0, 22.0):
            save(value)
            (lora,) = queue.run(**given)["kept"][0]
            assert any(bool((tensor == value).all()) for tensor in lora.values())
        assert queue.run(**given) == {}
    finally:
        path.unlink()


def test_names_that_are_no_files_are_refused(queue):
    for name, words in (("gone", "'gone' is not in ComfyUI's loras folder"), ("", "no LoRA is chosen")):
        with pytest.raises(AssertionError, match=words):
            queue.run(
                text=("PrimitiveString", {"value": name}),
                load=("BespokeLoadLora", {"lora_name": "none", "name": ["text", 0]}),
                a=keep(["load", 0]),
            )
    with pytest.raises(AssertionError, match="'embedding:gone' is not in ComfyUI's embeddings folder"):
        queue.run(
            models=("TestModels", {}),
            text=("PrimitiveString", {"value": "embedding:gone"}),
            look=(
                "BespokeInspectEmbedding",
                {"clip": ["models", 1], "embedding_name": "none", "name": ["text", 0]},
            ),
            a=keep(["look", 0]),
        )


def test_a_word_is_found_by_the_queue_that_saves_it(queue, runs):
    """Its name goes into a prompt and into Inspect Embedding."""
    kept = queue.run(
        models=("TestModels", {}),
        pictures=("EmptyImage", {"width": 64, "height": 64, "batch_size": 2, "color": 0x336699}),
        word=("BespokeTrainTextualInversion", models() | WORD | {"images": ["pictures", 0]}),
        save=("BespokeSaveEmbedding", {"embedding": ["word", 1], "name": "wires-word", "overwrite": True}),
        prompt=("CLIPTextEncode", {"clip": ["models", 1], "text": ["save", 0]}),
        empty=("CLIPTextEncode", {"clip": ["models", 1], "text": ""}),
        look=("BespokeInspectEmbedding", {"clip": ["models", 1], "embedding_name": "none", "name": ["save", 0]}),
        a=keep(["look", 0], "report"),
        b=keep(["prompt", 0], "prompt"),
        c=keep(["empty", 0], "prompt"),
    )
    assert "wires-word.safetensors" in kept["report"][0][0]
    assert len(kept["prompt"]) == 2


def test_the_stamp_of_folders_sees_every_change_and_ends_in_loops(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    stamps = [stamp_of_folders([tmp_path])]
    for change in (
        lambda: (tmp_path / "a" / "x.txt").write_text("1"),
        lambda: (tmp_path / "a" / "x.txt").write_text("22"),
        lambda: (tmp_path / "a" / "x.txt").rename(tmp_path / "a" / "y.txt"),
    ):
        assert stamp_of_folders([tmp_path]) == stamps[-1]
        change()
        stamps.append(stamp_of_folders([tmp_path]))
    assert len(set(stamps)) == 4


# --- core's training nodes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "inputs", "slot"),
    [
        ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}, 0),  # LATENT
        ("SolidMask", {"value": 1.0, "width": 64, "height": 64}, 0),  # MASK
        ("CLIPTextEncode", {"clip": ["models", 1], "text": ""}, 0),  # CONDITIONING
        (
            "MakeTrainingDataset",
            {"images": ["pictures", 0], "vae": ["models", 2], "clip": ["models", 1], "texts": ""},
            0,
        ),
    ],
)
def test_what_no_trainer_takes_is_refused_by_its_kind(queue, kind, inputs, slot):
    """ComfyUI refuses it before anything runs. The help says what to wire instead."""
    with pytest.raises(AssertionError, match=r"mismatch input_type\(BESPOKE_IMAGES,IMAGE\)"):
        queue.run(
            models=("TestModels", {}),
            pictures=("EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 0}),
            source=(kind, inputs),
            one=train(["source", slot]),
            a=keep(["one", 1]),
        )


def test_loras_of_core_and_ours_both_ways(queue, runs):
    """Our LoRA through core's loader of LORA_MODEL is the model that our trainer gives; core's is saved by our node."""
    kept = queue.run(
        models=("TestModels", {}),
        pictures=("EmptyImage", {"width": 64, "height": 64, "batch_size": 2, "color": 0x336699}),
        train=train(["pictures", 0]),
        core=(
            "LoraModelLoader",
            {"model": ["models", 0], "lora": ["train", 1], "strength_model": 1.0, "bypass": False},
        ),
        saved=("SaveLoRA", {"lora": ["train", 1], "prefix": "wires/core"}),
        a=keep(["train", 0], "model"),
        b=keep(["core", 0], "model"),
    )
    (ours,), (cores,) = kept["model"]
    assert ours.patches.keys() == cores.patches.keys()
    assert ours.patches
    assert list(Path(folder_paths.get_output_directory()).rglob("core*.safetensors"))


def test_cores_trained_lora_through_our_nodes(queue, small, run_node):
    """Core's own trainer on core's training dataset: Inspect, Compose, Inject and Save take what it gives. It trains
    biases too.

    Oracle: core's loader of LORA_MODEL patches the same weights as Inject.
    """
    core = dict(
        batch_size=1,
        grad_accumulation_steps=1,
        steps=1,
        learning_rate=1e-3,
        rank=2,
        optimizer="SGD",
        loss_function="MSE",
        seed=0,
        training_dtype="fp32",
        lora_dtype="fp32",
        quantized_backward=False,
        algorithm="LoRA",
        gradient_checkpointing=False,
        checkpoint_depth=1,
        offloading=False,
        existing_lora="[None]",
        bucket_mode=False,
        bypass_mode=False,
    )
    prompts.Models.models = small  # core's trainer takes models that come from a file
    kept = queue.run(
        models=("TestModels", {}),
        pictures=("EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 0x336699}),
        texts=("PrimitiveString", {"value": "a picture"}),
        dataset=(
            "MakeTrainingDataset",
            {"images": ["pictures", 0], "vae": ["models", 2], "clip": ["models", 1], "texts": ["texts", 0]},
        ),
        train=(
            "TrainLoraNode",
            {"model": ["models", 0], "latents": ["dataset", 0], "positive": ["dataset", 1]} | core,
        ),
        inspect=("BespokeInspectLora", {"lora_name": "none", "lora": ["train", 0]}),
        compose=("BespokeComposeLoras", {"loras.lora0": ["train", 0], "strengths": ""}),
        inject=(
            "BespokeInjectLora",
            {"model": ["models", 0], "lora_name": "none", "strength_model": 1.0, "lora": ["train", 0]},
        ),
        wire=(
            "LoraModelLoader",
            {"model": ["models", 0], "lora": ["train", 0], "strength_model": 1.0, "bypass": False},
        ),
        a=keep(["wire", 0], "model"),
        c=keep(["inject", 0], "model"),
        d=keep(["inspect", 0], "report"),
        e=keep(["compose", 0], "lora"),
        f=keep(["train", 0], "trained"),
    )
    keys = [set(patcher.patches) for (patcher,) in kept["model"]]
    assert keys[0]
    assert keys == [keys[0]] * 2
    name, _ = run_node("BespokeSaveLora", lora=kept["trained"][0][0], filename_prefix="wires/cores")
    read = run_node("BespokeInjectLora", model=small[0], lora_name=name, strength_model=1.0)[0]
    assert set(read.patches) == keys[0]
    unknown = {"diffusion_model.out.2.weight.odd": torch.ones(2)}
    with pytest.raises(InputError, match="which is part of no adapter; save it with ComfyUI's own node"):
        run_node("BespokeSaveLora", lora=unknown, filename_prefix="wires/odd")
    assert small[0].patches == {}


def test_a_run_into_a_preview_of_anything(queue, runs):
    """A run on core's Preview as Text: words, no failure."""
    queue.run(
        models=("TestModels", {}),
        pictures=("EmptyImage", {"width": 64, "height": 64, "batch_size": 2, "color": 0x336699}),
        train=train(["pictures", 0]),
        show=("PreviewAny", {"source": ["train", 3]}),
    )
