// Opens the dialogs, one at a time, each with an address, so that Back closes it.

import { openDialog, text } from "./ui.js";

const DIALOGS = {
  create: () => import("./create.js").then((it) => it.createDialog),
  edit: () => import("./edit.js").then((it) => it.editDialog),
  rotate: () => import("./confirm.js").then((it) => it.rotateDialog),
  end: () => import("./confirm.js").then((it) => it.endDialog),
  revoke: () => import("./confirm.js").then((it) => it.revokeDialog),
  enable: () => import("./confirm.js").then((it) => it.enableDialog),
  delete: () => import("./confirm.js").then((it) => it.deleteDialog),
  audit: () => import("./audit.js").then((it) => it.auditDialog),
};

/** The dialog that is open, and its address. */
let current = null;

const addressOf = (action, key) =>
  key ? `#key=${key.id}${action === "edit" ? "" : `&${action}`}` : `#${action}`;

/** The key and the dialog that the page's address names: only one that changes nothing at once. */
export function wanted() {
  const [, id, audit] = /^#key=([\w-]+)(&audit)?$/.exec(location.hash) ?? [];
  if (!id && /^#(key=|create$)/.test(location.hash)) leave(location.hash);
  return { id, action: audit ? "audit" : "edit" };
}

// An entry of the history that a dialog has left is used by the next one.
function enter(address) {
  if (location.hash === address) return;
  const isLeft = history.state?.left;
  const state = { ...history.state, left: false };
  if (isLeft) history.replaceState(state, "", address);
  else history.pushState(state, "", address);
}

/** Takes the address of a dialog away; its entry is used again. */
export function leave(address) {
  if (location.hash !== address) return;
  history.replaceState({ ...history.state, left: true }, "", location.pathname + location.search);
}

addEventListener("popstate", () => {
  if (!current || location.hash === current.address) return;
  // The dialog stays, for instance since it shows a key.
  if (current.handle.keep()) history.pushState(history.state, "", current.address);
  else current.handle.close();
});

/** Opens a dialog, and returns once it is closed. */
export async function openDialogFor(action, key, context) {
  const title = text(`${action}.title`, key ? { name: key.name } : {});
  const handle = openDialog(title, { class: action === "audit" ? "wide" : null });
  const address = addressOf(action, key);
  current = { handle, address };
  enter(address);
  try {
    const show = await DIALOGS[action]();
    if (handle.dialog.open) show(handle, key, context);
    await handle.closed;
  } finally {
    current = null;
    leave(address);
    if (handle.dialog.open) handle.close();
  }
}
