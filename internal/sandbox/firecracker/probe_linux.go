// SPDX-License-Identifier: Apache-2.0

package firecracker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"remit/internal/sandbox"
)

// Host is where the driver looks at the host.
type Host struct {
	CPUInfo string // /proc/cpuinfo
	KVM     string // /dev/kvm
}

var realHost = Host{CPUInfo: "/proc/cpuinfo", KVM: "/dev/kvm"}

// virtual is what a processor of x86 says that can run virtual machines. A device of the same name may be there without: made in
// software, in which every machine hangs.
var virtual = regexp.MustCompile(`(?m)^flags\s*:.*\b(vmx|svm)\b`)

// lacks says what is missing before a machine can be tried, cheapest first.
func (d *Driver) lacks() []sandbox.Problem {
	var out []sandbox.Problem
	add := func(fix, format string, args ...any) {
		out = append(out, sandbox.Problem{What: fmt.Sprintf(format, args...), Fix: fix})
	}
	if os.Geteuid() != 0 {
		add("run remit serve as root; the jailer gives each machine a user of its own", "Firecracker's jailer needs root")
	}
	switch runtime.GOARCH {
	case "amd64":
		if b, err := os.ReadFile(d.host.CPUInfo); err != nil || !virtual.Match(b) {
			add("use a bare-metal machine, or one whose provider allows nested virtualisation", "the processor has no hardware virtualisation (neither vmx nor svm in %s)", d.host.CPUInfo)
		}
	case "arm64":
	default:
		add("use x86-64 or arm64", "Firecracker does not run on %s", runtime.GOARCH)
	}
	if f, err := os.OpenFile(d.host.KVM, os.O_RDWR, 0); err != nil {
		add(d.fixKVM(sandbox.ThisHost()), "no KVM: %v", err)
	} else {
		_ = f.Close()
	}
	for _, name := range []string{machineFile, jailerFile, kernelFile, imageFile} {
		if what, fix := d.lacksFile(name); what != "" {
			add(fix, "%s", what)
		}
	}
	return out
}

// modules are the kernel's for the processors that say so.
var modules = map[string]string{"vmx": "kvm_intel", "svm": "kvm_amd"}

// fixKVM names the module of this processor.
func (d *Driver) fixKVM(h sandbox.Host) string {
	fix := "in a container, give it the device " + d.host.KVM
	b, err := os.ReadFile(d.host.CPUInfo)
	m := virtual.FindSubmatch(b)
	switch {
	case err != nil || m == nil: // of another kind, whose kernel has it built in
		return fix
	case h.Has("modprobe"):
		return "modprobe " + modules[string(m[1])] + ", as root; " + fix
	}
	return "load the kernel's module " + modules[string(m[1])] + " on the host; " + fix
}

// from says where a file comes from.
var from = map[string]string{
	machineFile: "copy it from a release of Firecracker (1.x, static) for this architecture",
	jailerFile:  "copy it from the same release as firecracker",
	kernelFile:  "build a guest kernel by Firecracker's documentation, with VIRTIO_VSOCKETS, VIRTIO_BLK, DEVTMPFS, TMPFS and the image's file system in it",
	imageFile:   "make it as docs/sandbox.md says, The root image",
}

// lacksFile says what is wrong with one of the files: absent, or anybody's to change.
func (d *Driver) lacksFile(name string) (what, fix string) {
	at := d.file(name)
	info, err := os.Lstat(at)
	if err != nil {
		return fmt.Sprintf("%s is not there", at), from[name]
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !info.Mode().IsRegular() || !ok {
		return at + " is no file", from[name]
	}
	//remit:guard S24 TestFilesOfOthers
	if stat.Uid != 0 || info.Mode().Perm()&0o022 != 0 || !folderIsRoots(filepath.Dir(at)) {
		return at + " can be changed by others than root", "chown -R root:root " + d.folder + " && chmod -R go-w " + d.folder
	}
	if program := name == machineFile || name == jailerFile; program && info.Mode().Perm()&0o100 == 0 {
		return at + " cannot be executed", "chmod 755 " + at
	}
	if info.Mode().Perm()&0o004 == 0 {
		return at + " cannot be read by the machine's user", "chmod a+r " + at
	}
	return "", ""
}

func folderIsRoots(dir string) bool {
	var s unix.Stat_t
	return unix.Stat(dir, &s) == nil && s.Uid == 0 && s.Mode&0o022 == 0
}

// Probe boots a machine.
func (d *Driver) Probe(ctx context.Context) sandbox.Report {
	r := sandbox.Report{Driver: d.Name(), Tier: d.Tier(), Limits: []string{"memory", "processes", "wall", "output"}}
	if r.Problems = d.lacks(); len(r.Problems) > 0 {
		return r
	}
	if d.groups != nil {
		r.Limits = append(r.Limits, "cpu")
	} else {
		r.Problems = append(r.Problems, sandbox.Problem{What: "no limit of processor time beside the number of processors: " + d.groupsErr.Error(),
			Fix: sandbox.ThisHost().GroupFix()})
	}
	said, took, err := sandbox.TryOut(ctx, d, "") // the image has the program
	if err == nil && !strings.HasPrefix(said, fmt.Sprintf("uid=%d ", nobody)) {
		err = fmt.Errorf("the sandbox says %.200q, and is not user %d", said, nobody)
	}
	if err != nil {
		r.Problems = append(r.Problems, sandbox.Problem{What: err.Error(), Fix: "see docs/sandbox.md, The root image; the kernel and the image have to fit each other"})
		return r
	}
	r.Works, r.Evidence, r.Took = true, said, took
	return r
}
