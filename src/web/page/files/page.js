// The page: reads the keys, shows them in a table, and says what happened.

import * as api from "./api.js";
import {
  ago, announce, badge, button, choice, exactly, field, h, host, liveRegion, menuButton, newId,
  onDay, quiet, refusalText, text, zoneChoice,
} from "./ui.js";

const DAY_MS = 86_400_000;
/** An end within so many days is near. */
const NEAR = 7;
/** How many rows are added to the table at a time. */
const ROWS = 100;
/** More keys than this can be filtered. */
const FEW = 10;
const TOAST_MS = 10_000;

const page = document.getElementById("page");
/** What the service answered: the keys, newest first, the limits, and what it offers. */
let service = null;
/** The key that was created or changed last, and whether the page has read it since. */
let fresh = null;
let shown = ROWS;

const limit = h("p", { id: newId(), class: "limit small", hidden: true });
const create = button(text("create.open"), () => open("create"), {
  class: "primary",
  "aria-describedby": limit.id,
});
const refresh = button(text("refresh"), () => load(), { class: "link" });
const alert = h("div", { class: "alert", role: "alert", hidden: true });
const urgent = h("aside", { class: "advice urgent", hidden: true, "aria-label": text("advice.urgent") });
const advice = h("aside", { class: "advice", hidden: true, "aria-label": text("advice.title") });
const toast = h("div", { class: "toast", hidden: true });
const content = h("section", {}, skeleton());
const count = h("span", { class: "quiet" });

const foot = h("footer", { hidden: true }, count, refresh, zoneChoice());

const search = field(text("filter.text"), h("input", { type: "text", autocomplete: "off", spellcheck: "false" }));
const state = field(text("filter.state"), choice(
  ["all", "active", "expired", "revoked"].map((it) => [it, text(`filter.state.${it}`)])));
const sort = field(text("sort"), choice(
  ["newest", "name", "expires", "last_used"].map((it) => [it, text(`sort.${it}`)])));
const filters = h("div", { class: "filters", hidden: true, role: "search" }, search.element, state.element, sort.element);
// The text not at `change`, which comes with a press elsewhere: the table would be replaced
// under it.
for (const [control, event] of [[search, "input"], [state, "change"], [sort, "change"]]) {
  control.control.addEventListener(event, () => {
    shown = ROWS;
    showKeys();
    announce(count.textContent);
  });
}

page.replaceChildren(
  host.back ? h("a", { class: "back", href: host.back.href }, `← ${host.back.label}`) : "",
  h(
    "header",
    {},
    h("div", {}, h("h1", {}, host.title), h("p", { class: "quiet" }, text("intro"))),
    h("div", { class: "create" }, create, limit),
  ),
  alert,
  urgent,
  filters,
  content,
  foot,
  advice,
  toast,
);
document.body.append(liveRegion());

function skeleton() {
  const rows = Array.from({ length: 3 }, () => h("div", { class: "bone" }));
  return h("div", { class: "loading" }, h("span", { class: "unseen" }, text("loading")), rows);
}

let loads = 0;

/** Reads the keys again, and shows the old ones until they arrive. */
async function load() {
  const mine = ++loads;
  page.setAttribute("aria-busy", "true");
  try {
    const answer = await api.list();
    // A newer request has replaced this one.
    if (mine !== loads) return;
    const isFirst = !service;
    uses.clear();
    service = { environments: [], max_overlap_seconds: 0, ...answer, keys: answer.keys.reverse() };
    const retried = alert.contains(document.activeElement);
    alert.hidden = true;
    render();
    loadAtNextEnd();
    if (retried) home().focus();
    if (isFirst) start();
  } catch (refusal) {
    if (mine === loads) fail(refusal);
  } finally {
    if (mine === loads) page.setAttribute("aria-busy", "false");
  }
}

const SOON_MS = 30_000;
const LONGEST_MS = 2 ** 31 - 1;
let ending;

/** Reads the keys again when the next one expires. */
function loadAtNextEnd() {
  clearTimeout(ending);
  const ends = service.keys.filter((key) => key.expires_at && !key.expired);
  const left = Math.min(...ends.map((key) => new Date(key.expires_at) - Date.now()));
  // The clock here may be ahead of the service's.
  ending = setTimeout(load, Math.min(left > 0 ? left + 1_000 : SOON_MS, LONGEST_MS));
}

