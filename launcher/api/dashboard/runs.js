// The first page: all runs, newest first, with a bar each.

import { follow, get } from "./api.js";
import { h, moment, number, progressBar, replace, show, stateLabel, table } from "./dom.js";

const MOST_COMPARED = 4;
const ENDED = new Set(["succeeded", "failed", "stopped", "interrupted"]); // whose figures are of the whole run

export async function runsPage(signal) {
  const rows = new Map();
  const chosen = new Set();
  const body = h("tbody");
  const compare = h("button", { disabled: true, onclick: () => (location.hash = `#/compare/${[...chosen].join(",")}`) },
    "Compare");
  const more = h("button", { class: "plain", hidden: true }, "Older runs");
  const empty = h("p", { class: "quiet", hidden: true }, "There is no run yet. ",
    h("code", {}, "gemfleet train CONFIG"), " starts one.");
  const sweeps = h("section", { class: "card", "aria-label": "Sweeps", hidden: true });
  const heading = show("Runs", sweeps, h("section", { class: "card", "aria-label": "Runs" },
    table("Newest first. Choose two to four to compare them.",
      [["Compare"], ["Run"], ["State"], ["Progress"], ["Loss", "wide"], ["Created", "wide"]], body, "runs"),
    empty, h("p", { class: "actions" }, compare, more)));
  heading.focus();

  function choose(id, on) {
    if (on) chosen.add(id);
    else chosen.delete(id);
    compare.disabled = chosen.size < 2 || chosen.size > MOST_COMPARED;
  }

  function row(run) {
    const box = h("input", { type: "checkbox", "aria-label": `compare ${run.id}`, checked: chosen.has(run.id),
      onchange: (event) => choose(run.id, event.target.checked) });
    const { step, total_steps: total } = run.progress;
    return h("tr", {}, h("td", {}, box), h("td", {}, h("a", { href: `#/runs/${run.id}` }, run.id)),
      h("td", {}, stateLabel(run.status)),
      h("td", {}, progressBar(run.progress, `progress of ${run.id}`), h("small", { class: "quiet" }, `${step}/${total}`)),
      h("td", { class: "wide" }, number(run.loss)), h("td", { class: "wide" }, moment(run.created_at)));
  }

  function update(run) {
    const fresh = row(run);
    const old = rows.get(run.id);
    if (old && old.element.contains(document.activeElement)) {
      const index = [...old.element.querySelectorAll("a, input")].indexOf(document.activeElement);
      old.element.replaceWith(fresh);
      fresh.querySelectorAll("a, input")[index].focus();
    } else if (old) old.element.replaceWith(fresh);
    else body.prepend(fresh);
    rows.set(run.id, { run, element: fresh });
    empty.hidden = true;
  }

  async function page(after) {
    const listing = await get(`/api/v1/runs?limit=50${after ? `&after=${after}` : ""}`);
    for (const run of listing.data) {
      const element = row(run);
      rows.set(run.id, { run, element });
      body.append(element);
    }
    empty.hidden = rows.size > 0;
    more.hidden = !listing.has_more;
    more.onclick = () => page(listing.last_id);
  }

  /** Above the runs: the newest sweeps, a line each. */
  async function showSweeps() {
    const { data } = await get("/api/v1/sweeps?limit=5").catch(() => ({ data: [] }));
    sweeps.hidden = data.length === 0;
    replace(sweeps, h("h2", {}, "Sweeps"), h("ul", { class: "reasons" }, ...data.map((sweep) => h("li", {},
      h("a", { href: `#/sweeps/${sweep.id}`, id: `sweep-${sweep.id}` }, sweep.id), " ", stateLabel(sweep.status),
      ` · ${sweep.ended} of ${sweep.wanted} trials`, sweep.best ? ` · best loss ${number(sweep.best.value, 4)}` : ""))));
  }

  await Promise.all([page(null), showSweeps()]);
  follow("/api/v1/events?metrics=true", signal, async (kind, body_) => {
    const known = rows.get(body_.run_id);
    if (kind === "metric" && known) {
      const fraction = body_.total_steps ? body_.step / body_.total_steps : known.run.progress.fraction;
      const progress = { ...known.run.progress, step: body_.step, total_steps: body_.total_steps ?? 0, fraction };
      if (body_.kind === "step" && !ENDED.has(known.run.status)) update({ ...known.run, loss: body_.loss, progress });
    } else if (kind === "event" && body_.type === "state") {
      showSweeps();
      update(await get(`/api/v1/runs/${body_.run_id}`));
    }
  });
}
