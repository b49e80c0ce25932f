// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
)

// TestBrowserOpensWebAddressesOnly: a server cannot have the person's machine open a file or another program.
func TestBrowserOpensWebAddressesOnly(t *testing.T) {
	for _, address := range []string{"", "file:///etc/passwd", "--help", "http://idp.example/", "javascript:alert(1)", "https:///x", "https:idp.example"} {
		socket := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(loginStarted{URL: address, Seconds: 1})
		}))
		_ = srv.Listener.Close()
		srv.Listener = l
		srv.Start()
		client, err := api.NewClient("unix://" + socket)
		if err != nil {
			t.Fatal(err)
		}
		a := &app{err: io.Discard}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err = a.loginByBrowser(ctx, client, true)
		if remit.CodeOf(err) != remit.CodeForbidden {
			t.Errorf("%q: %v", address, err)
		}
		cancel()
		srv.Close()
	}
	if !webAddress("https://idp.example/authorize?x=1") {
		t.Error("a provider's address is refused")
	}
}
