// The page: the table of keys with its states, and the code that opens dialogs.

import * as api from "./api.js";
import { ago, announce, button, exactly, h, host, liveRegion, onDay, refusalText, text } from "./ui.js";

const DAY_MS = 86_400_000;
const page = document.getElementById("page");
let keys = null;
let limits = null;
let environments = [];
let offered = null;
let maxOverlap = 0;
const dismissed = new Set();

const count = h("p", { class: "count" });
const create = button(text("create.open"), () => open("create"), { class: "primary" });
const alert = h("div", { class: "alert", role: "alert", hidden: true });
const done = h("p", { class: "done", hidden: true });
const content = h("section", {}, skeleton());
const advice = h("aside", { class: "advice", hidden: true, "aria-label": text("advice.title") });

page.replaceChildren(
  host.back ? h("a", { class: "back", href: host.back.href }, `← ${host.back.label}`) : "",
  h(
    "header",
    {},
    h("div", {}, h("h1", {}, host.title), h("p", { class: "quiet" }, text("intro"))),
    create,
  ),
  alert,
  done,
  content,
  count,
  advice,
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
    ({
      keys,
      limits,
      scopes: offered,
      environments = [],
      max_overlap_seconds: maxOverlap,
    } = answer);
    const retried = alert.contains(document.activeElement);
    alert.hidden = true;
    render();
    if (retried) create.focus();
  } catch (refusal) {
    if (mine === loads) fail(refusal);
  } finally {
    if (mine === loads) page.setAttribute("aria-busy", "false");
  }
}

function fail(refusal) {
  const loggedOut = refusal.code === "unauthenticated";
  const again = loggedOut
    ? button(text("reload"), () => location.reload())
    : button(text("retry"), load);
  const retried = alert.contains(document.activeElement);
  alert.replaceChildren(h("span", {}, refusalText(refusal)), again);
  alert.hidden = false;
  if (retried) again.focus();
  if (!keys) content.replaceChildren();
}

// Another tab or user may have changed the keys in the meantime.
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && !document.querySelector("dialog")) load();
});
addEventListener("online", load);
addEventListener("pageshow", (event) => event.persisted && load());

const COLUMNS = [
  ["name", name],
  ["key", (key) => [
    h("code", {}, `${key.key_prefix}…`),
    key.environment && h("span", { class: "quiet small" }, key.environment),
  ]],
  ["status", (key) => badge(key.status === "active", text(`status.${key.status}`))],
  ["expires", expires],
  ["last_used", (key) => (key.last_used_at ? ago(key.last_used_at) : quiet(text("used.never")))],
  ["actions", menu],
];

const quiet = (label) => h("span", { class: "quiet" }, label);
const badge = (good, label) => h("span", { class: good ? "badge good" : "badge bad" }, label);

function name(key) {
  const addresses = key.ip_allowlist.length;
  const restricted = addresses === 1 ? "restricted.one" : "restricted";
  return [
    h("span", { class: "name" }, key.name),
    addresses > 0 && h("span", { class: "quiet small" }, text(restricted, { count: addresses })),
    offered && scopes(key),
    created(key),
    key.previous_secret_until && previous(key),
  ];
}

const SCOPES_SHOWN = 5;

function scopes({ scopes }) {
  const line = (label, title) => h("span", { class: "quiet small", title }, label);
  if (scopes === "all") return line(text("scopes.all"));
  if (scopes.length === 0) return line(text("scopes.none"));
  const names = scopes.map((scope) =>
    offered.some(({ name }) => name === scope) ? scope : `${scope} (${text("scopes.gone")})`);
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
    text("previous.until"),
    " ",
    exactly(key.previous_secret_until),
    " ",
    use,
    " ",
    end,
  );
}

const LATEST = 200;