function fail(refusal) {
  const loggedOut = refusal.code === "unauthenticated";
  const again = loggedOut
    ? button(text("reload"), () => location.reload())
    : button(text("retry"), () => load());
  const retried = alert.contains(document.activeElement);
  alert.replaceChildren(h("span", {}, refusalText(refusal)), again);
  alert.hidden = false;
  if (retried) again.focus();
  if (!service) content.replaceChildren();
}

// Another tab or user may have changed the keys in the meantime.
document.addEventListener("visibilitychange", () => {
  const inUse = document.querySelector("dialog, [role=menu]:not([hidden])");
  if (document.visibilityState === "visible" && !inUse) load();
});
addEventListener("online", () => load());
addEventListener("pageshow", (event) => event.persisted && load());

/** Says in a corner what happened, with a way to undo it where there is one. */
let fading;
function say(message, undo, id) {
  clearTimeout(fading);
  toast.hidden = !message;
  const close = () => {
    const focused = toast.contains(document.activeElement);
    say("");
    if (focused) home().focus();
  };
  const revert = async () => {
    close();
    try {
      await undo();
      say(text("undone"));
      announce(text("undone"));
      await load();
      focusRow({ id });
    } catch (refusal) {
      await load();
      fail(refusal);
    }
  };
  toast.replaceChildren(
    h("span", {}, message),
    undo ? button(text("undo"), revert) : "",
    button("×", close, { class: "icon", "aria-label": text("toast.close") }),
  );
  const fade = () => {
    if (toast.matches(":hover, :focus-within")) fading = setTimeout(fade, TOAST_MS);
    else say("");
  };
  if (message) fading = setTimeout(fade, TOAST_MS);
}

// The table.

const stateOf = (key) => (key.status === "active" && key.expired ? "expired" : key.status);

const COLUMNS = [
  ["name", name],
  ["key", (key) => [
    h("code", {}, `${key.key_prefix}…`),
    key.environment && small(key.environment),
  ]],
  ["status", (key) => {
    const state = stateOf(key);
    return badge(state === "active" ? "good" : "bad", text(`status.${state}`));
  }],
  ["expires", expires],
  ["last_used", (key) => (key.last_used_at ? ago(key.last_used_at) : quiet(text("used.never")))],
  ["actions", (key) => menuButton(text("menu.open", { name: key.name }), () => actions(key))],
];

const small = (...content) => h("span", { class: "quiet small" }, ...content);

function name(key) {
  const entries = key.ip_allowlist;
  const restricted = entries.length === 1
    ? text("restricted.to", { entry: entries[0] })
    : text("restricted", { count: entries.length });
  const by = key.created_by && [" ", text("created.by", { name: key.created_by })];
  return [
    h("span", { class: "name" }, key.name),
    entries.length > 0 && small(restricted),
    service.scopes && scopes(key),
    small(text("created"), " ", ago(key.created_at), by),
    key.previous_secret_until && previous(key),
  ];
}

const SCOPES_SHOWN = 5;

function scopes({ scopes }) {
  const line = (label, title) => h("span", { class: "quiet small", title }, label);
  if (scopes === "all") return line(text("scopes.all"));
  if (scopes.length === 0) return line(text("scopes.none"));
  const names = scopes.map((scope) =>
    service.scopes.some(({ name }) => name === scope) ? scope : `${scope} (${text("scopes.gone")})`);
  const shown = names.slice(0, SCOPES_SHOWN);
  if (names.length > SCOPES_SHOWN) shown.push(text("advice.more", { count: names.length - SCOPES_SHOWN }));
  return line(text("scopes.only", { names: shown.join(", ") }), names.join(", "));
}

/** Until when the old secret of a rotated key works, and whether it is still used. */
function previous(key) {
  const use = h("span", {});
  const end = button(text("end.open"), () => open("end", key), {
    class: "small",
    "aria-label": text("end.title", { name: key.name }),
  });
  showUse(key, use);
  return h(
    "span",
    { class: "quiet small previous" },
    text("previous.until"), " ", exactly(key.previous_secret_until), " ", use, " ", end,
  );
}

const LATEST = 200;
/** What the log says of keys with an old secret, since the keys were read. */
const uses = new Map();

