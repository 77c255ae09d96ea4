// @ts-check
// The sidebar's list of runs: each with its curve, its samples and its settings, and the comparison of two runs. No side
// effects: index.js registers it.

import { onEvent } from "./comfy.js";
import { drawCurves, lines } from "./curve_plot.js";
import { el, messageOf, oncePerFrame, setText } from "./dom.js";
import { detail, stateOf } from "./run_detail.js";
import { fileNames, nameOf, namesOf, savedFile, stepsText } from "./run_names.js";
import { language, loss, t } from "./words.js";

/** @typedef {import("./runs.js").Run} Run */
/** @typedef {import("./runs.js").Runs} Runs */
/** @typedef {import("./run_values.js").RunRecord} RunRecord */
/** @typedef {ReturnType<typeof createCard>} Card */

const SEARCH_FROM = 8; // runs, from which the search field is shown
const RELOADED = new Set(["start", "end", "back", "renamed", "removed"]); // changes after which the list is read
const TYPED_MS = 250; // without a key, before a search is started

/**
 * Fill the sidebar's element.
 * @param {HTMLElement} root
 * @param {Runs} runs
 * @returns {() => void} empties the element
 */
export function fillTab(root, runs) {
  const list = el("div", { class: "bespoke-runs", role: "list", "aria-label": t("runs") });
  const compared = el("section", { class: "bespoke-compare", "aria-label": t("compare"), hidden: true });
  const note = el("p", { class: "bespoke-note", role: "status" });
  const label = t("search");
  const search = el("input", { type: "search", class: "bespoke-search", placeholder: label, "aria-label": label, oninput: searchSoon });
  const refresh = t("refresh");
  const onRefresh = () => fill();
  const again = el("button", { type: "button", class: "bespoke-button", "aria-label": refresh, title: refresh, onclick: onRefresh }, "↻");
  const head = el("header", {}, el("h2", {}, t("runs")), again);
  const more = el("button", { type: "button", class: "bespoke-button", hidden: true, onclick: () => fill(shownPages + 1) }, t("runs.next"));
  root.replaceChildren(el("div", { class: "bespoke-tab" }, head, search, note, compared, list, more));

  /** @type {Map<string, Card>} by run id */
  const cards = new Map();
  /** @type {Map<string, string>} what the runs were called when they were last in the list, by id */
  const titles = new Map();
  /** @type {string[]} ids of at most two runs to compare */
  const chosen = [];
  const inView = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting && target instanceof HTMLElement) cards.get(target.dataset.id ?? "")?.show();
    }
  });

  let shownPages = 1;
  let filling = 0;

  /**
   * Show the first pages of the list.
   * @param {number} [pages] as many as before where it is not given
   */
  async function fill(pages = shownPages) {
    const turn = ++filling;
    /** @type {RunRecord[]} */
    const shown = [];
    /** @type {string[]} */
    let unread = [];
    let total = 0;
    let all = 1;
    try {
      for (let page = 0; page < Math.min(pages, all); page++) {
        const found = await runs.list(page, search.value.trim());
        if (turn !== filling) return; // a later call has begun
        [total, all, unread] = [found.total, found.pages, found.unread];
        shown.push(...found.runs);
      }
    } catch (error) {
      if (turn !== filling) return;
      note.hidden = false;
      return setText(note, t("runs.unread", { why: messageOf(error) }));
    }
    shownPages = pages;
    more.hidden = all <= pages;
    if (!search.value) search.hidden = total < SEARCH_FROM;
    setText(note, noteOf(shown.length, total, unread));
    note.hidden = !note.textContent;
    arrange(shown);
  }

  /**
   * @param {number} shown
   * @param {number} total
   * @param {string[]} unread
   */
  function noteOf(shown, total, unread) {
    const broken = unread.length ? t("runs.records.unread", { ids: unread.join(", ") }) : "";
    const none = t(search.value ? "runs.none.found" : "runs.none");
    const count = !total ? none : shown < total ? t("runs.more", { shown, all: total }) : "";
    return [count, broken].filter(Boolean).join(" ");
  }

  /**
   * Show exactly these runs, in this order. Cards that are there already are kept.
   * @param {RunRecord[]} shown
   */
  function arrange(shown) {
    const ids = new Set(shown.map((run) => run.id));
    const names = namesOf(shown);
    for (const [id, name] of names) titles.set(id, name);
    for (const [id, card] of cards) if (!ids.has(id)) remove(id, card);
    shown.forEach((summary, i) => {
      const card = cards.get(summary.id) ?? add(summary);
      card.update(summary, names.get(summary.id) ?? "");
      if (list.children[i] !== card.box) list.insertBefore(card.box, list.children[i] ?? null);
    });
  }

  /** @param {RunRecord} summary */
  function add(summary) {
    const card = createCard(summary, runs, (isChosen) => choose(summary.id, isChosen));
    card.choose(chosen.includes(summary.id));
    cards.set(summary.id, card);
    inView.observe(card.box);
    return card;
  }

  /**
   * @param {string} id
   * @param {Card} card
   */
  function remove(id, card) {
    inView.unobserve(card.box);
    card.box.remove();
    cards.delete(id);
    if (!search.value) choose(id, false); // a search hides the run, but it stays chosen
  }

  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  function searchSoon() {
    clearTimeout(timer);
    timer = setTimeout(() => fill(1), TYPED_MS);
  }

  /**
   * @param {string} id
   * @param {boolean} isChosen
   */
  function choose(id, isChosen) {
    const at = chosen.indexOf(id);
    if (at >= 0) chosen.splice(at, 1);
    if (isChosen) chosen.push(id);
    while (chosen.length > 2) cards.get(chosen.shift() ?? "")?.choose(false);
    compared.hidden = chosen.length < 2;
    if (chosen.length === 2) compare(compared, chosen, runs, titles);
  }

  const draw = oncePerFrame(() => {
    for (const card of cards.values()) card.draw();
  });
  /** @type {Set<string>} runs without a card for which the list was read */
  const missed = new Set();
  /** @type {Set<string>} runs to draw in the next frame */
  const changed = new Set();
  const drawChanged = oncePerFrame(() => {
    for (const id of changed) cards.get(id)?.draw();
    changed.clear();
  });
  const stopListening = runs.listen(({ kind, run }) => {
    if (RELOADED.has(kind)) fill();
    else if (run && kind !== "record" && !cards.has(run.id) && !search.value && !missed.has(run.id)) {
      missed.add(run.id); // a run that began while the page was away
      fill();
    }
    if (!run) return;
    if (kind === "end") cards.get(run.id)?.showFiles();
    changed.add(run.id);
    drawChanged();
  });
  const stopFiles = onEvent("executed", (executed) => {
    // A node saved a file; the event does not name the run.
    if (!String(executed?.output?.text?.[0] ?? "").startsWith("saved as ")) return;
    for (const card of cards.values()) card.showFiles();
  });
  const sizes = new ResizeObserver(draw);
  sizes.observe(list);
  fill();
  return () => {
    stopListening();
    stopFiles();
    clearTimeout(timer);
    inView.disconnect();
    sizes.disconnect();
    root.replaceChildren();
  };
}

