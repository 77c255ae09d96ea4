// @ts-check
// Inserts a run's LoRA or word into the open graph. No side effects.

import { addNode, classOf, ownValue, refreshLists, selectedNodes, setValue, widgetOf } from "./comfy.js";
import { t } from "./words.js";

const LORA_NODE = "BespokeInjectLora";
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
