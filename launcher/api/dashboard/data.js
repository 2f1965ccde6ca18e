// What a run trains on: counts, lengths, rows left out, and examples whose supervised text is marked.
// The board and the page of `gemfleet data --html` draw it by this module.

import { h, number, table } from "./dom.js";

const share = (part, whole) => (whole ? `${number((100 * part) / whole, 1)}%` : "–");
const usedOf = (set) => set.examples + set.held_out;
const sum = (items, value) => items.reduce((total, item) => total + value(item), 0);

/** The elements of a description of data, as the API's schema `DataView` has it. */
export function dataParts(view) {
  const trained = view.sets.filter((set) => set.use === "train");
  return [factsOf(view, trained), ...view.sets.length > 1 ? [setsTable(view.sets)] : [],
    ...view.sets.filter((set) => set.left_out.length).map((set) => leftOut(set, view.sets.length > 1)),
    view.lengths ? histogram(view.lengths) : null,
    view.examples.length ? h("h3", {}, "Examples") : null,
    view.examples.length ? h("p", { class: "quiet" }, "The loss is computed on the text in ", mark("marks like this"), ".") : null,
    ...view.examples.map((example, index) => exampleOf(example, index === 0)),
    ...view.notes.map((note) => h("p", { class: "quiet" }, note))].filter(Boolean);
}

function factsOf(view, trained) {
  const rows = sum(trained, (set) => set.rows), used = sum(trained, usedOf), { epoch } = view;
  const facts = { "Rows read": number(rows), "Rows used": number(used), "Left out": number(rows - used),
    "Held out to evaluate": number(sum(trained, (set) => set.held_out)),
    "Cut off at max_length": number(sum(trained, (set) => set.truncated)),
    ...(epoch ? { "Tokens of an epoch": number(epoch.tokens),
      ...(epoch.pictures ? { "Pictures of an epoch": number(epoch.pictures) } : {}), Supervised: share(epoch.supervised_tokens, epoch.tokens),
      "Packed rows": `${share(epoch.fill, 1)} full`, "Steps of an epoch": number(epoch.steps), "Steps of the run": number(epoch.steps_of_run),
      "Examples of a step": number(epoch.global_batch) } : {}) };
  const words = [["Data", trained.map((set) => `${set.path} (${set.format})`).join(", ")],
    ["Rows read of each set", view.limit && `only the first ${number(view.limit)}`],
    ["Not used", [...new Set(trained.flatMap((set) => set.unused))].join(", ")], ["Time", view.time]];
  return h("div", {}, view.refused ? h("p", { class: "problem" }, view.refused) : null,
    ...words.filter(([, value]) => value).map(([name, value]) => h("p", { class: "said" }, h("b", {}, `${name}: `), value)),
    h("dl", { class: "facts" }, ...Object.entries(facts).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))));
}

function setsTable(sets) {
  const heads = ["Set", "Use", "Rows", "Used", "Left out", "In an epoch", "Tokens", "Supervised"].map((name) => [name]);
  const body = h("tbody", {}, ...sets.map((set) => h("tr", {}, ...[set.name, set.use, number(set.rows), number(usedOf(set)),
    number(sum(set.left_out, (reason) => reason.count)), set.use === "train" ? number(set.epoch_examples) : "–", number(set.tokens), share(set.supervised_tokens, set.tokens)]
    .map((text) => h("td", {}, text)))));
  return h("section", {}, h("h3", {}, "Sets"), table("Each data set", heads, body));
}

function leftOut(set, named) {
  return h("section", {}, h("h3", {}, named ? `Left out of ${set.name}` : "Left out"),
    h("ul", { class: "reasons" }, ...set.left_out.map((reason) => h("li", {}, h("b", {}, `${number(reason.count)} `), reason.reason,
      h("span", { class: "quiet" }, ` ${reason.first.join(", ")}${reason.count > reason.first.length ? ", …" : ""}`)))));
}

function histogram(lengths) {
  const most = Math.max(...lengths.histogram.map((bucket) => bucket.count));
  const rows = lengths.histogram.map((bucket) => h("tr", {}, h("th", { scope: "row" }, `${number(bucket.shortest)}–${number(bucket.longest)}`),
    h("td", {}, number(bucket.count)),
    h("td", { class: "bar", "aria-hidden": "true" }, h("meter", { max: String(most), value: String(bucket.count) }))));
  return h("section", {}, h("h3", {}, "Lengths"),
    h("table", { class: "lengths" }, h("caption", {},
      `${number(lengths.shortest)} to ${number(lengths.longest)} tokens, half of the examples have at most ${number(lengths.median)}`),
    h("thead", { class: "hidden" }, h("tr", {}, ...["Tokens", "Examples"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, ...rows)));
}

function exampleOf(example, open) {
  const said = `${number(example.tokens)} tokens, ${number(example.supervised_tokens)} supervised`;
  return h("details", { open }, h("summary", {}, h("b", {}, example.name), ` ${said}`),
    example.left_out ? h("p", { class: "problem" }, `left out: ${example.left_out}`) : null,
    example.pictures?.length ? h("p", { class: "pictures" },
      ...example.pictures.map((source, at) => h("img", { src: source, alt: `Picture ${at + 1} of ${example.name}` }))) : null,
    h("pre", { tabindex: "0", "aria-label": `Text of ${example.name}` },
      ...example.spans.map((span) => (span.supervised ? mark(span.text) : span.text))));
}

/** Supervised text: in colour, with a line below it, and in the style sheet's brackets, which screen readers say. */
function mark(text) {
  return h("mark", {}, text);
}
