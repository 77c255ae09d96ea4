"""The node that reads a folder of films as clips."""

from __future__ import annotations

import posixpath
from typing import Any

import comfy.model_management
from comfy_api.latest import io

from ...bridge.errors import name_node_in_errors
from ...bridge.files.listing import stamp_of_folders
from ...bridge.types import Images
from ..captions.sources import CAPTIONS
from ..hashing import hash_files
from ..inputs import TRIGGER_RULE, caption_syntax_input, folder_options
from ..places import data_set_folders, find_folder, input_folder
from ..progress import shown_progress
from ..sheet import contact_sheet, describe
from ..sizes import BUCKET_STEP, BUCKET_STEPS, LARGEST_RESOLUTION, SMALL_STEP, SMALLEST_SIDE
from .captions import FIRST_FRAMES
from .folder import CLIP_MASKS, ClipRequest, read_clip_folder
from .layout import FilmPart
from .plan import FASTEST, LONGEST, Cutting


class ClipFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeClipFolder",
            display_name="Bespoke Clip Folder",
            category="Bespoke/images",
            description=(
                "Reads a folder of films with captions as a training set of clips, for video models. Bespoke Combine "
                "Image Sets puts clips and pictures into one set."
            ),
            search_aliases=["training videos", "video dataset", "load videos", "clips", "frames", "video lora"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=folder_options(),
                    tooltip=(
                        "A folder under ComfyUI's input folder, or one under its folder for datasets, marked "
                        "[datasets]. Every film in it is used (.mp4, .webm, .mov, .mkv, .avi, animated .gif, .webp and "
                        ".png); a file that cannot be used is named. Pictures in it are left out."
                    ),
                ),
                io.Combo.Input(
                    "captions",
                    options=list(CAPTIONS),
                    default=CAPTIONS[0],
                    tooltip=(
                        "Where each film's caption comes from: a .txt or .caption file of the same name or a row of "
                        "metadata.jsonl, the file's own name, or one template for all. All clips of a film have it. "
                        "One caption a line: each line of a file is a caption, drawn by turns."
                    ),
                ),
                io.String.Input(
                    "template",
                    default="{trigger}",
                    tooltip=(
                        "The caption of every clip when captions is 'template'. {trigger}, {name}, {folder}, {frames}, "
                        "{seconds} and {first}, the caption of its first frame, are filled in."
                    ),
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    tooltip=(
                        "A word that stands for what is learned; write it in prompts later. "
                        + TRIGGER_RULE
                        + " [trigger] in a caption stands for it. {folder} in it is the name of the film's folder."
                    ),
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=SMALLEST_SIDE,
                    max=LARGEST_RESOLUTION,
                    step=8,
                    tooltip=(
                        "Pixels: a frame's area is brought down to this squared. Smaller films stay as they are; "
                        "nothing is enlarged. Memory grows with it and with frames."
                    ),
                ),
                io.Int.Input(
                    "frames",
                    default=33,
                    min=1,
                    max=LONGEST,
                    tooltip=(
                        "Frames of a clip, rounded down to a multiple of frame_step plus 1. A scene that is shorter "
                        "makes one clip of its own length; clips of one length and size share a batch."
                    ),
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=FASTEST,
                    step=0.1,
                    tooltip=(
                        "Frames a second of the clips: 16 for Wan, 24 for HunyuanVideo, 25 for LTX-Video. Of each time "
                        "the nearest frame is taken. 0 takes the film's own, so that films of other rates move faster "
                        "or slower."
                    ),
                ),
                *_cutting_inputs(),
                *_content_inputs(),
                *_set_inputs(),
            ],
            outputs=[
                Images.Output("images", display_name="images", tooltip="The training set, for a Bespoke trainer."),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip="A contact sheet: the first, middle and last frame of each clip with its caption.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="How many clips, their frames, sizes and captions, and what was noticed.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder, **inputs):
        try:
            if folder is None or "folder_name" in inputs:  # the name is on a wire and not known yet
                return stamp_of_folders([input_folder(), *data_set_folders()])
            stopped = comfy.model_management.processing_interrupted
            subfolders, frame_folders = bool(inputs.get("subfolders")), bool(inputs.get("frame_folders"))
            found = hash_files(find_folder(folder), stopped, subfolders, kind=FilmPart, frame_folders=frame_folders)
            return found or float("nan")
        except (ValueError, OSError) as error:
            return str(error)

    @classmethod
    @name_node_in_errors
    def execute(cls, folder, folder_name=None, **settings) -> io.NodeOutput:
        name = folder if folder_name is None else folder_name
        source = posixpath.normpath(name.replace("\\", "/"))
        cutting = {field: settings.pop(input_id) for input_id, field in CUTTING.items() if input_id in settings}
        request = ClipRequest(find_folder(name), source=source, cutting=Cutting(**cutting), **settings)
        images = read_clip_folder(request, shown_progress())
        return io.NodeOutput(images, contact_sheet(images), describe(images))


