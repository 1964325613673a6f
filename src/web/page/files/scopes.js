// The form control that chooses what a key may do.

import { h, newId, text } from "./ui.js";

const MAX = 50;

/**
 * Full access, or some of the scopes. Without `initial` nothing is chosen, and `value()` is
 * `null` until something is.
 */
export function scopesField(offered, initial = null) {
  const name = newId();
  const error = h("p", { class: "field-error", id: newId(), hidden: true });
  const radio = (value) => h("input", { type: "radio", name, value, id: newId(), change: chosen });
  const [all, only] = ["all", "only"].map(radio);
  const label = (input, ...content) => h("label", { class: "choice", for: input.id }, input, ...content);
  const list = h("div", { class: "entries scopes", role: "group", "aria-label": text("field.scopes.list") });
  const element = h(
    "fieldset",
    { "aria-describedby": error.id },
    h("legend", {}, text("field.scopes")),
    label(all, text("field.scopes.all")),
    label(only, text("field.scopes.only")),
    list,
    error,
  );
  let boxes = [];

  /** Shows `scopes`, of a key that has `present`. */
  function set(present, scopes = present) {
    initial = present;
    const named = Array.isArray(scopes) ? scopes : [];
    const known = Array.isArray(present) ? present : [];
    const gone = known.filter((scope) => !offered.some((other) => other.name === scope));
    const entries = [...offered, ...gone.map((name) => ({ name, description: text("scopes.gone") }))];
    boxes = entries.map(({ name }) =>
      h("input", { type: "checkbox", id: newId(), value: name, checked: named.includes(name), change: chosen }));
    list.replaceChildren(...entries.map(({ name, description }, index) =>
      label(boxes[index], h("span", {}, h("code", {}, name), " ", h("span", { class: "quiet" }, description)))));
    all.checked = scopes === "all";
    only.checked = Array.isArray(scopes);
    chosen();
  }

  function chosen() {
    list.hidden = !only.checked;
    show("");
  }

  function value() {
    if (all.checked) return "all";
    if (!only.checked) return null;
    const checked = boxes.filter((box) => box.checked).map((box) => box.value);
    // In the order that the key has them, so that the same choice is no change.
    const kept = (initial === "all" ? [] : (initial ?? [])).filter((scope) => checked.includes(scope));
    return [...kept, ...checked.filter((scope) => !kept.includes(scope))];
  }

  function show(message) {
    error.textContent = message;
    error.hidden = !message;
  }

  function check() {
    const scopes = value();
    const unchanged = JSON.stringify(scopes) === JSON.stringify(initial);
    const problem =
      scopes === null ? "missing"
      : scopes.length === 0 && !unchanged ? "empty"
      : scopes !== "all" && scopes.length > MAX ? "limit"
      : null;
    show(problem ? text(`problem.scopes.${problem}`, { max: MAX }) : "");
    return !problem;
  }

  set(initial);
  return {
    element,
    value,
    set,
    check,
    error: show,
    focus: () => (only.checked ? boxes[0] : all).focus(),
  };
}
