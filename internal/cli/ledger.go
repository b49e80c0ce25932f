// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/api"
	"remit/internal/ledger"
	"remit/internal/server"
)

func (a *app) ledgerCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ledger", Short: "The tamper-evident record: list, show, prove, verify, audit"}
	cmd.AddCommand(a.ledgerListCommand(),
		a.ledgerShowCommand(), a.ledgerEraseCommand(), a.ledgerExportCommand(),
		&cobra.Command{Use: "prove SEQ", Short: "Prove that an entry is in the log (JSON: entry, path, checkpoint)", Args: cobra.ExactArgs(1), RunE: a.ledgerProve},
		a.ledgerVerifyCommand(), a.ledgerAuditCommand(), a.rotateKeyCommand())
	return cmd
}

func (a *app) ledgerListCommand() *cobra.Command {
	filter := map[string]*string{}
	cmd := &cobra.Command{Use: "list", Short: "List entries, oldest first", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		q := a.page()
		for k, v := range filter {
			if *v != "" {
				q.Set(k, *v)
			}
		}
		return a.ledgerList(c.Context(), q)
	}}
	for _, k := range []string{"kind", "agent", "run", "decision", "grant", "lease"} {
		filter[k] = cmd.Flags().String(k, "", "only entries of this "+k)
	}
	return cmd
}

// head is what every entry has.
type head struct {
	At       string          `json:"at"`
	Kind     string          `json:"kind"`
	Agent    string          `json:"agent"`
	By       string          `json:"by"`
	Decision string          `json:"decision"`
	Grant    string          `json:"grant"`
	Data     json.RawMessage `json:"data"`
}

func (a *app) ledgerList(ctx context.Context, q url.Values) error {
	var list api.List[api.Entry]
	if err := a.get(ctx, "/v1/ledger", q, &list); err != nil {
		return err
	}
	return a.show(list, func() {
		var rows [][]string
		for _, e := range list.Items {
			var h head
			_ = json.Unmarshal(e.Event, &h)
			rows = append(rows, []string{strconv.FormatUint(e.Seq, 10), h.At, h.Kind, h.Agent, h.Decision, summary(h)})
		}
		a.table("SEQ AT KIND AGENT DECISION WHAT", rows)
		a.noteNext(list.Next)
	})
}

// summary says the gist of an entry in a few words.
func summary(h head) string {
	var d struct {
		Finding string         `json:"finding"`
		Effect  string         `json:"effect"`
		Action  string         `json:"action"`
		Reasons []remit.Reason `json:"reasons"`
		Why     string         `json:"why"`
		Reason  string         `json:"reason"`
		Op      string         `json:"op"`
		Verb    string         `json:"verb"`
		Res     string         `json:"resource"`
		Outcome string         `json:"outcome"`
	}
	_ = json.Unmarshal(h.Data, &d)
	words := []string{d.Finding, d.Effect, d.Action, d.Op, d.Verb, d.Res, d.Outcome, d.Why, d.Reason}
	for _, r := range d.Reasons {
		words = append(words, string(r.Code))
	}
	return strings.Join(strings.Fields(strings.Join(words, " ")), " ")
}

func (a *app) ledgerProve(c *cobra.Command, args []string) error {
	var raw []byte
	if err := a.get(c.Context(), "/v1/ledger/"+args[0]+"/proof", nil, &raw); err != nil {
		return err
	}
	_, err := a.out.Write(raw)
	return err
}

// openLog opens the files of a log and its public key, given as a file or as the key's text.
func openLog(dir, key string) (*ledger.Log, error) {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil, badUse("there is no log at %s", dir).hint("name the folder with the checkpoint and the tiles, such as remit/ledger")
	}
	switch b, err := os.ReadFile(key); {
	case err == nil:
		key = strings.TrimSpace(string(b))
	case !strings.Contains(key, "+"): // a key's text is NAME+HASH+BASE64
		return nil, badUse("--key: %v", err).hint("give the file ledger.pub that remit init wrote, kept apart from the log")
	}
	public, err := ledger.ParsePublicKey(key)
	if err != nil {
		return nil, badUse("--key: %v", err).hint("give the file ledger.pub that remit init wrote, kept apart from the log")
	}
	return ledger.OpenLog(dir, public)
}

// verifying is what a log is held against beside its own files and the key.
type verifying struct {
	key, remember, receipts, state, disclosed string
	witnesses                                 []string
	quorum                                    int
}

func (a *app) ledgerVerifyCommand() *cobra.Command {
	v := &verifying{}
	cmd := &cobra.Command{Use: "verify DIR", Short: "Verify a log offline: its files and the public key are enough", Args: cobra.ExactArgs(1),
		Long: `Verify a log offline. Finds a flipped bit, a removed, reordered or inserted entry; with --remember also a log that was
rolled back since the last visit; with --receipts entries that were promised and are not there; with --state, the
server's state.db, entries that are durable but not in the log yet.

Exits with 0 only if nothing is wrong and nothing that is known to be durable is missing.`,
		RunE: func(c *cobra.Command, args []string) error { return a.ledgerVerify(c.Context(), args[0], v) }}
	f := cmd.Flags()
	f.StringVar(&v.key, "key", "", "the ledger's public key: a file, or the key itself")
	f.StringVar(&v.remember, "remember", "auto", "file that keeps the checkpoint of the last visit, made or renewed when all is well; auto: one for each log in the\nuser's state directory; off: none")
	f.StringArrayVar(&v.witnesses, "witness", nil, "a witness's public key, or a file with it; may be repeated")
	f.IntVar(&v.quorum, "quorum", 0, "how many of the witnesses must have cosigned the checkpoint")
	f.StringVar(&v.disclosed, "disclosed", "", "file with disclosed values, each line SEQ DISCLOSURE, to check against the log's commitments")
	f.StringVar(&v.receipts, "receipts", "", "file with receipts, one JSON object a line")
	f.StringVar(&v.state, "state", "", "the server's state.db, to name what is not in the log yet")
	_ = cmd.MarkFlagRequired("key")
	return cmd
}

