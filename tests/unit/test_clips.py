"""Clips from films: which frames become which pixels, by arithmetic on numbered frames."""

import gc
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from bespoke.nodes.images.batch import image_set
from bespoke.nodes.images.clips.folder import ClipRequest, read_clip_folder
from bespoke.nodes.images.clips.frames import Film, Told
from bespoke.nodes.images.clips.layout import FilmPart
from bespoke.nodes.images.clips.motion import GROW, moving
from bespoke.nodes.images.clips.plan import Cutting
from bespoke.nodes.images.combination.combine import combine
from bespoke.nodes.images.fingerprint import fingerprint
from bespoke.nodes.images.folder import FolderRequest, read_folder
from bespoke.nodes.images.hashing import hash_files
from bespoke.nodes.images.pairing.pair import pair_sets
from bespoke.nodes.images.sheet import GAP, STRIP, STRIP_GAP, THUMB, contact_sheet, describe
from bespoke.training.errors import InputError
from bespoke.training.images import ImageSet, TrainingImage, apart, common_resolution, first_equal
from PIL import Image

from ..lib.films import MS, grey, numbers, write_film

CUTTING = ("frames", "fps", "frame_step", "stride", "most", "threshold")


def clips_of(folder, **settings):
    cutting = Cutting(**({"frames": 9} | {name: settings.pop(name) for name in CUTTING if name in settings}))
    asked = {"resolution": 128, "bucket_step": 8} | settings
    return read_clip_folder(ClipRequest(folder, cutting=cutting, **asked))


def said(images):
    return [numbers(item.pixels) for item in images.items]


def film_of(folder, count, name="a.mkv", **how):
    return write_film(folder / name, [grey(i) for i in range(count)], **how)


# --- which frames -----------------------------------------------------------------------------------------------------


def test_clips_follow_one_another_and_the_rest_is_left(tmp_path):
    film_of(tmp_path, 40)
    images = clips_of(tmp_path)
    assert said(images) == [[*range(i, i + 9)] for i in (0, 9, 18, 27)]
    assert [(item.name, item.fps, item.start) for item in images.items] == [
        (f"a.mkv#{n}", 24.0, (n - 1) * 9 / 24) for n in (1, 2, 3, 4)
    ]
    assert images.items[0].pixels.shape == (9, 96, 128, 3)
    assert common_resolution(images) == "128x96, 9 frames"
    assert images.fingerprint == clips_of(tmp_path).fingerprint


@pytest.mark.parametrize(("frames", "step", "whole"), [(11, 4, 9), (9, 4, 9), (12, 8, 9), (11, 1, 11), (3, 4, 1)])
def test_frames_are_rounded_down_to_the_step_plus_one(tmp_path, frames, step, whole):
    film_of(tmp_path, 12)
    images = clips_of(tmp_path, frames=frames, frame_step=step, most=1)
    assert said(images) == [[*range(whole)]]
    assert ("rounded down" in " ".join(images.notes)) == (frames != whole)


def test_a_stride_makes_clips_overlap_and_those_are_held_out_together(tmp_path):
    film_of(tmp_path, 40)
    images = clips_of(tmp_path, stride=6)
    assert said(images) == [[*range(i, i + 9)] for i in (0, 6, 12, 18, 24, 30)]
    assert apart(images.items, first_equal(images.items)) == [[0, 1, 2, 3, 4, 5]]
    apart_ones = clips_of(tmp_path)
    assert len(apart(apart_ones.items, first_equal(apart_ones.items))) == 4


def test_max_clips_are_spread_over_the_film(tmp_path):
    film_of(tmp_path, 50)
    images = clips_of(tmp_path, frames=5, most=3)  # of 10 clips those at places 0, 4.5 and 9
    assert [row[0] for row in said(images)] == [0, 20, 45]
    assert "a.mkv (3 of 10)" in describe(images)


def test_another_rate_takes_the_nearest_frames(tmp_path):
    film_of(tmp_path, 40)  # 24 a second: at 16 every 1.5th, and halfway the earlier one
    assert said(clips_of(tmp_path, fps=16.0, most=1)) == [[0, 1, 3, 4, 6, 7, 9, 10, 12]]
    images = clips_of(tmp_path, fps=48.0, most=1)
    assert said(images) == [[0, 0, 1, 1, 2, 2, 3, 3, 4]]
    assert images.items[0].fps == 48
    assert "Frames repeat" in describe(images)


