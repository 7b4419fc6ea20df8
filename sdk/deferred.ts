/** A promise and what settles it: `Promise.withResolvers`, which Node 20 and browsers before 2024 do not have. */
export interface Deferred<T> {
  promise: Promise<T>;
  resolve(value: T): void;
}

/** A promise that its maker resolves later, at most once; it is never rejected. */
export function deferred<T>(): Deferred<T> {
  let resolve: (value: T) => void = () => {};
  const promise = new Promise<T>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}
