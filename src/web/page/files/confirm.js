// The dialogs that rotate or delete a key after its name was typed, or end an old secret.
// If the key was changed after the page read it, nothing happens.

import * as api from "./api.js";
import { showSecret } from "./secret.js";
import { field, form, h, openDialog, text } from "./ui.js";

/** A dialog for one change; `changed` reads the keys again. */
function changeDialog(kind, key, { changed, body = text(`${kind}.body`), more = [] }, submit) {
  const handle = openDialog(text(`${kind}.title`, { name: key.name }));
  const { send } = form(handle, {
    label: text(`${kind}.submit`),
    danger: true,
    fields: [h("p", {}, body), ...more],
    async submit() {
      const issued = await submit();
      changed(text(`${kind}.done`, { name: key.name }));
      if (issued) showSecret(handle, text("secret.title.rotated"), issued);
      else handle.close();
    },
    fail: ({ code }) => void (code === "stale_revision" && changed()),
  });
  return { handle, send };
}

/** As `changeDialog`, after the key's name was typed. */
function confirmDialog(kind, key, options, submit) {
  const input = h("input", {
    type: "text",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
  });
  const typed = field(text("confirm.label", { name: key.name }), input);
  const more = [...(options.more ?? []), typed.element];
  const { handle, send } = changeDialog(kind, key, { ...options, more }, submit);
  const words = (name) => name.trim().split(/\s+/).join(" ").normalize();
  send.disabled = true;
  input.addEventListener("input", () => (send.disabled = words(input.value) !== words(key.name)));
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
  const more = overlap ? { body: text("rotate.body.overlap"), more: [overlap.element] } : {};
  return confirmDialog("rotate", key, { changed, ...more }, () =>
    api.rotate(key, Number(overlap?.control.value ?? 0)));
}

export function endDialog(key, { changed }) {
  const { handle, send } = changeDialog("end", key, { changed }, async () => {
    await api.endPrevious(key);
  });
  send.focus();
  return handle.closed;
}

export const deleteDialog = (key, { changed }) =>
  confirmDialog("delete", key, { changed }, () => api.remove(key));