def test_a_variable_rate_is_read_by_the_times_of_frames(tmp_path):
    times = [0, 40, 80, 500, 540, 1000, 1040, 1080, 1120, 2000]
    film_of(tmp_path, len(times), times_ms=times)
    # At 4 a second: 0, 250, 500, ... ms; 250 is nearer to 80 than to 500, 750 nearer to 540, 1250 to 1120.
    assert said(clips_of(tmp_path, fps=4.0, frames=9)) == [[0, 2, 3, 4, 5, 8, 8, 9, 9]]
    images = clips_of(tmp_path, frames=9)
    assert "frame rate varies (4.5 a second" in describe(images)
    assert images.items[0].fps == 4.5


def test_a_rate_of_ntsc_is_kept(tmp_path):
    film_of(tmp_path, 45, rate=Fraction(24000, 1001))
    images = clips_of(tmp_path, frames=45)
    assert said(images) == [[*range(45)]]
    assert abs(images.items[0].fps - 24000 / 1001) < 1e-4


def test_a_codec_with_loss_gives_the_same_frames(tmp_path):
    film_of(tmp_path, 40, "a.mp4", codec="libx264", pixel_format="yuv420p", crf="20", bf="3", g="12")
    images = clips_of(tmp_path, most=2)
    for clip, first in zip(images.items, (0, 27), strict=True):
        levels = clip.pixels.float().mean((1, 2, 3))
        assert (levels - 5 * torch.arange(first, first + 9)).abs().max() < 2.5  # less than half of a step


def test_one_clip_of_a_short_scene_whatever_the_stride_is(tmp_path):
    film_of(tmp_path, 7)
    images = clips_of(tmp_path, stride=1)
    assert said(images) == [[*range(5)]]
    assert "a.mkv (1 clip)" in describe(images)


def test_no_clip_goes_across_a_jump_of_the_clock(tmp_path):
    film_of(tmp_path, 20, times_ms=[40 * i + (3_600_000 if i >= 10 else 0) for i in range(20)])
    images = clips_of(tmp_path, frames=5, fps=25.0)
    assert said(images) == [[*range(i, i + 5)] for i in (0, 5, 10, 15)]
    assert "a.mkv: no new frame for 3,600 s after 0.36 s; no clip goes across" in describe(images)
    assert clips_of(tmp_path, frames=5).items[0].fps == pytest.approx(25)  # the jump does not count in the rate


def test_a_slow_film_has_no_jumps(tmp_path):
    film_of(tmp_path, 9, times_ms=[20_000 * i for i in range(9)])
    assert said(clips_of(tmp_path)) == [[*range(9)]]


def test_two_frames_that_are_weeks_apart_are_named(tmp_path):
    film_of(tmp_path, 2, times_ms=[0, 2_000_000_000])
    with pytest.raises(InputError, match=r"a.mkv has 2 frames that last 556 hours by their times; export it again"):
        clips_of(tmp_path, fps=16.0)


# --- scenes -----------------------------------------------------------------------------------------------------------


