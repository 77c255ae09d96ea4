// @ts-check
// Scales of the plots: from values to positions and tick marks. Pure: imports nothing, has no side effects.

/**
 * Round values between low and high, at most four: multiples of 1, 2 or 5 times a power of ten.
 * @param {number} low
 * @param {number} high greater than low
 * @returns {number[]}
 */
export function ticks(low, high) {
  const rough = (high - low) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5].map((factor) => factor * power).find((size) => size >= rough) ?? 10 * power;
  const out = [];
  for (let value = Math.ceil(low / step) * step; value <= high && out.length < 4; value += step) out.push(Number(value.toPrecision(6)));
  return out;
}

/**
 * A function from a noise level sigma to a height of 0 to 1. Where the largest sigma is at most 1.5 (flow models) the
 * height is proportional. Above that it is logarithmic, from 0.08 at the lowest positive sigma to 1, and 0 at sigma 0.
 * @param {number[]} sigmas all noise levels of the plot
 * @returns {(sigma: number) => number}
 */
export function sigmaScale(sigmas) {
  const top = Math.max(...sigmas);
  if (top <= 1.5) return (sigma) => sigma / top;
  const least = Math.min(...sigmas.filter((sigma) => sigma > 0));
  const span = Math.log(top / least) || 1;
  return (sigma) => (sigma <= 0 ? 0 : 0.08 + (0.92 * Math.log(sigma / least)) / span);
}
