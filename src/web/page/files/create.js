// The dialog that creates a key: its settings first, then the key itself.

import * as api from "./api.js";
import { allowlistEditor } from "./allowlist.js";
import { nameField, showErrors } from "./fields.js";
import { scopesField } from "./scopes.js";
import { showSecret } from "./secret.js";
import { field, form, h, openDialog, text } from "./ui.js";

const EXPIRATIONS = ["1_day", "1_week", "1_month", "3_months", "1_year", "never"];
const DEFAULT = "3_months";

function environmentField(environments) {
  const choice = h(
    "select",
    {},
    environments.map(({ name, prefix }) => h("option", { value: name }, `${name} (${prefix}…)`)),
  );
  return { ...field(text("field.environment"), choice), value: () => choice.value };
}

export function createDialog({ limits, environments, offered, count, changed }) {
  const handle = openDialog(text("create.title"));
  const name = nameField("");
  const choice = h(
    "select",
    {},
    EXPIRATIONS.map((value) =>
      h("option", { value, selected: value === DEFAULT }, text(`expiration.${value}`))),
  );
  const expiration = field(text("field.expiration"), choice);
  choice.addEventListener("change", () =>
    expiration.hint(choice.value === "never" ? text("expiration.never.hint") : ""));
  const allowlist = allowlistEditor([], limits.max_ips_per_key);
  const environment = environments.length > 0 && environmentField(environments);
  const scopes = offered && scopesField(offered);

  const { alert } = form(handle, {
    label: text("create.submit"),
    fields: [name, environment, expiration, scopes, allowlist]
      .filter(Boolean)
      .map(({ element }) => element),
    async submit() {
      const entries = allowlist.entries();
      if (!name.check()) return name.control.focus();
      if (scopes && !scopes.check()) return scopes.focus();
      if (!entries) return allowlist.focus();
      const issued = await api.create({
        name: name.value(),
        expiration: choice.value,
        ip_allowlist: entries,
        environment: environment ? environment.value() : undefined,
        scopes: scopes?.value(),
      });
      changed(text("create.done", { name: issued.key.name }));
      showSecret(handle, text("secret.title"), issued);
    },
    fail: (refusal) =>
      showErrors(refusal, { name, environment, expiration, ip_allowlist: allowlist, scopes }),
  });
  if (count >= limits.max_keys) alert.show(text("create.full", { max: limits.max_keys }));
  name.control.focus();
  return handle.closed;
}
