// What the host calls. See control.ts for the memory both sides share.
export { runQueue, workerLoop } from "./pool";
export { writeExpTable } from "./vector";
