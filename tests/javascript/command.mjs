// node command.mjs CASES ANSWERS: answers a JSON file of cases, for adamshap verify --command.
import { readFileSync, writeFileSync } from "node:fs";
import { answer } from "./adamshap.mjs";
import { Unsupported } from "./numbers.mjs";

const [cases, answers] = process.argv.slice(2);

function reply(given) {
  try {
    return answer(given);
  } catch (error) {
    return error instanceof Unsupported ? { unsupported: error.message } : { error: String(error) };
  }
}

writeFileSync(answers, JSON.stringify(JSON.parse(readFileSync(cases, "utf8")).map(reply)));
