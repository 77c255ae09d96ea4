"""Over every node that gives a MODEL or a CLIP: a training predicts what sampling predicts, or says why not.

What a node changes is not taken from any list: the oracle is `comfy.sample` itself at cfg 1, with the same noisy
latents, noise levels and conditioning. See tests/lib/wire_training.py.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import wire_nodes
import wire_training
from bespoke.nodes.bridge.trainer import Models
from wire_training import Verdict

# Changes of what sampling predicts that are below float rounding.
NO_EFFECT = 1e-6
# Of nodes that change nothing of an SD1.5 model, a family that they are made for.
FAMILY = {
    "ARVideoI2V": "wan",
    "CheckpointLoaderSimple": "small",
    "FluxKVCache": "flux",
    "ImageOnlyCheckpointLoader": "small",
    "ModelNoiseScale": "sd3",
    "NAGuidance": "flux",
    "QwenImageDiffsynthControlnet": "qwen_image",
    "RenormCFG": "z_image",
    "ScaleROPE": "flux",
    "SkipLayerGuidanceDiT": "flux",
    "SkipLayerGuidanceDiTSimple": "flux",
    "SkipLayerGuidanceSD3": "sd3",
    "T5TokenizerOptions": "flux",
    "USOStyleReference": "flux",
    "WanContextWindowsManual": "wan",
    "WanUni3CControlnetApply": "wan",
    "unCLIPCheckpointLoader": "small",
    "wanBlockSwap": "wan",
}
KINDS = ("lora", "text encoder", "word")


@dataclass
class Row:
    """What was found of one node. why_not: why it was not tried."""

    name: str
    kind: str = ""
    family: str = ""
    settings: str = ""
    verdict: Verdict | None = None
    why_not: str = ""

    def __str__(self) -> str:
        if self.verdict is None:
            return f"not tried: {self.name}: {self.why_not}"
        return f"{self.name:32} {self.kind:12} {self.family:10} {self.settings:20} {self.verdict}"


def wires(run_node, name: str, node: Any, values: dict[str, Any], family: str) -> Models:
    """The family's models with what the node gives in the place of its own."""
    out = Models(*wire_nodes.made(family))
    for kind, thing in zip(node.RETURN_TYPES, run_node(name, **dict(values)), strict=False):
        if kind in ("MODEL", "CLIP"):
            out = replace(out, **{kind.lower(): thing})
    return out


def values_of(node: Any, family: str, which: int) -> dict[str, Any]:
    """`wire_nodes.first_values`, with another model in each second input of a kind, as for a node that merges two."""
    values, seen = wire_nodes.first_values(node, family, which), set()
    for name, given in wire_nodes.inputs_of(node).items():
        if given.kind in wire_nodes.WIRES and name in values:
            if given.kind in seen:
                values[name] = wire_nodes.two_values(name, given, family)[1]
            seen.add(given.kind)
    return values


class Table:
    """Tries nodes and keeps the rows. Each is printed at once, so that a run that is stopped has shown some."""

    def __init__(self, run_node, folder):
        self.run_node, self.folder, self.rows = run_node, folder, []
        self._plain: dict[tuple[str, str], Any] = {}

    def plain(self, family: str, kind: str) -> Any:
        """(models, report) of the family without the node; the report is "" where it cannot be trained so."""
        if (family, kind) not in self._plain:
            models = Models(*wire_nodes.made(family))
            try:
                report = wire_training.trained(models, self.folder, kind)[1]
            except wire_training.InputError:
                report = None
            self._plain[family, kind] = (models, report)
        return self._plain[family, kind]

    def compare(self, name, node, values, family, kind) -> Verdict:
        made, again = (wires(self.run_node, name, node, values, family) for _ in range(2))
        return wire_training.compare(made, again, self.folder, kind, self.plain(family, kind))

    def try_node(self, name, node) -> None:
        """Add the node's rows, on the first family that takes it, with the first values that change a prediction."""
        why_not, found = "", None
        for family in (FAMILY[name],) if name in FAMILY else wire_nodes.FAMILIES:
            for which in (0, 1):
                try:
                    values = values_of(node, family, which)
                    verdict = self.compare(name, node, values, family, "lora")
                except wire_nodes.NoValue as error:
                    why_not = str(error)
                    break
                except Exception as error:  # the node does not take this family, or sampling does not
                    why_not = why_not or f"{type(error).__name__}: {str(error)[:80]}"
                    continue
                telling = (verdict.effect or 0) > NO_EFFECT or verdict.kind != "equal"
                if found is None or telling:
                    found = Row(name, "lora", family, ("first values", "second values")[which], verdict), values
                if telling:
                    break
            if found is not None:
                break
        if found is None:
            self.add(Row(name, why_not=why_not))
            return
        row, values = found
        self.add(row)
        if "CLIP" in tuple(node.RETURN_TYPES):
            for kind in KINDS[1:]:
                if self.plain(row.family, kind)[1] is not None:
                    verdict = self.compare(name, node, values, row.family, kind)
                    self.add(replace(row, kind=kind, verdict=verdict))

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(row, flush=True)

    def show_counts(self) -> None:
        counts = collections.Counter(row.verdict.kind for row in self.rows if row.verdict)
        idle = sum((row.verdict.effect or 0) <= NO_EFFECT for row in self.rows if row.verdict)
        untried = sum(row.verdict is None for row in self.rows)
        print(f"{len(self.rows)} rows: {dict(counts)}, {untried} not tried")
        print(f"{idle} change nothing of what sampling predicts at cfg 1")

    def faults(self) -> dict[str, str]:
        return {
            f"{row.name}, {row.kind}": str(row.verdict) for row in self.rows if row.verdict and row.verdict.is_fault
        }


