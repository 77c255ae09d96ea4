"""The nodes of training sets: from a folder of pictures, or from an IMAGE batch."""

from __future__ import annotations

import posixpath
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ...training.errors import InputError
from ..bridge.errors import name_node_in_errors
from ..bridge.files.listing import stamp_of_folders
from ..bridge.running_prompt import is_wired
from ..bridge.types import Images
from .batch import image_set
from .captions.sources import CAPTIONS
from .clips.plan import FASTEST
from .folder import FolderRequest, read_folder
from .hashing import hash_files
from .inputs import TRIGGER_RULE, caption_syntax_input, folder_options
from .masks import MASKS
from .places import data_set_folders, find_folder, input_folder
from .progress import shown_progress
from .sheet import contact_sheet, describe, tensors_of
from .sizes import BUCKET_STEP, BUCKET_STEPS, LARGEST_RESOLUTION, SMALL_STEP, SMALLEST_SIDE

PICTURES_SLOT = 3  # of the output `pictures` of Image Folder


class ImageFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeImageFolder",
            display_name="Bespoke Image Folder",
            category="Bespoke/images",
            description="Reads a folder of pictures with captions as a training set for the Bespoke trainers.",
            search_aliases=["training images", "dataset", "load image folder", "lora dataset", "captions"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=folder_options(),
                    tooltip=(
                        "A folder under ComfyUI's input folder, or one under its folder for datasets, marked "
                        "[datasets]. Every picture in it is used; a file that cannot be used is named. Where it holds "
                        "none itself, its subfolders named N_name are read, N for the repeats."
                    ),
                ),
                io.Combo.Input(
                    "captions",
                    options=list(CAPTIONS),
                    default=CAPTIONS[0],
                    tooltip=(
                        "Where each picture's caption comes from: a .txt or .caption file of the same name or a row of "
                        "metadata.jsonl, the file's own name, or one template for all. One caption a line: each line "
                        "of a file is a caption, drawn by turns. Say in the caption what should stay changeable."
                    ),
                ),
                io.String.Input(
                    "template",
                    default="{trigger}",
                    tooltip=(
                        "The caption of every picture when captions is 'template'. {trigger}, {name} and {folder} are "
                        "filled in."
                    ),
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    tooltip=(
                        "A word that stands for what is learned; write it in prompts later. "
                        + TRIGGER_RULE
                        + " [trigger] in a caption stands for it. {folder} in it is the name of the picture's folder."
                    ),
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=SMALLEST_SIDE,
                    max=LARGEST_RESOLUTION,
                    step=8,
                    tooltip=(
                        "Pixels: a picture's area is brought down to this squared. Smaller pictures stay as they are; "
                        "nothing is enlarged."
                    ),
                ),
                io.Boolean.Input(
                    "bucket",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="On keeps each picture's aspect ratio; off takes the middle square.",
                ),
                io.Boolean.Input(
                    "flip",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Adds every picture mirrored left to right. Not for text, logos or faces that are not "
                        "symmetric."
                    ),
                ),
                io.Int.Input(
                    "repeats",
                    default=1,
                    min=1,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "How many times each picture stands in the set. Changes only the order in which they come; to "
                        "train longer, raise the trainer's steps."
                    ),
                ),
                io.Combo.Input(
                    "masks",
                    options=list(MASKS),
                    default=MASKS[0],
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "What of each picture counts in the loss: all of it, what its alpha shows, or what "
                        "NAME-mask.png shows in white."
                    ),
                ),
                io.Int.Input(
                    "bucket_step",
                    default=BUCKET_STEP,
                    min=BUCKET_STEPS[0],
                    max=BUCKET_STEPS[1],
                    step=SMALL_STEP,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Pixels: the sides of buckets are multiples of it. A smaller step crops less and gives more "
                        "sizes, so fewer pictures of one size to share a batch."
                    ),
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
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Reads the pictures of all folders below the folder too. In one named N_name, N is how often "
                        "its pictures are drawn, and name the caption of those without one. {folder} in trigger gives "
                        "each folder a trigger of its own."
                    ),
                ),
                io.Boolean.Input(
                    "pairs",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Reads a second picture of each, the source that an edit model is given: NAME-control.png "
                        "beside NAME.png, or control/NAME.png in the same folder. The caption is the instruction."
                    ),
                ),
            ],
            outputs=[
                Images.Output("images", display_name="images", tooltip="The training set, for a Bespoke trainer."),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip="A contact sheet with captions: what the training will see.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="How many pictures, their sizes and captions, and what was noticed.",
                ),
                io.Image.Output(
                    "pictures",
                    display_name="pictures",
                    is_output_list=True,
                    tooltip=(
                        "The pictures at the size they are trained at, without mirrored and repeated copies, as a "
                        "list: what it is wired to runs once for each picture. For a trainer take images."
                    ),
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder, **inputs):
        # With or without the pictures as tensors: what was read for the one is not handed on for the other.
        pictures = is_wired(PICTURES_SLOT)
        try:
            if folder is None or "folder_name" in inputs:  # the name is on a wire and not known yet
                return f"{stamp_of_folders([input_folder(), *data_set_folders()])}:{pictures}"
            # ComfyUI takes what is raised here for a warning; it sees an interrupt before the node runs.
            stopped = comfy.model_management.processing_interrupted
            read = bool(inputs.get("subfolders")), bool(inputs.get("pairs"))
            files = hash_files(find_folder(folder), stopped, *read)
            return f"{files}:{pictures}" if files else float("nan")
        except (ValueError, OSError) as error:
            return str(error)

    @classmethod
    @name_node_in_errors
    def execute(cls, folder, folder_name=None, **settings) -> io.NodeOutput:
        name = folder if folder_name is None else folder_name
        source = posixpath.normpath(name.replace("\\", "/"))  # "cats/" and "cats" are one folder
        images = read_folder(FolderRequest(find_folder(name), source=source, **settings), shown_progress())
        pictures = tensors_of(images) if is_wired(PICTURES_SLOT) else []
        return io.NodeOutput(images, contact_sheet(images), describe(images), pictures)


class ImageBatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeImageBatch",
            display_name="Bespoke Image Batch",
            category="Bespoke/images",
            description="Makes a training set out of images on the wire, with captions typed here.",
            search_aliases=["training images", "dataset from images", "captions", "list of images"],
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip=(
                        "The pictures to learn from: a batch, or a list of pictures of any sizes, which becomes one "
                        "set. Sides are cropped to multiples of 8 pixels."
                    ),
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    tooltip=(
                        "One caption a line, in the order of the pictures, or one line for all. A list on the wire "
                        "holds one caption for each picture."
                    ),
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    tooltip="A word that stands for what is learned. " + TRIGGER_RULE,
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip=(
                        "White counts in the loss. One for all pictures, or one each. A picture whose mask is black is "
                        "left out."
                    ),
                ),
                caption_syntax_input(),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=LARGEST_RESOLUTION,
                    step=8,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Pixels: a picture's area is brought down to this squared, as Image Folder does. 0 leaves the "
                        "sizes as they are; nothing is enlarged."
                    ),
                ),
                io.Boolean.Input(
                    "bucket",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "With a resolution: on keeps each picture's aspect ratio, off takes the middle square. Without "
                        "one it does nothing."
                    ),
                ),
                io.Boolean.Input(
                    "clips",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "On makes one clip of each batch, for a video model: its pictures are the frames, and it has "
                        "one caption. Load Video gives such a batch through Get Video Components."
                    ),
                ),
                io.Float.Input(
                    "fps",
                    default=24.0,
                    min=0.1,
                    max=FASTEST,
                    step=0.1,
                    optional=True,
                    advanced=True,
                    tooltip="Frames a second of the clips. Without clips it does nothing.",
                ),
                io.Int.Input(
                    "frame_step",
                    default=4,
                    min=1,
                    max=64,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "A clip is cut to a multiple of it plus 1 frames: 4 for Wan and HunyuanVideo, 8 for LTX-Video, "
                        "1 for as many as there are. Without clips it does nothing."
                    ),
                ),
            ],
            outputs=[
                Images.Output("images", display_name="images", tooltip="The training set, for a Bespoke trainer."),
                io.String.Output(
                    "report", display_name="report", tooltip="How many pictures, their sizes and captions."
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, images, captions, masks=None, **settings) -> io.NodeOutput:
        settings = {name: _the_one(name, value) for name, value in settings.items()}
        images = image_set(images, captions, masks=masks, **settings)
        return io.NodeOutput(images, describe(images))


def _the_one(name: str, value: Any) -> Any:
    """The value of a widget of a node that takes lists. Raises `InputError` for a list of different values."""
    values = value if isinstance(value, list) else [value]
    if not values or any(other != values[0] for other in values):
        raise InputError(f"{name} is a list of {len(values)} values; give one, since one set is made")
    return values[0]
