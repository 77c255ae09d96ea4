// @ts-check
// The runs that the page knows: built from the server's events, completed from the records, and reported to listeners.
// `createRuns` makes the state; the module itself has no side effects.

import { apiURL, fetchJson, jsonPost, onEvent, request } from "./comfy.js";
import { Curve, curveOf } from "./curve.js";
import { isRunId, isTrainer, readEvent, readPage, readRecord, text } from "./run_values.js";
import { t } from "./words.js";

const SILENT_MS = 2000; // a run whose record says "running" is checked where no event came for so long

/** @typedef {import("./run_values.js").RunEvent} RunEvent */
/** @typedef {import("./run_values.js").RunRecord} RunRecord */
/** @typedef {import("./run_values.js").RunPage} RunPage */
/** @typedef {import("./run_values.js").Sample} Sample */
/**
 * @typedef {object} Run
 * @property {string} id
 * @property {RunRecord | null} record
 * @property {Curve} curve
 * @property {Sample[]} samples
 * @property {string} state as in the record, or "cut off" where the run has no end and is not running
 * @property {boolean} live whether it is running
 * @property {boolean} lost whether the connection was lost while it was running
 * @property {string} path execution path of its node, or ""
 * @property {string} workflow id of the workflow that it was queued from, or ""
 * @property {number} step the last step
 * @property {number} steps that were asked for
 * @property {number | null} rate images per second
 * @property {number | null} foundRate the learning rate of the last step, where the optimiser finds it
 * @property {number | null} eta seconds to the end
 * @property {number | null} memory MB
 * @property {number} seconds spent on steps
 * @property {number | null} loss of the last step
 * @property {number | null} average moving average of the loss
 * @property {string} error why it failed, or ""
 * @property {string} preflight the note that the run began with
 * @property {number} lastEventAt ms since the page was opened
 */
/** @typedef {"start" | "step" | "validation" | "sample" | "end"} EventKind of the server's events */
/** @typedef {EventKind | "error" | "lost" | "checked" | "record" | "back" | "renamed" | "removed"} ChangeKind */
/** @typedef {{ kind: ChangeKind, run: Run | null }} Change run: null where it is about the connection ("back") */
/**
 * @typedef {object} MatchQuery
 * @property {string} technique
 * @property {string[]} paths execution paths of the node
 * @property {string} workflow id
 * @property {Record<string, unknown>} request widget values by name
 */
/** @typedef {ReturnType<typeof createRuns>} Runs */

/**
 * By step, those of a step by file: a row of prompts in their order.
 * @param {Sample} a
 * @param {Sample} b
 */
const byStep = ([step, file], [otherStep, otherFile]) => step - otherStep || (file < otherFile ? -1 : 1);

