// The dialog with the requests that were made with a key, newest first.

import * as api from "./api.js";
import { alertBox, announce, button, exactly, h, openDialog, refusalText, text } from "./ui.js";

const PAGE = 25;
const A = 0x1f1e6; // the regional indicator A

function country(code) {
  if (!code) return h("span", { class: "quiet" }, "–");
  const name = new Intl.DisplayNames(document.documentElement.lang, { type: "region" }).of(code);
  const flag = String.fromCodePoint(...[...code].map((c) => A + c.charCodeAt(0) - 65));
  return h("span", { role: "img", "aria-label": name, title: name, class: "flag" }, flag);
}

function status({ status, outcome, count, secret }) {
  const times = count.toLocaleString(document.documentElement.lang);
  const good = outcome === "allowed" && status !== null && status < 400;
  return h(
    "span",
    { class: good ? "badge good" : "badge bad" },
    status ?? "–",
    outcome === "allowed" ? null : ` ${text(`outcome.${outcome}`)}`,
    count > 1 ? ` ${text("audit.times", { times })}` : null,
    secret === "previous" ? ` ${text("audit.old")}` : null,
  );
}

const COLUMNS = [
  ["time", (record) => exactly(record.timestamp)],
  ["method", (record) => record.method],
  ["endpoint", (record) => h("code", {}, record.endpoint)],
  ["ip", (record) => (record.ip ? h("code", {}, record.ip) : text("audit.unknown"))],
  ["country", (record) => country(record.country)],
  ["status", status],
];

export function auditDialog(key) {
  const handle = openDialog(text("audit.title", { name: key.name }), { class: "wide" });
  const alert = alertBox();
  const body = h("tbody", { role: "rowgroup" });
  const table = h(
    "table",
    { role: "table", "aria-busy": "true" },
    h(
      "thead",
      { role: "rowgroup" },
      h(
        "tr",
        { role: "row" },
        COLUMNS.map(([name]) => h("th", { scope: "col", role: "columnheader" }, text(`audit.${name}`))),
      ),
    ),
    body,
  );
  const note = h("p", { class: "state" }, text("loading"));
  let page = { older: null, newer: null };
  let busy = false;

  const refresh = button(text("audit.refresh"), () => load({}));
  const previous = button(text("audit.previous"), () => load({ after: page.newer }));
  const next = button(text("audit.next"), () => load({ before: page.older }));

  async function load(cursor) {
    if (busy) return;
    busy = true;
    table.setAttribute("aria-busy", "true");
    try {
      page = await api.audit(key, { limit: PAGE, ...cursor });
      // If fewer records than a page are newer, show the first page.
      if (cursor.after && page.records.length < PAGE) page = await api.audit(key, { limit: PAGE });
      show();
    } catch (refusal) {
      note.hidden = true;
      alert.show(refusalText(refusal));
    } finally {
      busy = false;
      table.setAttribute("aria-busy", "false");
    }
  }

  function show() {
    alert.show("");
    body.replaceChildren(
      ...page.records.map((record) =>
        h(
          "tr",
          { role: "row" },
          COLUMNS.map(([name, cell]) =>
            h(
              "td",
              { role: "cell", class: name, "data-label": text(`audit.${name}`) },
              cell(record),
            )),
        )),
    );
    const empty = page.records.length === 0;
    note.textContent = text("audit.empty");
    note.hidden = !empty;
    table.hidden = empty;
    const focused = document.activeElement;
    previous.disabled = !page.newer;
    next.disabled = !page.older;
    // A button that is disabled while focused would lose the focus.
    if (focused?.disabled) refresh.focus();
    announce(text("audit.updated", { count: page.records.length }));
  }

  table.hidden = true;
  previous.disabled = next.disabled = true;
  handle.body.append(
    alert.element,
    // Focusable, so that the arrow keys scroll it.
    h(
      "div",
      { class: "scroll", role: "region", tabindex: "0", "aria-label": text("audit.title", { name: key.name }) },
      table,
      note,
    ),
    h(
      "div",
      { class: "buttons" },
      refresh,
      previous,
      next,
      h("span", { class: "spring" }),
      button(text("close"), () => handle.close(), { class: "primary" }),
    ),
  );
  load({});
  return handle.closed;
}