/** Shows where the latest request with the old secret came from, if it is a recent one. */
async function showUse(key, place) {
  try {
    if (!uses.has(key.id)) uses.set(key.id, api.audit(key, { limit: LATEST }));
    const { records, older } = await uses.get(key.id);
    const used = records.find((record) => record.secret === "previous");
    if (used) {
      const values = { ip: used.ip ?? text("audit.unknown") };
      place.replaceChildren(text("previous.used", values), " ", ago(used.timestamp));
    } else {
      const unused = older ? "previous.unused.latest" : "previous.unused";
      place.textContent = text(unused, { count: records.length });
    }
  } catch {
    // Without a readable audit log, nothing is known of its use.
  }
}

function expires(key) {
  if (!key.expires_at) return quiet(text("expires.never"));
  const isNear = new Date(key.expires_at) - Date.now() < NEAR * DAY_MS;
  const more = key.expired ? badge("bad", text("expires.expired")) : isNear && badge("near", ago(key.expires_at));
  return h("span", {}, onDay(key.expires_at), " ", more);
}

function actions(key) {
  const item = (action, attributes) => [text(`menu.${action}`), () => open(action, key), attributes];
  return [
    item("edit"),
    item("rotate"),
    item("audit"),
    item(key.status === "active" ? "revoke" : "enable"),
    item("delete", { class: "danger-text" }),
  ];
}

const instant = (time, otherwise) => (time ? new Date(time).getTime() : otherwise);
const endOf = (key) => instant(!key.expired && key.expires_at, Infinity);
const ORDERS = {
  newest: null,
  name: (a, b) => a.name.localeCompare(b.name, document.documentElement.lang),
  expires: (a, b) => endOf(a) - endOf(b) || 0,
  last_used: (a, b) => instant(b.last_used_at, 0) - instant(a.last_used_at, 0),
};

/** The keys that the filters let through, in the order that was chosen. */
function chosen() {
  const words = search.control.value.trim().toLowerCase();
  const wanted = state.control.value;
  const has = (value) => value?.toLowerCase().includes(words);
  const keys = service.keys.filter((key) =>
    (wanted === "all" || stateOf(key) === wanted)
    && (!words || has(key.name) || has(key.key_prefix) || has(key.created_by)));
  const order = ORDERS[sort.control.value];
  return order ? keys.sort(order) : keys;
}

function render() {
  const focused = document.activeElement?.closest("[data-key]");
  const place = focused && { id: focused.dataset.key, at: [...focused.parentNode.children].indexOf(focused) };
  const isFull = service.keys.length >= service.limits.max_keys;
  limit.textContent = isFull ? text("create.full", { max: service.limits.max_keys }) : "";
  limit.hidden = !isFull;
  create.disabled = isFull;
  filters.hidden = service.keys.length < 2;
  search.element.hidden = state.element.hidden = service.keys.length <= FEW;
  if (service.keys.length <= FEW) {
    search.control.value = "";
    state.control.value = "all";
  }
  showKeys();
  if (place) focusRow(place);
}

function showKeys() {
  foot.hidden = false;
  const keys = chosen();
  const { max_keys: max } = service.limits;
  const total = text("count", { count: service.keys.length, max });
  const isFiltered = keys.length < service.keys.length;
  count.textContent = isFiltered ? text("count.filtered", { shown: keys.length, total }) : total;
  content.replaceChildren(
    service.keys.length === 0 ? nothing("empty") : keys.length === 0 ? nothing("filter.none") : table(keys));
}

const nothing = (kind) =>
  h("div", { class: "state" }, h("h2", {}, text(`${kind}.title`)), h("p", {}, text(`${kind}.body`)));

function row(key) {
  const cell = ([column, cell]) => {
    const isHeader = column === "name";
    return h(
      isHeader ? "th" : "td",
      {
        role: isHeader ? "rowheader" : "cell",
        scope: isHeader && "row",
        class: column,
        "data-label": text(`column.${column}`),
      },
      cell(key),
    );
  };
  return h("tr", { role: "row", "data-key": key.id }, COLUMNS.map(cell));
}

