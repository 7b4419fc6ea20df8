/** A subcommand of `quire`. */
export interface Command {
  /** What `quire <command> --help` prints. */
  help(): string;
  /**
   * Runs to its end and resolves to the exit code.
   * @throws {UsageError} for what the user can put right.
   */
  run(args: readonly string[]): Promise<number>;
}
