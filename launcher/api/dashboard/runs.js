// The first page: all runs, searched, filtered and sorted; those that are chosen are compared, tagged or archived.

import { follow, get, patch } from "./api.js";
import { announce, h, moment, number, progressBar, replace, show, stateLabel } from "./dom.js";
import { SORTS, STATES, addressOf, chosenRuns, filtersOf, tagsOf } from "./filters.js";

export const MOST_COMPARED = 10;
const PAGE = 200; // runs in one answer, and rows that are shown before somebody asks for more
const MOST_RUNS = 5000;
const REDRAW_MILLISECONDS = 500;
const COLUMNS = [["id"], ["status"], ["progress"], ["loss", "wide"], ["eval_loss", "wide"], ["model", "wide"], ["created", "wide"]];
const ENDED = new Set(["succeeded", "failed", "stopped", "interrupted"]); // whose figures are of the whole run

export async function runsPage(signal) {
  const filters = filtersOf(location.hash);
  const runs = new Map();
  const chosen = new Set();
  const rows = new Map(); // what is shown of a run, for as long as nothing about it changes
  let shown = PAGE;
  let loading = 0;

  const body = h("tbody");
  const heads = h("tr");
  const count = h("p", { class: "quiet", role: "status", id: "count" });
  const empty = h("p", { class: "quiet", hidden: true });
  const more = h("button", { class: "plain", hidden: true, onclick: () => { shown += PAGE; draw(); } }, "More runs");
  const bar = filterBar(filters, changed);
  const actions = actionBar(chosen, runs, filters, () => {
    chosen.clear();
    rows.clear(); // their boxes
    draw();
    document.getElementById("search").focus(); // what had the focus is gone
  });
  const sweeps = h("section", { class: "card", "aria-label": "Sweeps", hidden: true });
  const heading = show("Runs", sweeps, h("section", { class: "card", "aria-label": "Runs" }, bar.element, count,
    h("div", { class: "scroll" }, h("table", { class: "runs" }, h("caption", { class: "hidden" }, "Runs"), h("thead", {}, heads), body)),
    empty, h("p", { class: "actions" }, more), actions.element));
  heading.focus();

  function changed(reload) {
    history.replaceState(null, "", addressOf(filters));
    shown = PAGE;
    if (reload) load().catch((error) => (count.textContent = error.message));
    else draw();
  }

  function draw() {
    const found = chosenRuns([...runs.values()], filters);
    const focused = document.activeElement?.id;
    place(body, found.slice(0, shown).map(rowOf));
    replace(heads, h("th", { scope: "col" }, h("span", { class: "hidden" }, "Choose")), ...COLUMNS.map(([name, kind]) => head(name, kind)));
    if (focused && document.activeElement?.id !== focused) document.getElementById(focused)?.focus();
    more.hidden = found.length <= shown;
    const all = [...runs.values()].filter((run) => run.archived === filters.archived).length;
    count.textContent = all ? `${found.length === all ? "" : `${found.length} of `}${all} ${filters.archived ? "archived " : ""}runs` : "";
    empty.hidden = found.length > 0 || loading > 0;
    empty.replaceChildren(...(all ? ["No run fits. Clear the filters to see all."] : filters.archived ? ["No run is archived."]
      : ["There is no run yet. ", h("code", {}, "gemfleet train CONFIG"), " starts one."]));
    bar.offer([...runs.values()]);
    actions.update();
  }

  let drawing = null;
  function drawLater() {
    drawing ??= setTimeout(() => { drawing = null; if (!signal.aborted) draw(); }, REDRAW_MILLISECONDS);
  }

  function head(name, kind) {
    const [title, , highestFirst] = SORTS[name];
    const on = filters.sort === name;
    const sort = () => bar.sort(name, on ? !filters.descending : highestFirst);
    return h("th", { scope: "col", class: kind, "aria-sort": on ? (filters.descending ? "descending" : "ascending") : null },
      h("button", { class: "sort", id: `sort-${name}`, onclick: sort }, title, h("span", { "aria-hidden": "true" }, on ? (filters.descending ? " ↓" : " ↑") : "")));
  }

  function rowOf(run) {
    const known = rows.get(run.id);
    if (known?.run === run) return known.element;
    const element = row(run);
    rows.set(run.id, { run, element });
    return element;
  }

  function row(run) {
    const box = h("input", { type: "checkbox", id: `choose-${run.id}`, "aria-label": `choose ${run.id}`, checked: chosen.has(run.id),
      onchange: ({ target }) => { chosen[target.checked ? "add" : "delete"](run.id); actions.update(); } });
    const { step, total_steps: total } = run.progress;
    const tags = tagsOf(run).map((tag) => h("button", { class: "tag", id: `tag-${run.id}-${tag}`, title: `only runs with ${tag}`,
      onclick: () => bar.addTag(tag) }, tag));
    return h("tr", {}, h("td", {}, box),
      h("td", { class: "id" }, h("a", { href: `#/runs/${run.id}`, id: `run-${run.id}` }, run.id), ...(tags.length ? [h("div", { class: "tags" }, ...tags)] : [])),
      h("td", {}, stateLabel(run.status)),
      h("td", {}, progressBar(run.progress, `progress of ${run.id}`), h("small", { class: "quiet" }, `${step}/${total}`)),
      h("td", { class: "wide" }, number(run.loss)), h("td", { class: "wide" }, number(run.eval_loss)),
      h("td", { class: "wide model" }, run.model ?? "–"), h("td", { class: "wide" }, moment(run.created_at)));
  }

  /** All pages of the list, the newest first; what is there is shown meanwhile. */
  async function load() {
    const turn = ++loading;
    runs.clear();
    let after = "";
    do {
      const page = await get(`/api/v1/runs?limit=${PAGE}&archived=${filters.archived}${after}`);
      if (signal.aborted || turn !== loading) return;
      page.data.forEach((run) => runs.set(run.id, run));
      after = page.has_more && runs.size < MOST_RUNS ? `&after=${page.last_id}` : "";
      draw();
    } while (after);
    loading = 0;
    draw();
  }

  /** Above the runs: the newest sweeps, a line each. */
  async function showSweeps() {
    const { data } = await get("/api/v1/sweeps?limit=5").catch(() => ({ data: [] }));
    sweeps.hidden = data.length === 0;
    replace(sweeps, h("h2", {}, "Sweeps"), h("ul", { class: "reasons" }, ...data.map((sweep) => h("li", {},
      h("a", { href: `#/sweeps/${sweep.id}`, id: `sweep-${sweep.id}` }, sweep.id), " ", stateLabel(sweep.status),
      ` · ${sweep.ended} of ${sweep.wanted} trials`, sweep.best ? ` · best loss ${number(sweep.best.value, 4)}` : ""))));
  }

  await Promise.all([load(), showSweeps()]);
  requestAnimationFrame(() => performance.mark("runs shown"));
  follow("/api/v1/events?metrics=true", signal, async (kind, told) => {
    const known = runs.get(told.run_id);
    if (kind === "metric" && known && !ENDED.has(known.status)) {
      if (told.kind !== "step") runs.set(known.id, { ...known, eval_loss: told.eval_loss });
      else {
        const total = told.total_steps ?? known.progress.total_steps;
        const progress = { ...known.progress, step: told.step, total_steps: total, fraction: total ? told.step / total : 0 };
        runs.set(known.id, { ...known, loss: told.loss, progress });
      }
      drawLater();
    } else if (kind === "event" && ["state", "tagged", "archived"].includes(told.type)) {
      if (told.type === "state") showSweeps();
      const run = await get(`/api/v1/runs/${told.run_id}`);
      runs.set(run.id, run);
      drawLater();
    }
  });
}

