/** Flags without a value, which the parser of flags with values does not know. */

/** Takes the switches among `names` out of the arguments. */
export function takeSwitches(
  args: readonly string[],
  names: readonly string[],
): { rest: string[]; given: ReadonlySet<string> } {
  const isSwitch = (arg: string): boolean => arg.startsWith("--") && names.includes(arg.slice(2));
  return {
    rest: args.filter((arg) => !isSwitch(arg)),
    given: new Set(args.filter(isSwitch).map((arg) => arg.slice(2))),
  };
}
