/**
 * Python in parsed chat templates, where the Jinja library does as JavaScript does: it strips JavaScript's white space and
 * ignores what else is to be stripped (Qwen3 strips line breaks and keeps spaces), and to it "" equals false (Llama 2 asks
 * whether a system prompt is false).
 */

/** What Python's `str.isspace` is true for, which is what it strips when nothing is said. */
const WHITE_SPACE = new Set(
  "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a" +
    "\u2028\u2029\u202f\u205f\u3000",
);

/** A node of the library's syntax tree: `type` and whatever that type has. */
interface Node {
  type: string;
  [field: string]: unknown;
}

/** Names that no template can write: a method call becomes a call of the function of that name with the string in front. */
const FUNCTIONS = new Map([
  ["strip", "str.strip"],
  ["lstrip", "str.lstrip"],
  ["rstrip", "str.rstrip"],
]);

const EQUAL = "py.equal";

/** The functions that {@link callPython} puts into templates, by name. */
export const PYTHON_FUNCTIONS = {
  [EQUAL]: equal,
  "str.strip": (text: unknown, chars?: unknown) => strip(text, chars, { left: true, right: true }),
  "str.lstrip": (text: unknown, chars?: unknown) => strip(text, chars, { left: true, right: false }),
  "str.rstrip": (text: unknown, chars?: unknown) => strip(text, chars, { left: false, right: true }),
} as const;

/**
 * Rewrites, in place, every `strip`, `lstrip`, `rstrip`, filter `trim`, `==` and `!=` of a template's syntax tree to a call of
 * one of {@link PYTHON_FUNCTIONS}.
 */
export function callPython(tree: unknown): void {
  if (tree instanceof Map) {
    for (const [key, value] of tree) [key, value].forEach(callPython);
  } else if (Array.isArray(tree)) {
    tree.forEach(callPython);
  } else if (isNode(tree)) {
    Object.values(tree).forEach(callPython);
    rewriteMethod(tree);
    rewriteFilter(tree);
    rewriteComparison(tree);
  }
}

function rewriteMethod(node: Node): void {
  const { callee } = node;
  if (node.type !== "CallExpression" || !isNode(callee) || callee.type !== "MemberExpression") return;
  if (callee.computed === true || !isNode(callee.property)) return;
  const name = FUNCTIONS.get(String(callee.property.value));
  if (name === undefined) return;
  node.args = [callee.object, ...(node.args as unknown[])];
  node.callee = { type: "Identifier", value: name };
}

function rewriteFilter(node: Node): void {
  if (node.type !== "FilterExpression" || !isNode(node.filter)) return;
  const { operand, filter } = node;
  const isCall = filter.type === "CallExpression";
  const name = isCall ? filter.callee : filter;
  if (!isNode(name) || name.value !== "trim") return;
  node.type = "CallExpression";
  node.callee = { type: "Identifier", value: "str.strip" };
  node.args = [operand, ...(isCall ? (filter.args as unknown[]) : [])];
}

function rewriteComparison(node: Node): void {
  if (node.type !== "BinaryExpression" || !isNode(node.operator)) return;
  const { left, right, operator } = node;
  if (operator.value !== "==" && operator.value !== "!=") return;
  const isEqual = isNone(right) ? testNone(left) : isNone(left) ? testNone(right) : callEqual(left, right);
  if (operator.value === "==") Object.assign(node, isEqual);
  else {
    const not = { type: "UnaryOperator", value: "not" };
    Object.assign(node, { type: "UnaryExpression", operator: not, argument: isEqual });
  }
}

function callEqual(left: unknown, right: unknown): Node {
  return { type: "CallExpression", callee: { type: "Identifier", value: EQUAL }, args: [left, right] };
}

/** The library hands none and undefined to functions as the same thing, so this comparison is its own test. */
function testNone(operand: unknown): Node {
  return { type: "TestExpression", operand, negate: false, test: { type: "Identifier", value: "none" } };
}

function isNone(node: unknown): boolean {
  return isNode(node) && node.type === "Identifier" && (node.value === "none" || node.value === "None");
}

function isNode(value: unknown): value is Node {
  return typeof value === "object" && value !== null && typeof (value as { type?: unknown }).type === "string";
}

function strip(text: unknown, chars: unknown, sides: { left: boolean; right: boolean }): string {
  if (typeof text !== "string") throw new TypeError("only strings can be stripped");
  // A keyword argument arrives as a map; None means white space.
  if (chars !== undefined && chars !== null && typeof chars !== "string") {
    throw new TypeError("what is stripped is a string");
  }
  const stripped = typeof chars === "string" ? new Set(chars) : WHITE_SPACE;
  let start = 0;
  let end = text.length;
  while (sides.left && start < end && stripped.has(codePointIn(text, start))) start += codePointIn(text, start).length;
  while (sides.right && end > start && stripped.has(lastCodePointIn(text, end)))
    end -= lastCodePointIn(text, end).length;
  return text.slice(start, end);
}

/** Python's `==`; what lists and mappings hold are the library's values. */
function equal(a: unknown, b: unknown): boolean {
  if (Array.isArray(a) && Array.isArray(b))
    return a.length === b.length && a.every((item, at) => sameValue(item, b[at]));
  if (a instanceof Map && b instanceof Map) {
    return a.size === b.size && [...a].every(([key, item]) => b.has(key) && sameValue(item, b.get(key)));
  }
  return numbered(a) === numbered(b);
}

function sameValue(a: { value: unknown }, b: { value: unknown }): boolean {
  return equal(a.value, b.value);
}

/** True is 1 and false is 0. */
function numbered(value: unknown): unknown {
  return typeof value === "boolean" ? Number(value) : value;
}

function codePointIn(text: string, at: number): string {
  return String.fromCodePoint(text.codePointAt(at) as number);
}

function lastCodePointIn(text: string, end: number): string {
  const pair = text.slice(Math.max(0, end - 2), end);
  return pair.length === 2 && (pair.codePointAt(0) as number) > 0xffff ? pair : text.charAt(end - 1);
}
