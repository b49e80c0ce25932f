// SPDX-License-Identifier: Apache-2.0

//go:build linux

package firecracker_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"remit/internal/sandbox/sandboxtest"
)

// TestStandInIsStrict: what stands in for Firecracker refuses what Firecracker refuses: unknown fields, files that are not there or
// not readable, a start without a kernel, settings after the start.
func TestStandInIsStrict(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("virtual machines need root")
	}
	root := sandboxtest.Short(t)
	image := filepath.Join(folder(t), "image")
	for name, content := range map[string]string{"vmlinux": "kernel", "root.img": image} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "private"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), vm)
	cmd.Args, cmd.Env = []string{"firecracker", "--id=box-1", "--root=" + root, "--uid=1234", "--api-sock", "/api.sock"}, []string{}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(root, "api.sock"))
	}}}
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		if conn, err := net.Dial("unix", filepath.Join(root, "api.sock")); err == nil {
			_ = conn.Close()
			break
		}
	}
	const boot, drive = `{"kernel_image_path":"/vmlinux","boot_args":"init=/sbin/remit-guest"}`, `{"drive_id":"root","is_root_device":true,"is_read_only":true,"path_on_host":"/root.img"}`
	started := false
	for _, s := range []struct {
		path, body string
		want       int
	}{
		{"/actions", `{"action_type":"InstanceStart"}`, 400},
		{"/actions", `{"action_type":"SendCtrlAltDel"}`, 400},
		{"/machine-config", `{"vcpu_count":1}`, 400},
		{"/machine-config", `{"vcpu_count":0,"mem_size_mib":128}`, 400},
		{"/machine-config", `{"vcpu_count":1,"mem_size_mib":128,"nic":true}`, 400},
		{"/machine-config", `{"vcpu_count":1,"mem_size_mib":128}`, 204},
		{"/boot-source", `{"kernel_image_path":"/none"}`, 400},
		{"/boot-source", boot, 204},
		{"/drives/other", drive, 400},
		{"/drives/root", strings.Replace(drive, "root.img", "private", 1), 400},
		{"/drives/root", strings.Replace(drive, `"is_read_only":true,`, "", 1), 400},
		{"/drives/root", drive, 204},
		{"/drives/second", strings.Replace(drive, `"drive_id":"root"`, `"drive_id":"second"`, 1), 400},
		{"/vsock", `{"guest_cid":2,"uds_path":"/v.sock"}`, 400},
		{"/vsock", `{"guest_cid":3,"uds_path":"/v.sock"}`, 204},
		{"/none", `{}`, 400},
		{"/actions", `{"action_type":"InstanceStart"}`, 204},
		{"/actions", `{"action_type":"InstanceStart"}`, 400},
		{"/vsock", `{"guest_cid":3,"uds_path":"/v.sock"}`, 400},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://localhost"+s.path, strings.NewReader(s.body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err != nil && started { // this image has no guest that stays, and the machine ends with its guest
			t.Logf("PUT %s %s: the machine has ended: %v", s.path, s.body, err)
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		started = started || strings.Contains(s.body, "InstanceStart") && res.StatusCode == 204
		if res.StatusCode != s.want {
			t.Errorf("PUT %s %s: %d, want %d", s.path, s.body, res.StatusCode, s.want)
		}
	}
}
