// The dialog with the requests that were made with a key, and the changes made to it.

import * as api from "./api.js";
import { usageChart } from "./chart.js";
import { checkEntry, covers } from "./allowlist.js";
import {
  alertBox, announce, badge, button, choice, exactly, field, h, instantOf, newId, quiet, refusalText,
  separate, text, zoneChoice,
} from "./ui.js";

const PAGE = 25;
const A = 0x1f1e6; // the regional indicator A
const LAST = "9999-12-31T23:59";
const METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];

function country(code) {
  if (!code) return quiet("–");
  const name = new Intl.DisplayNames(document.documentElement.lang, { type: "region" }).of(code);
  const flag = String.fromCodePoint(...[...code].map((c) => A + c.charCodeAt(0) - 65));
  return h("span", { role: "img", "aria-label": name, title: name, class: "flag" }, flag);
}

function status({ status, outcome, count, secret }) {
  const times = count.toLocaleString(document.documentElement.lang);
  const good = outcome === "allowed" && status !== null && status < 400;
  const label = [
    status ?? "–",
    outcome === "allowed" ? null : text(`outcome.${outcome}`),
    count > 1 ? text("audit.times", { times }) : null,
    secret === "previous" ? text("audit.old") : null,
  ];
  return badge(good ? "good" : "bad", label.filter(Boolean).join(" "));
}

/** What a field of a key was before or after a change. */
function value(name, of) {
  if (name === "scopes" && of === "all") return text("scopes.all");
  const shown = (one) => (/^\d{4}-\d\d-\d\dT/.test(one) ? exactly(one) : h("bdi", {}, one));
  if (!Array.isArray(of)) return of === null ? "–" : shown(of);
  return separate(of, name === "ip_allowlist" ? text("allowlist.none") : "–");
}

function changed({ fields, phase }) {
  const name = (field) => text(`changes.field.${field}`);
  const line = (field) => {
    const of = (side) => value(field.name, field[side]);
    const before = field.before === null ? [] : [of("before"), " → "];
    return h("div", {}, h("span", { class: "quiet" }, `${name(field.name)}: `), ...[before, of("after")].flat(2));
  };
  const undone = phase === "abandoned" && h("div", {}, text("changes.abandoned"));
  return h("div", {}, undone, fields.map(line));
}

/** The two lists: what they are called, where they come from, and how they are shown. */
const LISTS = {
  audit: {
    load: api.audit,
    columns: [
      ["time", (record) => exactly(record.timestamp)],
      ["method", (record) => record.method],
      ["endpoint", (record) => h("code", {}, record.endpoint)],
      ["ip", (record, allow) => [
        record.ip ? h("code", {}, record.ip) : text("audit.unknown"),
        record.outcome === "ip_not_allowed" && record.ip && allow(record.ip),
      ]],
      ["country", (record) => country(record.country)],
      ["status", status],
    ],
  },
  changes: {
    load: api.changes,
    columns: [
      ["time", (record) => exactly(record.timestamp)],
      ["actor", (record) => h("span", { class: "name" }, record.actor)],
      ["action", (record) => text(`action.${record.action}`)],
      ["fields", changed],
    ],
  },
};

function filterForm() {
  const any = ["", text("audit.filter.any")];
  const outcomes = ["allowed", "refused", "aborted"].map((it) => [it, text(`audit.filter.${it}`)]);
  const statuses = ["2xx", "3xx", "4xx", "401", "403", "404", "429", "5xx"].map((it) => [it, it]);
  const line = (name, control) => [name, field(text(`audit.filter.${name}`), control)];
  const fields = Object.fromEntries([
    line("outcome", choice([any, ...outcomes])),
    line("status", choice([any, ...statuses])),
    line("method", choice([any, ...METHODS.map((it) => [it, it])])),
    line("ip", h("input", { type: "text", autocomplete: "off", spellcheck: "false", dir: "ltr" })),
    line("since", h("input", { type: "datetime-local", max: LAST })),
    line("until", h("input", { type: "datetime-local", max: LAST })),
  ]);
  const raw = (name) => fields[name].control.value.trim();
  const element = h("details", { class: "filter" },
    h("summary", {}, text("audit.filter")),
    h("div", { class: "filters" }, Object.values(fields).map((it) => it.element)));
  return {
    element,
    fields,
    /** The parameters that were chosen, or `null` if one is not valid. */
    query() {
      const { problem } = raw("ip") ? checkEntry(raw("ip")) : {};
      const [since, until] = ["since", "until"].map((name) => instantOf(raw(name)));
      const isEmpty = since && until && until <= since;
      fields.ip.error(problem ?? "");
      fields.until.error(isEmpty ? text("problem.until") : "");
      if (problem || isEmpty) return null;
      const all = {
        outcome: raw("outcome"), status: raw("status"), method: raw("method"), ip: raw("ip"), since, until,
      };
      return Object.fromEntries(Object.entries(all).filter(([, value]) => value));
    },
  };
}

