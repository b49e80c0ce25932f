// SPDX-License-Identifier: Apache-2.0

package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// The bodies of the requests, as Firecracker's API specification (1.x) names them. There is none for a network interface.
type (
	machineConfig struct {
		VCPUs  int   `json:"vcpu_count"`
		Memory int64 `json:"mem_size_mib"`
	}
	bootSource struct {
		Kernel string `json:"kernel_image_path"`
		Args   string `json:"boot_args"`
	}
	drive struct {
		ID       string `json:"drive_id"`
		Root     bool   `json:"is_root_device"`
		ReadOnly bool   `json:"is_read_only"`
		Path     string `json:"path_on_host"`
	}
	vsockDevice struct {
		CID  uint32 `json:"guest_cid"`
		Path string `json:"uds_path"`
	}
	action struct {
		Type string `json:"action_type"`
	}
	instanceInfo struct {
		App     string `json:"app_name"`
		ID      string `json:"id"`
		State   string `json:"state"`
		Version string `json:"vmm_version"`
	}
)

// client speaks to one Firecracker process over its Unix socket. Its life is that of the preparation of one sandbox.
type client struct{ http *http.Client }

const (
	answerWithin = 10 * time.Second
	maxAnswer    = 64 << 10
)

func newClient(socket string) *client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &client{&http.Client{Timeout: answerWithin, Transport: &http.Transport{DialContext: dial},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// put sends one setting or action, which is answered by 204.
func (c *client) put(ctx context.Context, path string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodPut, path, b, http.StatusNoContent)
	return err
}

// describe asks what this process is and in what state.
func (c *client) describe(ctx context.Context) (instanceInfo, error) {
	var info instanceInfo
	b, err := c.do(ctx, http.MethodGet, "/", nil, http.StatusOK)
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal(b, &info); err != nil {
		return info, fmt.Errorf("read Firecracker's answer: %w", err)
	}
	return info, nil
}

func (c *client) do(ctx context.Context, method, path string, body []byte, want int) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask Firecracker: %w", err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read Firecracker's answer: %w", err)
	}
	if res.StatusCode != want {
		var fault struct {
			Message string `json:"fault_message"`
		}
		_ = json.Unmarshal(b, &fault) // without a message the status says it
		return nil, fmt.Errorf("firecracker answers %s %s with %d: %.300s", method, path, res.StatusCode, fault.Message)
	}
	return b, nil
}
