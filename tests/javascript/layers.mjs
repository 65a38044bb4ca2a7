// Layers of a stack: forward pass, and backward pass by hand.
//
// A sample is a list of rows, one for each position; without positions it is one row. A layer is a function
// (layer, theta, name, rows) => { out, back }: `out` are its output's rows, and `back(b, gradient)` takes the gradient of
// the loss by `out`, adds that by the layer's parameters to `gradient`, and returns that by `rows`. A parameter that is
// used several times, at several positions or by several layers, is added to several times.
import { ACTIVATIONS } from "./activations.mjs";
import { need } from "./checks.mjs";
import { Unsupported, mean, range, sum } from "./numbers.mjs";

// x Wᵀ + b of each row, with W and b by their full names; `bias` may be undefined.
function affine(theta, weight, bias, rows) {
  const W = theta[weight], d_in = rows[0].length, d_out = W.length / d_in;
  const out = rows.map((a) =>
    range(d_out).map((o) => sum(a.map((a_i, i) => a_i * W[o * d_in + i])) + (bias ? theta[bias][o] : 0)),
  );
  const back = (b, gradient) => {
    rows.forEach((a, t) =>
      b[t].forEach((b_o, o) => {
        a.forEach((a_i, i) => (gradient[weight][o * d_in + i] += b_o * a_i));
        if (bias) gradient[bias][o] += b_o;
      }),
    );
    return b.map((b_t) => range(d_in).map((i) => sum(b_t.map((b_o, o) => b_o * W[o * d_in + i]))));
  };
  return { out, back };
}

function embedding({ width }, theta, name, tokens) {
  const W = theta[`${name}.weight`], vocab = W.length / width;
  need(tokens.every((token) => Number.isInteger(token) && token >= 0 && token < vocab), "x", `tokens below ${vocab}`);
  const back = (b, gradient) =>
    tokens.forEach((token, t) => b[t].forEach((b_i, i) => (gradient[`${name}.weight`][token * width + i] += b_i)));
  return { out: tokens.map((token) => W.slice(token * width, (token + 1) * width)), back };
}

function positions({ width }, theta, name, rows) {
  const W = theta[`${name}.weight`];
  need(rows.length * width <= W.length, "x", `sequences of at most ${W.length / width} positions`);
  const back = (b, gradient) => {
    b.forEach((b_t, t) => b_t.forEach((b_i, i) => (gradient[`${name}.weight`][t * width + i] += b_i)));
    return b;
  };
  return { out: rows.map((x, t) => x.map((x_i, i) => x_i + W[t * width + i])), back };
}

// A norm's gain and bias; `normalized` are the rows ŷ before them, `through(b)` leads the gradient by ŷ back.
function scaled(layer, theta, name, normalized, through) {
  const gain = theta[`${name}.weight`], bias = theta[`${name}.bias`];
  const out = normalized.map((y) => y.map((y_i, i) => y_i * gain[i] + (bias ? bias[i] : 0)));
  const back = (b, gradient) => {
    b.forEach((b_t, t) =>
      b_t.forEach((b_i, i) => {
        gradient[`${name}.weight`][i] += b_i * normalized[t][i];
        if (bias) gradient[`${name}.bias`][i] += b_i;
      }),
    );
    return b.map((b_t, t) => through(b_t.map((b_i, i) => b_i * gain[i]), t));
  };
  return { out, back };
}

function layerNorm(layer, theta, name, rows) {
  const centred = rows.map((x) => x.map((x_i) => x_i - mean(x)));
  const deviations = centred.map((c) => Math.sqrt(mean(c.map((c_i) => c_i ** 2)) + layer.eps));
  const normalized = centred.map((c, t) => c.map((c_i) => c_i / deviations[t]));
  return scaled(layer, theta, name, normalized, (b, t) => {
    const y = normalized[t], along = mean(b.map((b_i, i) => b_i * y[i])), shift = mean(b);
    return b.map((b_i, i) => (b_i - shift - along * y[i]) / deviations[t]);
  });
}

function rmsNorm(layer, theta, name, rows) {
  const sizes = rows.map((x) => Math.sqrt(mean(x.map((x_i) => x_i ** 2)) + layer.eps));
  const normalized = rows.map((x, t) => x.map((x_i) => x_i / sizes[t]));
  return scaled(layer, theta, name, normalized, (b, t) => {
    const y = normalized[t], along = mean(b.map((b_i, i) => b_i * y[i]));
    return b.map((b_i, i) => (b_i - along * y[i]) / sizes[t]);
  });
}

