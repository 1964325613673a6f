// The dialogs that rotate or delete a key after its name was typed.

import * as api from "./api.js";
import { showSecret } from "./secret.js";
import { field, form, h, openDialog, text } from "./ui.js";

function confirmDialog(kind, key, act) {
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
    fields: [h("p", {}, text(`${kind}.body`)), typed.element],
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

export const rotateDialog = (key, { changed }) =>
  confirmDialog("rotate", key, async (handle) => {
    const issued = await api.rotate(key, key.name);
    changed(text("rotate.done", { name: key.name }));
    showSecret(handle, text("secret.title.rotated"), issued);
  });

export const deleteDialog = (key, { changed }) =>
  confirmDialog("delete", key, async (handle) => {
    await api.remove(key, key.name);
    changed(text("delete.done", { name: key.name }));
    handle.close();
  });
