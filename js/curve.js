// @ts-check
// The curve of a run in a fixed amount of memory. Steps are collected in bins, which become wider as steps come, so that
// adding a step and drawing the curve cost the same at any length. Pure: imports nothing, has no side effects.

export const BINS = 512;
const EMA = 0.98; // decay of the moving average as on the server, for records, which hold the losses alone

/** @typedef {[step: number, loss: number]} Score */
/**
 * A held-out score beside the lowest one before it, that of the step `lowest`: their difference, and how much of it is noise.
 * @typedef {{ step: number, lowest: number, difference: number, margin: number }} Comparison
 */

// Scores in a row above the lowest by more than noise, or without a new lowest, after which it has turned, as on the server.
const TURNED = 2;
const WAITED = 10;

/**
 * Losses of steps, counted from 1. Bin i covers the steps (i * stride, (i + 1) * stride]. Held-out scores are kept whole.
 */
export class Curve {
  /** @param {number} [steps] the number of steps that the run was asked for */
  constructor(steps = 1) {
    this.steps = Math.max(1, steps);
    this.stride = 1;
    this.low = new Float64Array(BINS).fill(Infinity); // lowest loss of each bin
    this.high = new Float64Array(BINS).fill(-Infinity); // highest
    this.average = new Float64Array(BINS).fill(NaN); // moving average after the last step of each bin
    this.last = 0; // the last step that was added
    /** @type {Score[]} ordered by step */
    this.heldOut = [];
    /** @type {Score | null} the lowest held-out score */
    this.best = null;
    /** @type {Score[]} [step, leak] ordered by step: how far other prompts moved, as a multiple of how far the captions did */
    this.leak = [];
    /** @type {Comparison[]} ordered by step; empty where the run does not stop by its held-out scores */
    this.comparisons = [];
  }

  /**
   * Add the loss of a step and the moving average after it. A value that is not finite leaves a gap.
   * @param {number} step counted from 1; smaller values are ignored
   * @param {number} loss
   * @param {number} average
   */
  add(step, loss, average) {
    if (!(step >= 1)) return; // NaN too
    while (step > BINS * this.stride) this.#halve();
    const bin = Math.floor((step - 1) / this.stride);
    if (Number.isFinite(loss)) {
      this.low[bin] = Math.min(this.low[bin], loss);
      this.high[bin] = Math.max(this.high[bin], loss);
    }
    if (Number.isFinite(average)) this.average[bin] = average;
    this.last = Math.max(this.last, step);
    this.steps = Math.max(this.steps, step);
  }

  /** The moving average after the last step, NaN where there is none. */
  get lastAverage() {
    return this.average[Math.max(0, Math.ceil(this.last / this.stride) - 1)];
  }

  /**
   * The last step of the plot's axis: of a run that goes on a quarter more than is known, at least 20 and at most all.
   * @param {boolean} isLive whether more steps come
   */
  extent(isLive) {
    const known = Math.max(2, this.last, this.heldOut.length ? this.heldOut[this.heldOut.length - 1][0] : 0);
    return isLive ? Math.min(Math.max(this.steps, known), Math.max(20, Math.ceil(known * 1.25))) : known;
  }

  /**
   * Add a held-out score, or replace that of the same step. A loss that is not finite is ignored.
   * @param {number} step
   * @param {number} loss
   */
  addHeldOut(step, loss) {
    if (!Number.isFinite(loss)) return;
    put(this.heldOut, step, loss);
    if (!this.best || loss < this.best[1]) this.best = [step, loss];
  }

  /**
   * Add a leak, or replace that of the same step. A value that is not finite is ignored.
   * @param {number} step
   * @param {number} leak
   */
  addLeak(step, leak) {
    if (Number.isFinite(leak)) put(this.leak, step, leak);
  }

  /**
   * Add a comparison. One of a step that is not after the last one is ignored.
   * @param {Comparison} comparison
   */
  addComparison(comparison) {
    const last = this.comparisons[this.comparisons.length - 1];
    if (!last || comparison.step > last.step) this.comparisons.push(comparison);
  }

  /** The step at which the held-out scores turned; null where they did not. */
  get turn() {
    const now = this.comparisons[this.comparisons.length - 1];
    if (!now?.lowest || now.difference < 0) return null;
    const since = this.comparisons.filter(({ lowest }) => lowest === now.lowest); // those in a row: a lowest does not come back
    const last = since.slice(-TURNED);
    const isAbove = last.length === TURNED && last.every(({ difference, margin }) => difference > margin);
    return isAbove || since.length >= WAITED ? now.lowest : null;
  }

