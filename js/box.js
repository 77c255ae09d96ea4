// A panel of our own on a node: nothing of it is a value of the prompt or of the workflow. No side effects.

const MARGIN = 6; // px

/**
 * Add an element to a node and make room for it; a node never gets smaller by it. Gives the widget.
 * height: () => px; grows: whether it takes the room that a larger node has; after: the widget that it stands below, or
 * null for above them all; without it, below them all.
 */
export function addBox(node, name, kind, element, { height, grows = false, after }) {
  const outer = () => height() + 2 * MARGIN;
  const widget = node.addDOMWidget(name, kind, element, {
    serialize: false, // not a value of the prompt
    hideOnZoom: false,
    margin: MARGIN, // in the classic canvas; Nodes 2.0 has its own
    getMinHeight: outer,
  });
  widget.serialize = false; // nor of the workflow
  if (!grows) {
    // Without a layout size Nodes 2.0, too, gives the element its own height and no more.
    widget.computeLayoutSize = undefined;
    widget.computeSize = (width) => [width ?? 0, outer()];
  }
  if (after !== undefined) move(node, widget, after);
  makeRoom(node);
  return widget;
}

/** Call `end` when the node is removed, beside what it does then already. */
export function whenRemoved(node, end) {
  const removed = node.onRemoved;
  node.onRemoved = function (...args) {
    end();
    return removed?.apply(this, args);
  };
}

/** Let the node be as large as its widgets want. */
export function makeRoom(node) {
  if (window.LiteGraph?.vueNodesMode) return; // Nodes 2.0 measures what is there, without the folded inputs
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.graph?.setDirtyCanvas?.(true, true);
}

function move(node, widget, after) {
  node.widgets.splice(node.widgets.indexOf(widget), 1);
  node.widgets.splice(after === null ? 0 : node.widgets.findIndex(({ name }) => name === after) + 1, 0, widget);
  // Values are saved by a widget's place among all and read by its place among the saved ones: without this the empty
  // place of ours would move every value by one.
  const serialized = node.onSerialize;
  node.onSerialize = function (data, ...rest) {
    const answer = serialized?.call(this, data, ...rest);
    if (Array.isArray(data?.widgets_values)) {
      const saved = data.widgets_values;
      if (saved.length === this.widgets.filter((one) => one.serialize !== false).length) return answer; // compact: pages from 1.53 on
      data.widgets_values = this.widgets.flatMap((one, i) => (one.serialize === false ? [] : [saved[i] ?? null]));
    }
    return answer;
  };
}

/** Keep the graph's own shortcuts, zoom and dragging out of what is typed, pressed and scrolled in an element. */
export function keepInside(element, kinds = ["keydown", "pointerdown", "wheel"]) {
  for (const kind of kinds) element.addEventListener(kind, (event) => event.stopPropagation());
}
