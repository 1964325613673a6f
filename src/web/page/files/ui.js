// Shared building blocks of the page: elements, texts, times, menus, dialogs, forms.

const settings = JSON.parse(document.getElementById("settings").textContent);
const { lang: language, dir: direction } = document.documentElement;
const plural = new Intl.PluralRules(language);

/** The host's settings: `title`, `docs`, `back` and the address `example`. */
export const host = settings;

// A value of the other direction must not reorder the sentence around it.
const RTL = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/;
const isolated = (value) =>
  typeof value === "number" ? value.toLocaleString(language)
  : direction === "rtl" || RTL.test(value) ? `\u2068${value}\u2069`
  : value;

function template(name, values) {
  const form = "count" in values ? `${name}.${plural.select(values.count)}` : name;
  return settings.text[form] ?? settings.text[name] ?? name;
}

/** The text of this name, with `{…}` filled in, in the plural form for `count`. */
export const text = (name, values = {}) =>
  template(name, values).replace(/\{(\w+)\}/g, (whole, key) =>
    key in values ? isolated(values[key]) : whole);

/** As `text`, with an element or a list of them in place of `{slot}`. */
export function sentence(name, slot, elements) {
  const [before, after] = template(name, {}).split(`{${slot}}`);
  return [before, ...[elements].flat(), after];
}

/** The text for an error. */
export const refusalText = ({ code }) =>
  settings.text[`error.${code}`] ?? settings.text["error.unexpected"];

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

/**
 * An element. Functions become listeners, `true` an empty attribute; `false` and
 * `null` set nothing. Texts become text nodes, so markup is never parsed.
 */
export const h = (name, attributes = {}, ...children) =>
  fill(document.createElement(name), attributes, children);

/** As `h`, for a part of a drawing. */
export const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

export const button = (label, onclick, attributes = {}) =>
  h("button", { type: "button", click: onclick, ...attributes }, label);

let ids = 0;
export const newId = () => `id${++ids}`;

/** Several values, each isolated from the text around it, or what stands for none. */
export const separate = (values, none) =>
  values.length > 0 ? values.flatMap((value, at) => [at > 0 && ", ", h("bdi", {}, value)]) : [none];

export const quiet = (...content) => h("span", { class: "quiet" }, ...content);
export const badge = (kind, label) => h("span", { class: `badge ${kind}` }, label);

// Times, in the user's zone or in UTC.

let inUtc = false;
const zone = new Intl.DateTimeFormat().resolvedOptions().timeZone;

function formatter(style) {
  const [local, utc] = [undefined, "UTC"].map(
    (timeZone) => new Intl.DateTimeFormat(language, { ...style, timeZone }));
  return (date) => (inUtc ? utc : local).format(date);
}

export const exact = formatter({ dateStyle: "medium", timeStyle: "medium" });
export const brief = formatter({ dateStyle: "short", timeStyle: "short" });
export const day = formatter({ dateStyle: "medium" });
const relative = new Intl.RelativeTimeFormat(language, { numeric: "auto" });
const UNITS = [
  ["year", 31_557_600],
  ["month", 2_629_800],
  ["week", 604_800],
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
];

function distance(date) {
  const seconds = (date - Date.now()) / 1000;
  const unit = UNITS.find(([, size]) => Math.abs(seconds) >= size);
  return unit
    ? relative.format(Math.trunc(seconds / unit[1]), unit[0])
    : relative.format(0, "second");
}

/** “In 30 minutes”, in the largest unit that is exact. */
export function ahead(seconds) {
  const [unit, size] = UNITS.slice(3).find(([, size]) => seconds % size === 0) ?? ["second", 1];
  return new Intl.RelativeTimeFormat(language).format(seconds / size, unit);
}

/** The instant that was typed, in the zone in which times are shown; `""` if there is none. */
export function instantOf(typed) {
  const date = new Date(inUtc ? `${typed}Z` : typed);
  return Number.isNaN(date.getTime()) ? "" : date.toISOString();
}

const utc = (date) => date.toISOString().replace("T", " ").replace("Z", " UTC");

/** How each `time` on the page is shown, to show it again. */
const times = new WeakMap();

function time(instant, shown, hover) {
  const date = new Date(instant);
  const element = h("time", { datetime: instant });
  const show = () => {
    if (element.textContent !== shown(date)) element.textContent = shown(date);
    element.title = hover(date);
  };
  times.set(element, show);
  show();
  return element;
}