/** The runs of the page. */
export function createRuns() {
  /** @type {Map<string, Run>} */
  const runs = new Map();
  /** @type {Set<(change: Change) => void>} */
  const listeners = new Set();
  /** @type {Map<string, Promise<Run>>} */
  const loading = new Map();
  /** @type {Map<string, RunPage>} the pages of the list that were loaded since its last change */
  const pages = new Map();
  let stamp = ""; // the version of the list that the pages are from
  /** @type {Promise<unknown>} requests about the list run one after another */
  let queue = Promise.resolve();
  let connected = true;
  let endedAt = 0; // when the last run ended, ms since the page was opened

  /** @type {(kind: ChangeKind, run: Run | null) => void} */
  const notify = (kind, run) => listeners.forEach((listener) => listener({ kind, run }));

  /**
   * Call `work` after all earlier work of the queue, whether that failed or not.
   * @template Result
   * @param {() => Promise<Result>} work
   * @returns {Promise<Result>}
   */
  function enqueue(work) {
    const done = queue.then(work);
    queue = done.catch(() => {});
    return done;
  }

  /** Forget the pages of the list, so that the next one is read whole. */
  function forgetList() {
    pages.clear();
    stamp = "";
  }

  /**
   * The run with an id; it is made where it is not known.
   * @param {string} id
   * @param {number} [steps]
   */
  function runOf(id, steps = 1) {
    const known = runs.get(id);
    if (known) return known;
    /** @type {Run} */
    const run = {
      id,
      record: null,
      curve: new Curve(steps),
      samples: [],
      state: "running",
      live: false,
      lost: false,
      path: "",
      workflow: "",
      step: 0,
      steps,
      rate: null,
      foundRate: null,
      eta: null,
      memory: null,
      seconds: 0,
      loss: null,
      average: null,
      error: "",
      preflight: "",
      lastEventAt: 0,
    };
    runs.set(id, run);
    return run;
  }

  /** @param {RunRecord} record */
  function applyRecord(record) {
    const run = runOf(record.id);
    run.record = record;
    run.curve = curveOf(record);
    run.samples = record.samples;
    run.step = run.curve.last;
    run.steps = Math.max(Number(record.settings.steps ?? 0), run.step);
    run.path = record.node || run.path;
    run.workflow = record.workflow || run.workflow;
    run.seconds = Math.max(record.seconds, run.live ? run.seconds : 0);
    run.preflight = record.startLine || run.preflight;
    run.state = record.state;
    return run;
  }

  // --- Events of the server ----------------------------------------------------------------------------------------

  /** @type {Record<EventKind, (run: Run, event: RunEvent) => void>} */
  const handlers = {
    start(run, event) {
      const isResumed = run.record !== null || run.step > 0;
      forgetList();
      Object.assign(run, { state: "running", live: true, lost: false, error: "", preflight: event.text, steps: event.steps ?? run.steps });
      if (!isResumed) run.curve = new Curve(run.steps);
      load(run.id, true).catch(() => {}); // the settings, and the curve of the steps before a resume
    },
    step(run, event) {
      if (event.step === null) return;
      run.state = "running";
      run.live = true;
      run.lost = false;
      run.step = event.step;
      run.steps = event.steps ?? run.steps;
      run.loss = event.loss;
      run.average = event.loss_ema;
      run.rate = event.images_per_second;
      run.foundRate = event.found_rate;
      run.eta = event.eta_s;
      run.memory = event.memory_mb;
      run.seconds = event.seconds ?? run.seconds;
      run.curve.steps = Math.max(run.steps, run.step);
      run.curve.add(event.step, event.loss ?? NaN, event.loss_ema ?? NaN);
    },
    validation(run, event) {
      if (event.step !== null && event.loss !== null) run.curve.addHeldOut(event.step, event.loss);
      if (event.step !== null && event.leak !== null) run.curve.addLeak(event.step, event.leak);
      if (event.comparison) run.curve.addComparison(event.comparison);
    },
    sample(run, event) {
      if (event.step === null || !event.image || run.samples.some(([, file]) => file === event.image)) return;
      /** @type {Sample} */
      const sample = [event.step, event.image];
      run.samples = [...run.samples, sample].sort(byStep);
    },
    end(run, event) {
      Object.assign(run, { state: event.state ?? "failed", live: false, lost: false, eta: null });
      forgetList();
      endedAt = performance.now();
      load(run.id, true).catch(() => {}); // the steps that had no event
    },
  };

  for (const kind of /** @type {EventKind[]} */ (Object.keys(handlers))) {
    onEvent(`bespoke.run.${kind}`, (detail) => {
      const event = readEvent(detail);
      if (!event) return;
      const isKnown = runs.has(event.id);
      const run = runOf(event.id, event.steps ?? 1);
      if (event.node) run.path = event.node;
      if (event.workflow) run.workflow = event.workflow;
      run.lastEventAt = performance.now();
      handlers[kind](run, event);
      if (!isKnown && kind !== "start") load(run.id, true).catch(() => {}); // the page was opened during the run
      notify(kind, run);
    });
  }

  // The reason why a run failed comes as ComfyUI's own event.
  onEvent("execution_error", (detail) => {
    const newestFirst = [...runs.values()].reverse();
    const run = newestFirst.find((one) => one.path && one.path === detail?.node_id && (one.live || one.state === "failed"));
    if (!run || run.error) return;
    Object.assign(run, { error: text(detail.exception_message, 600).trim(), state: "failed", live: false });
    notify("error", run);
  });

  onEvent("reconnecting", () => {
    connected = false;
    for (const run of runs.values()) {
      if (!run.live) continue;
      run.lost = true;
      notify("lost", run);
    }
  });
  onEvent("reconnected", () => {
    connected = true;
    forgetList(); // the server may have been restarted with other runs
    for (const run of runs.values()) if (run.lost || run.live) checkLive(run);
    notify("back", null);
  });

  /**
   * Check whether a run that should be running is: the server may have been restarted.
   * @param {Run} run
   */
  async function checkLive(run) {
    const since = performance.now();
    try {
      const { record } = await load(run.id, true);
      run.lost = false;
      if (record && run.lastEventAt < since) {
        // A server that was shut down in order, or a run that ended meanwhile, has written how it ended.
        run.live = record.state === "running" && record.live;
        run.state = record.state === "running" && !run.live ? "cut off" : record.state;
      }
      notify("checked", run);
    } catch {
      // The server does not answer: the next reconnection checks again.
    }
  }

  /**
   * The id of the prompt that trains this run now, or null.
   * @param {Run} run
   * @returns {Promise<string | null>}
   */
  async function promptOf(run) {
    const { queue_running: running } = await fetchJson("/queue"); // [[number, prompt_id, prompt, ...], ...]
    for (const [, id, prompt] of running ?? []) {
      const items = /** @type {[string, any][]} */ (Object.entries(prompt ?? {}));
      const trainers = items.filter(([, item]) => isTrainer(item?.class_type));
      if (trainers.some(([path]) => !run.path || path === run.path)) return id;
    }
    return null;
  }

  // --- Requests of the page ----------------------------------------------------------------------------------------

  /**
   * The run with its whole record. Steps that came by event after the record was written are kept.
   * @param {string} id
   * @param {boolean} [anew] whether to read the record again
   * @returns {Promise<Run>}
   */
  function load(id, anew = false) {
    if (!isRunId(id)) return Promise.reject(new Error(t("runs.unreadable")));
    const known = runs.get(id);
    if (!anew && known?.record?.losses) return Promise.resolve(known);
    const started = loading.get(id);
    if (started) return started;
    const work = readRun(id).finally(() => loading.delete(id));
    loading.set(id, work);
    return work;
  }

  /** @param {string} id */
  async function readRun(id) {
    const record = readRecord(await fetchJson(`/bespoke/runs/${id}`));
    if (!record || record.id !== id) throw new Error(t("runs.unreadable"));
    const { live, step, steps, curve, state, samples, path } = runOf(id);
    const run = applyRecord(record);
    if (live) {
      Object.assign(run, { live, state, path: path || run.path, step: Math.max(step, run.step), steps: Math.max(steps, run.step) });
      run.curve.steps = Math.max(run.steps, run.curve.steps);
      run.curve.addTail(curve);
      const byFile = new Map([...run.samples, ...samples].map((sample) => [sample[1], sample]));
      run.samples = [...byFile.values()].sort(byStep);
    }
    notify("record", run);
    return run;
  }

  /**
   * One page of the list of runs, newest first. The server sends a page again only where the list has changed.
   * @param {number} page
   * @param {string} search words that all must occur
   */
  async function readList(page, search) {
    const key = `${page}|${search}`;
    const known = pages.get(key);
    const query = new URLSearchParams({ page: String(page), search, ...(known ? { stamp } : {}) });
    const found = readPage(await fetchJson(`/bespoke/runs?${query}`));
    if (!found.unchanged) {
      if (found.stamp !== stamp) pages.clear();
      stamp = found.stamp;
      pages.set(key, found);
      return found;
    }
    if (!known) throw new Error(t("runs.unreadable"));
    return known;
  }

  return {
    load,
    /**
     * What the page knows of a run, or null.
     * @param {string} id
     */
    known: (id) => runs.get(id) ?? null,
    /** Whether the socket is connected. */
    connected: () => connected,
    /** The run that is running now, or null. */
    live: () => [...runs.values()].find((run) => run.live && !run.lost) ?? null,
    /** When the last run ended, in ms since the page was opened. */
    endedAt: () => endedAt,
    /** @type {(page?: number, search?: string) => Promise<RunPage>} */
    list: (page = 0, search = "") => enqueue(() => readList(page, search)),
    /**
     * The run that a trainer node shows: its summary or null, and whether it was made by this node.
     * @param {MatchQuery} query
     * @param {() => boolean} isCurrent whether the answer is still wanted when the request's turn comes
     * @returns {Promise<{ run: RunRecord | null, exact: boolean }>}
     */
    match: (query, isCurrent) =>
      enqueue(async () => {
        if (!isCurrent()) return { run: null, exact: false };
        const found = await fetchJson("/bespoke/runs/match", jsonPost(query));
        return { run: readRecord(found.run), exact: found.exact === true };
      }),
    /**
     * As `load`; a run whose record says "running" is checked where no event of it came lately.
     * @param {string} id
     */
    async loadChecked(id) {
      const run = await load(id);
      if (run.state === "running" && performance.now() - run.lastEventAt > SILENT_MS) await checkLive(run);
      return run;
    },
    /**
     * The workflow that the run was started from, as the page saves it.
     * @param {string} id
     */
    workflow: (id) => fetchJson(`/bespoke/runs/${encodeURIComponent(id)}/graph`),
    /**
     * The files that the run saved, not checked: { loras, embeddings }.
     * @param {string} id
     */
    files: (id) => fetchJson(`/bespoke/runs/${encodeURIComponent(id)}/files`),
    /**
     * The curve as a table: { name: of a file, csv }.
     * @param {string} id
     */
    curve: (id) => fetchJson(`/bespoke/runs/${encodeURIComponent(id)}/curve`),
    /**
     * Give a run another name in lists, "" for none.
     * @param {Run} run
     * @param {string} label
     */
    async rename(run, label) {
      const answer = await fetchJson(`/bespoke/runs/${encodeURIComponent(run.id)}/rename`, jsonPost({ label }));
      if (run.record) run.record.label = text(answer.label);
      forgetList();
      notify("renamed", run);
    },
    /**
     * Move a run out of the list. Its files stay in a folder of the server.
     * @param {Run} run
     */
    async remove(run) {
      await fetchJson(`/bespoke/runs/${encodeURIComponent(run.id)}/remove`, jsonPost({}));
      runs.delete(run.id);
      forgetList();
      endedAt = performance.now(); // the nodes that show it search again
      notify("removed", run);
    },
    /**
     * Ask the run to stop after its present step and to save what it has learned. It ends with the event "end".
     * @param {string} id
     */
    finish: (id) => fetchJson(`/bespoke/runs/${encodeURIComponent(id)}/finish`, jsonPost({})),
    /**
     * Interrupt the prompt that trains this run, and no other.
     * @param {Run} run
     */
    async cancel(run) {
      const prompt = await promptOf(run);
      if (prompt === null) throw new Error(t("go.none"));
      await request("/interrupt", jsonPost({ prompt_id: prompt }));
    },
    /**
     * The address of a sample picture.
     * @param {string} id
     * @param {string} file
     */
    sampleUrl: (id, file) => apiURL(`/bespoke/runs/${encodeURIComponent(id)}/samples/${encodeURIComponent(file)}`),
    /**
     * The address of the training picture that is shown beside samples; not every run has one.
     * @param {string} id
     */
    pictureUrl: (id) => apiURL(`/bespoke/runs/${encodeURIComponent(id)}/picture`),
    /**
     * The address of a run's evidence card; a run that is trained now has none. A run that went on has another.
     * @param {string} id
     * @param {number} step how many steps are done
     */
    cardUrl: (id, step) => apiURL(`/bespoke/runs/${encodeURIComponent(id)}/card?step=${step}`),
    /**
     * Call `listener` for every change. Returns the function that ends it.
     * @param {(change: Change) => void} listener
     */
    listen(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}
