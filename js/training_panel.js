// The panel on a trainer node: curve, numbers, samples, Finish and keep, Cancel. It draws what `runs` knows and keeps
// nothing in the workflow. No side effects: index.js attaches it.

import { addPanel, classOf, fitNode, onExecuted, pathsOf, requestOf, watch, whileOnGraph, workflowId } from "./comfy.js";
import { drawCurves } from "./curve_plot.js";
import { el, enlarge, keepInside, oncePerFrame, say } from "./dom.js";
import { loss, memory, rate, t, time } from "./words.js";

const HEIGHT = { empty: 44, around: 100, note: 30, step: 24 }; // px, all but the curve and the samples
const LABEL_EVERY_MS = 1000; // what the curve's picture says of itself
const SETTLED_MS = 300; // without a change of the widgets, before a run for them is looked for

/** What a node of each class trains. */
export const TRAINERS = { BespokeTrainLora: "lora", BespokeTrainTextualInversion: "textual inversion" };

/**
 * Add the panel to a trainer node. runs: from `createRuns`; wish: (name) => a setting of ours, see settings.js.
 */
export function attachPanel(node, runs, wish) {
  const view = panel({
    wish,
    finish: () => act(runs.finish(shown?.id), "finishing"),
    cancel: () => act(runs.cancel(shown), "stopping"),
    sampleUrl: (file) => runs.sampleUrl(shown.id, file),
  });
  let shown = null; // the run
  let exact = true; // it was made by this node, as far as the page can know
  let asked = ""; // the request that was last looked for
  let doing = ""; // what a button has asked for and is not done

  addPanel(node, "training", view.box, { height: () => view.height() });

  const paint = oncePerFrame(() => {
    const before = view.height();
    view.paint(shown, { exact, doing, connected: runs.connected() });
    if (view.height() > before) fitNode(node);
  });

  async function act(work, word) {
    doing = word;
    paint();
    try {
      await work;
    } catch (error) {
      doing = "";
      view.complain(error.message);
    }
    paint();
  }

  const show = (run, isExact) => {
    if (shown !== run) doing = "";
    [shown, exact] = [run, isExact];
    paint();
  };

  /** Show the run that this node made or would go on with, where it shows none that runs. */
  async function find() {
    if (shown?.live || !runs.connected()) return;
    const place = { technique: TRAINERS[classOf(node)], paths: pathsOf(node), workflow: workflowId(), request: requestOf(node) };
    const key = `${JSON.stringify(place)}|${runs.endedAt()}`;
    if (key === asked) return;
    asked = key;
    try {
      const found = await runs.match(place, () => asked === key);
      if (!found.run || asked !== key) return;
      const run = await runs.watch(found.run.id);
      if (!shown?.live && shown !== run) show(run, found.exact);
    } catch {
      asked = ""; // the server did not answer: asked again at the next change
    }
  }

  let due = 0;
  const findSoon = () => {
    clearTimeout(due);
    due = setTimeout(find, SETTLED_MS);
  };

  onExecuted(node, (output) => {
    const id = output?.bespoke_run?.[0];
    if (id) runs.load(id).then((run) => show(run, true), () => {});
  });
  watch(node, findSoon);
  whileOnGraph(node, () => {
    const silence = runs.listen(({ kind, run }) => {
      if (kind === "end" || kind === "back") findSoon();
      if (!run) return paint();
      if (kind === "end") doing = "";
      if (run === shown) paint();
      else if ((kind === "start" || kind === "step") && pathsOf(node).includes(run.path)) show(run, true);
    });
    const sizes = new ResizeObserver(paint);
    sizes.observe(view.canvas);
    return () => {
      clearTimeout(due);
      silence();
      sizes.disconnect();
    };
  });
}

// --- What is seen ----------------------------------------------------------------------------------------------------

