// The dialog that creates a key: its settings first, then the key itself.

import * as api from "./api.js";
import { allowlistEditor } from "./allowlist.js";
import { nameField, showErrors } from "./fields.js";
import { scopesField } from "./scopes.js";
import { showSecret } from "./secret.js";
import { choice, day, field, form, text } from "./ui.js";

const EXPIRATIONS = ["1_day", "1_week", "1_month", "3_months", "1_year", "never"];
const DEFAULT = "3_months";

const DAY_MS = 86_400_000;
const DAYS = { "1_day": 1, "1_week": 7 };
const MONTHS = { "1_month": 1, "3_months": 3, "1_year": 12 };

/** The day that an expiration comes to, by the service's rule. */
function endOf(expiration) {
  const end = new Date();
  const months = MONTHS[expiration];
  if (!months) return new Date(end.getTime() + DAYS[expiration] * DAY_MS);
  const [year, month] = [end.getUTCFullYear(), end.getUTCMonth() + months];
  const last = new Date(Date.UTC(year, month + 1, 0)).getUTCDate();
  end.setUTCFullYear(year, month, Math.min(end.getUTCDate(), last));
  return end;
}

function environmentField(environments) {
  const options = environments.map(({ name, prefix }) => [name, `${name} (${prefix}…)`]);
  const line = field(text("field.environment"), choice(options));
  return { ...line, value: () => line.control.value };
}

function expirationField() {
  const options = EXPIRATIONS.map((value) => [value, text(`expiration.${value}`)]);
  const line = field(text("field.expiration"), choice(options));
  const value = () => line.control.value;
  const show = () => line.hint(value() === "never"
    ? text("expiration.never.hint")
    : text("expiration.until", { day: day(endOf(value())) }));
  line.control.value = DEFAULT;
  line.control.addEventListener("change", show);
  show();
  return { ...line, value };
}

export function createDialog(handle, _, { limits, environments, offered, names, changed }) {
  const name = nameField("", names);
  const expiration = expirationField();
  const allowlist = allowlistEditor([], limits.max_ips_per_key);
  const environment = environments.length > 0 && environmentField(environments);
  const scopes = offered && scopesField(offered);

  // If the answer is lost, another attempt does not create another key.
  const once = crypto.getRandomValues(new Uint32Array(4)).join("-");
  form(handle, {
    label: text("create.submit"),
    asks: true,
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
        expiration: expiration.value(),
        ip_allowlist: entries,
        environment: environment ? environment.value() : undefined,
        scopes: scopes?.value(),
      }, once);
      changed(text("create.done", { name: issued.key.name }), { id: issued.key.id, isNew: true });
      showSecret(handle, text("secret.title"), issued);
    },
    fail(refusal) {
      if (refusal.code === "already_created") changed();
      return showErrors(refusal, { name, environment, expiration, ip_allowlist: allowlist, scopes });
    },
  });
  name.control.focus();
}