ADVANCED: Any = {"optional": True, "advanced": True}
# {input: field of `plan.Cutting`}
CUTTING = {
    "frames": "frames",
    "fps": "fps",
    "frame_step": "frame_step",
    "stride": "stride",
    "max_clips": "most",
    "scene_threshold": "threshold",
}


def _cutting_inputs() -> list[io.Input]:
    more = ADVANCED
    return [
        io.Int.Input(
            "frame_step",
            default=4,
            min=1,
            max=64,
            **more,
            tooltip=(
                "Clips have a multiple of it plus 1 frames, as the model's VAE asks: 4 for Wan, HunyuanVideo, "
                "CogVideoX, 6 for Mochi, 8 for LTX-Video, 1 for any number."
            ),
        ),
        io.Int.Input(
            "stride",
            default=0,
            min=0,
            max=LONGEST,
            **more,
            tooltip=(
                "Frames from the beginning of one clip of a scene to that of the next. 0 is frames: clips follow one "
                "another. Less makes them overlap, and those that share frames are held out together."
            ),
        ),
        io.Int.Input(
            "max_clips",
            default=0,
            min=0,
            max=100_000,
            **more,
            tooltip="Clips of each film at most, spread evenly over it. 0 takes all.",
        ),
        io.Float.Input(
            "scene_threshold",
            default=20.0,
            min=0.0,
            max=255.0,
            step=1.0,
            **more,
            tooltip=(
                "How much the brightness must change from one frame to the next for a new scene, of 255 on average; "
                "no clip crosses one. 0 is off."
            ),
        ),
    ]


def _content_inputs() -> list[io.Input]:
    more = ADVANCED
    return [
        io.Combo.Input(
            "masks",
            options=list(CLIP_MASKS),
            default=CLIP_MASKS[0],
            **more,
            tooltip=(
                "What of each frame counts in the loss: all of it, what its alpha shows, what is white in NAME-mask "
                "(a film, a picture for all frames, or a folder of frames), or what moves."
            ),
        ),
        io.Combo.Input(
            "first_frame",
            options=list(FIRST_FRAMES),
            default=FIRST_FRAMES[0],
            **more,
            tooltip=(
                "What becomes of NAME.first.txt, the caption of a film's first frame: it is put before the caption of "
                "the clip that begins there, or the first frame becomes a picture of the set with it."
            ),
        ),
    ]


def _set_inputs() -> list[io.Input]:
    more = ADVANCED
    return [
        io.Boolean.Input(
            "bucket",
            default=True,
            **more,
            tooltip="On keeps each film's aspect ratio; off takes the middle square.",
        ),
        io.Boolean.Input(
            "flip",
            default=False,
            **more,
            tooltip="Adds every clip mirrored left to right. Not for text or where left and right matter.",
        ),
        io.Int.Input(
            "repeats",
            default=1,
            min=1,
            max=1000,
            **more,
            tooltip="How many times each clip stands in the set. Changes only the order in which they come.",
        ),
        io.Int.Input(
            "bucket_step",
            default=BUCKET_STEP,
            min=BUCKET_STEPS[0],
            max=BUCKET_STEPS[1],
            step=SMALL_STEP,
            **more,
            tooltip="Pixels: the sides of buckets are multiples of it. Most video models need 16 or 32 at least.",
        ),
        caption_syntax_input(),
        io.String.Input(
            "folder_name",
            optional=True,
            force_input=True,
            tooltip="A folder's name as text from another node; it wins over folder.",
        ),
        io.Boolean.Input(
            "subfolders",
            default=False,
            **more,
            tooltip="Reads the films of all folders below the folder too; one named N_name draws its films N times.",
        ),
        io.Boolean.Input(
            "frame_folders",
            default=False,
            **more,
            tooltip=(
                "On takes each subfolder of pictures as a film, its pictures as the frames in the order of their "
                "numbers, at fps frames a second. NAME.txt beside the folder is its caption."
            ),
        ),
    ]
