// The form control that edits an allowlist, and the check of its entries.

import * as api from "./api.js";
import { announce, button, field, h, host, text } from "./ui.js";

/** The number of an IPv4 address, or `null` if it is not one. */
function ipv4(address) {
  const parts = address.split(".");
  if (parts.length !== 4 || !parts.every((part) => /^\d{1,3}$/.test(part) && part < 256)) return null;
  return parts.reduce((number, part) => (number << 8n) | BigInt(part), 0n);
}

/** The number of an IPv6 address, parsed by the browser. */
function ipv6(address) {
  // No other character may end the brackets early.
  if (!/^[\da-f:.]+$/i.test(address)) return null;
  let canonical;
  try {
    canonical = new URL(`http://[${address}]`).hostname.slice(1, -1);
  } catch {
    return null;
  }
  const [head, tail] = canonical.split("::").map((side) => (side ? side.split(":") : []));
  const groups = tail ? [...head, ...Array(8 - head.length - tail.length).fill("0"), ...tail] : head;
  return groups.reduce((number, group) => (number << 16n) | BigInt(`0x${group}`), 0n);
}

const MAPPED = 0xffffn;

function written(number, bits) {
  const size = bits === 32 ? 8n : 16n;
  const parts = Array.from({ length: bits / Number(size) }, (_, index) =>
    (number >> (BigInt(bits) - size * BigInt(index + 1))) & ((1n << size) - 1n));
  if (bits === 32) return parts.join(".");
  return new URL(`http://[${parts.map((part) => part.toString(16)).join(":")}]`).hostname.slice(1, -1);
}

/**
 * Checks an entry by the service's rules. Returns its parts and `{id}`, which is equal for
 * equivalent entries, or `{problem}`.
 */
export function checkEntry(entry) {
  const problem = (name, values) => ({ problem: text(`problem.entry.${name}`, { entry, ...values }) });
  const [address, length, ...rest] = entry.split("/");
  if (address.includes("%")) return problem("zone");
  const v6 = address.includes(":");
  let bits = v6 ? 128 : 32;
  // The dotted part, which may end an IPv6 address.
  const dotted = address.slice(address.lastIndexOf(":") + 1);
  if (/^[\d.]+\.\d+$/.test(dotted) && dotted.split(".").some((part) => /^0\d/.test(part))) {
    return problem("zero");
  }
  let number = v6 ? ipv6(address) : ipv4(address);
  const typed = number;
  if (number === null || rest.length > 0) return problem("address");
  let prefix = bits;
  if (length !== undefined) {
    if (!/^(0|[1-9]\d{0,2})$/.test(length) || length > bits) return problem("length", { max: bits });
    prefix = Number(length);
  }
  const mapped = v6 && number >> 32n === MAPPED;
  if (mapped && prefix >= 96) {
    [number, bits, prefix] = [number & 0xffff_ffffn, 32, prefix - 96];
  }
  const host = BigInt(bits - prefix);
  const network = (number >> host) << host;
  if (network !== number) {
    // The service's own rule: suggests no range wider than intended.
    const plausible = network !== 0n && (bits === 32 ? prefix >= 8 : prefix >= 16 && !mapped);
    if (plausible) return problem("host", { suggestion: `${written(network, bits)}/${prefix}` });
    const alone = mapped ? written(typed & 0xffff_ffffn, 32) : written(typed, bits);
    return problem("host", { suggestion: alone });
  }
  return { id: `${bits}:${number}/${prefix}`, bits, network, host };
}

/** Whether a valid entry has this valid address. */
export function covers(entry, address) {
  const [range, one] = [entry, address].map(checkEntry);
  return range.bits === one.bits && one.network >> range.host === range.network >> range.host;
}

/** The editor: `entries()` returns the list, or `null` if an entry is invalid. */
export function allowlistEditor(initial, max) {
  let entries = [...initial];
  const input = h("input", {
    type: "text",
    autocapitalize: "off",
    autocomplete: "off",
    spellcheck: "false",
    dir: "ltr",
  });
  const line = field(text("field.allowlist.entry"), input, { hint: text("field.allowlist.hint") });
  const list = h("ul", { class: "entries", "aria-label": text("field.allowlist.entries") });

  const problemOf = (entry) => {
    const { id, problem } = checkEntry(entry);
    if (problem) return problem;
    if (entries.some((other) => checkEntry(other).id === id)) {
      return text("problem.entry.duplicate", { entry });
    }
    return entries.length < max ? "" : text("problem.entry.limit", { max });
  };

  function remove(entry) {
    const index = entries.indexOf(entry);
    entries = entries.filter((other) => other !== entry);
    render();
    line.error("");
    announce(text("field.allowlist.removed", { entry }));
    (list.querySelectorAll("button")[Math.min(index, entries.length - 1)] ?? input).focus();
  }

  function render() {
    list.replaceChildren(
      ...entries.map((entry) =>
        h("li", {}, h("code", {}, entry), button("×", () => remove(entry), {
          class: "icon",
          "aria-label": text("field.allowlist.remove", { entry }),
        }))),
    );
    list.hidden = entries.length === 0;
  }

  /** Adds the typed entries; invalid ones stay in the field. */
  function add() {
    const typed = input.value.split(/[\s,;]+/).filter(Boolean);
    while (typed.length > 0) {
      const problem = problemOf(typed[0]);
      if (problem) {
        input.value = typed.join(" ");
        line.error(problem);
        render();
        return false;
      }
      entries.push(typed.shift());
      announce(text("field.allowlist.added", { entry: entries.at(-1) }));
    }
    input.value = "";
    line.error("");
    render();
    return true;
  }

  // Not while a button is pressed: a new line would move it, and the click would be lost.
  const check = () => {
    if (document.querySelector("button:active")) return;
    const typed = input.value.trim();
    line.error(typed && !/[\s,;]/.test(typed) ? problemOf(typed) : "");
  };
  input.addEventListener("input", () => {
    const typed = input.value.trim();
    const unfinished = typed === "" || problemOf(typed) !== "";
    if (!unfinished || /[^0-9a-fA-F:./\s,;]/.test(typed) || entries.length >= max) check();
    else if (input.getAttribute("aria-invalid") === "true") check();
  });
  input.addEventListener("blur", check);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      event.preventDefault();
      add();
    }
  });
  render();

  /** Adds the address that this request comes from. */
  async function addMine() {
    const { ip } = await api.address().catch(() => ({}));
    if (!ip) return line.error(text("problem.entry.mine"));
    input.value = `${input.value} ${ip}`.trim();
    add();
  }

  const mine = host.address && button(text("field.allowlist.mine"), addMine, { class: "link small" });
  const row = h("div", { class: "row" });
  input.replaceWith(row);
  row.append(input, button(text("field.allowlist.add"), () => (add(), input.focus())));
  line.element.append(mine || "", list);
  const optional = h("span", { class: "optional" }, ` (${text("optional")})`);
  const legend = h("legend", {}, text("field.allowlist"), optional);
  return {
    element: h("fieldset", {}, legend, line.element),
    error: line.error,
    focus: () => input.focus(),
    entries: () => (add() ? [...entries] : null),
    set(list) {
      entries = [...list];
      render();
    },
  };
}
