// @ts-check
// The panel on a trainer node: curve, numbers, samples, and the buttons to finish and to cancel. It shows what `runs` knows
// and saves nothing in the workflow. No side effects: index.js attaches it.

import { addPanel, classOf, fitNode, isOpenWorkflow, onExecuted, onNodeChange, pathsOf, unlinkedValues, whileOnGraph, workflowId } from "./comfy.js";
import { curveLegend } from "./curve_legend.js";
import { drawCurves } from "./curve_plot.js";
import { el, messageOf, oncePerFrame, setText, stopEvents } from "./dom.js";
import { showCard } from "./evidence_card.js";
import { BETWEEN_STEPS, samplePrompts, TRAINERS } from "./run_values.js";
import { rowsInView, samplesStrip } from "./samples_strip.js";
import { digits, memory, rate, t, time } from "./words.js";

/** @typedef {import("./runs.js").Run} Run */
/** @typedef {import("./run_values.js").Phase} Phase */
/** @typedef {import("./settings.js").GetSetting} GetSetting */

const HEIGHT = { empty: 44, around: 112, note: 48, longNote: 78, failure: 72, step: 24 }; // px, all but the curve and the samples
const LONG_NOTE = 150; // characters, which fill three lines of a new node
const LABEL_EVERY_MS = 1000; // between two updates of the curve's label
const COMPLAINT_MS = 6000; // for which the error of a button is shown
const SETTLED_MS = 300; // without a change of the widgets, before a run with these values is searched

/**
 * Add the panel to a trainer node.
 * @param {import("./comfy.js").Node} node
 * @param {import("./runs.js").Runs} runs
 * @param {import("./phases.js").Phases} phases
 * @param {GetSetting} getSetting
 */
export function attachPanel(node, runs, phases, getSetting) {
  const view = createView({
    getSetting,
    finish: () => act((run) => runs.finish(run.id), "finishing"),
    cancel: () => act((run) => runs.cancel(run), "stopping"),
    runs,
    repaint: () => paint(),
  });
  /** @type {Run | null} */
  let shown = null;
  let exact = true; // whether the run was made by this node, as far as the page can know
  let searched = ""; // the request of the last search
  let pending = ""; // "finishing" or "stopping" from the click on a button until the run ends, else ""

  addPanel(node, "training", view.box, { height: () => view.height() });

  const paint = oncePerFrame(() => {
    const before = view.height();
    view.paint(shown, { exact, pending, connected: runs.connected(), phase: phases.of(pathsOf(node)), failure: phases.failureOf(pathsOf(node)) });
    if (view.height() > before) fitNode(node);
  });

  /**
   * Send a button's request for the run that is shown. The answer only says that the server has it: the buttons are
   * disabled until the run's "end" event.
   * @param {(run: Run) => Promise<unknown>} work
   * @param {string} state "finishing" or "stopping", shown as the run's state meanwhile
   */
  async function act(work, state) {
    if (!shown) return;
    pending = state;
    paint();
    try {
      await work(shown);
    } catch (error) {
      pending = "";
      view.complain(messageOf(error));
    }
    paint();
  }

  /**
   * Show a run from now on.
   * @param {Run} run
   * @param {boolean} isExact see `exact`
   */
  function show(run, isExact) {
    if (shown !== run) pending = "";
    [shown, exact] = [run, isExact];
    paint();
  }

  /** Show the run that this node made or would continue. A run that is live stays. */
  async function search() {
    if (shown?.live || !runs.connected()) return;
    const technique = TRAINERS[classOf(node)];
    const query = { technique, paths: pathsOf(node), workflow: workflowId(), request: unlinkedValues(node) };
    const key = `${JSON.stringify(query)}|${runs.endedAt()}`;
    if (key === searched) return;
    searched = key;
    try {
      const found = await runs.match(query, () => searched === key);
      if (!found.run || searched !== key) return;
      const run = await runs.loadChecked(found.run.id);
      if (!shown?.live && shown !== run) show(run, found.exact);
    } catch {
      searched = ""; // the server did not answer: the next change searches again
    }
  }

  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const searchSoon = () => {
    clearTimeout(timer);
    timer = setTimeout(search, SETTLED_MS);
  };

  onExecuted(node, (output) => {
    const id = output?.bespoke_run?.[0];
    if (!id) return;
    // The page calls this for a node of another workflow with the same path, too.
    runs.load(id).then((run) => (isOpenWorkflow(run.workflow) ? show(run, true) : searchSoon()), () => {});
  });
  onNodeChange(node, searchSoon);
  whileOnGraph(node, () => {
    const stopPhases = phases.listen(paint);
    const stopListening = runs.listen(({ kind, run }) => {
      if (kind === "end" || kind === "back") searchSoon();
      if (kind === "removed" && run === shown) {
        shown = null;
        searchSoon();
        return paint();
      }
      if (!run) return paint();
      if (kind === "end") pending = "";
      if (run === shown) paint();
      else if ((kind === "start" || kind === "step") && isOpenWorkflow(run.workflow) && pathsOf(node).includes(run.path)) show(run, true);
    });
    const sizes = new ResizeObserver(paint);
    sizes.observe(view.canvas);
    return () => {
      clearTimeout(timer);
      stopListening();
      stopPhases();
      sizes.disconnect();
    };
  });
}

