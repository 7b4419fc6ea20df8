/** Deadlines for calls that have none of their own (other objects, the bucket). */
import { QuireError } from "../protocol/errors.ts";

/**
 * What `promise` gives, if it does so in time; the call itself goes on.
 * @throws {QuireError} `deadline_exceeded` after `msMax`
 */
export async function within<T>(msMax: number, promise: Promise<T>): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    late.reject(new QuireError("deadline_exceeded", "A part of the server did not answer in time."));
  }, msMax);
  try {
    return await Promise.race([promise, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}

/** What `promise` gives, if it does so in time, else undefined; the call itself goes on. */
export async function ifWithin<T>(msMax: number, promise: Promise<T>): Promise<T | undefined> {
  const late = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => late.resolve(undefined), msMax);
  try {
    return await Promise.race([promise, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}
