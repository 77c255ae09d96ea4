"""Folders that were made for other trainers: every caption, mask and repeat as that program's documentation has it."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from bespoke.nodes.images import layout as layout_module
from bespoke.nodes.images.folder import FolderRequest, read_folder
from bespoke.nodes.images.hashing import hash_files
from bespoke.nodes.images.layout import DEEPEST, layout_of
from bespoke.nodes.images.sheet import describe
from bespoke.training.config import TrainConfig
from bespoke.training.data import LatentSet
from bespoke.training.errors import InputError
from PIL import Image

LINES = "text files, one caption a line"


def draw(path: Path, seed: int = 0) -> None:
    """A picture of 96x80 px that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng([seed, *path.name.encode()]).integers(0, 256, (80, 96, 3), np.uint8)
    Image.fromarray(values).save(path)


def left_half(path: Path, width: int = 48) -> None:
    """A mask whose left `width` of 96 pixels are white."""
    mask = Image.new("L", (96, 80), 0)
    mask.paste(255, (0, 0, width, 80))
    mask.save(path)


def write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")


def read(folder, **changes):
    return read_folder(FolderRequest(folder, **changes))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


@dataclass(frozen=True)
class Item:
    """What is expected of one picture. mask: the share that counts, 1 without a mask."""

    captions: tuple[str, ...]
    weight: float = 1.0
    trigger: str = ""
    mask: float = 1.0


@dataclass(frozen=True)
class Case:
    """A set as a program has it. build: makes it. settings: of the node. items: what the program trains on."""

    build: Callable[[Path], None]
    items: dict[str, Item]
    settings: dict = field(default_factory=dict)


def kohya(folder):
    for name in ("10_sks dog/a.png", "10_sks dog/b.png", "3_black_cat/a.png", "0_off/a.png", "more/a.png"):
        draw(folder / name)
    write(folder, {"10_sks dog/a.txt": "a photo of sks dog, running", "3_black_cat/a.caption": "an animal"})


def kohya_with_own_pictures(folder):
    kohya(folder)
    draw(folder / "own.png")


def kohya_captions(folder):
    for name in ("a.png", "b.jpg"):
        draw(folder / name)
    write(folder, {"a.caption": "1girl, red hair", "b.caption": "1boy"})


def kohya_wildcard(folder):
    draw(folder / "5_dog" / "a.png")
    draw(folder / "5_dog" / "b.png")
    write(folder, {"5_dog/a.txt": "a dog\n\n  a running dog \na dog in the snow\n", "5_dog/b.txt": "\n"})


