// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/api"
)

func (a *app) loginCommand() *cobra.Command {
	var ca, job, file string
	var device, noBrowser bool
	cmd := &cobra.Command{Use: "login", Short: "Log in to a server elsewhere, as a person, at your company's identity provider", Args: cobra.NoArgs,
		Long:    "Log in to a server elsewhere. Your browser opens at the company's identity provider; what it says about you decides which\nroles you have (remit.yaml: people). The session lasts an hour unless the server's file says otherwise, counts only with a\nkey that never leaves this machine, and is kept in a file of mode 0600 ($REMIT_SESSION).",
		Example: "  remit login --server https://remit.company.com:8443 --ca bundle.pem",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.login(c.Context(), ca, func(ctx context.Context, client *api.Client) (loginGranted, error) {
				switch {
				case job != "":
					return a.loginJob(ctx, client, job, file)
				case device:
					return a.loginByCode(ctx, client)
				}
				return a.loginByBrowser(ctx, client, noBrowser)
			})
		}}
	f := cmd.Flags()
	f.StringVar(&ca, "ca", "", "the server's bundle.pem, got by a way that you trust (default: the system's roots)")
	f.BoolVar(&device, "device", false, "type a code on another device instead of using a browser here")
	f.StringVar(&job, "job", "", "log in as this CI job, which remit.yaml lists under jobs, by the token of --token-file")
	f.StringVar(&file, "token-file", "-", "the file with the CI job's token; - reads standard input")
	f.BoolVar(&noBrowser, "no-browser", false, "print the address instead of opening it")
	cmd.AddCommand(
		&cobra.Command{Use: "status", Short: "Say who you are logged in as, where, and for how long", Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error { return a.loginStatus(c.Context()) }},
		&cobra.Command{Use: "list", Short: "List the sessions of all people", Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error { return a.loginList(c.Context()) }},
		&cobra.Command{Use: "end SESSION", Short: "End a person's session", Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				return a.post(c.Context(), "/v1/sessions/"+args[0]+"/end", nil, nil)
			}},
		&cobra.Command{Use: "forget operator/NAME", Short: "Free a name, so that another account may log in with it; its sessions end", Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				return a.post(c.Context(), "/v1/people/"+strings.TrimPrefix(args[0], "operator/")+"/forget", nil, nil)
			}})
	return cmd
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{Use: "logout", Short: "End your session", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		s, _, err := readSession()
		if errors.Is(err, errNoSession) {
			a.note("you were not logged in")
			return nil
		}
		if err == nil {
			var client *api.Client
			if client, err = s.client(); err == nil {
				err = client.Post(c.Context(), "/v1/logout", nil, nil)
			}
		}
		if err := removeSession(); err != nil {
			return err
		}
		if err != nil && remit.CodeOf(err) != remit.CodeUnauthenticated { // it had ended
			a.note("the session is forgotten here; at the server it lives on until it expires, or somebody ends it: remit login end")
			return err
		}
		return nil
	}}
}

// What the server's login calls take and answer: internal/gateway/login says what it means.
type loginStarted struct {
	Login    string `json:"login"`
	URL      string `json:"url"`
	State    string `json:"state"`
	UserCode string `json:"user_code"`
	Seconds  int    `json:"seconds"`
}

type loginGranted struct {
	Session remit.SessionID `json:"session"`
	Token   string          `json:"token"`
	Person  remit.Name      `json:"person"`
	Roles   []string        `json:"roles"`
	Expires time.Time       `json:"expires"`
}

// login makes a key, lets in log in with it, and keeps the session.
func (a *app) login(ctx context.Context, ca string, in func(context.Context, *api.Client) (loginGranted, error)) error {
	s := &session{Server: a.address()}
	if !strings.HasPrefix(s.Server, "https://") {
		return badUse("name the server").hint(hintLogin)
	}
	if ca != "" {
		b, err := os.ReadFile(ca)
		if err != nil {
			return badUse("%v", err)
		}
		s.CA = string(b)
	}
	if err := s.newKey(); err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	client, err := s.client()
	if err != nil {
		return err
	}
	g, err := in(ctx, client)
	if err != nil {
		return err
	}
	s.ID, s.Token, s.Person, s.Roles, s.Expires = g.Session, g.Token, g.Person, g.Roles, g.Expires
	if err := s.save(); err != nil {
		return err
	}
	return a.showSession(s)
}

// loginByBrowser listens on the loopback for the code that the provider sends the browser back with (RFC 8252 section 7.3).
func (a *app) loginByBrowser(ctx context.Context, client *api.Client, noBrowser bool) (g loginGranted, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return g, fmt.Errorf("listen for the browser: %w", err)
	}
	defer l.Close()
	var st loginStarted
	start := map[string]string{"flow": "browser", "redirect": "http://" + l.Addr().String() + "/callback"}
	if err := client.Post(ctx, "/login/start", start, &st); err != nil {
		return g, err
	}
	//remit:guard S2 TestBrowserOpensWebAddressesOnly
	if !webAddress(st.URL) {
		return g, &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("the server names no https:// address to log in at: %.80q", st.URL)}
	}
	if noBrowser || openBrowser(st.URL) != nil {
		fmt.Fprintln(a.err, "open this address in a browser on this machine:")
		fmt.Fprintln(a.err, clean(st.URL))
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(st.Seconds)*time.Second)
	defer cancel()
	back, err := callback(ctx, l, st.State)
	if err != nil {
		return g, err
	}
	return g, client.Post(ctx, "/login/finish", map[string]string{"login": st.Login, "code": back.code, "state": st.State}, &g)
}

