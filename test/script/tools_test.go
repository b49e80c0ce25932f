// SPDX-License-Identifier: Apache-2.0

package script_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"remit/internal/tool/tooltest"
)

// TestToolsPage runs docs/tools.md: its server, its files and each of its commands, with the real program, whose parts sandboxes are
// made of. Its payment service stands on the loopback, at an address that clients do not take for their own.
func TestToolsPage(t *testing.T) {
	if os.Getuid() != 0 || testing.Short() {
		t.Skip("sandboxes are made by root, and take their time")
	}
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "tools.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	program, err := tooltest.Build("remit/cmd/remit")
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(filepath.Join("testdata", "tools", "page.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(strings.Join(blocks(page, "sh"), "")) {
		command, _, _ := strings.Cut(strings.TrimSpace(line), " < ")
		if !strings.Contains(string(script), "\nexec "+command+"\n") && !strings.Contains(string(script), "\neventually "+command+"\n") {
			t.Errorf("the script does not run %q", command)
		}
	}
	url := payments(t)
	run(t, filepath.Join("testdata", "tools"), func(e *testscript.Env) error {
		e.Setenv("PATH", filepath.Dir(program)+string(os.PathListSeparator)+e.Getenv("PATH"))
		folder, secret := filepath.Join(e.WorkDir, "issue-refund"), filepath.Join(e.WorkDir, "payments.key")
		yaml := strings.NewReplacer("/opt/tools/issue-refund", folder, "https://payments.company.com\ninject", url+"\nprivate: true\ninject",
			"https://payments.company.com", url, "/etc/remit/secrets/payments", secret).Replace(blocks(page, "yaml")[0])
		for name, content := range map[string]string{filepath.Join(folder, "tool.py"): blocks(page, "python")[0], secret: "the-key-of-payments",
			filepath.Join(e.WorkDir, "page.yaml"): yaml} {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
				return err
			}
		}
		return nil
	})
}

func blocks(page, language string) (out []string) {
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(page, -1) {
		out = append(out, m[1])
	}
	return out
}

// payments answers refunds that come with its key.
func payments(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skip("this host has no second address on its loopback")
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path != "/v1/refunds" || r.Header.Get("Authorization") != "Bearer the-key-of-payments" || string(body) != `{"amount":40,"customer":555}` {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		fmt.Fprint(w, "paid 40 with the key")
	})}}
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.URL
}
