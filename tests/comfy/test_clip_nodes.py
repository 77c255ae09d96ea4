"""Clips through ComfyUI: the node, sets that are saved and read again, jobs, and ComfyUI's own video nodes."""

import io
import json
import os
import shutil
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from bespoke.nodes.images import routes
from bespoke.nodes.images.clips.folder import ClipRequest, read_clip_folder
from bespoke.nodes.images.clips.plan import Cutting
from bespoke.nodes.images.combination.combine import combine
from bespoke.nodes.images.saving.report import report_of
from bespoke.nodes.images.saving.save import save_set
from bespoke.nodes.images.thumbnails import made
from bespoke.nodes.jobs.job import _decode_picture, _encode_picture
from bespoke.training.errors import InputError
from PIL import Image

from ..lib.films import grey, numbers, write_film


def clips_of(folder, frame_step=4):
    cutting = Cutting(frames=9, frame_step=frame_step, threshold=0.0)
    how = {"resolution": 128, "bucket_step": 8, "masks": "*-mask", "cutting": cutting}
    return read_clip_folder(ClipRequest(folder, **how))


def save(images, base):
    return save_set(images, base, "set", lambda done, of: None)


def test_the_node(comfyui, run_node):
    folder = Path(folder_paths.get_input_directory()) / "bespoke_test_films"
    folder.mkdir(parents=True)
    try:
        write_film(folder / "a.mkv", [grey(i) for i in range(40)])
        (folder / "a.txt").write_text("it gets brighter")
        given = {"folder": folder.name, "captions": "text files", "template": "", "trigger": "zor", "resolution": 128}
        images, preview, report = run_node("BespokeClipFolder", **given, frames=11, fps=12.0, max_clips=1)
        assert numbers(images.items[0].pixels) == [*range(0, 18, 2)]
        assert images.items[0].caption == "zor, it gets brighter"
        assert "1 clip: 1 at 128x96 px, 9 frames." in report
        assert preview.shape[0] == 1
        again = run_node("BespokeClipFolder", **given, frames=9, fps=12.0, max_clips=1)
        assert again[0].fingerprint == images.fingerprint
        listed = run_node(
            "BespokeImageBatch",
            images=images.items[0].pixels[None][0].float() / 255,
            captions="a",
            trigger="",
            clips=True,
            fps=12.0,
        )[0]
        assert torch.equal(listed.items[0].pixels, images.items[0].pixels)
    finally:
        shutil.rmtree(folder)


