// The formula. The numbers of the whole set are read off its bins as histogram.rs reads them.

const PLACES = 256;
const SAME = 2e-6;
const LN2 = Math.LN2;
const ENDS = DATA.ends;
const TEMPERATURES = DATA.temperatures;

/** Unpacks bins: [{low, high, mean, count}]. */
function unpack(flat) {
  const bins = [];
  let index = 0;
  for (let at = 0; at < flat.length; at += 3) {
    index += flat[at];
    const [low, high] = [ENDS[index], ENDS[index + 1]];
    bins.push({ low, high, count: flat[at + 1], mean: low + ((flat[at + 2] + 0.5) / PLACES) * (high - low) });
  }
  return bins;
}

/** The end of a bin that a threshold is at, or the threshold where it is at none. */
function atEnd(threshold) {
  let [low, high] = [0, ENDS.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ENDS[middle] < threshold) low = middle + 1;
    else high = middle;
  }
  const isNear = (end) => end !== undefined && Math.abs(end - threshold) < 2 * SAME * Math.abs(threshold);
  return [ENDS[low - 1], ENDS[low]].find(isNear) ?? threshold;
}

const noTotals = () => ({ targets: 0, sum: 0, squares: 0, lower: 0, upper: 0 });

function addTotals(all, more) {
  for (const key of Object.keys(all)) all[key] += more[key];
  return all;
}

/** Sums over the weights that an epsilon and a temperature give to binned differences. */
function weightsOfBins(bins, epsilon, temperature) {
  const totals = noTotals();
  const lower = atEnd(temperature * Math.log((1 - epsilon) / (1 + epsilon)));
  const upper = -lower;
  const [l, u] = [1 - epsilon, 1 + epsilon];
  for (const bin of bins) {
    totals.targets += bin.count;
    if (epsilon === 0) {
      for (const key of ["sum", "squares", "lower", "upper"]) totals[key] += bin.count;
      continue;
    }
    const width = bin.high - bin.low;
    const below = clamp((lower - bin.low) / width, 0, 1);
    const above = clamp((bin.high - upper) / width, 0, 1);
    const between = (1 - below - above) * bin.count;
    const middle = below === 0 && above === 0 ? bin.mean : 0.5 * (Math.max(bin.low, lower) + Math.min(bin.high, upper));
    const weight = 2 / (1 + Math.exp(-middle / temperature));
    const [atLower, atUpper] = [below * bin.count, above * bin.count];
    totals.lower += atLower;
    totals.upper += atUpper;
    totals.sum += atLower * l + atUpper * u + between * weight;
    totals.squares += atLower * l * l + atUpper * u * u + between * weight * weight;
  }
  return totals;
}

/** Numbers that sweep prints, of sums. */
function numbersOf(totals) {
  const targets = Math.max(totals.targets, 1);
  return {
    targets: totals.targets,
    mean: totals.sum / targets,
    effective: totals.squares > 0 ? (totals.sum * totals.sum) / totals.squares : 0,
    lower: totals.lower / targets,
    upper: totals.upper / targets,
  };
}

/** Sums over a source under a formula: {weighting, epsilon, temperature, center, fraction}. */
function totalsOf(source, formula) {
  if (formula.weighting === "excess-top-k") {
    const targets = source.numbers.targets;
    const selected = source.top_k[Math.round(formula.fraction * 100) - 1];
    return { targets, sum: selected, squares: selected, lower: targets - selected, upper: selected };
  }
  source.bins ||= {};
  source.bins[formula.center] ||= unpack(formula.center === "row" ? source.centred : source.raw);
  return weightsOfBins(source.bins[formula.center], formula.epsilon, formula.temperature);
}

/** How many targets of a row excess-top-k selects. */
const selectedOf = (fraction, targets) => Math.min(targets, Math.max(1, Math.ceil(fraction * targets - 1e-9)));

const PER_NAT = 10000;

/** What is known of each target of a row that is shown, by position; nothing where there is no target. */
function targetsOf(row) {
  if (row.known) return row.known;
  const others = new Set(row.others);
  const targets = [null];
  for (let position = 1; position < row.ids.length; position++) {
    if (others.has(position)) {
      targets.push(null);
      continue;
    }
    const rl = -row.rl[position - 1] / PER_NAT;
    const base = row.base ? -row.base[position - 1] / PER_NAT : null;
    const delta = base === null ? null : rl - base;
    const centred = delta === null ? null : delta - row.mean;
    targets.push({ position, rl, base, delta, centred, rank: row.base ? row.ranks[position - 1] : null });
  }
  row.known = targets;
  return targets;
}

/** The weight of a target of a row under a formula; null without a base. */
function weightOf(target, row, formula) {
  if (target === null || target.delta === null) return null;
  if (formula.weighting === "excess-top-k") return target.rank < selectedOf(formula.fraction, row.targets) ? 1 : 0;
  const x = formula.center === "row" ? target.centred : target.delta;
  return clamp(2 / (1 + Math.exp(-x / formula.temperature)), 1 - formula.epsilon, 1 + formula.epsilon);
}

/** The formula as it stands, and as flags of remit-anneal. */
function inWords(formula) {
  if (formula.weighting === "excess-top-k")
    return (
      "weight = 1 for the " +
      percent(formula.fraction, 0) +
      " of a row's targets with the largest delta, 0 for the others;\ndelta = log p_RL \u2212 log p_base"
    );
  const centred = formula.center === "row" ? "(delta \u2212 mean of delta over the row)" : "delta";
  const divided = formula.temperature === 1 ? centred : centred + " / " + formula.temperature;
  return (
    "weight = clamp(2 sigmoid(" +
    divided +
    "), " +
    short(1 - formula.epsilon) +
    ", " +
    short(1 + formula.epsilon) +
    ");\ndelta = log p_RL \u2212 log p_base"
  );
}

function asFlags(formula) {
  if (formula.weighting === "excess-top-k") return "--weighting excess-top-k --top-k-fraction " + formula.fraction;
  return (
    "--weighting dynamic --epsilon " + formula.epsilon + " --temperature " + formula.temperature + " --center " + formula.center
  );
}