/** A list in pages, newest first. */
function pager(kind, key, { alert, query, allow, loaded }) {
  const { load: read, columns } = LISTS[kind];
  const body = h("tbody", { role: "rowgroup" });
  const column = ([name]) => h("th", { scope: "col", role: "columnheader", class: name }, text(`audit.${name}`));
  const table = h(
    "table",
    { role: "table", class: kind, "aria-busy": "true" },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map(column))),
    body,
  );
  const note = h("p", { class: "state" }, text("loading"));
  // Focusable, so that the arrow keys scroll it.
  const list = h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": text(`${kind}.tab`) }, table, note);
  let page = { older: null, newer: null };
  let busy = false;
  let loads = 0;
  const refresh = button(text("audit.refresh"), () => load({}));
  const previous = button(text("audit.previous"), () => load({ after: page.newer }));
  const next = button(text("audit.next"), () => load({ before: page.older }));

  async function load(cursor) {
    const filter = query();
    const turns = cursor.before || cursor.after;
    if (!filter || (turns && busy)) return;
    const mine = ++loads;
    busy = true;
    table.setAttribute("aria-busy", "true");
    try {
      const first = { limit: PAGE, ...filter };
      let answer = await read(key, { ...first, ...cursor });
      // If fewer records than a page are newer, show the first page.
      if (cursor.after && answer.records.length < PAGE) answer = await read(key, first);
      // Another filter was chosen meanwhile.
      if (mine !== loads) return;
      page = answer;
      show(Object.keys(filter).length > 0);
      if (turns) list.scrollIntoView({ block: "nearest" });
      else loaded();
    } catch (refusal) {
      if (mine !== loads) return;
      note.hidden = true;
      alert.show(refusalText(refusal));
    } finally {
      if (mine === loads) {
        busy = false;
        table.setAttribute("aria-busy", "false");
      }
    }
  }

  function show(isFiltered) {
    alert.show("");
    const cell = (record) => ([name, content]) =>
      h("td", { role: "cell", class: name, "data-label": text(`audit.${name}`) }, content(record, allow));
    body.replaceChildren(...page.records.map((record) => h("tr", { role: "row" }, columns.map(cell(record)))));
    const empty = page.records.length === 0;
    note.textContent = isFiltered ? text("audit.none") : text(`${kind}.empty`);
    if (empty && page.older) note.textContent = text("audit.further");
    note.hidden = !empty;
    table.hidden = empty;
    list.scrollTop = 0;
    const focused = document.activeElement;
    previous.disabled = !page.newer;
    next.disabled = !page.older;
    // A button that is disabled while focused would lose the focus.
    if (focused?.disabled) refresh.focus();
    announce(text(`${kind}.updated`, { count: page.records.length }));
  }

  table.hidden = true;
  previous.disabled = next.disabled = true;
  return { list, buttons: [refresh, previous, next], load: () => load({}) };
}

export function auditDialog(handle, key, { limits, changed: keyChanged }) {
  const alert = alertBox();
  const filter = filterForm();
  const chart = usageChart(key);
  const download = button(text("audit.export"), async () => {
    const query = filter.query();
    if (!query) return;
    try {
      // Otherwise the file of somebody who is logged out would be the login.
      await api.show(key);
      location.assign(api.exportUrl(key, query));
    } catch (refusal) {
      alert.show(refusalText(refusal));
    }
  });

  /** Adds an address to the key's allowlist, unless it is allowed already. */
  async function allowNow(ip) {
    const current = await api.show(key);
    const { ip_allowlist: entries } = current;
    // Another entry would allow this address alone.
    if (entries.length === 0 || entries.some((entry) => covers(entry, ip))) return "audit.allowed.before";
    if (entries.length >= limits.max_ips_per_key) return "audit.allow.full";
    const edited = await api.edit(current, { ip_allowlist: [...entries, ip] });
    const undo = () => api.edit(edited, { ip_allowlist: entries });
    keyChanged(text("audit.allowed", { ip }), { id: key.id, undo });
    return "audit.allowed";
  }
  const allow = (ip) => {
    const add = button(text("audit.allow"), async () => {
      if (add.ariaBusy) return;
      add.ariaBusy = true;
      try {
        const told = text(await allowNow(ip), { ip });
        announce(told);
        list().focus();
        const same = list().querySelectorAll(`[data-ip="${CSS.escape(ip)}"]`);
        same.forEach((other) => other.replaceWith(h("span", { class: "quiet small" }, told)));
      } catch (refusal) {
        alert.show(refusalText(refusal));
      }
      add.ariaBusy = null;
    }, { class: "link small", "data-ip": ip, "aria-label": text("audit.allow.label", { ip }) });
    return add;
  };
  const list = () => tabs.audit.list;
  const common = { alert, allow };
  const tabs = {
    audit: pager("audit", key, { ...common, query: filter.query, loaded: chart.load }),
    changes: pager("changes", key, { ...common, query: () => ({}), loaded() {} }),
  };
  const panel = h("div", { role: "tabpanel", id: newId() });
  const buttons = h("div", { class: "buttons" });
  const close = button(text("close"), () => handle.close(), { class: "primary" });
  const names = Object.keys(tabs);
  const heads = names.map((name) =>
    h("button", { type: "button", role: "tab", "aria-controls": panel.id, click: () => select(name) }, text(`${name}.tab`)));
  const head = h("div", { role: "tablist", "aria-label": text("audit.title", { name: key.name }) }, heads);
  head.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const at = (names.findIndex((_, n) => heads[n] === document.activeElement) + step + names.length) % names.length;
    select(names[at]);
    heads[at].focus();
  });

  function select(name) {
    heads.forEach((it, at) => {
      const isOn = names[at] === name;
      it.setAttribute("aria-selected", String(isOn));
      it.tabIndex = isOn ? 0 : -1;
    });
    const { list, buttons: own, load } = tabs[name];
    const isAudit = name === "audit";
    panel.replaceChildren(...(isAudit ? [chart.element, filter.element] : []), list);
    panel.setAttribute("aria-label", text(`${name}.tab`));
    const zone = zoneChoice(isAudit ? load : null);
    buttons.replaceChildren(...own, isAudit ? download : "", h("span", { class: "spring" }), zone, close);
    load();
  }
  filter.element.addEventListener("change", () => tabs.audit.load());
  handle.body.replaceChildren(alert.element, head, panel, buttons);
  select("audit");
  heads[0].focus();
}