function softmax(numbers) {
  const largest = Math.max(...numbers), e = numbers.map((number) => Math.exp(number - largest)), total = sum(e);
  return e.map((e_i) => e_i / total);
}

const product = (one, other) => sum(one.map((number, i) => number * other[i]));

// One head: softmax(Q Kᵀ/√d) V, where position t sees positions 0 … t.
function head(Q, K, V) {
  const d = Q[0].length;
  const weights = Q.map((q, t) => softmax(range(t + 1).map((u) => product(q, K[u]) / Math.sqrt(d))));
  const out = weights.map((w) => range(d).map((i) => sum(w.map((w_u, u) => w_u * V[u][i]))));
  const back = (b) => {
    const [dQ, dK, dV] = range(3).map(() => Q.map(() => range(d).map(() => 0)));
    weights.forEach((w, t) => {
      const dw = w.map((_, u) => product(b[t], V[u])), along = product(w, dw);
      w.forEach((w_u, u) => {
        const ds = (w_u * (dw[u] - along)) / Math.sqrt(d);
        range(d).forEach((i) => {
          dV[u][i] += w_u * b[t][i];
          dQ[t][i] += ds * K[u][i];
          dK[u][i] += ds * Q[t][i];
        });
      });
    });
    return [dQ, dK, dV];
  };
  return { out, back };
}

function attention({ width, heads, bias }, theta, name, rows) {
  need(width % heads === 0, "heads", `a divisor of the width, ${width}`);
  const size = width / heads;
  const projected = affine(theta, `${name}.in_proj_weight`, bias && `${name}.in_proj_bias`, rows);
  // Query, key and value stand side by side in a row, each with its heads side by side.
  const part = (which, h) => projected.out.map((p) => p.slice(which * width + h * size, which * width + (h + 1) * size));
  const each = range(heads).map((h) => head(part(0, h), part(1, h), part(2, h)));
  const mixed = rows.map((_, t) => each.flatMap(({ out }) => out[t]));
  const { out, back } = affine(theta, `${name}.out_proj.weight`, bias && `${name}.out_proj.bias`, mixed);
  const through = (b, gradient) => {
    const outer = back(b, gradient);
    const inner = each.map((one, h) => one.back(outer.map((b_t) => b_t.slice(h * size, (h + 1) * size))));
    return projected.back(rows.map((_, t) => range(3).flatMap((which) => inner.flatMap((dQKV) => dQKV[which][t]))), gradient);
  };
  return { out, back: through };
}

function residual(layer, theta, name, rows) {
  const { out, back } = stack(layer.layers, layer.names.map((inner) => `${name}.${inner}`), theta, rows);
  const add = (one, other) => one.map((row, t) => row.map((number, i) => number + other[t][i]));
  return { out: add(rows, out), back: (b, gradient) => add(b, back(b, gradient)) };
}

function activation(layer, theta, name, rows) {
  const [value, derivative] = ACTIVATIONS[layer.function];
  const back = (b) => b.map((b_t, t) => b_t.map((b_i, i) => b_i * derivative(rows[t][i])));
  return { out: rows.map((x) => x.map(value)), back };
}

function flatten(layer, theta, name, rows) {
  const width = rows[0].length;
  return { out: [rows.flat()], back: ([b]) => rows.map((_, t) => b.slice(t * width, (t + 1) * width)) };
}

function meanOverPositions(layer, theta, name, rows) {
  const out = [rows[0].map((_, i) => mean(rows.map((x) => x[i])))];
  return { out, back: ([b]) => rows.map(() => b.map((b_i) => b_i / rows.length)) };
}

const LAYERS = {
  linear: ({ bias }, theta, name, rows) => affine(theta, `${name}.weight`, bias && `${name}.bias`, rows),
  tied_linear: ({ weight, bias }, theta, name, rows) => affine(theta, weight, bias && `${name}.bias`, rows),
  embedding,
  positions,
  layer_norm: layerNorm,
  rms_norm: rmsNorm,
  attention,
  residual,
  activation,
  flatten,
  mean_over_positions: meanOverPositions,
};

// Layers one after the other, `names` their full names.
export function stack(layers, names, theta, rows) {
  const backs = [];
  let out = rows;
  layers.forEach((layer, k) => {
    if (!(layer.kind in LAYERS)) throw new Unsupported(`layers of kind ${layer.kind}`);
    const done = LAYERS[layer.kind](layer, theta, names[k], out);
    out = done.out;
    backs.push(done.back);
  });
  return { out, back: (b, gradient) => backs.reduceRight((b_k, back) => back(b_k, gradient), b) };
}
