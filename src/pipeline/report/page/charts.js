// Charts, drawn as SVG. Colours come from the style sheet, so that they follow the theme.

/** A bar from the middle to the left or right, for a value of -most to most. */
function divergingBar(value, most, label) {
  const width = 90;
  const half = width / 2;
  const length = most > 0 ? clamp(Math.abs(value) / most, 0, 1) * (half - 1) : 0;
  return shape(
    "svg",
    { class: "bar-cell", viewBox: "0 0 " + width + " 12", width, height: 12, role: "img", "aria-label": label },
    shape("rect", { class: value < 0 ? "low" : "high", x: value < 0 ? half - length : half, y: 1, width: length, height: 10 }),
    shape("line", { class: "axis", x1: half, x2: half, y1: 0, y2: 12 }),
  );
}

/** Round numbers between two, about as many as asked for. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1);
  if (!(rough > 0)) return [low];
  const power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++)
    found.push(Number((at * step).toPrecision(12)));
  return found;
}

const HISTOGRAM = { width: 640, height: 300, left: 66, right: 46, top: 26, bottom: 44, bars: 120 };

/** Shares of targets by difference, on a logarithmic scale, with the weight as a line over them. */
function histogram(bins, formula) {
  const { width, height, left, right, top, bottom, bars } = HISTOGRAM;
  const all = bins.reduce((sum, bin) => sum + bin.count, 0);
  const name = formula.center === "row" ? "difference less the mean of its row, nats" : "difference, nats";
  if (all === 0) return make("p", { class: "note" }, "There are no targets.");
  const quantile = (share) => {
    let below = 0;
    for (const bin of bins) if ((below += bin.count) >= share * all) return bin.mean;
    return bins[bins.length - 1].mean;
  };
  const reach = clamp(Math.max(-quantile(0.001), quantile(0.999), 0.5) * 1.15, 0.5, 40);
  const counts = new Array(bars).fill(0);
  for (const bin of bins) {
    // A bin that is wider than a bar is spread over the bars that it covers.
    const [from, to] = [bin.low, bin.high].map((edge) => ((clamp(edge, -reach, reach) + reach) / (2 * reach)) * bars);
    if (to <= from) {
      counts[bin.mean < 0 ? 0 : bars - 1] += bin.count;
      continue;
    }
    for (let bar = Math.floor(from); bar < Math.min(bars, to); bar++)
      counts[bar] += (bin.count * (Math.min(bar + 1, to) - Math.max(bar, from))) / (to - from);
  }
  const most = Math.max(...counts) / all;
  const least = Math.pow(10, Math.floor(Math.log10(Math.max(1 / all, most * 1e-5))));
  const x = (nats) => left + ((nats + reach) / (2 * reach)) * (width - left - right);
  const y = (share) =>
    height - bottom - (Math.log10(Math.max(share, least) / least) / Math.log10((most * 1.3) / least)) * (height - bottom - top);
  const weight = (nats) => clamp(2 / (1 + Math.exp(-nats / formula.temperature)), 1 - formula.epsilon, 1 + formula.epsilon);
  const spread = Math.max(formula.epsilon, 0.05) * 1.1;
  const yWeight = (w) => height - bottom - ((w - 1 + spread) / (2 * spread)) * (height - bottom - top);
  const parts = [];
  const isDynamic = formula.weighting === "dynamic";
  for (let power = Math.ceil(Math.log10(least)); Math.pow(10, power) <= most * 1.3; power++) {
    const at = y(Math.pow(10, power));
    parts.push(shape("line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at }));
    parts.push(
      shape(
        "text",
        { class: "tick", x: left - 6, y: at + 4, "text-anchor": "end" },
        percent(Math.pow(10, power), Math.max(0, -power - 2)),
      ),
    );
  }
  const bar = (width - left - right) / bars;
  counts.forEach((count, index) => {
    if (count === 0) return;
    const middle = ((index + 0.5) / bars) * 2 * reach - reach;
    const w = isDynamic ? weight(middle) : 1;
    const kind = w <= 1 - formula.epsilon + 1e-9 ? "low" : w >= 1 + formula.epsilon - 1e-9 ? "high" : "between";
    const tall = height - bottom - y(count / all);
    parts.push(
      shape("rect", {
        class: isDynamic && formula.epsilon > 0 ? kind : "between",
        x: left + index * bar,
        y: y(count / all),
        width: Math.max(bar - 0.6, 0.5),
        height: Math.max(tall, 0.5),
      }),
    );
  });
  for (const nats of ticks(-reach, reach, 8)) {
    parts.push(shape("line", { class: "axis", x1: x(nats), x2: x(nats), y1: height - bottom, y2: height - bottom + 4 }));
    parts.push(
      shape(
        "text",
        { class: "tick", x: x(nats), y: height - bottom + 17, "text-anchor": "middle" },
        short(nats).replace("-", "\u2212"),
      ),
    );
  }
  parts.push(shape("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  if (isDynamic) {
    const points = [];
    for (let i = 0; i <= 240; i++) {
      const nats = (i / 240) * 2 * reach - reach;
      points.push(x(nats).toFixed(1) + "," + yWeight(weight(nats)).toFixed(1));
    }
    parts.push(shape("polyline", { class: "weight-line", points: points.join(" ") }));
    for (const w of [1 - formula.epsilon, 1, 1 + formula.epsilon])
      parts.push(shape("text", { class: "tick weight-tick", x: width - right + 5, y: yWeight(w) + 4 }, short(w)));
    parts.push(shape("text", { class: "tick weight-tick", x: width - right + 5, y: top - 10 }, "weight"));
  }
  parts.push(shape("text", { class: "tick", x: left - 60, y: top - 10 }, "share of targets, log scale"));
  parts.push(
    shape(
      "text",
      { class: "tick", x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" },
      "\u2190 the RL model finds it less likely \u00b7 " + name + " \u00b7 likelier \u2192",
    ),
  );
  const numbers =
    "Histogram of the " +
    name +
    ": nine of ten lie between " +
    fixed(quantile(0.05), 2) +
    " and " +
    fixed(quantile(0.95), 2) +
    ", the median is " +
    fixed(quantile(0.5), 2);
  return shape("svg", { class: "chart", viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": numbers }, parts);
}

const LINES = { width: 460, height: 220, left: 56, right: 12, top: 12, bottom: 34 };

/** Lines of several series: [{name, index, dash, x: [...], y: [...]}], where y may be null. */
function lineChart(title, xName, series) {
  const { width, height, left, right, top, bottom } = LINES;
  const drawn = series
    .map((line) => ({
      ...line,
      points: line.x.map((x, i) => [x, line.y[i]]).filter((point) => point[1] !== null && point[1] !== undefined),
    }))
    .filter((line) => line.points.length > 0);
  if (drawn.length === 0) return null;
  const every = drawn.flatMap((line) => line.points);
  const extent = (axis) =>
    every.reduce(([low, high], point) => [Math.min(low, point[axis]), Math.max(high, point[axis])], [Infinity, -Infinity]);
  let [x0, x1] = extent(0);
  let [y0, y1] = extent(1);
  if (x1 === x0) x1 = x0 + 1;
  const pad = (y1 - y0 || Math.abs(y1) || 1) * 0.06;
  [y0, y1] = [y0 - (y0 >= 0 && y0 - pad < 0 ? y0 : pad), y1 + pad];
  const x = (value) => left + ((value - x0) / (x1 - x0)) * (width - left - right);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - bottom - top);
  const parts = [];
  for (const tick of ticks(y0, y1, 5)) {
    parts.push(shape("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
    parts.push(shape("text", { class: "tick", x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of ticks(x0, x1, 5))
    parts.push(shape("text", { class: "tick", x: x(tick), y: height - bottom + 15, "text-anchor": "middle" }, short(tick)));
  parts.push(shape("text", { class: "tick", x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xName));
  parts.push(shape("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  for (const line of drawn) {
    const path = line.points.map((point) => x(point[0]).toFixed(1) + "," + y(point[1]).toFixed(1)).join(" ");
    const last = line.points[line.points.length - 1];
    parts.push(
      shape(
        "polyline",
        { class: "line series-" + (line.index % 6), "stroke-dasharray": line.dash || null, points: path },
        shape("title", null, line.name + ": " + short(line.points[0][1]) + " at first, " + short(last[1]) + " at last"),
      ),
    );
    if (line.points.length === 1 || line.marked)
      line.points.forEach((point) =>
        parts.push(shape("circle", { class: "dot series-" + (line.index % 6), cx: x(point[0]), cy: y(point[1]), r: 2.5 })),
      );
  }
  const words = drawn
    .map((line) => line.name + " from " + short(line.points[0][1]) + " to " + short(line.points[line.points.length - 1][1]))
    .join("; ");
  return make(
    "figure",
    null,
    make("figcaption", null, title),
    shape(
      "svg",
      { class: "chart", viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": title + ": " + words },
      parts,
    ),
  );
}
