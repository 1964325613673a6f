// The dialog that edits a key: name, status, scopes and allowlist.

import * as api from "./api.js";
import { allowlistEditor } from "./allowlist.js";
import { nameField, showErrors } from "./fields.js";
import { scopesField } from "./scopes.js";
import { form, h, newId, text } from "./ui.js";

function statusField({ status: initial, expired }) {
  const group = newId();
  const label = (value) =>
    value === "active" && expired ? text("field.status.expired") : text(`field.status.${value}`);
  const radios = ["active", "revoked"].map((value) =>
    h("input", { type: "radio", name: group, value, checked: value === initial, id: newId() }));
  const element = h(
    "fieldset",
    {},
    h("legend", {}, text("field.status")),
    radios.map((radio) =>
      h("label", { class: "choice", for: radio.id }, radio, label(radio.value))),
  );
  return {
    element,
    value: () => radios.find((radio) => radio.checked).value,
    set: (value) => radios.forEach((radio) => (radio.checked = radio.value === value)),
    error: () => {},
  };
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** `theirs` with the additions and removals that `mine` made to `base`. */
function merged(base, mine = base, theirs) {
  const added = mine.filter((entry) => !base.includes(entry) && !theirs.includes(entry));
  const kept = theirs.filter((entry) => mine.includes(entry) || !base.includes(entry));
  return [...kept, ...added];
}

/** As `merged`. A choice made here wins if full access is involved. */
function mergedScopes(base, mine, theirs) {
  if (mine === undefined) return theirs;
  return [base, mine, theirs].includes("all") ? mine : merged(base, mine, theirs);
}

export function editDialog(handle, key, { limits, offered, names, changed }) {
  const name = nameField(key.name, names);
  const status = statusField(key);
  const allowlist = allowlistEditor(key.ip_allowlist, limits.max_ips_per_key);
  const scopes = offered && scopesField(offered, key.scopes);

  /** Only the fields changed here, so that others are not overwritten. */
  const changes = (entries) => {
    const entered = {
      name: name.value(),
      status: status.value(),
      ip_allowlist: entries,
      scopes: scopes?.value(),
    };
    return Object.fromEntries(
      Object.entries(entered).filter(([field, value]) => !same(value, key[field])),
    );
  };

  /** Adopts the changes of others, except in fields changed here. */
  async function meet() {
    const mine = changes(allowlist.entries() ?? key.ip_allowlist);
    const current = await api.show(key);
    if (!("name" in mine)) name.set(current.name);
    if (!("status" in mine)) status.set(current.status);
    allowlist.set(merged(key.ip_allowlist, mine.ip_allowlist, current.ip_allowlist));
    scopes?.set(current.scopes, mergedScopes(key.scopes, mine.scopes, current.scopes));
    key = current;
    changed();
    alert.show(
      text("edit.conflict", {
        name: current.name,
        status: text(`status.${current.status}`),
        count: current.ip_allowlist.length,
      }),
    );
  }

  const { alert } = form(handle, {
    label: text("edit.submit"),
    asks: true,
    fields: [name.element, status.element, scopes?.element, allowlist.element].filter(Boolean),
    async submit() {
      const entries = allowlist.entries();
      if (!name.check()) return name.control.focus();
      if (scopes && !scopes.check()) return scopes.focus();
      if (!entries) return allowlist.focus();
      const patch = changes(entries);
      if (Object.keys(patch).length === 0) return alert.show(text("edit.same"));
      const edited = await api.edit(key, patch);
      changed(text("edit.done", { name: edited.name }), { id: key.id });
      handle.close();
    },
    async fail(refusal) {
      if (refusal.code !== "stale_revision") {
        return showErrors(refusal, { name, status, ip_allowlist: allowlist, scopes });
      }
      await meet();
      return true;
    },
  });
  name.control.focus();
}
