// @ts-check
// The pattern of the inject node's `blocks` widget, such as `down.1, mid, up.*:0.5`, read as the server reads it.
// Pure: imports nothing, has no side effects.

/**
 * The terms of a pattern. A part that is no term is left out; the node reports it when it runs.
 * @param {string} pattern
 * @returns {{ name: string, value: number }[]}
 */
function termsOf(pattern) {
  const found = [];
  for (const part of pattern.split(/[,;\n]/)) {
    const [name, strength] = part.split(/:(.*)/s).map((piece) => piece.trim());
    const value = strength === undefined ? 1 : strength === "" ? NaN : Number(strength);
    if (name && Number.isFinite(value)) found.push({ name: name.toLowerCase(), value });
  }
  return found;
}

/**
 * Whether the whole text fits a pattern in which `*` stands for any text. In linear time, as an expression with many
 * `.*` is not: each piece between two stars is looked for from where the one before ended.
 * @param {string} pattern
 * @param {string} text
 */
function globMatches(pattern, text) {
  const pieces = pattern.split("*");
  const first = pieces[0], last = pieces[pieces.length - 1];
  if (pieces.length === 1) return text === pattern;
  if (text.length < first.length + last.length || !text.startsWith(first) || !text.endsWith(last)) return false;
  let position = first.length;
  const inside = text.slice(0, text.length - last.length);
  for (const piece of pieces.slice(1, -1)) {
    const found = inside.indexOf(piece, position);
    if (found < 0) return false;
    position = found + piece.length;
  }
  return true;
}

/**
 * Whether a term's name means a block: the name itself, a block inside it, `*` for any text, or a range such as `up.0-2`.
 * @param {string} term
 * @param {string[]} names every name of the block
 */
function matches(term, names) {
  const range = term.match(/(?<!\d)(\d{1,9})-(\d{1,9})$/);
  if (!range) return names.some((name) => globMatches(term, name) || globMatches(`${term}.*`, name));
  const stem = term.slice(0, range.index);
  return names.some((name) => {
    const number = name.match(/(?<!\d)\d{1,9}$/);
    if (!number || !globMatches(stem, name.slice(0, number.index))) return false;
    return Number(range[1]) <= Number(number[0]) && Number(number[0]) <= Number(range[2]);
  });
}

/**
 * The strength of a row of layers: of the last term that matches, 0 where none does, 1 for an empty pattern.
 * null where the layers of the row have different strengths.
 * @param {string} pattern
 * @param {string[][]} names for each layer, every name of its block
 */
export function strengthOf(pattern, names) {
  const terms = termsOf(pattern);
  if (!terms.length) return 1;
  const strengths = names.map((group) => terms.findLast(({ name }) => matches(name, group))?.value ?? 0);
  return strengths.every((value) => value === strengths[0]) ? strengths[0] : null;
}

/**
 * The pattern with the strength of one block set and all other terms kept. A pattern that sets nothing becomes "".
 * @param {string} pattern
 * @param {string} block in lower case
 * @param {number} value is rounded to three decimals
 */
export function withStrength(pattern, block, value) {
  const kept = (pattern.trim() || "*")
    .split(/[,;\n]/)
    .map((part) => part.trim())
    .filter((part) => part && part.split(":")[0].trim().toLowerCase() !== block);
  const all = [...kept, value === 1 ? block : `${block}:${Number(value.toFixed(3))}`];
  const setsNothing = all.every((part) => termsOf(part)[0]?.value === 1) && all.includes("*");
  return setsNothing ? "" : all.join(", ");
}
