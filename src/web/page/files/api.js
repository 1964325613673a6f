// Requests to the management API, and their errors.

const base = new URL("../api/", import.meta.url);
const PATIENCE_MS = 15_000;

/** How many requests have failed, to detect that the shown data is out of date. */
export let refusals = 0;

/** A failed request: `code` is the API's, or `host`, `offline` or `unexpected`. */
export class Refusal extends Error {
  constructor(code, errors = []) {
    super(code);
    refusals += 1;
    this.code = code;
    /** `[{field, message}]`, for a form. */
    this.errors = errors;
  }
}

/** Calls the service. An answer without the member `has` is not its own. */
async function call(method, path, { has, body, query, revision, once } = {}) {
  const url = new URL(path, base);
  url.search = new URLSearchParams(query ?? {}).toString();
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (revision) headers["If-Match"] = `"${revision}"`;
  if (once) headers["Idempotency-Key"] = once;
  let answer, content;
  try {
    answer = await fetch(url, {
      method,
      headers,
      body: body && JSON.stringify(body),
      cache: "no-store",
      redirect: "manual",
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
    content = await answer.text();
  } catch {
    throw new Refusal("offline");
  }
  // A login that redirects the browser.
  if (answer.type === "opaqueredirect") throw new Refusal("unauthenticated");
  let value;
  try {
    value = content ? JSON.parse(content) : null;
  } catch {
    // A page of a proxy or login in front of the API.
  }
  if (answer.ok && (!has || (value && has in value))) return value;
  // A login in front of the service answers with a page.
  if (answer.ok && value === undefined) throw new Refusal("unauthenticated");
  // A request that only reads is refused as from another site for its host alone.
  const isHost = method === "GET" && value?.code === "cross_site";
  throw new Refusal(isHost ? "host" : value?.code ?? codeOf(answer.status), value?.errors);
}

/** The code for a status without one, from a login or a proxy. */
function codeOf(status) {
  const known = { 401: "unauthenticated", 403: "forbidden", 429: "too_many_requests" };
  return known[status] ?? (status >= 502 ? "unavailable" : "unexpected");
}

const at = (key) => `keys/${encodeURIComponent(key.id)}`;

export const list = () => call("GET", "keys", { has: "keys" });
export const show = (key) => call("GET", at(key), { has: "id" });
/** Creates a key, but only one however often it is called with the same `once`. */
export const create = (body, once) => call("POST", "keys", { has: "secret", body, once });
// A change is made only if the key is still at the revision that the user saw.
export const edit = ({ revision, ...key }, body) => call("PATCH", at(key), { has: "id", revision, body });
export const rotate = ({ revision, ...key }, overlap) =>
  call("POST", `${at(key)}/rotate`, {
    has: "secret",
    revision,
    body: { confirm_name: key.name, ...(overlap ? { overlap_seconds: overlap } : {}) },
  });
export const endPrevious = ({ revision, ...key }) =>
  call("DELETE", `${at(key)}/previous-secret`, { has: "id", revision });
export const remove = ({ revision, ...key }) =>
  call("DELETE", at(key), { revision, query: { confirm_name: key.name } });
export const audit = (key, query) => call("GET", `${at(key)}/audit`, { has: "records", query });
export const changes = (key, query) => call("GET", `${at(key)}/changes`, { has: "records", query });
/** The user's own address. */
export const address = () => call("GET", "../address", { has: "ip" });
export const usage = (key, days) =>
  call("GET", `${at(key)}/usage`, { has: "buckets", query: { days } });

/** The address of the log as a file. */
export function exportUrl(key, query) {
  const url = new URL(`${at(key)}/audit.csv`, base);
  url.search = new URLSearchParams(query).toString();
  return url.href;
}
