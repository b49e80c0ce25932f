// SPDX-License-Identifier: Apache-2.0

// An agent that is the MCP inspector's command line: WAY PROGRAM ARG…, where the way is https (an access token and an address) or bridge
// (remit mcp). The inspector hands nothing of its environment to a server that it starts, so the bridge's is named.
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const [way, program, ...args] = process.argv.slice(2);
const { REMIT_URL: url } = process.env;
const env = { ...process.env, HOME: mkdtempSync(join(tmpdir(), 'inspector-')), MCP_INSPECTOR_SECRET_STORE: 'memory' };
let target;
if (way === 'https') {
  const token = JSON.parse(execFileSync('remit', ['credential', 'token', '--resource', `${url}/mcp`, '-o', 'json']));
  env.NODE_EXTRA_CA_CERTS = join(env.HOME, 'bundle.pem');
  writeFileSync(env.NODE_EXTRA_CA_CERTS, token.bundle);
  target = [`${url}/mcp`, '--transport', 'http', '--stored-auth-only', '--header', `Authorization: Bearer ${token.access_token}`];
} else {
  const named = ['REMIT_URL', 'REMIT_RUN_TOKEN_FILE', 'SPIFFE_ENDPOINT_SOCKET'].flatMap((name) => ['-e', `${name}=${process.env[name]}`]);
  target = [...named, 'remit', 'mcp'];
}
const done = spawnSync(process.execPath, [program, '--cli', ...target, ...args], { env, stdio: 'inherit' });
process.exit(done.status ?? 1);