// The roles are explicit, since narrow screens show rows as blocks.
function table(keys) {
  const head = COLUMNS.map(([column]) =>
    h(
      "th",
      { scope: "col", role: "columnheader" },
      column === "actions"
        ? h("span", { class: "unseen" }, text("column.actions"))
        : text(`column.${column}`),
    ));
  const body = h("tbody", { role: "rowgroup" });
  const more = button("", () => {
    const first = body.children.length;
    shown += ROWS;
    add();
    body.children[first]?.querySelector(".menu button").focus();
  }, { class: "more" });
  const add = () => {
    body.append(...keys.slice(body.children.length, shown).map(row));
    const rest = keys.length - body.children.length;
    more.hidden = rest <= 0;
    more.textContent = text("more", { count: rest });
  };
  add();
  return h("div", {}, h(
    "table",
    { role: "table", class: "keys", "aria-label": host.title, "aria-rowcount": keys.length + 1 },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
    body,
  ), more);
}

const rowOf = (id) => content.querySelector(`[data-key="${CSS.escape(id)}"]`);

/** What has the focus if its place is gone. */
const home = () => (create.disabled ? refresh : create);

/** Focuses a row, or the one that has taken its place. */
function focusRow({ id, at = 0 }) {
  const rows = content.querySelectorAll("[data-key]");
  const row = rowOf(id) ?? rows[Math.min(at, rows.length - 1)];
  (row?.querySelector(".menu button") ?? home()).focus();
}

/** Shows the row of a key, whatever is filtered. */
function showRow(id) {
  if (!rowOf(id)) {
    const { key_prefix: prefix } = service.keys.find((key) => key.id === id);
    state.control.value = "all";
    // Alone, if it would be below many others.
    search.control.value = "";
    showKeys();
    if (!rowOf(id)) {
      search.control.value = prefix;
      showKeys();
    }
  }
  focusRow({ id });
}

// Dialogs.

const context = () => ({
  limits: service.limits,
  environments: service.environments,
  offered: service.scopes,
  maxOverlap: service.max_overlap_seconds,
  names: service.keys.map((key) => key.name),
  /** Says what was changed once the dialog has closed, and reads the keys again. */
  async changed(message, { id, undo, isNew } = {}) {
    if (message) said = [message, undo, id];
    const mine = id && { id, isRead: false };
    fresh = mine;
    await load();
    if (isNew && service.keys.some((key) => key.id === id)) showRow(id);
    if (mine) mine.isRead = true;
    mark();
  },
});

/** Marks the row of the changed key for a moment, once no dialog covers it. */
function mark() {
  if (opened || !fresh?.isRead) return;
  const row = rowOf(fresh.id);
  row?.scrollIntoView({ block: "nearest" });
  row?.classList.add("fresh");
  fresh = null;
}

let opened = false;
/** Opens the dialog that the address names. */
let follow = () => {};
/** What is said once the dialog has closed, which covers the corner. */
let said = null;

async function open(action, key) {
  if (!service) return announceLoading();
  if (opened) return;
  opened = true;
  alert.hidden = true;
  say("");
  const at = key && [...content.querySelectorAll("[data-key]")].indexOf(rowOf(key.id));
  const { refusals } = api;
  try {
    const { openDialogFor } = await import("./dialogs.js");
    await openDialogFor(action, key, context());
    if (api.refusals > refusals) load();
  } catch {
    // A module could not be loaded; the table may show why.
    await load();
    if (alert.hidden) fail({ code: "unavailable" });
  }
  opened = false;
  if (said) {
    say(...said);
    announce(said[0]);
  }
  said = null;
  if (key) focusRow({ id: key.id, at });
  else home().focus();
  mark();
  follow();
}

function announceLoading() {
  if (!alert.hidden) return;
  say(text("loading.wait"));
  announce(text("loading.wait"));
}

/** Loads what the first view does not need. */
async function start() {
  const { wanted, leave } = await import("./dialogs.js").catch(() => ({}));
  follow = () => {
    const { id, action } = wanted?.() ?? {};
    if (!id) return;
    const key = service.keys.find((key) => key.id === id);
    if (key) return open(action, key);
    fail({ code: "not_found" });
    leave(location.hash);
  };
  addEventListener("popstate", () => opened || follow());
  follow();
  const { showAdvice } = await import("./advice.js").catch(() => ({}));
  const show = () => showAdvice?.({ keys: service.keys, urgent, advice, showRow, home });
  new MutationObserver(show).observe(content, { childList: true });
  show();
}

load();
