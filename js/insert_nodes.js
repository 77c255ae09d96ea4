// @ts-check
// Inserts a run's LoRA, word or sweep into the open graph. No side effects.

import { addNode, classOf, connect, ownValue, refreshLists, selectedNodes, setValue, shownNodes, widgetOf } from "./comfy.js";
import { t } from "./words.js";

const LORA_NODE = "BespokeInjectLora";
const SWEEP_NODE = "BespokeLoraSweep";
const LOADER_NODE = "BespokeLoadLora";
const PREVIEW_NODE = "PreviewImage";
const MOST_IN_SWEEP = 26; // sockets of the sweep
const GAP = 40; // px between inserted nodes
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
 * Insert a Bespoke LoRA Sweep of a run's files, each with its loader, and a preview. Model, text encoder and VAE come from
 * the graph's loader, where it has just one.
 * @param {string[]} names of the files, as the lists have them
 * @param {string} prompt
 */
export async function addSweep(names, prompt) {
  await refreshLists();
  const [sources, sweep] = [shownNodes().filter(isCheckpointLoader), add(SWEEP_NODE)];
  const [x, y] = sweep.pos;
  let top = y;
  names.slice(-MOST_IN_SWEEP).forEach((name, number) => {
    const loader = add(LOADER_NODE);
    setValue(loader, "lora_name", name);
    loader.pos = [x - loader.size[0] - 2 * GAP, top];
    top += loader.size[1] + GAP;
    connect(loader, "lora", sweep, `loras.lora${number}`);
  });
  const preview = add(PREVIEW_NODE);
  preview.pos = [x + sweep.size[0] + 2 * GAP, y];
  connect(sweep, "grid", preview, "images");
  if (sources.length === 1) {
    for (const [type, input] of Object.entries(LOADED)) connectType(sources[0], type, sweep, input);
  }
  if (prompt) setValue(sweep, "prompts", prompt);
}

/** The types that a checkpoint loader gives, and the inputs that take them. */
const LOADED = { MODEL: "model", CLIP: "clip", VAE: "vae" };

/** @param {import("./comfy.js").Node} node */
const isCheckpointLoader = (node) => Object.keys(LOADED).every((type) => node.outputs?.some((output) => output.type === type));

/**
 * @param {import("./comfy.js").Node} from
 * @param {string} type
 * @param {import("./comfy.js").Node} to
 * @param {string} input
 */
function connectType(from, type, to, input) {
  const output = from.outputs?.find((one) => one.type === type);
  if (output) connect(from, output.name, to, input);
}

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
