// In-Run Data Shapley for Adam in JavaScript, with no dependency, written from docs/method.md, and `auto` from the README
// of the test vectors.
//
// answer(case) takes a case of the test vectors and returns its answer as named numbers. Everything is done per sample
// and per number, to be read, not to be fast. Models are in model.mjs and layers.mjs. A parameter is a flat list of
// numbers, a set of them {name: list}:
//
//   theta, m, v   parameters and Adam's moments      x[i]    sample i's contribution to the batch gradient
//   g             batch gradient, or a coalition's   gamma   gradient of the validation loss (Γ)
//   c             Adam's coefficients at this step   A(g)    update(c, g)      A[a, b]    difference(c, a, b)

import { Unsupported, addAll, dot, mapEach, mean, range, sum } from "./numbers.mjs";
import { check } from "./checks.mjs";
import { sampleGradient, sampleLoss } from "./model.mjs";

const eachLoss = (step, theta) => step.valid.x.map((x, j) => sampleLoss(step.network, theta, x, step.valid.y[j]));
const eachGradient = (step, theta) => step.valid.x.map((x, j) => sampleGradient(step.network, theta, x, step.valid.y[j]));
const meanOfAll = (parts) => mapEach(addAll(parts), (number) => number / parts.length);

// --- Adam as a map of the gradient (docs/method.md 1 and 3) -----------------------------------------------------------

// 1 - β^t, without cancellation for β near 1.
const correction = (beta, t) => (beta < 0.5 ? 1 - beta ** t : -Math.expm1(t * Math.log1p(beta - 1)));

function coefficients(step, name, j) {
  const { lr, betas, eps, eps_root } = step.adam, t = step.t;
  const c1 = correction(betas[0], t), c2 = correction(betas[1], t);
  return {
    lr,
    eps,
    mu: (betas[0] * step.m[name][j]) / c1,
    k: (1 - betas[0]) / c1,
    kappa: (betas[1] * step.v[name][j]) / c2 + eps_root,
    q: (1 - betas[1]) / c2,
  };
}

const root = (c, g) => Math.hypot(Math.sqrt(c.kappa), Math.sqrt(c.q) * g);
const denominator = (c, g) => root(c, g) + c.eps;
const update = (c, g) => (c.lr * (c.mu + c.k * g)) / denominator(c, g);

// A[a, b] by sines and cosines, so that nothing cancels where κ and ε are small beside the gradient.
function difference(c, a, b) {
  const r_a = root(c, a), r_b = root(c, b), total = r_a + r_b;
  const angle = (leg, r) => (r > 0 ? leg / r : 0);
  const cos_a = angle(Math.sqrt(c.kappa), r_a), sin_a = angle(Math.sqrt(c.q) * a, r_a);
  const cos_b = angle(Math.sqrt(c.kappa), r_b), sin_b = angle(Math.sqrt(c.q) * b, r_b);
  const product = sin_a * sin_b;
  const rest = product > 0 ? (cos_a ** 2 + (sin_a * cos_b) ** 2) / (1 + product) : 1 - product;
  const H = total > 0 ? (r_a / total) * r_b : 0;
  const phi = total > 0 ? c.q * ((a + b) / total) : 0;
  const numerator = c.k * (c.eps + H * (cos_a * cos_b + rest)) - c.mu * phi;
  return (c.lr * numerator) / denominator(c, a) / denominator(c, b);
}

// --- one step --------------------------------------------------------------------------------------------------------

const flatEach = (named) => Object.fromEntries(Object.entries(named).map(([name, array]) => [name, array.flat(Infinity)]));

// A case with its arrays flat, t, and x: what each sample contributes to the gradient of its batch.
function prepare(given) {
  const theta = flatEach(given.params), n = given.train.x.length, w = given.reduction === "mean" ? 1 / n : 1;
  const x = given.train.x.map((x_i, i) =>
    mapEach(sampleGradient(given.network, theta, x_i, given.train.y[i]), (number) => w * number),
  );
  const step = { ...given, theta, m: flatEach(given.state.m), v: flatEach(given.state.v), t: given.state.step + 1, n, x };
  return { ...step, g: addAll(x) };
}

const nobody = (step) => mapEach(step.theta, () => 0);
const decayed = (step) => mapEach(step.theta, (p) => p - step.adam.lr * step.adam.weight_decay * p);
const updates = (step, g) => mapEach(g, (number, name, j) => update(coefficients(step, name, j), number));
const coalition = (step, mask) => mapEach(step.theta, (_, name, j) => sum(step.x.map((x_i, i) => (mask[i] ? x_i[name][j] : 0))));

function after(step, g) {
  const A = updates(step, g);
  return mapEach(decayed(step), (p, name, j) => p - A[name][j]);
}

const utility = (step, mask) => mean(eachLoss(step, step.theta)) - mean(eachLoss(step, after(step, coalition(step, mask))));
const firstOrder = (step, mask) => dot(meanOfAll(eachGradient(step, step.theta)), updates(step, coalition(step, mask)));

