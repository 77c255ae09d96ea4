// @ts-check
// Inserts a run's LoRA, word or sweep into the open graph. No side effects.

import { addNode, bottomLeft, classOf, connect, goTo, outputOfType, ownValue, refreshLists, selectedNodes, setValue, shownNodes, widgetOf } from "./comfy.js";
import { t } from "./words.js";

const LORA_NODE = "BespokeInjectLora";
const SWEEP_NODE = "BespokeLoraSweep";
const LOADER_NODE = "BespokeLoadLora";
const PREVIEW_NODE = "PreviewImage";
const MOST_IN_SWEEP = 26; // sockets of the sweep
const GAP = 40; // px between inserted nodes
const ROW_GAP = 90; // px below a node: for the title of the next one, and what Nodes 2.0 adds to a node's size
const LOADER_WIDTH = 420; // px
const PREVIEW_SIZE = /** @type {const} */ ([720, 560]); // px
const SAMPLERS = ["KSampler", "KSamplerAdvanced"];
const SAMPLING = ["steps", "cfg", "sampler_name", "scheduler"]; // widgets that a sampler and the sweep share
const PROMPT_NODE = "CLIPTextEncode";

/**
 * Set the LoRA file on the selected node that has a LoRA list, else on a new Bespoke Inject LoRA node.
 * @param {string} name of the file, as the list has it
 */
export async function addLora(name) {
  await refreshLists(); // the file may be newer than the lists
  setValue(selectedNodes().find((node) => widgetOf(node, "lora_name")) ?? add(LORA_NODE), "lora_name", name);
}

/**
 * Insert a Bespoke LoRA Sweep of a run's files below the graph, each with its loader, and a preview, and show it. Model,
 * text encoder and VAE come from the graph's loader, where it has just one; how it samples from the graph's first
 * sampler, as a trainer's samples do, and the size from the pictures that were trained on.
 * @param {string[]} names of the files, as the lists have them
 * @param {string} prompt
 * @param {string} resolution of the run's pictures, such as "512x768"
 */
export async function addSweep(names, prompt, resolution) {
  await refreshLists();
  const [sources, [left, bottom]] = [shownNodes().filter(isCheckpointLoader), bottomLeft()];
  const sweep = add(SWEEP_NODE);
  const top = bottom + ROW_GAP;
  let [x, y] = [left, top];
  names.slice(-MOST_IN_SWEEP).forEach((name, number) => {
    const loader = add(LOADER_NODE);
    setValue(loader, "lora_name", name);
    loader.size = [Math.max(loader.size[0], LOADER_WIDTH), loader.size[1]]; // the name of a file says its step at the end
    loader.pos = [left, y];
    x = left + loader.size[0] + 2 * GAP;
    y += loader.size[1] + ROW_GAP;
    connect(loader, "lora", sweep, `loras.lora${number}`);
  });
  sweep.pos = [x, top];
  const preview = add(PREVIEW_NODE);
  preview.size = [...PREVIEW_SIZE];
  preview.pos = [x + sweep.size[0] + 2 * GAP, top];
  connect(sweep, "grid", preview, "images");
  if (sources.length === 1) {
    for (const [type, input] of Object.entries(LOADED)) connect(sources[0], outputOfType(sources[0], type), sweep, input);
  }
  if (prompt) setValue(sweep, "prompts", prompt);
  const sampler = shownNodes().find((node) => SAMPLERS.includes(classOf(node)));
  if (sampler) for (const name of SAMPLING) setValue(sweep, name, ownValue(sampler, name));
  const [, width, height] = /^(\d+)x(\d+)\b/.exec(resolution) ?? [];
  for (const [name, side] of Object.entries({ width, height })) if (side) setValue(sweep, name, 8 * Math.round(Number(side) / 8));
  goTo(sweep);
}

/** The types that a checkpoint loader gives, and the inputs that take them. */
const LOADED = { MODEL: "model", CLIP: "clip", VAE: "vae" };

/** @param {import("./comfy.js").Node} node */
const isCheckpointLoader = (node) => Object.keys(LOADED).every((type) => outputOfType(node, type));

/**
 * Append the embedding of a file to the selected prompt, else to a new prompt node.
 * @param {string} file
 */
export async function addWord(file) {
  const word = `embedding:${file.replace(/\.safetensors$/, "").replaceAll("\\", "/")}`;
  const node = selectedNodes().find((one) => classOf(one) === PROMPT_NODE && widgetOf(one, "text")) ?? add(PROMPT_NODE);
  const before = String(ownValue(node, "text") ?? "").trimEnd();
  if (!before.includes(word)) setValue(node, "text", before ? `${before} ${word}` : word);
}

/** @param {string} type */
function add(type) {
  try {
    return addNode(type);
  } catch {
    throw new Error(t("add.unknown", { node: type }));
  }
}
