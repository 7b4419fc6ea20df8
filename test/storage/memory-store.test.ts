import { MemoryStore } from "../../storage/memory-store.ts";
import { describeStore } from "./conformance.ts";

describeStore("memory", { open: async () => new MemoryStore(), rounds: 10, interruptible: false });
