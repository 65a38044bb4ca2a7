// node run_vectors.mjs FOLDER: tries the test vectors of FOLDER on adamshap.mjs. Exit status 0: all pass, 1: some fail.
import { existsSync, readFileSync } from "node:fs";
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

const compare = (got, { expected, bound }) =>
  Object.keys(expected).map((name) => disagreement(got[name], expected[name], bound[name], name)).find(Boolean) ?? "";

// { status, sentence }, and the variant that the answer follows, if any.
function result({ flag, case: given, reason, variants = [], ...vector }) {
  let got;
  try {
    got = answer(given);
  } catch (error) {
    if (error instanceof Unsupported) return { status: "not supported" };
    return flag === "must_refuse" ? { status: "passed" } : { status: "failed", sentence: String(error) };
  }
  if (flag === "must_refuse") return { status: "failed", sentence: `answered, although ${reason}` };
  const sentence = compare(got, vector);
  const variant = sentence && variants.find((one) => !compare(got, one));
  return sentence && !variant ? { status: "failed", sentence } : { status: "passed", variant: variant?.name };
}

const counts = { passed: 0, failed: 0, "not supported": 0 };
for (const name of ["update", "utility", "marginals", "scores", "influence", "captures", "must_refuse"]) {
  const file = join(folder, `${name}.json`);
  if (!existsSync(file)) continue; // version 1 has fewer
  for (const vector of JSON.parse(readFileSync(file, "utf8")).vectors) {
    const { status, sentence, variant } = result(vector);
    counts[status]++;
    if (status === "failed") console.log(`${vector.name}: ${sentence}; exposes ${(vector.exposes ?? []).join(", ")}`);
    if (variant) console.log(`${vector.name}: follows the variant ${variant}`);
  }
}
console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts["not supported"]} not supported`);
process.exitCode = counts.failed ? 1 : 0;