  /**
   * The band of noise around the lowest score before each score: a score above it is higher, one below it lower.
   * @returns {{ step: number, low: number, high: number }[]}
   */
  get band() {
    const scores = new Map(this.heldOut);
    return this.comparisons.flatMap(({ step, lowest, margin }) => {
      const level = scores.get(lowest);
      return level === undefined ? [] : [{ step, low: level - margin, high: level + margin }];
    });
  }

  /**
   * Add what another curve of the same run knows beyond this curve's last step.
   * @param {Curve} newer
   */
  addTail(newer) {
    for (let i = 0; i < newer.average.length; i++) {
      const step = Math.min(newer.last, (i + 1) * newer.stride);
      if (step <= this.last || newer.low[i] > newer.high[i]) continue;
      this.add(step, newer.low[i], newer.average[i]);
      this.add(step, newer.high[i], newer.average[i]);
    }
    for (const [step, loss] of newer.heldOut) this.addHeldOut(step, loss);
    for (const [step, leak] of newer.leak) this.addLeak(step, leak);
    newer.comparisons.forEach((comparison) => this.addComparison(comparison));
  }

  /**
   * The lowest and highest value of the plot's axis, or null without values: all averages and held-out scores, and of the
   * bins' lowest and highest losses those from the 2nd to the 90th percentile.
   * @returns {[low: number, high: number] | null} low < high
   */
  range() {
    let [low, high] = [Infinity, -Infinity];
    const include = (/** @type {number} */ value) => {
      low = Math.min(low, value);
      high = Math.max(high, value);
    };
    for (const value of this.average) if (Number.isFinite(value)) include(value);
    for (const [, loss] of this.heldOut) include(loss);
    const singles = new Float64Array(2 * BINS); // which sorts as numbers, several times as fast as a list
    let count = 0;
    for (const values of [this.low, this.high]) for (const value of values) if (Number.isFinite(value)) singles[count++] = value;
    const sorted = singles.subarray(0, count).sort();
    if (count) [sorted[Math.floor(count * 0.02)], sorted[Math.ceil(count * 0.9) - 1]].forEach(include);
    if (low > high) return null;
    return high > low ? [low, high] : [low - Math.max(1e-6, Math.abs(low) / 10), high + Math.max(1e-6, Math.abs(high) / 10)];
  }

  /** Put two bins into one. */
  #halve() {
    for (let i = 0; i < BINS / 2; i++) {
      this.low[i] = Math.min(this.low[2 * i], this.low[2 * i + 1]);
      this.high[i] = Math.max(this.high[2 * i], this.high[2 * i + 1]);
      const later = this.average[2 * i + 1];
      this.average[i] = Number.isFinite(later) ? later : this.average[2 * i];
    }
    this.low.fill(Infinity, BINS / 2);
    this.high.fill(-Infinity, BINS / 2);
    this.average.fill(NaN, BINS / 2);
    this.stride *= 2;
  }
}

/**
 * Put a value into a list that is ordered by step, in the place of that of the same step.
 * @param {Score[]} scores
 * @param {number} step
 * @param {number} value
 */
function put(scores, step, value) {
  const isLast = !scores.length || step > scores[scores.length - 1][0]; // nearly always
  const place = isLast ? -1 : scores.findIndex(([at]) => at >= step);
  if (place < 0) scores.push([step, value]);
  else if (scores[place][0] === step) scores[place][1] = value;
  else scores.splice(place, 0, [step, value]);
}

/**
 * The curve of a record, with the moving average that the server computes: of n finite losses the mean with equal weights
 * up to n = 50, then with a decay of 0.98.
 * @param {{ settings: Record<string, unknown>, losses: number[] | null, held_out: Score[], leak?: Score[], comparisons?: Comparison[] }} record
 */
export function curveOf(record) {
  const curve = new Curve(Number(record.settings.steps) || record.losses?.length || 1);
  let average = NaN;
  let count = 0;
  (record.losses ?? []).forEach((loss, i) => {
    if (Number.isFinite(loss)) {
      count++;
      const keep = Math.min(EMA, (count - 1) / count);
      average = count === 1 ? loss : keep * average + (1 - keep) * loss;
    }
    curve.add(i + 1, loss, average);
  });
  for (const [step, loss] of record.held_out) curve.addHeldOut(step, loss);
  for (const [step, leak] of record.leak ?? []) curve.addLeak(step, leak);
  record.comparisons?.forEach((comparison) => curve.addComparison(comparison));
  return curve;
}
