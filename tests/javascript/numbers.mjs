// Sums over lists of numbers, and over named lists of them.

export class Unsupported extends Error {}

export const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
export const mean = (numbers) => sum(numbers) / numbers.length;
export const range = (count) => Array.from({ length: count }, (_, i) => i);

// A parameter is a flat list of numbers, a set of them {name: list}.
export const mapEach = (named, change) =>
  Object.fromEntries(Object.entries(named).map(([name, list]) => [name, list.map((number, j) => change(number, name, j))]));
export const dot = (one, other) =>
  sum(Object.keys(one).map((name) => sum(one[name].map((number, j) => number * other[name][j]))));
export const addAll = (parts) => mapEach(parts[0], (_, name, j) => sum(parts.map((part) => part[name][j])));
