// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"remit/internal/api"
	"remit/internal/server"
)

func (a *app) toolDigestCommand() *cobra.Command {
	return &cobra.Command{
		Use: "digest FOLDER", Short: "Print the digest over a tool's files, for its file's files: digest",
		Long:    "Read all files of the folder, without a server, and print the digest over them: paths, kinds, contents, and whether a file\nis executable. What it is for is what you reviewed: a tool whose files have another digest is not run.",
		Example: "  remit tool digest /opt/tools/issue-refund", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := server.DigestTool(args[0])
			if err != nil {
				return badUse("%v", err)
			}
			return a.show(map[string]string{"folder": args[0], "digest": string(d)}, func() { fmt.Fprintln(a.out, d) })
		},
	}
}

func (a *app) toolList(c *cobra.Command, _ []string) error {
	var list api.List[api.Tool]
	if err := a.get(c.Context(), "/v1/tools", a.page(), &list); err != nil {
		return err
	}
	return a.show(list, func() {
		var rows [][]string
		for _, t := range list.Items {
			rows = append(rows, []string{string(t.Name), cmp.Or(string(t.Asked), "-"), yes(t.Pinned), strconv.Itoa(t.Sandboxes), state(t.Suspended), cmp.Or(t.URL, strings.Join(t.Command, " "), "-")})
		}
		a.table("TOOL TIER PINNED SANDBOXES STATE SERVER", rows)
		a.noteNext(list.Next)
	})
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func state(suspended bool) string {
	if suspended {
		return "suspended"
	}
	return "active"
}

func (a *app) toolShow(c *cobra.Command, args []string) error {
	var t api.Tool
	if err := a.get(c.Context(), "/v1/tools/"+strings.TrimPrefix(args[0], "tool/"), nil, &t); err != nil {
		return err
	}
	return a.show(t, func() {
		runs := string(t.Tier)
		if t.Driver != "" {
			runs += " (" + t.Driver + ")"
		}
		a.fields("tool", string(t.Name), "id", t.ID, "owner", t.Owner, "state", state(t.Suspended), "command", strings.Join(t.Command, " "), "files", t.Files,
			"digest", string(t.Digest), "url", t.URL, "pinned", yes(t.Pinned), "asks for", string(t.Asked), "runs in", runs, "sandboxes", strconv.Itoa(t.Sandboxes))
		for _, p := range t.Problems {
			fmt.Fprintln(a.out, "does not start:", clean(p))
		}
	})
}

func (a *app) sandboxList(c *cobra.Command, _ []string) error {
	var list api.List[api.Sandbox]
	if err := a.get(c.Context(), "/v1/sandboxes", a.page(), &list); err != nil {
		return err
	}
	return a.show(list, func() {
		var rows [][]string
		for _, b := range list.Items {
			rows = append(rows, []string{string(b.ID), string(b.Tool), string(b.Run), b.Stage, string(b.Tier), strconv.FormatUint(b.Calls, 10), cmp.Or(string(b.Call), "-"), stamp(b.Started)})
		}
		a.table("SANDBOX TOOL RUN STAGE TIER CALLS SERVES STARTED", rows)
		a.noteNext(list.Next)
	})
}

func (a *app) sandboxShow(c *cobra.Command, args []string) error {
	var b api.Sandbox
	if err := a.get(c.Context(), "/v1/sandboxes/"+args[0], nil, &b); err != nil {
		return err
	}
	return a.show(b, func() {
		cause := b.Cause
		if cause == "exited" {
			cause = fmt.Sprintf("exited with %d", b.Code)
		}
		a.fields("sandbox", string(b.ID), "tool", string(b.Tool), "run", string(b.Run), "stage", b.Stage, "tier", fmt.Sprintf("%s (%s)", b.Tier, b.Driver), "program", b.Program,
			"files", string(b.Files), "identity", string(b.Launch), "started", stamp(b.Started), "calls", strconv.FormatUint(b.Calls, 10), "serves", string(b.Call),
			"ended", stamp(b.Ended), "cause", strings.TrimSpace(cause+" "+b.Detail), "why", b.Why)
		a.sandboxDid(&b)
	})
}

// sandboxDid prints what was used and seen.
func (a *app) sandboxDid(b *api.Sandbox) {
	var u struct {
		Peak, Output int64
		CPU          time.Duration
	}
	if json.Unmarshal(b.Usage, &u) == nil {
		a.fields("used", fmt.Sprintf("%d MiB at most, %s of processor time, %d bytes written", u.Peak>>20, u.CPU.Round(time.Millisecond), u.Output))
	}
	var d struct {
		Executed, Opened, Connected, More, Dropped uint64
		Programs, Addresses                        []string
	}
	if b.Activity == nil || json.Unmarshal(b.Activity, &d) != nil {
		return
	}
	a.fields("seen", fmt.Sprintf("%d executed, %d opened, %d connected; %d not seen", d.Executed, d.Opened, d.Connected, d.Dropped))
	for _, p := range d.Programs {
		a.fields("  executed", p)
	}
	for _, p := range d.Addresses {
		a.fields("  connected", p)
	}
	if d.More > 0 {
		a.fields("  more", strconv.FormatUint(d.More, 10))
	}
}
