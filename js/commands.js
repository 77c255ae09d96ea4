// @ts-check
// What the pack's commands do. No side effects: index.js registers them.

import { showNode, toast } from "./comfy.js";
import { messageOf } from "./dom.js";
import { t } from "./words.js";

const LIFE_MS = 4000; // of a message in the corner

/**
 * The actions of the commands in settings.js. Both are about the run that goes on now.
 * @param {import("./runs.js").Runs} runs
 */
export function createCommands(runs) {
  const show = (/** @type {"info" | "error"} */ severity, /** @type {string} */ summary) => toast({ severity, summary, life: LIFE_MS });

  /** Open the graph that contains the training node and bring the node into view. */
  function goToTraining() {
    const run = runs.live();
    if (!run || !showNode(run.path)) show("info", t("go.none"));
  }

  /** Ask the run to stop and save what it has learned. */
  async function finishTraining() {
    const run = runs.live();
    if (!run) return show("info", t("go.none"));
    try {
      await runs.finish(run.id);
      show("info", t("finish.asked"));
    } catch (error) {
      show("error", messageOf(error));
    }
  }

  return { goToTraining, finishTraining };
}
