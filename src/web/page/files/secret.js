// Shows a new key, once.

import { announce, button, h, host, newId, text } from "./ui.js";

const DOTS = "•".repeat(24);
const COPIED_MS = 2_000;
// A quote would end the string that contains it.
const address = new URL(host.example, location.origin).href.replaceAll("'", "%27");

/** Copies the result of `value`; if the browser refuses, `reveal` selects it. */
function copyButton(label, value, reveal) {
  const copy = button(text("secret.copy"), async () => {
    try {
      await navigator.clipboard.writeText(value());
      copy.textContent = text("secret.copied");
      announce(text("secret.copied"));
      setTimeout(() => {
        copy.textContent = text("secret.copy");
        announce("");
      }, COPIED_MS);
    } catch {
      reveal();
      announce(text("secret.not_copied"));
    }
  }, { "aria-label": label });
  return copy;
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
  let shown = false;
  const toggle = button("", () => show(!shown), { class: "toggle" });

  function show(visible) {
    shown = visible;
    const value = shown ? secret : masked;
    input.value = value;
    usage.textContent = command(value);
    toggle.textContent = text(shown ? "secret.hide" : "secret.show");
  }
  function select(choose) {
    show(true);
    refused.hidden = false;
    choose();
  }
  const copyKey = copyButton(text("secret.copy.label"), () => secret, () =>
    select(() => input.select()));
  const copyUsage = copyButton(text("secret.usage.copy"), () => command(secret), () =>
    select(() => getSelection().selectAllChildren(usage)));
  // The browser may restore a page that the user left.
  const hide = () => show(false);
  const ask = (event) => event.preventDefault();
  const done = button(text("secret.done"), () => {
    hide();
    secret = masked;
    removeEventListener("pagehide", hide);
    removeEventListener("beforeunload", ask);
    handle.close();
  }, { class: "primary" });

  hide();
  addEventListener("pagehide", hide);
  addEventListener("beforeunload", ask);
  handle.title(title);
  handle.keep = () => true;
  // Some browsers close at a second Escape even if the first was cancelled.
  handle.dialog.setAttribute("closedby", "none");
  handle.body.replaceChildren(
    h("p", { class: "warning" }, text("secret.warning")),
    h(
      "div",
      { class: "field" },
      h("div", { class: "split" }, h("label", { for: input.id }, text("secret.label")), toggle, copyKey),
      input,
    ),
    refused,
    h(
      "div",
      { class: "field" },
      h("div", { class: "split" }, h("span", { class: "label" }, text("secret.usage")), copyUsage),
      usage,
    ),
    host.docs ? h("p", {}, h("a", { href: host.docs, target: "_blank", rel: "noopener" }, text("docs"))) : "",
    h("div", { class: "buttons" }, done),
  );
  handle.focusTitle();
  announce(text("secret.warning"));
}
