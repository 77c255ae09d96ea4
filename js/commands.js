// What the commands do. No side effects: index.js registers them.

import { showNode, toast } from "./comfy.js";
import { t } from "./words.js";

const LIFE_MS = 4000;

/** { go, finish } for the training that runs. */
export function commandsOn(runs) {
  const tell = (severity, summary) => toast({ severity, summary, life: LIFE_MS });

  /** Open the graph that the training node is in and bring the node into view. */
  function go() {
    const run = runs.live();
    if (!run || !showNode(run.path)) tell("info", t("go.none"));
  }

  async function finish() {
    const run = runs.live();
    if (!run) return tell("info", t("go.none"));
    try {
      await runs.finish(run.id);
      tell("info", t("finish.asked"));
    } catch (error) {
      tell("error", error.message);
    }
  }

  return { go, finish };
}
