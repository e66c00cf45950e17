// What the charts show, computed from snapshots of a worker: rates, percentiles, counts, and scales for them.

const SMOOTH = 5; // seconds over which percentiles are taken, at least

export const rate = (name) => (points) =>
  points.map((point, n) => {
    if (!n) return null;
    const seconds = point.at - points[n - 1].at;
    return seconds > 0 ? Math.max(0, point[name] - points[n - 1][name]) / seconds : null;
  });

export const level = (name) => (points) => points.map((point) => point[name]);

/** A percentile of a histogram, over the last seconds before each point. */
export const share = (name, part, boundsOf) => (points) => {
  let from = 0;
  return points.map((point, n) => {
    if (!n) return null;
    while (from < n - 1 && points[from + 1].at <= point.at - SMOOTH) from += 1;
    return percentile(boundsOf()[name], point[name].map((count, bucket) => count - points[from][name][bucket]), part);
  });
};

function percentile(bounds, counts, part) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total <= 0) return null;
  let below = 0;
  for (let bucket = 0; bucket < counts.length; bucket += 1) {
    if (below + counts[bucket] >= part * total) {
      const low = bucket ? bounds[bucket - 1] : 0;
      const high = bounds[bucket] ?? low;
      return low + (high - low) * ((part * total - below) / counts[bucket]);
    }
    below += counts[bucket];
  }
  return bounds[bounds.length - 1];
}

/** Lines through the points: one column for each point, with a value for each line. */
export const lines = (...series) => (points) => {
  const values = series.map((make) => make(points));
  return points.map((point, n) => ({ from: point.at, at: point.at, values: values.map((line) => line[n]) }));
};

/** What was counted in each `step` seconds. The counts of a point are a list, with a count for each reason. */
export const steps = (name) => (points, step) => {
  const columns = new Map();
  points.forEach((point, n) => {
    if (!n || !point[name] || !points[n - 1][name]) return;
    const from = Math.floor(point.at / step) * step;
    const column = columns.get(from) ?? { from, at: from + step, values: point[name].map(() => 0) };
    columns.set(from, column);
    point[name].forEach((count, reason) => (column.values[reason] += Math.max(0, count - points[n - 1][name][reason])));
  });
  return [...columns.values()];
};

const NICE = [1, 2, 4, 10];

/** A scale from 0 to a round number above all values. `y` is the share of the height; `ticks` are the values with a label. */
export function linear(values, least = 1) {
  const most = Math.max(least, ...values);
  const power = 10 ** Math.floor(Math.log10(most));
  const top = NICE.find((nice) => nice * power >= most) * power;
  return { y: (value) => value / top, ticks: top >= 2 || least < 1 ? [0, top / 2, top] : [0, top] };
}

/** A logarithmic scale over whole powers of ten, so that a median is visible below an outlier. */
export function logarithmic(values) {
  const known = values.filter((value) => value > 0);
  if (!known.length) return { y: () => 0, ticks: [] };
  const low = Math.floor(Math.log10(Math.min(...known)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...known))));
  const every = Math.ceil((high - low) / 3);
  const ticks = [];
  for (let power = low; power <= high; power += every) ticks.push(10 ** power);
  return { y: (value) => (value > 0 ? Math.min(1, Math.max(0, (Math.log10(value) - low) / (high - low))) : 0), ticks };
}
