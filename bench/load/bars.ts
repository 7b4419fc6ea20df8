/** What a load must meet: figures with the least or the most that they may be. */

/** One figure and its bar. */
export interface Bar {
  /** What is measured, with its unit. */
  name: string;
  /** Undefined where the run gave no figure: the bar is missed then. */
  value: number | undefined;
  /** At most, or at least, this. */
  most?: number;
  least?: number;
  isMet: boolean;
}

/** A figure that may be so much at most. */
export function atMost(name: string, value: number | undefined, most: number): Bar {
  return { name, value, most, isMet: value !== undefined && value <= most };
}

/** A figure that must be so much at least. */
export function atLeast(name: string, value: number | undefined, least: number): Bar {
  return { name, value, least, isMet: value !== undefined && value >= least };
}

/** One line each. */
export function barLines(bars: readonly Bar[]): string[] {
  return bars.map(({ name, value, most, least, isMet }) => {
    const bound = most === undefined ? `>= ${least}` : `<= ${most}`;
    return `${isMet ? "met   " : "MISSED"}  ${name}: ${value === undefined ? "no figure" : shown(value)} (bar ${bound})`;
  });
}

function shown(value: number): string {
  return String(Math.round(value * 1000) / 1000);
}