type cameBack struct{ code, refused string }

// callback waits for the one request that carries the state; others, from whatever page or process, get 404 and change nothing.
func callback(ctx context.Context, l net.Listener, state string) (cameBack, error) {
	got := make(chan cameBack, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /callback", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Get("state") != state {
			http.NotFound(w, r)
			return
		}
		select {
		case got <- cameBack{q.Get("code"), q.Get("error")}:
		default:
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("You can close this window; remit goes on in the terminal.\n"))
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }()
	defer func() {
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = srv.Shutdown(sctx)
		<-served
	}()
	select {
	case b := <-got:
		if b.refused != "" || b.code == "" {
			return b, &remit.Error{Code: remit.CodeForbidden, Msg: "the identity provider did not log you in: " + clean(b.refused)}
		}
		return b, nil
	case <-ctx.Done():
		return cameBack{}, &remit.Error{Code: remit.CodeUnavailable, Msg: "nobody logged in in the browser in time", Hint: "try again: remit login"}
	}
}

// webAddress reports whether a browser may be given it: not a file, not another program's scheme, not an option.
func webAddress(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Hostname() != "" && strings.HasPrefix(s, "https://")
}

func openBrowser(address string) error {
	for _, command := range []string{"xdg-open", "open"} {
		if path, err := exec.LookPath(command); err == nil {
			return exec.Command(path, address).Start() //nolint:gosec // the server's own address of the provider
		}
	}
	return errors.New("no browser")
}

// loginJob logs a CI job in by the token that its CI system gave it.
func (a *app) loginJob(ctx context.Context, client *api.Client, job, file string) (g loginGranted, err error) {
	in := a.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return g, badUse("%v", err)
		}
		defer f.Close()
		in = f
	}
	token, err := io.ReadAll(io.LimitReader(in, 32<<10))
	if err != nil {
		return g, badUse("%v", err)
	}
	return g, client.Post(ctx, "/login/job", map[string]string{"job": job, "token": strings.TrimSpace(string(token))}, &g)
}

// loginByCode lets the person type a code elsewhere, and asks until it is answered (RFC 8628).
func (a *app) loginByCode(ctx context.Context, client *api.Client) (g loginGranted, err error) {
	var st loginStarted
	if err := client.Post(ctx, "/login/start", map[string]string{"flow": "device"}, &st); err != nil {
		return g, err
	}
	fmt.Fprintf(a.err, "on any device, open %s and type %s\n", clean(st.URL), clean(st.UserCode))
	for end := time.Now().Add(time.Duration(st.Seconds) * time.Second); time.Now().Before(end); {
		err = client.Post(ctx, "/login/finish", map[string]string{"login": st.Login}, &g)
		if remit.CodeOf(err) != remit.CodeHeld {
			return g, err
		}
	}
	return g, err
}

func (a *app) showSession(s *session) error {
	type shown struct {
		Server  string          `json:"server"`
		Session remit.SessionID `json:"session"`
		Person  remit.Name      `json:"person"`
		Roles   []string        `json:"roles"`
		Expires time.Time       `json:"expires"`
	}
	return a.show(shown{s.Server, s.ID, s.Person, s.Roles, s.Expires}, func() {
		a.fields("you are", string(s.Person), "at", s.Server, "roles", strings.Join(s.Roles, ", "), "until", stamp(s.Expires), "session", string(s.ID))
	})
}

// loginStatus asks the server, which alone knows whether the session still counts.
func (a *app) loginStatus(ctx context.Context) error {
	s, err := loadSession()
	if err != nil {
		return err
	}
	client, err := s.client()
	if err != nil {
		return err
	}
	var st api.Status
	if err := client.Get(ctx, "/v1/status", nil, &st); err != nil {
		return err
	}
	s.Person, s.Roles, s.Expires = remit.Name(st.You), st.Roles, st.Expires
	return a.showSession(s)
}

func (a *app) loginList(ctx context.Context) error {
	var l api.List[api.Session]
	if err := a.get(ctx, "/v1/sessions", a.page(), &l); err != nil {
		return err
	}
	return a.show(l, func() {
		var rows [][]string
		for _, s := range l.Items {
			rows = append(rows, []string{string(s.ID), string(s.Person), stamp(s.Started), stamp(s.Expires), stamp(s.Ended)})
		}
		a.table("SESSION PERSON STARTED EXPIRES ENDED", rows)
		a.noteNext(l.Next)
	})
}