/** Search, state, tags, archive and order. `changed(reload)` is called after each change of the filters. */
function filterBar(filters, changed) {
  const search = h("input", { type: "search", id: "search", value: filters.search, placeholder: "name, model, id or tag", autocomplete: "off",
    oninput: () => set({ search: search.value }) });
  const status = select("status", [["", "All"], ["going_on", "Going on"], ["ended", "Ended"],
    ...STATES.map((state) => [state, state.replaceAll("_", " ")])], filters.status, (value) => set({ status: value }));
  const tag = select("tag", [["", "All"]], "", (value) => value && addTag(value));
  const archived = h("input", { type: "checkbox", id: "archived", checked: filters.archived,
    onchange: () => set({ archived: archived.checked }, true) });
  const order = select("order", Object.entries(SORTS).flatMap(([name, [title]]) => [[name, `${title} ↑`], [`-${name}`, `${title} ↓`]]), "",
    (value) => sort(value.replace("-", ""), value.startsWith("-")));
  const tags = h("span", { class: "tags", role: "group", "aria-label": "Chosen tags" });
  const clear = h("button", { class: "plain", id: "clear", onclick: () => {
    const reload = filters.archived;
    search.value = "";
    set({ search: "", status: "", tags: [], archived: false }, reload);
    search.focus();
  } }, "Clear");

  function set(changes, reload = false) {
    Object.assign(filters, changes);
    update();
    changed(reload);
  }
  function sort(name, descending) {
    set({ sort: name, descending });
    announce(`sorted by ${SORTS[name][0]}, ${descending ? "the highest" : "the lowest"} first`);
  }
  function addTag(one) {
    set({ tags: [...new Set([...filters.tags, one])] });
  }
  function update() {
    status.value = filters.status;
    archived.checked = filters.archived;
    order.value = `${filters.descending ? "-" : ""}${filters.sort}`;
    clear.hidden = !(filters.search || filters.status || filters.tags.length || filters.archived);
    replace(tags, ...filters.tags.map((one) => h("button", { class: "tag on", id: `without-${one}`, "aria-label": `no longer only ${one}`,
      onclick: () => set({ tags: filters.tags.filter((other) => other !== one) }) }, `${one} ×`)));
  }
  /** Offer the tags that these runs have. */
  function offer(runs) {
    const known = [...new Set(runs.flatMap(tagsOf))].sort().filter((one) => !filters.tags.includes(one));
    replace(tag, h("option", { value: "" }, "All"), ...known.map((one) => h("option", { value: one }, one)));
    tag.parentElement.hidden = known.length === 0;
  }

  update();
  const element = h("div", { class: "filters", role: "search" }, field("Search", search), field("State", status), field("Tag", tag),
    h("label", { class: "narrow" }, "Order", order), h("label", { class: "check" }, archived, "Archived"), tags, clear);
  return { element, offer, sort, addTag };
}

