"""What other nodes have put on a MODEL or CLIP, and what a training does with each item.

The tables here continue those of `table`: the keys of `model_options`, and the kinds of wrapper and callback. Nothing
is left out in silence: what has no row is refused, or, where only a sampler can read it, said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ....training.errors import InputError
from .compiled import compiled_objects
from .foreign_code import code_name, functions_in, is_cache_name, is_step_cache, may_read_level, modules_in, plain
from .origin import Unreadable, class_origin, function_origin, is_known
from .table import CLIP, PATCHER, InTraining, Row, carried, is_set


@dataclass(frozen=True)
class Rule:
    """What a training does with one key. words: what a report calls it.

    reads_level: whether code under it is given the noise level by position. at_step: whether it is called at a step.
    """

    in_training: InTraining
    words: str = ""
    reads_level: bool = False
    at_step: bool = True


_APPLIED = Rule(InTraining.APPLIED)
_AT_OTHER_TIMES = Rule(InTraining.APPLIED, at_step=False)
_NO_EFFECT = Rule(InTraining.NO_EFFECT)
MODEL_OPTIONS: Mapping[str, Rule] = {
    "transformer_options": Rule(InTraining.BY_KEY),
    "model_function_wrapper": Rule(InTraining.APPLIED, "a wrapper of the model's function", reads_level=True),
    "sampler_cfg_function": Rule(InTraining.SAMPLING_ONLY, "a CFG function"),
    "sampler_pre_cfg_function": Rule(InTraining.SAMPLING_ONLY, "a function before CFG"),
    "sampler_post_cfg_function": Rule(InTraining.SAMPLING_ONLY, "a function after CFG"),
    "denoise_mask_function": Rule(InTraining.SAMPLING_ONLY, "a function of the denoise mask"),
    "sampler_calc_cond_batch_function": Rule(InTraining.REFUSED, "a replaced calculation of its predictions"),
    "context_handler": Rule(InTraining.REFUSED, "context windows"),
    # It has a sampler compute the negative prompt at CFG 1 too.
    "disable_cfg1_optimization": _NO_EFFECT,
    # How the work is divided over several devices, and what a sampler notes for itself.
    **dict.fromkeys(("multigpu_options", "multigpu_clones", "multigpu_thread_pool", "ignore_multigpu"), _NO_EFFECT),
    **dict.fromkeys(("to_load_options", "registered_hooks"), _NO_EFFECT),
    "torch_compile_kwargs": _NO_EFFECT,  # how the wrapper of TorchCompileModel was made, which is applied
}
UNKNOWN_OPTION = Rule(InTraining.SAMPLING_ONLY, "an option that ComfyUI's samplers do not know")
# Everything in the transformer options is passed to the model as sampling passes it. These hold code.
TRANSFORMER_OPTIONS: Mapping[str, Rule] = {
    "patches": _APPLIED,
    "patches_replace": _APPLIED,
    "optimized_attention_override": _APPLIED,
    "wrappers": Rule(InTraining.BY_KEY),
    "callbacks": Rule(InTraining.BY_KEY),
}
UNKNOWN_TRANSFORMER_OPTION = _APPLIED
WRAPPERS: Mapping[str, Rule] = {
    # Before "outer_sample", since it names a step cache better.
    "calc_cond_batch": Rule(InTraining.REFUSED, "a wrapper of the calculation of its predictions"),
    "predict_noise": Rule(InTraining.REFUSED, "a wrapper of a sampler's prediction"),
    "apply_model": Rule(InTraining.APPLIED, "a wrapper of the model", reads_level=True),
    "diffusion_model": Rule(InTraining.APPLIED, "a wrapper of the diffusion model", reads_level=True),
    "outer_sample": Rule(InTraining.REFUSED, "a wrapper of the whole sampling"),
    "sampler_sample": Rule(InTraining.REFUSED, "a wrapper of the sampler"),
    "prepare_sampling": Rule(InTraining.REFUSED, "a wrapper of what precedes a sampling"),
}
CALLBACKS: Mapping[str, Rule] = {
    **dict.fromkeys(("on_clone", "on_load_after", "on_detach_after", "on_cleanup", "on_pre_run"), _AT_OTHER_TIMES),
    **dict.fromkeys(("on_inject_model", "on_eject_model", "on_register_all_hook_patches"), _AT_OTHER_TIMES),
    "on_prepare_state": Rule(InTraining.APPLIED, "a callback of each step", reads_level=True),
    # Called where the hooks of a conditioning change; a training's conditioning has none.
    "on_apply_hooks": _NO_EFFECT,
    **dict.fromkeys(("on_deepclone_multigpu", "on_match_multigpu_clones"), _NO_EFFECT),
}
UNKNOWN_WRAPPER = Rule(InTraining.REFUSED, "a wrapper of an unknown kind")
UNKNOWN_CALLBACK = Rule(InTraining.REFUSED, "a callback of an unknown kind")
# Of ComfyUI's and this pack's own code under a refused key, what leaves a conditional prediction as it is.
SAMPLING_ONLY_CODE = frozenset(
    {
        # blends a sampler's states with the original's
        "bespoke/nodes/inpaint/blend.py:_outer_sample",
        # changes the CFG in a range of noise levels
        "comfy_extras/nodes_custom_sampler.py:CFGOverride.execute.<locals>.predict_noise_wrapper",
        # skips layers for the negative prompt
        "comfy_extras/nodes_slg.py:SkipLayerGuidanceDiTSimple.execute.<locals>.calc_cond_batch_function",
        # shows previews
        "comfy_extras/nodes_triposplat.py:TripoSplatSamplingPreview.execute.<locals>.outer_sample_wrapper",
    }
)
# Of ComfyUI's own code, what has one row for any batch.
ONE_ROW = frozenset({"comfy_extras/nodes_model_patch.py:UsoStyleProjectorPatch"})


@dataclass(frozen=True)
class Item:
    """Something that a wire carries, with what a training does with it. code: a function or object, or None."""

    where: str
    rule: Rule
    code: Any = None

    @property
    def is_cache(self) -> bool:
        return self.code is not None and is_step_cache(self.code)

    @property
    def in_training(self) -> InTraining:
        if self.is_cache and self.rule.in_training is not InTraining.NO_EFFECT:
            return InTraining.REFUSED
        if self.rule.in_training is InTraining.REFUSED and _origin(self.code) in SAMPLING_ONLY_CODE:
            return InTraining.SAMPLING_ONLY
        return self.rule.in_training

    def describe(self) -> str:
        words = "a step cache" if self.is_cache else self.rule.words or "a patch"
        return f"{words} ({self.where if self.code is None else code_name(self.code)})"


@dataclass(frozen=True)
class Compatibility:
    """What a MODEL carries, sorted by what a training does with it.

    refused: each item in words. sampling_only: likewise. code: the names of the code that the training calls.
    by_sample: of these, what may read the noise level, which is one number in sampling: each sample of a batch that has
    a noise level of its own then gets a call of its own. one_row: what takes one sample at a time, in sampling too.
    modules: what the code holds of modules.
    """

    refused: tuple[str, ...] = ()
    sampling_only: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    by_sample: tuple[str, ...] = ()
    one_row: tuple[str, ...] = ()
    modules: tuple[Any, ...] = ()

    def notes(self) -> list[str]:
        """A sentence for the report, where there is something to say, for each kind of item."""
        out = []
        if self.sampling_only:
            out.append(
                f"the MODEL carries {' and '.join(self.sampling_only)}: what only acts on how a sampler joins or masks "
                "predictions is in the samples and not in the training, which trains the prediction itself"
            )
        return [*out, self.cost()] if self.cost() else out

    def cost(self) -> str:
        """What the code costs that keeps the pictures of a batch from one call; "" without any."""
        if self.one_row:
            why = f"{' and '.join(self.one_row)} on the MODEL takes one picture at a time"
        elif self.by_sample:
            why = (
                f"{' and '.join(self.by_sample)} on the MODEL may read the noise level, which each picture of a batch "
                "has for itself"
            )
        else:
            return ""
        return f"{why}: each picture is a call of the model of its own, so a batch takes up to that many times as long"


def compatibility_of(patcher: Any) -> Compatibility:
    """What other nodes have put on a MODEL."""
    items = list(_items(patcher))
    by_verdict = {
        verdict: _unique(item.describe() for item in items if item.in_training is verdict) for verdict in InTraining
    }
    applied = [
        item for item in items if item.in_training is InTraining.APPLIED and item.code is not None and item.rule.at_step
    ]
    return Compatibility(
        by_verdict[InTraining.REFUSED],
        by_verdict[InTraining.SAMPLING_ONLY],
        _unique(code_name(item.code) for item in applied),
        _unique(code_name(each.code) for each in applied if may_read_level(each.code, each.rule.reads_level)),
        _unique(code_name(each.code) for each in applied if _origin(type(each.code)) in ONE_ROW),
        tuple(module for each in applied for module in modules_in(each.code)),
    )


def check_compatibility(patcher: Any, clip: Any = None) -> None:
    """Raise `InputError` where a training would be wrong with what a MODEL or CLIP carries, or would leave it out."""
    found = [("MODEL", compatibility_of(patcher).refused)]
    if clip is not None:
        items = [*_refused_attributes(clip.patcher, PATCHER), *_refused_attributes(clip, CLIP)]
        found.append(("CLIP", _unique(each.describe() for each in items if each.in_training is InTraining.REFUSED)))
    for wire, refused in found:
        if refused:
            raise InputError(
                f"the {wire} carries {refused[0]}, which a training cannot compute as sampling does; "
                f"{_mend(patcher, wire)}"
            )


def _mend(patcher: Any, wire: str) -> str:
    """What to do about the node whose work on the MODEL or CLIP is refused."""
    if wire == "MODEL" and compiled_objects(patcher):
        return (
            "take the node away that compiles it, or compile with TorchCompileModel of ComfyUI instead. A node that "
            "compiles in this way must not follow the trainer either: ComfyUI finds no weight of the module by its "
            "name, and a LoRA is lost there"
        )
    return f"wire the {wire} from before that node into the trainer. The node may follow the trainer"


def _items(patcher: Any) -> Iterator[Item]:
    yield from _refused_attributes(patcher, PATCHER)
    yield from _code_of_attributes(patcher)
    for key, value in patcher.model_options.items():
        rule = MODEL_OPTIONS.get(key, UNKNOWN_OPTION)
        if rule.in_training is not InTraining.BY_KEY and is_set(value):
            yield from _each(key, rule, value)
    options = patcher.model_options.get("transformer_options", {})
    for key, value in options.items():
        if is_cache_name(str(key)) and is_set(value):
            yield from _each(key, Rule(InTraining.REFUSED, "a step cache"), value)
        rule = TRANSFORMER_OPTIONS.get(key, UNKNOWN_TRANSFORMER_OPTION)
        if rule.in_training is not InTraining.BY_KEY:
            yield from (each for each in _each(key, rule, value) if each.code is not None)
    for holder in (patcher.wrappers, options.get("wrappers", {})):
        yield from _by_kind(holder, WRAPPERS, UNKNOWN_WRAPPER)
    for holder in (patcher.callbacks, options.get("callbacks", {})):
        yield from _by_kind(holder, CALLBACKS, UNKNOWN_CALLBACK)


def _refused_attributes(holder: Any, table: Mapping[str, Row]) -> Iterator[Item]:
    """The attributes of a patcher or a CLIP that are refused: by their row, or since they have none."""
    for name, row, _ in carried(holder, table):
        if row is None:
            yield Item(name, Rule(InTraining.REFUSED, "what this version of Bespoke does not know"))
        elif row.in_training is InTraining.REFUSED:
            yield Item(name, Rule(row.in_training, row.words))


def _code_of_attributes(patcher: Any) -> Iterator[Item]:
    """The code in a MODEL's injections and object patches."""
    for name, _, value in carried(patcher, PATCHER):
        if name == "injections":
            others = [each for each in functions_in(value) if not _is_known_injection(each)]
            yield from _each(name, Rule(InTraining.APPLIED, "an injection"), others, always=False)
        elif name == "object_patches":
            compiled = compiled_objects(patcher)
            rule = Rule(InTraining.REFUSED, "a compiled module, beside which its weights have other names")
            yield from (Item(key, rule) for key in compiled)
            values = {key: each for key, each in value.items() if key not in ("model_sampling", *compiled)}
            yield from (each for each in _each(name, _APPLIED, values) if each.code is not None)


def _is_known_injection(injection: Any) -> bool:
    """Whether it is ComfyUI's or this pack's path of a LoRA beside the weights."""
    return is_known(type(injection)) and is_known(getattr(injection, "inject", type(injection)))


def _by_kind(holder: Mapping[str, Any], table: Mapping[str, Rule], unknown: Rule) -> Iterator[Item]:
    for kind in sorted(holder, key=lambda kind: list(table).index(kind) if kind in table else len(table)):
        yield from _each(kind, table.get(kind, unknown), holder[kind], always=False)


def _each(where: str, rule: Rule, value: Any, always: bool = True) -> Iterator[Item]:
    """One item for each function or object in `value`, or one without code. always: also where it holds none."""
    found = list(functions_in(value))
    yield from (Item(where, rule, code) for code in found)
    if always and not found:
        yield Item(where, rule)


def _origin(code: Any) -> str:
    try:
        code = plain(code)
        return class_origin(code) if isinstance(code, type) else function_origin(code)
    except (Unreadable, AttributeError):
        return ""


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
