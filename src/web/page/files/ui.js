// Shared building blocks of the page: elements, texts, times, dialogs.

const settings = JSON.parse(document.getElementById("settings").textContent);
const language = document.documentElement.lang;

/** The host's settings: `title`, `docs`, `back` and the address `example`. */
export const host = settings;

/** The text of this name, with `{…}` filled in. */
export function text(name, values = {}) {
  const template = settings.text[name] ?? name;
  return template.replace(/\{(\w+)\}/g, (whole, key) => String(values[key] ?? whole));
}

/** The text for an error. */
export const refusalText = ({ code }) =>
  settings.text[`error.${code}`] ?? settings.text["error.unexpected"];

/**
 * An element. Functions become listeners, `true` an empty attribute; `false` and
 * `null` set nothing. Texts become text nodes, so markup is never parsed.
 */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

export const button = (label, onclick, attributes = {}) =>
  h("button", { type: "button", click: onclick, ...attributes }, label);

let ids = 0;
export const newId = () => `id${++ids}`;

const exact = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "medium" });
const day = new Intl.DateTimeFormat(language, { dateStyle: "medium" });
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

const utc = (date) => date.toISOString().replace("T", " ").replace("Z", " UTC");

function time(instant, shown, hover) {
  const date = new Date(instant);
  return h("time", { datetime: instant, title: hover(date) }, shown(date));
}

/** “5 minutes ago”, with the exact local time on hover. */
export const ago = (instant) => time(instant, distance, (date) => exact.format(date));
/** The day, with the exact local time on hover. */
export const onDay = (instant) =>
  time(instant, (date) => day.format(date), (date) => `${exact.format(date)} (${distance(date)})`);
/** The exact local time, with the exact one in UTC on hover. */
export const exactly = (instant) => time(instant, (date) => exact.format(date), utc);

/** Announces a text to screen readers, in the open dialog if there is one. */
export function announce(message) {
  const regions = document.querySelectorAll("dialog[open] [data-live], body > [data-live]");
  const region = [...regions].findLast((it) => it.closest("dialog[open]")) ?? regions[0];
  if (region) region.textContent = message;
}

export const liveRegion = () =>
  h("div", { role: "status", "aria-live": "polite", "data-live": true, class: "unseen" });

/**
 * A modal dialog. Escape closes it unless `keep` prevents that. Closing removes it
 * and its contents from the document.
 */
export function openDialog(title, attributes = {}) {
  const heading = h("h2", { id: newId(), tabindex: "-1" }, title);
  const body = h("div", { class: "dialog-body" });
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
  dialog.addEventListener("keydown", (event) => event.key === "Escape" && stay(event));
  document.body.append(dialog);
  dialog.showModal();
  return handle;
}

/** Errors after which it is unknown whether a change was made. */
const IN_DOUBT = ["offline", "unavailable", "unexpected"];

/** A place for an error, which screen readers announce. */
export function alertBox() {
  const box = h("p", { class: "alert", role: "alert", hidden: true });
  return {
    element: box,
    show(message) {
      box.textContent = message;
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
    hint(message) {
      hintLine.textContent = message;
      hintLine.hidden = !message;
    },
    error(message) {
      error.textContent = message;
      error.hidden = !message;
      control.setAttribute("aria-invalid", String(Boolean(message)));
    },
  };
}

/**
 * A form in a dialog: Cancel, and a button that runs `submit`, one call at a time.
 * Errors of `submit` go to `fail`, or are shown at the top. The dialog stays open
 * meanwhile, since the response may contain a key.
 */
export function form(handle, { label, danger, fields, submit, fail }) {
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
  handle.keep = () => busy;
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
  handle.body.append(element);
  return { send, alert };
}