/** What can be done with the runs that are chosen. `done` is called when it has been done. */
function actionBar(chosen, runs, filters, done) {
  const told = h("span", { role: "status" });
  const problem = h("p", { class: "problem", role: "alert" });
  const compare = h("button", { id: "compare", onclick: () => (location.hash = `#/compare/${[...chosen].join(",")}`) }, "Compare");
  const archive = h("button", { class: "plain", id: "archive", onclick: () => change(() => ({ archived: !filters.archived })) });
  const tag = h("input", { id: "new-tag", placeholder: "key=value", autocomplete: "off", "aria-label": "tag to set, or key= to take one away" });
  const form = h("form", { onsubmit: (event) => { event.preventDefault(); setTag(); } }, tag, h("button", { class: "plain" }, "Tag"));
  const none = h("button", { class: "plain", id: "none", onclick: done }, "Choose none");
  const element = h("div", { class: "chosen", hidden: true, role: "region", "aria-label": "Chosen runs" }, told, compare, archive, form, none, problem);

  async function change(changes) {
    const count = chosen.size;
    problem.textContent = "";
    try {
      for (const id of chosen) runs.set(id, await patch(`/api/v1/runs/${encodeURIComponent(id)}`, changes()));
      announce(`${count} runs changed`);
      done();
    } catch (error) {
      problem.textContent = error.message;
    }
  }
  function setTag() {
    const [, key, value] = tag.value.trim().match(/^([^=]+)=(.*)$/) ?? [];
    if (!key) problem.textContent = `“${tag.value}” is no tag; give key=value, or key= to take one away`;
    else change(() => ({ tags: { [key]: value || null } })).then(() => (tag.value = ""));
  }
  function update() {
    element.hidden = chosen.size === 0;
    told.textContent = `${chosen.size} chosen${chosen.size > MOST_COMPARED ? "" : `: ${[...chosen].join(", ")}`}`;
    compare.disabled = chosen.size < 2 || chosen.size > MOST_COMPARED;
    compare.title = compare.disabled ? `choose 2 to ${MOST_COMPARED} runs` : "";
    archive.textContent = filters.archived ? "Back into the list" : "Archive";
  }
  return { element, update };
}

function field(name, input) {
  return h("label", {}, name, input);
}

function select(id, options, value, take) {
  const element = h("select", { id, onchange: () => take(element.value) }, ...options.map(([key, text]) => h("option", { value: key }, text)));
  element.value = value;
  return element;
}

/** Put these elements, in this order, in place of what is there. What stays is not touched. */
function place(container, elements) {
  let at = container.firstChild;
  for (const element of elements) {
    if (element === at) at = at.nextSibling;
    else container.insertBefore(element, at);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}
