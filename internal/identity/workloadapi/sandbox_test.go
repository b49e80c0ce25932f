// SPDX-License-Identifier: Apache-2.0

package workloadapi_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	client "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"

	"remit"
	"remit/internal/identity"
	"remit/internal/identity/workloadapi"
)

// S27: the identity of a tool is its sandbox's socket: whoever is in the sandbox has it, nobody else, and it ends with the sandbox.
func TestSocketOfASandbox(t *testing.T) {
	f := newFixture(t, nil, agent("deploy"))
	mine := false
	b := f.bind(workloadapi.Binding{Owner: -1, Sandbox: &workloadapi.Sandbox{Workload: map[string]string{"sandbox": "box-a"}, Admit: func(pid int) error {
		if pid != os.Getpid() || !mine {
			return errors.New("not in the sandbox")
		}
		return nil
	}}})
	if !b.Attached() || !b.Alive() {
		t.Error("it waits for a process")
	}
	if got := fetchFrom(t, b.Path); got.Code != "PermissionDenied" {
		t.Errorf("a stranger got %+v", got)
	}
	mine = true
	got := fetchFrom(t, b.Path)
	if len(got.IDs) != 1 || got.IDs[0] != "spiffe://company.com/agent/deploy" {
		t.Fatalf("%+v", got)
	}
	if row, ok := f.Issued(got.Serial); !ok || row.Level != remit.LevelSandbox || row.Launch != b.Launch || row.Workload["sandbox"] != "box-a" {
		t.Errorf("%+v", row)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if got := fetchFrom(t, b.Path); got.Code == "" {
		t.Errorf("after its end: %+v", got)
	}
}

// S35: all sandboxes have one user on the host, and the flood of one is not the others' matter.
func TestConnectionsOfASandbox(t *testing.T) {
	f := newFixture(t, nil, agent("deploy"))
	sandbox := &workloadapi.Sandbox{}
	one := f.bind(workloadapi.Binding{Owner: -1, Sandbox: sandbox})
	other := f.bind(workloadapi.Binding{Owner: -1, Sandbox: sandbox})
	refused := 0
	for range 80 {
		c, err := net.Dial("unix", one.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadFull(c, make([]byte, 9)); err != nil {
			refused++
		}
	}
	if refused != 64 {
		t.Errorf("%d of 80 connections were refused", refused)
	}
	if got := fetchFrom(t, other.Path); len(got.IDs) != 1 {
		t.Errorf("another sandbox was locked out: %+v", got)
	}
}

// fetchFrom fetches in this process.
func fetchFrom(t *testing.T, socket string) (a answer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := client.New(ctx, client.WithAddr("unix://"+socket))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := c.FetchX509SVID(ctx)
	if err != nil {
		return answer{Code: status.Code(err).String()}
	}
	return answer{IDs: []string{s.ID.String()}, Serial: identity.Serial(s.Certificates[0])}
}