function marginals(step, { kind, loss }) {
  const U = (mask) => (loss === "exact" ? utility : firstOrder)(step, mask), n = step.n;
  const members = range(n);
  const empty = U(members.map(() => false)), total = U(members.map(() => true));
  const answers = { empty, total };
  if (kind === "first") return { ...answers, values: members.map((i) => U(members.map((j) => j === i)) - empty) };
  if (kind === "last") return { ...answers, values: members.map((i) => total - U(members.map((j) => j !== i))) };
  if (n > 12) throw new Unsupported("Shapley values of more than 12 samples");
  const masks = range(2 ** n).map((number) => members.map((i) => Math.floor(number / 2 ** i) % 2 === 1));
  const utilities = masks.map(U), sizes = masks.map((mask) => mask.filter(Boolean).length);
  // |S|! (n − 1 − |S|)! / n!
  const weight = members.map((size) => range(size).reduce((w, s) => (w * (s + 1)) / (n - 1 - s), 1 / n));
  const values = members.map((i) =>
    sum(masks.map((mask, S) => (mask[i] ? 0 : weight[sizes[S]] * (utilities[S + 2 ** i] - utilities[S])))),
  );
  return { ...answers, values };
}

// --- scores (docs/method.md 4) ----------------------------------------------------------------------------------------

// The roots of a polynomial of degree `count`, from those of the degrees below, between which they lie.
function rootsOf(polynomial, count, bound) {
  let roots = [];
  for (const degree of range(count).map((k) => k + 1)) {
    const ends = [-bound, ...roots, bound];
    roots = range(degree).map((k) => {
      let [low, high] = [ends[k], ends[k + 1]];
      const rises = polynomial(degree, high) > polynomial(degree, low);
      for (let middle = (low + high) / 2; middle > low && middle < high; middle = (low + high) / 2) {
        if (polynomial(degree, middle) > 0 === rises) high = middle;
        else low = middle;
      }
      return degree % 2 === 1 && k === (degree - 1) / 2 ? 0 : low;
    });
  }
  return roots;
}

function legendre(degree, x) {
  let [one, two] = [1, x];
  if (degree === 0) return one;
  for (let k = 1; k < degree; k++) [one, two] = [two, ((2 * k + 1) * x * two - k * one) / (k + 1)];
  return two;
}

function hermite(degree, x) {
  let [one, two] = [1, x];
  if (degree === 0) return one;
  for (let k = 1; k < degree; k++) [one, two] = [two, x * two - k * one];
  return two;
}

// [node, weight] on [0, 1].
const pathRule = (count) =>
  rootsOf(legendre, count, 1).map((x) => [(1 + x) / 2, (1 - x * x) / (count * legendre(count - 1, x)) ** 2]);

// [node, weight] of the standard normal, the positive nodes.
function normalRule(count) {
  const factorial = range(count).reduce((product, k) => product * Math.max(k, 1), 1);
  return rootsOf(hermite, count, 2 * Math.sqrt(count) + 1)
    .map((h) => [h, factorial / (count * hermite(count - 1, h) ** 2)])
    .filter(([h]) => h > 0);
}

const SLOPES = {
  sgd: (c) => c.lr,
  frozen: (c, g) => (c.lr * c.k) / denominator(c, g),
  linearized: (c) => (c.lr * c.k) / denominator(c, 0),
  tangent: (c, g) => difference(c, g, g),
  secant: (c, g) => difference(c, g, 0),
  random_order: (c, g, each, nodes) => {
    const n = each.length;
    if (n === 1) return difference(c, g, 0);
    const sigma = Math.sqrt((n / (n - 1)) * sum(each.map((x_i) => (x_i - g / n) ** 2)));
    return sum(
      nodes.path.flatMap(([tau, w]) => {
        const s = Math.sqrt(tau * (1 - tau)) * sigma;
        return nodes.normal.map(([h, a]) => w * 2 * a * h * h * difference(c, tau * g + h * s, tau * g - h * s));
      }),
    );
  },
};

// λ of a parameter, the weight of random_order in auto: from each number's own share z of the radicand, weighted by w.
function randomOrderWeight(step, name) {
  const terms = step.g[name].map((g, j) => {
    const { q, kappa, eps } = coefficients(step, name, j), p = q * g ** 2 + 2 ** -1022;
    return { z: p / (kappa + p), w: p / (kappa + p + eps ** 2) };
  });
  const whole = sum(terms.map(({ w }) => w));
  const Q = whole > 0 ? sum(terms.map(({ z, w }) => w * z ** 2)) / whole : 0;
  return Math.min(Math.max((Q - 3 / 16) / (7 / 32 - 3 / 16), 0), 1);
}

function previousDenominator(step, name, j) {
  const { lr, betas, eps, eps_root } = step.adam, c = coefficients(step, name, j);
  return (lr * c.k) / (Math.sqrt(step.v[name][j] / correction(betas[1], step.t - 1) + eps_root) + eps);
}