def scene(seed, count, size=(96, 128)):
    """A picture that is moved by a pixel a frame."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (6, 8, 3), np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((size[1] + count, size[0]), Image.Resampling.BICUBIC))
    return [picture[:, i : i + size[1]] for i in range(count)]


def test_no_clip_crosses_a_cut(tmp_path):
    frames = [*scene(1, 13), *scene(2, 30), *scene(3, 3), *scene(4, 20)]
    write_film(tmp_path / "a.mkv", frames)
    images = clips_of(tmp_path, frames=9)
    starts = [round(item.start * 24) for item in images.items]
    assert starts == [0, 13, 22, 31, 46, 55]
    for item, start in zip(images.items, starts, strict=True):
        assert torch.equal(item.pixels, torch.from_numpy(np.stack(frames[start : start + 9])))
    report = describe(images)
    assert "a.mkv: 4 scenes" in report
    assert "too short, left out: a.mkv (1)" in report
    assert [round(item.start * 24) for item in clips_of(tmp_path, frames=9, threshold=0.0).items][:3] == [0, 9, 18]


def test_a_fast_camera_is_no_cut(tmp_path):
    wide = np.concatenate(scene(5, 1, (96, 128)) * 3, 1)
    frames = [np.roll(wide, 40 * i, 1)[:, :128] for i in range(20)]
    write_film(tmp_path / "a.mkv", frames)
    assert len(clips_of(tmp_path, frames=17).items) == 1


def test_a_short_scene_is_a_clip_of_its_own_length(tmp_path):
    film_of(tmp_path, 7, "short.mkv")
    film_of(tmp_path, 40, "long.mkv")
    film_of(tmp_path, 3, "tiny.mkv")
    images = clips_of(tmp_path, frames=17)
    assert [item.frames for item in images.items] == [17, 17, 5]
    assert [len(group) for group in images.by_size()] == [2, 1]
    report = describe(images)
    assert "3 clips: 2 at 128x96 px, 17 frames, 1 at 128x96 px, 5 frames." in report
    assert "Shorter than 17 frames" in report
    assert "short.mkv (1 clip)" in report
    assert "NOT USED, as no scene is long enough: tiny.mkv (3 frames at 24 a second)." in report


# --- how frames are shown ---------------------------------------------------------------------------------------------


def corners(size=(96, 128)):
    """A frame whose quarters are 50, 100, 150 and 200 from the top left in reading order."""
    values = np.zeros((*size, 3), np.uint8)
    height, width = size[0] // 2, size[1] // 2
    values[:height, :width], values[:height, width:] = 50, 100
    values[height:, :width], values[height:, width:] = 150, 200
    return values


def quarters(pixels):
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    middles = [(height // 2, width // 2), (height // 2, width + width // 2)]
    middles += [(height + y, x) for y, x in middles]
    return [int(pixels[y, x, 0]) for y, x in middles]


# {matrix (a, b, c, d) of ISO/IEC 14496-12, 6.2.2: the quarters as shown}. The point (x, y) goes to (ax + cy, bx + dy),
# y downwards: (0, 1, -1, 0) sends the top left to the top right, which turns the picture to the right.
TURNS = {
    (1, 0, 0, 1): [50, 100, 150, 200],
    (0, 1, -1, 0): [150, 50, 200, 100],
    (-1, 0, 0, -1): [200, 150, 100, 50],
    (0, -1, 1, 0): [100, 200, 50, 150],
    (-1, 0, 0, 1): [100, 50, 200, 150],
}


@pytest.mark.parametrize(("matrix", "expected"), TURNS.items())
def test_rotation(tmp_path, matrix, expected):
    path = write_film(tmp_path / "a.mp4", [corners()] * 5, codec="libx264rgb", pixel_format="rgb24", qp="0")
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of other fields
    assert struct.unpack(">9i", data[at : at + 36]) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    images = clips_of(tmp_path, frames=5)
    item = images.items[0]
    assert quarters(item.pixels[4]) == expected
    assert item.size == ((128, 96) if matrix[1] else (96, 128))
    assert ("turned as its rotation says" in describe(images)) == (matrix != (1, 0, 0, 1))


def test_wide_pixels_are_made_square(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264rgb", rate=24, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "rgb24"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(corners(), format="rgb24")))
        container.mux(stream.encode())
    images = clips_of(tmp_path, frames=5, resolution=256)
    assert images.items[0].original == (96, 192)
    assert quarters(images.items[0].pixels[0]) == [50, 100, 150, 200]
    assert "1.5 times as wide as high" in describe(images)


def test_alpha_lies_on_white_and_may_be_the_mask(tmp_path):
    frame = np.concatenate([corners(), np.full((96, 128, 1), 255, np.uint8)], -1)
    frame[:, :64, 3] = 0
    write_film(tmp_path / "a.mov", [frame] * 5, codec="png", pixel_format="rgba")
    item = clips_of(tmp_path, frames=5).items[0]
    assert item.mask is None
    assert quarters(item.pixels[2]) == [255, 100, 255, 200]
    item = clips_of(tmp_path, frames=5, masks="alpha").items[0]
    assert item.mask.shape == (5, 96, 128)
    assert item.mask[:, :, :64].max() == 0
    assert item.mask[:, :, 64:].min() == 1


def test_ten_bits_and_hdr_are_named(tmp_path):
    film_of(tmp_path, 5, "ten.mkv", codec="ffv1", pixel_format="yuv420p10le")
    path = tmp_path / "hdr.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p10le"
        stream.codec_context.color_trc = 16
        for i in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey(i), format="rgb24")))
        container.mux(stream.encode())
    report = describe(clips_of(tmp_path, frames=5))
    assert "ten.mkv: 10 bits a channel, read as 8" in report
    assert "hdr.mkv: high dynamic range (PQ), read without tone mapping" in report


def test_frames_are_let_go_while_a_film_is_read(tmp_path):
    """Without a collection of garbage: one 4K frame has 12 MB."""
    film_of(tmp_path, 20)
    held = []
    gc.collect()
    gc.disable()
    try:
        for frame in Film(tmp_path / "a.mkv").frames(Told()):
            frame.small()
            held.append(sum(type(each) is av.VideoFrame for each in gc.get_objects()))
    finally:
        gc.enable()
    assert len(held) == 20
    assert held[-1] <= held[1] + 1


@pytest.mark.parametrize("size", [(97, 129), (64, 201)])
def test_odd_sizes(tmp_path, size):
    write_film(tmp_path / "a.mkv", [grey(i, size) for i in range(5)])
    images = clips_of(tmp_path, frames=5)
    assert said(images) == [[0, 1, 2, 3, 4]]
    assert all(side % 8 == 0 for side in images.items[0].size)


# --- animations and folders of frames ---------------------------------------------------------------------------------


def test_the_default_image_of_a_png_is_no_frame(tmp_path):
    pictures = [Image.fromarray(grey(i)) for i in range(10)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:], default_image=True, duration=100)
    images = clips_of(tmp_path)
    assert said(images) == [[*range(1, 10)]]
    assert images.items[0].fps == 10


def test_a_gif_of_a_hundredth_of_a_second_a_frame_is_as_slow_as_browsers_show_it(tmp_path):
    pictures = [Image.fromarray(grey(i)) for i in range(9)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=10)
    pictures[0].save(tmp_path / "b.gif", save_all=True, append_images=pictures[1:], duration=20)
    assert [round(item.fps, 3) for item in clips_of(tmp_path).items] == [10, 50]


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_an_animation_is_a_film_by_its_durations(tmp_path, ending):
    frames = [Image.fromarray(grey(i)) for i in range(6)]
    durations = [100, 100, 300, 100, 100, 100]
    how = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], duration=durations, **how)
    # The frames are shown at 0, 100, 200, 500, 600 and 700 ms.
    assert said(clips_of(tmp_path, fps=10.0, frames=8, frame_step=1)) == [[0, 1, 2, 2, 3, 3, 4, 5]]


def test_frames_in_a_folder_are_not_named_as_left_out(tmp_path):
    (tmp_path / "walk").mkdir()
    for i in range(9):
        Image.fromarray(grey(i)).save(tmp_path / "walk" / f"{i}.png")
    Image.fromarray(grey(9)).save(tmp_path / "poster.png")
    images = clips_of(tmp_path, frame_folders=True, subfolders=True)
    assert said(images) == [[*range(9)]]
    assert "Left out: poster.png; pictures" in describe(images)


def test_a_folder_of_frames_is_a_film_where_it_is_asked_for(tmp_path):
    (tmp_path / "walk").mkdir()
    for i in range(12):
        Image.fromarray(grey(i)).save(tmp_path / "walk" / f"frame{i}.png")  # frame10 behind frame9
    (tmp_path / "walk.txt").write_text("a man walks")
    with pytest.raises(InputError, match="walk.txt is a caption without a film"):
        clips_of(tmp_path)
    images = clips_of(tmp_path, frame_folders=True, fps=16.0)
    assert said(images) == [[*range(9)]]
    assert images.items[0].fps == 16
    assert images.items[0].caption == "a man walks"
    report = describe(clips_of(tmp_path, frame_folders=True))
    assert "24 is taken" in report
    assert "Passed over" not in report


# --- captions ---------------------------------------------------------------------------------------------------------


def test_captions(tmp_path):
    film_of(tmp_path, 40, "a.mkv")
    film_of(tmp_path, 9, "b.mkv")
    (tmp_path / "a.txt").write_text("it gets brighter")
    (tmp_path / "a.first.txt").write_text("A black square")
    images = clips_of(tmp_path, trigger="zorp", most=2)
    assert [item.caption for item in images.items] == [
        "zorp, A black square. it gets brighter",
        "zorp, it gets brighter",
        "zorp",
    ]
    plain = clips_of(tmp_path, first_frame="none")
    assert {item.caption for item in plain.items} == {"it gets brighter", ""}
    template = clips_of(
        tmp_path, captions="template", template="{name}: {frames} frames, {seconds} s; {first}", fps=12.0
    )
    assert template.items[0].caption == "a: 9 frames, 0.8 s; A black square"


def test_the_first_frame_may_be_a_picture_of_the_set(tmp_path):
    film_of(tmp_path, 20)
    (tmp_path / "a.txt").write_text("it gets brighter")
    (tmp_path / "a.first.txt").write_text("a black square")
    images = clips_of(tmp_path, first_frame="as a picture", trigger="zorp")
    assert [(item.name, item.is_clip, item.caption) for item in images.items] == [
        ("a.mkv#1", True, "zorp, it gets brighter"),
        ("a.mkv.first.png", False, "zorp, a black square"),
        ("a.mkv#2", True, "zorp, it gets brighter"),
    ]
    assert torch.equal(images.items[1].pixels, images.items[0].pixels[0])
    assert apart(images.items, first_equal(images.items)) == [[0, 1], [2]]
    assert "2 clips and 1 picture" in describe(images)


# --- masks ------------------------------------------------------------------------------------------------------------


def test_masks_beside_a_film(tmp_path):
    film_of(tmp_path, 12, "a.mkv")
    film_of(tmp_path, 12, "b.mkv")
    film_of(tmp_path, 12, "c.mkv")
    left = [np.where(np.arange(128) < 8 * i, 255, 0).astype(np.uint8) for i in range(12)]
    write_film(tmp_path / "a-mask.mkv", [np.broadcast_to(row[None, :, None], (96, 128, 3)) for row in left])
    Image.fromarray(np.broadcast_to(left[4], (96, 128)).copy()).save(tmp_path / "b-mask.png")
    images = clips_of(tmp_path, masks="*-mask", frames=5)
    masks = {item.name: item.mask for item in images.items}
    assert [int(row.sum()) for row in masks["a.mkv#2"][:, 0]] == [8 * i for i in (5, 6, 7, 8, 9)]
    assert [int(row.sum()) for row in masks["b.mkv#2"][:, 0]] == [32] * 5
    assert masks["c.mkv#1"] is None
    assert "No mask found, so the whole clip counts: c.mkv." in describe(images)
    write_film(tmp_path / "a-mask.mkv", [grey(i) for i in range(4)])
    with pytest.raises(InputError, match=r"a.mkv has the mask a-mask.mkv, which has 4 frames and its film 12; give"):
        clips_of(tmp_path, masks="*-mask", frames=5)


@pytest.mark.parametrize(("count", "rate"), [(11, 24), (24, 48)])
def test_a_mask_with_another_number_of_frames_is_refused_though_the_clips_do_not_reach_its_end(tmp_path, count, rate):
    film_of(tmp_path, 12)
    film_of(tmp_path, count, "a-mask.mkv", rate=rate)
    with pytest.raises(InputError, match=rf"a-mask.mkv, which has {count} frames and its film 12; give it"):
        clips_of(tmp_path, masks="*-mask", frames=5, most=1)


def test_frames_of_a_mask_in_a_folder_count_in_the_hash_of_the_set(tmp_path):
    film_of(tmp_path, 5)
    masks = tmp_path / "a-mask"
    masks.mkdir()
    for i in range(5):
        Image.fromarray(grey(10 * i)).save(masks / f"{i}.png")
    assert numbers(clips_of(tmp_path, frames=5, masks="*-mask").items[0].mask[..., None].mul(255).round()) == [
        10 * i for i in range(5)
    ]
    before = hash_files(tmp_path, kind=FilmPart)
    Image.fromarray(grey(7)).save(masks / "0.png")
    assert hash_files(tmp_path, kind=FilmPart) != before


def test_what_is_named_as_a_mask_and_is_none_is_named(tmp_path):
    for name in ("a.mkv", "a-mask.mkv", "party-mask.mkv"):
        film_of(tmp_path, 9, name)
    Image.fromarray(grey(50)).save(tmp_path / "a-mask.png")
    why = "named as a mask, and masks are not '*-mask'. To train on such a film, give it a caption"
    assert f"Left out: a-mask.mkv, a-mask.png, party-mask.mkv; {why}" in describe(clips_of(tmp_path))
    report = describe(clips_of(tmp_path, masks="*-mask"))
    assert "Left out: a-mask.png, party-mask.mkv; named as a mask, and no film has their name" in report
    (tmp_path / "party-mask.txt").write_text("a party")
    images = clips_of(tmp_path)
    assert [item.name for item in images.items] == ["a.mkv", "party-mask.mkv"]
    assert "Left out: a-mask.mkv, a-mask.png; named" in describe(images)
    film_of(tmp_path, 9, "party.mkv")
    masked = {item.name: item.mask is not None for item in clips_of(tmp_path, masks="*-mask").items}
    assert masked == {"a.mkv": True, "party-mask.mkv": False, "party.mkv": False}


def test_a_caption_that_a_picture_beside_the_film_has_too_is_named(tmp_path):
    film_of(tmp_path, 9, "a.mkv")
    film_of(tmp_path, 9, "b.mkv")
    for name in ("a.png", "c.png"):
        Image.fromarray(grey(3)).save(tmp_path / name)
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    images = clips_of(tmp_path)
    assert [item.caption for item in images.items] == ["a.txt", "b.txt"]
    assert "One caption file for a film and a picture: a.mkv and a.png." in describe(images)


def test_what_moves():
    pixels = torch.full((4, 64, 96, 3), 90, dtype=torch.uint8)
    pixels[2:, 20:30, 40:50] = 200  # appears between the frames 1 and 2
    masks = moving(pixels)
    assert all(torch.equal(masks[0], mask) for mask in masks)
    # The mean over 5 x 5 reaches two pixels further, and 110 * 3 / 25 is above 6 there. Then it is grown by GROW px.
    rows, columns = torch.nonzero(masks[1], as_tuple=True)
    assert (int(rows.min()), int(rows.max())) == (20 - 2 - GROW, 29 + 2 + GROW)
    assert (int(columns.min()), int(columns.max())) == (40 - 2 - GROW, 49 + 2 + GROW)
    assert moving(pixels[:2]).max() == 0


def test_what_motion_encloses_counts():
    """A square of one colour that goes 8 px down and to the right changes at its four edges alone."""
    pixels = torch.full((2, 256, 256, 3), 90, dtype=torch.uint8)
    for i in range(2):
        pixels[i, 60 + 8 * i : 180 + 8 * i, 60 + 8 * i : 180 + 8 * i] = 200
    mask = moving(pixels)[0]
    assert torch.equal(pixels[0, 70:170, 70:170], pixels[1, 70:170, 70:170])
    assert mask[68:180, 68:180].min() == 1
    assert mask[:40].max() == mask[210:].max() == mask[:, :40].max() == mask[:, 210:].max() == 0
    bar = torch.full((2, 256, 256, 3), 90, dtype=torch.uint8)
    bar[1, :8] = 200  # at the edge it encloses nothing
    assert moving(bar)[0, 40:].max() == 0


def test_a_still_film_is_left_out_where_only_what_moves_counts(tmp_path):
    write_film(tmp_path / "a.mkv", [grey(2 * i) for i in range(9)])
    write_film(tmp_path / "still.mkv", [grey(3)] * 9)
    images = clips_of(tmp_path, masks="what moves")
    assert [item.name for item in images.items] == ["a.mkv"]
    report = describe(images)
    assert "Left out: still.mkv; the mask is black everywhere" in report
    assert "Nothing moves: still.mkv." in report


# --- bad input --------------------------------------------------------------------------------------------------------


def sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def no_frames(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "bgr0"
        container.start_encoding()


def playlist(path):
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")


BAD = {
    "sound.mkv": (sound, "has sound and no video"),
    "none.mkv": (no_frames, "has a video of 0 frames"),
    "text.mp4": (lambda path: path.write_text("no film" * 100), "is no film that can be read"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "is a file of 0 bytes"),
    "list.mp4": (playlist, "is no film that can be read"),
    "small.mkv": (lambda path: write_film(path, [grey(1, (32, 48))] * 5), "is 48x32 px; a side needs 64 or more"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_the_mend(tmp_path, name):
    make, expected = BAD[name]
    make(tmp_path / name)
    film_of(tmp_path, 9)
    with pytest.raises(InputError) as raised:
        clips_of(tmp_path)
    assert f"{name} {expected}" in str(raised.value)
    assert "1 of the files" in str(raised.value)
    assert str(tmp_path) not in str(raised.value)


@pytest.mark.parametrize("key_every", [7, 12])
def test_no_clip_has_broken_frames(tmp_path, key_every):
    path = tmp_path / "a.mkv"
    random = np.random.default_rng(0)
    frames = [random.integers(0, 255, (96, 128, 3), np.uint8) for _ in range(40)]
    write_film(path, frames, level="3", slicecrc="1", g=str(key_every))
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    end = places[20][0] + places[20][1]
    data[end - 16 : end] = bytes(16)  # the length of a slice is there (RFC 9043, section 4.8)
    path.write_bytes(data)
    images = clips_of(tmp_path, frames=5, threshold=0.0)
    following = 21 if key_every == 7 else 24  # the next key frame
    starts = [0, 5, 10, 15, *range(following, 36, 5)]
    assert [round(item.start * 24) for item in images.items] == starts
    for item, start in zip(images.items, starts, strict=True):
        assert torch.equal(item.pixels, torch.from_numpy(np.stack(frames[start : start + 5])))
    assert "a.mkv: broken in 1 place, first after 0.79 s" in describe(images)  # frame 19
    assert clips_of(tmp_path, frames=5, threshold=0.0).fingerprint == images.fingerprint


def test_a_cut_off_film_is_used_and_named(tmp_path):
    path = film_of(tmp_path, 48, codec="ffv1")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    images = clips_of(tmp_path, frames=5)
    assert "ends early, after" in describe(images)
    assert "what is before it is used" in describe(images)


def test_mirrored_clips_count_in_the_memory(tmp_path, monkeypatch):
    film_of(tmp_path, 40)
    monkeypatch.setattr("bespoke.nodes.images.clips.folder.MOST_BYTES", 2 * 4 * 9 * 96 * 128 * 3 - 1)
    assert len(clips_of(tmp_path).items) == 4
    with pytest.raises(InputError, match=r"4 clips of 9 frames .* Lower max_clips, frames or resol"):
        clips_of(tmp_path, flip=True)


def test_a_last_frame_that_is_shown_for_long_is_no_missing_end(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264rgb", rate=25, options={"qp": "0", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "rgb24"
        stream.codec_context.time_base = MS
        packets = []
        for i in range(9):
            frame = av.VideoFrame.from_ndarray(grey(i), format="rgb24")
            frame.pts, frame.time_base = 40 * i, MS
            packets += stream.encode(frame)
        for packet in (packets := [*packets, *stream.encode()]):
            packet.duration = 3000 if packet is packets[-1] else 40
            container.mux(packet)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert float(container.streams.video[0].duration * container.streams.video[0].time_base) == 3.32
    images = clips_of(tmp_path)
    assert said(images) == [[*range(9)]]
    assert "ends early" not in describe(images)


def test_a_set_that_is_too_large_names_what_to_lower(tmp_path, monkeypatch):
    film_of(tmp_path, 40)
    monkeypatch.setattr("bespoke.nodes.images.clips.folder.MOST_BYTES", 4 * 9 * 96 * 128 * 3 - 1)
    with pytest.raises(InputError, match=r"4 clips of 9 frames at 128x96 px take .* Lower max_clips, frames or resol"):
        clips_of(tmp_path)


def test_a_folder_without_films(tmp_path):
    Image.fromarray(grey(3)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="Left out: a.png; pictures, which Bespoke Image Folder reads"):
        clips_of(tmp_path)


def test_image_folder_leaves_films_with_their_captions_to_the_other_node(tmp_path):
    Image.fromarray(grey(3)).save(tmp_path / "a.png")
    film_of(tmp_path, 9, "b.mkv")
    for name in ("a.txt", "b.txt", "b.first.txt"):
        (tmp_path / name).write_text(name)
    images = read_folder(FolderRequest(tmp_path, resolution=128))
    assert [item.name for item in images.items] == ["a.png"]
    assert "Left out: b.mkv; films, which Bespoke Clip Folder reads." in describe(images)


# --- what is done with clips ------------------------------------------------------------------------------------------


def test_fingerprints_of_pictures_are_as_before():
    pixels = torch.arange(64 * 64 * 3, dtype=torch.int64).reshape(64, 64, 3).to(torch.uint8)
    items = [
        TrainingImage("a", pixels, "a cat"),
        TrainingImage("b", pixels.flip(0), "b", torch.ones(64, 64), (64, 64), more_captions=("c",), control=pixels),
    ]
    # As the release before clips gives it.
    assert fingerprint(items) == PINNED
    clip = TrainingImage("a", pixels[None], "a cat", fps=24.0)
    assert fingerprint([clip]) != fingerprint([TrainingImage("a", pixels[None], "a cat", fps=25.0)])


PINNED = "a8f1905e6eba35125276b9f1c20b8d9f6d7e73a56fceace5c7aca01332196236"


def test_clips_and_pictures_in_one_set(tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "still").mkdir()
    film_of(tmp_path / "films", 20)
    Image.fromarray(grey(3)).save(tmp_path / "still" / "a.png")
    clips, still = clips_of(tmp_path / "films"), read_folder(FolderRequest(tmp_path / "still", resolution=128))
    combined = combine({"set0": clips, "set1": still}, resolutions="128, 64").images
    shapes = [tuple(item.pixels.shape) for item in combined.items]
    assert shapes == [(9, 96, 128, 3), (9, 64, 64, 3)] * 2 + [(96, 128, 3), (64, 64, 3)]
    assert [len(group) for group in combined.by_size()] == [2, 2, 1, 1]
    assert numbers(combined.items[3].pixels) == [*range(9, 18)]
    assert combined.has_clips
    assert "clip" in describe(combined)


@pytest.mark.parametrize("below", [False, True])
def test_a_whole_film_and_clips_of_it_in_two_sets_are_held_out_together(tmp_path, below):
    folder = tmp_path / "films" if below else tmp_path
    folder.mkdir(exist_ok=True)
    film_of(folder, 20)
    whole = clips_of(tmp_path, frames=17, source="set", subfolders=True)
    parts = clips_of(folder, frames=5, source="set/films" if below else "set")
    items = combine({"set0": whole, "set1": parts}).images.items
    assert [item.frames for item in items] == [17, 5, 5, 5, 5]
    assert apart(items, first_equal(items)) == [[0, 1, 2, 3, 4]]


def test_mirrored_clips(tmp_path):
    write_film(tmp_path / "a.mkv", [corners()] * 5)
    write_film(tmp_path / "a-mask.mkv", [corners()] * 5)
    item, other = clips_of(tmp_path, frames=5, flip=True, masks="*-mask").items
    assert quarters(item.pixels[1]) == [50, 100, 150, 200]
    assert quarters(other.pixels[1]) == [100, 50, 200, 150]
    assert torch.equal(other.mask, item.mask.flip(2))
    assert other.frames == 5


def test_pairs_of_clips(tmp_path):
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    film_of(tmp_path / "before", 9)
    write_film(
        tmp_path / "after" / "a.mp4", [grey(30 - i) for i in range(9)], codec="libx264rgb", pixel_format="rgb24", qp="0"
    )
    before, after = clips_of(tmp_path / "before", source="b"), clips_of(tmp_path / "after", source="a")
    item = pair_sets(before, after).items[0]
    assert numbers(item.control) == [*range(9)]
    assert numbers(item.pixels) == [30 - i for i in range(9)]
    short = clips_of(tmp_path / "before", source="b", frames=5, most=1)
    with pytest.raises(InputError, match="is a clip of 5 frames and .* a clip of 9 frames"):
        pair_sets(short, after)


def test_pairs_of_clips_are_of_the_same_times(tmp_path):
    for name in ("before", "after", "fast"):
        (tmp_path / name).mkdir()
    film_of(tmp_path / "before", 20)
    film_of(tmp_path / "fast", 20, rate=48)
    # A cut behind frame 11 in the result alone.
    write_film(tmp_path / "after" / "a.mkv", [grey(i if i < 11 else 40 + i % 2) for i in range(20)])
    before = clips_of(tmp_path / "before", source="b")
    with pytest.raises(InputError, match=r"b/a.mkv#1 of source has 24 frames a second and f/a.mkv#1 of result 48"):
        pair_sets(before, clips_of(tmp_path / "fast", source="f"))
    with pytest.raises(InputError, match=r"b/a.mkv#2 of source begins 0.38 s .* a/a.mkv#2 of result 0.46 s"):
        pair_sets(before, clips_of(tmp_path / "after", source="a"))
    uncut = pair_sets(before, clips_of(tmp_path / "after", source="a", threshold=0.0))
    assert [numbers(item.control) for item in uncut.items] == [[*range(9)], [*range(9, 18)]]


def test_the_sheet_shows_a_strip_of_each_clip(tmp_path):
    film_of(tmp_path, 20)
    sheet = (contact_sheet(clips_of(tmp_path))[0] * 255).round().to(torch.uint8)
    middle = sheet[GAP + THUMB // 2]
    shown = [int(middle[GAP + n * (THUMB + STRIP_GAP) + THUMB // 2, 0]) for n in range(STRIP)]
    assert shown == [0, 4 * 5, 8 * 5]


def test_an_image_batch_is_a_clip():
    batch = torch.stack([torch.full((96, 128, 3), i * 5 / 255) for i in range(11)])
    images = image_set([batch, batch[:9]], "a\nb", clips=True, fps=16.0)
    assert said(images) == [[*range(9)], [*range(9)]]
    assert [(item.name, item.caption, item.fps) for item in images.items] == [
        ("clip 1", "a", 16.0),
        ("clip 2", "b", 16.0),
    ]
    assert "clip 1 (11 to 9)" in describe(images)
    masks = torch.linspace(0, 1, 11)[:, None, None].expand(-1, 96, 128)
    item = image_set([batch], "a", masks=[masks], clips=True).items[0]
    assert torch.allclose(item.mask[:, 0, 0], torch.linspace(0, 1, 11)[:9])
    with pytest.raises(InputError, match="3 captions for 2 clips; write one line for all, or one a clip"):
        image_set([batch, batch], "a\nb\nc", clips=True)


def test_a_clip_needs_frames_and_a_mask_of_its_shape():
    with pytest.raises(InputError, match="is a clip of 0 frames"):
        TrainingImage("a", torch.zeros(0, 64, 64, 3, dtype=torch.uint8), "")
    with pytest.raises(InputError, match="give a mask"):
        TrainingImage("a", torch.zeros(5, 64, 64, 3, dtype=torch.uint8), "", torch.ones(64, 64))
    assert ImageSet((TrainingImage("a", torch.zeros(1, 64, 64, 3, dtype=torch.uint8), ""),)).has_clips