func (a *app) ledgerVerify(ctx context.Context, dir string, v *verifying) error {
	log, err := openLog(dir, v.key)
	if err != nil {
		return err
	}
	opts := ledger.VerifyOptions{Quorum: v.quorum}
	if opts.Witnesses, err = witnessKeys(v.witnesses); err != nil {
		return err
	}
	if v.remember, err = a.memoryOf(log, v.remember); err != nil {
		return err
	}
	held, err := readReceipts(v.receipts)
	if err != nil {
		return err
	}
	for _, p := range held {
		opts.Receipts = append(opts.Receipts, p.Receipt)
	}
	if v.remember != "" {
		switch b, err := os.ReadFile(v.remember); {
		case err == nil:
			opts.Remembered = [][]byte{b}
		case !errors.Is(err, fs.ErrNotExist):
			return badUse("--remember: %v", err).hint("what was remembered must be readable, or a rolled-back log would pass")
		default:
			a.note("first visit: nothing was remembered in %s yet", v.remember)
		}
	}
	if v.state != "" {
		tail, err := server.OpenTail(v.state)
		if err != nil {
			return badUse("--state: %v", err).hint("name the server's state.db")
		}
		defer tail.Close()
		opts.Tail = tail
	}
	report, err := log.Verify(ctx, opts)
	if err != nil {
		return err
	}
	if err := a.showReport(&report); err != nil {
		return err
	}
	if err := a.checkDisclosed(ctx, log, v.disclosed); err != nil {
		return err
	}
	if v.remember != "" {
		_, err = log.Remember(ctx, v.remember)
	}
	return err
}

func readReceipts(file string) ([]ledger.Promise, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, badUse("%v", err)
	}
	defer f.Close()
	return ledger.ReadReceipts(f)
}

func (a *app) showReport(r *ledger.Report) error {
	err := a.show(r, func() {
		for _, p := range r.Problems {
			fmt.Fprintf(a.out, "entry %d: %s: %s\n", p.Seq, p.Kind, clean(p.What))
		}
		if r.Unsequenced != nil {
			fmt.Fprintf(a.out, "entries %d to %d are durable but not in the log yet\n", r.Unsequenced.First, r.Unsequenced.Last)
		}
		if r.Complete() {
			for _, w := range r.Witnesses {
				fmt.Fprintln(a.out, "cosigned by", clean(w))
			}
			fmt.Fprintf(a.out, "intact: %s, %d entries, root %s\n", r.Origin, r.Size, base64.StdEncoding.EncodeToString(r.Root))
		}
	})
	if err == nil && !r.Intact() {
		return fmt.Errorf("the log is NOT intact: %d problems, the first: %s", len(r.Problems)+r.Unlisted, r.Problems[0].What)
	}
	//remit:guard S34 TestScripts test/script
	if err == nil && !r.Complete() {
		return fmt.Errorf("the log is NOT complete: entries %d to %d were promised and are not in it; a running server puts them there "+
			"within two seconds: verify again", r.Unsequenced.First, r.Unsequenced.Last)
	}
	return err
}

func (a *app) ledgerAuditCommand() *cobra.Command {
	var key, dir string
	cmd := &cobra.Command{Use: "audit RECEIPTS", Short: "Prove that every receipted entry is in the log", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			log, err := openLog(dir, key)
			if err != nil {
				return err
			}
			receipts, err := readReceipts(args[0])
			if err != nil {
				return err
			}
			results, err := log.Audit(c.Context(), receipts)
			if err != nil {
				return err
			}
			return a.showAudit(results)
		}}
	cmd.Flags().StringVar(&key, "key", "", "the ledger's public key: a file, or the key itself")
	cmd.Flags().StringVar(&dir, "log", "", "the log's folder")
	_ = cmd.MarkFlagRequired("key")
	_ = cmd.MarkFlagRequired("log")
	return cmd
}

func (a *app) showAudit(results []ledger.AuditResult) error {
	bad := 0
	for _, r := range results {
		//remit:guard S34 TestScripts test/script
		if r.Status != ledger.AuditProven {
			bad++
		}
	}
	err := a.show(results, func() {
		for _, r := range results {
			fmt.Fprintln(a.out, strings.Join(strings.Fields(fmt.Sprintf("%d %s %s %s %s", r.Seq, r.Status, r.Decision, r.Effect, r.Why)), " "))
		}
		fmt.Fprintf(a.out, "%d receipts, %d proven\n", len(results), len(results)-bad)
	})
	if err == nil && bad > 0 {
		return fmt.Errorf("%d of %d receipts are not proven; a running server puts entries into the log within two seconds", bad, len(results))
	}
	return err
}
