// What must be refused: a case without a right answer is an error, never a number.
import { Unsupported, range } from "./numbers.mjs";

const ADAM = ["lr", "betas", "eps", "eps_root", "weight_decay"];
const SLOPES = ["sgd", "frozen", "linearized", "tangent", "secant", "random_order", "auto", "two_term"];

export function need(right, field, needs) {
  if (!right) throw new Error(`${field}: needs ${needs}`);
}

const whole = (number) => Number.isInteger(number);
const shapeOf = (array) => (Array.isArray(array) ? [array.length, ...shapeOf(array[0])] : []);
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const names = (object) => Object.keys(object).sort();
const notNegative = (number) => typeof number === "number" && number >= 0;

function checkAdam(adam) {
  need(same(names(adam), [...ADAM].sort()), "adam", `exactly the names ${ADAM.join(", ")}`);
  for (const beta of adam.betas) need(beta >= 0 && beta < 1, "adam.betas", "numbers in [0, 1)");
  for (const name of ADAM) need(name === "betas" || notNegative(adam[name]), `adam.${name}`, "a number of at least 0");
}

// The names and shapes of a perceptron's parameters.
function shapes({ sizes, bias }) {
  return Object.fromEntries(
    range(sizes.length - 1).flatMap((layer) => [
      [`${layer}.weight`, [sizes[layer + 1], sizes[layer]]],
      ...(bias ? [[`${layer}.bias`, [sizes[layer + 1]]]] : []),
    ]),
  );
}

function checkState({ network, params, state }) {
  if (network.kind === undefined) {
    const wanted = shapes(network);
    need(same(names(params), names(wanted)), "params", `exactly the names ${names(wanted).join(", ")}`);
    for (const name of names(params)) need(same(shapeOf(params[name]), wanted[name]), "params", `shapes ${wanted[name]}`);
  }
  need(whole(state.step) && state.step >= 0, "state.step", "an integer of at least 0");
  for (const moments of [state.m, state.v]) {
    need(same(names(moments), names(params)), "state", "a moment for each parameter");
    for (const name of names(params)) need(same(shapeOf(moments[name]), shapeOf(params[name])), "state", "shapes as in params");
  }
  for (const name of names(state.v)) need(state.v[name].flat(Infinity).every(notNegative), "state.v", "no negative number");
}

function checkBatch(field, { x, y }, network) {
  need(x.length > 0, field, "at least one sample");
  need(x.length === y.length, `${field}.y`, "a label or target for each sample");
  if (network.kind === undefined) need(x.every((x_i) => x_i.length === network.sizes[0]), `${field}.x`, "inputs of the network's width");
}

function checkOptions({ function: called, options, state, train }) {
  if (called === "utility") need(options.coalition.length === train.x.length, "coalition", "one of true and false for each sample");
  if (called !== "scores") return;
  need(SLOPES.includes(options.slope), "slope", `one of ${SLOPES.join(", ")}`);
  need(options.nodes.every((count) => whole(count) && count >= 1), "nodes", "integers of at least 1");
  need(options.denominator !== "previous" || state.step > 0, "denominator", "'exact' at t = 1");
}

export function check(given) {
  if (given.adam === undefined) throw new Unsupported("optimisers with groups, schedules, clipping or L2 decay");
  checkAdam(given.adam);
  need(["mean", "sum"].includes(given.reduction), "reduction", "mean or sum");
  for (const field of ["train", "valid"]) checkBatch(field, given[field], given.network);
  checkState(given);
  checkOptions(given);
}
