// node run_vectors.mjs FOLDER: tries the test vectors of FOLDER on adamshap.mjs. Exit status 0: all pass, 1: some fail.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { answer } from "./adamshap.mjs";
import { Unsupported } from "./numbers.mjs";

const folder = process.argv[2];

// The first disagreement of two numbers, or nested lists of them, as a sentence; "" where all are within the bound.
function disagreement(got, expected, bound, where) {
  if (!Array.isArray(expected)) {
    if (typeof got === "number" && Math.abs(got - expected) <= bound) return "";
    return `${where}: got ${JSON.stringify(got)}, expected ${expected}, bound ${bound}`;
  }
  if (!Array.isArray(got) || got.length !== expected.length) return `${where}: has another shape`;
  return expected.map((one, i) => disagreement(got[i], one, bound[i], `${where}[${i}]`)).find(Boolean) ?? "";
}

function judge({ case: given, expected, bound }) {
  try {
    const got = answer(given);
    return Object.keys(expected).map((name) => disagreement(got[name], expected[name], bound[name], name)).find(Boolean) ?? "";
  } catch (error) {
    return error instanceof Unsupported ? error : String(error);
  }
}

let passed = 0, failed = 0, unsupported = 0;
for (const name of ["update", "utility", "marginals", "scores", "influence"]) {
  for (const vector of JSON.parse(readFileSync(join(folder, `${name}.json`), "utf8")).vectors) {
    const sentence = judge(vector);
    if (sentence instanceof Unsupported) {
      unsupported++;
      continue;
    }
    if (sentence) console.log(`${vector.name}: ${sentence}; exposes ${vector.exposes.join(", ")}`);
    if (sentence) failed++;
    else passed++;
  }
}
console.log(`${passed} passed, ${failed} failed, ${unsupported} not supported`);
process.exitCode = failed ? 1 : 0;
