// Activation functions.

// Complementary error function: a series of positive terms near 0, a continued fraction further out.
function erfc(z) {
  const size = Math.abs(z);
  let tail;
  if (size < 1.5) {
    let term = (2 * size) / Math.sqrt(Math.PI), series = term;
    for (let k = 1; term > 1e-18 * series; k++) series += term *= (2 * size * size) / (2 * k + 1);
    tail = 1 - Math.exp(-size * size) * series;
  } else {
    let fraction = size;
    for (let k = 120; k > 0; k--) fraction = size + k / 2 / fraction;
    tail = Math.exp(-size * size) / Math.sqrt(Math.PI) / fraction;
  }
  return z < 0 ? 2 - tail : tail;
}

const sigmoid = (z) => (z < 0 ? Math.exp(z) / (1 + Math.exp(z)) : 1 / (1 + Math.exp(-z)));
const normalBelow = (z) => erfc(-z / Math.SQRT2) / 2;
const normalDensity = (z) => Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI);

// Each activation with its derivative.
export const ACTIVATIONS = {
  identity: [(z) => z, () => 1],
  relu: [(z) => (z > 0 ? z : 0), (z) => (z > 0 ? 1 : 0)],
  tanh: [Math.tanh, (z) => 4 * sigmoid(2 * z) * sigmoid(-2 * z)],
  sigmoid: [sigmoid, (z) => sigmoid(z) * sigmoid(-z)],
  silu: [(z) => z * sigmoid(z), (z) => sigmoid(z) * (1 + z * sigmoid(-z))],
  gelu: [(z) => z * normalBelow(z), (z) => normalBelow(z) + z * normalDensity(z)],
};
