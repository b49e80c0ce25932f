// SPDX-License-Identifier: Apache-2.0

package sandbox_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"remit/internal/sandbox"
)

const (
	most     = "user.max_user_namespaces"
	clone    = "kernel.unprivileged_userns_clone"
	apparmor = "kernel.apparmor_restrict_unprivileged_userns"
)

// TestNamespaceFix: of the settings only those are named that forbid something here, and setting them so helps.
func TestNamespaceFix(t *testing.T) {
	for name, c := range map[string]struct {
		root     bool
		settings map[string]string
		set      string // what sysctl is to set; empty: nothing
	}{
		"no such settings":     {false, nil, ""},
		"all allow":            {false, map[string]string{most: "95000", clone: "1", apparmor: "0"}, ""},
		"none at all":          {false, map[string]string{most: "0"}, most + "=15000"},
		"none at all, as root": {true, map[string]string{most: "0"}, most + "=15000"},
		"Debian":               {false, map[string]string{most: "95000", clone: "0"}, clone + "=1"},
		"Debian, as root":      {true, map[string]string{most: "95000", clone: "0"}, ""},
		"Ubuntu":               {false, map[string]string{most: "95000", apparmor: "1"}, apparmor + "=0"},
		"Ubuntu, as root":      {true, map[string]string{most: "95000", apparmor: "1"}, ""},
		"everything forbids":   {false, map[string]string{most: "0", clone: "0", apparmor: "1"}, most + "=15000 " + clone + "=1 " + apparmor + "=0"},
		"a container, as root": {true, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, sysctl := range []bool{true, false} {
				h := sandbox.Host{Root: c.root, Settings: t.TempDir(), Path: t.TempDir()}
				if sysctl {
					fakeSysctl(t, h)
				}
				for k, v := range c.settings {
					set(t, h, k, v)
				}
				tryFix(t, h, c.set)
			}
		})
	}
}

// tryFix looks at the fix for h, does what it says and looks that it says so no more. want are the settings that it is to set.
func tryFix(t *testing.T, h sandbox.Host, want string) {
	t.Helper()
	fix := h.NamespaceFix()
	if strings.Contains(fix, "as root, or ") == h.Root {
		t.Errorf("root is %v: %s", h.Root, fix)
	}
	_, command, found := strings.Cut(fix, ", as root: ")
	if found != (want != "") || found == strings.Contains(fix, "systemd") {
		t.Fatalf("it says %q, want to set %q", fix, want)
	}
	for _, setting := range strings.Fields(want) {
		k, v, _ := strings.Cut(setting, "=")
		if !strings.Contains(command, setting) && !strings.Contains(command, "echo "+v+" > "+h.Settings+"/"+strings.ReplaceAll(k, ".", "/")) {
			t.Errorf("it says %q, which does not set %s", command, setting)
		}
	}
	cmd := exec.Command("/bin/sh", "-c", command)
	cmd.Env = []string{"PATH=" + h.Path, "SETTINGS=" + h.Settings}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	if again := h.NamespaceFix(); strings.Contains(again, ", as root: ") {
		t.Errorf("done, and it says %q", again)
	}
}

// fakeSysctl sets in h what sysctl -w does on a host.
func fakeSysctl(t *testing.T, h sandbox.Host) {
	t.Helper()
	const script = `#!/bin/sh
[ "$1" = -w ] && [ $# = 2 ] || exit 1
name=${2%%=*} at=$SETTINGS
IFS=.
for part in $name; do at=$at/$part; done
[ -f "$at" ] && echo "${2#*=}" > "$at"
`
	if err := os.WriteFile(filepath.Join(h.Path, "sysctl"), []byte(script), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
}

func set(t *testing.T, h sandbox.Host, name, value string) {
	t.Helper()
	at := filepath.Join(h.Settings, strings.ReplaceAll(name, ".", "/"))
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, []byte(value+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestGroupFix: root is not told to be root.
func TestGroupFix(t *testing.T) {
	for root, want := range map[bool]string{false: "run remit as root", true: "control group of its own"} {
		if fix := (sandbox.Host{Root: root}).GroupFix(); !strings.HasPrefix(strings.TrimPrefix(fix, "start remit in a "), want) || !strings.Contains(fix, "Delegate=yes") {
			t.Errorf("root is %v: %s", root, fix)
		}
	}
}

// TestHas: a folder, a file that cannot be executed and what is not there are no commands.
func TestHas(t *testing.T) {
	h := sandbox.Host{Path: t.TempDir() + ":" + t.TempDir()}
	second := filepath.SplitList(h.Path)[1]
	for name, mode := range map[string]os.FileMode{"there": 0o755, "plain": 0o644} {
		if err := os.WriteFile(filepath.Join(second, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(second, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"there": true, "plain": false, "folder": false, "none": false} {
		if got := h.Has(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if !sandbox.ThisHost().Has("sh") {
		t.Error("this host has no sh")
	}
}