// S of every parameter.
function slopes(step, { slope, denominator }, nodes) {
  if (denominator === "previous") return mapEach(step.g, (_, name, j) => previousDenominator(step, name, j));
  if (slope === "auto") {
    const [secant, order] = ["secant", "random_order"].map((one) => slopes(step, { slope: one }, nodes));
    const weight = Object.fromEntries(Object.keys(step.g).map((name) => [name, randomOrderWeight(step, name)]));
    return mapEach(secant, (S, name, j) => (1 - weight[name]) * S + weight[name] * order[name][j]);
  }
  return mapEach(step.g, (g, name, j) =>
    SLOPES[slope](coefficients(step, name, j), g, step.x.map((x_i) => x_i[name][j]), nodes),
  );
}

function scores(step, options) {
  if (options.slope === "two_term") throw new Unsupported("slope two_term");
  const nodes = { path: pathRule(options.nodes[0]), normal: normalRule(options.nodes[1]) };
  const S = slopes(step, options, nodes);
  const empty = after(step, nobody(step)), full = after(step, step.g);
  const between = (fraction) => mapEach(empty, (p, name, j) => (1 - fraction) * p + fraction * full[name][j]);
  const points = {
    start: () => [[step.theta, 1]],
    midpoint: () => [[between(0.5), 1]],
    path: () => nodes.path.map(([tau, w]) => [between(tau), w]),
  }[options.gradient]();
  // Γ of each validation sample: a weighted sum over the points.
  const perPoint = points.map(([theta, w]) => eachGradient(step, theta).map((each) => mapEach(each, (number) => w * number)));
  const each = step.valid.x.map((_, j) => addAll(perPoint.map((gradients) => gradients[j])));
  const gammas = options.per_validation ? each : [meanOfAll(each)];
  let values = step.x.map((x_i) => gammas.map((gamma) => dot(mapEach(gamma, (number, name, j) => number * S[name][j]), x_i)));
  if (options.efficient) {
    const before = eachLoss(step, empty), behind = eachLoss(step, full);
    const gains = options.per_validation ? before.map((loss, j) => loss - behind[j]) : [mean(before) - mean(behind)];
    const missing = gains.map((gain, j) => (gain - sum(values.map((row) => row[j]))) / step.n);
    values = values.map((row) => row.map((value, j) => value + missing[j]));
  }
  return { values: options.per_validation ? values : values.map(([value]) => value) };
}

function influence(step) {
  const gamma = meanOfAll(eachGradient(step, after(step, step.g)));
  const P = mapEach(gamma, (number, name, j) => number * difference(coefficients(step, name, j), step.g[name][j], step.g[name][j]));
  return { values: step.x.map((x_i) => dot(P, x_i)) };
}

// --- the calls -------------------------------------------------------------------------------------------------------

function updated(step, given) {
  const [beta1, beta2] = step.adam.betas, g = step.g;
  const groups = {
    params: after(step, g),
    m: mapEach(step.m, (m, name, j) => beta1 * m + (1 - beta1) * g[name][j]),
    v: mapEach(step.v, (v, name, j) => beta2 * v + (1 - beta2) * g[name][j] ** 2),
  };
  const named = { step: step.t };
  for (const [kind, group] of Object.entries(groups)) {
    for (const [name, list] of Object.entries(group)) named[`${kind}.${name}`] = shapedLike(given.params[name], list);
  }
  return named;
}

// A flat list as rows, where the parameter has rows.
const shapedLike = (like, list) =>
  Array.isArray(like[0]) ? like.map((row, o) => list.slice(o * row.length, (o + 1) * row.length)) : list;

// Σ_i x_i, ⟨direction, x_i⟩ and Σ_i x_i² of each parameter, where x_i is the gradient of the sample's own loss.
function captures(given) {
  const theta = flatEach(given.params), directions = flatEach(given.options.directions);
  const x = given.train.x.map((x_i, i) => sampleGradient(given.network, theta, x_i, given.train.y[i]));
  const sums = addAll(x), squares = addAll(x.map((x_i) => mapEach(x_i, (number) => number ** 2)));
  const named = {};
  for (const [name, like] of Object.entries(given.params)) {
    named[`sum.${name}`] = shapedLike(like, sums[name]);
    named[`dot.${name}`] = x.map((x_i) => dot({ P: directions[name] }, { P: x_i[name] }));
    named[`squares.${name}`] = shapedLike(like, squares[name]);
  }
  return named;
}

export function answer(given) {
  check(given);
  if (given.function === "captures") return captures(given);
  const step = prepare(given), options = given.options;
  switch (given.function) {
    case "update":
      return updated(step, given);
    case "utility":
      return { values: utility(step, options.coalition) };
    case "marginals":
      return marginals(step, options);
    case "scores":
      return scores(step, options);
    case "influence":
      return influence(step);
    default:
      throw new Unsupported(`function ${given.function}`);
  }
}
