// Shared parts of the forms for creating and editing a key.

import { field, h, text } from "./ui.js";

const MAX_NAME = 100;

/** The name, with the checks that are possible here; the service makes the rest. */
export function nameField(initial) {
  const input = h("input", { type: "text", autocomplete: "off", value: initial });
  const line = field(text("field.name"), input, { hint: text("field.name.hint") });
  const value = () => input.value.trim();
  const check = () => {
    const length = [...value()].length;
    const problem = length === 0 ? "missing" : length > MAX_NAME ? "long" : null;
    line.error(problem ? text(`problem.name.${problem}`) : "");
    return !problem;
  };
  input.addEventListener("input", () => {
    if (input.getAttribute("aria-invalid") === "true" || [...value()].length > MAX_NAME) check();
  });
  return { ...line, value, check, set: (name) => (input.value = name) };
}

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