def imagefolder(folder):
    for name in ("0001.png", "0002.png", "0003.png"):
        draw(folder / name)
    rows = [
        {"file_name": "0001.png", "text": "This is a golden retriever playing with a ball"},
        {"file_name": "0002.png", "text": "A german shepherd", "objects": {"bbox": [[1.0, 2.0, 3.0, 4.0]]}},
        {"text": "One chihuahua", "file_name": "./0003.png"},
    ]
    write(folder, {"metadata.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})


def imagefolder_below(folder):
    draw(folder / "images" / "dog" / "0001.png")
    draw(folder / "images" / "0002.png")
    rows = [{"file_name": "images/dog/0001.png", "text": "a dog"}, {"file_name": "images/0002.png", "text": "a cat"}]
    write(folder, {"metadata.jsonl": "\n".join(map(json.dumps, rows))})


def imagefolder_csv(folder):
    for name in ("train/0001.png", "train/0002.png"):
        draw(folder / name)
    rows = 'file_name,text,label\n0001.png,"A dog, ""Rex"", runs",1\n0002.png,A german shepherd,2\n'
    write(folder, {"train/metadata.csv": rows, "README.md": "# A data set", ".gitattributes": "x"})


def ai_toolkit(folder):
    for name in ("image1.jpg", "image2.png", "deeper/still/image3.png", "_controls/image1.jpg", ".thumbs/image1.jpg"):
        draw(folder / name)
    write(
        folder,
        {
            "image1.txt": "a photo of [trigger], sitting",
            "image2.txt": "[trigger]\nwith [trigger]",
            "deeper/still/image3.txt": "p3rs0n in the rain",
        },
    )


def ai_toolkit_without_trigger(folder):
    draw(folder / "image1.png")
    write(folder, {"image1.txt": "[trigger] holding a sign"})


def one_trainer(folder):
    for name in ("a.png", "b.png", "more/a.png", "c.png"):
        draw(folder / name)
    left_half(folder / "a-masklabel.png")
    left_half(folder / "more" / "a-masklabel.png", 24)
    draw(folder / "b-condlabel.png")
    write(folder, {"a.txt": "first\nsecond\n", "b.txt": "alone", "more/a.txt": "below"})


def simple_tuner(folder):
    draw(folder / "a_red_cup.png")
    write(folder, {"a_red_cup.txt": "a cup\na red cup on a table\n"})


def simple_flat(folder):
    for name in ("a.png", "b.webp", "c.png"):
        draw(folder / name)
    write(folder, {"a.txt": "a castle", "b.txt": "a bridge"})


SKS = "sks dog"
KOHYA = {
    "10_sks dog/a.png": Item(("a photo of sks dog, running",), 10, SKS),
    "10_sks dog/b.png": Item((SKS,), 10, SKS),
    "3_black_cat/a.png": Item(("an animal",), 3),
}
CASES = {
    # kohya-ss/sd-scripts, library/config_util.py, generate_dreambooth_subsets_config_by_subdirs: N and name of each
    # subfolder N_name, N below 1 and other names are left out; train_util.py, load_dreambooth_dir: the name is the
    # caption of a picture without a file, and nothing is added to a file's.
    "kohya, N_name folders": Case(kohya, KOHYA),
    "kohya, N_name folders below pictures": Case(
        kohya_with_own_pictures,
        KOHYA | {"own.png": Item(("",)), "more/a.png": Item(("",))},
        {"subfolders": True},
    ),
    # sd-scripts, docs/train_README-zh.md: files of the pictures' names with the ending .caption.
    "kohya, .caption files": Case(kohya_captions, {"a.png": Item(("1girl, red hair",)), "b.jpg": Item(("1boy",))}),
    # sd-scripts, docs/config_README-en.md, enable_wildcard: of several lines one is drawn; train_util.py, read_caption:
    # lines without text are left out; the name of the folder is no caption where there is a file.
    "kohya, several lines": Case(
        kohya_wildcard,
        {
            "5_dog/a.png": Item(("a dog", "a running dog", "a dog in the snow"), 5, "dog"),
            "5_dog/b.png": Item(("",), 5),
        },
        {"captions": LINES},
    ),
    # huggingface/datasets, docs/source/image_dataset.mdx, "Image captioning": file_name and text; file_name is the path
    # from the folder of the metadata file.
    "Hugging Face imagefolder": Case(
        imagefolder,
        {
            "0001.png": Item(("This is a golden retriever playing with a ball",)),
            "0002.png": Item(("A german shepherd",)),
            "0003.png": Item(("One chihuahua",)),
        },
    ),
    "Hugging Face imagefolder, pictures below": Case(
        imagefolder_below, {"images/0002.png": Item(("a cat",)), "images/dog/0001.png": Item(("a dog",))}
    ),
    # The same page: a metadata.csv in the folder of a split.
    "Hugging Face imagefolder, split with a .csv": Case(
        imagefolder_csv,
        {"train/0001.png": Item(('A dog, "Rex", runs',)), "train/0002.png": Item(("A german shepherd",))},
        {"subfolders": True},
    ),
    # ostris/ai-toolkit, README.md, "Dataset Preparation": [trigger] is replaced; toolkit/data_loader.py reads the
    # folders below too. toolkit/prompt_utils.py, inject_trigger_into_prompt: without a trigger word it is taken out.
    "ai-toolkit": Case(
        ai_toolkit,
        {
            "image1.jpg": Item(("a photo of p3rs0n, sitting",), trigger="p3rs0n"),
            "image2.png": Item(("p3rs0n with p3rs0n",), trigger="p3rs0n"),
            "deeper/still/image3.png": Item(("p3rs0n in the rain",), trigger="p3rs0n"),
        },
        {"trigger": "p3rs0n", "subfolders": True},
    ),
    "ai-toolkit without a trigger": Case(ai_toolkit_without_trigger, {"image1.png": Item(("holding a sign",))}),
    # Nerogar/OneTrainer, docs/QuickStartGuide.md, "Masked training": white of NAME-masklabel.png is trained on;
    # modules/dataLoader/mixin/DataLoaderText2ImageMixin.py: a line of the prompt file is drawn, -masklabel and
    # -condlabel are no pictures, one without a mask counts as a whole, subdirectories are read where switched on.
    "OneTrainer": Case(
        one_trainer,
        {
            "a.png": Item(("first", "second"), mask=0.5),
            "b.png": Item(("alone",)),
            "c.png": Item(("",)),
            "more/a.png": Item(("below",), mask=0.25),
        },
        {"captions": LINES, "masks": "*-mask.png", "subfolders": True},
    ),
    # bghira/SimpleTuner, documentation/DATALOADER.md, caption_strategy: image.txt beside image.png holds one or more
    # captions, separated by newlines; filename takes the name with underscores swapped for spaces.
    "SimpleTuner, textfile": Case(
        simple_tuner, {"a_red_cup.png": Item(("a cup", "a red cup on a table"))}, {"captions": LINES}
    ),
    "SimpleTuner, filename": Case(simple_tuner, {"a_red_cup.png": Item(("a red cup",))}, {"captions": "file names"}),
    # tdrussell/diffusion-pipe, README.md: .txt files with the same base name, in the same directory; a picture without
    # one has an empty caption.
    "diffusion-pipe": Case(
        simple_flat, {"a.png": Item(("a castle",)), "b.webp": Item(("a bridge",)), "c.png": Item(("",))}
    ),
}


def share(mask: torch.Tensor | None) -> float:
    """The share of a picture that counts, of one without a mask all. Its white part is on the left."""
    if mask is None:
        return 1.0
    assert (mask == mask.sort(1, descending=True).values).all()
    return float(mask.mean())


@pytest.mark.parametrize("name", CASES)
def test_a_set_of_another_program_is_read_as_there(folder, name):
    """Layout x item: the oracle of each case is named beside it in `CASES`."""
    case = CASES[name]
    case.build(folder)
    items = {item.name: item for item in read(folder, source="chosen", **case.settings).items}
    found = {key: Item(item.captions, item.weight, item.trigger, share(item.mask)) for key, item in items.items()}
    for key, item in found.items():
        print(f"{name:42} {key:26} {item.captions} weight {item.weight:g} trigger {item.trigger!r} mask {item.mask:g}")
    assert found == case.items
    assert {item.path for item in items.values()} == {f"chosen/{key}" for key in case.items}


def test_the_report_names_what_is_read_and_what_is_not(folder):
    kohya_with_own_pictures(folder)
    (folder / "10_sks dog" / "a.npz").write_text("cache")
    (folder / "up").symlink_to(folder / "more")
    text = describe(read(folder))
    assert "NOT READ: 5 pictures in subfolders: 10_sks dog (2), 3_black_cat (1), more (1), up (1). Only the" in text
    assert "switch on subfolders" in text
    (folder / "own.png").unlink()
    text = describe(read(folder))
    assert "Read from subfolders: 10_sks dog (2 pictures, 10 repeats), 3_black_cat (1 picture, 3 repeats)." in text
    assert "Captions from the names of folders: 10_sks dog/b.png (sks dog)." in text
    assert "NOT READ: 2 pictures in subfolders: more (1), up (1). Only 10_sks dog, 3_black_cat and" in text
    assert "Passed over, as their names ask for 0 repeats: 0_off." in text
    assert "Passed over, as they are no pictures: 1 .npz, for example 10_sks dog/a.npz." in text
    assert "Trigger word: sks dog." in text
    text = describe(read(folder, subfolders=True))
    assert "NOT READ: 1 picture in subfolders: up (1). They are links, lie too deep" in text
    assert "No caption: more/a.png; the prompt is empty for them." in text
    text = describe(read(folder / "10_sks dog"))
    assert "The name 10_sks dog is not read as repeats and a caption" in text


def test_a_folder_whose_name_no_caption_says_is_told(folder):
    """kohya uses the name N_name for pictures without a caption file alone, so it may stand nowhere."""
    for name in ("10_cat/1.png", "10_cat/2.png", "5_dog/1.png", "5_dog/2.png"):
        draw(folder / name)
    write(folder, {"10_cat/1.txt": "black fur", "10_cat/2.txt": "asleep", "5_dog/1.txt": "on a chair"})
    text = describe(read(folder))
    assert "No caption says the name of its folder: cat (10_cat)." in text
    assert "passes over each picture on average" in text
    assert "No caption says" not in describe(read(folder, trigger="{folder}"))
    assert "No caption says" not in describe(read(folder, trigger="sks"))


def test_repeats_are_the_shares_of_the_draws(folder):
    """kohya's repeats by arithmetic: over whole passes a picture of 10_ is drawn 10 times and one of 3_ 3 times."""
    kohya(folder)
    items = read(folder).items
    data = LatentSet([torch.zeros(1, 4, 10, 12) for _ in items], [None] * len(items), [item.weight for item in items])
    config = TrainConfig(steps=1, batch_size=1, learning_rate=1e-4, seed=0)
    steps = 2 * sum(int(item.weight) for item in items)
    counts = data.draw_counts(config, steps, range(len(items)))
    assert [counts[index] for index in range(len(items))] == [20, 20, 6]
    drawn = Counter(
        index for step in range(steps) for index in data.batch(config, step, torch.device("cpu"), _Middle()).indices
    )
    assert drawn == counts


class _Middle:
    """Timesteps of 0.5."""

    def sample(self, u):
        return torch.full_like(u, 0.5)

    def weight(self, t):
        return None


def test_the_trigger_by_folder(folder):
    """{folder} in the trigger is the name of the picture's folder, of kohya's the name without the number."""
    for name in ("ada/1.png", "5_bob/1.png", "5_bob/night/1.png", "own.png"):
        draw(folder / name)
    write(folder, {"ada/1.txt": "a woman", "5_bob/1.txt": "Bob on a chair"})
    images = read(folder, trigger="{folder}", subfolders=True)
    assert {item.name: (item.caption, item.trigger, item.weight) for item in images.items} == {
        "own.png": ("set", "set", 1),
        "ada/1.png": ("ada, a woman", "ada", 1),
        "5_bob/1.png": ("Bob on a chair", "bob", 5),
        "5_bob/night/1.png": ("bob", "bob", 5),
    }
    assert images.triggers == ["set", "bob", "ada"]
    assert "Trigger words: set, bob, ada." in describe(images)
    captions = [
        item.caption for item in read(folder, captions="template", template="{folder}: {name}", subfolders=True).items
    ]
    assert captions == ["set: own", "bob: 1", "bob: 1", "ada: 1"]
    one = read(folder, trigger="zor", subfolders=True)
    assert one.trigger == "zor"
    assert [item.caption for item in one.items] == ["zor", "zor, Bob on a chair", "zor, bob", "zor, a woman"]


def test_lines_are_joined_where_they_are_one_caption_and_the_report_says_so(folder):
    draw(folder / "a.png")
    write(folder, {"a.txt": "a red\nwall "})
    images = read(folder)
    assert images.items[0].captions == ("a red wall",)
    assert "Several lines, joined to one caption: a.png. Where each line is a caption of its own" in describe(images)
    images = read(folder, captions=LINES, trigger="zor", flip=True)
    assert [item.captions for item in images.items] == [("zor, a red", "zor, wall")] * 2
    assert "Several captions, drawn by turns: 1 picture with up to 2." in describe(images)
    assert "2 different captions" in describe(images)


def test_which_of_several_written_captions_counts(folder):
    """.txt before .caption before the table; the others are named."""
    for name in ("a.png", "b.png", "c.png"):
        draw(folder / name)
    rows = [{"file_name": f"{name}.png", "text": f"table {name}"} for name in "abc"]
    rows.append({"file_name": "c.png", "text": "again c"})
    write(
        folder,
        {
            "a.txt": "text a",
            "a.caption": "caption a",
            "b.CAPTION": "caption b",
            "metadata.jsonl": "\n".join(map(json.dumps, rows)),
        },
    )
    images = read(folder)
    assert [item.captions for item in images.items] == [("text a",), ("caption b",), ("table c",)]
    text = describe(images)
    assert "NOT READ: a.caption, as the same picture has another caption file." in text
    assert "Passed over: the rows of 2 pictures in a table, as they have caption files: a.png, b.png." in text
    assert "NOT READ: further rows of 1 picture in a table: c.png. To take each row as a caption" in text
    assert read(folder, captions=LINES).items[2].captions == ("table c", "again c")


def test_the_nearest_table_counts(folder):
    draw(folder / "below" / "a.png")
    write(
        folder,
        {
            "metadata.jsonl": json.dumps({"file_name": "below/a.png", "text": "from above"}),
            "below/metadata.jsonl": json.dumps({"file_name": "a.png", "text": "beside"}),
        },
    )
    images = read(folder)
    assert [(item.name, item.caption) for item in images.items] == [("below/a.png", "beside")]
    assert "Captions in more than one metadata.jsonl: below/a.png; the one in below/metadata.jsonl" in describe(images)


def test_a_table_that_names_what_is_not_read(folder):
    draw(folder / "a.png")
    draw(folder / "below" / "b.png")
    rows = [{"file_name": "a.png", "prompt": "a"}, {"file_name": "below/b.png", "prompt": "b"}]
    write(folder, {"metadata.jsonl": "\n".join(map(json.dumps, rows))})
    text = describe(read(folder))
    assert "NOT READ: metadata.jsonl has captions of 1 file that is not in the set: below/b.png." in text
    assert (
        "NOT READ: metadata.jsonl has no column text; call the one with the captions so. Its others are prompt" in text
    )
    assert "No caption: a.png" in text


def tree(folder: Path) -> dict[str, tuple]:
    """Names, contents and times of everything in a folder."""
    paths = sorted(folder.rglob("*"))
    return {
        str(path): (path.read_bytes() if path.is_file() else b"", path.lstat().st_mtime_ns, path.lstat().st_mode)
        for path in [folder, *paths]
    }


def test_every_wrong_file_is_named_at_once_and_nothing_is_written(folder):
    """Each fault of each kind, in the folder and below it, by name and with the mend; the folder stays as it is."""
    for name in ("good.png", "5_cat/good.png"):
        draw(folder / name)
    Image.new("RGB", (20, 90)).save(folder / "5_cat" / "thin.png")
    left_half(folder / "5_cat" / "good-masklabel.png")
    Image.new("L", (9, 9)).save(folder / "good-mask.png")
    (folder / "5_cat" / "latin.txt").write_bytes(b"")
    with (folder / "5_cat" / "good.txt").open("wb") as file:
        file.truncate(10_000_000)
    lines = [
        json.dumps({"file_name": "good.png", "text": "fine"}),
        "{broken",
        "[1]",
        json.dumps({"text": "no name"}),
        json.dumps({"file_name": "good.png", "text": 7}),
        json.dumps({"file_name": "../../secret.png", "text": "x"}),
        json.dumps({"file_name": "/etc/passwd", "text": "x"}),
        json.dumps({"file_name": "gone.png", "text": "x"}),
        "[" * 100_000,
        json.dumps({"file_name": "./", "text": "x"}),
    ]
    write(
        folder,
        {"fake.png": "text", "5_cat/fake.jpg": "text", "lonely.caption": "x", "metadata.jsonl": "\n".join(lines)},
    )
    before = tree(folder)
    with pytest.raises(InputError) as error:
        read(folder, subfolders=True, masks="*-mask.png")
    text = str(error.value)
    for words in (
        "9 of the files in 'set' cannot be used; move them out of the folder or mend them",
        "fake.png is no picture that can be read",
        "5_cat/fake.jpg is no picture that can be read",
        "5_cat/thin.png is 20x90 px; a side needs 64 or more",
        "5_cat/latin.txt is a caption without a picture of that name",
        "lonely.caption is a caption without a picture of that name",
        "5_cat/good.png has a caption file that cannot be read (has 10,000,000 bytes",
        "good-mask.png is 9x9 px and its picture 96x80",
        "metadata.jsonl has lines that cannot be used",
        "line 2 cannot be read (Expecting property name ",
        "line 3 is no object, line 4 has no file_name, line 5 has a text that is no text",
        "line 6 has the file_name '../../secret.png', which leads out of the folder",
        "line 7 has the file_name '/etc/passwd', which leads",
        "line 9 cannot be read (the JSON is nested too deeply",
        "metadata.jsonl names pictures that are not there: gone.png (line 8), . (line 10); file_name is the path from",
    ):
        assert words in text, words
    assert str(folder.parent) not in text
    hash_files(folder, subfolders=True)
    assert tree(folder) == before


def test_reading_a_good_set_writes_nothing(folder):
    kohya_with_own_pictures(folder)
    imagefolder(folder)
    before = tree(folder)
    read(folder, subfolders=True)
    hash_files(folder, subfolders=True)
    assert tree(folder) == before


def test_a_flat_folder_of_txt_captions_has_the_fingerprint_of_version_0_1(folder):
    """The hash by hand, as version 0.1 made it: of each item its shape, prompt, sizes, pixels and mask."""
    for number in range(3):
        draw(folder / f"{number}.png", number)
    left_half(folder / "1-mask.png")
    write(folder, {"0.txt": "a (red) wall\nwith a door", "1.txt": "a cat"})
    images = read(folder, trigger="zor", flip=True, repeats=2, masks="*-mask.png", source="set")
    prompts = ["zor, a \\(red\\) wall with a door", "zor, a cat", "zor"]
    digest = hashlib.sha256()
    for number, prompt in [(number, prompt) for _ in range(2) for number, prompt in enumerate(prompts)]:
        pixels = np.asarray(Image.open(folder / f"{number}.png"))
        for turned in (pixels, pixels[:, ::-1]):
            digest.update(f"(80, 96, 3)\0{prompt}\0(80, 96)(0, 0)".encode())
            digest.update(np.ascontiguousarray(turned).data)
            if number == 1:
                mask = np.zeros((80, 96), np.float32)
                mask[:, :48] = 1
                digest.update(np.ascontiguousarray(mask if turned is pixels else mask[:, ::-1]).data)
    assert images.fingerprint == digest.hexdigest()
    assert all(item.weight == 1 and not item.more_captions for item in images.items)


@pytest.mark.parametrize(
    "change",
    ["5_dog/a.caption", "metadata.jsonl", "5_dog/metadata.jsonl", "5_dog/b.png", "new/c.png", "6_cat/d.png"],
)
def test_the_hash_sees_every_file_that_is_read(folder, change):
    draw(folder / "5_dog" / "a.png")
    row = json.dumps({"file_name": "new/c.png", "text": "x"})
    write(folder, {"5_dog/a.caption": "old", "metadata.jsonl": row, "5_dog/metadata.jsonl": "{}"})
    draw(folder / "new" / "b.png")
    draw(folder / "unread" / "b.png")
    before = hash_files(folder)
    write(folder, {"unread/b.txt": "not read"})
    assert hash_files(folder) == before
    write(folder, {change: "changed"})
    assert hash_files(folder) != before
    below = hash_files(folder, subfolders=True)
    write(folder, {"unread/b.txt": "read now"})
    assert hash_files(folder, subfolders=True) != below


def test_deep_and_wide_trees_have_bounds(folder, monkeypatch):
    draw(folder / "a.png")
    path = folder
    for _ in range(DEEPEST + 2):
        path = path / "d"
        path.mkdir()
    draw(path / "deep.png")
    layout = layout_of(folder, subfolders=True)
    assert len(layout.parts) == DEEPEST + 1
    text = describe(read(folder, subfolders=True))
    assert f"NOT READ: 1 picture in subfolders: {'/'.join('d' * (DEEPEST + 1))} (1)" in text
    monkeypatch.setattr(layout_module, "MOST_FOLDERS", 10)
    with pytest.raises(InputError, match="'set' holds more than 10 subfolders; choose one"):
        layout_of(folder, subfolders=True)


def test_repeats_that_are_too_far_apart_are_refused(folder):
    for name in ("1_a/1.png", "1001_b/1.png", "5000_c/cache.npz"):
        draw(folder / name) if name.endswith(".png") else write(folder, {name: ""})
    (folder / "5000_d").mkdir()  # no picture in it
    with pytest.raises(InputError, match="'1001_b' asks for 1,001 repeats and '1_a' for 1; rename them"):
        layout_of(folder)
    (folder / "1001_b").rename(folder / "1000_b")
    assert [item.weight for item in read(folder).items] == [1000, 1]


def test_pictures_of_one_name_in_several_folders_are_several_pictures(folder):
    for name in ("2_a/1.png", "2_b/1.png"):
        draw(folder / name, len(name) + ord(name[2]))
    images = read(folder, flip=True, source="chosen")
    assert [len(copies) for copies in images.copies()] == [2, 2]
    assert [item.path for item in images.items] == ["chosen/2_a/1.png"] * 2 + ["chosen/2_b/1.png"] * 2
