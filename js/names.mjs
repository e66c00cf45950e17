// Short names for private properties, whose names start with an underscore.

import { parse } from "acorn";

const LETTERS = [..."tseihanrlocdumfpvgbwyxkjzqTSEIHANRLOCDUMFPVGBWYXKJZQ$"];

/**
 * Two properties get the same name if no object has both. So few names are used, and the module becomes smaller once it is compressed.
 * The properties of an object are those that its class uses of `this`. Classes that extend others are taken as one class. The result
 * is a cache of names for terser.
 */
export function shortNames(code) {
  const groups = [new Set()];
  const uses = new Map();
  const visit = (node, group) => {
    if (Array.isArray(node)) return node.forEach((each) => visit(each, group));
    if (!node?.type) return;
    if (node.type.startsWith("Class") && node.type !== "ClassBody") {
      if (node.superClass) group = groups[0];
      else groups.push((group = new Set()));
    }
    const name = (node.key ?? node.property)?.name;
    if (!node.computed && name?.startsWith("_")) {
      uses.set(name, (uses.get(name) ?? 0) + 1);
      if (node.type.endsWith("Definition") || node.object?.type === "ThisExpression") group.add(name);
    }
    Object.values(node).forEach((value) => typeof value === "object" && visit(value, group));
  };
  visit(parse(code, { ecmaVersion: "latest", sourceType: "module" }), undefined);

  const short = new Map();
  for (const [name] of [...uses].sort(([, a], [, b]) => b - a)) {
    const near = groups.filter((group) => group.has(name));
    if (!near.length) throw new Error(`${name} is a private property of no class`);
    const taken = new Set(near.flatMap((group) => [...group].map((other) => short.get(other))));
    const letter = LETTERS.find((each) => !taken.has(each));
    if (!letter) throw new Error("a class has more private properties than there are letters");
    short.set(name, letter);
  }
  return Object.fromEntries([...short].map(([name, letter]) => [`$${name}`, letter]));
}
