// The published reference client, driven by lines of JSON on stdin; what it calls back is a line of JSON on stdout.
import { createInterface } from "node:readline";
import { GatewayClient } from "@openclaw/gateway-client";

const say = (kind, members = {}) => process.stdout.write(`${JSON.stringify({ kind, ...members })}\n`);
const told = (error) => ({ name: error.name, message: error.message, code: error.gatewayCode, details: error.details });

const client = new GatewayClient({
  clientName: "gateway-client",
  mode: "backend",
  platform: "test",
  clientVersion: "1",
  scopes: ["operator.admin", "operator.read", "operator.write"],
  deviceIdentity: null,
  ...JSON.parse(process.argv[2]),
  onHelloOk: (hello) => say("hello", { hello }),
  onEvent: (event) => say("event", { event }),
  onGap: (gap) => say("gap", { gap }),
  onClose: (code, reason) => say("close", { code, reason }),
  onConnectError: (error) => say("connectError", { error: told(error) }),
  onReconnectPaused: (info) => say("paused", { info }),
});

async function request({ id, method, params, expectFinal }) {
  try {
    const onAccepted = (payload) => say("accepted", { id, payload });
    say("result", { id, payload: await client.request(method, params, { expectFinal, onAccepted }) });
  } catch (error) {
    say("refused", { id, error: told(error) });
  }
}

client.start();
for await (const line of createInterface({ input: process.stdin })) void request(JSON.parse(line));
await client.stopAndWait();
