// Shared parts of the forms: the name of a key, which key it is, and the errors of the service.

import { ago, exactly, field, h, onDay, separate, text } from "./ui.js";

const MAX_NAME = 100;

/** The name, with the checks that are possible here; the service makes the rest. */
export function nameField(initial, taken = []) {
  const input = h("input", { type: "text", autocomplete: "off", value: initial });
  const line = field(text("field.name"), input, { hint: text("field.name.hint") });
  const value = () => input.value.trim();
  const check = () => {
    const length = [...value()].length;
    const problem = length === 0 ? "missing" : length > MAX_NAME ? "long" : null;
    line.error(problem ? text(`problem.name.${problem}`) : "");
    return !problem;
  };
  const isTaken = (name) => taken.some((other) => other.toLowerCase() === name.toLowerCase());
  input.addEventListener("input", () => {
    const warns = value() !== initial && isTaken(value());
    line.hint(text(warns ? "field.name.taken" : "field.name.hint"), warns);
    if (input.getAttribute("aria-invalid") === "true" || [...value()].length > MAX_NAME) check();
  });
  return { ...line, value, check, set: (name) => (input.value = name) };
}

const facts = (...pairs) =>
  h("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, ...value]) =>
    h("div", {}, h("dt", {}, text(name)), h("dd", {}, ...value))));

/** Which of several keys with the same name it is. */
export const identity = (key) =>
  facts(
    ["column.key", h("code", {}, `${key.key_prefix}…`)],
    ["created", exactly(key.created_at)],
    ["column.last_used", key.last_used_at ? ago(key.last_used_at) : text("used.never")],
  );

/** What a new secret can be used for. */
export const restrictions = (key) =>
  facts(
    key.environment && ["field.environment", key.environment],
    ["column.expires", key.expires_at ? onDay(key.expires_at) : text("expires.never")],
    ["field.allowlist", ...separate(key.ip_allowlist, text("allowlist.none"))],
  );

/** Shows the errors of a 422 at their fields; `true` if all could be shown. */
export function showErrors({ errors = [] }, fields) {
  if (errors.length === 0) return false;
  const placed = errors.map(({ field, message }) => {
    // `ip_allowlist[3]` belongs to the list.
    const target = fields[field.replace(/\[.*$/, "")];
    target?.error(message);
    return Boolean(target);
  });
  return placed.every(Boolean);
}
