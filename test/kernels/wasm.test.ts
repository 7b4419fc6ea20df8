/** The CPU device against the conformance suite. With several threads every op goes through the pool, however small it is. */
import { openWasmDevice } from "../../kernels/wasm/open-wasm.ts";
import { describeConformance } from "./conformance.ts";
import { INTEGER_ATTENTION_TOLERANCES } from "./support/lane.ts";

const OPTIONS = { tolerances: INTEGER_ATTENTION_TOLERANCES };

describeConformance("wasm, 1 thread", () => openWasmDevice({ threads: 1 }), OPTIONS);
describeConformance("wasm, 2 threads", () => openWasmDevice({ threads: 2, sharedWorkMin: 0 }), OPTIONS);
describeConformance("wasm, 3 threads", () => openWasmDevice({ threads: 3, sharedWorkMin: 0 }), OPTIONS);