function showTimes() {
  for (const element of document.querySelectorAll("time")) times.get(element)?.();
}
setInterval(showTimes, 30_000);

/** “5 minutes ago”, with the exact time on hover. */
export const ago = (instant) => time(instant, distance, exact);
/** The day, with the exact time on hover. */
export const onDay = (instant) =>
  time(instant, day, (date) => `${exact(date)} (${distance(date)})`);
/** The exact time, with the exact one in UTC on hover. */
export const exactly = (instant) => time(instant, exact, utc);

/** Says in which zone times are, and changes it for the whole page; then runs `after`. */
export function zoneChoice(after) {
  const label = h("span", {});
  if (zone === "UTC") return h("span", { class: "zone quiet" }, text("zone", { zone }));
  const change = button("", () => {
    inUtc = !inUtc;
    showTimes();
    document.querySelectorAll(".zone").forEach((it) => it.dispatchEvent(new Event("zone")));
    after?.();
  }, { class: "link" });
  const show = () => {
    label.textContent = text("zone", { zone: inUtc ? "UTC" : zone });
    change.textContent = text(inUtc ? "zone.local" : "zone.utc");
  };
  show();
  return h("span", { class: "zone quiet", zone: show }, label, " ", change);
}

/** Announces a text to screen readers, in the open dialog if there is one. */
export function announce(message) {
  const regions = document.querySelectorAll("dialog[open] [data-live], body > [data-live]");
  const region = [...regions].findLast((it) => it.closest("dialog[open]")) ?? regions[0];
  if (region) region.textContent = message;
}

export const liveRegion = () =>
  h("div", { role: "status", "aria-live": "polite", "data-live": true, class: "unseen" });

/** A button with a menu of the `[label, action, attributes]` that `items` returns when it opens. */
export function menuButton(label, items) {
  const list = h("div", { role: "menu", hidden: true, "aria-label": label });
  const opener = button("⋯", () => (list.hidden ? show(0) : close()), {
    class: "icon",
    "aria-haspopup": "menu",
    "aria-expanded": "false",
    "aria-label": label,
  });
  const box = h("div", { class: "menu" }, opener, list);
  const outside = (event) => box.contains(event.target) || close();

  function show(index) {
    const item = ([name, action, attributes]) =>
      button(name, () => (close(), action()), { role: "menuitem", tabindex: "-1", ...attributes });
    list.replaceChildren(...items().map(item));
    list.hidden = false;
    list.classList.toggle("up", list.getBoundingClientRect().bottom > innerHeight);
    opener.setAttribute("aria-expanded", "true");
    [...list.children].at(index).focus();
    document.addEventListener("pointerdown", outside);
  }
  function close() {
    list.hidden = true;
    list.classList.remove("up");
    opener.setAttribute("aria-expanded", "false");
    document.removeEventListener("pointerdown", outside);
  }
  opener.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    event.preventDefault();
    show(event.key === "ArrowDown" ? 0 : -1);
  });
  list.addEventListener("keydown", (event) => {
    const all = [...list.children];
    const at = all.indexOf(document.activeElement);
    const target = {
      ArrowDown: (at + 1) % all.length,
      ArrowUp: at - 1,
      Home: 0,
      End: -1,
    }[event.key];
    if (target !== undefined) {
      event.preventDefault();
      all.at(target).focus();
    } else if (event.key === "Escape") {
      close();
      opener.focus();
    } else if (event.key === "Tab") {
      close();
    }
  });
  return box;
}

/**
 * A modal dialog, which says that it is loading until its body is filled. Escape closes
 * it unless `keep` prevents that. Closing removes it and its contents from the document.
 */
export function openDialog(title, attributes = {}) {
  const heading = h("h2", { id: newId(), tabindex: "-1" }, title);
  const body = h("div", { class: "dialog-body" }, h("p", { class: "state" }, text("loading")));
  const dialog = h(
    "dialog",
    { "aria-labelledby": heading.id, ...attributes },
    heading,
    body,
    liveRegion(),
  );
  const handle = {
    dialog,
    body,
    keep: () => false,
    title: (value) => (heading.textContent = value),
    focusTitle: () => heading.focus(),
    close: () => dialog.close(),
    closed: null,
  };
  handle.closed = new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve();
    });
  });
  // A browser lets a page cancel one Escape, and closes the dialog at the next. A cancelled
  // key press never requests to close.
  const stay = (event) => handle.keep() && event.preventDefault();
  dialog.addEventListener("cancel", stay);
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stay(event);
    // Enter that is held since it opened the dialog does not confirm it.
    if (event.key === "Enter" && event.repeat) event.preventDefault();
  });
  document.body.append(dialog);
  dialog.showModal();
  return handle;
}

