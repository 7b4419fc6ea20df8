/** What `quire start` prints once everything answers. */

/** The facts of a running stack. */
export interface ReadyFacts {
  url: string;
  apiKey: string;
  modelId: string;
  device: string;
  engineUrl: string;
  enginePid: number | undefined;
  dataPath: string;
}

/** The first line says that it is ready; the curl line can be pasted as it is. */
export function readyBlock(facts: ReadyFacts): string {
  const { url, apiKey, modelId, device, engineUrl, enginePid, dataPath } = facts;
  return `
Quire is ready on ${url}

  API         ${url}/v1
  API key     ${apiKey}
  playground  ${url}/#key=${apiKey}
  model       ${modelId}, on ${device}
  engine      ${engineUrl}, pid ${enginePid}
  data        ${dataPath}

Try it:

${curlLine({ url, apiKey, modelId })}

Ctrl-C stops everything.
`;
}

const question =
  "The harbour was quiet that morning. The code of Badoru is 4821. The boats lay still and the gulls slept. " +
  "What is the code of Badoru?";

/** One line for a POSIX shell: asks for a fact that the message holds. */
export function curlLine({ url, apiKey, modelId }: Pick<ReadyFacts, "url" | "apiKey" | "modelId">): string {
  const body = JSON.stringify({ model: modelId, messages: [{ role: "user", content: question }], temperature: 0 });
  const headers = `-H 'authorization: Bearer ${apiKey}' -H 'content-type: application/json'`;
  return `curl -sS ${url}/v1/chat/completions ${headers} -d '${body}'`;
}
