// The chart of a key's requests by hour or day, with a table for screen readers.

import * as api from "./api.js";
import { brief, choice, day, h, svg, text } from "./ui.js";

const KINDS = ["allowed", "errors", "refused"];
const SPANS = [1, 7, 30, 90];
const [WIDTH, HEIGHT] = [720, 96];

const number = (count) => count.toLocaleString(document.documentElement.lang);

function drawing(buckets, when) {
  const most = Math.max(1, ...buckets.map((bucket) => KINDS.reduce((sum, kind) => sum + bucket[kind], 0)));
  const step = WIDTH / buckets.length;
  const column = (bucket, at) => {
    let top = HEIGHT;
    const counts = KINDS.map((kind) => `${text(`usage.${kind}`)}: ${number(bucket[kind])}`);
    const parts = KINDS.filter((kind) => bucket[kind] > 0).map((kind) => {
      const height = Math.max(2, (bucket[kind] / most) * (HEIGHT - 2));
      top -= height;
      return svg("rect", {
        class: kind, x: at * step + step * 0.1, y: top, width: step * 0.8, height,
      });
    });
    const line = `${when(new Date(bucket.start))}: ${counts.join(", ")}`;
    // The empty part shows its numbers, too.
    const ground = svg("rect", { class: "ground", x: at * step, y: 0, width: step, height: HEIGHT });
    const show = () => (read.textContent = line);
    return svg("g", { pointerover: show, click: show }, ground, parts);
  };
  const read = h("span", {}, text("usage.most", { count: most }));
  const [first, last] = [buckets[0], buckets.at(-1)].map(({ start }) => when(new Date(start)));
  const axis = h("div", { class: "axis quiet", "aria-hidden": "true" }, h("span", {}, first), read, h("span", {}, last));
  return [svg(
    "svg",
    {
      class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true",
    },
    buckets.map(column),
  ), axis];
}

function numbers(buckets, when) {
  const used = buckets.filter((bucket) => KINDS.some((kind) => bucket[kind] > 0));
  const head = ["time", ...KINDS].map((name) => h("th", { scope: "col" }, text(`usage.${name}`)));
  const row = (bucket) =>
    h("tr", {}, h("th", { scope: "row" }, when(new Date(bucket.start))),
      KINDS.map((kind) => h("td", {}, number(bucket[kind]))));
  return h("div", { class: "unseen" }, h(
    "table",
    {},
    h("caption", {}, text("usage.title")),
    h("thead", {}, h("tr", {}, head)),
    h("tbody", {}, used.map(row)),
  ));
}

/** The chart with its choice of a time; empty if the service has no counts. */
export function usageChart(key) {
  const span = choice(SPANS.map((days) => [days, text(`usage.days.${days}`)]), {
    "aria-label": text("usage.span"),
  });
  const place = h("div", {});
  const legend = h("div", { class: "legend" });
  const element = h("section", { class: "usage", hidden: true, "aria-label": text("usage.title") },
    h("div", { class: "split" }, legend, span), place);

  let loads = 0;
  async function load() {
    const mine = ++loads;
    try {
      const { unit, buckets } = await api.usage(key, span.value);
      if (mine !== loads) return;
      const when = unit === "day" ? day : brief;
      const sums = KINDS.map((kind) => [kind, buckets.reduce((sum, bucket) => sum + bucket[kind], 0)]);
      place.replaceChildren(...drawing(buckets, when), numbers(buckets, when));
      legend.replaceChildren(...sums.map(([kind, sum]) =>
        h("span", { class: `key ${kind}` }, `${text(`usage.${kind}`)} ${number(sum)}`)));
      element.hidden = false;
    } catch {
      // The log below says what is wrong.
      element.hidden = true;
    }
  }
  span.addEventListener("change", load);
  return { element, load };
}