/** Errors after which it is unknown whether a change was made. */
const IN_DOUBT = ["offline", "unavailable", "unexpected"];

/** A place for an error, which screen readers announce. */
export function alertBox() {
  const box = h("div", { class: "alert", role: "alert", hidden: true });
  return {
    element: box,
    show(message, ...more) {
      box.replaceChildren(h("span", {}, message), ...more);
      box.hidden = !message;
      if (message) box.scrollIntoView({ block: "nearest" });
    },
  };
}

/** A labelled control with its hint and error. */
export function field(label, control, { hint } = {}) {
  control.id ||= newId();
  const error = h("p", { class: "field-error", id: newId(), hidden: true });
  const hintLine = h("p", { class: "hint", id: newId(), hidden: !hint }, hint ?? "");
  control.setAttribute("aria-describedby", `${hintLine.id} ${error.id}`);
  return {
    element: h(
      "div",
      { class: "field" },
      h("label", { for: control.id }, label),
      control,
      hintLine,
      error,
    ),
    control,
    hint(message, warns = false) {
      if (warns !== hintLine.classList.contains("warns")) announce(warns ? message : "");
      hintLine.textContent = message;
      hintLine.hidden = !message;
      hintLine.classList.toggle("warns", warns);
    },
    error(message) {
      error.textContent = message;
      error.hidden = !message;
      control.setAttribute("aria-invalid", String(Boolean(message)));
    },
  };
}

/** A `select` with these `[value, label]`. */
export const choice = (options, attributes = {}) =>
  h("select", attributes, options.map(([value, label]) => h("option", { value }, label)));

/** What a form holds, to notice that something was entered. */
function entered(form) {
  const value = (it) => (["checkbox", "radio"].includes(it.type) ? it.checked : it.value);
  const values = [...form.querySelectorAll("input, select")].map(value);
  const entries = [...form.querySelectorAll(".entries code")].map((it) => it.textContent);
  return JSON.stringify([values, entries]);
}

/**
 * A form in a dialog: Cancel, and a button that runs `submit`, one call at a time.
 * Errors of `submit` go to `fail`, or are shown at the top. The dialog stays open
 * meanwhile, since the response may contain a key. With `asks`, Escape asks before it
 * discards what was entered.
 */
export function form(handle, { label, danger, fields, submit, fail, asks }) {
  const alert = alertBox();
  const send = h("button", { type: "submit", class: danger ? "danger" : "primary" }, label);
  const cancel = button(text("cancel"), () => handle.close());
  const element = h(
    "form",
    { novalidate: true, autocomplete: "off" },
    alert.element,
    fields,
    h("div", { class: "buttons" }, cancel, send),
  );
  let busy = false;
  const before = entered(element);
  let back = null;
  const stay = () => {
    alert.show("");
    back.focus();
    back = null;
  };
  handle.keep = () => {
    if (busy || !asks || entered(element) === before) return busy;
    // Escape at the question keeps what was entered.
    if (back && alert.element.contains(document.activeElement)) {
      stay();
      return true;
    }
    back = document.activeElement;
    const discard = button(text("discard.yes"), () => handle.close());
    alert.show(text("discard"), discard, button(text("discard.no"), stay));
    discard.focus();
    return true;
  };
  element.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (busy || send.disabled) return;
    busy = cancel.disabled = true;
    element.setAttribute("aria-busy", "true");
    alert.show("");
    try {
      await submit().catch(async (refusal) => {
        if (!(await fail?.(refusal))) throw refusal;
      });
    } catch (refusal) {
      const doubt = IN_DOUBT.includes(refusal.code) ? ` ${text("error.doubt")}` : "";
      alert.show(refusalText(refusal) + doubt);
    } finally {
      busy = cancel.disabled = false;
      element.removeAttribute("aria-busy");
    }
  });
  handle.body.replaceChildren(element);
  return { send, alert };
}