// --- The elements of the panel ---------------------------------------------------------------------------------------

/**
 * The panel's elements.
 * @param {object} options
 * @param {() => void} options.finish
 * @param {() => void} options.cancel
 * @param {() => void} options.repaint asks for one more call of `paint`
 * @param {import("./runs.js").Runs} options.runs
 * @param {GetSetting} options.getSetting
 */
function createView({ finish, cancel, repaint, runs, getSetting }) {
  const canvas = el("canvas", { role: "img" });
  const state = el("span", { class: "bespoke-state" });
  const progress = el("span", { class: "bespoke-numbers" });
  const numbers = el("div", { class: "bespoke-numbers" });
  const legend = curveLegend();
  const samples = samplesStrip(runs, { follow: true });
  const note = el("p", { class: "bespoke-note" });
  const finishButton = el("button", { type: "button", class: "bespoke-button bespoke-main", onclick: finish, title: t("finish.tip") }, t("finish"));
  const cancelButton = el("button", { type: "button", class: "bespoke-button", onclick: cancel, title: t("cancel.tip") }, t("cancel"));
  const buttons = el("div", { class: "bespoke-buttons" }, finishButton, cancelButton);
  const spoken = el("div", { class: "bespoke-spoken", "aria-live": "polite" });
  const cardButton = el("button", { type: "button", class: "bespoke-card-button", title: t("card.tip"), onclick: () => showCard(cardAt) }, t("card"));
  const head = el("div", { class: "bespoke-head" }, state, progress, cardButton);
  const parts = [head, numbers, note, canvas, legend.element, samples.element, buttons, spoken];
  const box = el("section", { class: "bespoke-panel bespoke-training", "aria-label": t("training") }, ...parts);
  stopEvents(box, ["keydown", "pointerdown"]);

  let complaint = "";
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let complaintTimer;
  let height = HEIGHT.empty;
  let sampleSize = 0;
  let labelledAt = -Infinity;
  let saidAt = -Infinity;
  let saidWord = "";
  let cardAt = ""; // the address of the evidence card

  /**
   * Show a run as it is now.
   * @param {Run | null} run
   * @param {{ exact: boolean, pending: string, connected: boolean, phase: Phase | null, failure: string }} options failure:
   *   why the node refused to begin another run, or ""
   */
  function paint(run, { exact, pending, connected, phase, failure }) {
    box.classList.toggle("bespoke-empty", !run);
    const kind = shownKind(run, phase);
    if (box.dataset.phase !== kind) box.dataset.phase = kind; // setting it makes the browser compute styles
    if (!run) return paintEmpty(phase, failure);
    // First, while the layout is clean: reading the canvas's size after a change makes the browser compute the layout.
    const singleLosses = getSetting("SingleLosses");
    drawCurves(canvas, [run.curve], { isLive: run.live, singleLosses });
    const word = run.lost || !connected ? "lost" : pending && run.live ? pending : run.state;
    if (box.dataset.state !== word) box.dataset.state = word;
    setText(state, stateText(word, phase));
    const [first, ...others] = describe(run, word);
    setText(progress, first);
    setText(numbers, others.join(" · "));
    numbers.hidden = !others.length;
    legend.show(run, singleLosses);
    samples.show(run.id, run.samples, samplePrompts(run.record?.settings.sample_prompt));
    buttons.hidden = !run.live || run.lost;
    finishButton.disabled = cancelButton.disabled = Boolean(pending);
    const isBefore = kind !== "" && !run.live; // the run that is shown is an earlier one
    setText(note, complaint || (isBefore ? "" : (!run.live && failure) || noteOf(run, word, exact)));
    progress.hidden = isBefore;
    offerCard(run, isBefore);
    note.hidden = !note.textContent;
    resize(run);
    updateSpoken(run, isBefore ? kind : word);
  }

  /**
   * Offer the evidence card of a run that has ended.
   * @param {Run} run
   * @param {boolean} isBefore whether the run that is shown is an earlier one
   */
  function offerCard(run, isBefore) {
    cardAt = runs.cardUrl(run.id, run.step);
    cardButton.hidden = isBefore || run.live || run.lost || !run.step;
  }

  /**
   * The text of the run's state, or of the phase that is shown instead of it; of both while a run is being finished, which
   * takes a while where pictures are scored and a last sample is drawn.
   * @param {string} word
   * @param {Phase | null} phase
   */
  function stateText(word, phase) {
    if (!box.dataset.phase || !phase || word === "lost") return t(`state.${word}`);
    return isEnding(word) ? `${t(`state.${word}`)} · ${phaseText(phase)}` : phaseText(phase);
  }

  /**
   * @param {Phase | null} phase
   * @param {string} failure
   */
  function paintEmpty(phase, failure) {
    height = HEIGHT.empty + (failure && !phase ? HEIGHT.failure : 0);
    box.style.minHeight = `${height}px`;
    note.hidden = false;
    delete box.dataset.state;
    setText(note, complaint || (phase ? phaseText(phase) : failure || t("empty")));
    const kind = phase?.kind ?? failure;
    if (kind && kind !== saidWord) setText(spoken, phase ? phaseText(phase) : failure);
    saidWord = kind;
  }

  /** The note's height in px, from its length: to measure it would make the browser compute the layout. */
  function noteHeight() {
    if (note.hidden) return 0;
    return (note.textContent ?? "").length > LONG_NOTE ? HEIGHT.longNote : HEIGHT.note;
  }

  /**
   * Set the panel's height where it has changed: setting a style makes the browser compute the styles of all elements inside.
   * @param {Run} run
   */
  function resize(run) {
    const size = getSetting("SampleHeight");
    const now = HEIGHT.around + getSetting("CurveHeight") + noteHeight() + rowsInView(run.samples) * (size + HEIGHT.step);
    if (now === height && size === sampleSize) return;
    [height, sampleSize] = [now, size];
    box.style.minHeight = `${height}px`;
    box.style.setProperty("--bespoke-sample", `${size}px`);
  }

  /**
   * Update the label of the curve, and what a screen reader speaks: at once when the state changes, else at the interval
   * of the settings.
   * @param {Run} run
   * @param {string} word the state or the phase that is shown
   */
  function updateSpoken(run, word) {
    const sentence = `${state.textContent}. ${describe(run, box.dataset.state).join(", ")}. ${legend.average()}`;
    const now = performance.now();
    const isNew = word !== saidWord;
    if (isNew || !run.live || now - labelledAt > LABEL_EVERY_MS) {
      labelledAt = now;
      canvas.setAttribute("aria-label", sentence);
    }
    if (!isNew && (!run.live || now - saidAt < 1000 * (getSetting("SpokenEvery") || Infinity))) return;
    [saidAt, saidWord] = [now, word];
    setText(spoken, sentence);
  }

  return {
    box,
    canvas,
    paint,
    /** The panel's height in px. */
    height: () => height,
    /**
     * Show an error for some seconds.
     * @param {string} message
     */
    complain(message) {
      complaint = message;
      clearTimeout(complaintTimer); // that of an earlier error would end this one early
      complaintTimer = setTimeout(() => {
        complaint = "";
        repaint();
      }, COMPLAINT_MS);
    },
  };
}