def test_the_list_of_films_and_their_captions(comfyui, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    folder = tmp_path / "set"
    folder.mkdir()
    write_film(folder / "a.mkv", [grey(40)] * 3)
    write_film(folder / "a-mask.mkv", [grey(40)] * 3)
    Image.new("RGB", (64, 64)).save(folder / "b.png")
    (folder / "a.txt").write_text("bright")
    films, pictures = (routes.contents("set", films=films)["pictures"] for films in (True, False))
    assert films == [{"file": "a.mkv", "caption": "bright"}]
    assert [each["file"] for each in pictures] == ["b.png"]
    assert routes.write_caption("set", "a.mkv", "brighter") == {"caption": "brighter"}
    assert (folder / "a.txt").read_text() == "brighter\n"
    with Image.open(io.BytesIO(made.thumbnail(folder / "a.mkv"))) as small:
        assert small.size == (128, 96)
        assert abs(small.getpixel((64, 48))[0] - 200) <= 2


def test_caption_variants_of_clips(comfyui, run_node, tmp_path):
    write_film(tmp_path / "a.mkv", [grey(i) for i in range(9)])
    (tmp_path / "a.txt").write_text("bright, grey, square")
    images = run_node(
        "BespokeCaptionVariants",
        images=clips_of(tmp_path),
        separator=",",
        shuffle=True,
        keep_first=1,
        drop_tags=0.0,
        keep_tags="",
        variants=4,
        append="slow",
    )[0]
    assert images.items[0].caption == "bright, grey, square, slow"
    assert numbers(images.items[0].pixels) == [*range(9)]
    assert len(images.items[0].texts) == 2  # the first tag and the last stay, the other two change places


def test_a_saved_set_reads_back_the_same(comfyui, tmp_path):
    films, base = tmp_path / "films", tmp_path / "input"
    films.mkdir()
    base.mkdir()
    random = np.random.default_rng(1)
    for name, count in (("walk.mkv", 20), ("run.mkv", 6)):
        write_film(films / name, [random.integers(0, 255, (99, 131, 3), np.uint8) for _ in range(count)], rate=16)
        masks = [random.integers(0, 255, (99, 131, 1), np.uint8).repeat(3, 2) for _ in range(count)]
        write_film(films / f"{name[:-4]}-mask.mkv", masks)
    (films / "walk.txt").write_text("a man walks")
    images = clips_of(films)
    saved = save(images, base)
    assert sorted(path.name for path in (base / "set").iterdir()) == [
        *("run-mask.mkv", "run.mkv", "walk#1-mask.mkv", "walk#1.mkv", "walk#1.txt"),
        *("walk#2-mask.mkv", "walk#2.mkv", "walk#2.txt"),
    ]
    report = report_of(saved, images)
    assert "3 clips, 2 caption files, 3 masks" in report
    assert "frames 9; frame_step 1; scene_threshold 0; masks *-mask" in report
    again = clips_of(base / "set", frame_step=1)
    for one, other in zip(images.items, again.items, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert (one.caption, one.fps) == (other.caption, other.fps)
        assert torch.equal((one.mask * 255).round(), (other.mask * 255).round())
    assert save(images, base).was_there
    (base / "set" / "walk#1.txt").write_text("edited")
    with pytest.raises(InputError, match=r"with other captions or masks \(walk#1.txt\)"):
        save(images, base)


def test_clips_of_one_name_with_other_frames_are_all_saved(comfyui, tmp_path):
    films, base = tmp_path / "films", tmp_path / "input"
    films.mkdir()
    base.mkdir()
    write_film(films / "a.mkv", [grey(i) for i in range(10)])

    def cut(fps, flip):
        cutting = Cutting(frames=5, fps=fps)
        return read_clip_folder(ClipRequest(films, resolution=128, bucket_step=8, flip=flip, cutting=cutting))

    images = combine({"set0": cut(24.0, True), "set1": cut(12.0, False)}, resolutions="128, 64").images
    saved = save(images, base)
    assert [numbers(picture.item.pixels) for picture in saved.pictures] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [0, 2, 4, 6, 8],
    ]
    assert "3 clips" in report_of(saved, images)
    assert len(list((base / "set").glob("*.mkv"))) == 3


def test_a_job_keeps_frames_rate_and_film(comfyui, tmp_path):
    write_film(tmp_path / "a.mkv", [grey(i) for i in range(20)])
    for item in clips_of(tmp_path).items:
        encoded = _encode_picture(item)
        assert encoded["frames"] == 9
        assert encoded["size"] == [96, 128]
        read = _decode_picture(json.loads(json.dumps(encoded)))
        assert (read.frames, read.size, read.fps, read.film, read.start) == (
            *(9, (96, 128), 24.0, "a.mkv", item.start),
        )


def test_film_through_comfyuis_own_nodes(comfyui, run_node, tmp_path):
    """Load Video and Get Video Components give the frames that Clip Folder reads, as IMAGE and frames a second."""
    from comfy_api.latest import InputImpl

    write_film(tmp_path / "a.mkv", [grey(i) for i in range(12)], rate=16)
    parts = InputImpl.VideoFromFile(os.fspath(tmp_path / "a.mkv")).get_components()
    given = {"images": parts.images, "captions": "", "trigger": "", "clips": True, "fps": float(parts.frame_rate)}
    item = run_node("BespokeImageBatch", **given)[0].items[0]
    own = clips_of(tmp_path).items[0]
    assert torch.equal(item.pixels, own.pixels)
    assert item.fps == own.fps == 16
