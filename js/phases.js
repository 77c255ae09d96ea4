// @ts-check
// What a trainer node does outside its steps: it waits in the queue, encodes, measures, scores or draws a sample. Known from
// the server's events and, for prompts that wait, from its queue. `createPhases` makes the state; no side effects.

import { fetchJson, isOpenWorkflow, onEvent, workflowId, workflowOf } from "./comfy.js";
import { BETWEEN_STEPS, isTrainer, readPhase, text } from "./run_values.js";

const QUEUE_MS = 150; // several changes of the queue within this time are read once
const FAILURE_MS = 500; // after an error, until the server's history has the prompt
const SHORT_MS = 250; // a phase between two steps that is done within this time is not shown

/** @typedef {import("./run_values.js").Phase} Phase */
/** @typedef {ReturnType<typeof createPhases>} Phases */

/** The phases of the nodes of the open workflow. */
export function createPhases() {
  /** @type {Map<string, Phase>} by execution path of the trainer node */
  const phases = new Map();
  /** @type {Set<() => void>} */
  const listeners = new Set();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let queueTimer;
  /** @type {Map<string, { phase: Phase, timer: ReturnType<typeof setTimeout> }>} by path */
  const delayed = new Map();
  let executing = ""; // path of the node that is executed now
  /** @type {Map<string, string>} by path: why a trainer of the last prompt refused to run, until the next one begins */
  const failures = new Map();

  const notify = () => listeners.forEach((listener) => listener());

  /**
   * @param {string} path
   * @param {Phase | null} phase null: none
   */
  function set(path, phase) {
    const begun = delayed.get(path);
    if (phase && begun?.phase.kind === phase.kind) {
      begun.phase = phase; // it counts on, and is still shown SHORT_MS after it began
      return;
    }
    clearTimeout(begun?.timer);
    delayed.delete(path);
    if (phase && BETWEEN_STEPS.has(phase.kind) && phases.get(path)?.kind !== phase.kind) {
      delayed.set(path, { phase, timer: setTimeout(() => putDelayed(path), SHORT_MS) });
      return;
    }
    put(path, phase);
  }

  /**
   * @param {string} path
   * @param {Phase | null} phase
   */
  function put(path, phase) {
    if (!phase && !phases.has(path)) return;
    if (phase) phases.set(path, phase);
    else phases.delete(path);
    notify();
  }

  /** @param {string} path */
  function putDelayed(path) {
    const begun = delayed.get(path);
    delayed.delete(path);
    if (begun) put(path, begun.phase);
  }

  /** End what the prompt that ran has shown. */
  function endPrompt() {
    executing = "";
    for (const path of new Set([...phases.keys(), ...delayed.keys()])) if (phases.get(path)?.kind !== "waiting") set(path, null);
    readQueueSoon();
  }

  function readQueueSoon() {
    if (!listeners.size) return; // no trainer node is shown
    clearTimeout(queueTimer);
    queueTimer = setTimeout(readQueue, QUEUE_MS);
  }

  async function readQueue() {
    for (const [path, { workflow }] of phases) if (!isOpenWorkflow(workflow)) set(path, null);
    try {
      const queue = await fetchJson("/queue"); // lists of [number, prompt_id, prompt, extra data, outputs]
      const running = (queue.queue_running ?? []).flatMap(trainersOf);
      const pending = [...(queue.queue_pending ?? [])].sort((a, b) => a?.[0] - b?.[0]);
      /** @type {Map<string, number>} the position of the first prompt with each path */
      const waiting = new Map();
      pending.forEach((item, i) => trainersOf(item).forEach((path) => waiting.has(path) || waiting.set(path, i + 1)));
      showQueue(running, waiting);
    } catch {
      // The server does not answer: its next event reads the queue again.
    }
  }

  /**
   * @param {string[]} running
   * @param {Map<string, number>} waiting
   */
  function showQueue(running, waiting) {
    for (const [path, { kind }] of phases) {
      const isThere = running.includes(path) || waiting.has(path);
      if (!isThere && (kind === "waiting" || kind === "next")) set(path, null);
    }
    for (const [path, position] of waiting) if (!running.includes(path)) set(path, phaseOf("waiting", position));
    for (const path of running) {
      const known = phases.get(path)?.kind ?? (done.has(path) ? "done" : "waiting");
      if (known === "waiting") set(path, phaseOf(path === executing ? "preparing" : "next"));
    }
  }

  /**
   * Keep why a trainer failed, if its prompt is that of the open workflow, which its event does not say.
   * @param {string} path
   * @param {string} prompt its id
   * @param {string} message
   */
  async function readFailure(path, prompt, message) {
    try {
      const item = (await fetchJson(`/history/${encodeURIComponent(prompt)}`))?.[prompt]?.prompt;
      if (!item || !trainersOf(item).includes(path)) return;
      failures.set(path, message);
      notify();
    } catch {
      // The page itself shows the error.
    }
  }

  /** @type {Set<string>} the trainers of the prompt that runs that have begun their run or are through */
  const done = new Set();

  onEvent("status", readQueueSoon);
  onEvent("execution_start", () => {
    done.clear();
    failures.clear();
    readQueueSoon();
  });
  onEvent("executing", (detail) => {
    const left = executing;
    executing = typeof detail === "string" ? detail : "";
    if (left && left !== executing && phases.has(left) && phases.get(left)?.kind !== "waiting") {
      done.add(left);
      set(left, null);
    }
    // A node that waits may be that of another prompt: the queue says when its own begins.
    if (phases.has(executing) && phases.get(executing)?.kind !== "waiting") set(executing, phaseOf("preparing"));
  });
  onEvent("bespoke.run.phase", (detail) => {
    const found = readPhase(detail);
    if (found && isOpenWorkflow(found.phase.workflow)) set(found.node, found.phase);
  });
  for (const kind of ["start", "step", "validation", "sample", "end"]) {
    onEvent(`bespoke.run.${kind}`, (detail) => {
      const path = detail?.node_id;
      if (typeof path !== "string" || !isOpenWorkflow(text(detail.workflow))) return;
      done.add(path);
      set(path, null);
    });
  }
  onEvent("execution_error", (detail) => {
    const path = text(detail?.node_id);
    if (!isTrainer(detail?.node_type) || done.has(path)) return; // a run that began shows its own error
    setTimeout(() => readFailure(path, text(detail.prompt_id), text(detail.exception_message).trim().replace(/^Bespoke [^:]*: /, "")), FAILURE_MS);
  });
  for (const kind of ["execution_success", "execution_error", "execution_interrupted"]) onEvent(kind, endPrompt);
  onEvent("reconnecting", () => {
    for (const path of new Set([...phases.keys(), ...delayed.keys()])) set(path, null);
  });
  onEvent("reconnected", readQueueSoon);

  return {
    /**
     * What the first of these nodes does that does something, or null.
     * @param {string[]} paths
     */
    of(paths) {
      const found = paths.map((path) => phases.get(path)).find((phase) => phase && isOpenWorkflow(phase.workflow));
      return found ?? null;
    },
    /**
     * Why the first of these nodes that failed did so before its run began, or "".
     * @param {string[]} paths
     */
    failureOf: (paths) => paths.map((path) => failures.get(path)).find(Boolean) ?? "",
    /**
     * Call `listener` for every change. Returns the function that ends it.
     * @param {() => void} listener
     */
    listen(listener) {
      listeners.add(listener);
      readQueueSoon(); // the page may have been opened while a prompt waits
      return () => listeners.delete(listener);
    },
  };
}

/**
 * A phase of the open workflow that has no pictures to count.
 * @param {string} kind
 * @param {number} [position] in the queue
 * @returns {Phase}
 */
const phaseOf = (kind, position = 0) => ({ kind, position, total: 0, workflow: workflowId() });

/**
 * The paths of the trainer nodes in a prompt of the open workflow.
 * @param {any} item of the queue
 * @returns {string[]}
 */
function trainersOf(item) {
  if (!workflowId() || workflowOf(item) !== workflowId()) return [];
  const items = /** @type {[string, any][]} */ (Object.entries(item[2] ?? {}));
  return items.filter(([, one]) => isTrainer(one?.class_type)).map(([path]) => path);
}