/**
 * The kind of the phase to show beside a run, "" for none: a run that goes on is past its preparations.
 * @param {Run | null} run
 * @param {Phase | null} phase
 */
function shownKind(run, phase) {
  return phase && (!run?.live || BETWEEN_STEPS.has(phase.kind)) ? phase.kind : "";
}

/**
 * What a node does outside its steps, in words.
 * @param {Phase} phase
 */
function phaseText({ kind, position, total }) {
  return t(`phase.${kind}`, { position, total });
}

/**
 * Whether a button has ended the run before its last step.
 * @param {string | undefined} word its state
 */
const isEnding = (word) => word === "finishing" || word === "stopping";

/**
 * ["step 120 / 400", "30 images/s", "0:42 left", "1.2 GB"] while the run is live, then ["400 steps in 1:05"]. The
 * learning rate comes second where the optimiser finds it. A run that is being finished or stopped does not take the time that its other steps would have taken.
 * @param {Run} run
 * @param {string | undefined} word its state
 */
function describe(run, word) {
  const steps = run.step.toLocaleString("en");
  if (!run.live) {
    const seconds = run.record?.seconds;
    return [seconds ? t("steps.in", { steps, time: time(seconds) }) : t("steps", { steps })];
  }
  const parts = [t("step.of", { step: steps, steps: run.steps.toLocaleString("en") })];
  if (run.foundRate !== null) parts.push(t("found.rate", { rate: digits(run.foundRate) }));
  if (run.rate !== null) parts.push(t("rate", { rate: rate(run.rate) }));
  if (run.eta !== null && !isEnding(word)) parts.push(t("left", { time: time(run.eta) }));
  if (run.memory !== null) parts.push(memory(run.memory));
  return parts;
}

/**
 * The note under the numbers, or "".
 * @param {Run} run
 * @param {string} word its state
 * @param {boolean} exact
 */
function noteOf(run, word, exact) {
  if (word === "failed" && run.error) return run.error;
  if (word === "lost" || word === "interrupted" || word === "cut off" || word === "failed") return t(`note.${word}`);
  if (run.live) return run.preflight;
  return exact ? "" : t("note.same");
}