/** Shows where the latest request with the old secret came from, if it is a recent one. */
async function showUse(key, place) {
  try {
    const { records, older } = await api.audit(key, { limit: LATEST });
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

function created({ created_at: at, created_by: by }) {
  const label = by ? text("created.by", { name: by }) : text("created");
  return h("span", { class: "quiet small" }, label, " ", ago(at));
}

function expires(key) {
  if (!key.expires_at) return quiet(text("expires.never"));
  if (!key.expired) return onDay(key.expires_at);
  const expired = badge(false, text("expires.expired"));
  expired.title = onDay(key.expires_at).title;
  return expired;
}

function render() {
  const focused = document.activeElement?.closest("[data-key]")?.dataset.key;
  content.replaceChildren(keys.length === 0 ? empty() : table());
  count.textContent = text("count", { count: keys.length, max: limits.max_keys });
  showAdvice();
  if (focused) focusRow(focused);
}

function empty() {
  return h(
    "div",
    { class: "state" },
    h("h2", {}, text("empty.title")),
    h("p", {}, text("empty.body")),
  );
}

// The roles are explicit, since narrow screens show rows as blocks.
function table() {
  const head = COLUMNS.map(([column]) =>
    h(
      "th",
      { scope: "col", role: "columnheader" },
      column === "actions"
        ? h("span", { class: "unseen" }, text("column.actions"))
        : text(`column.${column}`),
    ));
  const row = (key) =>
    h(
      "tr",
      { role: "row", "data-key": key.id },
      COLUMNS.map(([column, cell]) =>
        h(
          "td",
          { role: "cell", class: column, "data-label": text(`column.${column}`) },
          cell(key),
        )),
    );
  return h(
    "table",
    { role: "table", class: "keys", "aria-label": host.title },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
    h("tbody", { role: "rowgroup" }, keys.map(row)),
  );
}

/** Restores the focus, or moves it to the button for new keys if its place is gone. */
function focusRow(id) {
  const row = content.querySelector(`[data-key="${CSS.escape(id)}"]`);
  (row?.querySelector(".menu button") ?? create).focus();
}

function menu(key) {
  const items = ["edit", "rotate", "audit", "delete"].map((action) =>
    h(
      "button",
      {
        type: "button",
        role: "menuitem",
        tabindex: "-1",
        class: action === "delete" ? "danger-text" : null,
        click: () => (close(), open(action, key)),
      },
      text(`menu.${action}`),
    ));
  const list = h("div", { role: "menu", hidden: true, "aria-label": text("menu.open", { name: key.name }) }, items);
  const opener = button("⋯", () => (list.hidden ? show(0) : close()), {
    class: "icon",
    "aria-haspopup": "menu",
    "aria-expanded": "false",
    "aria-label": text("menu.open", { name: key.name }),
  });
  const box = h("div", { class: "menu" }, opener, list);
  const outside = (event) => box.contains(event.target) || close();

  function show(index) {
    list.hidden = false;
    opener.setAttribute("aria-expanded", "true");
    items.at(index).focus();
    document.addEventListener("pointerdown", outside);
  }
  function close() {
    list.hidden = true;
    opener.setAttribute("aria-expanded", "false");
    document.removeEventListener("pointerdown", outside);
  }
  opener.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    event.preventDefault();
    show(event.key === "ArrowDown" ? 0 : -1);
  });
  list.addEventListener("keydown", (event) => {
    const at = items.indexOf(document.activeElement);
    const target = {
      ArrowDown: (at + 1) % items.length,
      ArrowUp: at - 1,
      Home: 0,
      End: -1,
    }[event.key];
    if (target !== undefined) {
      event.preventDefault();
      items.at(target).focus();
    } else if (event.key === "Escape") {
      close();
      opener.focus();
    } else if (event.key === "Tab") {
      close();
    }
  });
  return box;
}

const DIALOGS = {
  create: () => import("./create.js").then(({ createDialog }) => createDialog(context())),
  edit: (key) => import("./edit.js").then(({ editDialog }) => editDialog(key, context())),
  rotate: (key) => import("./confirm.js").then(({ rotateDialog }) => rotateDialog(key, context())),
  end: (key) => import("./confirm.js").then(({ endDialog }) => endDialog(key, context())),
  delete: (key) => import("./confirm.js").then(({ deleteDialog }) => deleteDialog(key, context())),
  audit: (key) => import("./audit.js").then(({ auditDialog }) => auditDialog(key)),
};

const context = () => ({
  limits,
  environments,
  offered,
  maxOverlap,
  count: keys.length,
  /** Announces a change after the dialog has closed. */
  changed: (message) => {
    if (message) say(message);
    load();
  },
});

function say(message) {
  done.textContent = message;
  done.hidden = !message;
}

let opened = false;

async function open(action, key) {
  if (!limits || opened) return;
  opened = true;
  say("");
  const { refusals } = api;
  try {
    await DIALOGS[action](key);
    if (api.refusals > refusals) load();
  } catch {
    // A module could not be loaded; the table may show why.
    await load();
    if (alert.hidden) fail({ code: "unavailable" });
  }
  opened = false;
  if (done.textContent) announce(done.textContent);
  if (key) focusRow(key.id);
  else create.focus();
}

const NAMES_SHOWN = 3;

function advise(now) {
  const usable = keys.filter((key) => key.status === "active" && !key.expired);
  const days = (instant) => (new Date(instant) - now) / DAY_MS;
  return {
    expiring: usable.filter((key) => key.expires_at && days(key.expires_at) <= 7),
    unused: usable.filter((key) => days(key.last_used_at ?? key.created_at) <= -90),
    never: usable.filter((key) => !key.expires_at),
    open: usable.filter((key) => key.ip_allowlist.length === 0),
  };
}

function showAdvice() {
  const notes = Object.entries(advise(Date.now()))
    .filter(([kind, about]) => about.length > 0 && !dismissed.has(kind))
    .map(([kind, about]) => {
      const names = about.slice(0, NAMES_SHOWN).map((key) => `“${key.name}”`);
      const more = about.length - names.length;
      if (more > 0) names.push(text("advice.more", { count: more }));
      const note = text(`advice.${kind}`, { names: names.join(", ") });
      const dismiss = () => {
        dismissed.add(kind);
        showAdvice();
        (advice.querySelector("button") ?? create).focus();
      };
      return h("li", {}, h("span", {}, note), button(text("advice.dismiss"), dismiss, {
        "aria-label": `${text("advice.dismiss")}: ${note}`,
      }));
    });
  advice.replaceChildren(h("h2", {}, text("advice.title")), h("ul", {}, notes));
  advice.hidden = notes.length === 0;
}

load();
