// Shows a new key, once.

import { restrictions } from "./fields.js";
import { alertBox, announce, button, h, host, newId, svg, text } from "./ui.js";

const DOTS = "•".repeat(24);
const COPIED_MS = 2_000;
// A quote would end the string that contains it.
const address = new URL(host.example, location.origin).href.replaceAll("'", "%27");

const eye = () =>
  svg(
    "svg",
    { viewBox: "0 0 24 24", class: "eye", "aria-hidden": "true" },
    svg("path", { d: "M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12z" }),
    svg("circle", { cx: 12, cy: 12, r: 3 }),
    svg("path", { class: "lid", d: "M4 4l16 16" }),
  );

/** Whether the text was copied. Without HTTPS, only a selection can be. */
async function copied(value, select) {
  try {
    await navigator.clipboard.writeText(value);
    return true;
  } catch {
    const back = document.activeElement;
    select();
    try {
      return document.execCommand("copy");
    } finally {
      back.focus();
    }
  }
}

/**
 * Shows the secret in the dialog until Done, and then forgets it. Escape does not
 * close the dialog, since the secret cannot be shown again.
 */
export function showSecret(handle, title, { key, secret }) {
  const masked = key.key_prefix + DOTS;
  const command = (value) => `curl '${address}' \\\n  -H "Authorization: Bearer ${value}"`;

  const input = h("input", {
    id: newId(),
    type: "text",
    readonly: true,
    autocomplete: "off",
    spellcheck: "false",
  });
  const usage = h("pre", { tabindex: "0", "aria-label": text("secret.usage.label") });
  const refused = h("p", { class: "hint", hidden: true }, text("secret.not_copied"));
  const question = alertBox();
  let shown = false;
  let taken = false;
  const toggle = h("button", { type: "button", class: "toggle", click: () => show(!shown) }, eye());

  function show(visible) {
    shown = visible;
    taken ||= visible;
    const value = shown ? secret : masked;
    input.value = value;
    usage.textContent = command(value);
    toggle.setAttribute("aria-label", text(shown ? "secret.hide" : "secret.show"));
    toggle.classList.toggle("on", shown);
  }

  /** A button that copies `value`. If the browser refuses, the text is shown and selected. */
  function copyButton(label, value, select) {
    const copy = button(text("secret.copy"), async () => {
      if (await copied(value(), select)) {
        taken = true;
        copy.textContent = text("secret.copied");
        announce(text("secret.copied"));
        setTimeout(() => {
          copy.textContent = text("secret.copy");
          announce("");
        }, COPIED_MS);
      } else {
        show(true);
        refused.hidden = false;
        select();
        announce(text("secret.not_copied"));
      }
    }, { "aria-label": label });
    return copy;
  }
  const copyKey = copyButton(text("secret.copy.label"), () => secret, () => {
    input.focus();
    input.select();
  });
  const copyUsage = copyButton(text("secret.usage.copy"), () => command(secret), () =>
    getSelection().selectAllChildren(usage));
  // A selection of the dots is a selection of the key. That of a page does not tell what is
  // in a field.
  const whole = (event) => {
    const selection = getSelection();
    const selected = document.activeElement === input ? masked : String(selection);
    if (shown || !(selected.includes("•") || selection.containsNode(input, true))) return;
    const all = selected.replaceAll(masked, secret);
    const value = all.includes("•") ? secret : all.includes(secret) ? all : `${all}\n${secret}`;
    event.clipboardData.setData("text/plain", value);
    event.preventDefault();
    taken = true;
  };
  // The browser may restore a page that the user left.
  const hide = () => show(false);
  const ask = (event) => event.preventDefault();
  const close = () => {
    hide();
    secret = masked;
    removeEventListener("pagehide", hide);
    removeEventListener("beforeunload", ask);
    handle.close();
  };
  const done = button(text("secret.done"), () => {
    if (taken) return close();
    const stay = () => (question.show(""), toggle.focus());
    const leave = button(text("secret.leave"), close);
    question.show(text("secret.untaken"), button(text("secret.stay"), stay), leave);
    leave.previousSibling.focus();
  }, { class: "primary" });

  hide();
  addEventListener("pagehide", hide);
  addEventListener("beforeunload", ask);
  handle.title(title);
  handle.keep = () => true;
  // Some browsers close at a second Escape even if the first was cancelled.
  handle.dialog.setAttribute("closedby", "none");
  handle.dialog.addEventListener("copy", whole);
  handle.body.replaceChildren(
    h("p", { class: "warning" }, text("secret.warning")),
    h("p", { class: "name" }, key.name),
    h(
      "div",
      { class: "field" },
      h("div", { class: "split" }, h("label", { for: input.id }, text("secret.label")), toggle, copyKey),
      input,
    ),
    refused,
    restrictions(key),
    h(
      "div",
      { class: "field" },
      h("div", { class: "split" }, h("span", { class: "label" }, text("secret.usage")), copyUsage),
      usage,
    ),
    host.docs ? h("p", {}, h("a", { href: host.docs, target: "_blank", rel: "noopener" }, text("docs"))) : "",
    question.element,
    h("div", { class: "buttons" }, done),
  );
  handle.focusTitle();
  announce(text("secret.warning"));
}
