"""What each output of each node is where the node is bypassed: looked up for every one, with a verdict."""

import json
from pathlib import Path

import pytest
from bypass import EMPTY, MEANT, TOLD, page_inputs, passed_on

ROOT = Path(__file__).parent.parent.parent
SCHEMAS = json.loads((ROOT / "tests" / "comfy" / "schemas.json").read_text("utf-8"))

# (node, output) -> (the input that is passed on, the verdict). A new output needs a row: see `bypass`.
VERDICTS = {
    ("BespokeApplyEmbedding", "clip"): ("clip", MEANT),
    ("BespokeApplyEmbedding", "prompt_word"): ("name", TOLD),
    ("BespokeCaptionVariants", "images"): ("images", MEANT),
    ("BespokeCaptionVariants", "preview"): ("separator", TOLD),
    ("BespokeCombineImageSets", "images"): ("sets.set0", MEANT),
    ("BespokeCombineImageSets", "preview"): (None, EMPTY),
    ("BespokeCombineImageSets", "report"): ("weights", TOLD),
    ("BespokeCompare", "image"): ("images.image0", MEANT),
    ("BespokeCompare", "report"): ("labels", TOLD),
    ("BespokeComposeLoras", "lora"): ("loras.lora0", MEANT),
    ("BespokeComposeLoras", "report"): ("strengths", TOLD),
    ("BespokeComposeLoras", "heatmap"): (None, EMPTY),
    ("BespokeCropToMask", "image"): ("image", MEANT),
    ("BespokeCropToMask", "mask"): ("mask", MEANT),
    ("BespokeCropToMask", "crop"): (None, EMPTY),
    ("BespokeCropToMask", "preview"): ("image", MEANT),
    ("BespokeCropToMask", "report"): (None, EMPTY),
    ("BespokeExportLoraJob", "folder"): ("custom_targets", TOLD),
    ("BespokeExportLoraJob", "report"): ("custom_targets", TOLD),
    ("BespokeExportSliderJob", "folder"): ("target", TOLD),
    ("BespokeExportSliderJob", "report"): ("target", TOLD),
    ("BespokeExportTextualInversionJob", "folder"): ("name", TOLD),
    ("BespokeExportTextualInversionJob", "report"): ("name", TOLD),
    ("BespokeExportWordAndLoraJob", "folder"): ("name", TOLD),
    ("BespokeExportWordAndLoraJob", "report"): ("name", TOLD),
    ("BespokeExtractLora", "lora"): (None, EMPTY),
    ("BespokeExtractLora", "report"): ("custom_targets", TOLD),
    ("BespokeExtractLora", "heatmap"): (None, EMPTY),
    ("BespokeFindLearningRate", "learning_rate"): ("lowest", MEANT),
    ("BespokeFindLearningRate", "plot"): ("images", MEANT),
    ("BespokeFindLearningRate", "report"): ("custom_targets", TOLD),
    ("BespokeFindWordLearningRate", "learning_rate"): ("lowest", MEANT),
    ("BespokeFindWordLearningRate", "plot"): ("images", MEANT),
    ("BespokeFindWordLearningRate", "report"): ("name", TOLD),
    ("BespokeFillMasked", "image"): ("image", MEANT),
    ("BespokeFillMasked", "mask"): ("mask", MEANT),
    ("BespokeFillMasked", "report"): (None, EMPTY),
    ("BespokeClipFolder", "images"): (None, EMPTY),
    ("BespokeClipFolder", "preview"): (None, EMPTY),
    ("BespokeClipFolder", "report"): ("folder_name", TOLD),
    ("BespokeImageBatch", "images"): (None, EMPTY),
    ("BespokeImageBatch", "report"): ("captions", TOLD),
    ("BespokeImageFolder", "images"): (None, EMPTY),
    ("BespokeImageFolder", "preview"): (None, EMPTY),
    ("BespokeImageFolder", "report"): ("folder_name", TOLD),
    ("BespokeImageFolder", "pictures"): (None, EMPTY),
    ("BespokeInjectLora", "model"): ("model", MEANT),
    ("BespokeInjectLora", "clip"): ("clip", MEANT),
    ("BespokeInjectLora", "report"): ("name", TOLD),
    ("BespokeInjectLora", "trigger_words"): ("name", TOLD),
    ("BespokeInjectLora", "lora"): ("lora", MEANT),
    ("BespokeInspectEmbedding", "report"): ("name", TOLD),
    ("BespokeInspectEmbedding", "plot"): (None, EMPTY),
    ("BespokeInspectLora", "report"): ("name", TOLD),
    ("BespokeInspectLora", "heatmap"): (None, EMPTY),
    ("BespokeInspectRun", "sheet"): (None, EMPTY),
    ("BespokeInspectRun", "curve"): (None, EMPTY),
    ("BespokeInspectRun", "report"): (None, EMPTY),
    ("BespokeInspectRun", "card"): (None, EMPTY),
    ("BespokeLatentMaskBlend", "model"): ("model", MEANT),
    ("BespokeLatentMaskBlend", "latent"): ("latent", MEANT),
    ("BespokeLatentMaskBlend", "latent_mask"): ("mask", MEANT),
    ("BespokeLatentMaskBlend", "preview"): (None, EMPTY),
    ("BespokeLatentMaskBlend", "report"): (None, EMPTY),
    ("BespokeLoadLora", "lora"): (None, EMPTY),
    ("BespokeLoadLora", "trigger_words"): ("name", TOLD),
    ("BespokeLoadLora", "report"): ("name", TOLD),
    ("BespokeLoraStackFromRun", "lora_stack"): ("lora_stack", MEANT),
    ("BespokeLoraStackFromRun", "report"): (None, EMPTY),
    ("BespokeLoraSweep", "grid"): (None, EMPTY),
    ("BespokeLoraSweep", "report"): ("strengths", TOLD),
    ("BespokeMatchColors", "image"): ("image", MEANT),
    ("BespokeMatchColors", "report"): (None, EMPTY),
    ("BespokePairImageSets", "images"): ("source", MEANT),
    ("BespokePairImageSets", "preview"): (None, EMPTY),
    ("BespokePairImageSets", "report"): (None, EMPTY),
    ("BespokePartialDenoise", "latent"): ("latent_image", MEANT),
    ("BespokePartialDenoise", "start"): ("latent_image", MEANT),
    ("BespokePartialDenoise", "sigmas"): (None, EMPTY),
    ("BespokePartialDenoise", "report"): (None, EMPTY),
    ("BespokeRestoreUnmasked", "image"): ("generated", MEANT),
    ("BespokeRestoreUnmasked", "report"): (None, EMPTY),
    ("BespokeRestoreUnmasked", "changed_outside"): ("feather", TOLD),
    ("BespokeSaveEmbedding", "prompt_word"): ("name", TOLD),
    ("BespokeSaveImageSet", "folder"): ("folder", TOLD),
    ("BespokeSaveImageSet", "report"): ("folder", TOLD),
    ("BespokeSaveLora", "for_lists"): ("run", TOLD),
    ("BespokeSaveLora", "lora_name"): ("filename_prefix", TOLD),
    ("BespokeStrengthSigmas", "sigmas"): (None, EMPTY),
    ("BespokeStrengthSigmas", "report"): (None, EMPTY),
    ("BespokeStrengthSigmas", "plot"): (None, EMPTY),
    ("BespokeTrainLora", "model"): ("model", MEANT),
    ("BespokeTrainLora", "lora"): ("lora", MEANT),
    ("BespokeTrainLora", "loss"): (None, EMPTY),
    ("BespokeTrainLora", "run"): (None, EMPTY),
    ("BespokeTrainLora", "report"): ("custom_targets", TOLD),
    ("BespokeTrainLora", "clip"): ("clip", MEANT),
    ("BespokeTrainSlider", "model"): ("model", MEANT),
    ("BespokeTrainSlider", "lora"): ("lora", MEANT),
    ("BespokeTrainSlider", "loss"): (None, EMPTY),
    ("BespokeTrainSlider", "run"): (None, EMPTY),
    ("BespokeTrainSlider", "report"): ("target", TOLD),
    ("BespokeTrainSlider", "clip"): ("clip", MEANT),
    ("BespokeTrainTextualInversion", "clip"): ("clip", MEANT),
    ("BespokeTrainTextualInversion", "embedding"): (None, EMPTY),
    ("BespokeTrainTextualInversion", "prompt_word"): ("name", TOLD),
    ("BespokeTrainTextualInversion", "loss"): (None, EMPTY),
    ("BespokeTrainTextualInversion", "run"): (None, EMPTY),
    ("BespokeTrainTextualInversion", "report"): ("init_text", TOLD),
    ("BespokeTrainWordAndLora", "model"): ("model", MEANT),
    ("BespokeTrainWordAndLora", "clip"): ("clip", MEANT),
    ("BespokeTrainWordAndLora", "lora"): ("lora", MEANT),
    ("BespokeTrainWordAndLora", "embedding"): (None, EMPTY),
    ("BespokeTrainWordAndLora", "prompt_word"): ("name", TOLD),
    ("BespokeTrainWordAndLora", "loss"): (None, EMPTY),
    ("BespokeTrainWordAndLora", "run"): (None, EMPTY),
    ("BespokeTrainWordAndLora", "report"): ("name", TOLD),
}
OUTPUTS = [
    (name, number, shown, kind)
    for name, schema in SCHEMAS.items()
    for number, (_, kind, shown) in enumerate(schema["outputs"])
]


def test_every_output_has_a_verdict_and_no_other():
    """A node or an output without a row has not been thought about."""
    assert {(name, shown) for name, _, shown, _ in OUTPUTS} == set(VERDICTS)


@pytest.mark.parametrize(("name", "number", "shown", "kind"), OUTPUTS, ids=lambda value: str(value))
def test_a_bypassed_node_passes_on_what_the_table_says(name, number, shown, kind):
    """The page's rule on the schema; `tests/browser/test_bypass.py` asks the page itself."""
    source, verdict = VERDICTS[name, shown]
    assert passed_on(page_inputs(name, SCHEMAS[name]), number, kind) == source
    assert (source is None) == (verdict == EMPTY)
    if kind not in ("STRING", "INT", "*"):
        assert verdict in (MEANT, EMPTY), "a wire of the graph carries another thing: change the inputs of a new node"
    if verdict == TOLD:
        page = (ROOT / "js" / "docs" / f"{name}.md").read_text("utf-8")
        (line,) = [line for line in page.splitlines() if "**Bypassed**" in line]
        assert f"**{shown}**" in line
        assert f"**{source}**" in line
