// @ts-check
// The names and last values of a run's curves. No side effects.

import { el, setText } from "./dom.js";
import { loss, t } from "./words.js";

/** @typedef {import("./runs.js").Run} Run */

/** The legend below a run's curve. */
export function curveLegend() {
  const element = el("div", { class: "bespoke-legend" });
  const entries = ["loss", "average", "held-out", "noise", "leak"].map((name) => {
    const value = el("b");
    const entry = el("span", { class: `bespoke-${name}`, title: t(`curve.${name}.tip`) }, el("i"), el("span", {}, t(`curve.${name}`)), value);
    element.append(entry);
    return { entry, value };
  });
  const [single, average, score, noise, leaked] = entries;

  /**
   * @param {Run} run
   * @param {boolean} singleLosses whether the losses of single steps are drawn
   */
  function show(run, singleLosses) {
    const { heldOut, best, lastAverage, leak, comparisons, turn } = run.curve;
    single.entry.hidden = !singleLosses;
    setText(single.value, run.live ? finiteLoss(run.loss) : "");
    setText(average.value, finiteLoss(run.live ? run.average : lastAverage));
    score.entry.hidden = !heldOut.length;
    leaked.entry.hidden = !leak.length;
    noise.entry.hidden = !comparisons.length;
    if (comparisons.length) setText(noise.value, `±${loss(comparisons[comparisons.length - 1].margin)}`);
    if (leak.length) setText(leaked.value, leak[leak.length - 1][1].toFixed(2));
    if (!best) return;
    const last = loss(heldOut[heldOut.length - 1][1]);
    // The score of step 0 is the base model's: no result of this training.
    const isOfBase = best[0] === 0;
    const word = isOfBase ? "best.none" : best[0] === turn ? "turned.at" : "best.at";
    const lowest = t(word, { loss: loss(best[1]), step: best[0] });
    setText(score.value, isOfBase && heldOut.length === 1 ? last : `${last} (${lowest})`);
  }

  return {
    element,
    show,
    /** The average that is shown, in words. */
    average: () => `${t("curve.average")} ${average.value.textContent}`,
  };
}

/**
 * A loss as text, "" where there is none.
 * @param {number | null} value
 */
function finiteLoss(value) {
  return value !== null && Number.isFinite(value) ? loss(value) : "";
}
