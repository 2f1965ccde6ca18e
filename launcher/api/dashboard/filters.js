// Which runs the first page shows, and in which order. The part of the address after `#` keeps it, so a link shows the same.

const OVER = ["succeeded", "failed", "stopped", "interrupted"];
const GROUPS = { going_on: (state) => !OVER.includes(state), ended: (state) => OVER.includes(state) };
export const STATES = ["queued", "preflight", "staging", "preparing_data", "finding_batch", "training", "restarting", "publishing", ...OVER];

/** What the runs can be sorted by: a title, the value of a run, and whether the highest comes first. */
export const SORTS = {
  id: ["Run", (run) => run.id, false],
  status: ["State", (run) => STATES.indexOf(run.status), false],
  progress: ["Progress", (run) => run.progress.fraction, true],
  loss: ["Loss", (run) => run.loss, false],
  eval_loss: ["Evaluation loss", (run) => run.eval_loss, false],
  model: ["Model", (run) => run.model, false],
  created: ["Created", (run) => run.created_at, true],
};
const NEWEST = "created";

/** The filters of an address like `#/?q=small&status=failed&tag=team%3Dsearch&archived=1&sort=-loss`. */
export function filtersOf(hash) {
  const found = new URLSearchParams(hash.split("?")[1] ?? "");
  const [, down, sort] = (found.get("sort") ?? "").match(/^(-?)(.*)$/);
  const known = Object.hasOwn(SORTS, sort);
  return {
    search: found.get("q") ?? "", status: found.get("status") ?? "", tags: found.getAll("tag"), archived: found.has("archived"),
    sort: known ? sort : NEWEST, descending: known ? Boolean(down) : SORTS[NEWEST][2],
  };
}

/** The address of these filters. What everybody sees anyway is left out. */
export function addressOf({ search, status, tags, archived, sort, descending }) {
  const said = new URLSearchParams();
  if (search) said.set("q", search);
  if (status) said.set("status", status);
  tags.forEach((tag) => said.append("tag", tag));
  if (archived) said.set("archived", "1");
  if (sort !== NEWEST || descending !== SORTS[NEWEST][2]) said.set("sort", `${descending ? "-" : ""}${sort}`);
  const text = said.toString();
  return text ? `#/?${text}` : "#/";
}

export function tagsOf(run) {
  return Object.entries(run.tags).map(([key, value]) => `${key}=${value}`).sort();
}

/** The runs that fit, in order; those without the value come last. */
export function chosenRuns(runs, filters) {
  const words = filters.search.toLowerCase().split(/\s+/).filter(Boolean);
  const [, valueOf] = SORTS[filters.sort];
  const sign = filters.descending ? -1 : 1;
  const compare = ([a], [b]) => {
    const empty = (value) => value === null || value === undefined;
    if (empty(a) || empty(b)) return empty(a) - empty(b);
    return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
  };
  const fitting = runs.filter((run) => fits(run, words, filters));
  return fitting.map((run) => [valueOf(run), run]).sort(compare).map(([, run]) => run);
}

function fits(run, words, { status, tags, archived }) {
  if (run.archived !== archived) return false;
  if (status && run.status !== status && !GROUPS[status]?.(run.status)) return false;
  const own = tagsOf(run);
  if (!tags.every((tag) => own.includes(tag))) return false;
  const text = [run.id, run.name, run.model, run.sweep, ...own].join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}
