// What the host calls. See control.ts for the memory both sides share.
export { dispatch, workerLoop } from "./pool";
export { writeExpTable } from "./vector";
