// Answers of the published adapter on the evaluation set, beside the truth.

import { get } from "./api.js";
import { h, number } from "./dom.js";

const PAGE = 10;

/** element: the panel, hidden while the run has no answers; show() looks for them. */
export function predictionsPanel(path) {
  const facts = h("dl", { class: "facts" }), list = h("div");
  const differing = h("input", { type: "checkbox", id: "only-differing" });
  const more = h("button", { class: "plain", id: "more-answers" }, "More answers");
  const none = h("p", { class: "quiet", hidden: true }, "Every answer is its reference.");
  const element = h("section", { class: "card", "aria-label": "Predictions", hidden: true }, h("h2", {}, "Predictions"), facts,
    h("p", { class: "filters" }, h("label", {}, differing, " Only answers that differ")), none, list, h("p", { class: "actions" }, more));
  let last = 0;

  async function page() {
    const asked = `after=${last}&limit=${PAGE}&differing=${differing.checked}`;
    const found = await get(`${path}/predictions?${asked}`).catch(() => null);
    if (found === null) return null;
    list.append(...found.data.map(answerOf));
    last = found.data.at(-1)?.number ?? last;
    more.hidden = !found.has_more;
    none.hidden = list.childNodes.length > 0;
    return found;
  }

  more.addEventListener("click", page);
  differing.addEventListener("change", () => {
    last = 0;
    list.replaceChildren();
    page();
  });
  return {
    element,
    async show() {
      if (!element.hidden) return;
      const found = await page();
      if (!found?.data.length) return;
      facts.replaceChildren(...Object.entries(found.metrics).map(([name, value]) =>
        h("div", {}, h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, number(value, 4)))));
      element.hidden = false;
    },
  };
}

function answerOf({ number: at, prompt, reference, prediction, same, pictures }) {
  const text = (name, content) => h("div", {}, h("h4", {}, name), h("p", { class: "answer" }, content || "(nothing)"));
  return h("article", { class: "prediction", "aria-label": `Answer ${at}` },
    h("h3", {}, `Answer ${at} `, h("small", { class: same ? "same" : "differs" }, same ? "as the truth" : "differs")),
    h("details", {}, h("summary", {}, firstWords(prompt)), h("pre", { tabindex: "0", "aria-label": `Prompt of answer ${at}` }, prompt)),
    pictures.length ? h("p", { class: "pictures" }, ...pictures.map((source, place) =>
      h("img", { src: source, alt: `Picture ${place + 1} of answer ${at}` }))) : null,
    h("div", { class: "grid" }, text("Truth", reference), text("Prediction", prediction)));
}

/** The beginning of a prompt without the marks of turns, for a line. */
function firstWords(prompt) {
  const words = prompt.replaceAll(/<(bos|(start|end)_of_(turn|image)|image_soft_token)>(user\n)?/g, " ").replaceAll(/\s+/g, " ").trim();
  return words.length > 90 ? `${words.slice(0, 90)} …` : words || "Prompt";
}
