// SPDX-License-Identifier: Apache-2.0

//go:build linux

package firecracker_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"remit"
	"remit/internal/sandbox"
	"remit/internal/sandbox/firecracker"
	"remit/internal/sandbox/sandboxtest"
)

func itoa(n uintptr) string { return strconv.Itoa(int(n)) }

// probe says what a driver of these files and host reports.
func probe(t *testing.T, folder string, h firecracker.Host) sandbox.Report {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("virtual machines need root")
	}
	d, err := firecracker.New(firecracker.Config{State: sandboxtest.Short(t), Folder: folder, Host: h})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r := d.Probe(t.Context())
	_, err = d.Prepare(t.Context(), sandbox.Spec{ID: remit.NewSandboxID(), Command: []string{"/bin/true"}})
	if r.Works != (err == nil) {
		t.Errorf("it reports %+v, and a machine is %v", r, err)
	}
	return r
}

// TestLacks: each thing that is missing is said with its fix, and nothing runs.
func TestLacks(t *testing.T) {
	good := host(t)
	none := filepath.Join(sandboxtest.Short(t), "none")
	weak := filepath.Join(sandboxtest.Short(t), "cpuinfo")
	if err := os.WriteFile(weak, []byte("flags\t\t: fpu vme sse hypervisor\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	kvm := "load the kernel's module kvm_intel" // of the processor of host
	if sandbox.ThisHost().Has("modprobe") {
		kvm = "modprobe kvm_intel"
	}
	amd := filepath.Join(sandboxtest.Short(t), "cpuinfo")
	if err := os.WriteFile(amd, []byte("flags\t\t: fpu vme svm sse\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spoil func(folder string) error
		host  firecracker.Host
		want  string
		fix   string // how it begins, or what of it runs in a shell and mends it
	}{
		"software":    {nil, firecracker.Host{CPUInfo: weak, KVM: good.KVM}, "no hardware virtualisation", "use a bare-metal machine"},
		"no KVM":      {nil, firecracker.Host{CPUInfo: good.CPUInfo, KVM: none}, "no KVM", kvm},
		"no KVM, AMD": {nil, firecracker.Host{CPUInfo: amd, KVM: none}, "no KVM", strings.Replace(kvm, "intel", "amd", 1)},
		"no machine":  {func(f string) error { return os.Remove(f + "/firecracker") }, good, "firecracker is not there", "copy it from a release of Firecracker"},
		"no jailer":   {func(f string) error { return os.Remove(f + "/jailer") }, good, "jailer is not there", "copy it from the same release"},
		"no kernel":   {func(f string) error { return os.Remove(f + "/vmlinux") }, good, "vmlinux is not there", "build a guest kernel"},
		"no image":    {func(f string) error { return os.Remove(f + "/root.img") }, good, "root.img is not there", "make it as docs/sandbox.md says"},
		"no program":  {func(f string) error { return os.Chmod(f+"/jailer", 0o644) }, good, "cannot be executed", "chmod 755 "},
		"private":     {func(f string) error { return os.Chmod(f+"/root.img", 0o600) }, good, "cannot be read", "chmod a+r "},
	} {
		t.Run(name, func(t *testing.T) {
			f := folder(t)
			if c.spoil != nil {
				if err := c.spoil(f); err != nil {
					t.Fatal(err)
				}
			}
			r := probe(t, f, c.host)
			if r.Works || len(r.Problems) != 1 || !strings.Contains(r.Problems[0].What, c.want) || !strings.HasPrefix(r.Problems[0].Fix, c.fix) {
				t.Fatalf("%+v", r)
			}
			if strings.HasPrefix(c.fix, "chmod") {
				mend(t, f, c.host, r.Problems[0].Fix)
			}
		})
	}
}

// mend does what the fix says, and looks that the host lacks nothing more.
func mend(t *testing.T, folder string, h firecracker.Host, fix string) {
	t.Helper()
	if out, err := exec.Command("/bin/sh", "-c", fix).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", fix, err, out)
	}
	if r := probe(t, folder, h); !r.Works {
		t.Errorf("done, and still: %+v", r)
	}
}

// TestFilesOfOthers: programs that others than root can change are not run.
func TestFilesOfOthers(t *testing.T) {
	for name, spoil := range map[string]func(folder string) error{
		"others write": func(f string) error { return os.Chmod(f+"/jailer", 0o777) },
		"other owner":  func(f string) error { return os.Chown(f+"/firecracker", 1234, 0) },
		"open folder":  func(f string) error { return os.Chmod(f, 0o777) },
	} {
		t.Run(name, func(t *testing.T) {
			f := folder(t)
			if err := spoil(f); err != nil {
				t.Skip("only root can give files away")
			}
			r := probe(t, f, host(t))
			if r.Works || !strings.Contains(r.Problems[0].What, "others than root") {
				t.Fatalf("%+v", r)
			}
			mend(t, f, host(t), r.Problems[0].Fix)
		})
	}
}

// TestRealHost says what this host lacks. It is the only test that a host with the hardware and the files runs on a real machine.
func TestRealHost(t *testing.T) {
	d, err := firecracker.New(firecracker.Config{State: sandboxtest.Short(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r := d.Probe(t.Context())
	for _, p := range r.Problems {
		if p.What == "" || p.Fix == "" {
			t.Errorf("a problem without a word: %+v", p)
		}
	}
	if !r.Works {
		t.Skipf("no virtual machine was run: %s", r.Problems[0].What)
	}
	t.Logf("a real machine: %s in %s", r.Evidence, r.Took)
}
