"""What the job folder and `command.py` need of each technique, in one table: `TECHNIQUES`.

To let a new technique be exported, add a `JobTechnique` to the table and an export node to `node.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...training.config import TrainConfig, check_choice
from ...training.errors import InputError
from ...training.formats import DTYPES, KEY_FORMATS
from ...training.record import Run
from ...training.run_identity import defaults_of
from ..bridge.dataset.encoded import EncodedDataset
from ..bridge.trainer import Models, Technique
from ..lora import files as lora_files
from ..lora.slider.dataset import slider_prompts
from ..lora.slider.request import SliderRequest
from ..lora.slider.technique import SliderTechnique
from ..lora.training.request import LoraRequest
from ..lora.training.technique import LoraTechnique, needed_prompts
from ..textual_inversion import files as word_files
from ..textual_inversion.request import InversionRequest
from ..textual_inversion.technique import TextualInversionTechnique
from ..textual_inversion.templates import check_captions
from ..textual_inversion.words import on_wire
from ..word_and_lora.request import WordAndLoraRequest
from ..word_and_lora.technique import WordAndLoraTechnique

File = tuple[dict[str, Tensor], dict[str, str]]  # tensors, metadata


@dataclass(frozen=True)
class JobTechnique:
    """One technique. The checks raise `InputError`.

    request: the class of its request, made from [settings] of job.toml.
    technique: (request, models, dataset) -> the `Technique` that is trained.
    needs_text_encoder: [settings] -> whether the training needs the text encoder.
    check_request: whether the job's dataset can serve the request; called before the models are loaded.
    check_model: whether the loaded model can serve the request.
    check_result: whether the file can be written as [result] of job.toml says.
    save_file: (folder, step, what is learned, run, graph) writes a file during the training.
    result_files: (what was learned, run, name, [result], graph) -> {name: file} as the save node would write them; one,
        but for several words.
    """

    request: type
    technique: Callable[[Any, Models, EncodedDataset], Technique[Any]]
    needs_text_encoder: Callable[[Mapping[str, Any]], bool]
    check_request: Callable[[Any, EncodedDataset], None]
    check_model: Callable[[Any, Models], None]
    check_result: Callable[[Mapping[str, Any]], None]
    save_file: Callable[[Path, int, dict[str, Tensor], Run, tuple], None]
    result_files: Callable[[dict[str, Tensor], Run, str, Mapping[str, Any], tuple], dict[str, File]]


def _check_lora_prompts(request: LoraRequest, dataset: EncodedDataset) -> None:
    if request.train_text_encoder:
        return
    _check_encoded(needed_prompts(dataset.pictures, request), dataset)


def _check_slider_prompts(request: SliderRequest, dataset: EncodedDataset) -> None:
    _check_encoded(slider_prompts(dataset.pictures, request), dataset)


def _check_encoded(prompts: set[str], dataset: EncodedDataset) -> None:
    missing = sorted(prompts - set(dataset.prompts))
    if missing:
        prompt = missing[0].partition("\0")[0]
        raise InputError(
            f"the prompt {prompt!r} was not encoded when the job was exported; export it again with these settings"
        )


def _check_lora_targets(request: LoraRequest, models: Models) -> None:
    request.layers(models.model.model.diffusion_model)


def _check_lora_result(result: Mapping[str, Any]) -> None:
    check_choice("key_format in [result]", result.get("key_format", "kohya"), KEY_FORMATS)
    check_choice("dtype in [result]", result.get("dtype", "fp16"), list(DTYPES))


def _lora_files(
    lora: dict[str, Tensor], run: Run, name: str, result: Mapping[str, Any], graph: tuple
) -> dict[str, File]:
    key_format, dtype = result.get("key_format", "kohya"), result.get("dtype", "fp16")
    return {name: lora_files.as_file(lora, run, Path(name).name, key_format, dtype, graph)}


def _check_word_captions(request: InversionRequest, dataset: EncodedDataset) -> None:
    if request.template == "captions":
        check_captions(dataset.pictures.items, request.names)


def _check_captions(request: WordAndLoraRequest, dataset: EncodedDataset) -> None:
    pictures = dataset.pictures
    used = [pictures.items[index] for index in (*pictures.training_indices, *pictures.held_out_indices)]
    check_captions(used, request.word.names, has_template=False)


def _check_no_model(request: InversionRequest, models: Models) -> None:
    """A word is learned with any text encoder that prompts read words with; the technique's constructor checks it."""


def _check_word_result(result: Mapping[str, Any]) -> None:
    check_choice("format in [result]", result.get("format", "comfy"), word_files.FORMATS)


def _word_files(
    learned: dict[str, Tensor], run: Run, name: str, result: Mapping[str, Any], graph: tuple
) -> dict[str, File]:
    return word_files.as_files(name, on_wire(learned), run, result.get("format", "comfy"), graph)


_LORA = JobTechnique(
    request=LoraRequest,
    technique=LoraTechnique,
    needs_text_encoder=lambda settings: bool(settings.get("train_text_encoder")),
    check_request=_check_lora_prompts,
    check_model=_check_lora_targets,
    check_result=_check_lora_result,
    save_file=lora_files.save_on_the_way,
    result_files=_lora_files,
)

TECHNIQUES = {
    LoraTechnique.name: _LORA,
    SliderTechnique.name: replace(
        _LORA,
        request=SliderRequest,
        technique=SliderTechnique,
        needs_text_encoder=lambda settings: False,
        check_request=_check_slider_prompts,
    ),
    TextualInversionTechnique.name: JobTechnique(
        request=InversionRequest,
        technique=TextualInversionTechnique,
        needs_text_encoder=lambda settings: True,
        check_request=_check_word_captions,
        check_model=_check_no_model,
        check_result=_check_word_result,
        save_file=word_files.save_on_the_way,
        result_files=_word_files,
    ),
    WordAndLoraTechnique.name: replace(
        _LORA,
        request=WordAndLoraRequest,
        technique=WordAndLoraTechnique,
        needs_text_encoder=lambda settings: True,
        check_request=_check_captions,
    ),
}


def job_technique(name: str) -> JobTechnique:
    """The technique of a job by its name. Raises `InputError` for a name that is not in `TECHNIQUES`."""
    if name not in TECHNIQUES:
        raise InputError(f"the job's technique is {name!r}; this Bespoke knows {', '.join(TECHNIQUES)}")
    return TECHNIQUES[name]


def setting_defaults() -> dict[str, dict[str, Any]]:
    """{technique: {setting: its default}}, of the settings that a run's record has."""
    made = {name: defaults_of(TrainConfig, technique.request) for name, technique in TECHNIQUES.items()}
    return {name: {key: value for key, value in own.items() if key != "resume"} for name, own in made.items()}


def needed_models(technique: str, settings: Mapping[str, Any]) -> list[str]:
    """The roles of the models that a training needs besides its dataset: of "model", "clip" and "vae"."""
    text = job_technique(technique).needs_text_encoder(settings)
    return ["model", *(["clip"] if text else []), *(["vae"] if settings.get("sample_every") else [])]
