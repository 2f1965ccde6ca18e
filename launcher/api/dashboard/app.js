// Which page is shown: the part of the address after `#` says it.

import { answers } from "./api.js";
import { clearCharts } from "./charts.js";
import { clusterPage } from "./cluster.js";
import { comparePage } from "./compare.js";
import { h, show } from "./dom.js";
import { runPage } from "./run.js";
import { runsPage } from "./runs.js";
import { sweepPage } from "./sweep.js";

const ROUTES = [
  [/^#\/runs\/([A-Za-z0-9._-]+)$/, runPage],
  [/^#\/sweeps\/([A-Za-z0-9._-]+)$/, sweepPage],
  [/^#\/compare\/([A-Za-z0-9._,-]+)$/, comparePage],
  [/^#\/cluster$/, clusterPage],
  [/^(?:#\/?(?:\?.*)?)?$/, runsPage], // it reads its filters from the address itself
];
let leaving = new AbortController();

async function open() {
  leaving.abort(); // ends the streams of the page before: a browser allows only six connections
  leaving = new AbortController();
  clearCharts();
  const [found, page] = ROUTES.map(([pattern, page]) => [location.hash.match(pattern), page]).find(([found]) => found)
    ?? [[], notFound];
  const { signal } = leaving;
  markHere(page === runsPage ? "#/" : location.hash);
  try {
    await page(signal, ...[...found].slice(1).map(decodeURIComponent));
  } catch (error) {
    if (!signal.aborted) show("Something is wrong", h("p", { class: "problem", role: "alert" }, error.message)).focus();
  }
}

/** Say in the navigation which of its pages is shown. */
function markHere(address) {
  for (const link of document.querySelectorAll("header nav a")) {
    if (link.hash === address) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function notFound() {
  show("There is no such page", h("p", {}, h("a", { href: "#/" }, "All runs"))).focus();
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the part after `#` names the page
  document.getElementById("content").focus();
});
window.addEventListener("hashchange", open);
// A hidden tab holds no connection; shown again, it starts anew, or keeps what it shows where nobody answers any more.
document.addEventListener("visibilitychange", async () => {
  if (document.hidden) leaving.abort();
  else if (await answers()) open();
});
open();
