/** Preloaded into an engine's process (`node --import`): its clock is wrong by so many milliseconds. */
const skewMs = Number(process.env.QUIRE_LIFE_SKEW_MS ?? 0);
const { now } = Date;
if (skewMs !== 0) Date.now = () => now() + skewMs;
