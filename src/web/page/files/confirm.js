// The dialogs that rotate or delete a key after its name was typed, revoke or enable one, or
// end an old secret. If the key was changed after the page read it, nothing happens.

import * as api from "./api.js";
import { identity } from "./fields.js";
import { showSecret } from "./secret.js";
import { choice, field, form, h, text } from "./ui.js";

/** A dialog for one change; `changed` reads the keys again. */
function changeDialog(handle, kind, key, { changed, body = text(`${kind}.body`), more = [] }, submit) {
  const { send } = form(handle, {
    label: text(`${kind}.submit`),
    danger: kind !== "enable",
    fields: [h("p", {}, body), identity(key), ...more],
    async submit() {
      const { issued, undo } = (await submit()) ?? {};
      changed(text(`${kind}.done`, { name: key.name }), { id: key.id, undo });
      if (issued) showSecret(handle, text("secret.title.rotated"), issued);
      else handle.close();
    },
    fail: ({ code }) => void (code === "stale_revision" && changed()),
  });
  return send;
}

/** As `changeDialog`, after the key's name was typed. */
function confirmDialog(handle, kind, key, options, submit) {
  const input = h("input", {
    type: "text",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
  });
  const typed = field(text("confirm.label", { name: key.name }), input);
  const more = [...(options.more ?? []), typed.element];
  const send = changeDialog(handle, kind, key, { ...options, more }, submit);
  const words = (name) => name.trim().split(/\s+/).join(" ").normalize();
  send.disabled = true;
  input.addEventListener("input", () => (send.disabled = words(input.value) !== words(key.name)));
  input.focus();
}

const HOUR = 3_600;
const OVERLAPS = { "1_hour": HOUR, "24_hours": 24 * HOUR, "7_days": 7 * 24 * HOUR };

/** When the old secret ends: the choices that the host allows. */
function overlapField(max) {
  const allowed = Object.entries(OVERLAPS).filter(([, seconds]) => seconds <= max);
  const options = allowed.map(([name, seconds]) => [seconds, text(`rotate.overlap.${name}`)]);
  if (options.length === 0) options.push([max, text("rotate.overlap.seconds", { count: max })]);
  return field(text("rotate.overlap"), choice([[0, text("rotate.overlap.none")], ...options]));
}

export function rotateDialog(handle, key, { changed, maxOverlap }) {
  const useless = key.status === "revoked" ? "revoked" : key.expired ? "expired" : null;
  const overlap = !useless && maxOverlap > 0 ? overlapField(maxOverlap) : null;
  const warning = useless && h("p", { class: "warning" }, text(`rotate.${useless}`));
  const options = {
    changed,
    body: text(overlap ? "rotate.body.overlap" : "rotate.body"),
    more: [warning, overlap?.element].filter(Boolean),
  };
  confirmDialog(handle, "rotate", key, options, async () => ({
    issued: await api.rotate(key, Number(overlap?.control.value ?? 0)),
  }));
}

/** A change without a typed name. The button has the focus, so that Enter confirms. */
const plainDialog = (handle, kind, key, { changed }, submit) =>
  changeDialog(handle, kind, key, { changed }, submit).focus();

export const endDialog = (handle, key, context) =>
  plainDialog(handle, "end", key, context, async () => void (await api.endPrevious(key)));

function statusDialog(handle, kind, key, context) {
  const [status, before] = kind === "revoke" ? ["revoked", "active"] : ["active", "revoked"];
  plainDialog(handle, kind, key, context, async () => {
    const edited = await api.edit(key, { status });
    return { undo: () => api.edit(edited, { status: before }) };
  });
}

export const revokeDialog = (handle, key, context) => statusDialog(handle, "revoke", key, context);
export const enableDialog = (handle, key, context) => statusDialog(handle, "enable", key, context);

export const deleteDialog = (handle, key, { changed }) =>
  confirmDialog(handle, "delete", key, { changed }, async () => void (await api.remove(key)));
