"""Names of files that are too long, by POSIX NAME_MAX (255 bytes), and temporary files that a killed process left."""

import os
import time

import pytest
import torch
from bespoke.nodes.bridge.files.writing import resolve_inside, write_text
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.training.errors import InputError
from bespoke.training.record import Run, RunInfo
from PIL import Image

LORA = {
    "diffusion_model.a.lora_down.weight": torch.ones(1, 4),
    "diffusion_model.a.lora_up.weight": torch.ones(4, 1),
    "diffusion_model.a.alpha": torch.tensor(1.0),
}
WORD = {"l": torch.ones(1, 768)}


@pytest.mark.parametrize("letter", ["x", "é", "猫", "𠀋"])
def test_a_lora_takes_every_name_that_fits_and_no_longer_one(run_node, comfyui, letter):
    """The file's name is that of the prefix and "_00001.safetensors": 237 bytes are left for the prefix."""
    size = len(letter.encode())
    fits = letter * (237 // size)
    name, *_ = run_node("BespokeSaveLora", lora=LORA, filename_prefix=f"long/{fits}")
    assert name == f"long/{fits}_00001.safetensors"
    count = 237 // size + 1
    with pytest.raises(
        ValueError, match=rf"Bespoke Save LoRA: the name .* has a part of {count * size + 18} bytes"
    ) as e:
        run_node("BespokeSaveLora", lora=LORA, filename_prefix=f"long/{letter * count}")
    assert "_00001.safetensors" in str(e.value)
    assert "at most 255: shorten it by" in str(e.value)
    assert str(comfyui) not in str(e.value)


def test_a_word_takes_every_name_that_fits_and_no_longer_one(run_node, comfyui):
    assert run_node("BespokeSaveEmbedding", embedding=WORD, name="w" * 243) == (f"embedding:{'w' * 243}",)
    for name in ("w" * 244, "w" * 300, f"{'w' * 256}/cat"):
        with pytest.raises(ValueError, match="Bespoke Save Embedding: the name 'w.*bytes in UTF-8") as error:
            run_node("BespokeSaveEmbedding", embedding=WORD, name=name)
        assert str(comfyui) not in str(error.value)


def test_whole_paths_and_halves_of_characters(tmp_path):
    with pytest.raises(InputError, match="5,001 characters; give a shorter one"):
        resolve_inside(tmp_path, "ab/" * 1667)
    with pytest.raises(InputError, match="holds .*, which is no character; remove it"):
        resolve_inside(tmp_path, "a\ud800")


@pytest.mark.parametrize("name", ["taken/a", "taken/b/a"])
def test_a_file_in_the_place_of_the_names_folder_is_said(run_node, comfyui, name):
    """Making the folder raises `FileExistsError`, which is no taken name: another number would not help."""
    for kind, node, given in (
        ("loras", "BespokeSaveLora", {"lora": LORA, "filename_prefix": name}),
        ("embeddings", "BespokeSaveEmbedding", {"embedding": WORD, "name": name}),
    ):
        (comfyui / "models" / kind / "taken").write_text("")
        with pytest.raises(ValueError, match="needs a folder 'taken', which is a file; choose another name"):
            run_node(node, **given)
        (comfyui / "models" / kind / "taken").unlink()


def test_what_killed_writers_left_is_removed_by_the_next_write(tmp_path, comfyui):
    """In each folder that texts, samples and states are written to; what another process may be writing stays."""
    store = RunStore("lora-00000000000d", tmp_path)
    store.save_record(Run(RunInfo("lora-00000000000d", "lora", {}, "base", 4)))
    writes = {
        store.folder: lambda: write_text(store.folder / "graph.json", "{}"),
        store.folder / "samples": lambda: store.save_sample(1, Image.new("RGB", (8, 8))),
    }
    for folder, write in writes.items():
        folder.mkdir(exist_ok=True)
        old = [folder / ".bespoke-record.json-12.part", folder / ".bespoke-x.part", folder / ".000001.png.part"]
        new = folder / ".bespoke-new.part"
        other = folder / "mine.part"
        for path in (*old, new, other):
            path.write_bytes(b"half")
        for path in (*old, other):
            os.utime(path, (time.time() - 7200,) * 2)
        write()
        assert [path.name for path in old if path.exists()] == []
        assert new.exists()
        assert other.exists()  # no file of this pack
