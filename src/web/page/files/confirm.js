// The dialogs that rotate or delete a key after its name was typed, or end an old secret.

import * as api from "./api.js";
import { showSecret } from "./secret.js";
import { field, form, h, openDialog, text } from "./ui.js";

function confirmDialog(kind, key, act, { body = text(`${kind}.body`), more = [] } = {}) {
  const handle = openDialog(text(`${kind}.title`, { name: key.name }));
  const input = h("input", {
    type: "text",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
  });
  const typed = field(text("confirm.label", { name: key.name }), input);
  const { element, send } = form(handle, {
    label: text(`${kind}.submit`),
    danger: true,
    fields: [h("p", {}, body), ...more, typed.element],
    submit: () => act(handle),
  });
  const words = (name) => name.trim().split(/\s+/).join(" ").normalize();
  const matches = () => words(input.value) === words(key.name);
  send.disabled = true;
  input.addEventListener("input", () => (send.disabled = !matches()));
  handle.body.append(element);
  input.focus();
  return handle.closed;
}

const HOUR = 3_600;
const OVERLAPS = { "1_hour": HOUR, "24_hours": 24 * HOUR, "7_days": 7 * 24 * HOUR };

/** When the old secret ends: the choices that the host allows. */
function overlapField(max) {
  const allowed = Object.entries(OVERLAPS).filter(([, seconds]) => seconds <= max);
  const option = (value, label) => h("option", { value }, label);
  const choice = h(
    "select",
    {},
    option(0, text("rotate.overlap.none")),
    allowed.map(([name, seconds]) => option(seconds, text(`rotate.overlap.${name}`))),
    allowed.length === 0 && option(max, text("rotate.overlap.seconds", { count: max })),
  );
  return field(text("rotate.overlap"), choice);
}

export function rotateDialog(key, { changed, maxOverlap }) {
  const works = key.status === "active" && !key.expired;
  const overlap = works && maxOverlap > 0 ? overlapField(maxOverlap) : null;
  const rotate = async (handle) => {
    const issued = await api.rotate(key, key.name, Number(overlap?.control.value ?? 0));
    changed(text("rotate.done", { name: key.name }));
    showSecret(handle, text("secret.title.rotated"), issued);
  };
  const options = overlap ? { body: text("rotate.body.overlap"), more: [overlap.element] } : {};
  return confirmDialog("rotate", key, rotate, options);
}

export function endDialog(key, { changed }) {
  const handle = openDialog(text("end.title", { name: key.name }));
  const { element, send } = form(handle, {
    label: text("end.submit"),
    danger: true,
    fields: [h("p", {}, text("end.body"))],
    async submit() {
      await api.endPrevious(key);
      changed(text("end.done", { name: key.name }));
      handle.close();
    },
  });
  handle.body.append(element);
  send.focus();
  return handle.closed;
}

export const deleteDialog = (key, { changed }) =>
  confirmDialog("delete", key, async (handle) => {
    await api.remove(key, key.name);
    changed(text("delete.done", { name: key.name }));
    handle.close();
  });
