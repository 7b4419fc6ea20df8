import { openDevice } from "../../kernels/open.ts";
import { describeConformance } from "./conformance.ts";

describeConformance("reference", () => openDevice({ kind: "reference" }));
