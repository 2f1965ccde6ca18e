// The log of a run: the newest lines of all ranks or of one, those with a text, and new ones as they come.

import { follow } from "./api.js";
import { h } from "./dom.js";

const MOST_LINES = 500;
const TYPING_MILLISECONDS = 300;
const QUIET_MILLISECONDS = 1500; // without a line; then the panel says that there is none

/** element: the panel; open() begins to follow. */
export function logPanel(path, signal) {
  const log = h("pre", { tabindex: "0", role: "region", "aria-label": "Lines of the log" });
  const search = h("input", { type: "search", id: "log-search", autocomplete: "off", spellcheck: "false" });
  const rank = h("select", { id: "log-rank" }, h("option", { value: "" }, "all"));
  const said = h("p", { class: "quiet", role: "status" });
  let reading = new AbortController(), waiting = [], flushing = null, typing = null, ranks = 0;

  function read() {
    reading.abort();
    reading = new AbortController();
    const own = reading.signal;
    waiting = [];
    log.replaceChildren();
    said.textContent = "";
    const asked = new URLSearchParams({ follow: "true", tail: String(tailOf(ranks, rank.value)), contains: search.value.trim() });
    if (rank.value) asked.set("rank", rank.value);
    const none = search.value.trim() ? "No line with this text in the newest part of the log." : "No line yet.";
    setTimeout(() => { if (!own.aborted && !log.firstChild) said.textContent = none; }, QUIET_MILLISECONDS);
    follow(`${path}/logs?${asked}`, AbortSignal.any([signal, own]), (kind, line) => {
      if (own.aborted) return;
      waiting.push(line);
      flushing ??= setTimeout(flush, 100);
    });
  }

  function flush() {
    flushing = null;
    if (!waiting.length) return;
    const below = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.append(...waiting.slice(-MOST_LINES).map((line) => lineOf(line, search.value.trim())));
    while (log.childNodes.length > MOST_LINES) log.firstChild.remove();
    waiting = [];
    said.textContent = "";
    if (below) log.scrollTop = log.scrollHeight;
  }

  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(read, TYPING_MILLISECONDS);
  });
  rank.addEventListener("change", read);
  return {
    element: h("section", { class: "card", "aria-label": "Log" }, h("h2", {}, "Log"),
      h("p", { class: "filters" }, h("label", {}, "Find ", search), h("label", {}, "Rank ", rank)), said, log),
    open: read,
    /** Offer so many ranks to choose from. */
    grow(count) {
      for (; ranks < count; ranks++) rank.append(h("option", { value: String(ranks) }, String(ranks)));
    },
  };
}

/** Lines of each file: fewer where there are many files, because no more than MOST_LINES are shown. */
function tailOf(ranks, chosen) {
  return chosen ? MOST_LINES : Math.max(10, Math.floor(MOST_LINES / (ranks + 1)));
}

function lineOf({ source, line }, found) {
  const at = found ? line.toLowerCase().indexOf(found.toLowerCase()) : -1;
  const parts = at < 0 ? [line] : [line.slice(0, at), h("b", { class: "found" }, line.slice(at, at + found.length)), line.slice(at + found.length)];
  return h("span", {}, `${source.padEnd(8)} `, ...parts, "\n");
}
