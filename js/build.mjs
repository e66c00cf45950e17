// Builds the package in dist/ (modules, types and source maps, for bundlers), and the module that the server serves.
// An argument is another folder for the latter, to compare it with what is committed.

import { execFileSync } from "node:child_process";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";
import { minify } from "terser";

import { shortNames } from "./names.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const served = process.argv[2] ?? join(here, "../pgbus_gevent/web/static");

/** What docs/browser.md promises. */
const BROWSERS = ["chrome85", "firefox90", "safari15"];

rmSync(join(here, "dist"), { recursive: true, force: true });
execFileSync(process.execPath, [join(here, "node_modules/typescript/bin/tsc"), "-p", here], { stdio: "inherit" });

const { outputFiles } = await build({
  absWorkingDir: here,
  entryPoints: ["src/element.ts"],
  outfile: "pgbus.js",
  bundle: true,
  write: false,
  format: "esm",
  charset: "utf8",
  target: BROWSERS,
  // Chrome before 91 has it too; it is wrong only for a spread in the arguments of a call, which the sources do not have.
  supported: { "optional-chain": true },
  minifySyntax: true,
  sourcemap: "linked",
});
const [map, bundle] = outputFiles.map(({ text }) => text);

const { code, map: finalMap } = await minify(
  { "pgbus.js": bundle },
  {
    module: true,
    ecma: 2020,
    compress: { passes: 4, unsafe_arrows: true, unsafe_methods: true, pure_getters: true, keep_fargs: false },
    // What goes over a channel to tabs with another build has no such names.
    mangle: { properties: { regex: /^_/ } },
    nameCache: { props: { props: shortNames(bundle) } },
    format: { comments: false },
    sourceMap: { content: JSON.parse(map), filename: "pgbus.js", url: "pgbus.js.map", includeSources: true },
  },
);
const sources = JSON.parse(finalMap);
// Names as they are in the package, wherever it was built.
sources.sources = sources.sources.map((name) => `pgbus-gevent/${name}`);
mkdirSync(served, { recursive: true });
writeFileSync(join(served, "pgbus.js"), `${code}\n`);
writeFileSync(join(served, "pgbus.js.map"), `${JSON.stringify(sources)}\n`);
