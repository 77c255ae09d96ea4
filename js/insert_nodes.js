// Puts a run's result into the present graph, where a person would put it. No side effects.

import { addNode, classOf, openWorkflow, ownValue, refreshLists, selectedNodes, setValue, widgetOf } from "./comfy.js";
import { t } from "./words.js";

const LORA_NODE = "BespokeInjectLora";
const WORD_NODE = "CLIPTextEncode";

export const openGraph = openWorkflow;

/** Choose the file in the selected node that has a LoRA list, else in a new Bespoke Inject LoRA. */
export async function addLora(name) {
  await refreshLists(); // the file may be newer than the lists
  setValue(selectedNodes().find((node) => widgetOf(node, "lora_name")) ?? add(LORA_NODE), "lora_name", name);
}

/** Write the word behind the selected prompt, else into a new one. */
export async function addWord(file) {
  const word = `embedding:${file.replace(/\.safetensors$/, "").replaceAll("\\", "/")}`;
  const node = selectedNodes().find((one) => classOf(one) === WORD_NODE && widgetOf(one, "text")) ?? add(WORD_NODE);
  const before = String(ownValue(node, "text") ?? "").trimEnd();
  if (!before.includes(word)) setValue(node, "text", before ? `${before} ${word}` : word);
}

function add(type) {
  try {
    return addNode(type);
  } catch {
    throw new Error(t("add.unknown", { node: type }));
  }
}
