// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/cli/execcredential"
)

// asker adds the flags of a request to a command.
func asker(cmd *cobra.Command, q *ask) (args *[]string) {
	args = new([]string)
	f := cmd.Flags()
	f.StringVar(&q.permission, "for", "", "the permission's name in the workflow; fixes what it alone allows")
	f.StringVar(&q.target, "target", "", "the target; not needed with --for")
	f.StringVar(&q.action, "action", "", "the action; not needed with --for")
	f.StringArrayVar(args, "arg", nil, "NAME=VALUE: an argument; VALUE is JSON, else a string")
	f.DurationVar(&q.ttl, "ttl", 0, "how long; never longer than the permission's ttl")
	f.StringVar(&q.url, "url", "", "the server's HTTPS address (default $"+envURL+")")
	f.StringVar(&q.receipts, "receipts", "", "file to which the answer's receipt is added, for remit ledger audit")
	f.StringVar(&q.tokenFile, "run-token", "", "file with the run token (default $"+envRunToken+")")
	return args
}

func (q *ask) setArgs(pairs []string) error {
	m, err := parsePairs(pairs, "--arg")
	if err != nil {
		return err
	}
	q.args = map[string]json.RawMessage{}
	for k, v := range m {
		if json.Valid([]byte(v)) {
			q.args[k] = json.RawMessage(v)
			continue
		}
		q.args[k] = remit.AppendJSONString(nil, v)
	}
	return nil
}

func (a *app) credentialCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "credential", Short: "Credentials in the form that other programs call for, as the agent of this process"}
	cmd.AddCommand(a.credentialKubernetes(), a.credentialPostgres(), a.credentialToken())
	return cmd
}

func (a *app) credentialKubernetes() *cobra.Command {
	q := &ask{action: "kubernetes.apply"}
	cmd := &cobra.Command{Use: "kubernetes", Short: "kubectl's exec credential plugin (ExecCredential v1)", Args: cobra.NoArgs}
	args := asker(cmd, q)
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		if err := execcredential.Check(os.Getenv("KUBERNETES_EXEC_INFO")); err != nil {
			return badUse("%s", err.Msg).hint("%s", err.Hint)
		}
		if err := q.setArgs(*args); err != nil {
			return err
		}
		asked := time.Now()
		got, err := q.request(c.Context())
		if err != nil {
			return err
		}
		out := execcredential.Answer{APIVersion: execcredential.Version, Kind: execcredential.Kind,
			Status: execcredential.Status{Expires: asked.Add(time.Duration(got.ExpiresIn) * time.Second).UTC().Truncate(time.Second), Token: got.AccessToken}}
		return json.NewEncoder(a.out).Encode(out)
	}
	return cmd
}

func (a *app) credentialToken() *cobra.Command {
	q := &ask{}
	cmd := &cobra.Command{Use: "token", Short: "Print the credential's token alone", Args: cobra.NoArgs,
		Long:    "Print the credential's token alone. With --resource HTTPS-ADDRESS/mcp it is an access token of the MCP gateway, for a client that\ncan send nothing but Authorization; with -o json it comes with its remaining seconds and with the SPIFFE ID and the trust bundle\nthat the gateway is known by.",
		Example: "  remit credential token --for read\n  remit credential token --resource $REMIT_URL/mcp -o json"}
	args := asker(cmd, q)
	cmd.Flags().StringVar(&q.resource, "resource", "", "an enforcement point of the server, such as HTTPS-ADDRESS/mcp")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		if q.resource != "" && (q.permission != "" || q.target != "" || q.action != "" || len(*args) > 0) {
			return badUse("--resource stands alone: an access token is for what the stage of the run permits")
		}
		if err := q.setArgs(*args); err != nil {
			return err
		}
		got, err := q.request(c.Context())
		if err != nil {
			return err
		}
		if a.output == "json" && q.resource != "" {
			return json.NewEncoder(a.out).Encode(map[string]any{"access_token": got.AccessToken, "expires_in": got.ExpiresIn,
				"token_type": "Bearer", "server": got.server.String(), "bundle": string(got.bundle)})
		}
		fmt.Fprintln(a.out, got.AccessToken)
		return nil
	}
	return cmd
}

// heldPause is the token endpoint's interval (RFC 8628 section 3.5).
const heldPause = 5 * time.Second

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *app) grantRequestCommand() *cobra.Command {
	q := &ask{}
	cmd := &cobra.Command{Use: "request", Short: "Ask for a grant as the agent of this process; prints the token endpoint's answer",
		Args: cobra.NoArgs}
	args := asker(cmd, q)
	wait := cmd.Flags().Duration("wait", 0, "while people have not answered, ask again for so long")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		if err := q.setArgs(*args); err != nil {
			return err
		}
		got, err := q.request(c.Context())
		for end := time.Now().Add(*wait); remit.CodeOf(err) == remit.CodeHeld && time.Now().Before(end); got, err = q.request(c.Context()) {
			if cerr := pause(c.Context(), min(heldPause, time.Until(end))); cerr != nil {
				return cerr
			}
		}
		if no, ok := errors.AsType[*denied](err); ok && a.output == "json" {
			fmt.Fprintf(a.out, "%s\n", no.body)
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s\n", got.raw)
		return nil
	}
	return cmd
}
