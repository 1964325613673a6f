// The dialogs that rotate or delete a key after its name was typed, revoke or enable one, or
// end an old secret. If the key was changed after the page read it, nothing happens.

import * as api from "./api.js";
import { identity } from "./fields.js";
import { showSecret } from "./secret.js";
import { ahead, choice, field, form, h, text } from "./ui.js";

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
  // A copied name may bring the marks that isolate it.
  const words = (name) =>
    name.replace(/[\u2066-\u2069]/g, "").trim().split(/\s+/).join(" ").normalize();
  send.disabled = true;
  input.addEventListener("input", () => (send.disabled = words(input.value) !== words(key.name)));
  input.focus();
}

const OVERLAPS = [3_600, 86_400, 7 * 86_400];

/** When the old secret ends: some of the times that the host allows. */
function overlapField(max) {
  const allowed = [...OVERLAPS.filter((seconds) => seconds < max), max];
  const options = allowed.map((seconds) => [seconds, ahead(seconds)]);
  return field(text("rotate.overlap"), choice([[0, text("rotate.overlap.none")], ...options]));
}

export function rotateDialog(handle, key, { changed, maxOverlap }) {
  const useless = key.expired ? "expired" : key.status === "revoked" ? "revoked" : null;
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
const plainDialog = (handle, kind, key, { changed, body }, submit) =>
  changeDialog(handle, kind, key, { changed, body }, submit).focus();

export const endDialog = (handle, key, context) =>
  plainDialog(handle, "end", key, context, async () => void (await api.endPrevious(key)));

function statusDialog(handle, kind, key, context) {
  const [status, before] = kind === "revoke" ? ["revoked", "active"] : ["active", "revoked"];
  const body = kind === "enable" && key.expired ? text("enable.expired") : undefined;
  plainDialog(handle, kind, key, { ...context, body }, async () => {
    const edited = await api.edit(key, { status });
    return { undo: () => api.edit(edited, { status: before }) };
  });
}

export const revokeDialog = (handle, key, context) => statusDialog(handle, "revoke", key, context);
export const enableDialog = (handle, key, context) => statusDialog(handle, "enable", key, context);

export const deleteDialog = (handle, key, { changed }) =>
  confirmDialog(handle, "delete", key, { changed }, async () => void (await api.remove(key)));
