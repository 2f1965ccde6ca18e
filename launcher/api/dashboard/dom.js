// Small helpers to build and change the page. Text is always set as text, never as markup.

/** An element: h("p", {class: "quiet"}, "text", otherElement). Properties that begin with "on" are listeners. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Show a page: its heading takes the focus, so that a screen reader begins there. */
export function show(title, ...children) {
  document.title = `${title} · gemfleet`;
  const heading = h("h1", { tabindex: "-1" }, title);
  const main = document.getElementById("content");
  main.replaceChildren(heading, ...children);
  return heading;
}

/** Replace what is inside; what is equal stays, so that no click is lost, and the focus stays with the element of the same id. */
export function replace(container, ...children) {
  const focused = container.contains(document.activeElement) ? document.activeElement.id : "";
  const before = [...container.childNodes];
  children.forEach((child, index) => {
    if (index >= before.length) container.append(child);
    else if (!before[index].isEqualNode(child)) before[index].replaceWith(child);
  });
  before.slice(children.length).forEach((node) => node.remove());
  if (focused && document.activeElement?.id !== focused) document.getElementById(focused)?.focus();
}

export function announce(text) {
  document.getElementById("announcements").textContent = text;
}

export function table(caption, columns, body, className = "") {
  const heads = columns.map(([text, kind]) => h("th", { scope: "col", class: kind ?? null }, text));
  return h("div", { class: "scroll" },
    h("table", { class: className }, h("caption", {}, caption), h("thead", {}, h("tr", {}, ...heads)), body));
}

export function stateLabel(state) {
  return h("span", { class: `state ${state}` }, state.replaceAll("_", " "));
}

export function progressBar(progress, label) {
  return h("progress", { max: "1", value: String(progress.fraction), "aria-label": label });
}

export function moment(seconds) {
  return seconds ? new Date(seconds * 1000).toLocaleString() : "–";
}

export function clock(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60];
  const padded = String(rest).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${padded}` : `${minutes}:${padded}`;
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let index = 0;
  for (; bytes >= 1024 && index < units.length - 1; index++) bytes /= 1024;
  return `${index ? bytes.toFixed(1) : bytes} ${units[index]}`;
}

export function number(value, digits = 3) {
  return value === null || value === undefined ? "–" : value.toLocaleString(undefined, { maximumFractionDigits: digits });
}

/** A figure's value as its unit is read. */
export function quantity(value, unit) {
  if (unit === "bytes") return size(value);
  if (unit === "s") return clock(value);
  return number(value, unit.endsWith("/s") ? 0 : 4);
}
