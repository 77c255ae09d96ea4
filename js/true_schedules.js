// @ts-check
// The schedules that nodes sent when they ran, each kept for the wiring that it was queued with. Pure: imports nothing, has
// no side effects.

const MOST_KEPT = 12; // wirings of one node
const SETTLED_MS = 1000; // after which a prompt that was queued must have been counted by the server

/** @typedef {Record<string, unknown>} Values */
/**
 * A prompt that may not have run yet. values: those of the widgets that the page knew. at: ms. left: how often the node is to
 * run still.
 * @typedef {{ signature: string, values: Values, at: number, left: number }} Queued
 */
/** @typedef {ReturnType<typeof createTrueSchedules>} TrueSchedules */

/**
 * @template [T=unknown]
 */
export function createTrueSchedules() {
  /** @type {Map<string, Queued[]>} what was queued and may not have run yet, by node */
  const queued = new Map();
  /** @type {Map<string, Map<string, T[]>>} what ran: by node, then by signature */
  const kept = new Map();
  let isIdle = false;

  return {
    /**
     * The server told how much it has to do.
     * @param {number} prompts
     */
    remaining(prompts) {
      isIdle = prompts === 0;
    },

    /**
     * A prompt with the node is made.
     * @param {string} key of the node
     * @param {string} signature a text that changes with the node's wiring
     * @param {Values} values
     * @param {number} now ms
     * @param {number} [times] how often the prompt has the node
     */
    queue(key, signature, values, now, times = 1) {
      const waiting = (queued.get(key) ?? []).filter(({ at, left }) => left > 0 && !(isIdle && now >= at + SETTLED_MS));
      queued.set(key, [...waiting, { signature, values, at: now, left: times }]);
    },

    /**
     * A node ran. Keeps the schedule where it is certain with which wiring: all prompts that may have run with these values
     * have the same. Returns whether it was kept.
     * @param {string} key of the node
     * @param {Values} values of its widgets as it ran
     * @param {T} schedule
     */
    ran(key, values, schedule) {
      const fits = (/** @type {Queued} */ one) => Object.entries(one.values).every(([name, value]) => values[name] === value);
      const possible = (queued.get(key) ?? []).filter((one) => one.left > 0 && fits(one));
      const signatures = new Set(possible.map(({ signature }) => signature));
      if (signatures.size !== 1) return false;
      const [signature] = signatures;
      possible[0].left -= 1;
      const own = kept.get(key) ?? new Map();
      const before = /** @type {T[]} */ (own.get(signature) ?? []);
      const text = JSON.stringify(schedule);
      own.delete(signature);
      own.set(signature, [...before.filter((one) => JSON.stringify(one) !== text), schedule]);
      while (own.size > MOST_KEPT) own.delete(own.keys().next().value);
      kept.set(key, own);
      return true;
    },

    /**
     * The schedules that a node sent with a wiring, the last one at the end. A node of a subgraph that is used several times
     * runs several times, so it can have several.
     * @param {string} key
     * @param {string} signature
     * @returns {T[]}
     */
    find(key, signature) {
      return kept.get(key)?.get(signature) ?? [];
    },
  };
}
