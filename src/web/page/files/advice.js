// Advice about keys: what needs action above the table, and good practice below it.

import { button, h, sentence, text } from "./ui.js";

const DAY_MS = 86_400_000;
const NAMES_SHOWN = 3;

// In the entry of the tab's history, so that it outlives a reload and no longer than the tab.
const dismissed = new Set(history.state?.dismissed);

function advise(keys, now) {
  const usable = keys.filter((key) => key.status === "active" && !key.expired);
  const days = (instant) => (new Date(instant) - now) / DAY_MS;
  return {
    expiring: usable.filter((key) => key.expires_at && days(key.expires_at) <= 7),
    unused: usable.filter((key) => days(key.last_used_at ?? key.created_at) <= -90),
    never: usable.filter((key) => !key.expires_at),
    open: usable.filter((key) => key.ip_allowlist.length === 0),
  };
}

/** Shows the notes; a dismissed one comes back for other keys. */
export function showAdvice(place) {
  const { keys, urgent, advice, showRow, home } = place;
  const advised = advise(keys, Date.now());
  const note = (kind) => {
    const about = advised[kind].filter((key) => !dismissed.has(`${kind} ${key.id}`));
    if (about.length === 0) return null;
    const link = (key) =>
      h("a", {
        href: `#key=${key.id}`,
        click(event) {
          // Otherwise it is opened in another tab.
          if (event.ctrlKey || event.metaKey || event.shiftKey) return;
          event.preventDefault();
          showRow(key.id);
        },
      }, `“${key.name}”`);
    const names = about.slice(0, NAMES_SHOWN).flatMap((key, at) => [at > 0 && ", ", link(key)]);
    const more = about.length - NAMES_SHOWN;
    if (more > 0) names.push(", ", text("advice.more", { count: more }));
    const line = h("span", {}, sentence(`advice.${kind}`, "names", names));
    const dismiss = () => {
      about.forEach((key) => dismissed.add(`${kind} ${key.id}`));
      history.replaceState({ ...history.state, dismissed: [...dismissed] }, "");
      showAdvice(place);
      (advice.querySelector("details[open] li button") ?? home()).focus();
    };
    return h("li", {}, line, button(text("advice.dismiss"), dismiss, {
      class: "link",
      "aria-label": `${text("advice.dismiss")}: ${line.textContent}`,
    }));
  };
  const focused = [urgent, advice].some((it) => it.contains(document.activeElement));
  const now = ["expiring"].map(note).filter(Boolean);
  const later = ["unused", "never", "open"].map(note).filter(Boolean);
  urgent.replaceChildren(h("ul", {}, now));
  urgent.hidden = now.length === 0;
  const isOpen = advice.querySelector("details")?.open ?? false;
  advice.replaceChildren(h(
    "details",
    { open: isOpen },
    h("summary", {}, text("advice.title"), ` (${later.length})`),
    h("ul", {}, later),
  ));
  advice.hidden = later.length === 0;
  if (focused) (advice.querySelector("summary:not([hidden] *)") ?? home()).focus();
}