/**
 * The card of a run in the list.
 * @param {RunRecord} first
 * @param {Runs} runs
 * @param {(isChosen: boolean) => void} onChoose
 */
function createCard(first, runs, onChoose) {
  let summary = first;
  let title = "";
  /** @type {Run | null} the run with its curve, once the card was in view */
  let run = null;
  /** @type {ReturnType<typeof detail> | null} the details, once they were opened */
  let details = null;
  const canvas = el("canvas", { class: "bespoke-spark", "aria-hidden": "true" });
  const name = el("span", { class: "bespoke-name" });
  const under = el("span", { class: "bespoke-under" });
  const state = el("span", { class: "bespoke-state" });
  const id = `bespoke-detail-${summary.id}`;
  const main = el(
    "button",
    { type: "button", class: "bespoke-card", "aria-expanded": "false", "aria-controls": id, onclick: toggle },
    el("span", { class: "bespoke-words" }, name, state, under),
    canvas,
  );
  const tip = t("compare.tip");
  /** @type {HTMLInputElement} */
  const tick = el("input", { type: "checkbox", title: tip, "aria-label": tip, onchange: () => onChoose(tick.checked) });
  const below = el("div", { id, hidden: true });
  const row = el("div", { class: "bespoke-row" }, tick, main);
  const box = el("div", { role: "listitem", class: "bespoke-item", "data-id": summary.id }, row, below);

  /**
   * @param {RunRecord} next
   * @param {string} [called] the run's name in the list, as before where it is not given
   */
  function update(next, called = title) {
    [summary, title] = [next, called];
    const now = run ?? runs.known(summary.id);
    const word = stateOf(now, summary);
    if (box.dataset.state !== word) box.dataset.state = word;
    setText(name, title);
    setText(state, t(`state.${word}`));
    const parts = [startOf(summary), stepsOf(now, summary)];
    const best = now?.curve.best ?? summary.best;
    // The score of step 0 is the base model's: no result of this training.
    if (best && best[0] > 0) parts.push(t("best.loss", { loss: loss(best[1]) }));
    setText(under, parts.filter(Boolean).join(" · "));
  }

  function draw() {
    update(summary);
    if (!run) return;
    drawCurves(canvas, [run.curve], { small: true, isLive: run.live });
    if (details && !below.hidden) details.draw(run);
  }

  async function show() {
    if (run) return draw();
    try {
      run = await runs.loadChecked(summary.id);
      draw();
    } catch {
      // The summary stays; opening the card shows the error.
    }
  }

  async function toggle() {
    const isOpen = below.hidden;
    below.hidden = !isOpen;
    main.setAttribute("aria-expanded", String(isOpen));
    if (!isOpen) return;
    try {
      run ??= await runs.loadChecked(summary.id);
      details ??= detail(run, runs, () => title);
      below.replaceChildren(details.box);
      draw();
      await Promise.all([details.showFiles(), details.showDefaults()]);
    } catch (error) {
      below.replaceChildren(el("p", { class: "bespoke-note" }, messageOf(error)));
    }
  }

  return {
    box,
    /** Show another summary of the run. */
    update,
    /** Load the run and draw its curve. */
    show,
    /** Show the run as it is now. */
    draw,
    /** Look again for the files that the run saved, where they are shown. */
    showFiles: () => {
      if (!below.hidden) details?.showFiles().catch(() => {}); // the next change looks again
    },
    /** @param {boolean} isChosen whether the run is marked for the comparison */
    choose: (isChosen) => {
      tick.checked = isChosen;
    },
  };
}