# Verdicts that are pinned. Guidance is a sampler's: its training is that of the prediction, and the report says so.
VERDICTS = {
    "APG": "said",
    "BespokeInjectLora": "equal",
    "EasyCache": "refused",
    "HypernetworkLoader": "equal",
    "LoraLoaderBypassModelOnly": "equal",
    "ModelMergeSimple": "equal",
    "ModelSamplingDiscrete": "refused",
    "PerturbedAttentionGuidance": "said",
    "SelfAttentionGuidance": "said",
    "SetClipHooks": "refused",
    "USOStyleReference": "equal",
    "WanUni3CControlnetApply": "equal",
}
# A few of each kind: a step cache, guidance, hooks, a hypernetwork, a LoRA beside the weights, noise levels, a merge.
FEW = (
    "BespokeInjectLora",
    "EasyCache",
    "HypernetworkLoader",
    "LoraLoaderBypassModelOnly",
    "ModelMergeSimple",
    "ModelSamplingDiscrete",
    "PerturbedAttentionGuidance",
    "SelfAttentionGuidance",
    "SetClipHooks",
)


@pytest.fixture
def table(run_node, comfyui, tmp_path, no_progress_bars, small_checkpoint, request):
    """An empty table, with the files that nodes load. Its parameter says whether the U-Net is the whole small one."""
    wire_nodes.use(request.param)
    wire_nodes.write_files(comfyui)
    if request.param:
        (comfyui / "models" / "checkpoints" / wire_nodes.SMALL).symlink_to(small_checkpoint)
    yield Table(run_node, tmp_path)
    (comfyui / "models" / "checkpoints" / wire_nodes.SMALL).unlink(missing_ok=True)


def judge(table: Table, names: Iterable[str], left_out: Mapping[str, str]) -> None:
    """Try the nodes and print the table. Fail at a difference without words, and at another verdict than `VERDICTS`."""
    found = wire_training.nodes_to_try()
    for name in sorted({*names} & {*found}):
        if name in left_out:
            table.add(Row(name, why_not=left_out[name]))
        else:
            table.try_node(name, found[name])
    table.show_counts()
    assert table.faults() == {}
    verdicts = {row.name: row.verdict.kind for row in table.rows if row.verdict}
    pinned = {name: kind for name, kind in VERDICTS.items() if name in verdicts}
    assert {name: verdicts[name] for name in pinned} == pinned


@pytest.mark.parametrize("table", [False], indirect=True)
def test_a_training_predicts_what_sampling_predicts_or_says_why_not(table):
    """Behind a few nodes. The oracle is ComfyUI's sampler, called once for each noise level."""
    judge(table, FEW, {})


@pytest.mark.slow
@pytest.mark.parametrize("table", [True], indirect=True)
def test_behind_every_node_a_training_predicts_what_sampling_predicts_or_says_why_not(table):
    """Behind every node of the host that gives a MODEL or a CLIP, with a whole U-Net."""
    judge(table, wire_training.nodes_to_try(), wire_nodes.left_out(False))


@pytest.mark.parametrize("table", [False], indirect=True)
def test_a_replaced_forward_may_hold_tensors_of_inference_mode(table):
    """As WanVideoNAG of ComfyUI-KJNodes replaces an attention's forward. The oracle is ComfyUI's sampler."""
    plain = table.plain("sd15", "lora")
    model = plain[0].model.clone()
    place = "diffusion_model.middle_block.1.transformer_blocks.0.attn2"
    attention = model.get_model_object(place)
    with torch.inference_mode():
        factor = torch.full((1,), 0.5)
    model.add_object_patch(
        f"{place}.forward", lambda *args, **kw: type(attention).forward(attention, *args, **kw) * factor
    )
    models = replace(plain[0], model=model)
    verdict = wire_training.compare(models, models, table.folder, "lora", plain)
    assert verdict.kind == "equal", str(verdict)
    assert verdict.effect
    assert verdict.effect > 1e-3


@pytest.mark.parametrize("table", [False], indirect=True)
def test_a_replaced_function_of_a_clip_is_refused_where_the_text_encoder_trains(table):
    """As CLIPNegPip of ComfyUI-ppm replaces encode_token_weights. A LoRA of the model alone is trained: the oracle is
    ComfyUI's sampler with CLIPTextEncode's conditioning.
    """
    plain = table.plain("sd15", "lora")
    clip = plain[0].clip.clone()
    own = clip.cond_stage_model.encode_token_weights

    def doubled(tokens):
        context, *further = own(tokens)
        return (2 * context, *further)

    clip.patcher.add_object_patch("encode_token_weights", doubled)
    models = replace(plain[0], clip=clip)
    verdicts = {kind: wire_training.compare(models, models, table.folder, kind, plain) for kind in KINDS}
    assert [verdicts[kind].kind for kind in KINDS] == ["equal", "refused", "refused"]
    assert verdicts["lora"].effect
    assert "in the place of encode_token_weights" in verdicts["word"].words
