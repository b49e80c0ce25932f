// SPDX-License-Identifier: Apache-2.0

// An OpenID provider for tests: oidc-provider as it is, where whoever comes is the account that the header X-Test-Account
// names. Settings come as JSON in the environment variable PROVIDER; one line with the port goes to standard output.
import https from 'node:https';
import { Provider } from 'oidc-provider';

const { cert, key, accounts, client } = JSON.parse(process.env.PROVIDER);

const server = https.createServer({ cert, key });
server.listen(0, '127.0.0.1', () => {
  const issuer = `https://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: client,
        token_endpoint_auth_method: 'none',
        application_type: 'native',
        redirect_uris: ['http://127.0.0.1/callback'],
        grant_types: ['authorization_code', 'urn:ietf:params:oauth:grant-type:device_code'],
      },
    ],
    cookies: { keys: ['of tests'] },
    claims: { openid: ['sub'], profile: ['preferred_username', 'groups'] },
    conformIdTokenClaims: false,
    pkce: { required: () => true },
    findAccount: (_, id) => ({ accountId: id, claims: () => accounts[id] }),
    features: {
      devInteractions: { enabled: false },
      deviceFlow: {
        enabled: true,
        userCodeInputSource: (ctx, form) => { ctx.body = form; },
        userCodeConfirmSource: (ctx, form) => { ctx.body = form; },
        successSource: (ctx) => { ctx.body = 'done'; },
      },
    },
    interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  });
  provider.on('server_error', (_, err) => console.error(err));
  const handler = provider.callback();
  server.on('request', async (req, res) => {
    if (!req.url.startsWith('/interaction/')) {
      handler(req, res);
      return;
    }
    try {
      await answer(provider, req, res);
    } catch (err) {
      console.error(err);
      res.writeHead(500).end(String(err));
    }
  });
  console.log(issuer);
});

// answer logs the account in, or lets it consent to all that is asked.
async function answer(provider, req, res) {
  const { prompt, params, session } = await provider.interactionDetails(req, res);
  const accountId = req.headers['x-test-account'];
  if (!accounts[accountId]) {
    await provider.interactionFinished(req, res, { error: 'access_denied' });
    return;
  }
  if (prompt.name === 'login') {
    await provider.interactionFinished(req, res, { login: { accountId } });
    return;
  }
  const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  await provider.interactionFinished(req, res, { consent: { grantId: await grant.save() } }, { mergeWithLastSubmission: true });
}

process.stdin.resume();
process.stdin.on('end', () => process.exit(0)); // whoever started it is gone
