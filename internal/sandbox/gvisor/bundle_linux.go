// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/runsc/boot"

	"remit/internal/sandbox"
)

// nobody is who a tool is.
const nobody = 65534

// hostPlaces are what every tool sees of the host, read-only: programs and libraries, and the trusted certificates.
var hostPlaces = []string{"/usr", "/etc/alternatives", "/etc/ld.so.cache", "/etc/ssl"}

// hostRoots are links into /usr on most hosts, and folders on others.
var hostRoots = []string{"/bin", "/sbin", "/lib", "/lib64"}

// rememberFlag lets a sandbox's kernel remember what it saw of its mounts: nobody changes them while a tool runs, but those of changing.
const rememberFlag = "--file-access-mounts=exclusive"

// ownFiles stand in the root instead of the host's.
var ownFiles = map[string]string{
	"etc/passwd": "nobody:x:65534:65534:nobody:/tmp:/bin/sh\n",
	"etc/group":  "nogroup:x:65534:\n",
	"etc/hosts":  "127.0.0.1 localhost\n::1 localhost\n",
}

// writeBundle makes the folder that describes a sandbox: an empty root with a place for each mount, and config.json.
func writeBundle(folder string, s sandbox.Spec) error {
	root := filepath.Join(folder, "rootfs")
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec"}},
		{Destination: sandbox.ScratchAt, Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "nodev", "mode=1777", fmt.Sprintf("size=%d", s.Limits.Scratch)}},
	}
	var errs []error
	for _, dir := range []string{"proc", "dev", "sys", "tmp", "etc"} {
		errs = append(errs, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for name, content := range ownFiles {
		errs = append(errs, os.WriteFile(filepath.Join(root, name), []byte(content), 0o644))
	}
	places, err := hostMounts(root)
	errs = append(errs, err)
	for _, m := range append(places, s.Places()...) {
		mode := "ro"
		if m.Write {
			mode = "rw"
		}
		errs = append(errs, mountPoint(root, m))
		mounts = append(mounts, specs.Mount{Destination: m.At, Type: "bind", Source: m.From, Options: []string{mode, "rbind", "nosuid", "nodev"}})
	}
	spec := ociSpec(s, mounts)
	spec.Annotations = changing(s)
	config, err := json.Marshal(spec)
	errs = append(errs, err, os.WriteFile(filepath.Join(folder, "config.json"), config, 0o600))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("write the root of a sandbox: %w", err)
	}
	return nil
}

// changing names the mounts that somebody may change while the tool runs: those of its file, and its sockets, which come after the kernel.
// The kernel asks the host about each step of a path there. Of the others (hostPlaces, and the tool's files, which are a copy) it
// remembers what it saw, and what was not there (rememberFlag).
func changing(s sandbox.Spec) map[string]string {
	out, named := map[string]string{}, map[string]bool{s.Files: true}
	for i, m := range s.Places() {
		if named[m.From] {
			continue
		}
		named[m.From] = true
		hint := fmt.Sprintf("%schanging%d.", boot.MountPrefix, i)
		out[hint+"source"], out[hint+"type"], out[hint+"share"] = m.From, boot.Bind, "shared"
	}
	return out
}

// hostMounts returns what of the host is mounted, and makes the links.
func hostMounts(root string) ([]sandbox.Mount, error) {
	var out []sandbox.Mount
	for _, at := range hostPlaces {
		if _, err := os.Stat(at); err == nil { // a host may lack some: an image of only one program
			out = append(out, sandbox.Mount{From: at, At: at})
		}
	}
	for _, at := range hostRoots {
		if to, err := os.Readlink(at); err == nil {
			if err := os.Symlink(to, filepath.Join(root, at)); err != nil {
				return nil, err
			}
		} else if _, err := os.Stat(at); err == nil {
			out = append(out, sandbox.Mount{From: at, At: at})
		}
	}
	return out, nil
}

// mountPoint makes the file or folder in root on which m is mounted.
func mountPoint(root string, m sandbox.Mount) error {
	info, err := os.Stat(m.From)
	if err != nil {
		return err
	}
	at := filepath.Join(root, m.At)
	if info.IsDir() {
		return os.MkdirAll(at, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	return os.WriteFile(at, nil, 0o644)
}

func ociSpec(s sandbox.Spec, mounts []specs.Mount) *specs.Spec {
	rlimit := func(kind string, n uint64) specs.POSIXRlimit { return specs.POSIXRlimit{Type: kind, Hard: n, Soft: n} }
	var namespaces []specs.LinuxNamespace
	for _, kind := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace} {
		namespaces = append(namespaces, specs.LinuxNamespace{Type: kind})
	}
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			User: specs.User{UID: nobody, GID: nobody}, Args: s.Command, Env: s.Environ(), Cwd: sandbox.ScratchAt,
			NoNewPrivileges: true, Capabilities: &specs.LinuxCapabilities{},
			Rlimits: []specs.POSIXRlimit{rlimit("RLIMIT_NPROC", uint64(s.Limits.Processes)), rlimit("RLIMIT_NOFILE", 1024), rlimit("RLIMIT_CORE", 0)},
		},
		Root:     &specs.Root{Path: "rootfs", Readonly: true},
		Hostname: "tool",
		Mounts:   mounts,
		Linux:    &specs.Linux{Namespaces: namespaces},
	}
}
