import { openDevice } from "../../kernels/open.ts";
import { describeConformance } from "./conformance.ts";

for (const threads of [1, 2, 3]) {
  describeConformance(`wasm, ${threads} threads`, () => openDevice({ kind: "wasm", threads }));
}
