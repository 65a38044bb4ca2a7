// The loss of one sample and its gradient, for perceptrons and stacks of layers (docs/method.md 8).
import { need } from "./checks.mjs";
import { stack } from "./layers.mjs";
import { Unsupported, mapEach, mean, range, sum } from "./numbers.mjs";

// A network as { layers, names, loss }; a perceptron is a stack of linear layers and activations.
function stackOf(network) {
  if (network.kind === "sequential") return network;
  if (network.kind !== undefined) throw new Unsupported(`models of kind ${network.kind}`);
  const linears = range(network.sizes.length - 1);
  const layers = linears.flatMap(() => [
    { kind: "linear", bias: network.bias },
    { kind: "activation", function: network.activation },
  ]);
  const names = linears.flatMap((number) => [`${number}`, `activation ${number}`]);
  return { layers: layers.slice(0, -1), names: names.slice(0, -1), loss: network.loss };
}

// The rows that layers take: tokens as they are, a sample without positions as one row.
const rowsOf = (network, x) => (Array.isArray(x[0]) || network.layers[0].kind === "embedding" ? x : [x]);

// The loss of a sample by the rows `out`, and its gradient by them.
function lossOf({ loss }, out, y) {
  if (loss === "mse") {
    const targets = [y].flat(Infinity), width = out[0].length, count = targets.length;
    const errors = out.map((row, t) => row.map((number, i) => number - targets[t * width + i]));
    const value = mean(errors.flat().map((error) => error ** 2));
    return { value, b: errors.map((row) => row.map((error) => (2 * error) / count)) };
  }
  // The mean over the counted positions, those with a label other than -100.
  const labels = [y].flat(), counted = labels.filter((label) => label !== -100).length;
  need(counted > 0, "y", "a label that is counted in each sample");
  const each = out.map((z, t) => (labels[t] === -100 ? { value: 0, b: z.map(() => 0) } : crossEntropy(z, labels[t])));
  return { value: sum(each.map(({ value }) => value)) / counted, b: each.map(({ b }) => b.map((b_o) => b_o / counted)) };
}

function crossEntropy(z, label) {
  need(Number.isInteger(label) && label >= 0 && label < z.length, "y", `labels from 0 to ${z.length - 1}`);
  const largest = Math.max(...z), total = sum(z.map((z_o) => Math.exp(z_o - largest)));
  const value = Math.log(total) - (z[label] - largest);
  return { value, b: z.map((z_o, o) => Math.exp(z_o - largest) / total - (o === label ? 1 : 0)) };
}

export function sampleLoss(given, theta, x, y) {
  const network = stackOf(given);
  return lossOf(network, stack(network.layers, network.names, theta, rowsOf(network, x)).out, y).value;
}

export function sampleGradient(given, theta, x, y) {
  const network = stackOf(given), gradient = mapEach(theta, () => 0);
  const { out, back } = stack(network.layers, network.names, theta, rowsOf(network, x));
  back(lossOf(network, out, y).b, gradient);
  return gradient;
}
