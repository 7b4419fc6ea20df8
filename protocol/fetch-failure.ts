/**
 * Why a `fetch` failed, for whoever runs this: the system's code (`ENOTFOUND`, `ECONNREFUSED`), else what its cause says (`bad port`), else the
 * error's name (`TimeoutError`). The error itself says only that something failed.
 */
export function fetchFailure(error: unknown): string {
  const { name, cause } = Object(error) as { name?: unknown; cause?: { code?: unknown; message?: unknown } };
  const said = [cause?.code, cause?.message, name].find((text) => typeof text === "string" && text !== "");
  return said === undefined ? String(error) : String(said);
}
