// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/api"
	"remit/internal/keyfile"
)

// worth sums up what this installation is worth: how well an agent's process can be known, and what makes it worth less.
func (s *Server) worth(checks []api.Check) api.Check {
	var broken, weak []string
	for _, c := range checks {
		switch {
		case !c.OK:
			broken = append(broken, c.Name)
		case c.Warn:
			weak = append(weak, c.Name)
		}
	}
	out := api.Check{Name: "worth", OK: true, Warn: len(broken)+len(weak) > 0, Text: "agents on this host reach level " + s.reachable().String()}
	if len(broken) > 0 {
		out.Text += "; broken: " + strings.Join(broken, ", ")
	}
	if len(weak) > 0 {
		out.Text += "; weak: " + strings.Join(weak, ", ")
	}
	if out.Warn {
		out.Fix = "the lines below say what to mend; docs/hardening.md says why"
	}
	return out
}

// reachable is the best level that a process on this host can have.
func (s *Server) reachable() remit.Level {
	switch {
	case peerPIDFD() != nil:
		return remit.LevelNone
	case !mayInspect():
		return remit.LevelUser
	}
	return remit.LevelLaunched
}

// mayInspect reports whether the server may see what processes of other users run: root, or CAP_SYS_PTRACE.
func mayInspect() bool {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if hex, ok := strings.CutPrefix(lines.Text(), "CapEff:\t"); ok {
			caps, err := strconv.ParseUint(hex, 16, 64)
			return err == nil && caps&(1<<unix.CAP_SYS_PTRACE) != 0
		}
	}
	return false
}

// peerPIDFD tries what attestation stands on.
func peerPIDFD() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fds[0]) //nolint:errcheck // nothing is in it
	defer unix.Close(fds[1]) //nolint:errcheck // likewise
	fd, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

func (s *Server) checkAttestation() api.Check {
	out := api.Check{Name: "attestation", OK: true, Text: "processes are held by pidfd, and their executables can be measured"}
	if err := peerPIDFD(); err != nil {
		out.OK, out.Text, out.Fix = false, "the kernel does not say which process connects: "+err.Error(), "Linux 6.5 or newer is needed"
	} else if !mayInspect() {
		out.Warn, out.Text = true, "the server may not see what processes of other users run: paths and digests hold for nobody, launches are refused"
		out.Fix = "give it CAP_SYS_PTRACE, as deploy/systemd/remit.service does"
	}
	return out
}

// checkKeys is S7: plaintext key files are shown for what they are.
func (s *Server) checkKeys() api.Check {
	out := api.Check{Name: "key files", OK: true, Text: "wrapped by a passphrase; the keys are in the server's memory while it runs"}
	info, err := os.Stat(s.path(dirKeys))
	if err != nil || info.Mode().Perm()&0o077 != 0 {
		out.OK, out.Text, out.Fix = false, "others can enter "+s.path(dirKeys), "chmod 700 "+s.path(dirKeys)
		return out
	}
	plain, err := keyfile.Plain(s.path(dirKeys))
	if err != nil {
		out.OK, out.Text = false, err.Error()
		return out
	}
	if len(plain) > 0 {
		out.Warn, out.Text = true, "plaintext, of mode 0600: "+strings.Join(plain, ", ")
		out.Fix = "remit keys wrap, with the server stopped; whoever can act as the server's user, or has its disk, has them"
	}
	return out
}

// checkUIDs shows agents that are operators on the admin socket (S2), which only allow_own_uid lets stand.
func (s *Server) checkUIDs() api.Check {
	out := api.Check{Name: "users", OK: true, Text: "no agent, tool or enforcement point runs as an operator"}
	set := s.rev.Load().set
	if shared := s.sharedUsers(set); len(shared) > 0 {
		out.Warn, out.Text = true, shared[0].Error()
		if len(shared) > 1 {
			out.Text += fmt.Sprintf(", and %d more", len(shared)-1)
		}
		out.Fix = "give each a user of its own"
		return out
	}
	for _, name := range slices.Sorted(maps.Keys(set.Agents)) {
		if l := set.Agents[name].Launch; l != nil && !l.OwnUID {
			out.Warn, out.Text, out.Fix = true, fmt.Sprintf("%s is launched under its launcher's user", name), "give its launch a uid of its own"
		}
	}
	return out
}

func (s *Server) checkPeople() api.Check {
	text := fmt.Sprintf("%d operators by uid on this host; nobody logs in from elsewhere", len(s.cfg.Operators))
	if p := s.cfg.People; p != nil {
		text = fmt.Sprintf("%d operators by uid on this host; others log in at %s for %s", len(s.cfg.Operators), p.Issuer, p.Session)
	}
	if n := len(s.cfg.Jobs); n > 0 {
		text += fmt.Sprintf("; %d CI jobs log in", n)
	}
	return api.Check{Name: "people", OK: true, Text: text}
}

func (s *Server) checkWitnesses() api.Check {
	if n := len(s.cfg.Witnesses); n > 0 {
		return api.Check{Name: "witnesses", OK: true, Text: fmt.Sprintf("%d cosign the ledger's checkpoints", n)}
	}
	return api.Check{Name: "witnesses", OK: true, Warn: true, Text: "none: who has the ledger's key and disk could show two people two histories",
		Fix: "remit witness serve on another machine, and witnesses in remit.yaml"}
}