/**
 * When a run was started, in the user's language; "" where it is not known.
 * @param {RunRecord} run
 */
function startOf({ started }) {
  const date = new Date(started * 1000);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleString(language(), { dateStyle: "medium", timeStyle: "short" });
}

/**
 * "step 20 / 400" while the run goes on, then "20 of 400 steps".
 * @param {Run | null} run
 * @param {RunRecord} summary
 */
function stepsOf(run, summary) {
  if (run?.live) return t("step.of", { step: run.step.toLocaleString("en"), steps: run.steps.toLocaleString("en") });
  return t("steps", { steps: stepsText(run?.step || summary.steps_done, summary.settings.steps) });
}

/**
 * Show two curves in one plot and the settings in which the runs differ.
 * @param {HTMLElement} box
 * @param {string[]} ids
 * @param {Runs} runs
 * @param {Map<string, string>} titles what the runs are called in the list, by id
 */
async function compare(box, ids, runs, titles) {
  const canvas = el("canvas", { role: "img" });
  const table = el("table", { class: "bespoke-table" });
  const heads = ids.map(() => el("th", { scope: "col" }));
  box.replaceChildren(el("h3", {}, t("compare")), canvas, table);
  const loaded = await Promise.all(ids.map((id) => runs.load(id).catch(() => null)));
  const pair = loaded.flatMap((run) => (run?.record ? [{ record: run.record, curve: run.curve }] : []));
  if (pair.length < ids.length) return box.replaceChildren(el("p", { class: "bespoke-note" }, t("runs.unread", { why: "" })));
  const files = await Promise.all(ids.map((id) => savedBy(id, runs)));
  const called = pair.map(({ record }) => titles.get(record.id) ?? nameOf(record));
  heads.forEach((head, i) => head.append(el("i", { class: "bespoke-swatch", style: `background:${lines(i).average}` }), called[i]));
  table.append(el("thead", {}, el("tr", {}, el("th"), ...heads)));
  const [a, b] = pair.map((one, i) => comparedValues(one, files[i]));
  const rows = [...new Set([...Object.keys(a), ...Object.keys(b)])].filter((name) => a[name] !== b[name]);
  const cell = (/** @type {unknown} */ value) => el("td", {}, value === undefined ? "–" : String(value));
  table.append(el("tbody", {}, ...rows.map((name) => el("tr", {}, el("th", { scope: "row" }, name), cell(a[name]), cell(b[name])))));
  const draw = () => drawCurves(canvas, pair.map(({ curve }) => curve));
  draw();
  canvas.setAttribute("aria-label", pair.map(({ curve }, i) => `${called[i]}: ${loss(curve.lastAverage)}`).join("; "));
  new ResizeObserver(draw).observe(canvas);
}

/**
 * The file that a run saved last, undefined where it saved none.
 * @param {string} id
 * @param {Runs} runs
 */
async function savedBy(id, runs) {
  try {
    const { embeddings, loras } = await runs.files(id);
    return savedFile([...fileNames(embeddings), ...fileNames(loras)]) || undefined;
  } catch {
    return undefined;
  }
}

/**
 * @param {{ record: RunRecord, curve: import("./curve.js").Curve }} run
 * @param {string | undefined} file that it saved
 * @returns {Record<string, unknown>} by the name that is shown
 */
function comparedValues({ record, curve }, file) {
  return {
    ...record.settings,
    steps: stepsText(curve.last, record.settings.steps),
    [t("base")]: record.base,
    [t("images")]: record.images,
    [t("curve.average")]: loss(curve.lastAverage),
    ...(curve.best ? { [t("curve.held-out")]: `${loss(curve.best[1])} (${curve.best[0]})` } : {}),
    [t("files")]: file,
  };
}