/** The panel's elements: { box, canvas, paint(run, how), complain(text), height() }. */
export function panel({ finish, cancel, sampleUrl, wish }) {
  const canvas = el("canvas", { role: "img" });
  const state = el("span", { class: "bespoke-state" });
  const progress = el("span", { class: "bespoke-numbers" });
  const numbers = el("div", { class: "bespoke-numbers" });
  const legend = el("div", { class: "bespoke-legend" });
  const entries = ["loss", "average", "held-out"].map((name) => {
    const value = el("b");
    const entry = el("span", { class: `bespoke-${name}` }, el("i"), el("span", {}, t(`curve.${name}`)), value);
    legend.append(entry);
    return { entry, value };
  });
  const strip = el("div", { class: "bespoke-strip", role: "list", "aria-label": t("samples"), tabindex: "0" });
  const note = el("p", { class: "bespoke-note" });
  const keep = el("button", { type: "button", class: "bespoke-button bespoke-main", onclick: finish, title: t("finish.tip") }, t("finish"));
  const stop = el("button", { type: "button", class: "bespoke-button", onclick: cancel, title: t("cancel.tip") }, t("cancel"));
  const buttons = el("div", { class: "bespoke-buttons" }, keep, stop);
  const spoken = el("div", { class: "bespoke-spoken", "aria-live": "polite" });
  const head = el("div", { class: "bespoke-head" }, state, progress);
  const box = el("section", { class: "bespoke-panel bespoke-training", "aria-label": t("training") }, head, numbers, note, canvas, legend, strip, buttons, spoken);
  keepInside(box, ["keydown", "pointerdown"]);

  let complaint = "";
  let drawn = null; // the samples in the strip
  let height = HEIGHT.empty;
  let sampleSize = 0;
  let labelledAt = -Infinity;
  let saidAt = -Infinity;
  let saidWord = "";

  function paint(run, { exact = true, doing = "", connected = true } = {}) {
    box.classList.toggle("bespoke-empty", !run);
    if (!run) {
      height = HEIGHT.empty;
      box.style.minHeight = `${height}px`;
      return say(note, t("empty"));
    }
    // First of all, while the layout is clean: reading the canvas's size after a change would make the page lay itself out.
    const singleLosses = wish("SingleLosses");
    drawCurves(canvas, [run.curve], { goesOn: run.live, singleLosses });
    const word = run.lost || !connected ? "lost" : doing && run.live ? doing : run.state;
    if (box.dataset.state !== word) box.dataset.state = word;
    say(state, t(`state.${word}`));
    const [first, ...others] = describe(run);
    say(progress, first);
    say(numbers, others.join(" · "));
    numbers.hidden = !others.length;
    legendOf(run);
    samples(run);
    buttons.hidden = !run.live || run.lost;
    keep.disabled = stop.disabled = Boolean(doing);
    say(note, complaint || noteOf(run, word, exact));
    note.hidden = !note.textContent;
    resize(run);
    entries[0].entry.hidden = !singleLosses;
    tell(run, word);
  }

  /** Written only where it changes: a style that is set makes the page compute the styles of all that is below it. */
  function resize(run) {
    const size = wish("SampleHeight");
    const now = HEIGHT.around + wish("CurveHeight") + (note.hidden ? 0 : HEIGHT.note) + (run.samples.length ? size + HEIGHT.step : 0);
    if (now === height && size === sampleSize) return;
    [height, sampleSize] = [now, size];
    box.style.minHeight = `${height}px`;
    box.style.setProperty("--bespoke-sample", `${size}px`);
  }

  function legendOf(run) {
    const { heldOut, best } = run.curve;
    say(entries[0].value, Number.isFinite(run.loss) && run.live ? loss(run.loss) : "");
    const averages = run.curve.average;
    const last = run.live ? run.average : averages[Math.max(0, Math.ceil(run.curve.last / run.curve.stride) - 1)];
    say(entries[1].value, Number.isFinite(last) ? loss(last) : "");
    entries[2].entry.hidden = !heldOut.length;
    if (heldOut.length) say(entries[2].value, `${loss(heldOut[heldOut.length - 1][1])} (${t("best.at", { loss: loss(best[1]), step: best[0] })})`);
  }

  function samples(run) {
    strip.hidden = !run.samples.length;
    if (drawn && drawn.id === run.id && drawn.samples === run.samples) return;
    const have = drawn?.id === run.id ? new Set(drawn.samples.map(([, file]) => file)) : new Set();
    if (!have.size) strip.replaceChildren();
    const atEnd = strip.scrollLeft + strip.clientWidth >= strip.scrollWidth - 8;
    for (const [step, file] of run.samples) {
      if (have.has(file)) continue;
      const caption = t("sample.at", { step });
      const src = sampleUrl(file);
      const picture = el("img", { src, alt: caption, loading: "lazy", draggable: "false", onerror: (event) => event.target.closest("div").remove() });
      const open = el("button", { type: "button", "aria-label": caption, onclick: () => enlarge(src, caption, t("close")) }, picture, el("span", {}, String(step)));
      strip.append(el("div", { role: "listitem" }, open));
    }
    if (atEnd) strip.scrollLeft = strip.scrollWidth;
    drawn = { id: run.id, samples: run.samples };
  }

  function tell(run, word) {
    const sentence = `${t(`state.${word}`)}. ${describe(run).join(", ")}. ${t("curve.average")} ${entries[1].value.textContent}`;
    const now = performance.now();
    const news = word !== saidWord;
    if (news || !run.live || now - labelledAt > LABEL_EVERY_MS) {
      labelledAt = now;
      canvas.setAttribute("aria-label", sentence);
    }
    if (!news && (!run.live || now - saidAt < 1000 * (wish("SpokenEvery") || Infinity))) return;
    [saidAt, saidWord] = [now, word];
    say(spoken, sentence);
  }

  return {
    box,
    canvas,
    paint,
    height: () => height,
    complain(text) {
      complaint = text;
      setTimeout(() => (complaint = ""), 6000);
    },
  };
}

/** ["step 120 / 400", "30 images/s", "0:42 left", "1.2 GB"] while it runs, ["400 steps in 1:05"] afterwards. */
export function describe(run) {
  const steps = run.step.toLocaleString("en");
  if (!run.live) {
    const seconds = run.record?.seconds;
    return [seconds ? t("steps.in", { steps, time: time(seconds) }) : t("steps", { steps })];
  }
  const parts = [t("step.of", { step: steps, steps: run.steps.toLocaleString("en") })];
  if (run.rate !== null) parts.push(t("rate", { rate: rate(run.rate) }));
  if (run.eta !== null) parts.push(t("left", { time: time(run.eta) }));
  if (run.memory !== null) parts.push(memory(run.memory));
  return parts;
}

function noteOf(run, word, exact) {
  if (word === "failed" && run.error) return run.error;
  if (word === "lost" || word === "interrupted" || word === "cut off" || word === "failed") return t(`note.${word}`);
  if (run.live) return run.preflight;
  return exact ? "" : t("note.same");
}
