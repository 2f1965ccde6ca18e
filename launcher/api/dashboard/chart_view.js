// How all charts of a page are looked at: smoothed, on which axes, and which part. One row of controls for them all.

import { announce, h } from "./dom.js";

const PLAIN = { smoothing: 0, log: false, axis: "step", range: null };
export const view = { ...PLAIN };
let kept = {}; // of the last page with controls, for the next one
const AXES = { step: "steps", tokens: "tokens", time: "time" };
const listeners = new Set();

/** Call `listener` after each change of the view. */
export function onViewChange(listener) {
  listeners.add(listener);
}

export function changeView(part) {
  Object.assign(view, part);
  kept = { ...view, range: null };
  for (const listener of listeners) listener();
}

/** Look at charts plainly: a page without controls has no way to change that. */
export function forgetView() {
  Object.assign(view, PLAIN);
  listeners.clear();
}

/** A number on the axis of the view, as people read it, and the other way round. span: the longest time, in seconds */
export function axisUnit(span) {
  if (view.axis !== "time") return { title: view.axis, one: 1 };
  if (span > 7200) return { title: "hours since the first step", one: 3600 };
  return span > 300 ? { title: "minutes since the first step", one: 60 } : { title: "seconds since the first step", one: 1 };
}

/** The controls. unit(): the `axisUnit` of the charts at this moment */
export function chartControls(unit) {
  Object.assign(view, kept);
  const smoothing = h("input", { type: "range", id: "smoothing", min: "0", max: "0.98", step: "0.02", value: String(view.smoothing) });
  const amount = h("output", { for: "smoothing" });
  const axis = h("select", { id: "axis" }, ...Object.entries(AXES).map(([key, name]) =>
    h("option", { value: key, selected: key === view.axis }, name)));
  const log = h("input", { type: "checkbox", id: "log-scale", checked: view.log });
  const ends = ["from", "to"].map((name) => h("input", { type: "number", id: `part-${name}`, step: "any", min: "0", "aria-label": `Show ${name}` }));
  const whole = h("button", { class: "plain", id: "whole", onclick: () => {
    changeView({ range: null });
    announce("All charts show the whole run.");
  } }, "Whole run");

  smoothing.addEventListener("input", () => changeView({ smoothing: Number(smoothing.value) }));
  axis.addEventListener("change", () => changeView({ axis: axis.value, range: null }));
  log.addEventListener("change", () => changeView({ log: log.checked }));
  for (const end of ends) end.addEventListener("change", () => {
    const [from, to] = ends.map((one) => (one.value === "" ? null : Number(one.value) * unit().one));
    if (from === null && to === null) changeView({ range: null });
    else if (to === null || (from ?? 0) < to) changeView({ range: [from ?? 0, to] });
  });

  function show() {
    amount.value = view.smoothing ? view.smoothing.toFixed(2) : "none";
    whole.disabled = view.range === null;
    ends.forEach((end, at) => {
      const value = view.range?.[at];
      end.value = value === null || value === undefined ? "" : String(Number((value / unit().one).toPrecision(6)));
    });
  }
  onViewChange(show);
  show();
  return h("section", { class: "card controls", "aria-label": "All charts" },
    h("label", {}, "Smoothing ", smoothing, amount), h("label", {}, "Over ", axis), h("label", {}, log, " Log scale"),
    h("span", { role: "group", "aria-label": "Part shown" }, "Show ", ends[0], " to ", ends[1], whole),
    h("p", { class: "quiet by-mouse" }, "Drag across a chart to look at a part of all; click twice for the whole run."));
}
